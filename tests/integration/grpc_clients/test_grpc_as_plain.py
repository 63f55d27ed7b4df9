"""The same code on a plain channel and on a mesh channel sees the same: attributes, exceptions, their order.

Each test does something with a channel that it knows nothing of, and returns what it saw.
"""

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_channels import channels_of
from meshlib.clients.grpc_sync import MeshChannel

UNARY, RESPONSES, REQUESTS, CHAT = (f"/test.Service/{name}" for name in ("Unary", "Responses", "Requests", "Chat"))
Open = Callable[[], Any]


@pytest.fixture(name="one")
def _one(server: Any, mesh: Any) -> Any:
    found = server()
    mesh.serve(found.address)
    return found


@pytest.fixture(params=["plain", "meshed"])
def opened(request: pytest.FixtureRequest, one: Any, mesh: Any) -> Iterator[Open]:
    """Opens channels, plain or meshed."""
    made: list[Any] = []

    def open_one() -> Any:
        is_plain = request.param == "plain"
        made.append(grpc.insecure_channel(one.address) if is_plain else MeshChannel(mesh.source, "xds:///checkout"))
        return made[-1]

    yield open_one
    for channel in made:
        channel.close()


def raised_by(act: Callable[[], Any]) -> list[Any]:
    """Return what there is to see of an exception; of another outcome that."""
    try:
        return [act()]
    except grpc.RpcError as raised:
        error: Any = raised
        kinds = [isinstance(error, kind) for kind in (grpc.Call, grpc.Future)]
        return [*kinds, error.code(), error.details().partition(" (flag")[0], error.cancelled(), error.done()]
    except Exception as error:
        return [type(error)]


def facts(call: Any) -> list[Any]:
    kinds = [isinstance(call, kind) for kind in (grpc.Call, grpc.Future)]
    states = [call.done(), call.cancelled(), call.running(), call.is_active()]
    return [*kinds, *states, call.code(), call.details()]


def test_futures_that_are_cancelled_say_so_at_once(opened: Open, one: Any, eventually: Any) -> None:
    future = opened().unary_unary(UNARY).future(b"wait", timeout=20)
    eventually(lambda: one.active == 1)
    told: list[Any] = []
    future.add_done_callback(told.append)
    assert [True, True, [True, True, True, True, False, False, grpc.StatusCode.CANCELLED]] == [
        future.cancel(),
        future.cancelled(),
        facts(future)[:7],
    ]
    assert "Locally cancelled by application!" == future.details()
    for ask in (future.result, future.exception, future.traceback):
        assert [grpc.FutureCancelledError] == raised_by(ask)
    assert () == tuple(future.trailing_metadata())
    late: list[Any] = []
    future.add_done_callback(late.append)
    assert [future] == late
    eventually(lambda: told == [future] and not one.active)


def test_futures_that_are_dropped_are_cancelled(opened: Open, one: Any, eventually: Any, mesh: Any) -> None:
    method = opened().unary_unary(UNARY)
    future = method.future(b"wait")
    eventually(lambda: one.active == 1)
    del future
    gc.collect()
    eventually(lambda: not one.active and not mesh.active)


def test_futures_whose_end_somebody_wants_to_hear_of_go_on(opened: Open, one: Any) -> None:
    told = threading.Event()
    opened().unary_unary(UNARY).future(b"x").add_done_callback(lambda future: told.set() if future.result() else None)
    gc.collect()
    assert told.wait(20)


def test_futures_that_are_cancelled_and_dropped_give_back_once(
    opened: Open, one: Any, eventually: Any, mesh: Any
) -> None:
    method = opened().unary_unary(UNARY)
    other = method.future(b"wait", timeout=60)
    eventually(lambda: one.active == 1)
    for _ in range(5):
        method.future(b"x").cancel()
    gc.collect()
    assert b"x" == method(b"x", timeout=60)[-1:]
    if mesh.source.cluster("checkout").attempts:
        assert 1 == mesh.active == channels_of(mesh.source).sync.statistics()["active"]
    other.cancel()
    eventually(lambda: not mesh.active)


def test_a_callback_that_fails_keeps_none_of_the_others_from_it(opened: Open, one: Any, eventually: Any) -> None:
    def fail(future: Any) -> None:
        raise RuntimeError("in a callback")

    channel = opened()
    for make in (lambda: channel.unary_unary(UNARY).future(b"wait"), lambda: channel.unary_stream(RESPONSES)(b"wait")):
        told: list[Any] = []
        call = make()
        call.add_done_callback(fail)
        call.add_done_callback(told.append)
        call.cancel()
        eventually(lambda told=told, call=call: [call] == told)  # type: ignore[misc]  # mypy cannot tell their types


