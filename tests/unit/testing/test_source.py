from collections import Counter

import pytest

from meshlib.call import Attempt, Call
from meshlib.clients.source import MeshSource
from meshlib.errors import RoutingError, UnavailableError
from meshlib.events import HostUnejected
from meshlib.model.cluster import Cluster, EdsDiscovery, OutlierDetection
from meshlib.model.outcome import Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.snapshot import ConfigFault, Snapshot
from meshlib.testing import FakeClock, merge, mesh_source, service, split


def test_service_in_one_line() -> None:
    mesh: MeshSource = mesh_source(service("checkout", "h:1", timeout_s=2.0))

    target = mesh.wait_target("checkout")
    call = Call(target, RequestHead("GET", "checkout", "/", Headers()), rng=mesh.rng, now=mesh.clock())
    step = call.start(mesh.clock())

    assert isinstance(step, Attempt)
    assert (step.endpoint.address, step.timeout_s) == ("h:1", 2.0)
    call.close(mesh.clock())


def test_split_shares_calls_out_by_weight() -> None:
    mesh = mesh_source(split("checkout", {"v1": (80, ["h:1"]), "v2": (20, ["h:2"])}))
    counted = Counter[str]()
    for _ in range(1000):
        call = Call(mesh.wait_target("checkout"), RequestHead("GET", "checkout", "/", Headers()), rng=mesh.rng, now=0.0)
        call.start(0.0)
        counted[call.endpoints[0]] += 1
        call.close(0.0)

    assert 750 < counted["h:1"] < 850
    assert counted.total() == 1000


async def test_what_is_not_in_the_snapshot_does_not_exist() -> None:
    mesh = mesh_source(service("a", "h:1"))

    assert mesh.target("b") is None
    with pytest.raises(RoutingError, match="'b'"):
        mesh.wait_target("b")
    with pytest.raises(RoutingError, match="'b'"):
        await mesh.wait_target_async("b")
    assert await mesh.wait_target_async("a") is mesh.target("a")


@pytest.mark.parametrize(("absent", "expected"), [(True, RoutingError), (False, UnavailableError)])
def test_faulty_target_raises_as_a_mesh_does(absent: bool, expected: type[Exception]) -> None:
    mesh = mesh_source(Snapshot(targets={"a": ConfigFault("Listener: a", "refused", is_absent=absent)}))

    with pytest.raises(expected, match="refused"):
        mesh.target("a")


def test_publishing_replaces_the_view() -> None:
    mesh = mesh_source(service("a", "h:1"))
    before = mesh.view

    after = mesh.publish(merge(service("a", "h:1"), service("b", "h:2"), number=2))

    assert mesh.view is after
    assert (before.number, after.number, set(after.targets)) == (1, 2, {"a", "b"})


def test_sweep_emits_what_happened() -> None:
    detection = OutlierDetection(consecutive_5xx=1, max_ejection_percent=100)
    clock = FakeClock()
    mesh = mesh_source(
        service("a", "h:1", template=Cluster("", EdsDiscovery(""), outlier_detection=detection)), clock=clock
    )
    cluster = mesh.cluster("a")
    cluster.record(cluster.states["h:1"], Response(500), clock(), mesh.rng)
    clock.advance(40.0)
    mesh.sweep()

    assert mesh.events == [HostUnejected("a", cluster.states["h:1"].endpoint)]


def test_cluster_that_cannot_be_used_is_a_key_error() -> None:
    mesh = mesh_source(Snapshot(clusters={"a": ConfigFault("Cluster: a", "refused")}))

    with pytest.raises(KeyError, match="refused"):
        mesh.cluster("a")
