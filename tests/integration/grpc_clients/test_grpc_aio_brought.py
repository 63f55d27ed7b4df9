"""The application's own interceptors see and do the same on a plain aio channel and on a mesh channel.

Each test does something with a channel that it knows nothing of. What both kinds run on top of is grpc.aio's machinery, so
that these tests hold what the mesh's calls have to be for it.
"""

import asyncio
import gc
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from meshlib import Filter, FilterAnswer, FilterRequest, Mesh
from meshlib.clients.filters import AsyncFilterChain
from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_aio_brought import InterceptedAioChannel, by_kind
from meshlib.clients.grpc_aio_filters import FilteredAioChannel

UNARY, RESPONSES, REQUESTS, CHAT = (f"/test.Service/{name}" for name in ("Unary", "Responses", "Requests", "Chat"))
KINDS = {"unary_unary": UNARY, "unary_stream": RESPONSES, "stream_unary": REQUESTS, "stream_stream": CHAT}
Open = Callable[..., Any]
Act = Callable[[Any, Any, Any], Awaitable[Any]]
"""What an interceptor does: continuation, details, request."""


class _UnaryUnary(grpc.aio.UnaryUnaryClientInterceptor):
    def __init__(self, act: Act) -> None:
        self._act = act

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._act(continuation, client_call_details, request)


class _UnaryStream(grpc.aio.UnaryStreamClientInterceptor):
    def __init__(self, act: Act) -> None:
        self._act = act

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._act(continuation, client_call_details, request)


class _StreamUnary(grpc.aio.StreamUnaryClientInterceptor):
    def __init__(self, act: Act) -> None:
        self._act = act

    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._act(continuation, client_call_details, request_iterator)


class _StreamStream(grpc.aio.StreamStreamClientInterceptor):
    def __init__(self, act: Act) -> None:
        self._act = act

    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._act(continuation, client_call_details, request_iterator)


def around(act: Act) -> list[Any]:
    """Return interceptors that do the same for each kind."""
    return [_UnaryUnary(act), _UnaryStream(act), _StreamUnary(act), _StreamStream(act)]


@pytest.fixture(name="one")
def _one(server: Any, mesh: Any) -> Any:
    found = server()
    mesh.serve(found.address)
    return found


@pytest.fixture(params=["plain", "meshed", "filtered"])
def opened(request: pytest.FixtureRequest, one: Any, mesh: Any) -> Open:
    """Opens channels with interceptors."""
    version = tuple(int(part) for part in grpc.__version__.split(".")[:2])
    if request.param == "plain" and version < (1, 85):
        pytest.skip("calls of older versions fail when they are asked after an interceptor has raised")

    def open_one(*interceptors: Any) -> Any:
        if request.param == "plain":
            return grpc.aio.insecure_channel(one.address, interceptors=interceptors)
        channel: grpc.aio.Channel = AioMeshChannel(mesh.source, "xds:///checkout")
        if request.param == "filtered":
            channel = FilteredAioChannel(channel, "checkout", AsyncFilterChain([Filter()]))
        return InterceptedAioChannel(channel, by_kind(interceptors))

    return open_one


async def outcome(call: Any) -> Any:
    """Return the response or responses of a call, or how it failed."""
    try:
        return [item async for item in call] if hasattr(call, "__aiter__") else await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details()
    except asyncio.CancelledError:
        return "cancelled"


def begin(channel: Any, kind: str, *messages: bytes, **said: Any) -> Any:
    method = getattr(channel, kind)(KINDS[kind])
    return method(iter(messages) if kind.startswith("stream") else messages[0], **said)


def answers(one: Any) -> dict[str, Any]:
    """Return what the server says to `a`."""
    signed = b"%d a" % one.port
    return {
        "unary_unary": signed,
        "unary_stream": [b"0:a", b"1:a", b"2:a"],
        "stream_unary": b"a",
        "stream_stream": [signed],
    }


async def soon(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.005)


async def test_interceptors_see_what_the_caller_said_in_order_and_may_change_it(opened: Open, one: Any) -> None:
    seen: list[Any] = []

    async def first(continuation: Any, details: Any, request: Any) -> Any:
        assert isinstance(details, grpc.aio.ClientCallDetails)
        assert isinstance(details.metadata, grpc.aio.Metadata)
        seen.append((details.method, details.timeout, tuple(details.metadata), details.wait_for_ready))
        changed = grpc.aio.Metadata(*details.metadata, ("x-first", "1"), ("x-both-bin", b"\x00"))
        return await continuation(details._replace(metadata=changed, timeout=50.0), request)

    async def second(continuation: Any, details: Any, request: Any) -> Any:
        seen.append((details.timeout, details.metadata["x-first"], details.credentials))
        return await continuation(details, request)

    async with opened(*around(first), *around(second)) as channel:
        for kind, wanted in answers(one).items():
            seen.clear()
            call = begin(channel, kind, b"a", timeout=60, metadata=(("x-mine", "0"),), wait_for_ready=True)
            assert wanted == await outcome(call)
            told = (KINDS[kind].encode(), 60, (("x-mine", "0"),), True)
            assert [told, (50.0, "1", None)] == seen
            assert {"x-mine": "0", "x-first": "1", "x-both-bin": b"\x00"}.items() <= one.seen[-1].items()
            assert grpc.StatusCode.OK is await call.code()
            assert call.done() and not call.cancelled()


