"""From resources to snapshots: completeness, make before break, faults, and what stays the same object."""

from collections.abc import Mapping
from types import MappingProxyType

import pytest

from meshlib.model.cluster import (
    AggregateDiscovery,
    Cluster,
    DnsDiscovery,
    EdsDiscovery,
    StaticDiscovery,
    TransportSocketMatch,
)
from meshlib.model.dns import DnsAnswer, DnsLookup, DnsPace, DnsQuestion, LookupFamily
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, Locality, LocalityEndpoints
from meshlib.model.listener import ClientListener, ServerListener
from meshlib.model.matcher import PathKind, PathMatcher
from meshlib.model.route import (
    ClusterWeight,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatcher,
    SingleCluster,
    VirtualHost,
    WeightedClusters,
)
from meshlib.model.secret import ClientTls, Secret, SecretRef, ServerTls, TlsCertificate, TrustedCa
from meshlib.model.snapshot import ClusterConfig, ConfigFault, HomePlace, InboundConfig, Snapshot, TargetConfig
from meshlib.xds.cache import ResourceCache, ResourceState, ResourceValue
from meshlib.xds.dependencies import Closure, Facts, Resolution, provider_secret_names, resolve
from meshlib.xds.dns import DnsWish
from meshlib.xds.resources import CDS, EDS, LDS, RDS, SDS


def routes(*clusters: str, name: str = "routes") -> RouteConfiguration:
    weights = WeightedClusters(tuple(ClusterWeight(cluster, 1) for cluster in clusters))
    action = RouteAction(SingleCluster(clusters[0]) if len(clusters) == 1 else weights)
    route = Route(RouteMatcher(PathMatcher(PathKind.PREFIX, "/")), action)
    return RouteConfiguration(name, (VirtualHost("host", ("*",), (route,)),))


def endpoints(*addresses: str, name: str = "e") -> ClusterLoadAssignment:
    return ClusterLoadAssignment(name, (LocalityEndpoints(Locality(), tuple(map(Endpoint, addresses))),))


class World:
    """A cache that is filled by hand, and the snapshot that followed."""

    def __init__(self, *targets: str, inbound: tuple[str, ...] = ()) -> None:
        self.cache = ResourceCache()
        self.targets = frozenset(targets)
        self.inbound = frozenset(inbound)
        self.dns: dict[str, DnsAnswer] = {}
        self.provider_secrets: Mapping[str, Secret] = {}
        self.snapshot = Snapshot()
        self.home: HomePlace | None = None

    def put(self, type_url: str, name: str, value: ResourceValue, version: str = "1") -> None:
        entry = self.cache.add(type_url, name)
        entry.value, entry.version, entry.state = value, version, ResourceState.ACKED

    def fail(
        self, type_url: str, name: str, error: str, state: ResourceState = ResourceState.NACKED, *, absent: bool = False
    ) -> None:
        entry = self.cache.add(type_url, name)
        entry.value, entry.state, entry.error, entry.is_absent = None, state, error, absent

    def delete(self, type_url: str, name: str) -> None:
        self.fail(type_url, name, "does not exist", ResourceState.DOES_NOT_EXIST, absent=True)

    def settle(self) -> Resolution:
        facts = Facts(self.cache, self.targets, self.inbound, self.dns, self.provider_secrets, "node-1", home=self.home)
        result = resolve(facts, self.snapshot)
        self.snapshot = result.snapshot
        return result


def shop(*clusters: str) -> World:
    """A target `shop` whose routes go to clusters with one endpoint each."""
    world = World("shop")
    world.put(LDS, "shop", ClientListener("shop", "routes"))
    world.put(RDS, "routes", routes(*clusters))
    for index, cluster in enumerate(clusters):
        world.put(CDS, cluster, Cluster(cluster, EdsDiscovery(cluster)))
        world.put(EDS, cluster, endpoints(f"10.0.0.{index}:80", name=cluster))
    world.settle()
    return world


