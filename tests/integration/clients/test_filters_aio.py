"""Filters around channels of grpc.aio: all four kinds of methods, filters of both kinds."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

import meshlib
from meshlib import AsyncFilter, Filter, FilterAnswer, FilterRequest, FilterResponse
from meshlib.clients.filters import AsyncFilterChain
from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_aio_filters import FilteredAioChannel


class Tenant(Filter):
    """Notes what comes back."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_request(self, request: FilterRequest) -> FilterAnswer | None:
        request.state["at"] = request.service
        return None

    def on_response(self, request: FilterRequest, response: FilterResponse) -> None:
        self.heard.append((request.state["at"], response.status))


class Quota(AsyncFilter):
    """Waits, and notes what it hears of."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def on_request(self, request: FilterRequest) -> FilterAnswer | None:
        await self.gate.wait()
        await asyncio.sleep(0)
        if request.path == "/a.B/Secret":
            return FilterAnswer(7, (("x-by", "filter"),), b"not for you")
        if request.path == "/a.B/Broken":
            raise LookupError("broken filter")
        request.headers["X-Tenant"] = "acme"
        return None

    async def on_response(self, request: FilterRequest, response: FilterResponse) -> None:
        await asyncio.sleep(0)
        self.heard.append((request.path, response.status, response.headers.get("x-t")))

    def on_error(self, request: FilterRequest, error: BaseException) -> None:
        self.heard.append((request.path, type(error).__name__))


@pytest.fixture
def grpc_server() -> Iterator[tuple[str, list[Any]]]:
    """A server of all four kinds of methods of `a.B`; its address, and the metadata that it has seen."""
    from concurrent.futures import ThreadPoolExecutor

    seen: list[Any] = []

    def look(request: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(
            {key: value for key, value in context.invocation_metadata() if key in ("x-tenant", "raw-bin", "own")}
        )
        context.set_trailing_metadata((("x-t", "u"),))
        if request == b"fail":
            context.abort(grpc.StatusCode.NOT_FOUND, "nothing")
        if request == b"wait":
            over = threading.Event()
            context.add_callback(over.set)
            over.wait(20)
        return request

    handlers = {
        "Get": grpc.unary_unary_rpc_method_handler(look),
        "List": grpc.unary_stream_rpc_method_handler(lambda request, context: iter([look(request, context)] * 2)),
        "Put": grpc.stream_unary_rpc_method_handler(lambda requests, context: look(b",".join(requests), context)),
        "Chat": grpc.stream_stream_rpc_method_handler(
            lambda requests, context: (look(request, context) for request in requests)
        ),
    }
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", seen
    server.stop(None).wait(5)


def on_aio(address: str, use: Callable[[Any, Quota, Tenant], Awaitable[None]]) -> None:
    async def main() -> None:
        quota, tenant = Quota(), Tenant()
        plain = grpc.aio.insecure_channel(address)
        async with FilteredAioChannel(plain, "checkout", AsyncFilterChain([tenant, quota])) as channel:
            await asyncio.wait_for(use(channel, quota, tenant), 20)

    asyncio.run(main())


def test_aio_channels(grpc_server: tuple[str, list[Any]]) -> None:
    address, seen = grpc_server

    async def use(channel: Any, quota: Quota, tenant: Tenant) -> None:
        metadata = (("raw-bin", b"\x00"), ("own", "1"))
        call = channel.unary_unary("/a.B/Get")(b"1", timeout=10, metadata=metadata)
        assert await call == b"1"
        assert quota.heard == [("/a.B/Get", 0, "u")]  # the end of a call waits for its filters
        assert (await call.code(), dict(tuple(await call.trailing_metadata()))) == (grpc.StatusCode.OK, {"x-t": "u"})
        assert seen == [{"x-tenant": "acme", "raw-bin": b"\x00", "own": "1"}]
        over = asyncio.Event()
        call.add_done_callback(lambda _: over.set())
        assert call.done() and over.is_set() and not call.cancel()

        assert [message async for message in channel.unary_stream("/a.B/List")(b"2")] == [b"2"] * 2
        assert await channel.stream_unary("/a.B/Put")(iter([b"3", b"4"])) == b"3,4"
        chat = channel.stream_stream("/a.B/Chat")()
        await chat.write(b"5")
        assert await chat.read() == b"5"
        await chat.done_writing()
        assert await chat.read() is grpc.aio.EOF
        assert [entry[:2] for entry in quota.heard[1:]] == [("/a.B/List", 0), ("/a.B/Put", 0), ("/a.B/Chat", 0)]
        assert [entry[:2] for entry in tenant.heard] == [("checkout", 0)] * 4

    on_aio(address, use)


def test_aio_errors_and_answers(grpc_server: tuple[str, list[Any]]) -> None:
    address, seen = grpc_server

    async def use(channel: Any, quota: Quota, tenant: Tenant) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await channel.unary_unary("/a.B/Get")(b"fail")
        assert failed.value.code() is grpc.StatusCode.NOT_FOUND
        assert quota.heard.pop() == ("/a.B/Get", 5, "u")
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_stream("/a.B/List")(b"fail").read()
        assert quota.heard.pop() == ("/a.B/List", 5, "u")

        tenant.heard.clear()
        over = asyncio.Event()
        call = channel.unary_unary("/a.B/Secret")(b"x")
        call.add_done_callback(lambda _: over.set())
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
        assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.PERMISSION_DENIED, "not for you")
        assert dict(tuple(refused.value.trailing_metadata())) == {"x-by": "filter"}
        assert (await call.code(), await call.details()) == (grpc.StatusCode.PERMISSION_DENIED, "not for you")
        await over.wait()
        assert [entry[:2] for entry in tenant.heard] == [("checkout", 7)]

        with pytest.raises(LookupError, match="broken filter"):
            await channel.unary_unary("/a.B/Broken")(b"x")

    on_aio(address, use)
    assert len(seen) == 2


@pytest.mark.parametrize("how", ["call", "task"])
@pytest.mark.parametrize("where", ["filter", "server"])
def test_aio_cancellation(grpc_server: tuple[str, list[Any]], how: str, where: str) -> None:
    address, seen = grpc_server

    async def use(channel: Any, quota: Quota, tenant: Tenant) -> None:
        if where == "filter":
            quota.gate.clear()
        call = channel.unary_unary("/a.B/Get")(b"wait", timeout=10)

        async def wait() -> Any:
            return await call

        waiting = asyncio.ensure_future(wait())
        while where == "server" and not seen:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert call.cancel() if how == "call" else waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert call.cancelled()
        assert await call.code() is grpc.StatusCode.CANCELLED
        assert call.done()
        while where == "server" and not quota.heard:  # one heard of the end, or both
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert (quota.heard == []) is (where == "filter")

    on_aio(address, use)
    assert len(seen) == (where == "server")


def test_no_filters_no_wrapper_and_none_that_are_no_filters() -> None:
    with meshlib.Mesh.connect("127.0.0.1:1", node_id="t", state_dir="") as mesh:

        async def main() -> None:
            async with mesh.aio_channel("xds:///checkout") as channel:
                assert type(channel) is AioMeshChannel
            async with mesh.aio_channel("xds:///checkout", filters=[Tenant(), Quota()]) as channel:
                assert type(channel) is FilteredAioChannel
            wrong: Any = [print]
            with pytest.raises(TypeError, match="no Filter"):
                mesh.aio_channel("xds:///checkout", filters=wrong)

        asyncio.run(main())