async def test_interceptors_may_choose_another_method(opened: Open, one: Any) -> None:
    async def elsewhere(continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(details._replace(method=UNARY.encode()), request)

    async with opened(_UnaryUnary(elsewhere)) as channel:
        method = channel.unary_unary("/test.Service/None", response_deserializer=bytes.decode)
        for _ in range(2):
            assert f"{one.port} a" == await method(b"a")


async def test_interceptors_may_answer_themselves(opened: Open, one: Any) -> None:
    async def response(*_: Any) -> Any:
        return b"mine"

    async with opened(_UnaryUnary(response)) as channel:
        call = begin(channel, "unary_unary", b"a")
        assert b"mine" == await outcome(call)
        assert (grpc.StatusCode.OK, True, False) == (await call.code(), call.done(), call.cancelled())
        assert b"a" == await outcome(begin(channel, "stream_unary", b"a"))
    assert 1 == len(one.seen)


async def test_interceptors_may_answer_with_streams_of_their_own(mesh: Any) -> None:
    """In grpc.aio 1.85 such calls fail with AttributeError when they are asked anything, or dropped."""

    async def mine() -> AsyncIterator[bytes]:
        yield b"mine"
        yield b"too"

    async def responses(*_: Any) -> Any:
        return mine()

    kinds = by_kind([_UnaryStream(responses), _StreamStream(responses)])
    async with InterceptedAioChannel(AioMeshChannel(mesh.source, "xds:///checkout"), kinds) as channel:
        for kind in ("unary_stream", "stream_stream"):
            call = begin(channel, kind, b"a")
            assert [b"mine", b"too"] == await outcome(call)
            assert (grpc.StatusCode.OK, True, False) == (await call.code(), call.done(), call.cancelled())
        read = begin(channel, "unary_stream", b"a")
        assert [b"mine", b"too", grpc.aio.EOF] == [await read.read() for _ in range(3)]
        with pytest.raises(asyncio.InvalidStateError):
            await channel.stream_stream(CHAT)().write(b"a")


async def test_interceptors_may_hand_out_the_responses_themselves(opened: Open, one: Any) -> None:
    """As tracing does."""

    async def noted(continuation: Any, details: Any, request: Any) -> Any:
        call = await continuation(details, request)

        async def responses() -> AsyncIterator[bytes]:
            async for message in call:
                yield b"<" + message + b">"

        return responses()

    async with opened(_UnaryStream(noted), _StreamStream(noted)) as channel:
        assert [b"<0:a>", b"<1:a>", b"<2:a>"] == await outcome(begin(channel, "unary_stream", b"a"))
        chat = channel.stream_stream(CHAT)()
        for message in (b"a", b"b"):
            await chat.write(message)
            assert b"<%d %b>" % (one.port, message) == await chat.read()
        await chat.done_writing()
        assert grpc.aio.EOF is await chat.read()
        assert grpc.StatusCode.OK is await chat.code()


async def test_interceptors_may_go_on_several_times(opened: Open, one: Any) -> None:
    tried: list[Any] = []

    async def again(continuation: Any, details: Any, request: Any) -> Any:
        while True:
            call = await continuation(details, request)
            tried.append(await call.code())
            if tried[-1] is grpc.StatusCode.OK:
                return call

    async with opened(_UnaryUnary(again)) as channel:
        one.refusals = 2
        assert b"%d a" % one.port == await outcome(begin(channel, "unary_unary", b"a"))
    assert ["UNAVAILABLE", "UNAVAILABLE", "OK"] == [code.name for code in tried]
    assert 3 == len(one.seen)


async def test_interceptors_see_how_calls_end(opened: Open, one: Any) -> None:
    seen: list[Any] = []

    async def look(continuation: Any, details: Any, request: Any) -> Any:
        call = await continuation(details, request)
        call.add_done_callback(lambda done: seen.append(done is call))
        response = await call
        seen.append((response, await call.code(), (await call.trailing_metadata())["last"]))
        seen.append((await call.initial_metadata())["first"])
        return response

    async with opened(_UnaryUnary(look)) as channel:
        call = begin(channel, "unary_unary", b"a")
        told: list[Any] = []
        call.add_done_callback(told.append)
        wanted = b"%d a" % one.port
        assert wanted == await call
        assert [True, (wanted, grpc.StatusCode.OK, "2"), "1"] == seen
        assert [call] == told


async def test_interceptors_and_callers_see_errors(opened: Open, one: Any) -> None:
    seen: list[Any] = []

    async def look(continuation: Any, details: Any, request: Any) -> Any:
        call = await continuation(details, request)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            seen.append((error.code().name, error.trailing_metadata()["reason"]))
            raise

    async def pass_on(continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(details, request)

    refused = ("UNAVAILABLE", "asked to refuse")
    interceptors = [_UnaryUnary(look), *around(pass_on)]
    async with opened(*interceptors) as channel:
        for kind in KINDS:
            one.refusals = 1
            call = begin(channel, kind, b"a")
            code, details = await outcome(call)
            assert refused == (code, details.partition(" (")[0])
            assert "UNAVAILABLE" == (await call.code()).name
            assert "asked for" == (await call.trailing_metadata())["reason"]
            assert refused[1] == (await call.details()).partition(" (")[0]
            assert call.done() and not call.cancelled()
    assert [("UNAVAILABLE", "asked for")] == seen


async def test_what_an_interceptor_raises_the_caller_gets(opened: Open, one: Any) -> None:
    async def fail(*_: Any) -> Any:
        raise LookupError("no tenant")

    async with opened(*around(fail)) as channel:
        for kind in KINDS:
            call = begin(channel, kind, b"a")
            with pytest.raises(LookupError, match="no tenant"):
                await outcome(call)
            assert call.done() and not call.cancel()
    assert [] == one.seen


@pytest.mark.parametrize("kind", KINDS)
async def test_requests_are_written_and_responses_read_by_hand(opened: Open, one: Any, kind: str) -> None:
    async def pass_on(continuation: Any, details: Any, request: Any) -> Any:
        await asyncio.sleep(0.01)
        return await continuation(details, request)

    async with opened(*around(pass_on)) as channel:
        method = getattr(channel, kind)(KINDS[kind])
        call = method() if kind.startswith("stream") else method(b"a")
        if kind.startswith("stream"):
            for message in (b"a", b"b"):
                await call.write(message)
            await call.done_writing()
            await call.done_writing()
        if kind.endswith("stream"):
            found = []
            while (message := await call.read()) is not grpc.aio.EOF:
                found.append(message)
            signed = [b"%d %b" % (one.port, message) for message in (b"a", b"b")]
            assert (signed if kind == "stream_stream" else [b"0:a", b"1:a", b"2:a"]) == found
        else:
            assert (b"a,b" if kind == "stream_unary" else b"%d a" % one.port) == await call
        if kind.startswith("stream"):
            with pytest.raises(asyncio.InvalidStateError):
                await call.write(b"late")


async def test_a_call_that_is_refused_while_an_interceptor_waits_for_its_end(opened: Open, one: Any) -> None:
    """What reads the requests ends with the call; it must not take the interceptor with it."""

    async def look(continuation: Any, details: Any, request: Any) -> Any:
        call = await continuation(details, request)
        await call.code()
        return call

    async with opened(_StreamUnary(look)) as channel:
        call = channel.stream_unary("/test.Service/None")()
        assert "UNIMPLEMENTED" == (await outcome(call))[0]
        with pytest.raises(asyncio.InvalidStateError):
            await call.write(b"late")


async def test_calls_are_cancelled_while_interceptors_hold_them(opened: Open, one: Any) -> None:
    held: list[str] = []

    async def hold(continuation: Any, details: Any, request: Any) -> Any:
        held.append("began")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            held.append("cancelled")
            raise

    async with opened(*around(hold)) as channel:
        for kind in KINDS:
            held.clear()
            call = begin(channel, kind, b"a")
            told: list[Any] = []
            call.add_done_callback(told.append)
            await soon(lambda: held == ["began"])
            assert not call.done() and call.cancel()
            assert "cancelled" == await outcome(call)
            assert (True, True, False) == (call.done(), call.cancelled(), call.cancel())
            assert grpc.StatusCode.CANCELLED is await call.code()
            assert ["began", "cancelled"] == held
            await soon(lambda call=call, told=told: told == [call])  # type: ignore[misc]
    assert [] == one.seen


@pytest.mark.parametrize("by", ["call", "task", "drop", "interceptor"])
async def test_calls_are_cancelled_while_the_server_holds_them(opened: Open, one: Any, by: str, mesh: Any) -> None:
    calls: list[Any] = []

    async def keep(continuation: Any, details: Any, request: Any) -> Any:
        calls.append(await continuation(details, request))
        return calls.pop() if by == "drop" else calls[-1]

    async with opened(_UnaryUnary(keep)) as channel:
        call = begin(channel, "unary_unary", b"wait")
        waiting = None if by == "drop" else asyncio.ensure_future(outcome(call))
        await soon(lambda: one.active == 1)
        if by == "call":
            assert call.cancel() and call.cancelled()
        elif by == "task":
            assert waiting is not None and waiting.cancel()
        elif by == "interceptor":
            assert calls[0].cancel()
        del call
        calls.clear()
        gc.collect()
        if waiting is not None:
            assert "cancelled" == await waiting
            del waiting
        await soon(lambda: one.active == 0 and mesh.active == 0)


async def test_closing_gives_time_then_cancels(opened: Open, one: Any) -> None:
    gate = asyncio.Event()

    async def slow(continuation: Any, details: Any, request: Any) -> Any:
        call = await continuation(details, request)
        response = await call
        await gate.wait()
        return response

    channel = opened(_UnaryUnary(slow))
    call = asyncio.ensure_future(outcome(begin(channel, "unary_unary", b"a")))
    await soon(lambda: len(one.seen) == 1)
    closing = asyncio.ensure_future(channel.close(30))
    await asyncio.sleep(0)
    gate.set()
    await closing
    assert b"%d a" % one.port == await call
    with pytest.raises(grpc.aio.UsageError):
        await begin(channel, "unary_unary", b"a")

    channel = opened(_UnaryUnary(slow))
    gate.clear()
    call = asyncio.ensure_future(outcome(begin(channel, "unary_unary", b"a")))
    await soon(lambda: len(one.seen) == 2 and not one.active)
    await channel.close(0.01)
    assert "cancelled" == await call


async def test_kinds_without_interceptors_are_the_channels_own(mesh: Any, one: Any) -> None:
    async def never(*_: Any) -> Any:
        raise AssertionError

    async with AioMeshChannel(mesh.source, "xds:///checkout") as below:
        channel = InterceptedAioChannel(below, by_kind([_UnaryStream(never)]))
        assert type(below.unary_unary(UNARY)) is type(channel.unary_unary(UNARY))
        call = channel.unary_unary(UNARY)(b"a")
        assert b"%d a" % one.port == await call
        assert type(call) is type(below.unary_unary(UNARY)(b"a"))


async def test_calls_say_what_the_mesh_knows_and_compress(one: Any, mesh: Any) -> None:
    async def pass_on(continuation: Any, details: Any, request: Any) -> Any:
        return await continuation(details, request)

    channel = InterceptedAioChannel(AioMeshChannel(mesh.source, "xds:///checkout"), by_kind(around(pass_on)))
    async with channel:
        call = channel.unary_unary(UNARY)(b"a", compression=grpc.Compression.Gzip)
        assert call.mesh is None
        await call
        assert (one.address,) == call.mesh.endpoints
        one.refusals = 1
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(UNARY)(b"a")
        assert (one.address,) == caught.value.mesh.endpoints  # type: ignore[attr-defined]


def test_what_is_no_interceptor_is_refused_as_by_grpc() -> None:
    class Sync(grpc.UnaryUnaryClientInterceptor):
        def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
            raise AssertionError

    mesh = Mesh.connect("127.0.0.1:1", node_id="a")
    for wrong in (Sync(), object(), _UnaryUnary):
        messages = []
        for make in (mesh.aio_channel, grpc.aio.insecure_channel):
            with pytest.raises(ValueError, match="must be UnaryUnaryClientInterceptor or") as caught:
                make("xds:///checkout", interceptors=[wrong])  # type: ignore[operator]
            messages.append(str(caught.value).rstrip(". "))
        assert messages[0] == messages[1]


def test_code_of_the_page_runs() -> None:
    text = (Path(__file__).parents[3] / "docs" / "how-to" / "grpc-clients.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    exec(compile("\n".join(blocks), "grpc-clients.md", "exec"), {})


async def test_interceptors_come_before_filters(one: Any, mesh: Any) -> None:
    order: list[str] = []

    class Note(Filter):
        def on_request(self, request: FilterRequest) -> FilterAnswer | None:
            order.append(f"filter sees {request.headers.get('x-first')}")
            return None

    async def first(continuation: Any, details: Any, request: Any) -> Any:
        order.append("interceptor")
        return await continuation(details._replace(metadata=grpc.aio.Metadata(("x-first", "1"))), request)

    source = Mesh.connect("127.0.0.1:1", node_id="a")
    channel = source.aio_channel("xds:///checkout", None, None, [_UnaryUnary(first)], filters=[Note()])
    call = channel.unary_unary(UNARY)(b"a", timeout=0.01)
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    await channel.close()
    source.close()
    assert ["interceptor", "filter sees 1"] == order
