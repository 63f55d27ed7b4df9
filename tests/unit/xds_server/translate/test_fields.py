import pytest

from xds_server.model import Document, Position
from xds_server.translate.fields import INVALID, At, Duration, Int, Kind, List, Map, Obj, Renamed, Str, suggestion
from xds_server.translate.report import Report


def decode(kind: Kind, value: object) -> tuple[object, list[str]]:
    report = Report()
    document = Document({"a": value}, {(): Position("f", 1, 1), ("a",): Position("f", 2, 1)})
    decoded = kind.decode(value, At(document, report) / "a")
    return decoded, [finding.message for finding in report.findings()]


@pytest.mark.parametrize(
    ("text", "expected"),
    {
        "2s": "2s",
        "1.5s": "1.5s",
        "100ms": "0.1s",
        "1h30m": "5400s",
        "1m0.25s": "60.25s",
        "1500us": "0.0015s",
    }.items(),
)
def test_durations_become_seconds(text, expected):
    assert decode(Duration(), text) == (expected, [])


@pytest.mark.parametrize("value", ["", "5", "s", "1.5.5s", "-1s", "1 s", "1us", "9" * 30 + "h", 5, True, None, ["1s"]])
def test_what_is_no_duration_is_refused(value):
    decoded, messages = decode(Duration(), value)
    assert (decoded, len(messages)) == (INVALID, 1)


def test_a_number_where_text_is_wanted_says_how_to_quote_it():
    assert decode(Str(), True)[1] == ['a: must be a string, not a boolean; write "true"']


def test_a_list_with_a_wrong_item_is_left_out_as_a_whole():
    assert decode(List(Int()), [1, "x", 3]) == (INVALID, ["a[1]: must be an integer, not a string"])


def test_a_map_leaves_out_what_is_wrong():
    assert decode(Map(Int()), {"x": 1, "y": "2"})[0] == {"x": 1}


def test_the_new_name_of_a_field_wins():
    kind = Obj({"new": Int(), "old": Renamed(Int(), "new")})
    assert decode(kind, {"old": 1})[0] == {"new": 1}
    assert decode(kind, {"old": 1, "new": 2})[0] == {"new": 2}


def test_an_object_without_a_required_field_is_left_out():
    assert decode(Obj({"x": Int()}, required=("x",)), {}) == (INVALID, ["a: x is missing"])
    assert decode(Obj({"x": Int()}, required=("x",)), {"x": "y"})[0] is INVALID


@pytest.mark.parametrize(
    ("given", "expected"),
    [("timeOut", "; did you mean timeout?"), ("fixed_delay", "; did you mean fixedDelay?"), ("zzz", ""), (1, "")],
)
def test_suggestions_are_close_words(given, expected):
    assert suggestion(given, ("timeout", "fixedDelay")) == expected
