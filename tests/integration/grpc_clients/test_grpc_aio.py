"""The aio mesh channel against real servers."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_status import rpc_status

from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_channels import channels_of

UNARY, RESPONSES, REQUESTS, CHAT = (f"/test.Service/{name}" for name in ("Unary", "Responses", "Requests", "Chat"))


@pytest.fixture
async def channel(mesh: Any) -> AsyncIterator[AioMeshChannel]:
    async with AioMeshChannel(mesh.source, "xds:///checkout") as made:
        yield made
    channels = channels_of(mesh.source).aio(asyncio.get_running_loop())
    assert {"channels": 0, "active": 0} == channels.statistics()


async def slowly(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message
        await asyncio.sleep(0.005)


async def soon(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.005)


async def test_every_arity_reaches_an_endpoint(server: Any, mesh: Any, channel: AioMeshChannel) -> None:
    one = server()
    mesh.serve(one.address)
    sign = b"%d " % one.port
    assert sign + b"a" == await channel.unary_unary(UNARY)(b"a")
    assert [b"0:a", b"1:a", b"2:a"] == [message async for message in channel.unary_stream(RESPONSES)(b"a")]
    assert b"a,b" == await channel.stream_unary(REQUESTS)(iter([b"a", b"b"]))
    assert b"a,b" == await channel.stream_unary(REQUESTS)(slowly(b"a", b"b"))
    chat = channel.stream_stream(CHAT)(slowly(b"a", b"b"))
    assert [sign + b"a", sign + b"b"] == [message async for message in chat]
    assert 0 == mesh.active


async def test_writing_and_reading_by_hand(server: Any, mesh: Any, channel: AioMeshChannel) -> None:
    one = server()
    mesh.serve(one.address)
    sign = b"%d " % one.port
    chat = channel.stream_stream(CHAT)()
    for message in (b"a", b"b"):
        await chat.write(message)
        assert sign + message == await chat.read()
    await chat.done_writing()
    assert grpc.aio.EOF is await chat.read()
    assert grpc.StatusCode.OK is await chat.code()
    with pytest.raises(asyncio.InvalidStateError):
        await chat.write(b"c")
    requests = channel.stream_unary(REQUESTS)()
    await requests.write(b"a")
    await requests.write(b"b")
    await requests.done_writing()
    assert b"a,b" == await requests


async def test_metadata_and_call_details_pass(server: Any, mesh: Any, channel: AioMeshChannel) -> None:
    one = server()
    mesh.serve(one.address)
    metadata = grpc.aio.Metadata(("key", "value"), ("raw-bin", b"\x00\xff"))
    call = channel.unary_unary(UNARY)(b"x", metadata=metadata)
    await call
    assert ("value", b"\x00\xff") == (one.seen[0]["key"], one.seen[0]["raw-bin"])
    assert grpc.StatusCode.OK is await call.code()
    assert "1" == (await call.initial_metadata())["first"]
    assert "2" == (await call.trailing_metadata())["last"]
    assert call.done()


@pytest.mark.parametrize("arity", ["unary", "responses", "requests", "chat", "written requests", "written chat"])
async def test_unavailable_is_retried_on_another_endpoint(
    server: Any, mesh: Any, channel: AioMeshChannel, arity: str
) -> None:
    bad, good = server(), server()
    bad.refusals = 100
    mesh.serve(bad.address, good.address, retries=2)
    sign = b"%d " % good.port

    async def write(call: Any) -> Any:
        await call.write(b"x")
        await call.write(b"y")
        await call.done_writing()
        return call

    for _ in range(4):
        match arity:
            case "unary":
                assert sign + b"x" == await channel.unary_unary(UNARY)(b"x")
            case "responses":
                assert [b"0:x", b"1:x", b"2:x"] == [m async for m in channel.unary_stream(RESPONSES)(b"x")]
            case "requests":
                assert b"x,y" == await channel.stream_unary(REQUESTS)(slowly(b"x", b"y"))
            case "chat":
                call = channel.stream_stream(CHAT)(slowly(b"x", b"y"))
                assert [sign + b"x", sign + b"y"] == [m async for m in call]
            case "written requests":
                assert b"x,y" == await (await write(channel.stream_unary(REQUESTS)()))
            case "written chat":
                call = await write(channel.stream_stream(CHAT)())
                assert [sign + b"x", sign + b"y"] == [m async for m in call]
    assert len(bad.seen) >= 1
    assert 0 == mesh.active


async def test_a_refusal_while_a_message_is_sent_is_still_seen(server: Any, mesh: Any, channel: AioMeshChannel) -> None:
    """grpc.aio replaces such a status by an internal error of its own, about once in twenty times."""
    bad, good = server(), server()
    bad.refusals = 1000
    mesh.serve(bad.address, good.address, retries=2)
    for _ in range(60):
        call = channel.stream_stream(CHAT)(slowly(b"x", b"y"))
        assert 2 == len([message async for message in call])


async def test_mesh_errors_carry_error_info(mesh: Any, channel: AioMeshChannel) -> None:
    mesh.serve("127.0.0.1:1")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(UNARY)(b"x")
    error: Any = caught.value
    assert grpc.StatusCode.UNAVAILABLE is error.code()
    assert "type.googleapis.com/google.rpc.ErrorInfo" == rpc_status.from_call(error).details[0].type_url
    assert ("checkout", ("127.0.0.1:1",), "UF") == (error.mesh.cluster, error.mesh.endpoints, error.mesh.flag)


async def test_server_errors_keep_their_details(server: Any, mesh: Any, channel: AioMeshChannel) -> None:
    one = server()
    one.refusals = 10
    mesh.serve(one.address)
    call = channel.unary_unary(UNARY)(b"x")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error: Any = caught.value
    assert (grpc.StatusCode.UNAVAILABLE, "asked to refuse", 1) == (error.code(), error.details(), error.mesh.attempts)
    assert "asked for" == error.trailing_metadata()["reason"]
    assert grpc.StatusCode.UNAVAILABLE is await call.code()


async def test_unknown_services_say_so(mesh: Any) -> None:
    async with AioMeshChannel(mesh.source, "xds:///nowhere") as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="'nowhere' is not in the mesh"):
            await channel.unary_unary(UNARY)(b"x")


async def test_timeouts_are_deadline_exceeded(server: Any, mesh: Any, channel: AioMeshChannel) -> None:
    one = server()
    mesh.serve(one.address)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(UNARY)(b"wait", timeout=0.1)
    assert grpc.StatusCode.DEADLINE_EXCEEDED is caught.value.code()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in channel.unary_stream(RESPONSES)(b"wait", timeout=0.3):
            pass
    assert grpc.StatusCode.DEADLINE_EXCEEDED is caught.value.code()
    assert 0 == mesh.active


async def test_cancelling_the_task_gives_the_permit_back(server: Any, mesh: Any, channel: AioMeshChannel) -> None:
    one = server()
    mesh.serve(one.address)

    async def call() -> None:
        await channel.unary_unary(UNARY)(b"wait")

    task = asyncio.create_task(call())
    await soon(lambda: one.active == 1)
    assert 1 == mesh.active
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 0 == mesh.active
    await soon(lambda: one.active == 0)


async def test_cancelling_a_call_ends_whoever_awaits_it(server: Any, mesh: Any, channel: AioMeshChannel) -> None:
    one = server()
    mesh.serve(one.address)
    call = channel.unary_unary(UNARY)(b"wait")
    await soon(lambda: one.active == 1)
    assert call.cancel()
    assert not call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert (0, grpc.StatusCode.CANCELLED) == (mesh.active, await call.code())


async def test_a_call_that_nobody_awaits_holds_nothing(server: Any, mesh: Any, channel: AioMeshChannel) -> None:
    one = server()
    one.refusals = 1
    mesh.serve(one.address, retries=1)
    call = channel.unary_unary(UNARY)(b"x")
    await soon(call.done)
    assert 0 == mesh.active
    assert b"%d x" % one.port == await call


async def test_a_dropped_stream_gives_its_permit_back(server: Any, mesh: Any, channel: AioMeshChannel) -> None:
    one = server()
    mesh.serve(one.address)
    stream = channel.unary_stream(RESPONSES)(b"wait")
    await stream.read()
    assert 1 == mesh.active
    del stream
    await soon(lambda: mesh.active == 0 and one.active == 0)


async def test_streams_go_on_when_their_endpoint_is_removed(server: Any, mesh: Any, channel: AioMeshChannel) -> None:
    old, new = server(), server()
    mesh.serve(old.address)
    chat = channel.stream_stream(CHAT)()
    await chat.write(b"a")
    assert b"%d a" % old.port == await chat.read()
    mesh.serve(new.address)
    assert b"%d x" % new.port == await channel.unary_unary(UNARY)(b"x")
    await chat.write(b"b")
    assert b"%d b" % old.port == await chat.read()
    await chat.done_writing()
    assert grpc.aio.EOF is await chat.read()
    assert {"channels": 1, "active": 0} == channels_of(mesh.source).aio(asyncio.get_running_loop()).statistics()


async def test_calls_made_at_once_run_at_once(server: Any, mesh: Any, channel: AioMeshChannel) -> None:
    one = server()
    mesh.serve(one.address)
    calls = [channel.unary_unary(UNARY)(b"wait", timeout=30) for _ in range(5)]
    await soon(lambda: one.active == 5)
    for call in calls:
        call.cancel()
    await soon(lambda: one.active == 0)


async def test_waiting_for_ready_outlasts_a_service_without_endpoints(
    server: Any, mesh: Any, channel: AioMeshChannel
) -> None:
    one = server()
    mesh.serve()
    asyncio.get_running_loop().call_later(0.1, mesh.serve, one.address)
    assert b"%d x" % one.port == await channel.unary_unary(UNARY)(b"x", wait_for_ready=True, timeout=10)


async def test_closing_with_grace_lets_calls_end(server: Any, mesh: Any) -> None:
    one = server()
    mesh.serve(one.address)
    channel = AioMeshChannel(mesh.source, "xds:///checkout")
    quick = channel.unary_unary(UNARY)(b"x")
    await channel.close(5)
    assert b"%d x" % one.port == await quick
    with pytest.raises(grpc.aio.UsageError, match="Channel is closed"):
        channel.unary_unary(UNARY)(b"x")


async def test_channel_ready_and_state(mesh: Any, channel: AioMeshChannel) -> None:
    assert grpc.ChannelConnectivity.IDLE is channel.get_state()
    mesh.serve("127.0.0.1:1")
    await channel.channel_ready()
    assert grpc.ChannelConnectivity.READY is channel.get_state()


def test_every_loop_has_channels_of_its_own(server: Any, mesh: Any) -> None:
    one = server()
    mesh.serve(one.address)
    channel = AioMeshChannel(mesh.source, "xds:///checkout")

    async def call() -> Any:
        return await channel.unary_unary(UNARY)(b"x")

    assert [b"%d x" % one.port] * 2 == [asyncio.run(call()) for _ in range(2)]
    asyncio.run(channel.close())


def test_loops_that_are_closed_leave_nothing_behind(server: Any, mesh: Any, authority: Any) -> None:
    """As with one `asyncio.run` for each task of a worker."""
    one = server(authority.server_credentials("spiffe://cluster.local/ns/default/sa/checkout"))
    mesh.serve_tls(one.address, authority, authority.issue("spiffe://cluster.local/ns/default/sa/orders"))
    channel = AioMeshChannel(mesh.source, "xds:///checkout")

    async def call() -> None:
        await channel.unary_unary(UNARY)(b"x")

    for _ in range(4):
        asyncio.run(call())
        assert 1 == channels_of(mesh.source).relay.statistics()["routes"]
    asyncio.run(channel.close())
    assert 0 == channels_of(mesh.source).relay.statistics()["routes"]


def test_a_loop_that_was_closed_with_calls_under_way_does_not_disturb_the_next(server: Any, mesh: Any) -> None:
    one = server()
    mesh.serve(one.address)
    channel = AioMeshChannel(mesh.source, "xds:///checkout")
    loop = asyncio.new_event_loop()

    async def begin() -> list[Any]:
        calls = [channel.unary_unary(UNARY)(b"wait"), channel.unary_stream(RESPONSES)(b"wait")]
        await soon(lambda: one.active == 2)
        return calls

    calls = loop.run_until_complete(begin())
    loop.close()
    calls.clear()
    gc.collect()

    async def call() -> Any:
        return await channel.unary_unary(UNARY)(b"x")

    assert b"%d x" % one.port == asyncio.run(call())
    assert 0 == mesh.active
    asyncio.run(channel.close())