def test_each_answer_leads_to_the_next_question() -> None:
    world = World("shop")
    asked = [{kind: names for kind, names in world.settle().wanted.items() if names}]
    for kind, name, value in (
        (LDS, "shop", ClientListener("shop", "routes")),
        (RDS, "routes", routes("a", "b")),
        (CDS, "a", Cluster("a", EdsDiscovery("ea"))),
    ):
        world.put(kind, name, value)
        asked.append({kind: names for kind, names in world.settle().wanted.items() if names})
    shop_only = {LDS: frozenset(("shop",))}
    with_routes = shop_only | {RDS: frozenset(("routes",))}
    with_clusters = with_routes | {CDS: frozenset("ab")}
    assert [shop_only, with_routes, with_clusters, with_clusters | {EDS: frozenset(("ea",))}] == asked


def test_a_target_appears_when_all_of_it_is_there() -> None:
    world = World("shop")
    assert world.settle().waiting["shop"] == ("LDS resource shop",)
    world.put(LDS, "shop", ClientListener("shop", routes("a")))
    assert world.settle().waiting["shop"] == ("CDS resource a",)
    world.put(CDS, "a", Cluster("a", EdsDiscovery("ea")))
    assert world.settle().waiting["shop"] == ("EDS resource ea",)
    assert dict(world.snapshot.targets) == {}
    found = endpoints("10.0.0.1:80")
    world.put(EDS, "ea", found)
    assert dict(world.settle().waiting) == {}
    config = world.snapshot.targets["shop"]
    assert isinstance(config, TargetConfig)
    cluster = world.snapshot.clusters["a"]
    assert isinstance(cluster, ClusterConfig)
    assert found is cluster.assignment


def test_nothing_changed_is_the_same_snapshot() -> None:
    world = shop("a")
    before = world.snapshot
    assert before is world.settle().snapshot


def test_parts_that_did_not_change_stay_the_same_objects() -> None:
    world = shop("a", "b")
    before = world.snapshot
    world.put(EDS, "b", endpoints("10.0.0.9:80"), "2")
    world.settle()
    assert before.number + 1 == world.snapshot.number
    assert before.targets is world.snapshot.targets
    assert before.clusters["a"] is world.snapshot.clusters["a"]
    assert before.clusters["b"] is not world.snapshot.clusters["b"]
    assert world.snapshot.versions[EDS, "b"] == "2"


def test_routes_to_a_cluster_that_warms_are_not_used_before_it_is_ready() -> None:
    world = shop("a")
    before = world.snapshot.targets["shop"]
    world.put(RDS, "routes", routes("b"))
    wanted = world.settle().wanted
    assert frozenset("ab") == wanted[CDS]
    assert frozenset("a") == wanted[EDS]
    assert before is world.snapshot.targets["shop"]
    world.put(CDS, "b", Cluster("b", EdsDiscovery("b")))
    world.settle()
    assert before is world.snapshot.targets["shop"]
    world.put(EDS, "b", endpoints("10.0.0.2:80"))
    wanted = world.settle().wanted
    assert list(world.snapshot.clusters) == ["b"]
    assert frozenset("b") == wanted[CDS]


def test_endpoints_of_clusters_in_use_go_on_changing_while_new_routes_wait() -> None:
    world = shop("a")
    world.put(RDS, "routes", routes("b"))
    newer = endpoints("10.0.0.7:80")
    world.put(EDS, "a", newer)
    world.settle()
    cluster = world.snapshot.clusters["a"]
    assert isinstance(cluster, ClusterConfig)
    assert newer is cluster.assignment


def test_a_cluster_deleted_too_early_is_used_until_the_new_routes_are_ready() -> None:
    world = shop("a")
    old = world.snapshot.clusters["a"]
    world.put(RDS, "routes", routes("b"))
    world.delete(CDS, "a")
    world.settle()
    assert old is world.snapshot.clusters["a"]


