import pytest

from meshlib.model.listener import ClientListener, HeadRules
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import RouteAction, SingleCluster
from meshlib.routing.prepare import compile_prepare
from meshlib.routing.table import RouteMatch, RouteTable
from meshlib.testing import FixedRng, builders


def prepared(rules: HeadRules, host: str = "svc", path: str = "/", *, is_grpc: bool = False) -> tuple[str, str, str]:
    prepare = compile_prepare(rules)
    assert prepare is not None
    head = prepare(RequestHead("GET", host, path, Headers(), is_grpc=is_grpc))
    return head.scheme, head.authority, head.path


@pytest.mark.parametrize(
    ("rules", "host", "expected"),
    [
        (HeadRules(strips_port=True), "svc:80", "svc"),
        (HeadRules(strips_port=True), "svc:http", "svc:http"),
        (HeadRules(strips_port=True), "[::1]:80", "[::1]"),
        (HeadRules(strips_port=True), "[::1]", "[::1]"),
        (HeadRules(strips_this_port=80), "svc:80", "svc"),
        (HeadRules(strips_this_port=80), "svc:81", "svc:81"),
        (HeadRules(strips_dot=True), "svc.", "svc"),
        (HeadRules(strips_dot=True), "svc.:80", "svc:80"),
        (HeadRules(strips_dot=True), "svc", "svc"),
        (HeadRules(strips_dot=True, strips_port=True), "svc.:80", "svc"),
    ],
)
def test_hosts(rules: HeadRules, host: str, expected: str) -> None:
    assert prepared(rules, host)[1] == expected


def test_slashes_of_the_path_and_not_of_the_query() -> None:
    assert prepared(HeadRules(merges_slashes=True), path="//a///b/?c=//d")[2] == "/a/b/?c=//d"


def test_scheme() -> None:
    assert prepared(HeadRules(scheme="https"))[0] == "https"


def test_grpc_calls_stay_as_they_are() -> None:
    assert prepared(HeadRules(strips_port=True, scheme="https"), "svc:80", is_grpc=True) == ("http", "svc:80", "/")


def test_no_rules_cost_nothing() -> None:
    assert compile_prepare(HeadRules()) is None


def test_routes_see_it_and_the_request_goes_on_like_it() -> None:
    routes = builders.target("svc", builders.any_path(RouteAction(SingleCluster("c")), prefix="/a")).routes
    listener = ClientListener("svc", routes, head_rules=HeadRules(strips_port=True, merges_slashes=True))
    table, head = RouteTable(listener, routes), RequestHead("GET", "svc:81", "//a", Headers())
    found = table.match(head, FixedRng(0.0))
    assert isinstance(found, RouteMatch)
    out = found.rewrite(head)
    assert (out.authority, out.path) == ("svc", "/a")
    assert table.trace(head).chosen is not None
