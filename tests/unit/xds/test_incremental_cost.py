"""An update costs what changed: what is looked at, followed and built anew is counted."""

import gc
import sys
from collections import Counter
from collections.abc import Callable

import pytest

from meshlib.model.cluster import Cluster, EdsDiscovery, LeastRequest, OutlierDetection
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, Locality, LocalityEndpoints
from meshlib.model.listener import ClientListener
from meshlib.model.route import RouteAction, RouteConfiguration, SingleCluster, VirtualHost
from meshlib.model.secret import ClientTls, Secret, SecretRef, TlsCertificate
from meshlib.model.snapshot import Snapshot, TargetConfig
from meshlib.resilience.outlier import OutlierDetector
from meshlib.testing import builders
from meshlib.view import ClusterState, View, build_view
from meshlib.xds.cache import Entry, ResourceCache, ResourceState, ResourceValue
from meshlib.xds.dependencies import Closure, Facts
from meshlib.xds.resources import CDS, EDS, LDS, RDS, SDS

TLS = ClientTls(SecretRef(sds_name="default"), None)


def certificate(chain: bytes) -> Secret:
    return Secret("default", TlsCertificate(chain, b"key"))


def routes(*clusters: str, timeout_s: float = 1.0) -> RouteConfiguration:
    found = tuple(
        builders.any_path(RouteAction(SingleCluster(name), timeout_s=timeout_s), name=name, prefix=f"/{name}/")
        for name in clusters
    )
    return RouteConfiguration("all", (VirtualHost("h", ("*",), found),))


def endpoints(name: str, *ports: int) -> ClusterLoadAssignment:
    found = tuple(Endpoint(f"10.0.0.1:{port}") for port in ports)
    return ClusterLoadAssignment(name, (LocalityEndpoints(Locality(), found),))


class CountingCache(ResourceCache):
    """Counts how often a resource is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.looks = 0

    def peek(self, type_url: str, name: str) -> Entry | None:
        self.looks += 1
        return super().peek(type_url, name)


class Shop:
    """Many services, each a target of its own, or all of them behind one target's routes; what changed is counted."""

    def __init__(self, count: int, *, is_one_target: bool, outlier: OutlierDetection | None = None) -> None:
        self.names = [f"s{index}" for index in range(count)]
        self.cache = CountingCache()
        if is_one_target:
            self.put(LDS, "all", ClientListener("all", "all"))
            self.put(RDS, "all", routes(*self.names))
        for name in self.names:
            if not is_one_target:
                self.put(LDS, name, ClientListener(name, routes(name)))
            self.put(CDS, name, Cluster(name, EdsDiscovery(name), tls=TLS, outlier_detection=outlier))
            self.put(EDS, name, endpoints(name, 80, 81))
        self.put(SDS, "default", certificate(b"old"))
        self.closure = Closure()
        self.facts = Facts(self.cache, frozenset(("all",) if is_one_target else self.names))
        self.snapshot = Snapshot()
        self.view: View | None = None
        self.update()

    def put(self, type_url: str, name: str, value: ResourceValue) -> None:
        entry = self.cache.add(type_url, name)
        entry.value, entry.version, entry.state = value, "1", ResourceState.ACKED

    def update(self) -> tuple[list[str], int]:
        """Take what changed into use; returns the clusters with another picker, and how many resources were looked at."""
        before = {} if self.view is None else {name: self.state(name).picker for name in self.names}
        self.cache.looks = 0
        self.snapshot = self.closure.resolve(self.facts, self.snapshot).snapshot
        looks = self.cache.looks
        self.view = build_view(self.snapshot, self.view, now=0.0)
        return [name for name in before if self.state(name).picker is not before[name]], looks

    def state(self, name: str) -> ClusterState:
        assert self.view is not None
        found = self.view.clusters[name]
        assert isinstance(found, ClusterState)
        return found


@pytest.mark.parametrize("is_one_target", [True, False])
def test_what_changes_within_a_cluster_costs_that_cluster_and_one_picker(is_one_target: bool) -> None:
    shop = Shop(1000, is_one_target=is_one_target)
    first, view = shop.snapshot, shop.view
    assert view is not None
    wanted = shop.closure.resolve(shop.facts, shop.snapshot).wanted
    changes = [
        (EDS, endpoints("s7", 80, 82)),
        (CDS, Cluster("s7", EdsDiscovery("s7"), lb_policy=LeastRequest(), tls=TLS)),
    ]
    for kind, value in changes:
        shop.put(kind, "s7", value)
        changed, looks = shop.update()
        assert ["s7"] == changed
        assert looks < 12
        assert shop.snapshot.targets is first.targets
        assert shop.view is not None
        assert (shop.view.targets, shop.view.clusters) == (view.targets, view.clusters)
        assert shop.view.targets is view.targets
    assert wanted is shop.closure.resolve(shop.facts, shop.snapshot).wanted
    assert ([], 1) == shop.update()  # the secret