def test_a_cluster_deleted_while_routes_still_lead_there_is_a_fault() -> None:
    world = shop("a", "b")
    world.delete(CDS, "a")
    world.settle()
    expected = ConfigFault("CDS: a", "CDS resource a: does not exist (xDS node ID:node-1)", is_absent=True)
    assert expected == world.snapshot.clusters["a"]
    assert isinstance(world.snapshot.clusters["b"], ClusterConfig)


def test_a_cluster_keeps_its_form_until_the_new_one_is_warm() -> None:
    world = shop("a")
    old = world.snapshot.clusters["a"]
    world.put(CDS, "a", Cluster("a", EdsDiscovery("other")))
    assert frozenset(("other",)) == world.settle().wanted[EDS]
    assert old is world.snapshot.clusters["a"]
    world.put(EDS, "other", endpoints("10.0.0.5:80"))
    world.settle()
    assert old is not world.snapshot.clusters["a"]


def test_one_target_that_waits_does_not_hold_up_another() -> None:
    world = shop("a")
    world.targets |= {"late"}
    resolution = world.settle()
    assert list(resolution.waiting) == ["late"]
    assert list(world.snapshot.targets) == ["shop"]


def test_a_listener_that_does_not_exist_is_a_fault_of_the_target() -> None:
    world = World("shop")
    world.delete(LDS, "shop")
    world.settle()
    expected = ConfigFault("LDS: shop", "LDS resource shop: does not exist (xDS node ID:node-1)", is_absent=True)
    assert expected == world.snapshot.targets["shop"]
    before = world.snapshot
    assert before is world.settle().snapshot


def test_routes_that_do_not_exist_do_not_make_the_target_unknown() -> None:
    world = World("shop")
    world.put(LDS, "shop", ClientListener("shop", "routes"))
    world.delete(RDS, "routes")
    world.settle()
    expected = ConfigFault("RDS: routes", "RDS resource routes: does not exist (xDS node ID:node-1)")
    assert expected == world.snapshot.targets["shop"]


def test_a_refused_listener_says_why() -> None:
    world = World("shop")
    world.fail(LDS, "shop", "api_listener: missing")
    world.settle()
    fault = world.snapshot.targets["shop"]
    assert isinstance(fault, ConfigFault)
    assert fault.message == "LDS resource shop: invalid resource: api_listener: missing (xDS node ID:node-1)"


def test_a_target_that_had_failed_and_comes_back_is_waited_for() -> None:
    world = World("shop")
    world.delete(LDS, "shop")
    world.settle()
    world.put(LDS, "shop", ClientListener("shop", routes("a")))
    world.settle()
    assert dict(world.snapshot.targets) == {}


def test_a_server_listener_is_no_target() -> None:
    world = World("shop")
    world.put(LDS, "shop", ServerListener("shop", "0.0.0.0:80", None, (), routes("a")))
    world.settle()
    fault = world.snapshot.targets["shop"]
    assert isinstance(fault, ConfigFault)
    assert "not an API listener" in fault.message


def test_endpoints_that_cannot_be_had_leave_a_warm_cluster_with_a_note() -> None:
    world = shop("a")
    world.delete(EDS, "a")
    world.settle()
    cluster = world.snapshot.clusters["a"]
    assert isinstance(cluster, ClusterConfig)
    assert cluster.note == "EDS resource a: does not exist (xDS node ID:node-1)"
    before = world.snapshot
    assert before is world.settle().snapshot


def test_an_empty_list_of_endpoints_is_noted() -> None:
    world = shop("a")
    world.put(EDS, "a", ClusterLoadAssignment("a"))
    world.settle()
    cluster = world.snapshot.clusters["a"]
    assert isinstance(cluster, ClusterConfig)
    assert "contains no localities" in cluster.note


