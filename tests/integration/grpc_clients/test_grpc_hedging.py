"""Hedged unary RPCs of both mesh channels, and hedged functions."""

import asyncio
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from meshlib.clients.function import decorate
from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_channels import channels_of
from meshlib.clients.grpc_sync import MeshChannel
from meshlib.events import AttemptFinished
from meshlib.model.endpoint import Endpoint
from meshlib.model.retry import HedgePolicy, RetryPolicy
from meshlib.model.route import RouteAction, SingleCluster
from meshlib.testing.builders import service

UNARY = "/test.Service/Unary"
SOON_S = 0.1


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def serve(mesh: Any, *addresses: str, retries: int = 4, limit_s: float | None = None) -> None:
    policy = RetryPolicy(frozenset({"unavailable"}), retries, per_try_timeout_s=SOON_S, base_interval_s=0.001)
    action = RouteAction(
        SingleCluster(""), retry=policy, hedge=HedgePolicy(on_per_try_timeout=True), max_stream_duration_s=limit_s
    )
    mesh.source.publish(service("checkout", *addresses, action=action))


def call(mesh: Any, is_aio: bool, count: int = 1, timeout: float = 10) -> list[bytes]:
    async def acall() -> list[bytes]:
        async with AioMeshChannel(mesh.source, "xds:///checkout") as channel:
            method = channel.unary_unary(UNARY)
            return [await method(b"%d" % number, timeout=timeout) for number in range(count)]

    if is_aio:
        return asyncio.run(acall())
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        method = channel.unary_unary(UNARY)
        return [method(b"%d" % number, timeout=timeout) for number in range(count)]


both = pytest.mark.parametrize("is_aio", [False, True], ids=["sync", "aio"])


@both
def test_quick_answer_beside_a_silent_endpoint_wins(server: Any, mesh: Any, silent: str, is_aio: bool) -> None:
    quick = server()
    serve(mesh, silent, quick.address)
    assert call(mesh, is_aio, 4) == [b"%d %d" % (quick.port, number) for number in range(4)]
    cluster = mesh.source.cluster("checkout")
    assert (mesh.active, cluster.breaker.retries) == (0, 0)
    failures = [event.failure for event in mesh.source.events if isinstance(event, AttemptFinished)]
    assert set(failures) == {"", "cancelled"}


@both
def test_refusal_beside_a_silent_endpoint_is_repeated(server: Any, mesh: Any, silent: str, is_aio: bool) -> None:
    flaky = server()
    flaky.refusals = 1
    serve(mesh, silent, flaky.address)
    assert call(mesh, is_aio) == [b"%d 0" % flaky.port]
    assert mesh.active == 0


@both
def test_last_error_is_the_servers_own(server: Any, mesh: Any, is_aio: bool) -> None:
    flaky = server()
    flaky.refusals = 9
    serve(mesh, flaky.address, retries=1)
    with pytest.raises(grpc.RpcError) as caught:
        call(mesh, is_aio)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert caught.value.details() == "asked to refuse"
    assert caught.value.mesh.attempts == 2
    assert mesh.active == 0


@both
def test_all_end_at_the_deadline(mesh: Any, silent: str, is_aio: bool) -> None:
    serve(mesh, silent, retries=2)
    with pytest.raises(grpc.RpcError) as caught:
        call(mesh, is_aio, timeout=2.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert caught.value.mesh.attempts == 3
    assert (mesh.active, mesh.source.cluster("checkout").breaker.retries) == (0, 0)


@pytest.mark.parametrize("by_task", [False, True])
@pytest.mark.parametrize("after_s", [0.0, SOON_S / 2, SOON_S * 1.3, SOON_S * 2.5])
def test_cancelling_ends_all_attempts(mesh: Any, silent: str, after_s: float, by_task: bool) -> None:
    serve(mesh, silent)

    async def main() -> None:
        async with AioMeshChannel(mesh.source, "xds:///checkout") as channel:
            running = channel.unary_unary(UNARY)(b"a", timeout=20)
            task = asyncio.ensure_future(_awaited(running))
            await asyncio.sleep(after_s)
            if by_task:
                task.cancel()
            else:
                assert running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert running.cancelled()
            assert await running.code() is grpc.StatusCode.CANCELLED
            async with asyncio.timeout(10):
                while channels_of(mesh.source).aio(asyncio.get_running_loop()).statistics()["active"]:
                    await asyncio.sleep(0.01)
            assert (mesh.active, mesh.source.cluster("checkout").breaker.retries) == (0, 0)

    asyncio.run(main())


async def _awaited(running: Any) -> Any:
    return await running


def test_future_is_not_hedged_and_its_attempt_goes_on(server: Any, mesh: Any) -> None:
    one = server()
    serve(mesh, one.address)
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        assert channel.unary_unary(UNARY).future(b"a", timeout=10).result() == b"%d a" % one.port
    assert len(one.seen) == 1


async def test_slow_coroutine_goes_on_beside_the_next(mesh: Any) -> None:
    serve(mesh, "a:1", "b:1")
    cancelled: list[str] = []
    begun: list[str] = []

    async def ask(endpoint: Endpoint, what: str) -> str:
        begun.append(endpoint.address)
        if len(begun) == 1:
            try:
                await asyncio.sleep(20)
            except asyncio.CancelledError:
                cancelled.append(endpoint.address)
                raise
        return f"{endpoint.address} {what}"

    # The route's policy says `unavailable`, which no exception is; a slow attempt is hedged all the same.
    asked = decorate(mesh.source, "checkout", method="GET")(ask)
    answer = await asked("x")
    assert answer == f"{begun[1]} x"
    assert cancelled == begun[:1]
    assert mesh.active == 0


async def test_exception_of_the_last_attempt_is_raised(mesh: Any) -> None:
    serve(mesh, "a:1", retries=1)
    begun: list[str] = []
    second = asyncio.Event()

    async def ask(endpoint: Endpoint) -> str:
        begun.append(endpoint.address)
        if len(begun) == 1:
            await second.wait()
        else:
            second.set()
            await asyncio.sleep(SOON_S * 2)
        raise ValueError(len(begun))

    with pytest.raises(ValueError, match="2"):
        await decorate(mesh.source, "checkout", method="GET")(ask)()
    assert mesh.active == 0


async def test_cancelling_a_hedged_function_releases_what_is_held(mesh: Any) -> None:
    serve(mesh, "a:1", "b:1")
    ended: list[str] = []

    async def ask(endpoint: Endpoint) -> None:
        try:
            await asyncio.sleep(20)
        finally:
            ended.append(endpoint.address)

    task = asyncio.create_task(decorate(mesh.source, "checkout", method="GET")(ask)())
    async with asyncio.timeout(10):
        while mesh.active < 2:
            await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(ended) >= 2
    assert (mesh.active, mesh.source.cluster("checkout").breaker.retries) == (0, 0)
