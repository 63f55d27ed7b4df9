import pytest

from meshlib.model.matcher import PathKind, PathMatcher
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import HeaderAdd, HeaderMutation, RegexRewrite, RouteAction, SingleCluster
from meshlib.routing.format import Facts
from meshlib.routing.headers import request_mutator
from meshlib.routing.rewrite import (
    check_regex_rewrite,
    compile_path_rewrite,
    compile_regex_rewrite,
    compile_rewrite,
    rewrite_host,
)

CLUSTER = SingleCluster("c")
ROOT = PathMatcher(PathKind.PREFIX, "/")


def rewritten(
    action: RouteAction,
    *headers: tuple[str, str],
    path: str = "/old/a?q=1",
    matcher: PathMatcher = ROOT,
    adds: tuple[HeaderAdd, ...] = (),
    weight_host: str = "",
    weight_adds: tuple[HeaderAdd, ...] = (),
) -> RequestHead:
    mutator = request_mutator([HeaderMutation(request_add=adds)], Facts())
    weight = request_mutator([HeaderMutation(request_add=weight_adds)], Facts())
    rewrite = compile_rewrite(action, matcher, mutator, weight, weight_host)
    assert rewrite is not None
    return rewrite(RequestHead("GET", "svc:80", path, Headers(headers)))


@pytest.mark.parametrize(
    ("kind", "value", "prefix", "path", "expected"),
    [
        (PathKind.PREFIX, "/old", "/", "/old/a", "//a"),  # plain concatenation
        (PathKind.PREFIX, "/old", "/new", "/oldx", "/newx"),
        (PathKind.PREFIX, "/old", "/new", "/old/a?q=1", "/new/a?q=1"),
        (PathKind.SEPARATED_PREFIX, "/old", "/new", "/old/a", "/new/a"),
        (PathKind.PATH, "/old", "/new", "/old?q", "/new?q"),
        (PathKind.REGEX, "/o.*", "/new", "/old/a?q", "/new?q"),
        (PathKind.TEMPLATE, "/{x}", "/new", "/old?q", "/new?q"),
    ],
)
def test_prefix_rewrite_replaces_what_matched(
    kind: PathKind, value: str, prefix: str, path: str, expected: str
) -> None:
    rewrite = compile_path_rewrite(prefix, None, PathMatcher(kind, value))
    assert rewrite is not None
    assert rewrite(path) == expected


@pytest.mark.parametrize(
    ("pattern", "substitution", "text", "expected"),
    [
        ("a", "b", "/aXa", "/bXb"),
        ("^/a", "", "/ab", "b"),
        ("/([a-z]+)/([a-z]+)", r"/\2/\1", "/x/y", "/y/x"),
        ("a", r"<\0>", "/a", "/<a>"),
        ("a", r"\\", "/a", "/\\"),
        ("a*", "-", "baac", "-b-c-"),  # no empty match right behind another match
        ("(x)?a", r"[\1]", "a", "[]"),
        ("z", "y", "/a", "/a"),
    ],
)
def test_regex_rewrite_is_the_global_replace_of_re2(pattern: str, substitution: str, text: str, expected: str) -> None:
    assert compile_regex_rewrite(RegexRewrite(pattern, substitution))(text) == expected


def test_bad_regex_rewrites_are_named() -> None:
    assert check_regex_rewrite(RegexRewrite("(", "x"))
    assert "group 2" in (check_regex_rewrite(RegexRewrite("(a)", r"\2")) or "")
    assert "backslash" in (check_regex_rewrite(RegexRewrite("a", r"\x")) or "")
    assert check_regex_rewrite(RegexRewrite("(a)", r"\1\0\\")) is None


def test_path_rewrite_keeps_the_original_path() -> None:
    head = rewritten(RouteAction(CLUSTER, prefix_rewrite="/n/"))
    assert (head.path, head.headers.get("x-envoy-original-path")) == ("/n/old/a?q=1", "/old/a?q=1")