def test_the_local_cluster_comes_along_and_nobody_waits_for_it() -> None:
    world = shop("a")
    world.home = HomePlace("us", Locality("r", "a"))
    result = world.settle()
    assert (frozenset(("a", "us")), {}) == (result.wanted[CDS], result.waiting)
    assert {"a"} == result.snapshot.clusters.keys()
    world.put(CDS, "us", Cluster("us", EdsDiscovery("us")))
    assert frozenset(("a", "us")) == world.settle().wanted[EDS]
    world.put(EDS, "us", endpoints("10.1.0.1:80", name="us"))
    result = world.settle()
    assert (world.home, {"a", "us"}) == (result.snapshot.home, set(result.snapshot.clusters))
    world.delete(CDS, "us")
    assert isinstance(world.settle().snapshot.clusters["us"], ConfigFault)
    assert isinstance(world.snapshot.targets["shop"], TargetConfig)
    world.targets = frozenset()
    assert not any(world.settle().wanted.values())


def aggregates(graph: dict[str, tuple[str, ...]], *leaves: str) -> World:
    """A target `shop` that goes to the cluster `top`; `graph` has the aggregates, `leaves` are warm."""
    world = World("shop")
    world.put(LDS, "shop", ClientListener("shop", routes("top")))
    for name, children in graph.items():
        world.put(CDS, name, Cluster(name, AggregateDiscovery(children)))
    for index, leaf in enumerate(leaves):
        world.put(CDS, leaf, Cluster(leaf, EdsDiscovery(leaf)))
        world.put(EDS, leaf, endpoints(f"10.0.0.{index}:80", name=leaf))
    world.settle()
    return world


def leaves_of(world: World, name: str = "top") -> tuple[str, ...]:
    config = world.snapshot.clusters[name]
    assert isinstance(config, ClusterConfig)
    assert set(config.leaves) <= world.snapshot.clusters.keys()
    return config.leaves


def test_an_aggregate_has_its_leaves_depth_first_each_at_its_first_place() -> None:
    world = aggregates({"top": ("a", "inner", "b", "a"), "inner": ("c", "a", "d")}, "a", "b", "c", "d")
    assert ("a", "c", "d", "b") == leaves_of(world)


def test_a_cycle_of_aggregates_is_cut() -> None:
    world = aggregates({"top": ("inner", "a"), "inner": ("top", "inner", "b")}, "a", "b")
    assert ("b", "a") == leaves_of(world)


def test_aggregates_nested_too_deeply_are_a_fault() -> None:
    def nested(depth: int) -> World:
        graph = {f"c{index}": (f"c{index + 1}",) for index in range(1, depth)}
        return aggregates({"top": ("c1",), **graph}, f"c{depth}")

    assert ("c15",) == leaves_of(nested(15))
    fault = nested(16).snapshot.clusters["top"]
    assert isinstance(fault, ConfigFault)
    assert "aggregate cluster graph exceeds max depth" in fault.message


def test_leaves_that_cannot_be_used_are_left_out_with_a_note() -> None:
    world = aggregates({"top": ("a", "b")}, "b")
    assert world.settle().waiting["shop"] == ("CDS resource a",)
    world.delete(CDS, "a")
    world.settle()
    assert ("b",) == leaves_of(world)
    config = world.snapshot.clusters["top"]
    assert isinstance(config, ClusterConfig)
    assert "CDS resource a: does not exist" in config.note


def test_an_aggregate_without_leaves_is_a_fault() -> None:
    world = aggregates({"top": ("inner",), "inner": ("top",)})
    fault = world.snapshot.clusters["top"]
    assert isinstance(fault, ConfigFault)
    assert "aggregate cluster dependency graph for top has no leaf clusters" in fault.message


def test_an_aggregate_waits_for_every_new_leaf_and_keeps_the_old_ones_until_then() -> None:
    world = aggregates({"top": ("a",)}, "a")
    world.put(CDS, "top", Cluster("top", AggregateDiscovery(("b",))))
    resolution = world.settle()
    assert ("a",) == leaves_of(world)
    assert {"top", "a", "b"} <= resolution.wanted[CDS]
    assert "a" in resolution.wanted[EDS]
    world.put(CDS, "b", Cluster("b", EdsDiscovery("b")))
    world.put(EDS, "b", endpoints("10.0.0.9:80", name="b"))
    resolution = world.settle()
    assert ("b",) == leaves_of(world)
    assert {"top", "b"} == resolution.wanted[CDS]
    assert {"top", "b"} == world.snapshot.clusters.keys()


