"""RPCs that go well without a `Call`, and those that begin so and go on with one, end as all others do.

See `test_grpc_express_brought` for those that bring metadata and the like.
"""

import asyncio
import gc
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest

from meshlib.admin.metrics import StandardMetrics
from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_aio_express import ExpressUnary
from meshlib.clients.grpc_channels import close_channels
from meshlib.clients.grpc_sync import MeshChannel
from meshlib.events import Event
from meshlib.model.cluster import CircuitBreakers, Cluster, EdsDiscovery
from meshlib.model.lb_policy import PeakEwma
from meshlib.model.snapshot import ClusterConfig, Snapshot
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

    def _express(self, target: TargetView) -> tuple[View, Counting] | None:
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
        found += [
            type(error),
            error.code(),
            error.details().partition("remote:")[0],
            dict([*error.trailing_metadata()]),
        ]
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
        held = threading.Thread(target=seen_of, args=(mesh, partial(method, b"wait", timeout=2.5)))
        held.start()
        give_up = time.monotonic() + 30
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


def test_a_policy_that_begins_to_learn_while_a_call_runs(server: Any, meshes: Any) -> None:
    one = server()

    def act(mesh: Any, method: Any) -> Any:
        cluster = mesh.source.cluster("checkout")
        config = cluster.config
        assert isinstance(config, ClusterConfig)

        def serialize(request: bytes) -> bytes:  # runs once the endpoint has been chosen
            cluster.update(replace(config, cluster=replace(config.cluster, lb_policy=PeakEwma())), time.monotonic())
            return request

        with MeshChannel(mesh.source, "xds:///checkout") as channel:
            learnt = channel.unary_unary(UNARY, lambda request: serialize(request) if request == b"y" else request)
            for request in (b"x", b"x", b"x"):
                learnt(request)
            assert cluster.states[one.address].latency is None
            found = seen_of(mesh, partial(learnt, b"y"))
            assert cluster.states[one.address].latency is not None
        return found

    for mesh in meshes:
        mesh.serve(one.address)
    both(meshes, act, taken=1)


# The same for event loops.

Act = Callable[[Any, Any], Coroutine[Any, Any, Any]]


async def aseen_of(mesh: Any, ask: Callable[[], Any]) -> list[Any]:
    """As `seen_of`, of an awaitable."""
    try:
        response = await ask()
    except asyncio.CancelledError:
        return ["cancelled", *seen_of(mesh, lambda: None)]
    except Exception as error:
        raised = error

        def fail() -> None:
            raise raised

        return seen_of(mesh, fail)
    return seen_of(mesh, lambda: response)


def aboth(meshes: tuple[Any, Any], act: Act, *, taken: int) -> None:
    """As `both`, in an event loop."""
    found = []

    async def main(mesh: Any) -> Any:
        async with AioMeshChannel(mesh.source, "xds:///checkout") as channel:
            method = channel.unary_unary(UNARY)
            for _ in range(4):
                await method(b"x")
            before = mesh.source.metrics.express
            seen = await act(mesh, method)
            assert (taken if mesh.source.is_quiet else 0) == mesh.source.metrics.express - before
            assert not channel._running  # type: ignore[attr-defined]  # mypy: of grpc.aio's base
            return seen

    for mesh in meshes:
        found.append(asyncio.run(main(mesh)))
        assert mesh.active == 0
    assert found[0] == found[1]


@pytest.fixture
def one(server: Any, meshes: Any) -> Any:
    """A server that both meshes know."""
    found = server()
    for mesh in meshes:
        mesh.serve(found.address, retries=1, include_attempt_count=True)
    return found


def test_aio_what_goes_well(one: Any, meshes: Any) -> None:
    async def act(mesh: Any, method: Any) -> Any:
        found = [await aseen_of(mesh, partial(method, b"x", timeout=timeout_s)) for timeout_s in (None, 5.0)]
        ended = []
        call = method(b"y", timeout=5.0, compression=grpc.Compression.Gzip)
        assert mesh.source.is_quiet == isinstance(call, ExpressUnary)
        call.add_done_callback(ended.append)
        assert not call.done() and 4 < call.time_remaining() <= 5 and isinstance(call, grpc.aio.UnaryUnaryCall)
        found += [await call, await call.code(), await call.details(), call.done(), call.cancelled(), call.cancel()]
        found += [dict([*await call.initial_metadata()]), dict([*await call.trailing_metadata()]), call.mesh]
        assert [call] == ended
        call.add_done_callback(ended.append)
        assert [call, call] == ended and 4 < call.time_remaining() <= 5
        return [*found, await call, await asyncio.gather(*[method(b"z") for _ in range(20)])]

    aboth(meshes, act, taken=23)
    assert {"1"} == {seen["x-envoy-attempt-count"] for seen in one.seen}


def test_aio_calls_that_nobody_awaits_at_once(one: Any, meshes: Any) -> None:
    async def act(mesh: Any, method: Any) -> Any:
        call = method(b"x")
        while not call.done():
            await asyncio.sleep(0.005)
        return await aseen_of(mesh, lambda: call)

    aboth(meshes, act, taken=1)