def test_errors_of_futures(opened: Open, one: Any) -> None:
    one.refusals = 1
    future = opened().unary_unary(UNARY).future(b"x")
    assert [True, True, grpc.StatusCode.UNAVAILABLE, "asked to refuse", False, True] == raised_by(future.result)
    assert "asked to refuse" in future.debug_error_string()


def test_streams_are_futures(opened: Open, one: Any) -> None:
    channel = opened()
    stream = channel.unary_stream(RESPONSES)(b"x", timeout=20)
    assert 3 == len(list(stream))
    assert [None, None, None] == [stream.result(20), stream.exception(20), stream.traceback(20)]
    assert [True, True, True, False, False, False, grpc.StatusCode.OK, ""] == facts(stream)
    one.refusals = 1
    stream = channel.unary_stream(RESPONSES)(b"x", timeout=20)
    assert isinstance(stream.exception(20), grpc.RpcError)
    assert [True, True, grpc.StatusCode.UNAVAILABLE, "asked to refuse", False, True] == raised_by(stream.result)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ending", ["refused", "read", "cancelled", "closed"])
def test_who_is_called_back_may_ask_the_stream(opened: Open, one: Any, ending: str, eventually: Any) -> None:
    """As instrumentations do; it was a deadlock where the stream ended before its first message."""
    channel = opened()
    one.refusals = int(ending == "refused")
    stream = channel.unary_stream(RESPONSES)(b"x" if ending in ("refused", "read") else b"wait", timeout=40)
    told: list[Any] = []
    stream.add_done_callback(lambda call: told.append((call is stream, call.code(), bool(call.details()), call.done())))
    if ending == "cancelled":
        stream.cancel()
    elif ending == "closed":
        next(stream)
        channel.close()
    raised_by(lambda: [*stream])
    code = {"refused": grpc.StatusCode.UNAVAILABLE, "read": grpc.StatusCode.OK}.get(ending, grpc.StatusCode.CANCELLED)
    eventually(lambda: [(True, code, ending != "read", True)] == told)


def test_streams_that_go_on_have_no_result(opened: Open, one: Any) -> None:
    stream = opened().unary_stream(RESPONSES)(b"wait", timeout=60)
    next(stream)
    assert [grpc.FutureTimeoutError] == raised_by(lambda: stream.result(0.05))
    stream.cancel()
    assert [grpc.FutureCancelledError] == raised_by(lambda: stream.result(20))


def test_channels_that_are_closed_end_their_calls_with_an_error(opened: Open, one: Any, eventually: Any) -> None:
    channel = opened()
    future, stream = channel.unary_unary(UNARY).future(b"wait"), channel.unary_stream(RESPONSES)(b"wait")
    next(stream)
    eventually(lambda: one.active == 2)
    channel.close()
    found = raised_by(future.result)
    assert [True, True, grpc.StatusCode.CANCELLED] == found[:3] and "Channel closed!" in found[3]
    assert not future.cancelled() and not stream.cancelled()
    assert grpc.StatusCode.CANCELLED is raised_by(lambda: [*stream])[2]
    assert isinstance(stream.exception(20), grpc.RpcError)


def test_channels_that_are_closed_end_the_blocking_calls_of_other_threads(
    opened: Open, one: Any, eventually: Any, mesh: Any
) -> None:
    channel = opened()
    unary, requests = channel.unary_unary(UNARY), channel.stream_unary(REQUESTS)
    unary(b"x")  # so that the next one is as most are
    more, found = threading.Event(), []

    def messages() -> Iterator[bytes]:
        yield b"x"
        more.wait(60)

    calls = (lambda: unary(b"wait"), lambda: unary.with_call(b"wait"), lambda: requests(messages()))
    threads = [threading.Thread(target=lambda call=call: found.append(raised_by(call))) for call in calls]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    eventually(lambda: one.active == 3)
    channel.close()
    for thread in threads:
        thread.join(60)
    more.set()
    assert [grpc.StatusCode.CANCELLED] * 3 == [seen[2] for seen in found]
    assert all("Channel closed!" in seen[3] for seen in found)
    eventually(lambda: not one.active and not mesh.active)