def test_what_changes_within_a_cluster_touches_no_other_outlier_detector(monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(1000, is_one_target=True, outlier=OutlierDetection())
    detectors = {name: shop.state(name).outlier for name in shop.names}
    touched: list[object] = []

    def counting(method: Callable[..., object]) -> Callable[..., object]:
        def counted(detector: OutlierDetector, *args: object, **kwargs: object) -> object:
            touched.append(detector)
            return method(detector, *args, **kwargs)

        return counted

    names = [name for name, value in vars(OutlierDetector).items() if callable(value)]
    assert {"__init__", "update", "is_ejected"} <= set(names)
    for name in names:
        monkeypatch.setattr(OutlierDetector, name, counting(getattr(OutlierDetector, name)))
    shop.put(EDS, "s7", endpoints("s7", 80, 82))
    assert ["s7"] == shop.update()[0]
    assert {detectors["s7"]} == set(touched)
    assert len(touched) <= 6  # its own update, and two questions for each of the two endpoints
    assert detectors == {name: shop.state(name).outlier for name in shop.names}
    touched.clear()
    shop.put(SDS, "default", certificate(b"new"))
    shop.update()
    assert [] == touched


def test_other_routes_cost_no_picker() -> None:
    shop = Shop(100, is_one_target=True)
    shop.put(RDS, "all", routes(*shop.names, timeout_s=2.0))
    changed, _ = shop.update()
    assert [] == changed
    target = shop.snapshot.targets["all"]
    assert isinstance(target, TargetConfig)
    assert routes(*shop.names, timeout_s=2.0) == target.routes


def test_a_rotated_certificate_costs_no_picker_and_no_target() -> None:
    shop = Shop(100, is_one_target=True)
    before, view = shop.snapshot, shop.view
    assert view is not None
    shop.put(SDS, "default", certificate(b"new"))
    changed, _ = shop.update()
    assert [] == changed
    assert shop.snapshot.targets is before.targets
    assert shop.snapshot.clusters is before.clusters
    assert certificate(b"new") == shop.snapshot.secrets["default"]
    assert shop.view is not None
    assert shop.view.clusters is view.clusters


def test_a_cluster_that_breaks_or_leads_elsewhere_has_its_targets_followed_anew() -> None:
    shop = Shop(5, is_one_target=True)
    shop.put(CDS, "s3", Cluster("s3", EdsDiscovery("elsewhere"), tls=TLS))
    shop.update()
    assert "elsewhere" in shop.closure.resolve(shop.facts, shop.snapshot).wanted[EDS]
    assert 80 == shop.state("s3").config.assignment.localities[0].endpoints[0].port  # as before, until it is warm
    shop.put(EDS, "elsewhere", endpoints("elsewhere", 90))
    changed, _ = shop.update()
    assert ["s3"] == changed
    assert 90 == shop.state("s3").config.assignment.localities[0].endpoints[0].port
    assert "s3" not in shop.closure.resolve(shop.facts, shop.snapshot).wanted[EDS]


def calls_of(action: Callable[[], object]) -> int:
    """Return how many functions an action calls, built-in ones too."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("is_one_target", [True, False])
def test_the_price_of_a_change_does_not_grow_with_the_number_of_clusters(is_one_target: bool) -> None:
    prices = []
    for count in (100, 1000):
        shop = Shop(count, is_one_target=is_one_target)
        shop.put(EDS, "s7", endpoints("s7", 80, 82))

        def settle(shop: Shop = shop) -> None:
            snapshot = shop.closure.resolve(shop.facts, shop.snapshot).snapshot
            shop.view = build_view(snapshot, shop.view, now=0.0)

        prices.append(calls_of(settle))
        assert 82 == shop.state("s7").config.assignment.localities[0].endpoints[1].port
    assert prices[1] <= 1.2 * prices[0]


def test_an_update_leaves_the_garbage_collector_what_changed_and_nothing_else() -> None:
    shop = Shop(100, is_one_target=True)
    shop.update()
    for name in shop.names:
        shop.put(EDS, name, endpoints(name, 80, 82))
    gc.collect()
    gc.disable()
    try:
        shop.update()
        left = Counter(type(one).__name__ for one in gc.get_objects(generation=0))
    finally:
        gc.enable()
    assert 100 == left["ClusterConfig"]
    # How a cluster is followed and how its endpoints are reached is the same as before: so are the objects.
    assert not {"Scope", "EndpointTls", "frozenset"} & {name for name, count in left.items() if count >= 50}
