from dataclasses import replace

import pytest

from meshlib.admin.explain_cluster import explain_cluster
from meshlib.balancing.round_robin import RoundRobinPicker
from meshlib.events import HostEjected, HostUnejected
from meshlib.model.cluster import (
    AggregateDiscovery,
    AuthorityNames,
    CircuitBreakers,
    Cluster,
    EdsDiscovery,
    LeastRequest,
    OutlierDetection,
    TransportSocketMatch,
)
from meshlib.model.endpoint import (
    ClusterLoadAssignment,
    DropOverload,
    Endpoint,
    HealthStatus,
    Locality,
    LocalityEndpoints,
)
from meshlib.model.matcher import HeaderMatcher, StringKind, StringMatcher
from meshlib.model.outcome import Failure, FailureKind, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import RegexRewrite, RouteAction, SingleCluster
from meshlib.model.secret import ClientTls, SniSource
from meshlib.model.snapshot import ClusterConfig, ConfigFault, HomePlace, Snapshot
from meshlib.ports import Rng
from meshlib.resilience.outlier import Ejection, OutlierDetector, Unejection
from meshlib.routing.table import RouteMatch
from meshlib.testing import FixedRng, SeededRng, cluster, merge, service
from meshlib.view import ClusterState, TargetView, View, build_view

RNG = SeededRng(0)
BAD_REGEX = HeaderMatcher("x", StringMatcher(StringKind.REGEX, "("))
TLS, OTHER_TLS = ClientTls(None, None, sni="one"), ClientTls(None, None, sni="two")


def view(*snapshots: Snapshot, previous: View | None = None) -> View:
    return build_view(merge(*snapshots), previous, now=0.0)


def state_of(view: View, name: str) -> ClusterState:
    found = view.clusters[name]
    assert isinstance(found, ClusterState)
    return found


def target_of(view: View, name: str) -> TargetView:
    found = view.targets[name]
    assert isinstance(found, TargetView)
    return found


def outlier(**options: float) -> Cluster:
    detection = OutlierDetection(consecutive_5xx=1, max_ejection_percent=100, **options)  # type: ignore[arg-type]
    return Cluster("", EdsDiscovery(""), outlier_detection=detection)


def test_requests_keep_to_their_zone_as_far_as_the_local_cluster_says() -> None:
    near, far = Locality("r", "near"), Locality("r", "far")

    def config(name: str, at: dict[Locality, int]) -> ClusterConfig:
        groups = tuple(
            LocalityEndpoints(zone, tuple(Endpoint(f"{name}-{zone.zone}{number}:1") for number in range(count)))
            for zone, count in at.items()
        )
        return ClusterConfig(Cluster(name, EdsDiscovery(name)), ClusterLoadAssignment(name, groups))

    def zones(found: View) -> set[str]:
        picks = [state_of(found, "called").picker.pick(None, RNG) for _ in range(60)]
        return {pick.address[7] for pick in picks if pick is not None}

    called, home = config("called", {near: 3, far: 3}), HomePlace("us", near)
    found = build_view(Snapshot(clusters={"called": called}, home=home), None, now=0.0)
    assert {"n", "f"} == zones(found), "the local cluster is not there yet"
    for ours, expected in (
        ({near: 1, far: 1}, {"n"}),
        ({near: 3, far: 1}, {"n", "f"}),
        ({near: 1, far: 2}, {"n"}),
        ({far: 2}, {"n", "f"}),
    ):
        snapshot = Snapshot(clusters={"called": called, "us": config("us", ours)}, home=home)
        found = build_view(snapshot, found, now=0.0)
        assert expected == zones(found)
        words = explain_cluster("called", 1.0, found, now=0.0).zones
        part = {1: "100 %", 3: "66.66 %", 0: ""}[ours.get(near, 0)]
        assert (f"zone aware: {part} stay in r/near" if part else "zones do not matter (we are in r/near)") == words
    found = build_view(
        Snapshot(clusters={"called": called, "us": ConfigFault("us", "gone")}, home=home), found, now=0.0
    )
    assert {"n", "f"} == zones(found)


