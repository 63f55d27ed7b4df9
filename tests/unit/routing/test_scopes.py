"""Scopes: the key of a request, whose routes it meets, and what a request needs on demand."""

import random

import pytest

from meshlib.model.discovery import KeyFragment, ScopedRoutes
from meshlib.model.listener import ClientListener
from meshlib.model.matcher import Fraction, HeaderMatcher, PathKind, PathMatcher, StringKind, StringMatcher
from meshlib.model.outcome import LocalReply
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import (
    ClusterHeader,
    ClusterWeight,
    MirrorPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatcher,
    SingleCluster,
    VirtualHost,
    WeightedClusters,
)
from meshlib.model.snapshot import ConfigFault, DemandKind, ScopeConfig
from meshlib.routing.scopes import ScopeTable
from meshlib.routing.table import RouteMatch, RouteTable

RNG = random.Random(1)
ROOT = PathMatcher(PathKind.PREFIX, "/")


def to(*routes: Route, name: str = "r", more: bool = False, domain: str = "*") -> RouteConfiguration:
    return RouteConfiguration(name, (VirtualHost("h", (domain,), routes),), has_more_hosts=more)


def simple(cluster: str, **match: object) -> Route:
    return Route(RouteMatcher(ROOT, **match), RouteAction(SingleCluster(cluster)))  # type: ignore[arg-type]


def table(*fragments: KeyFragment, **scopes: RouteConfiguration | ConfigFault | None) -> ScopeTable:
    """Scopes by their keys, whose fragments are joined with `__`."""
    scoped = ScopedRoutes("s", fragments)
    configs = [ScopeConfig(f"scope-{key}", tuple(key.split("__")), routes) for key, routes in scopes.items()]
    return ScopeTable(scoped, ClientListener("l", scoped), configs)


def head(*headers: tuple[str, str], authority: str = "shop", is_grpc: bool = False) -> RequestHead:
    return RequestHead("GET", authority, "/x", Headers(headers), is_grpc=is_grpc)


def cluster_of(found: ScopeTable, request: RequestHead) -> str:
    match = found.match(request, RNG)
    return match.cluster if isinstance(match, RouteMatch) else f"{match.status} {match.flag}"


WHOLE = KeyFragment("x-scope", index=0)


@pytest.mark.parametrize(
    ("fragment", "value", "expected"),
    [
        (WHOLE, "red", "a"),
        (WHOLE, "green", "404 NR"),
        (WHOLE, "Red", "404 NR"),
        (KeyFragment("x-scope", ",", 0), "red,blue", "a"),
        (KeyFragment("x-scope", ",", 1), "red,blue", "b"),
        (KeyFragment("x-scope", ",", 2), "red,blue", "404 NR"),
        (KeyFragment("x-scope", ",", 1), "blue", "404 NR"),
        (KeyFragment("x-scope", ";", None, "color", "="), "a=b;color=red;c=d", "a"),
        (KeyFragment("x-scope", ";", None, "color", "="), "color=blue=red", "404 NR"),
        (KeyFragment("x-scope", ";", None, "color", "="), "color=blue;color=red", "b"),
        (KeyFragment("x-scope", ";", None, "color", "="), "color;other=red", "404 NR"),
        (KeyFragment("x-scope", "", None, "color", "="), "color=red", "a"),
    ],
)
def test_which_part_of_a_header_is_the_key(fragment: KeyFragment, value: str, expected: str) -> None:
    found = table(fragment, red=to(simple("a")), blue=to(simple("b")))
    assert cluster_of(found, head(("x-scope", value))) == expected


def test_first_of_several_lines_counts_and_none_is_no_scope() -> None:
    found = table(WHOLE, red=to(simple("a")), blue=to(simple("b")))
    assert cluster_of(found, head(("x-scope", "blue"), ("x-scope", "red"))) == "b"
    assert cluster_of(found, head()) == "404 NR"


def test_all_fragments_make_the_key() -> None:
    found = table(WHOLE, KeyFragment("x-zone", index=0), red__east=to(simple("a")), red__west=to(simple("b")))
    assert cluster_of(found, head(("x-scope", "red"), ("x-zone", "west"))) == "b"
    assert cluster_of(found, head(("x-scope", "red"))) == "404 NR"


def test_grpc_call_in_no_scope_is_unavailable() -> None:
    found = table(WHOLE).match(head(is_grpc=True), RNG)
    assert isinstance(found, LocalReply)
    assert found.grpc_status == 14


