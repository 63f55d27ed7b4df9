"""In whatever order resources arrive and change, the snapshot is whole at every step and the same in the end."""

from types import MappingProxyType

from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.model.cluster import AggregateDiscovery, Cluster, DnsDiscovery, EdsDiscovery
from meshlib.model.discovery import (
    Collection,
    FilterConfig,
    KeyFragment,
    RuntimeLayer,
    ScopedRoute,
    ScopedRoutes,
)
from meshlib.model.dns import DnsAnswer
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, Locality, LocalityEndpoints
from meshlib.model.listener import ClientListener, DiscoveredFilter
from meshlib.model.matcher import Fraction, PathKind, PathMatcher
from meshlib.model.route import (
    ClusterHeader,
    ClusterWeight,
    FaultPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatcher,
    VirtualHost,
    WeightedClusters,
)
from meshlib.model.secret import ClientTls, Secret, SecretRef, TrustedCa
from meshlib.model.snapshot import ClusterConfig, ConfigFault, Demand, DemandKind, HomePlace, Snapshot, TargetConfig
from meshlib.xds.cache import Key, ResourceCache, ResourceState, ResourceValue
from meshlib.xds.dependencies import Closure, Facts, clusters_of, resolve
from meshlib.xds.follow_targets import clusters_of_target
from meshlib.xds.resources import CDS, ECDS, EDS, LDS, LEDS, RDS, RTDS, SDS, SRDS, VHDS

TARGETS = ("s", "t")
ROUTES = ("r1", "r2")
CLUSTERS = ("a", "b", "c")
SERVICES = ("e1", "e2", "e3")


def routes(name: str, clusters: list[str]) -> RouteConfiguration:
    action = RouteAction(WeightedClusters(tuple(ClusterWeight(cluster, 1) for cluster in clusters)))
    route = Route(RouteMatcher(PathMatcher(PathKind.PREFIX, "/")), action)
    return RouteConfiguration(name, (VirtualHost("h", ("*",), (route,)),))


def assignment(name: str, port: int) -> ClusterLoadAssignment:
    return ClusterLoadAssignment(name, (LocalityEndpoints(Locality(), (Endpoint(f"10.0.0.1:{port}"),)),))


Change = tuple[Key, ResourceValue | None]
DRAWN = st.one_of(
    st.builds(
        lambda name, to: ((LDS, name), ClientListener(name, to)), st.sampled_from(TARGETS), st.sampled_from(ROUTES)
    ),
    st.builds(
        lambda name, to: ((RDS, name), routes(name, to)),
        st.sampled_from(ROUTES),
        st.lists(st.sampled_from(CLUSTERS), min_size=1, max_size=3, unique=True),
    ),
    st.builds(
        lambda name, to: ((CDS, name), Cluster(name, EdsDiscovery(to))),
        st.sampled_from(CLUSTERS),
        st.sampled_from(SERVICES),
    ),
    st.builds(lambda name, port: ((EDS, name), assignment(name, port)), st.sampled_from(SERVICES), st.integers(1, 3)),
    st.builds(lambda name: ((CDS, name), None), st.sampled_from(CLUSTERS)),
    st.builds(lambda name: ((LDS, name), None), st.sampled_from(TARGETS)),
)


def apply(cache: ResourceCache, key: Key, value: ResourceValue | None) -> None:
    entry = cache.add(*key)
    entry.value = value
    entry.state = ResourceState.DOES_NOT_EXIST if value is None else ResourceState.ACKED
    entry.is_absent, entry.error = value is None, "does not exist" if value is None else ""