def test_equal_snapshot_keeps_every_object() -> None:
    first = view(service("a", "h:1"), service("b", "h:2"))
    second = view(service("a", "h:1"), service("b", "h:2"), previous=first)

    assert second.clusters is first.clusters
    assert second.targets["a"] is first.targets["a"]
    assert second is not first


def test_change_of_one_cluster_leaves_the_others() -> None:
    first = view(service("a", "h:1"), service("b", "h:2"))
    pickers = {name: state_of(first, name).picker for name in "ab"}
    second = view(service("a", "h:1"), service("b", "h:2", "h:3"), previous=first)

    assert state_of(second, "a") is state_of(first, "a")
    assert state_of(second, "b") is state_of(first, "b")
    assert state_of(second, "a").picker is pickers["a"]
    assert state_of(second, "b").picker is not pickers["b"]


def test_change_of_clusters_keeps_the_route_tables() -> None:
    first = view(service("a", "h:1"))
    second = view(service("a", "h:1"), service("b", "h:2"), previous=first)

    assert target_of(second, "a") is not target_of(first, "a")
    assert target_of(second, "a").routes is target_of(first, "a").routes
    assert target_of(second, "a").faults is target_of(first, "a").faults
    assert "b" in target_of(second, "a").clusters


def test_change_of_routes_makes_a_new_table_and_keeps_the_cluster() -> None:
    first = view(service("a", "h:1"))
    second = view(service("a", "h:1", timeout_s=3.0), previous=first)

    assert target_of(second, "a").routes is not target_of(first, "a").routes
    assert state_of(second, "a") is state_of(first, "a")


def test_endpoint_that_stays_keeps_its_state_with_its_newest_configuration() -> None:
    first = view(service("a", "h:1", "h:2"))
    state = state_of(first, "a").states["h:1"]
    state.active = 3
    second = view(service("a", Endpoint("h:1", weight=9), "h:3"), previous=first)

    assert state_of(second, "a").states["h:1"] is state
    assert (state.endpoint.weight, state.active) == (9, 3)
    assert set(state_of(second, "a").states) == {"h:1", "h:3"}


def test_endpoint_that_returns_starts_fresh() -> None:
    first = view(service("a", "h:1", "h:2"))
    old = state_of(first, "a").states["h:1"]
    second = view(service("a", "h:2"), previous=first)
    third = view(service("a", "h:1", "h:2"), previous=second)

    assert state_of(third, "a").states["h:1"] is not old


def test_new_limits_reach_the_breakers_and_keep_the_counts() -> None:
    first = view(service("a", "h:1"))
    breaker = state_of(first, "a").breaker
    breaker.active = 4
    template = Cluster("", EdsDiscovery(""), circuit_breakers=CircuitBreakers(max_requests=7))
    view(service("a", "h:1", template=template), previous=first)

    assert (breaker.limits.max_requests, breaker.active) == (7, 4)


def test_new_policy_makes_a_new_picker() -> None:
    first = view(service("a", "h:1"))
    assert isinstance(state_of(first, "a").picker, RoundRobinPicker)

    second = view(service("a", "h:1", template=Cluster("", EdsDiscovery(""), LeastRequest())), previous=first)

    assert not isinstance(state_of(second, "a").picker, RoundRobinPicker)


def test_faults_pass_through_and_recovery_starts_anew() -> None:
    fault = ConfigFault("Cluster: a", "refused")
    first = view(service("a", "h:1"))
    broken = view(service("a", "h:1"), Snapshot(clusters={"a": fault}, targets={"a": fault}), previous=first)
    mended = view(service("a", "h:1"), previous=broken)

    assert broken.clusters["a"] is fault
    assert broken.targets["a"] is fault
    assert isinstance(mended.clusters["a"], ClusterState)
    assert isinstance(mended.targets["a"], TargetView)