def test_scope_without_routes_says_why() -> None:
    found = table(WHOLE, red=ConfigFault("RDS: r", "RDS resource r: does not exist")).match(
        head(("x-scope", "red")), RNG
    )
    assert isinstance(found, LocalReply)
    assert (found.status, found.flag, found.body) == (503, "NR", b"RDS resource r: does not exist")


def test_scopes_may_share_routes_and_their_table() -> None:
    routes = to(simple("a"))
    found = table(WHOLE, red=routes, blue=routes)
    assert found.tables["red",] is found.tables["blue",]


def test_explanation_names_the_scope_or_why_there_is_none() -> None:
    found = table(WHOLE, red=to(simple("a")), blue=None)
    assert found.trace(head(("x-scope", "red"))).reason.startswith("scope scope-red (key red); virtual host h")
    assert found.trace(head(("x-scope", "blue"))).reason == "scope scope-blue has no routes yet"
    assert found.trace(head(("x-scope", "x"))).reason == "no scope has the key x"
    assert found.trace(head()).reason == "the request lacks a part of the scope key"


# What a request needs on demand.


def test_nothing_is_on_demand_in_a_plain_table() -> None:
    found = RouteTable(ClientListener("l", "r"), to(simple("a")))
    assert (found.has_demands, found.demands(head()), found.demands(head(authority="other"))) == (False, (), ())


def test_scope_whose_routes_are_not_there_is_a_demand() -> None:
    found = table(WHOLE, red=None)
    assert found.has_demands
    assert found.demands(head(("x-scope", "red"))) == ((DemandKind.SCOPE, "scope-red"),)
    assert found.demands(head(("x-scope", "blue"))) == ()


def test_virtual_host_that_nobody_has_is_a_demand_in_lower_case() -> None:
    found = RouteTable(ClientListener("l", "r"), to(simple("a"), more=True, domain="shop"))
    assert found.has_demands
    assert found.demands(head(authority="Other:80")) == ((DemandKind.VIRTUAL_HOST, "other:80"),)
    assert found.demands(head()) == ()


def test_cluster_that_a_header_names_is_a_demand() -> None:
    canary = HeaderMatcher("x-canary", StringMatcher(StringKind.EXACT, "yes"))
    named = Route(RouteMatcher(ROOT, headers=(canary,)), RouteAction(ClusterHeader("x-cluster")))
    found = RouteTable(ClientListener("l", "r"), to(named, simple("a")))
    assert found.has_demands
    assert found.demands(head(("x-canary", "yes"), ("x-cluster", "c"))) == ((DemandKind.CLUSTER, "c"),)
    assert found.demands(head(("x-canary", "yes"))) == ()
    assert found.demands(head(("x-cluster", "c"))) == ()


def test_all_that_chance_may_choose_is_a_demand() -> None:
    half = Route(RouteMatcher(ROOT, fraction=Fraction(50)), RouteAction(ClusterHeader("x-cluster")))
    weighted = Route(
        RouteMatcher(ROOT),
        RouteAction(
            WeightedClusters((ClusterWeight("a", 1), ClusterWeight("b", 1))), mirrors=(MirrorPolicy("m", Fraction(1)),)
        ),
    )
    request = head(("x-cluster", "c"))
    routes = to(half, weighted, simple("never"))
    assert RouteTable(ClientListener("l", "r"), routes).demands(request) == ((DemandKind.CLUSTER, "c"),)
    lazy = RouteTable(ClientListener("l", "r", on_demand_timeout_s=5.0), routes)
    assert [name for _, name in lazy.demands(request)] == ["c", "a", "b"]
    assert [name for _, name in lazy.wishes(request)] == ["m"]


def test_nobody_waits_for_the_cluster_of_a_copy() -> None:
    mirrors = (MirrorPolicy("", Fraction(100), cluster_header="x-mirror"),)
    route = Route(RouteMatcher(ROOT), RouteAction(SingleCluster("a"), mirrors=mirrors))
    found = RouteTable(ClientListener("l", "r"), to(route))
    request = head(("x-mirror", "m"))
    assert (found.has_demands, found.demands(request)) == (True, ())
    assert found.wishes(request) == ((DemandKind.CLUSTER, "m"),)
    assert table(WHOLE, red=to(route)).wishes(head(("x-scope", "red"), ("x-mirror", "m"))) == (
        (DemandKind.CLUSTER, "m"),
    )