@given(changes=st.lists(DRAWN, max_size=40), endings=st.permutations([*TARGETS, *ROUTES, *CLUSTERS, *SERVICES]))
def test_any_order_is_whole_on_the_way_and_the_same_in_the_end(changes: list[Change], endings: list[str]) -> None:
    last: dict[str, Change] = {
        **{name: ((LDS, name), ClientListener(name, "r1")) for name in TARGETS},
        **{name: ((RDS, name), routes(name, ["a", "b"])) for name in ROUTES},
        **{name: ((CDS, name), Cluster(name, EdsDiscovery("e1"))) for name in CLUSTERS},
        **{name: ((EDS, name), assignment(name, 9)) for name in SERVICES},
    }
    cache = ResourceCache()
    snapshot = Snapshot()
    for key, value in [*changes, *(last[name] for name in endings)]:
        apply(cache, key, value)
        before = snapshot
        resolution = resolve(Facts(cache, frozenset(TARGETS)), before)
        snapshot = resolution.snapshot
        assert resolve(Facts(cache, frozenset(TARGETS)), snapshot).snapshot is snapshot
        for name, target in snapshot.targets.items():
            if isinstance(target, TargetConfig):
                assert clusters_of(target.routes) <= snapshot.clusters.keys()
                assert clusters_of(target.routes) <= resolution.wanted[CDS]
            moved = target is not before.targets.get(name)
            if moved and isinstance(target, TargetConfig):
                assert name not in resolution.waiting
        for name, cluster in snapshot.clusters.items():
            if isinstance(cluster, ConfigFault) and isinstance(before.clusters.get(name), ClusterConfig):
                entry = cache.get(CDS, name)
                assert entry is not None
                assert entry.value is None, "a warm cluster became a fault without being deleted"
    whole = resolve(Facts(cache, frozenset(TARGETS)), Snapshot()).snapshot
    assert snapshot.targets == whole.targets
    assert snapshot.clusters == whole.clusters


KEPT = SecretRef(sds_name="roots")
HOST = ClusterLoadAssignment("d", (LocalityEndpoints(Locality(), (Endpoint("db.example:80"),)),))
KINDS = st.one_of(
    DRAWN,
    st.builds(
        lambda name, to: ((CDS, name), Cluster(name, AggregateDiscovery(tuple(to)))),
        st.sampled_from(CLUSTERS),
        st.lists(st.sampled_from(CLUSTERS), min_size=1, max_size=3),
    ),
    st.builds(lambda name: ((CDS, name), Cluster(name, DnsDiscovery(HOST))), st.sampled_from(CLUSTERS)),
    st.builds(
        lambda name: ((CDS, name), Cluster(name, EdsDiscovery("e1"), tls=ClientTls(None, KEPT))),
        st.sampled_from(CLUSTERS),
    ),
    st.builds(lambda pem: ((SDS, "roots"), Secret("roots", TrustedCa(pem))), st.sampled_from((b"1", b"2"))),
    st.builds(lambda name: ((RDS, name), None), st.sampled_from(ROUTES)),
    st.builds(lambda name: ((EDS, name), None), st.sampled_from(SERVICES)),
)
SCOPED = ScopedRoutes("scoped", (KeyFragment("x", index=0),))
FAULTS = DiscoveredFilter("faults", frozenset({"f"}), FilterConfig("faults", "f", None))
GLOB = "xdstp://a/envoy.config.endpoint.v3.LbEndpoint/e1/*"


def more(name: str) -> RouteConfiguration:
    """Routes with virtual hosts on demand, and a route whose cluster a header names."""
    action = RouteAction(ClusterHeader("x"))
    route = Route(RouteMatcher(PathMatcher(PathKind.PREFIX, "/"), fraction=Fraction(1, 100, "share")), action)
    return RouteConfiguration(name, (VirtualHost("h", ("h",), (route,)),), has_more_hosts=True)


def collection(values: dict[str, object]) -> Collection:
    return Collection(MappingProxyType(values))