def test_an_aggregate_that_did_not_change_stays_the_same_object() -> None:
    world = aggregates({"top": ("a", "b")}, "a", "b")
    before = world.snapshot
    world.put(EDS, "a", endpoints("10.0.0.8:80", name="a"))
    world.settle()
    assert before.clusters["top"] is world.snapshot.clusters["top"]
    assert before.clusters["a"] is not world.snapshot.clusters["a"]


def test_a_static_cluster_is_warm_at_once() -> None:
    world = shop("a")
    found = endpoints("10.0.0.3:80")
    world.put(CDS, "a", Cluster("a", StaticDiscovery(found)))
    assert frozenset() == world.settle().wanted[EDS]
    cluster = world.snapshot.clusters["a"]
    assert isinstance(cluster, ClusterConfig)
    assert found is cluster.assignment


def addresses(world: World, cluster: str) -> list[str]:
    config = world.snapshot.clusters[cluster]
    assert isinstance(config, ClusterConfig)
    return [endpoint.address for locality in config.assignment.localities for endpoint in locality.endpoints]


def test_a_dns_cluster_waits_for_its_names_and_has_an_endpoint_per_address() -> None:
    world = World("shop")
    world.put(LDS, "shop", ClientListener("shop", routes("a")))
    world.put(CDS, "a", Cluster("a", DnsDiscovery(endpoints("db.example:5432", "10.0.0.1:5432"), pace=DnsPace(7.0))))
    resolution = world.settle()
    assert dict(resolution.dns_names) == {"db.example": DnsWish(DnsQuestion("db.example"), DnsPace(7.0))}
    assert resolution.waiting["shop"] == ("DNS: db.example",)
    world.dns["db.example"] = DnsAnswer(("10.1.0.1", "fd00::1"))
    world.settle()
    assert addresses(world, "a") == ["10.1.0.1:5432", "[fd00::1]:5432", "10.0.0.1:5432"]
    before = world.snapshot
    assert before is world.settle().snapshot


def test_a_logical_dns_cluster_has_one_endpoint_and_a_failed_lookup_is_noted() -> None:
    world = World("shop")
    world.put(LDS, "shop", ClientListener("shop", routes("a")))
    world.put(CDS, "a", Cluster("a", DnsDiscovery(endpoints("db.example:1"), logical=True)))
    world.dns["db.example"] = DnsAnswer(("10.1.0.1", "10.1.0.2"), "no such name")
    world.settle()
    assert addresses(world, "a") == ["10.1.0.1:1"]
    config = world.snapshot.clusters["a"]
    assert isinstance(config, ClusterConfig)
    assert [("10.1.0.2:1", "db.example")] == [(spare.address, spare.hostname) for spare in config.spares]
    before = world.snapshot
    assert before is world.settle().snapshot
    assert config.note == "DNS resolution failed for db.example: no such name (xDS node ID:node-1)"


def test_a_dns_cluster_is_ready_once_one_of_its_names_has_addresses_or_all_have_an_answer() -> None:
    world = World("shop")
    world.put(LDS, "shop", ClientListener("shop", routes("a")))
    world.put(CDS, "a", Cluster("a", DnsDiscovery(endpoints("one.example:1", "two.example:1"))))
    world.dns["one.example"] = DnsAnswer((), "refused")
    assert ("DNS: one.example, two.example",) == world.settle().waiting["shop"]
    world.dns["one.example"] = DnsAnswer(("10.0.0.1",))
    world.settle()
    config = world.snapshot.clusters["a"]
    assert isinstance(config, ClusterConfig)
    assert (["10.0.0.1:1"], "DNS: two.example has not been looked up yet") == (addresses(world, "a"), config.note)
    world.dns |= {"one.example": DnsAnswer((), "refused"), "two.example": DnsAnswer((), "refused")}
    world.settle()
    assert [] == addresses(world, "a")


