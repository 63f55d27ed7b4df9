"""Which headers had a say in where a request goes."""

from collections.abc import Iterator

import pytest

from meshlib.model.listener import ClientListener
from meshlib.model.matcher import HeaderMatcher, PathKind, PathMatcher, StringKind, StringMatcher
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import Route, RouteAction, RouteConfiguration, RouteMatcher, SingleCluster, VirtualHost
from meshlib.routing.reads import _Watched, names_read
from meshlib.routing.table import RouteMatch, RouteTable
from meshlib.testing import FixedRng

RNG = FixedRng(0.5)
HEADERS = Headers([("content-type", "application/grpc"), ("a", "1"), ("b", "2"), ("a", "3")])


def route(cluster: str, *names: str) -> Route:
    wanted = tuple(HeaderMatcher(name, StringMatcher(StringKind.EXACT, "1")) for name in names)
    return Route(RouteMatcher(PathMatcher(PathKind.PREFIX, "/"), headers=wanted), RouteAction(SingleCluster(cluster)))


def read(*routes: Route, headers: tuple[tuple[str, str], ...] = ()) -> frozenset[str] | None:
    config = RouteConfiguration("routes", (VirtualHost("host", ("a",), routes),))
    table = RouteTable(ClientListener("a", config), config)
    head = RequestHead("POST", "a", "/pkg.Service/Method", Headers(headers), is_grpc=True)
    found = table.match(head, RNG)
    assert isinstance(found, RouteMatch)
    return names_read(table, head, found, RNG)


def test_routes_by_path_alone_read_nothing() -> None:
    assert frozenset() == read(route("plain"))


def test_headers_that_are_not_there_are_read_too() -> None:
    assert frozenset({"a"}) == read(route("first", "a"), route("plain"))


@pytest.mark.parametrize(
    ("headers", "names"),
    [((), {"a", "c"}), ((("a", "1"),), {"a", "b", "c"}), ((("a", "1"), ("b", "1")), {"a", "b"})],
)
def test_as_far_as_a_request_gets(headers: tuple[tuple[str, str], ...], names: set[str]) -> None:
    assert names == read(route("first", "a", "b"), route("second", "c"), route("plain"), headers=headers)


def test_another_answer_than_before_says_nothing() -> None:
    config = RouteConfiguration("routes", (VirtualHost("host", ("a",), (route("plain"),)),))
    table, other = (RouteTable(ClientListener("a", config), config) for _ in range(2))
    head = RequestHead("POST", "a", "/pkg.Service/Method", Headers(), is_grpc=True)
    found = other.match(head, RNG)
    assert isinstance(found, RouteMatch)
    assert names_read(table, head, found, RNG) is None


def test_watched_headers_answer_as_others_do() -> None:
    watched = _Watched(HEADERS)
    assert [HEADERS.all("a"), HEADERS.get("b"), HEADERS.find("c"), True, False] == [
        watched.all("a"),
        watched.get("b"),
        watched.find("c"),
        "content-type" in watched,
        "d" in watched,
    ]
    assert {"a", "b", "c", "content-type", "d"} == watched.names and not watched.is_read_whole
    assert HEADERS.items == watched.items and watched.is_read_whole


def test_all_that_headers_can_do_is_watched() -> None:
    """A new way to read headers has to be watched too."""

    def public() -> Iterator[str]:
        for name in vars(Headers):
            if not name.startswith("__") or name == "__contains__":
                yield name

    assert {"_build", "_index", "items", "all", "get", "find", "__contains__", "of"} == set(public())
