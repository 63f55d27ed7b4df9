"""Unary calls past grpc.aio's Python layer end, for their callers, as those through it do."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from meshlib.clients import grpc_direct, grpc_direct_aio
from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_direct_aio import AioDirectCall, AioDirectUnary, make_aio_unary
from meshlib.model.retry import RetryPolicy
from meshlib.testing.builders import service

UNARY = "/test.Service/Unary"
Use = Callable[[grpc.aio.Channel], Awaitable[None]]


class Public:
    """The public way, with the face of the other."""

    def __init__(self, channel: Any, method: str, serializer: Any, deserializer: Any) -> None:
        self._call = channel.unary_unary(method, serializer, deserializer)

    def __call__(self, request: Any, timeout_s: Any, metadata: Any, credentials: Any, compression: Any) -> Any:
        return self._call(
            request, timeout=timeout_s, metadata=metadata, credentials=credentials, compression=compression
        )


KINDS: list[Any] = [AioDirectUnary, Public]


@pytest.fixture(params=KINDS, ids=["direct", "public"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


def run(address: str, use: Use) -> None:
    async def main() -> None:
        async with grpc.aio.insecure_channel(address) as channel:
            await use(channel)

    asyncio.run(main())


def test_direct_calls_are_in_use_with_this_grpcio(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if not grpc_direct.is_known(grpc.__version__):
        pytest.skip(f"grpcio {grpc.__version__} is newer than what was looked at: calls go the public way")

    async def use(channel: grpc.aio.Channel) -> None:
        made = make_aio_unary(channel, UNARY, None, None)
        assert type(made) is AioDirectUnary
        assert type(made(b"x", 5.0, None, None, None)) is AioDirectCall
        grpc_direct_aio._is_usable.cache_clear()
        monkeypatch.setenv(grpc_direct.SWITCH, "off")
        try:
            assert make_aio_unary(channel, UNARY, None, None) is None
        finally:
            grpc_direct_aio._is_usable.cache_clear()

    run(server().address, use)


@pytest.mark.parametrize("broken", ["outcome", "go_on", "wait"])
def test_a_grpcio_whose_calls_end_otherwise_is_called_the_public_way(
    server: Any, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fail(self: Any, *details: Any) -> Any:
        self.is_over = True
        raise AttributeError("not there any more")

    async def use(channel: grpc.aio.Channel) -> None:
        grpc_direct_aio._is_usable.cache_clear()
        monkeypatch.setattr(grpc_direct_aio, "TRIAL_S", 0.5)
        monkeypatch.setattr(AioDirectCall, broken, fail)
        try:
            assert make_aio_unary(channel, UNARY, None, None) is None
        finally:
            grpc_direct_aio._is_usable.cache_clear()

    run(server().address, use)


def test_answer_and_call(server: Any, kind: Any) -> None:
    one = server()

    async def use(channel: grpc.aio.Channel) -> None:
        metadata = (("key", "value"), ("raw-bin", b"\x00\xff"))
        call = kind(channel, UNARY, str.encode, bytes.decode)("x", 5.0, metadata, None, None)
        assert not call.done()
        over: list[Any] = []
        call.add_done_callback(over.append)
        assert [f"{one.port} x"] * 2 == [await call, await call]
        assert ("value", b"\x00\xff") == (one.seen[0]["key"], one.seen[0]["raw-bin"])
        assert {"first": "1"} == dict(tuple(await call.initial_metadata()))
        assert {"last": "2"} == dict(tuple(await call.trailing_metadata()))
        assert (grpc.StatusCode.OK, "") == (await call.code(), await call.details())
        assert call.done() and not call.cancelled() and not call.cancel()
        assert [call] == over

    run(one.address, use)


def test_errors_of_the_server(server: Any, kind: Any) -> None:
    one = server()
    one.refusals = 1

    async def use(channel: grpc.aio.Channel) -> None:
        call = kind(channel, UNARY, None, None)(b"x", 5.0, None, None, None)
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            error = caught.value
            assert (grpc.StatusCode.UNAVAILABLE, "asked to refuse") == (error.code(), error.details())
            assert {"reason": "asked for"} == dict(tuple(error.trailing_metadata()))
        assert grpc.StatusCode.UNAVAILABLE is await call.code()

    run(one.address, use)


def test_deadlines(server: Any, kind: Any) -> None:
    async def use(channel: grpc.aio.Channel) -> None:
        for timeout_s in (0.05, 0.0, -1.0):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await kind(channel, UNARY, None, None)(b"wait", timeout_s, None, None, None)
            assert grpc.StatusCode.DEADLINE_EXCEEDED is caught.value.code()

    run(server().address, use)


@pytest.mark.parametrize("how", ["call", "task", "another waiter", "before"])
def test_cancellation(server: Any, kind: Any, how: str) -> None:
    one = server()

    async def use(channel: grpc.aio.Channel) -> None:
        call = kind(channel, UNARY, None, None)(b"wait", 20.0, None, None, None)

        async def wait() -> Any:
            return await call

        waiting = [] if how == "before" else [asyncio.ensure_future(wait()) for _ in range(2)]
        if how != "before":
            while not one.active:
                await asyncio.sleep(0.01)
        if how in ("call", "before"):
            assert call.cancel() and not call.cancel()
        else:
            waiting[0 if how == "task" else 1].cancel()
        for one_waiting in waiting:
            with pytest.raises(asyncio.CancelledError):
                await one_waiting
        with pytest.raises(asyncio.CancelledError):
            await call
        assert call.cancelled() and call.done()
        assert grpc.StatusCode.CANCELLED is await call.code()
        while one.active:
            await asyncio.sleep(0.01)

    run(one.address, use)


@pytest.mark.parametrize("broken", ["serializer", "message", "metadata", "deserializer"])
def test_what_cannot_be_sent_or_read(server: Any, broken: str) -> None:
    def fail(message: Any) -> Any:
        raise ValueError("no")

    async def use(channel: grpc.aio.Channel) -> None:
        found = []
        for kind in KINDS:
            method = kind(
                channel, UNARY, fail if broken == "serializer" else None, fail if broken == "deserializer" else None
            )
            message: Any = "text" if broken == "message" else b"x"
            metadata = (("Upper", "x"),) if broken == "metadata" else None
            try:
                found.append((None, await asyncio.wait_for(method(message, 5.0, metadata, None, None), 10)))
            except Exception as error:
                found.append((type(error), str(error).partition("(")[0]))
        assert found[0] == found[1]

    run(server().address, use)


def test_many_at_once(server: Any, kind: Any) -> None:
    one = server()

    async def use(channel: grpc.aio.Channel) -> None:
        method = kind(channel, UNARY, None, None)
        calls = [method(b"%d" % number, 10.0, None, None, None) for number in range(100)]
        assert [b"%d %d" % (one.port, number) for number in range(100)] == list(await asyncio.gather(*calls))

    run(one.address, use)


def test_calls_that_nobody_awaits_are_carried_through_retries(server: Any, mesh: Any) -> None:
    one = server()
    one.refusals = 2

    async def main() -> None:
        mesh.source.publish(
            service("checkout", one.address, retry=RetryPolicy(frozenset({"unavailable"}), 3, base_interval_s=0.001))
        )
        async with AioMeshChannel(mesh.source, "xds:///checkout") as channel:
            call = channel.unary_unary(UNARY)(b"x")
            assert type(call._native) is AioDirectCall
            over = asyncio.Event()
            call.add_done_callback(lambda _: over.set())
            await asyncio.wait_for(over.wait(), 10)
            assert b"%d x" % one.port == await call
            assert 3 == call.mesh.attempts
            assert 0 == mesh.active

    asyncio.run(main())


def test_a_dropped_call_gives_back_what_it_holds(server: Any, mesh: Any) -> None:
    one = server()

    async def main() -> None:
        mesh.serve(one.address)
        async with AioMeshChannel(mesh.source, "xds:///checkout") as channel:
            call = channel.unary_unary(UNARY)(b"wait", timeout=20)
            while not one.active:
                await asyncio.sleep(0.01)
            del call
            gc.collect()
            while one.active or mesh.active:
                await asyncio.sleep(0.01)
            assert set() == channel._running

    asyncio.run(asyncio.wait_for(main(), 15))


def test_waiters_of_all_kinds_of_one_call(server: Any, mesh: Any) -> None:
    one = server()
    one.refusals = 1

    async def main() -> None:
        mesh.serve(one.address, retries=2)
        async with AioMeshChannel(mesh.source, "xds:///checkout") as channel:
            for _ in range(5):
                one.refusals = 1
                call = channel.unary_unary(UNARY)(b"x", timeout=10)

                async def response(call: Any = call) -> Any:
                    return await call

                found = await asyncio.gather(
                    response(), call.code(), response(), call.initial_metadata(), call.trailing_metadata(), response()
                )
                sign = b"%d x" % one.port
                assert [sign, grpc.StatusCode.OK, sign, sign] == [found[0], found[1], found[2], found[5]]
                assert ({"first": "1"}, {"last": "2"}) == (dict(tuple(found[3])), dict(tuple(found[4])))
            assert 0 == mesh.active

    asyncio.run(main())
