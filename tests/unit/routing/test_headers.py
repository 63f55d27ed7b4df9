import pytest

from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import AppendAction, HeaderAdd, HeaderMutation
from meshlib.routing.format import Facts
from meshlib.routing.headers import order_levels, request_mutator, response_mutator

APPEND, IF_ABSENT, OVERWRITE, IF_PRESENT = (
    AppendAction.APPEND_IF_EXISTS_OR_ADD,
    AppendAction.ADD_IF_ABSENT,
    AppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    AppendAction.OVERWRITE_IF_EXISTS,
)


def apply(
    levels: list[HeaderMutation], *headers: tuple[str, str], response: bool = False
) -> tuple[tuple[str, str], ...]:
    items = Headers(headers)
    head = RequestHead("GET", "svc", "/", Headers() if response else items)
    mutator = (response_mutator if response else request_mutator)(levels, Facts("route", "cluster"))
    return mutator.apply(items, head).items


def adds(*entries: HeaderAdd, remove: tuple[str, ...] = ()) -> HeaderMutation:
    return HeaderMutation(request_add=entries, request_remove=remove)


@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        (APPEND, (), (("x", "n"),)),
        (APPEND, (("x", "o"),), (("x", "o"), ("x", "n"))),
        (IF_ABSENT, (), (("x", "n"),)),
        (IF_ABSENT, (("x", "o"),), (("x", "o"),)),
        (OVERWRITE, (), (("x", "n"),)),
        (OVERWRITE, (("x", "o"), ("x", "p")), (("x", "n"),)),
        (IF_PRESENT, (), ()),
        (IF_PRESENT, (("x", "o"), ("x", "p")), (("x", "n"),)),
    ],
)
def test_append_actions(
    action: AppendAction, before: tuple[tuple[str, str], ...], after: tuple[tuple[str, str], ...]
) -> None:
    assert apply([adds(HeaderAdd("X", "n", action))], *before) == after


def test_appending_to_an_inline_header_extends_its_value() -> None:
    assert apply([adds(HeaderAdd("accept", "b"))], ("accept", "a")) == (("accept", "a,b"),)


def test_empty_value_is_skipped_unless_kept() -> None:
    assert apply([adds(HeaderAdd("x", "%REQ(no)%"))]) == ()
    assert apply([adds(HeaderAdd("x", "%REQ(no)%", keep_empty=True))]) == (("x", ""),)


def test_removal_comes_before_values_are_rendered() -> None:
    level = adds(HeaderAdd("y", "<%REQ(x)%>"), remove=("X",))
    assert apply([level], ("x", "1"), ("z", "2")) == (("z", "2"), ("y", "<>"))


def test_values_of_a_level_do_not_see_each_other() -> None:
    level = adds(HeaderAdd("x", "new", OVERWRITE), HeaderAdd("y", "%REQ(x)%"))
    assert apply([level], ("x", "old")) == (("x", "new"), ("y", "old"))


def test_overwrites_take_effect_before_additions() -> None:
    level = adds(HeaderAdd("x", "added"), HeaderAdd("x", "over", OVERWRITE))
    assert apply([level], ("x", "old")) == (("x", "over"), ("x", "added"))


def test_a_later_level_sees_the_earlier_one() -> None:
    first, second = adds(HeaderAdd("x", "1")), adds(HeaderAdd("y", "%REQ(x)%"), HeaderAdd("x", "2", IF_ABSENT))
    assert apply([first, second]) == (("x", "1"), ("y", "1"))


def levels(*, most_specific_wins: bool) -> tuple[HeaderMutation, ...]:
    weight, route, host, routes = (adds(HeaderAdd("x", name, OVERWRITE)) for name in ("w", "route", "vh", "rc"))
    return order_levels(weight, route, host, routes, most_specific_wins=most_specific_wins)


def test_by_default_the_route_configuration_wins() -> None:
    assert apply(list(levels(most_specific_wins=False))) == (("x", "rc"),)


def test_with_the_flag_the_route_wins() -> None:
    assert apply(list(levels(most_specific_wins=True))) == (("x", "route"),)


def test_weighted_cluster_runs_first_either_way() -> None:
    for flag in (False, True):
        assert levels(most_specific_wins=flag)[0].request_add[0].value == "w"


def test_response_values_read_request_and_response() -> None:
    level = HeaderMutation(
        response_remove=("server",), response_add=(HeaderAdd("x", "%RESP(server)%|%RESP(a)%|%REQ(:path)%"),)
    )
    assert apply([level], ("server", "s"), ("a", "1"), response=True) == (("a", "1"), ("x", "|1|/"))


def test_no_mutation_is_falsy() -> None:
    assert not request_mutator([HeaderMutation(response_remove=("x",))], Facts())
    assert not response_mutator([HeaderMutation(request_remove=("x",))], Facts())