def aggregate(name: str, *leaves: str) -> Snapshot:
    config = ClusterConfig(Cluster(name, AggregateDiscovery(leaves)), ClusterLoadAssignment(name), "", leaves)
    return Snapshot(clusters={name: config})


def share(state: ClusterState, leaf: str, draws: int = 400) -> float:
    rng = SeededRng(1)
    return sum(state.choose(rng)[0].name == leaf for _ in range(draws)) / draws


def test_an_aggregate_cluster_sends_everything_to_its_first_leaf_while_that_is_well() -> None:
    found = view(service("a", "h:1", "h:2"), service("b", "h:3"), aggregate("all", "a", "b"))

    assert state_of(found, "a") is state_of(found, "all").choose(RNG)[0]
    assert 1.0 == share(state_of(found, "all"), "a")


def test_a_leaf_that_lost_more_than_its_overprovisioning_shares_with_the_next() -> None:
    sick = Endpoint("h:2", health=HealthStatus.UNHEALTHY)
    found = view(service("a", "h:1", sick), service("b", "h:3"), aggregate("all", "a", "b"))

    assert 0.6 < share(state_of(found, "all"), "a") < 0.8  # 140 % of one half


def test_a_leaf_without_usable_endpoints_gives_way_and_takes_over_again() -> None:
    parts = (service("b", "h:3"), aggregate("all", "a", "b"))
    first = view(service("a", Endpoint("h:1", health=HealthStatus.UNHEALTHY)), *parts)
    state = state_of(first, "all")
    assert "b" == state.choose(RNG)[0].name

    second = view(service("a", "h:1"), *parts, previous=first)
    assert state is state_of(second, "all")
    assert "a" == state.choose(RNG)[0].name


def test_an_ejection_in_a_leaf_moves_the_load_of_the_aggregate() -> None:
    found = view(service("a", "h:1", template=outlier()), service("b", "h:3"), aggregate("all", "a", "b"))
    leaf = state_of(found, "a")
    assert leaf.record(leaf.states["h:1"], Response(503), 0.0, RNG) is not None

    assert "b" == state_of(found, "all").choose(RNG)[0].name


def test_an_aggregate_of_nothing_has_no_endpoint() -> None:
    found = state_of(view(aggregate("all")), "all")

    assert found is found.choose(RNG)[0]
    assert found.picker.pick(None, RNG) is None


def test_new_leaves_reach_the_aggregate_and_leaves_stay_what_they_were() -> None:
    first = view(service("a", "h:1"), service("b", "h:3"), aggregate("all", "a", "b"))
    leaf = state_of(first, "b")
    second = view(service("b", "h:3"), aggregate("all", "b"), previous=first)

    assert leaf is state_of(second, "all").choose(RNG)[0]


def test_a_cluster_that_becomes_an_aggregate_starts_anew() -> None:
    first = view(service("all", "h:1"), service("b", "h:3"))
    second = view(service("b", "h:3"), aggregate("all", "b"), previous=first)

    assert not state_of(first, "all").is_aggregate
    assert "b" == state_of(second, "all").choose(RNG)[0].name


@pytest.mark.parametrize(
    "action",
    [
        RouteAction(SingleCluster("bad"), retry=RetryPolicy(frozenset({"5xx"}), retriable_headers=(BAD_REGEX,))),
        RouteAction(SingleCluster("bad"), regex_rewrite=RegexRewrite("(", "")),
    ],
)
def test_target_that_cannot_be_compiled_leaves_the_others(action: RouteAction) -> None:
    found = view(service("good", "h:1"), service("bad", "h:2", action=action))

    assert isinstance(found.targets["good"], TargetView)
    assert isinstance(found.targets["bad"], ConfigFault)