DISCOVERED = st.one_of(
    KINDS,
    st.builds(lambda name: ((LDS, name), ClientListener(name, SCOPED)), st.sampled_from(TARGETS)),
    st.builds(
        lambda name, to: ((LDS, name), ClientListener(name, to, discovered=(FAULTS,))),
        st.sampled_from(TARGETS),
        st.sampled_from(ROUTES),
    ),
    st.builds(
        lambda name, to: ((LDS, name), ClientListener(name, to, on_demand_timeout_s=1.0)),
        st.sampled_from(TARGETS),
        st.sampled_from(ROUTES),
    ),
    st.builds(lambda name: ((RDS, name), more(name)), st.sampled_from(ROUTES)),
    st.builds(
        lambda scopes: (
            (SRDS, "*"),
            collection(
                {name: ScopedRoute(name, (key,), to, on_demand) for name, (key, to, on_demand) in scopes.items()}
            ),
        ),
        st.dictionaries(
            st.sampled_from(("x", "y")), st.tuples(st.sampled_from("kl"), st.sampled_from(ROUTES), st.booleans())
        ),
    ),
    st.just(((SRDS, "*"), None)),
    st.builds(
        lambda name, to: ((VHDS, name), routes(name, [to]).virtual_hosts[0]),
        st.sampled_from(("r1/new", "r2/new")),
        st.sampled_from(CLUSTERS),
    ),
    st.just(((VHDS, "r1/new"), None)),
    st.builds(lambda kind: ((ECDS, "faults"), FilterConfig("faults", kind, FaultPolicy())), st.sampled_from("fg")),
    st.just(((ECDS, "faults"), None)),
    st.builds(lambda share: ((RTDS, "live"), RuntimeLayer("live", {"share": share})), st.sampled_from((1.0, 2.0))),
    st.just(((RTDS, "live"), None)),
    st.just(((EDS, "e1"), ClusterLoadAssignment("e1", (LocalityEndpoints(Locality(), (), collections=(GLOB,)),)))),
    st.builds(
        lambda ports: ((LEDS, GLOB), collection({str(port): Endpoint(f"10.0.0.1:{port}") for port in ports})),
        st.sets(st.integers(1, 3)),
    ),
    st.just(((LEDS, GLOB), None)),
)
DEMANDS = st.dictionaries(
    st.sampled_from(TARGETS),
    st.frozensets(
        st.one_of(
            st.builds(lambda name: (DemandKind.CLUSTER, name), st.sampled_from(CLUSTERS)),
            st.just((DemandKind.VIRTUAL_HOST, "new")),
            st.builds(lambda name: (DemandKind.SCOPE, name), st.sampled_from(("x", "y"))),
        )
    ),
)
STEPS = st.one_of(
    st.lists(DISCOVERED, max_size=4),
    DEMANDS,
    st.frozensets(st.sampled_from(TARGETS)),
    st.sampled_from(("10.0.0.1", "10.0.0.2", "")),
    st.sampled_from(ROUTES),
)


@settings(deadline=None)  # a loaded machine is no fault of what is followed
@given(
    steps=st.lists(STEPS, max_size=40),
    home=st.sampled_from([None, *(HomePlace(name, Locality("r")) for name in (*CLUSTERS, "nowhere"))]),
)
def test_following_what_changed_is_the_same_as_following_everything(
    steps: list[list[Change] | dict[str, frozenset[Demand]] | frozenset[str] | str],
    home: HomePlace | None,
) -> None:
    cache, closure, snapshot = ResourceCache(), Closure(), Snapshot()
    targets = frozenset(TARGETS)
    demands: dict[str, frozenset[Demand]] = {}
    dns: dict[str, DnsAnswer] = {}
    for number, step in enumerate(steps):
        if isinstance(step, frozenset):
            targets = step
        elif isinstance(step, dict):
            demands = step
        elif isinstance(step, list):
            for key, value in step:
                apply(cache, key, value)
                entry = cache.get(*key)
                assert entry is not None
                entry.version = str(number)
        elif step in ROUTES:
            cache.retain(RDS, [name for name in ROUTES if name != step])
        else:
            dns["db.example"] = DnsAnswer((step,) if step else (), "" if step else "no such name")
        facts = Facts(cache, targets, dns=dns, demands=demands, runtime=("live",), home=home)
        whole = resolve(facts, snapshot)
        found = closure.resolve(facts, snapshot)
        assert whole.wanted == found.wanted
        assert whole.dns_names == found.dns_names
        assert whole.waiting == found.waiting
        assert "nowhere" not in found.waiting, "nobody waits for the local cluster"
        for part in ("targets", "inbound", "clusters", "secrets", "versions"):
            assert getattr(whole.snapshot, part) == getattr(found.snapshot, part)
        assert (whole.snapshot is snapshot) == (found.snapshot is snapshot)
        snapshot = found.snapshot
        for name, target in snapshot.targets.items():
            if isinstance(target, TargetConfig):
                assert clusters_of_target(target) <= snapshot.clusters.keys(), name
                asked = demands.get(name, frozenset())
                assert name in found.waiting or target.answered <= asked, "an answer to what nobody asked"
        for cluster in snapshot.clusters.values():
            if isinstance(cluster, ClusterConfig):
                assert set(cluster.leaves) <= snapshot.clusters.keys()