@pytest.mark.parametrize("kind", ["none", "fails"])
def test_requests_that_cannot_be_serialized(opened: Open, kind: str) -> None:
    channel = opened()

    def fail(request: Any) -> bytes:
        raise RuntimeError("cannot")

    serialize: Any = fail if kind == "fails" else lambda request: None
    wanted = [grpc.StatusCode.INTERNAL, "Exception serializing request!"]
    assert wanted == raised_by(lambda: channel.unary_unary(UNARY, serialize)(1))[2:4]
    assert wanted == raised_by(lambda: channel.unary_unary(UNARY)(None))[2:4]
    assert wanted == raised_by(lambda: channel.stream_unary(REQUESTS, serialize)(iter([1])))[2:4]
    assert wanted == raised_by(lambda: channel.stream_unary(REQUESTS)(iter([None])))[2:4]
    assert wanted == raised_by(lambda: [*channel.stream_stream(CHAT, serialize)(iter([1]))])[2:4]


def test_requests_whose_iterator_fails(opened: Open) -> None:
    def requests() -> Iterator[bytes]:
        yield b"a"
        raise RuntimeError("mine")

    wanted = [grpc.StatusCode.UNKNOWN, "Exception iterating requests!"]
    assert wanted == raised_by(lambda: opened().stream_unary(REQUESTS)(requests()))[2:4]


@pytest.mark.parametrize(
    "make",
    [
        lambda: (("a", "b"),),
        lambda: [("a", "b")],
        lambda: iter([("a", "b")]),
        lambda: {"a": "b"}.items(),
        lambda: ((b"a", "b"),),
        lambda: (("a", b"b"),),
    ],
    ids=["tuple", "list", "iterator", "dict", "bytes-key", "bytes-value"],
)
def test_metadata_of_all_kinds(opened: Open, one: Any, make: Callable[[], Any]) -> None:
    channel = opened()
    for ask in (
        lambda: channel.unary_unary(UNARY)(b"x", metadata=make()),
        lambda: channel.unary_unary(UNARY).future(b"x", metadata=make()).result(20),
        lambda: [*channel.unary_stream(RESPONSES)(b"x", metadata=make())],
        lambda: channel.stream_unary(REQUESTS)(iter([b"x"]), metadata=make()),
        lambda: [*channel.stream_stream(CHAT)(iter([b"x"]), metadata=make())],
    ):
        assert ask()
    assert ["b"] * 5 == [seen["a"] for seen in one.seen]


def test_calls_know_no_time_once_they_are_over(opened: Open) -> None:
    _, call = opened().unary_unary(UNARY).with_call(b"x", timeout=20)
    assert call.time_remaining() is None


# The same for event loops.


@pytest.fixture(params=["plain", "meshed"])
def aopened(request: pytest.FixtureRequest, one: Any, mesh: Any) -> Open:
    """Opens channels of grpc.aio."""

    def open_one() -> Any:
        if request.param == "plain":
            return grpc.aio.insecure_channel(one.address)
        return AioMeshChannel(mesh.source, "xds:///checkout")

    return open_one


async def test_aio_channels_that_are_closed(aopened: Open) -> None:
    channel = aopened()
    method = channel.unary_unary(UNARY)
    await method(b"x")
    await channel.close()
    with pytest.raises(grpc.aio.UsageError, match=r"^Channel is closed\.$"):
        await method(b"x")
    assert grpc.ChannelConnectivity.SHUTDOWN is channel.get_state()
    with pytest.raises(grpc.aio.UsageError, match=r"^Channel is closed\.$"):
        await channel.wait_for_state_change(grpc.ChannelConnectivity.SHUTDOWN)


async def test_aio_requests_are_written_or_iterated(aopened: Open) -> None:
    async with aopened() as channel:
        call = channel.stream_stream(CHAT)(iter([b"x"]))
        with pytest.raises(grpc.aio.UsageError, match=r"^The iterator and read/write APIs may not be mixed"):
            await call.write(b"y")
        assert [b" x"] == [message[-2:] async for message in call]


async def test_aio_calls_that_the_server_cancels(aopened: Open, one: Any) -> None:
    def cancel(request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.CANCELLED, "by the server")

    handlers = {"Cancel": grpc.unary_unary_rpc_method_handler(cancel)}
    one.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Other", handlers),))
    async with aopened() as channel:
        call = channel.unary_unary("/test.Other/Cancel")(b"x", timeout=20)
        assert not call.cancelled()
        with pytest.raises(grpc.aio.AioRpcError, match="by the server"):
            await call
        assert [True, True, grpc.StatusCode.CANCELLED] == [call.cancelled(), call.done(), await call.code()]
