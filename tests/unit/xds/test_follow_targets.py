"""Scopes, demands of requests, filters and runtime values, on the way from resources to a snapshot."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest

from meshlib.model.authorization import Rbac
from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.discovery import (
    Collection,
    FilterConfig,
    KeyFragment,
    RuntimeLayer,
    RuntimeValue,
    ScopedRoute,
    ScopedRoutes,
)
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, Locality, LocalityEndpoints
from meshlib.model.filters import AdaptiveConcurrency, AdmissionControl, ListedLimit, LocalRateLimit, TokenBucket
from meshlib.model.headers import HeaderAdd
from meshlib.model.listener import ClientListener, DiscoveredFilter, ServerListener
from meshlib.model.local_reply import Comparison, ReplyMapper, ReplyRules, StatusIs
from meshlib.model.matcher import Fraction, PathKind, PathMatcher
from meshlib.model.route import (
    ClusterHeader,
    FaultAbort,
    FaultPolicy,
    MirrorPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatcher,
    SingleCluster,
    VirtualHost,
)
from meshlib.model.session import SessionPolicy
from meshlib.model.snapshot import ClusterConfig, ConfigFault, Demand, DemandKind, InboundConfig, Snapshot, TargetConfig
from meshlib.xds.cache import ResourceCache, ResourceState, ResourceValue
from meshlib.xds.dependencies import Closure, Facts, Resolution, resolve
from meshlib.xds.resources import CDS, ECDS, EDS, LDS, LEDS, RDS, RTDS, SRDS, VHDS

FAULT = "envoy.extensions.filters.http.fault.v3.HTTPFault"
RBAC = "envoy.extensions.filters.http.rbac.v3.RBAC"
SCOPED = ScopedRoutes("scoped", (KeyFragment("x-tenant", index=0),))
TENANTS = ClientListener("shop", SCOPED)
GLOB = "xdstp://a/envoy.config.endpoint.v3.LbEndpoint/c/*"


def host(name: str, action: RouteAction, *domains: str, share: Fraction | None = None) -> VirtualHost:
    route = Route(RouteMatcher(PathMatcher(PathKind.PREFIX, "/"), fraction=share), action)
    return VirtualHost(name, domains or ("*",), (route,))


def routes(cluster: str, name: str = "routes") -> RouteConfiguration:
    return RouteConfiguration(name, (host("all", RouteAction(SingleCluster(cluster))),))


class World:
    """A cache that is filled by hand, and what followed: from scratch, and of what changed, which must be the same."""

    def __init__(self, *, inbound: tuple[str, ...] = (), runtime: tuple[RuntimeLayer | str, ...] = ()) -> None:
        self.cache = ResourceCache()
        self.inbound = frozenset(inbound)
        self.runtime = runtime
        self.demands: Mapping[str, frozenset[Demand]] = {}
        self.closure = Closure()
        self.snapshot = Snapshot()

    def put(self, type_url: str, name: str, value: ResourceValue) -> None:
        entry = self.cache.add(type_url, name)
        entry.value, entry.version, entry.state = value, "1", ResourceState.ACKED

    def delete(self, type_url: str, name: str) -> None:
        entry = self.cache.add(type_url, name)
        entry.value, entry.state, entry.error = None, ResourceState.DOES_NOT_EXIST, "does not exist"
        entry.is_absent = True

    def cluster(self, *names: str) -> None:
        for name in names:
            self.put(CDS, name, Cluster(name, EdsDiscovery("")))
            self.put(EDS, name, assignment(name))

    def scopes(self, *scopes: ScopedRoute) -> None:
        self.put(SRDS, "*", Collection(MappingProxyType({scope.name: scope for scope in scopes})))

    def ask(self, *demands: Demand) -> None:
        self.demands = {"shop": frozenset(demands)}

    def settle(self) -> Resolution:
        facts = Facts(
            self.cache, frozenset({"shop"}), self.inbound, demands=self.demands, runtime=self.runtime, node_id="n"
        )
        whole = resolve(facts, self.snapshot)
        found = self.closure.resolve(facts, self.snapshot)
        assert (whole.wanted, whole.waiting) == (found.wanted, found.waiting)
        assert whole.snapshot.targets == found.snapshot.targets
        assert whole.snapshot.clusters == found.snapshot.clusters
        self.snapshot = found.snapshot
        return found

    @property
    def shop(self) -> TargetConfig:
        found = self.snapshot.targets["shop"]
        assert isinstance(found, TargetConfig)
        return found


def assignment(name: str, *collections: str) -> ClusterLoadAssignment:
    endpoints = () if collections else (Endpoint("10.0.0.1:80"),)
    return ClusterLoadAssignment(name, (LocalityEndpoints(Locality(), endpoints, collections=collections),))


# Scopes.


def test_scopes_lead_to_their_routes_and_those_to_clusters() -> None:
    world = World()
    world.put(LDS, "shop", TENANTS)
    first = world.settle()
    assert (first.wanted[SRDS], first.waiting["shop"]) == (frozenset("*"), ("SRDS resources",))
    world.scopes(ScopedRoute("a", ("red",), "ra"), ScopedRoute("b", ("blue",), "rb"))
    second = world.settle()
    assert (second.wanted[RDS], second.waiting["shop"]) == (
        frozenset({"ra", "rb"}),
        ("RDS resource ra", "RDS resource rb"),
    )
    world.put(RDS, "ra", routes("x", "ra"))
    world.put(RDS, "rb", routes("y", "rb"))
    assert world.settle().wanted[CDS] == frozenset("xy")
    world.cluster("x", "y")
    assert not world.settle().waiting
    assert [(scope.name, scope.key, scope.routes) for scope in world.shop.scopes or ()] == [
        ("a", ("red",), routes("x", "ra")),
        ("b", ("blue",), routes("y", "rb")),
    ]
    assert world.snapshot.clusters.keys() == {"x", "y"}


def test_new_scope_is_taken_when_its_clusters_are_warm() -> None:
    world = tenants()
    before = world.shop
    world.scopes(ScopedRoute("a", ("red",), "ra"), ScopedRoute("b", ("blue",), "rb"))
    world.put(RDS, "rb", routes("y", "rb"))
    assert "CDS resource y" in world.settle().waiting["shop"]
    assert world.shop is before
    world.cluster("y")
    world.settle()
    assert [scope.name for scope in world.shop.scopes or ()] == ["a", "b"]


def tenants() -> World:
    """A target with one scope, all of it there."""
    world = World()
    world.put(LDS, "shop", TENANTS)
    world.scopes(ScopedRoute("a", ("red",), "ra"))
    world.put(RDS, "ra", routes("x", "ra"))
    world.cluster("x")
    world.settle()
    return world


def test_scope_that_is_removed_frees_its_routes_and_clusters() -> None:
    world = tenants()
    world.scopes()
    found = world.settle()
    assert (world.shop.scopes, found.wanted[RDS], found.wanted[CDS]) == ((), frozenset(), frozenset())
    assert not world.snapshot.clusters


def test_scope_whose_routes_do_not_exist_takes_nobody_else_down() -> None:
    world = tenants()
    world.scopes(ScopedRoute("a", ("red",), "ra"), ScopedRoute("b", ("blue",), "rb"))
    world.delete(RDS, "rb")
    assert not world.settle().waiting
    good, bad = world.shop.scopes or ()
    assert good.routes == routes("x", "ra")
    assert isinstance(bad.routes, ConfigFault)
    assert "RDS resource rb: does not exist" in bad.routes.message


def test_of_two_scopes_with_one_key_the_first_by_name_counts() -> None:
    world = tenants()
    world.scopes(ScopedRoute("a", ("red",), "ra"), ScopedRoute("b", ("red",), routes("x", "other")))
    world.settle()
    assert [scope.name for scope in world.shop.scopes or ()] == ["a"]


def test_no_scoped_routes_at_all_fails_the_target() -> None:
    world = World()
    world.put(LDS, "shop", TENANTS)
    world.delete(SRDS, "*")
    world.settle()
    found = world.snapshot.targets["shop"]
    assert isinstance(found, ConfigFault)
    assert (found.is_absent, "SRDS" in found.message) == (False, True)


def test_inline_scopes_need_no_discovery() -> None:
    world = World()
    inline = replace(SCOPED, scopes=(ScopedRoute("a", ("red",), routes("x")), ScopedRoute("b", ("blue",), "rb")))
    world.put(LDS, "shop", ClientListener("shop", inline))
    world.put(RDS, "rb", routes("x", "rb"))
    world.cluster("x")
    found = world.settle()
    assert (found.wanted[SRDS], found.wanted[RDS], found.waiting) == (frozenset(), frozenset({"rb"}), {})


def test_scope_on_demand_is_followed_when_a_request_meets_it() -> None:
    world = World()
    world.put(LDS, "shop", TENANTS)
    world.scopes(ScopedRoute("a", ("red",), "ra", on_demand=True))
    found = world.settle()
    assert (found.wanted[RDS], found.waiting) == (frozenset(), {})
    assert [scope.routes for scope in world.shop.scopes or ()] == [None]
    demand = (DemandKind.SCOPE, "a")
    world.ask(demand)
    found = world.settle()
    assert (found.wanted[RDS], found.waiting, world.shop.answered) == (frozenset({"ra"}), {}, frozenset())
    world.put(RDS, "ra", routes("x", "ra"))
    assert world.settle().waiting["shop"] == ("CDS resource x",)
    assert not world.shop.answered
    world.cluster("x")
    world.settle()
    assert world.shop.answered == {demand}
    assert [scope.routes for scope in world.shop.scopes or ()] == [routes("x", "ra")]


# What requests ask for.


def by_header(**listener: object) -> World:
    world = World()
    config = RouteConfiguration("routes", (host("all", RouteAction(ClusterHeader("x-cluster"))),))
    world.put(LDS, "shop", ClientListener("shop", config, **listener))  # type: ignore[arg-type]
    world.settle()
    return world


def test_cluster_of_a_header_is_followed_when_a_request_names_it() -> None:
    world = by_header()
    assert world.settle().wanted[CDS] == frozenset()
    world.ask((DemandKind.CLUSTER, "x"))
    found = world.settle()
    assert (found.wanted[CDS], found.waiting, world.shop.answered) == (frozenset("x"), {}, frozenset())
    assert not world.snapshot.clusters
    world.put(CDS, "x", Cluster("x", EdsDiscovery("")))
    world.settle()
    assert not world.snapshot.clusters, "it is not warm"
    world.put(EDS, "x", assignment("x"))
    world.settle()
    assert world.shop.answered == {(DemandKind.CLUSTER, "x")}
    assert isinstance(world.snapshot.clusters["x"], ClusterConfig)
    world.ask()
    found = world.settle()
    assert (found.wanted[CDS], world.snapshot.clusters) == (frozenset(), {})


def test_cluster_that_does_not_exist_is_an_answer() -> None:
    world = by_header()
    world.ask((DemandKind.CLUSTER, "x"))
    world.delete(CDS, "x")
    world.settle()
    assert world.shop.answered == {(DemandKind.CLUSTER, "x")}
    assert isinstance(world.snapshot.clusters["x"], ConfigFault)


def test_cluster_in_use_stays_while_its_new_form_warms() -> None:
    world = by_header()
    world.ask((DemandKind.CLUSTER, "x"))
    world.cluster("x")
    world.settle()
    before = world.snapshot.clusters["x"]
    world.put(CDS, "x", Cluster("x", EdsDiscovery("elsewhere")))
    world.settle()
    assert world.snapshot.clusters["x"] is before
    assert world.shop.answered == {(DemandKind.CLUSTER, "x")}


def test_demand_is_answered_while_the_target_waits_for_other_routes() -> None:
    world = by_header()
    world.put(LDS, "shop", ClientListener("shop", "later"))
    world.ask((DemandKind.CLUSTER, "x"))
    world.cluster("x")
    assert world.settle().waiting["shop"] == ("RDS resource later",)
    assert world.shop.answered == {(DemandKind.CLUSTER, "x")}


@pytest.mark.parametrize("name", ["*", "xdstp://a/envoy.config.cluster.v3.Cluster/*"])
def test_request_cannot_ask_for_all_clusters(name: str) -> None:
    world = by_header()
    world.ask((DemandKind.CLUSTER, name))
    assert world.settle().wanted[CDS] == frozenset()
    assert isinstance(world.snapshot.clusters[name], ConfigFault)


def test_only_clusters_in_use_are_held_where_they_are_on_demand() -> None:
    world = World()
    hosts = tuple(host(f"h{index}", RouteAction(SingleCluster(f"c{index}")), f"d{index}") for index in range(1000))
    listener = ClientListener("shop", RouteConfiguration("routes", hosts), on_demand_timeout_s=5.0)
    world.put(LDS, "shop", listener)
    found = world.settle()
    assert (found.wanted[CDS], found.waiting) == (frozenset(), {})
    world.ask(*((DemandKind.CLUSTER, f"c{index}") for index in range(5)))
    assert world.settle().wanted[CDS] == {f"c{index}" for index in range(5)}


def test_virtual_host_is_asked_for_by_its_authority() -> None:
    world = World()
    base = RouteConfiguration("routes", (host("known", RouteAction(SingleCluster("x")), "known"),), has_more_hosts=True)
    world.put(LDS, "shop", ClientListener("shop", base))
    world.cluster("x")
    world.settle()
    first, second = (DemandKind.VIRTUAL_HOST, "new"), (DemandKind.VIRTUAL_HOST, "alias")
    world.ask(first, second)
    found = world.settle()
    assert (found.wanted[VHDS], found.waiting) == (frozenset({"routes/new", "routes/alias"}), {})
    new = host("new", RouteAction(SingleCluster("y")), "new", "alias")
    world.put(VHDS, "routes/new", new)
    world.put(VHDS, "routes/alias", new)
    assert world.settle().waiting["shop"] == ("CDS resource y",)
    assert len(world.shop.routes.virtual_hosts) == 1, "a virtual host is not used before its clusters"
    world.cluster("y")
    world.settle()
    assert world.shop.routes.virtual_hosts == (*base.virtual_hosts, new)
    assert world.shop.answered == {first, second}


def test_virtual_host_that_does_not_exist_is_an_answer() -> None:
    world = World()
    world.put(LDS, "shop", ClientListener("shop", RouteConfiguration("routes", (), has_more_hosts=True)))
    world.ask((DemandKind.VIRTUAL_HOST, "new"))
    world.delete(VHDS, "routes/new")
    world.settle()
    assert (world.shop.answered, world.shop.routes.virtual_hosts) == ({(DemandKind.VIRTUAL_HOST, "new")}, ())


# Filters.


def with_filter(**changes: object) -> World:
    world = World()
    filter_ = replace(DiscoveredFilter("faults", frozenset({FAULT})), **changes)  # type: ignore[arg-type]
    world.put(LDS, "shop", ClientListener("shop", RouteConfiguration("r", ()), discovered=(filter_,)))
    return world


ABORT = FaultPolicy(abort=FaultAbort(Fraction(100), 503))
DEFAULT = FilterConfig("faults", FAULT, FaultPolicy())


def test_listener_waits_for_its_filter() -> None:
    world = with_filter()
    found = world.settle()
    assert (found.wanted[ECDS], found.waiting["shop"]) == (frozenset({"faults"}), ("ECDS resource faults",))
    world.put(ECDS, "faults", FilterConfig("faults", FAULT, ABORT))
    world.settle()
    assert (world.shop.listener.has_fault_filter, world.shop.listener.fault) == (True, ABORT)


def test_filter_that_cannot_be_had_fails_the_target_unless_it_has_a_default() -> None:
    world = with_filter()
    world.delete(ECDS, "faults")
    world.settle()
    assert isinstance(world.snapshot.targets["shop"], ConfigFault)
    world = with_filter(default=DEFAULT)
    assert "ECDS resource faults" in world.settle().waiting["shop"]
    world.delete(ECDS, "faults")
    world.settle()
    assert world.shop.listener.fault == FaultPolicy()


def test_default_of_a_filter_may_serve_at_once() -> None:
    world = with_filter(default=DEFAULT, skips_warming=True)
    assert not world.settle().waiting
    assert world.shop.listener.fault == FaultPolicy()
    world.put(ECDS, "faults", FilterConfig("faults", FAULT, ABORT))
    world.settle()
    assert world.shop.listener.fault == ABORT


def test_filter_of_another_type_is_not_taken() -> None:
    world = with_filter(default=DEFAULT)
    world.put(ECDS, "faults", FilterConfig("faults", RBAC, Rbac("faults", True, ())))
    world.settle()
    assert world.shop.listener.fault == FaultPolicy()


def test_filter_for_sessions_may_be_discovered_too() -> None:
    world = with_filter(type_names=frozenset({"s"}))
    world.put(ECDS, "faults", FilterConfig("faults", "s", SessionPolicy(None)))
    world.settle()
    assert (world.shop.listener.has_session_filter, world.shop.listener.session) == (True, SessionPolicy(None))
    assert not world.shop.listener.has_fault_filter


def test_disabled_filter_takes_part_where_routes_configure_it() -> None:
    world = with_filter(is_disabled=True)
    world.put(ECDS, "faults", FilterConfig("faults", FAULT, ABORT))
    world.settle()
    assert (world.shop.listener.has_fault_filter, world.shop.listener.fault) == (True, None)


LIMIT_TYPE = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"


def limit(tokens: int) -> LocalRateLimit:
    return LocalRateLimit(TokenBucket(tokens, 1, 1.0), Fraction(100), Fraction(100))


def test_discovered_limits_keep_their_places() -> None:
    world = World()
    admission, concurrency = AdmissionControl(), AdaptiveConcurrency()
    discovered = (
        DiscoveredFilter("second", frozenset({LIMIT_TYPE, "other"}), position=1, is_after_fault=True),
        DiscoveredFilter("third", frozenset({"other"}), position=1, is_disabled=True),
        DiscoveredFilter("fifth", frozenset({"other"}), position=2),
    )
    listed = (ListedLimit("first", limit(1)), ListedLimit("fourth", limit(4)))
    listener = ClientListener("shop", RouteConfiguration("r", ()), limits=listed, discovered=discovered)
    world.put(LDS, "shop", listener)
    assert world.settle().waiting["shop"] == ("ECDS resource second", "ECDS resource third", "ECDS resource fifth")
    world.put(ECDS, "second", FilterConfig("second", LIMIT_TYPE, limit(2)))
    world.put(ECDS, "third", FilterConfig("third", "other", admission))
    world.put(ECDS, "fifth", FilterConfig("fifth", "other", concurrency))
    world.settle()
    second, third = ListedLimit("second", limit(2), is_after_fault=True), ListedLimit("third", None)
    assert world.shop.listener.limits == (listed[0], second, third, listed[1], ListedLimit("fifth", concurrency))
    world.put(ECDS, "second", FilterConfig("second", LIMIT_TYPE, limit(7)))
    world.settle()
    assert world.shop.listener.limits[1].config == limit(7)


def test_default_of_a_discovered_limit_serves_until_it_comes() -> None:
    default = FilterConfig("faults", LIMIT_TYPE, limit(1))
    world = with_filter(type_names=frozenset({LIMIT_TYPE}), default=default, skips_warming=True)
    assert not world.settle().waiting
    assert world.shop.listener.limits == (ListedLimit("faults", limit(1)),)
    world.put(ECDS, "faults", FilterConfig("faults", LIMIT_TYPE, limit(2)))
    world.settle()
    assert world.shop.listener.limits == (ListedLimit("faults", limit(2)),)
    world.put(ECDS, "faults", FilterConfig("faults", FAULT, ABORT))  # of another type: as if it did not exist
    world.settle()
    assert world.shop.listener.limits == (ListedLimit("faults", limit(1)),)


def test_discovered_authorization_keeps_its_place() -> None:
    world = World(inbound=("in",))
    first, last = Rbac("first", True, ()), Rbac("last", True, ())
    discovered = (
        DiscoveredFilter("second", frozenset({RBAC}), position=1),
        DiscoveredFilter("third", frozenset({RBAC}), position=1),
    )
    routes_ = RouteConfiguration("r", ())
    world.put(LDS, "in", ServerListener("in", "127.0.0.1:1", None, (first, last), routes_, discovered))
    assert world.settle().waiting["in"] == ("ECDS resource second", "ECDS resource third")
    for name in ("second", "third"):
        world.put(ECDS, name, FilterConfig(name, RBAC, Rbac(name, True, ())))
    world.settle()
    found = world.snapshot.inbound["in"]
    assert isinstance(found, InboundConfig)
    assert [rbac.name for rbac in found.listener.rbac] == ["first", "second", "third", "last"]


def test_discovered_limits_of_a_server_keep_their_places_among_authorization() -> None:
    """The chain: own limit, discovered authorization, discovered limit, own authorization, own limit, discovered limit."""
    world = World(inbound=("in",))
    own, last = ListedLimit("own", limit(1), position=0), ListedLimit("last", limit(5), position=1)
    discovered = (
        DiscoveredFilter("guard", frozenset({RBAC}), position=1),
        DiscoveredFilter("second", frozenset({LIMIT_TYPE}), position=1),
        DiscoveredFilter("off", frozenset({LIMIT_TYPE}), position=3, is_disabled=True),
    )
    rbac = (Rbac("mine", True, ()),)
    routes_ = RouteConfiguration("r", ())
    world.put(LDS, "in", ServerListener("in", "127.0.0.1:1", None, rbac, routes_, discovered, (own, last)))
    world.put(ECDS, "guard", FilterConfig("guard", RBAC, Rbac("guard", True, ())))
    world.put(ECDS, "second", FilterConfig("second", LIMIT_TYPE, limit(2)))
    assert ("ECDS resource off",) == world.settle().waiting["in"]
    world.put(ECDS, "off", FilterConfig("off", LIMIT_TYPE, limit(6)))
    world.settle()
    found = world.snapshot.inbound["in"]
    assert isinstance(found, InboundConfig)
    assert ["guard", "mine"] == [one.name for one in found.listener.rbac]
    expected = [("own", limit(1), 0), ("second", limit(2), 1), ("last", limit(5), 2), ("off", None, 2)]
    assert expected == [(one.name, one.config, one.position) for one in found.listener.limits]


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (replace(limit(1), is_per_connection=True), "local_rate_limit_per_downstream_connection"),
        (replace(limit(1), unenforced_headers=(HeaderAdd("x", "y"),)), "request_headers_to_add_when_not_enforced"),
    ],
)
def test_a_discovered_limit_that_a_server_cannot_keep_is_a_fault(config: LocalRateLimit, field: str) -> None:
    world = World(inbound=("in",))
    discovered = (DiscoveredFilter("limit", frozenset({LIMIT_TYPE})),)
    world.put(LDS, "in", ServerListener("in", "127.0.0.1:1", None, (), RouteConfiguration("r", ()), discovered))
    world.put(ECDS, "limit", FilterConfig("limit", LIMIT_TYPE, config))
    world.settle()
    found = world.snapshot.inbound["in"]
    assert isinstance(found, ConfigFault)
    assert f"{field} is not supported in a server" in found.message


def test_server_whose_authorization_is_gone_lets_nobody_in() -> None:
    world = World(inbound=("in",))
    discovered = (DiscoveredFilter("guard", frozenset({RBAC})),)
    world.put(LDS, "in", ServerListener("in", "127.0.0.1:1", None, (), RouteConfiguration("r", ()), discovered))
    world.put(ECDS, "guard", FilterConfig("guard", RBAC, Rbac("guard", True, ())))
    world.settle()
    world.delete(ECDS, "guard")
    world.settle()
    assert isinstance(world.snapshot.inbound["in"], ConfigFault)


# Runtime values.


def test_target_waits_for_the_runtime_and_uses_it() -> None:
    world = World(runtime=(RuntimeLayer("static", {"share": 10.0}), "live"))
    share = Fraction(50, 100, "share")
    config = RouteConfiguration("routes", (host("all", RouteAction(SingleCluster("x")), share=share),))
    world.put(LDS, "shop", ClientListener("shop", config))
    world.cluster("x")
    found = world.settle()
    assert (found.wanted[RTDS], found.waiting["shop"]) == (frozenset({"live"}), ("RTDS resource live",))
    world.delete(RTDS, "live")
    world.settle()
    assert share_of(world) == Fraction(10, 100, "share")
    world.put(RTDS, "live", RuntimeLayer("live", {"share": 20.0}))
    world.settle()
    assert share_of(world) == Fraction(20, 100, "share")
    before = world.shop
    world.put(RTDS, "live", RuntimeLayer("live", {"share": 20.0, "other": 1.0}))
    world.settle()
    assert world.shop is before


def test_faults_of_the_listener_have_runtime_values_too() -> None:
    world = World(runtime=(RuntimeLayer("static", {"fault.http.abort.abort_percent": 100.0}),))
    fault = FaultPolicy(abort=FaultAbort(Fraction(0), 503))
    config = RouteConfiguration("r", ())
    world.put(LDS, "shop", ClientListener("shop", config, has_fault_filter=True, fault=fault))
    world.settle()
    found = world.shop.listener.fault
    assert found is not None and found.abort == ABORT.abort
    before = world.shop
    assert not world.settle().waiting
    assert world.shop is before


@pytest.mark.parametrize(("value", "percent"), [(30.0, 30), (0.0, 0), (100.0, 100), (250.0, 100), (True, 100)])
def test_a_share_of_retries_is_a_runtime_value(value: RuntimeValue, percent: int) -> None:
    world = World(runtime=(RuntimeLayer("static", {"upstream.use_retry": value}),))
    rules = ReplyRules((ReplyMapper(StatusIs(Comparison.GE, 500, (("value", "upstream.use_retry"),))),))
    world.put(LDS, "shop", ClientListener("shop", RouteConfiguration("r", ()), reply_rules=rules))
    world.settle()
    assert percent == world.shop.listener.retry_percent
    before = world.shop
    assert not world.settle().waiting
    assert world.shop is before


def test_limits_of_the_listener_have_runtime_values_too() -> None:
    world = World(runtime=(RuntimeLayer("static", {"off": 0.0}),))
    limiter = LocalRateLimit(TokenBucket(1, 1, 1.0), Fraction(100, 100, "off"), Fraction(100))
    world.put(LDS, "shop", ClientListener("shop", RouteConfiguration("r", ()), limits=(ListedLimit("l", limiter),)))
    world.settle()
    assert world.shop.listener.limits[0].config == replace(limiter, enabled=Fraction(0, 100, "off"))


def test_limits_of_a_server_have_runtime_values_too() -> None:
    world = World(inbound=("in",), runtime=(RuntimeLayer("static", {"off": 0.0}),))
    limiter = LocalRateLimit(TokenBucket(1, 1, 1.0), Fraction(100, 100, "off"), Fraction(100))
    listed = (ListedLimit("l", limiter),)
    world.put(LDS, "in", ServerListener("in", "127.0.0.1:1", None, (), RouteConfiguration("r", ()), limits=listed))
    world.settle()
    found = world.snapshot.inbound["in"]
    assert isinstance(found, InboundConfig)
    assert found.listener.limits[0].config == replace(limiter, enabled=Fraction(0, 100, "off"))
    world.settle()
    assert world.snapshot.inbound["in"] is found


def test_clusters_have_runtime_values_too_and_change_only_with_them() -> None:
    world = World(runtime=("live",))
    world.put(LDS, "shop", ClientListener("shop", routes("x")))
    world.cluster("x")
    world.put(RTDS, "live", RuntimeLayer("live", {"circuit_breakers.x.default.max_requests": 7.0}))
    world.settle()
    before = world.snapshot.clusters["x"]
    assert isinstance(before, ClusterConfig)
    assert before.cluster.circuit_breakers.max_requests == 7
    world.put(RTDS, "live", RuntimeLayer("live", {"circuit_breakers.x.default.max_requests": 7.0, "other": 1.0}))
    world.settle()
    assert world.snapshot.clusters["x"] is before
    world.put(RTDS, "live", RuntimeLayer("live"))
    world.settle()
    after = world.snapshot.clusters["x"]
    assert isinstance(after, ClusterConfig)
    assert after.cluster.circuit_breakers.max_requests == 1024


def share_of(world: World) -> Fraction | None:
    return world.shop.routes.virtual_hosts[0].routes[0].match.fraction


# Endpoints one by one.


def test_members_of_a_collection_are_endpoints_of_its_locality() -> None:
    world = World()
    world.put(LDS, "shop", ClientListener("shop", routes("c")))
    world.put(CDS, "c", Cluster("c", EdsDiscovery("")))
    world.put(EDS, "c", assignment("c", GLOB))
    found = world.settle()
    assert (found.wanted[LEDS], found.waiting["shop"]) == (frozenset({GLOB}), (f"LEDS resource {GLOB}",))
    members = {
        GLOB.replace("*", name): Endpoint(address) for name, address in (("a", "10.0.0.1:1"), ("b", "10.0.0.1:2"))
    }
    world.put(LEDS, GLOB, Collection(members))
    world.settle()
    assert addresses_of(world) == ["10.0.0.1:1", "10.0.0.1:2"]
    before = world.snapshot
    world.put(LEDS, GLOB, Collection(dict(members)))
    world.settle()
    assert world.snapshot.clusters is before.clusters
    world.put(LEDS, GLOB, Collection())
    world.settle()
    assert addresses_of(world) == []
    found_cluster = world.snapshot.clusters["c"]
    assert isinstance(found_cluster, ClusterConfig)
    assert "contains only empty localities" in found_cluster.note


def test_collection_that_cannot_be_had_is_a_note_on_its_cluster() -> None:
    world = World()
    world.put(LDS, "shop", ClientListener("shop", routes("c")))
    world.put(CDS, "c", Cluster("c", EdsDiscovery("")))
    world.put(EDS, "c", assignment("c", GLOB))
    world.delete(LEDS, GLOB)
    assert not world.settle().waiting
    found = world.snapshot.clusters["c"]
    assert isinstance(found, ClusterConfig)
    assert "does not exist" in found.note


def addresses_of(world: World) -> list[str]:
    found = world.snapshot.clusters["c"]
    assert isinstance(found, ClusterConfig)
    return [endpoint.address for locality in found.assignment.localities for endpoint in locality.endpoints]


def test_clusters_that_get_copies_are_followed_also_in_circles() -> None:
    world = World()
    world.put(LDS, "shop", ClientListener("shop", routes("a")))
    world.cluster("a", "b", "c")

    def copied(name: str, to: str) -> None:
        world.put(CDS, name, Cluster(name, EdsDiscovery(""), mirrors=(MirrorPolicy(to, Fraction(100)),)))

    copied("a", "b")
    copied("b", "c")
    copied("c", "a")
    found = world.settle()
    assert (found.wanted[CDS], found.wanted[EDS]) == (frozenset("abc"), frozenset("abc"))
    assert world.snapshot.clusters.keys() == set("abc")
    world.put(CDS, "b", Cluster("b", EdsDiscovery("")))
    found = world.settle()
    assert (found.wanted[CDS], found.wanted[EDS]) == (frozenset("ab"), frozenset("ab"))
    copied("b", "d")
    found = world.settle()
    assert found.wanted[CDS] == frozenset("abd")
    world.cluster("d")
    world.settle()
    assert world.snapshot.clusters.keys() == set("abd")
