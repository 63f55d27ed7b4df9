"""RPCs that go well without a `Call`, and those that begin so and go on with one, end as all others do."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import pytest

from meshlib.admin.metrics import StandardMetrics
from meshlib.clients.grpc_channels import close_channels
from meshlib.clients.grpc_sync import MeshChannel
from meshlib.events import Event
from meshlib.model.cluster import CircuitBreakers, Cluster, EdsDiscovery
from meshlib.model.snapshot import Snapshot
from meshlib.runtime.context import InboundContext, entered
from meshlib.testing import SeededRng
from meshlib.testing.source import FakeMesh
from meshlib.view import TargetView, View

UNARY = "/test.Service/Unary"


class Counting(StandardMetrics):
    """Attributes:
    express: RPCs that needed no `Call`.
    """

    express = 0

    def succeeded(self, cluster: str, target: str, secure: bool, duration_s: float) -> None:
        self.express += 1
        super().succeeded(cluster, target, secure, duration_s)


class QuietMesh(FakeMesh):
    """A mesh whose calls only a meter is told of; `is_quiet`: so that they may be without a `Call`."""

    def __init__(self, *, is_quiet: bool = True) -> None:
        super().__init__(Snapshot(), clock=time.monotonic, rng=SeededRng(7), guard_unsafe=True, is_disabled=False)
        self.is_quiet = is_quiet
        self._meter = Counting()

    @property
    def metrics(self) -> Counting:
        return self._meter

    def _quiet(self, target: TargetView) -> tuple[View, Counting] | None:
        is_same = self.view.targets.get(target.name) is target
        return (self.view, self._meter) if self.is_quiet and is_same else None

    def emit(self, event: Event) -> None:
        super().emit(event)
        self._meter(event)


@pytest.fixture
def meshes(mesh: Any) -> Iterator[tuple[Any, Any]]:
    """Two of them: calls may do without a `Call` in the first, not in the second."""
    made = []
    for is_quiet in (True, False):
        one = type(mesh)()
        one.source = QuietMesh(is_quiet=is_quiet)
        made.append(one)
    yield made[0], made[1]
    for one in made:
        close_channels(one.source)


def seen_of(mesh: Any, ask: Callable[[], Any]) -> list[Any]:
    """Return what a caller and an operator see of an RPC."""
    found: list[Any] = []
    try:
        found.append(ask())
    except grpc.RpcError as raised:
        error: Any = raised
        info = error.mesh
        found += [type(error), error.code(), error.details().partition("remote:")[0], dict(error.trailing_metadata())]
        found += [info.cluster, info.attempts, info.flag, Counter(info.endpoints)]
    except Exception as error:
        found += [type(error), str(error)]
    cluster = mesh.source.cluster("checkout")
    counts = [cluster.attempts, cluster.breaker.active, sorted(state.active for state in cluster.states.values())]
    metrics = mesh.source.metrics
    samples = [(sample.labels, sample.count) for sample in metrics.requests()]
    return [*found, counts, samples, dict(metrics.attempts())]


def both(meshes: tuple[Any, Any], act: Callable[[Any, Callable[..., Any]], Any], *, taken: int) -> None:
    """Do the same with both meshes.

    Args:
        act: Gets a mesh and its method, of which one call was made.
        taken: How many RPCs are to have needed no `Call`.
    """
    found = []
    for mesh in meshes:
        with MeshChannel(mesh.source, "xds:///checkout") as channel:
            method = channel.unary_unary(UNARY)
            for _ in range(4):  # so that each endpoint's channel is known
                method(b"x")
            before = mesh.source.metrics.express
            found.append(act(mesh, method))
            assert (taken if mesh.source.is_quiet else 0) == mesh.source.metrics.express - before
    assert found[0] == found[1]


def test_what_goes_well(server: Any, meshes: Any) -> None:
    one = server()
    for mesh in meshes:
        mesh.serve(one.address, retries=2, include_attempt_count=True)

    def act(mesh: Any, method: Any) -> Any:
        found = [seen_of(mesh, partial(method, b"x", timeout=timeout_s)) for timeout_s in (None, 5.0)]
        response, call = method.with_call(b"y", timeout=5.0, compression=grpc.Compression.Gzip)
        found.append([response, call.code(), dict(call.initial_metadata()), dict(call.trailing_metadata())])
        return found

    both(meshes, act, taken=3)
    assert {"1"} == {seen["x-envoy-attempt-count"] for seen in one.seen}


@pytest.mark.parametrize("refusals", [1, 5])
def test_refusals_are_retried_by_the_machine(server: Any, meshes: Any, refusals: int) -> None:
    one = server()
    for mesh in meshes:
        mesh.serve(one.address, retries=2)

    def act(mesh: Any, method: Any) -> Any:
        one.refusals = refusals
        found = [seen_of(mesh, lambda: method(b"x", timeout=5.0))]
        one.refusals = 0
        return [*found, seen_of(mesh, lambda: method(b"x", timeout=5.0))]

    both(meshes, act, taken=1)


def test_deadlines(server: Any, meshes: Any) -> None:
    one = server()
    for mesh in meshes:
        mesh.serve(one.address)
    both(
        meshes,
        lambda mesh, method: [seen_of(mesh, partial(method, b"wait", timeout=time_s)) for time_s in (0.1, 0.0, -1.0)],
        taken=0,
    )


def test_endpoints_that_are_gone(server: Any, meshes: Any) -> None:
    for mesh in meshes:
        gone, stays = server(), server()
        mesh.serve(gone.address, stays.address)
        with MeshChannel(mesh.source, "xds:///checkout") as channel:
            method = channel.unary_unary(UNARY)
            assert {gone.port, stays.port} == {int(method(b"x").split()[0]) for _ in range(6)}
            gone.grpc.stop(0).wait(5)
            # What could not be connected to is passed over within the call.
            assert [b"%d x" % stays.port] * 6 == [method(b"x", timeout=5.0) for _ in range(6)]
        assert {"grpc_0", "retried"} == {outcome for _, outcome in mesh.source.metrics.attempts()}
        assert mesh.active == 0
    assert meshes[0].source.metrics.express >= 3 and not meshes[1].source.metrics.express


def test_a_request_that_cannot_be_sent(server: Any, meshes: Any) -> None:
    one = server()
    for mesh in meshes:
        mesh.serve(one.address)
    both(meshes, lambda mesh, method: seen_of(mesh, lambda: method(1)), taken=0)


def test_limits(server: Any, meshes: Any) -> None:
    one = server()
    template = Cluster("checkout", EdsDiscovery("checkout"), circuit_breakers=CircuitBreakers(max_requests=1))
    for mesh in meshes:
        mesh.serve(one.address, template=template)

    def act(mesh: Any, method: Any) -> Any:
        held = threading.Thread(target=seen_of, args=(mesh, partial(method, b"wait", timeout=1.0)))
        held.start()
        give_up = time.monotonic() + 5
        while not mesh.active and time.monotonic() < give_up:
            time.sleep(0.005)
        found = seen_of(mesh, lambda: method(b"x", timeout=5.0))[:8]
        held.join()
        assert mesh.active == 0
        return found

    both(meshes, act, taken=0)


def test_updates_are_followed(server: Any, meshes: Any) -> None:
    first, second = server(), server()

    def act(mesh: Any, method: Any) -> Any:
        found = [method(b"x")]
        mesh.serve(second.address)
        found += [method(b"x"), method(b"x"), method(b"x")]
        mesh.serve(first.address, retries=1)
        return [*found, method(b"x"), method(b"x"), method(b"x")]

    for mesh in meshes:
        mesh.serve(first.address)
    # The first call after each update finds the way anew, the next one the channel.
    both(meshes, act, taken=3)


def test_what_brings_something_of_its_own_goes_the_long_way(server: Any, meshes: Any) -> None:
    one = server()
    for mesh in meshes:
        mesh.serve(one.address)

    def act(mesh: Any, method: Any) -> Any:
        with entered(InboundContext(deadline=time.monotonic() + 0.2)):
            late = seen_of(mesh, lambda: method(b"wait", timeout=5.0))
        return late, method(b"x", metadata=(("key", "value"),)), method(b"x", wait_for_ready=True)

    both(meshes, act, taken=0)
    assert ["value", "value"] == [seen["key"] for seen in one.seen if "key" in seen]


def test_closed_channels(server: Any, meshes: Any) -> None:
    one = server()
    for mesh in meshes:
        mesh.serve(one.address)
        channel = MeshChannel(mesh.source, "xds:///checkout")
        method = channel.unary_unary(UNARY)
        assert [b"%d x" % one.port] * 3 == [method(b"x") for _ in range(3)]
        channel.close()
        with pytest.raises(ValueError, match="closed channel"):
            method(b"x")
        assert mesh.active == 0