def test_a_dns_cluster_that_need_not_wait_has_no_endpoints_at_first() -> None:
    world = World("shop")
    world.put(LDS, "shop", ClientListener("shop", routes("a")))
    world.put(CDS, "a", Cluster("a", DnsDiscovery(endpoints("db.example:1"), waits=False)))
    assert {} == dict(world.settle().waiting)
    assert [] == addresses(world, "a")


def test_a_logical_host_keeps_its_address_when_the_name_has_none_any_more_and_a_strict_one_does_not() -> None:
    world = World("shop")
    world.put(LDS, "shop", ClientListener("shop", routes("a", "b")))
    world.put(CDS, "a", Cluster("a", DnsDiscovery(endpoints("db.example:1"), logical=True)))
    world.put(CDS, "b", Cluster("b", DnsDiscovery(endpoints("db.example:1"))))
    world.dns["db.example"] = DnsAnswer((), "the name has no addresses", ("10.1.0.2", "10.1.0.1"))
    world.settle()
    assert (["10.1.0.2:1"], []) == (addresses(world, "a"), addresses(world, "b"))


def test_clusters_that_look_names_up_differently_have_answers_of_their_own() -> None:
    world = World("shop")
    world.put(LDS, "shop", ClientListener("shop", routes("a", "b")))
    six = DnsLookup(LookupFamily.V6_ONLY)
    world.put(CDS, "a", Cluster("a", DnsDiscovery(endpoints("db.example:1"), pace=DnsPace(9.0))))
    world.put(CDS, "b", Cluster("b", DnsDiscovery(endpoints("db.example:1"), lookup=six)))
    labels = set(world.settle().dns_names)
    assert {"db.example", DnsQuestion("db.example", six).label} == labels
    world.dns |= {"db.example": DnsAnswer(("10.0.0.1",)), DnsQuestion("db.example", six).label: DnsAnswer(("fd00::1",))}
    world.settle()
    assert (["10.0.0.1:1"], ["[fd00::1]:1"]) == (addresses(world, "a"), addresses(world, "b"))


def test_equal_questions_are_asked_once_at_the_faster_pace() -> None:
    world = World("shop", "till")
    world.put(LDS, "shop", ClientListener("shop", routes("a")))
    world.put(LDS, "till", ClientListener("till", routes("b")))
    slow, fast = DnsPace(60.0, 5.0, 1.0, 10.0), DnsPace(2.0, 9.0, needs_addresses=True)
    world.put(CDS, "a", Cluster("a", DnsDiscovery(endpoints("db.example:1"), pace=slow)))
    world.put(CDS, "b", Cluster("b", DnsDiscovery(endpoints("db.example:1"), logical=True, pace=fast)))
    wishes = world.settle().dns_names
    assert [DnsPace(2.0, 5.0, 1.0, 2.0, needs_addresses=True)] == [wish.pace for wish in wishes.values()]


MTLS = ClientTls(SecretRef(sds_name="default"), SecretRef(sds_name="ROOTCA"))
CERTIFICATE = Secret("default", TlsCertificate(b"chain", b"key"))
ROOTS = Secret("ROOTCA", TrustedCa(b"roots"))