def test_aio_questions_while_a_call_runs(one: Any, meshes: Any) -> None:
    async def act(mesh: Any, method: Any) -> Any:
        # One after the other: what has ended meanwhile needs nothing more.
        first = method(b"x", timeout=5.0)
        found = [await first.code(), await first]
        second = method(b"x")
        found += [dict([*await second.initial_metadata()]), await second]
        third = method(b"x")
        await third.wait_for_connection()
        return [*found, await third, first.mesh, third.mesh, await asyncio.gather(first, first, third)]

    aboth(meshes, act, taken=0)


def test_aio_two_who_wait(one: Any, meshes: Any) -> None:
    async def act(mesh: Any, method: Any) -> Any:
        call = method(b"x")

        async def wait() -> Any:
            return await call

        return await asyncio.gather(wait(), wait(), call)

    aboth(meshes, act, taken=1)


@pytest.mark.parametrize("refusals", [1, 5])
def test_aio_refusals(one: Any, meshes: Any, refusals: int) -> None:
    async def act(mesh: Any, method: Any) -> Any:
        one.refusals = refusals
        found = [await aseen_of(mesh, partial(method, b"x", timeout=5.0))]
        one.refusals = 0
        return [*found, await aseen_of(mesh, partial(method, b"x", timeout=5.0))]

    aboth(meshes, act, taken=1)


def test_aio_deadlines_and_requests_that_cannot_be_sent(one: Any, meshes: Any) -> None:
    async def act(mesh: Any, method: Any) -> Any:
        found = [await aseen_of(mesh, partial(method, b"wait", timeout=time_s)) for time_s in (0.5, 0.0)]
        return [*found, await aseen_of(mesh, partial(method, 1))]

    aboth(meshes, act, taken=0)


def test_aio_cancellation(one: Any, meshes: Any) -> None:
    async def act(mesh: Any, method: Any) -> Any:
        async def ask() -> Any:
            return await method(b"wait", timeout=5.0)

        task = asyncio.create_task(ask())
        await asyncio.sleep(0.05)
        task.cancel()
        found = [await aseen_of(mesh, lambda: task)]
        call = method(b"wait", timeout=5.0)
        await asyncio.sleep(0)
        found += [call.cancel(), call.cancel(), call.cancelled(), call.done(), await aseen_of(mesh, lambda: call)]
        waiting = asyncio.ensure_future(aseen_of(mesh, lambda: other))
        other = method(b"wait", timeout=5.0)
        await asyncio.sleep(0.05)
        other.cancel()
        return [*found, await waiting, await call.code(), await call.details(), other.mesh]

    aboth(meshes, act, taken=0)


def test_aio_calls_that_are_dropped(one: Any, meshes: Any) -> None:
    async def act(mesh: Any, method: Any) -> Any:
        method(b"wait", timeout=5.0)
        gc.collect()
        await asyncio.sleep(0.01)
        found = [seen_of(mesh, lambda: None)]
        call = method(b"x", timeout=5.0)
        waiting = call.__await__()
        waiting.send(None)  # as a task does that is dropped then
        waiting.close()
        return [*found, await call]

    aboth(meshes, act, taken=1)


def test_aio_limits_and_updates(server: Any, meshes: Any) -> None:
    first, second = server(), server()
    template = Cluster("checkout", EdsDiscovery("checkout"), circuit_breakers=CircuitBreakers(max_requests=1))
    for mesh in meshes:
        mesh.serve(first.address, template=template)

    async def act(mesh: Any, method: Any) -> Any:
        held = method(b"wait", timeout=5.0)
        found = [await aseen_of(mesh, partial(method, b"x", timeout=5.0))]
        held.cancel()
        mesh.serve(second.address)
        found += [await method(b"x") for _ in range(3)]
        mesh.serve(first.address)
        return [*found, *[await method(b"x") for _ in range(3)]]

    aboth(meshes, act, taken=2)


def test_aio_channels_that_are_closed(one: Any, meshes: Any) -> None:
    async def main(mesh: Any) -> Any:
        channel = AioMeshChannel(mesh.source, "xds:///checkout")
        method = channel.unary_unary(UNARY)
        for _ in range(3):
            await method(b"x")
        late, long = method(b"x"), method(b"wait")
        await channel.close(0.2)
        with pytest.raises(grpc.aio.UsageError, match="Channel is closed"):
            method(b"x")
        return [await late, long.cancelled(), late.done(), long.done()]

    for mesh in meshes:
        assert [b"%d x" % one.port, True, True, True] == asyncio.run(main(mesh))
        assert mesh.active == 0


def test_two_event_loops_have_channels_of_their_own(one: Any, meshes: Any) -> None:
    mesh, _ = meshes
    channel = AioMeshChannel(mesh.source, "xds:///checkout")
    method = channel.unary_unary(UNARY)

    async def main() -> Any:
        return [await method(b"x") for _ in range(4)]

    for _ in range(2):
        assert [b"%d x" % one.port] * 4 == asyncio.run(main())
    assert mesh.source.metrics.express >= 4
    asyncio.run(channel.close())
