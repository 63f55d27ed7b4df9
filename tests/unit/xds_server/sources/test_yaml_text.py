import pytest

from xds_server.model import Position
from xds_server.sources import memory, yaml_text


def findings(text: str) -> list[str]:
    return [str(finding) for finding in memory.from_text(text, "f.yaml")[1]]


def test_every_field_knows_its_place():
    (document,), _ = memory.from_text("a:\n  - b: 1\n    c: {d: x}\n", "f.yaml")
    assert document.content == {"a": [{"b": 1, "c": {"d": "x"}}]}
    assert document.positions == {
        (): Position("f.yaml", 1, 1),
        ("a",): Position("f.yaml", 1, 1),
        ("a", 0): Position("f.yaml", 2, 5),
        ("a", 0, "b"): Position("f.yaml", 2, 5),
        ("a", 0, "c"): Position("f.yaml", 3, 5),
        ("a", 0, "c", "d"): Position("f.yaml", 3, 9),
    }


def test_a_missing_field_is_at_its_parent():
    (document,), _ = memory.from_text("a:\n  b: 1\n", "f.yaml")
    assert document.position("a", "c", 3) == Position("f.yaml", 1, 1)


def test_documents_of_one_file_have_lines_of_the_file():
    documents, _ = memory.from_text("a: 1\n---\n---\nb: 2\n", "f.yaml")
    assert [document.position() for document in documents] == [Position("f.yaml", 1, 1), Position("f.yaml", 4, 1)]


def test_json_is_read_too():
    (document,), _ = memory.from_text('{"a": [1, true, null, "x"]}')
    assert document.content == {"a": [1, True, None, "x"]}


def test_names_and_dates_stay_text_as_in_json():
    (document,), _ = memory.from_text("on: 2024-01-01\n80: {a: 1}\n")
    assert document.content == {"on": "2024-01-01", "80": {"a": 1}}


def test_documents_before_a_syntax_error_are_kept():
    documents, found = memory.from_text("a: 1\n---\nb: [1\nc: 2\n", "f.yaml")
    assert [document.content for document in documents] == [{"a": 1}]
    assert [(finding.code, finding.position) for finding in found] == [("MESH0002", Position("f.yaml", 4, 2))]


def test_a_field_given_twice_is_an_error_at_the_second():
    assert findings("a: 1\nb: 2\na: 3\n") == ["f.yaml:3:1: error: field 'a' is given twice, first in line 1 [MESH0003]"]


@pytest.mark.parametrize("text", ["- 1\n", "text\n", "? [a]\n: b\n", "a: &x {b: 1}\nc: {<<: *x}\n", "a: !!int x\n"])
def test_what_is_no_plain_object_is_an_error(text):
    assert [one.rpartition("[")[2] for one in findings(text)] == ["MESH0002]"]


def test_aliases_are_honoured():
    (document,), _ = memory.from_text("a: &x {b: 1}\nc: *x\n")
    assert document.content == {"a": {"b": 1}, "c": {"b": 1}}


def test_a_bomb_of_aliases_is_refused(monkeypatch):
    monkeypatch.setattr(yaml_text, "MAX_NODES", 10_000)  # the real limit takes a second to reach
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert [one.rpartition("[")[2] for one in findings("\n".join(lines))] == ["MESH0004]"]


def test_an_alias_of_itself_is_refused():
    assert [one.rpartition("[")[2] for one in findings("a: &x {b: *x}\n")] == ["MESH0004]"]


def test_tags_build_no_objects():
    assert [one.rpartition("[")[2] for one in findings("a: !!python/object/apply:os.system [x]\n")] == []
    documents, _ = memory.from_text("a: !!python/object/apply:os.system [x]\n")
    assert documents[0].content == {"a": ["x"]}


@pytest.mark.parametrize("text", ["[" * 200_000, "- " * 200_000, '{"a":' * 200_000, "a: " + "[" * 501 + "]" * 501])
def test_nesting_without_end_is_refused_and_does_not_end_the_process(text):
    assert [one.rpartition("[")[2] for one in findings(text)] == ["MESH0004]"]


def test_nesting_that_can_be_read_is_reported_where_it_is_too_deep():
    documents, (finding,) = memory.from_text("a: 1\n---\na: " + "[" * 499 + "]" * 499)
    assert (1, "MESH0004", 3) == (len(documents), finding.code, finding.position.line)