def test_ejected_endpoint_is_not_picked_until_the_sweep_brings_it_back() -> None:
    found = view(service("a", "h:1", "h:2", "h:3", "h:4", template=outlier()))
    state = state_of(found, "a")
    bad = state.states["h:1"]

    event = state.record(bad, Response(500), 1.0, RNG)
    picked = {state.picker.pick(None, RNG) for _ in range(40)}
    assert event == HostEjected("a", bad.endpoint, "consecutive_5xx", 30.0)
    assert bad not in picked

    assert found.sweep(20.0, RNG) == ()
    assert found.sweep(31.0, RNG) == (HostUnejected("a", bad.endpoint),)
    assert bad in {state.picker.pick(None, RNG) for _ in range(40)}


def test_ejection_survives_an_update_and_ends_without_outlier_detection() -> None:
    first = view(service("a", "h:1", "h:2", "h:3", template=outlier()))
    state = state_of(first, "a")
    bad = state.states["h:1"]
    state.record(bad, Failure(FailureKind.CONNECT, False), 1.0, RNG)

    second = view(service("a", "h:1", "h:2", "h:3", "h:4", template=outlier()), previous=first)
    assert bad.is_ejected

    view(service("a", "h:1", "h:2", "h:3", "h:4"), previous=second)
    assert not bad.is_ejected


def test_host_that_fails_again_during_the_sweep_stays_out() -> None:
    """Another thread may eject between the detector's decision and the moment when the cluster carries it out."""

    class Racing(OutlierDetector):
        __slots__ = ()

        def sweep(self, now: float, rng: Rng) -> tuple[Unejection | Ejection, ...]:
            changes = super().sweep(now, rng)
            for change in changes:
                self.record_code(change.address, 500, now, RNG)
            return changes

    state = state_of(view(service("a", "h:1", "h:2", "h:3", template=outlier())), "a")
    config, bad = state.config.cluster.outlier_detection, state.states["h:1"]
    assert config is not None
    state.outlier = Racing(config, state.states, 0.0)
    state.record(bad, Response(500), 0.0, RNG)

    state.sweep(31.0, RNG)

    assert bad.is_ejected
    assert bad not in {state.picker.pick(None, RNG) for _ in range(20)}


def test_without_outlier_detection_nothing_is_recorded() -> None:
    state = state_of(view(service("a", "h:1")), "a")

    assert state.record(state.states["h:1"], Response(500), 1.0, RNG) is None


def test_connection_that_worked_ends_a_run_of_local_failures() -> None:
    template = outlier(split_external_local_origin_errors=True, consecutive_local_origin_failure=2)
    state = state_of(view(service("a", "h:1", template=template)), "a")
    host, refused = state.states["h:1"], Failure(FailureKind.CONNECT, False)

    state.record(host, refused, 1.0, RNG)
    state.record(host, Response(200), 1.0, RNG)
    assert state.record(host, refused, 1.0, RNG) is None
    assert state.record(host, refused, 1.0, RNG) is not None


def endpoint(**labels: str) -> Endpoint:
    return Endpoint("h:1", metadata={"envoy.transport_socket_match": labels})


def matching(*matches: TransportSocketMatch, tls: ClientTls | None = None) -> ClusterState:
    template = Cluster("", EdsDiscovery(""), tls=tls, socket_matches=matches)
    return ClusterState(cluster("a", template=template), 0.0)


ISTIO = TransportSocketMatch("tlsMode-istio", (("tlsMode", "istio"),), TLS)
PLAIN = TransportSocketMatch("tlsMode-disabled", (), None)


def test_first_socket_match_that_the_endpoint_has_decides() -> None:
    assert matching(ISTIO, PLAIN).tls_for(endpoint(tlsMode="istio", more="x")) is TLS
    assert matching(ISTIO, PLAIN, tls=OTHER_TLS).tls_for(endpoint(tlsMode="other")) is None
    assert matching(ISTIO, tls=OTHER_TLS).tls_for(endpoint()) is OTHER_TLS
    assert matching(ISTIO).tls_for(Endpoint("h:1")) is None