def test_regex_rewrite_without_a_match_still_tells_the_original_path() -> None:
    head = rewritten(RouteAction(CLUSTER, regex_rewrite=RegexRewrite("zzz", "y")))
    assert (head.path, head.headers.get("x-envoy-original-path")) == ("/old/a?q=1", "/old/a?q=1")


def test_empty_result_of_a_regex_rewrite_is_no_rewrite() -> None:
    action = RouteAction(CLUSTER, regex_rewrite=RegexRewrite(".*", ""), host_rewrite_literal="h")
    head = rewritten(action)
    assert (head.path, "x-envoy-original-path" in head.headers) == ("/old/a?q=1", False)


def test_literal_host_keeps_the_original_host() -> None:
    head = rewritten(RouteAction(CLUSTER, host_rewrite_literal="new"))
    assert (head.authority, head.headers.get("x-envoy-original-host")) == ("new", "svc:80")


def test_host_from_a_header_that_the_route_adds() -> None:
    head = rewritten(RouteAction(CLUSTER, host_rewrite_header="X-Host"), adds=(HeaderAdd("x-host", "h"),))
    assert head.authority == "h"


@pytest.mark.parametrize("headers", [(), (("x-host", ""),)])
def test_host_from_a_missing_or_empty_header_stays(headers: tuple[tuple[str, str], ...]) -> None:
    head = rewritten(RouteAction(CLUSTER, host_rewrite_header="x-host"), *headers)
    assert (head.authority, "x-envoy-original-host" in head.headers) == ("svc:80", False)


def test_host_of_a_weighted_cluster_leaves_no_trace_and_is_seen_by_the_levels_above() -> None:
    head = rewritten(
        RouteAction(CLUSTER),
        adds=(HeaderAdd("x-level", "%REQ(:authority)%"),),
        weight_host="w",
        weight_adds=(HeaderAdd("x-weight", "%REQ(:authority)%"),),
    )
    assert head.authority == "w"
    assert head.headers.items == (("x-weight", "svc:80"), ("x-level", "w"))


def test_forwarded_host_is_appended_unless_it_is_the_last() -> None:
    action = RouteAction(CLUSTER, host_rewrite_literal="new", append_x_forwarded_host=True)
    assert rewritten(action).headers.get("x-forwarded-host") == "svc:80"
    assert rewritten(action, ("x-forwarded-host", "a")).headers.get("x-forwarded-host") == "a,svc:80"
    assert rewritten(action, ("x-forwarded-host", "a, svc:80")).headers.get("x-forwarded-host") == "a, svc:80"


def test_header_values_see_the_path_before_its_rewrite() -> None:
    head = rewritten(RouteAction(CLUSTER, prefix_rewrite="/n"), adds=(HeaderAdd("x", "%REQ(:path)%"),))
    assert head.headers.get("x") == "/old/a?q=1"


def test_action_that_changes_nothing_has_no_rewrite() -> None:
    assert compile_rewrite(RouteAction(CLUSTER), ROOT, request_mutator([], Facts())) is None


def test_method_scheme_and_kind_survive() -> None:
    rewrite = compile_rewrite(RouteAction(CLUSTER, host_rewrite_literal="h"), ROOT, request_mutator([], Facts()))
    assert rewrite is not None
    head = rewrite(RequestHead("PUT", "svc", "/", Headers(), scheme="https", is_grpc=True))
    assert (head.method, head.scheme, head.is_grpc) == ("PUT", "https", True)


def test_host_of_an_endpoint() -> None:
    head = RequestHead("GET", "svc", "/", Headers())
    assert rewrite_host(head, "") is head
    changed = rewrite_host(head, "ep", append_forwarded=True)
    assert changed.authority == "ep"
    assert changed.headers.items == (("x-forwarded-host", "svc"), ("x-envoy-original-host", "svc"))
