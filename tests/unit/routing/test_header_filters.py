from meshlib.model.filters import HeaderFilter, HeaderFilters, ListedHeaderFilter
from meshlib.model.headers import HeaderAdd, HeaderChange
from meshlib.routing.header_filters import filter_changes


def change(name: str) -> HeaderChange:
    return HeaderChange(add=HeaderAdd("x", name))


def does(name: str) -> HeaderFilter:
    return HeaderFilter((change(f"{name}-q"),), (change(f"{name}-s"),))


def said(listed: list[ListedHeaderFilter], *levels: HeaderFilters) -> tuple[list[str], list[str]]:
    found = filter_changes(listed, levels)
    return [one.add.value for one in found.request if one.add], [one.add.value for one in found.response if one.add]


def test_own_changes_come_first_and_the_most_specific_level_next() -> None:
    listed = [ListedHeaderFilter("f", does("own"))]
    route, host = (("f", does("route")),), (("f", does("host")),)
    assert said(listed, route, host)[0] == ["own-q", "route-q", "host-q"]


def test_the_most_specific_level_may_have_the_last_word() -> None:
    listed = [ListedHeaderFilter("f", does("own"), most_specific_wins=True)]
    assert said(listed, (("f", does("route")),), (("f", does("host")),))[0] == ["own-q", "host-q", "route-q"]


def test_responses_meet_the_filters_the_other_way_round() -> None:
    listed = [ListedHeaderFilter("f", does("first")), ListedHeaderFilter("g", does("second"))]
    assert said(listed) == (["first-q", "second-q"], ["second-s", "first-s"])


def test_the_most_specific_level_that_speaks_decides_whether_a_filter_runs() -> None:
    listed = [ListedHeaderFilter("f", does("own"))]
    assert said(listed, (("f", None),), (("f", does("host")),)) == ([], [])
    assert said(listed, (), (("f", None),)) == ([], [])
    assert said(listed, (("f", does("route")),), (("f", None),))[0] == ["own-q", "route-q"]


def test_a_filter_that_is_off_runs_where_a_level_configures_it() -> None:
    listed = [ListedHeaderFilter("f", does("own"), is_disabled=True)]
    assert said(listed) == ([], [])
    assert said(listed, (("f", does("route")),))[0] == ["own-q", "route-q"]
