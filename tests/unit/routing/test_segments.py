import random

import pytest

from meshlib.model.listener import ClientListener
from meshlib.model.matcher import PathKind, PathMatcher
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import DirectResponse, Route, RouteConfiguration, RouteMatcher, VirtualHost
from meshlib.routing.segments import FEW, first_segment, segment_of
from meshlib.routing.table import RouteTable


@pytest.mark.parametrize(
    ("path", "segment"), [("/a/b", "/a"), ("/a", "/a"), ("/", "/"), ("//a", "/"), ("", ""), ("*", "*"), ("/a/", "/a")]
)
def test_first_segment(path: str, segment: str) -> None:
    assert first_segment(path) == segment


@pytest.mark.parametrize(
    ("matcher", "segment"),
    [
        (PathMatcher(PathKind.PREFIX, "/a/"), "/a"),
        (PathMatcher(PathKind.PREFIX, "/a/b"), "/a"),
        (PathMatcher(PathKind.PREFIX, "/a"), None),
        (PathMatcher(PathKind.PREFIX, "/"), None),
        (PathMatcher(PathKind.PREFIX, ""), None),
        (PathMatcher(PathKind.PATH, "/a"), "/a"),
        (PathMatcher(PathKind.PATH, "/a/b"), "/a"),
        (PathMatcher(PathKind.PATH, "/a", case_sensitive=False), None),
        (PathMatcher(PathKind.SEPARATED_PREFIX, "/a"), "/a"),
        (PathMatcher(PathKind.REGEX, "/a/.*"), None),
        (PathMatcher(PathKind.TEMPLATE, "/a/*"), None),
    ],
)
def test_what_a_condition_says_of_the_first_segment(matcher: PathMatcher, segment: str | None) -> None:
    assert segment_of(matcher) == segment


def test_an_index_decides_as_asking_all_does() -> None:
    chance = random.Random(7)
    values = ["/a", "/a/", "/a/b", "/ab", "/b/", "/", "", "//a", "/b/c/", "/A/"]
    kinds = [PathKind.PREFIX, PathKind.PREFIX, PathKind.PATH, PathKind.SEPARATED_PREFIX, PathKind.REGEX]
    paths = ["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/b", "/b/c/d", "//a", "/A/b", "/z", "", "/a?x", "/a/?x"]
    for _ in range(300):
        routes = []
        for number in range(FEW + 4):
            kind, value = chance.choice(kinds), chance.choice(values)
            if kind is PathKind.SEPARATED_PREFIX:
                value = value.rstrip("/") or "/q"
            path = PathMatcher(kind, value, case_sensitive=chance.random() < 0.8)
            routes.append(Route(RouteMatcher(path), DirectResponse(200 + number)))
        few = [RouteTable(ClientListener("l", "r"), table(routes[start : start + FEW])) for start in (0, FEW)]
        many = RouteTable(ClientListener("l", "r"), table(routes))
        for text in paths:
            head = RequestHead("GET", "svc", text, Headers())
            asked = [one.match(head, chance) for one in few]
            expected = next((answer for answer in asked if answer.status != 404), asked[-1])  # type: ignore[union-attr]
            assert many.match(head, chance) == expected


def table(routes: list[Route]) -> RouteConfiguration:
    return RouteConfiguration("r", (VirtualHost("v", ("*",), tuple(routes)),))