def test_without_socket_matches_the_cluster_decides() -> None:
    assert matching(tls=TLS).tls_for(endpoint()) is TLS
    assert matching().tls_for(endpoint(tlsMode="istio")) is None


def test_socket_match_is_asked_again_after_an_update() -> None:
    state = matching(ISTIO, PLAIN)
    assert state.tls_for(endpoint(tlsMode="istio")) is TLS

    changed = replace(state.config.cluster, socket_matches=(replace(ISTIO, tls=OTHER_TLS),))
    state.update(replace(state.config, cluster=changed), 0.0)

    assert state.tls_for(endpoint(tlsMode="istio")) is OTHER_TLS


def test_server_name_is_the_hostname_of_an_endpoint_that_has_one() -> None:
    state = matching(tls=replace(TLS, sni="else", sni_source=SniSource.HOSTNAME))
    named = state.tls_for(Endpoint("h:1", hostname="one.example"))
    assert ("one.example", "else") == (named.sni, state.tls_for(Endpoint("h:2")).sni)
    assert state.tls_for(Endpoint("h:1", hostname="one.example")) is named


@pytest.mark.parametrize(
    ("names", "authority", "headers", "sni", "required"),
    [
        (AuthorityNames(is_sni=True), "a.example:8080", {}, "a.example", ""),
        (AuthorityNames(is_sni=True, is_san=True), "a.example", {}, "a.example", "a.example"),
        (AuthorityNames(is_sni=True, is_san=True), "10.0.0.1:80", {}, "one", "10.0.0.1"),
        (AuthorityNames(is_sni=True, is_san=True), "[::1]:80", {}, "one", "::1"),
        (AuthorityNames(is_san=True), "a.example", {}, "one", "a.example"),
        (AuthorityNames(is_sni=True, header="x-name"), "a.example", {"x-name": "b.example:1"}, "b.example", ""),
        (AuthorityNames(is_sni=True, header="x-name"), "a.example", {}, "a.example", ""),
        (AuthorityNames(is_sni=True), "", {}, "one", ""),
    ],
)
def test_names_of_a_request(
    names: AuthorityNames, authority: str, headers: dict[str, str], sni: str, required: str
) -> None:
    state = matching(tls=TLS)
    head = RequestHead("GET", authority, "/", Headers.of(headers))
    found = state.tls_for_request(TLS, names, head)
    assert (sni, required) == (found.sni, found.authority_name)
    # The same settings each time: connections are kept by them.
    assert state.tls_for_request(TLS, names, RequestHead("POST", authority, "/x", Headers.of(headers))) is found


def test_names_of_requests_are_bounded() -> None:
    state, names = matching(tls=TLS), AuthorityNames(is_sni=True)
    for number in range(3000):
        state.tls_for_request(TLS, names, RequestHead("GET", f"h{number}.example", "/", Headers()))
    assert len(state._tls._named) <= 1024


def test_drops_are_shares() -> None:
    config = cluster("a", "h:1")
    assignment = replace(config.assignment, drop_overloads=(DropOverload("x", 5, 100), DropOverload("y", 0, 100)))

    assert ClusterState(replace(config, assignment=assignment), 0.0).drops == ((0.05, "x"),)


def test_route_plans_are_made_once() -> None:
    target = target_of(view(service("a", "h:1", timeout_s=2.0)), "a")
    match = target.routes.match(RequestHead("GET", "a", "/", Headers()), FixedRng(0.0))
    assert isinstance(match, RouteMatch)

    plan = target.plan(match.action, match.retry)

    assert target.plan(match.action, match.retry) is plan
    assert plan.http == (2.0, None, None)
    assert plan.grpc == (None, None, None)
