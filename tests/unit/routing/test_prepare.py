import pytest

from meshlib.model.listener import ClientListener, EscapedSlashes, HeadRules
from meshlib.model.outcome import LocalReply
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import RouteAction, SingleCluster
from meshlib.routing.prepare import EarlyAnswer, compile_prepare
from meshlib.routing.table import RouteMatch, RouteTable
from meshlib.testing import FixedRng, builders


def prepared(rules: HeadRules, host: str = "svc", path: str = "/", *, is_grpc: bool = False) -> tuple[str, str, str]:
    prepare = compile_prepare(rules)
    assert prepare is not None
    head = prepare(RequestHead("GET", host, path, Headers(), is_grpc=is_grpc))
    assert isinstance(head, RequestHead)
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


# What Envoy 1.40 made of them; the differential tests make up more.
@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/../a", "/a"),
        ("/a/..", "/"),
        ("/a/.", "/a/"),
        ("/a/%2e%2E/b", "/b"),
        ("/a//../b", "/a/b"),
        ("/a\\..\\b", "/b"),
        ("/%%41", "/%A"),
        ("/%zz%2", "/%zz%2"),
        ("/%%41a", "/%25Aa"),
        ("/%a%41", "/%25aA"),
        ("/%%30%30", "/%2500"),
        ("/a%2fb%C3%a9%5b", "/a%2fb%C3%a9%5b"),
        ("/x%2dy%7e%2E", "/x-y~."),
        ('/"<>^`{|}', "/%22%3C%3E%5E%60%7B%7C%7D"),
        ("/a/..;x/b", "/b"),
        ("/a/..;x\\b", "/"),
        ("/a/%2e.;x/b", "/a/..;x/b"),
        ("/a/.../.b/..c", "/a/.../.b/..c"),
        ("/b/../..//c?d/../e", "//c?d/../e"),
    ],
)
def test_paths_get_into_their_one_spelling(path: str, expected: str) -> None:
    assert prepared(HeadRules(normalizes_path=True), path=path)[2] == expected


def answered(rules: HeadRules, path: str) -> LocalReply:
    prepare = compile_prepare(rules)
    assert prepare is not None
    found = prepare(RequestHead("GET", "svc", path, Headers()))
    assert isinstance(found, EarlyAnswer)
    return found.reply


def test_a_path_with_an_escaped_nul_has_no_spelling() -> None:
    assert answered(HeadRules(normalizes_path=True), "/a%00") == LocalReply(400, "", "path_normalization_failed")


def test_a_path_that_is_refused_has_lost_the_parameters_of_its_dot_segments() -> None:
    """Formats of the answer may write it."""
    prepare = compile_prepare(HeadRules(normalizes_path=True))
    assert prepare is not None
    found = prepare(RequestHead("GET", "svc", "/..;p/%00/..?q=/..;p", Headers()))
    assert isinstance(found, EarlyAnswer)
    assert found.head.path == "/../%00/..?q=/..;p"


@pytest.mark.parametrize("path", ["/a%2Fb", "/a%5cb"])
def test_escaped_slashes(path: str) -> None:
    kept = HeadRules(merges_slashes=True)
    assert prepared(kept, path=path)[2] == path
    refused = HeadRules(slashes=EscapedSlashes.REFUSED)
    assert answered(refused, path) == LocalReply(400, "", "path_normalization_failed")
    assert prepared(refused, path="/a?%2F")[2] == "/a?%2F"
    rules = HeadRules(slashes=EscapedSlashes.UNESCAPED, normalizes_path=True)
    assert prepared(rules, path=path)[2] == "/a/b"


def test_a_redirect_says_the_path_without_escaped_slashes() -> None:
    rules = HeadRules(slashes=EscapedSlashes.REDIRECTED, normalizes_path=True, merges_slashes=True)
    expected = LocalReply(307, "", "path_normalization_failed", b"", (("location", "/b/c?d=%2F"),))
    assert answered(rules, "/a%2f..%2F%2Fb//c?d=%2F") == expected
    assert prepared(rules, path="/a/../b")[2] == "/b"


def test_of_nothing_but_slashes_two_are_left() -> None:
    assert prepared(HeadRules(merges_slashes=True), path="////?a")[2] == "//?a"


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
    assert isinstance(table.match(head, FixedRng(0.0)), RouteMatch)
    assert table.prepare is not None
    seen = table.prepare(head)
    assert isinstance(seen, RequestHead)
    found = table.match(seen, FixedRng(0.0), is_prepared=True)
    assert isinstance(found, RouteMatch)
    out = found.rewrite(seen)
    assert (out.authority, out.path) == ("svc", "/a")
    assert table.trace(head).chosen is not None