def test_a_cluster_with_tls_waits_for_an_answer_about_its_secrets() -> None:
    world = World("shop")
    world.put(LDS, "shop", ClientListener("shop", routes("a")))
    cluster = Cluster("a", EdsDiscovery("a"), socket_matches=(TransportSocketMatch("mtls", (), MTLS),))
    world.put(CDS, "a", cluster)
    world.put(EDS, "a", endpoints("10.0.0.1:80"))
    resolution = world.settle()
    assert frozenset(("default", "ROOTCA")) == resolution.wanted[SDS]
    assert resolution.waiting["shop"] == ("SDS resource default", "SDS resource ROOTCA")
    world.put(SDS, "default", CERTIFICATE)
    world.fail(SDS, "ROOTCA", "not for you", ResourceState.RECEIVED_ERROR)
    world.settle()
    assert isinstance(world.snapshot.targets["shop"], TargetConfig)
    assert dict(world.snapshot.secrets) == {"default": CERTIFICATE}


def test_secrets_of_what_is_in_use_outlast_a_cache_that_is_new() -> None:
    world = World("shop")
    world.put(LDS, "shop", ClientListener("shop", routes("a")))
    world.put(CDS, "a", Cluster("a", StaticDiscovery(endpoints("10.0.0.1:80")), tls=MTLS))
    world.put(SDS, "default", CERTIFICATE)
    world.put(SDS, "ROOTCA", ROOTS)
    world.settle()
    world.cache = ResourceCache()
    resolution = world.settle()
    assert dict(world.snapshot.secrets) == {"default": CERTIFICATE, "ROOTCA": ROOTS}
    assert isinstance(world.snapshot.targets["shop"], TargetConfig)
    assert frozenset(("default", "ROOTCA")) == resolution.wanted[SDS]


def test_provider_secrets_stand_under_their_instance() -> None:
    world = shop("a")
    certificate, roots = provider_secret_names("default")
    tls = ClientTls(SecretRef(provider="default"), SecretRef(provider="default"))
    world.put(CDS, "a", Cluster("a", StaticDiscovery(endpoints("10.0.0.1:80")), tls=tls))
    world.provider_secrets = MappingProxyType({certificate: CERTIFICATE, roots: ROOTS})
    world.settle()
    assert {certificate: CERTIFICATE, roots: ROOTS} == dict(world.snapshot.secrets)


def test_a_server_listener_waits_for_its_secrets() -> None:
    world = World(inbound=("in",))
    tls = ServerTls(SecretRef(sds_name="default"), SecretRef(sds_name="ROOTCA"))
    listener = ServerListener("in", "127.0.0.1:80", tls, (), routes("a", name="inbound"))
    world.put(LDS, "in", listener)
    assert world.settle().waiting["in"] == ("SDS resource default", "SDS resource ROOTCA")
    world.put(SDS, "default", CERTIFICATE)
    world.put(SDS, "ROOTCA", ROOTS)
    world.settle()
    config = world.snapshot.inbound["in"]
    assert isinstance(config, InboundConfig)
    assert listener is config.listener
    before = world.snapshot
    assert before is world.settle().snapshot


def test_a_rotated_secret_is_published() -> None:
    world = World(inbound=("in",))
    tls = ServerTls(SecretRef(sds_name="default"))
    world.put(LDS, "in", ServerListener("in", "127.0.0.1:80", tls, (), routes("a")))
    world.put(SDS, "default", CERTIFICATE)
    world.settle()
    before = world.snapshot
    newer = Secret("default", TlsCertificate(b"chain 2", b"key 2"))
    world.put(SDS, "default", newer)
    world.settle()
    assert newer is world.snapshot.secrets["default"]
    assert before.inbound is world.snapshot.inbound


def test_a_failure_on_the_way_has_everything_followed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    world = shop("a")
    closure = Closure()
    facts = Facts(world.cache, world.targets)
    before = closure.resolve(facts, Snapshot()).snapshot
    world.put(EDS, "a", endpoints("10.0.0.9:80", name="a"))
    with monkeypatch.context() as patched:
        patched.setattr(Closure, "_subscriptions", lambda self: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            closure.resolve(facts, before)
    found = closure.resolve(facts, before).snapshot.clusters["a"]
    assert isinstance(found, ClusterConfig)
    assert "10.0.0.9:80" == found.assignment.localities[0].endpoints[0].address
