import random
from typing import Any

import pytest

from meshlib.model.listener import ClientListener
from meshlib.model.outcome import Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import (
    InternalRedirectPolicy,
    RouteAction,
    RouteConfiguration,
    SingleCluster,
    VirtualHost,
)
from meshlib.routing.internal_redirect import InternalRedirects
from meshlib.routing.table import RouteMatch, RouteTable
from meshlib.testing import any_path

RNG = random.Random(1)
NAMES = ("old", "new", "other")
ROUTES = tuple(any_path(RouteAction(SingleCluster("c")), name=name, prefix=f"/{name}") for name in NAMES)
CONFIG = RouteConfiguration("rc", (VirtualHost("vh", ("shop", "store:81"), ROUTES),))
TABLE = RouteTable(ClientListener("l", CONFIG), CONFIG)


def head(method: str = "GET", *headers: tuple[str, str], path: str = "/old?q=1") -> RequestHead:
    return RequestHead(method, "shop", path, Headers(headers))


def follow(
    location: str,
    *,
    policy: InternalRedirectPolicy | None = None,
    status: int = 302,
    request: RequestHead | None = None,
    redirects: InternalRedirects | None = None,
    **headers: str,
) -> RequestHead | None:
    request = request or head()
    match = TABLE.match(request, RNG)
    assert isinstance(match, RouteMatch)
    found = Headers((("location", location), *headers.items()))
    return (redirects or InternalRedirects()).follow(
        policy or InternalRedirectPolicy(), match, request, Response(status, found), TABLE, RNG
    )


def parts(found: RequestHead | None) -> Any:
    return None if found is None else (found.method, found.scheme, found.authority, found.path)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://shop/new", ("GET", "http", "shop", "/new")),
        ("http://store:81/new?a=b#part", ("GET", "http", "store:81", "/new?a=b")),
        ("https://shop/new", None),
        ("/new", None),
        ("", None),
        ("http:///new", None),
        ("http://[/new", None),
        ("ftp://shop/new", None),
        ("http://shop/nowhere", None),
        ("http://nobody/new", None),
        ("http://me@shop/new", None),
    ],
)
def test_where_redirects_lead(location: str, expected: Any) -> None:
    assert parts(follow(location)) == expected


def test_new_request_says_where_it_began() -> None:
    found = follow("http://shop/new", request=head("GET", ("a", "b"), ("x-envoy-original-url", "http://forged/")))
    assert found is not None
    assert found.headers.items == (("a", "b"), ("x-envoy-original-url", "http://shop/old?q=1"))


@pytest.mark.parametrize(("status", "followed"), [(301, True), (302, False), (307, True), (200, False)])
def test_only_some_statuses_count(status: int, followed: bool) -> None:
    policy = InternalRedirectPolicy(codes=frozenset({301, 307}))
    assert (follow("http://shop/new", policy=policy, status=status) is not None) is followed


def test_redirects_are_limited() -> None:
    redirects, policy = InternalRedirects(), InternalRedirectPolicy(max_redirects=2)
    found = [follow("http://shop/new", policy=policy, redirects=redirects) is not None for _ in range(3)]
    assert found == [True, True, False]


@pytest.mark.parametrize(("method", "after"), [("POST", "GET"), ("HEAD", "HEAD"), ("GET", "GET")])
def test_see_other_is_a_get(method: str, after: str) -> None:
    policy = InternalRedirectPolicy(codes=frozenset({303}))
    found = follow("http://shop/new", policy=policy, status=303, request=head(method, ("content-length", "3")))
    assert found is not None
    assert found.method == after
    assert ("content-length" in found.headers) is (method == after)


def test_other_statuses_keep_the_method() -> None:
    found = follow("http://shop/new", request=head("POST", ("content-length", "3")))
    assert found is not None
    assert (found.method, found.headers.get("content-length")) == ("POST", "3")


def test_headers_are_copied_from_the_response_or_go() -> None:
    policy = InternalRedirectPolicy(copied_headers=("token", "gone"))
    found = follow("http://shop/new", policy=policy, request=head("GET", ("gone", "1"), ("token", "0")), token="1")
    assert found is not None
    assert (found.headers.all("token"), found.headers.all("gone")) == (("1",), ())


@pytest.mark.parametrize(("safe", "followed"), [(False, True), (True, False)])
def test_schemes_may_be_crossed_where_that_is_allowed(safe: bool, followed: bool) -> None:
    policy = InternalRedirectPolicy(allows_cross_scheme=True, is_safe_cross_scheme=safe)
    assert (follow("https://shop/new", policy=policy) is not None) is followed


def test_only_some_routes_are_allowed() -> None:
    policy = InternalRedirectPolicy(allowed_routes=frozenset({"other"}))
    assert follow("http://shop/new", policy=policy) is None
    assert follow("http://shop/other", policy=policy) is not None


def test_no_route_is_led_to_twice() -> None:
    redirects = InternalRedirects()
    policy = InternalRedirectPolicy(max_redirects=9, avoids_previous_routes=True)
    targets = ("new", "other", "new")
    found = [follow(f"http://shop/{name}", policy=policy, redirects=redirects) is not None for name in targets]
    assert found == [True, True, False]


def test_scheme_of_the_caller_counts_after_a_redirect_to_another() -> None:
    """As in Envoy, whose connection from the caller stays what it is."""
    redirects = InternalRedirects()
    policy = InternalRedirectPolicy(max_redirects=9, allows_cross_scheme=True)
    first = follow("https://shop/new", policy=policy, redirects=redirects)
    assert first is not None and first.scheme == "https"
    second = follow("http://shop/other", policy=policy, redirects=redirects, request=first)
    assert second is not None
    assert ("http://shop/new",) == second.headers.all("x-envoy-original-url")
    safe = InternalRedirectPolicy(max_redirects=9, allows_cross_scheme=True, is_safe_cross_scheme=True)
    assert follow("https://shop/other", policy=safe, redirects=redirects, request=first) is None
