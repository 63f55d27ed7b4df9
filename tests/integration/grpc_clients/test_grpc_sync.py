"""The sync mesh channel against real servers."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from meshlib.clients import grpc_sync_calls
from meshlib.clients.grpc_channels import channels_of
from meshlib.clients.grpc_errors import MeshRpcError
from meshlib.clients.grpc_sync import MeshChannel
from meshlib.events import AttemptFinished, CallFinished
from meshlib.model.matcher import Fraction
from meshlib.model.route import FaultAbort, FaultPolicy

UNARY, RESPONSES, REQUESTS, CHAT = (f"/test.Service/{name}" for name in ("Unary", "Responses", "Requests", "Chat"))


@pytest.fixture
def channel(mesh: Any) -> Iterator[MeshChannel]:
    with MeshChannel(mesh.source, "xds:///checkout") as made:
        yield made


def error_info(error: Any) -> error_details_pb2.ErrorInfo:
    status = rpc_status.from_call(error)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


def test_every_arity_reaches_an_endpoint(server: Any, mesh: Any, channel: MeshChannel) -> None:
    one = server()
    mesh.serve(one.address)
    sign = b"%d " % one.port
    assert sign + b"a" == channel.unary_unary(UNARY)(b"a")
    assert [b"0:a", b"1:a", b"2:a"] == list(channel.unary_stream(RESPONSES)(b"a"))
    assert b"a,b" == channel.stream_unary(REQUESTS)(iter([b"a", b"b"]))
    assert [sign + b"a", sign + b"b"] == list(channel.stream_stream(CHAT)(iter([b"a", b"b"])))
    assert mesh.active == 0


def test_calls_spread_over_endpoints(server: Any, mesh: Any, channel: MeshChannel) -> None:
    first, second = server(), server()
    mesh.serve(first.address, second.address)
    call = channel.unary_unary(UNARY)
    for _ in range(10):
        call(b"x")
    assert (5, 5) == (len(first.seen), len(second.seen))


def test_metadata_and_call_details_pass(server: Any, mesh: Any, channel: MeshChannel) -> None:
    one = server()
    mesh.serve(one.address)
    metadata = (("key", "value"), ("raw-bin", b"\x00\xff"))
    _, call = channel.unary_unary(UNARY).with_call(b"x", metadata=metadata)
    assert ("value", b"\x00\xff") == (one.seen[0]["key"], one.seen[0]["raw-bin"])
    assert grpc.StatusCode.OK is call.code()
    assert {"first": "1"} == dict(call.initial_metadata())
    assert {"last": "2"} == dict(call.trailing_metadata())


def test_metadata_pass_when_routes_change_the_head(server: Any, mesh: Any, channel: MeshChannel) -> None:
    one = server()
    one.refusals = 1
    mesh.serve(one.address, retries=1)
    channel.unary_unary(UNARY)(b"x", metadata=(("key", "value"), ("raw-bin", b"\x00\xff")))
    assert [("value", b"\x00\xff")] * 2 == [(seen["key"], seen["raw-bin"]) for seen in one.seen]


@pytest.mark.parametrize("arity", ["unary", "responses", "requests", "chat", "future", "requests future"])
def test_unavailable_is_retried_on_another_endpoint(server: Any, mesh: Any, channel: MeshChannel, arity: str) -> None:
    bad, good = server(), server()
    bad.refusals = 100
    mesh.serve(bad.address, good.address, retries=2)
    calls: dict[str, Callable[[], Any]] = {
        "unary": lambda: channel.unary_unary(UNARY)(b"x"),
        "responses": lambda: list(channel.unary_stream(RESPONSES)(b"x")),
        "requests": lambda: channel.stream_unary(REQUESTS)(iter([b"x", b"y"])),
        "chat": lambda: list(channel.stream_stream(CHAT)(iter([b"x", b"y"]))),
        "future": lambda: channel.unary_unary(UNARY).future(b"x").result(10),
        "requests future": lambda: channel.stream_unary(REQUESTS).future(iter([b"x", b"y"])).result(10),
    }
    sign = b"%d " % good.port
    expected = {
        "unary": sign + b"x",
        "responses": [b"0:x", b"1:x", b"2:x"],
        "requests": b"x,y",
        "chat": [sign + b"x", sign + b"y"],
        "future": sign + b"x",
        "requests future": b"x,y",
    }
    assert [expected[arity]] * 4 == [calls[arity]() for _ in range(4)]
    assert len(bad.seen) >= 1
    assert 0 == mesh.active


def test_refused_connections_are_retried_elsewhere(server: Any, mesh: Any, channel: MeshChannel) -> None:
    one = server()
    mesh.serve("127.0.0.1:1", one.address, retries=1)
    call = channel.unary_unary(UNARY)
    assert [b"%d x" % one.port] * 4 == [call(b"x") for _ in range(4)]
    kinds = {event.failure for event in mesh.source.events if isinstance(event, AttemptFinished)}
    assert {"connect", ""} == kinds


def test_server_errors_keep_their_details_and_say_what_the_mesh_did(
    server: Any, mesh: Any, channel: MeshChannel
) -> None:
    one = server()
    one.refusals = 10
    mesh.serve(one.address)
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(UNARY)(b"x")
    error: Any = caught.value
    assert (grpc.StatusCode.UNAVAILABLE, "asked to refuse") == (error.code(), error.details())
    assert {"reason": "asked for"} == dict(error.trailing_metadata())
    assert ("checkout", (one.address,), 1) == (error.mesh.cluster, error.mesh.endpoints, error.mesh.attempts)


def test_mesh_errors_carry_error_info(mesh: Any, channel: MeshChannel) -> None:
    mesh.serve("127.0.0.1:1", retries=1)
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(UNARY)(b"x")
    error: Any = caught.value
    assert isinstance(error, grpc.Call)
    assert grpc.StatusCode.UNAVAILABLE is error.code()
    assert error.details().startswith("connections to all backends failing; last error: ")
    info = error_info(error)
    assert ("URX", "meshlib") == (info.reason, info.domain)
    assert {
        "cluster": "checkout",
        "endpoint": "127.0.0.1:1",
        "endpoints": "127.0.0.1:1,127.0.0.1:1",
        "attempts": "2",
    } == dict(info.metadata)


def test_unknown_services_say_so(mesh: Any) -> None:
    with MeshChannel(mesh.source, "xds:///nowhere") as channel, pytest.raises(MeshRpcError) as caught:
        channel.unary_unary(UNARY)(b"x")
    assert grpc.StatusCode.UNAVAILABLE is caught.value.code()
    assert "'nowhere' is not in the mesh" in caught.value.details()
    assert "NR" == error_info(caught.value).reason


def test_no_endpoints_is_unavailable(mesh: Any, channel: MeshChannel) -> None:
    mesh.serve()
    with pytest.raises(MeshRpcError, match="no healthy endpoint") as caught:
        channel.unary_unary(UNARY)(b"x")
    assert "UH" == error_info(caught.value).reason


def test_faults_end_calls_with_their_grpc_status(mesh: Any, channel: MeshChannel) -> None:
    mesh.serve("127.0.0.1:1", fault=FaultPolicy(abort=FaultAbort(Fraction(100, 100), http_status=403)))
    with pytest.raises(MeshRpcError) as caught:
        channel.unary_unary(UNARY)(b"x")
    assert grpc.StatusCode.PERMISSION_DENIED is caught.value.code()
    assert caught.value.details().startswith("Fault injected")


def test_timeouts_are_deadline_exceeded(server: Any, mesh: Any, channel: MeshChannel) -> None:
    one = server()
    mesh.serve(one.address)
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(UNARY)(b"wait", timeout=0.1)
    assert grpc.StatusCode.DEADLINE_EXCEEDED is caught.value.code()
    stream = channel.unary_stream(RESPONSES)(b"wait", timeout=0.3)
    with pytest.raises(grpc.RpcError) as caught:
        list(stream)
    assert grpc.StatusCode.DEADLINE_EXCEEDED is caught.value.code()
    assert 0 == mesh.active


def test_cancelling_a_stream_gives_its_permit_back(
    server: Any, mesh: Any, channel: MeshChannel, eventually: Any
) -> None:
    one = server()
    mesh.serve(one.address)
    stream = channel.unary_stream(RESPONSES)(b"wait")
    assert b"0:wait" == next(stream)
    assert 1 == mesh.active
    assert stream.cancel()
    assert 0 == mesh.active
    assert grpc.StatusCode.CANCELLED is stream.code()
    eventually(lambda: one.active == 0)


def test_dropping_a_stream_gives_its_permit_back(server: Any, mesh: Any, channel: MeshChannel, eventually: Any) -> None:
    one = server()
    mesh.serve(one.address)
    next(channel.unary_stream(RESPONSES)(b"wait"))
    eventually(lambda: one.active == 0)
    channel.unary_unary(UNARY)(b"x")
    assert 0 == mesh.active


def test_a_cancelled_future_says_so_and_holds_nothing(
    server: Any, mesh: Any, channel: MeshChannel, eventually: Any
) -> None:
    one = server()
    mesh.serve(one.address)
    future = channel.unary_unary(UNARY).future(b"wait")
    eventually(lambda: one.active == 1)
    future.cancel()
    with pytest.raises(grpc.FutureCancelledError):
        future.result(10)
    assert (True, grpc.StatusCode.CANCELLED, 0) == (future.cancelled(), future.code(), mesh.active)


def test_streams_go_on_when_their_endpoint_is_removed(server: Any, mesh: Any, channel: MeshChannel) -> None:
    old, new = server(), server()
    mesh.serve(old.address)
    more = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b"a"
        more.wait(10)
        yield b"b"

    stream = channel.stream_stream(CHAT)(requests())
    assert b"%d a" % old.port == next(stream)
    mesh.serve(new.address)
    assert b"%d x" % new.port == channel.unary_unary(UNARY)(b"x")
    more.set()
    assert [b"%d b" % old.port] == list(stream)
    assert {"channels": 1, "active": 0} == channels_of(mesh.source).sync.statistics()


def test_waiting_for_ready_outlasts_a_service_without_endpoints(server: Any, mesh: Any, channel: MeshChannel) -> None:
    one = server()
    mesh.serve()
    later = threading.Timer(0.1, mesh.serve, (one.address,))
    later.start()
    assert b"%d x" % one.port == channel.unary_unary(UNARY)(b"x", wait_for_ready=True, timeout=10)
    later.join()


def test_waiting_for_ready_ends_with_the_deadline(mesh: Any, channel: MeshChannel) -> None:
    mesh.serve()
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(UNARY)(b"x", wait_for_ready=True, timeout=0.1)
    assert grpc.StatusCode.DEADLINE_EXCEEDED is caught.value.code()


def test_long_request_streams_are_not_repeated(server: Any, mesh: Any, channel: MeshChannel) -> None:
    """The server refuses after it has read more than is kept for a retry."""
    bad = server()
    mesh.serve(bad.address, retries=3)
    bad.refusals = 1
    big = b"x" * 300_000
    with pytest.raises(grpc.RpcError) as caught:
        channel.stream_unary(REQUESTS)(iter([big, b"y"]))
    error: Any = caught.value
    assert (grpc.StatusCode.UNAVAILABLE, 1) == (error.code(), error.mesh.attempts)


def test_events_tell_of_attempts_and_calls(server: Any, mesh: Any, channel: MeshChannel) -> None:
    one = server()
    one.refusals = 1
    mesh.serve(one.address, retries=1)
    list(channel.unary_stream(RESPONSES)(b"x"))
    attempts = [event for event in mesh.source.events if isinstance(event, AttemptFinished)]
    assert [(14, True), (None, False)] == [(event.grpc_status, event.will_retry) for event in attempts]
    [call] = [event for event in mesh.source.events if isinstance(event, CallFinished)]
    assert ("grpc", RESPONSES, 0, 2) == (call.kind, call.method, call.grpc_status, call.attempts)


def test_a_closed_channel_takes_no_calls(server: Any, mesh: Any, eventually: Any) -> None:
    one = server()
    mesh.serve(one.address)
    channel = MeshChannel(mesh.source, "xds:///checkout")
    stream = channel.unary_stream(RESPONSES)(b"wait")
    next(stream)
    channel.close()
    assert grpc.StatusCode.CANCELLED is stream.code()
    with pytest.raises(ValueError, match="closed channel"):
        channel.unary_unary(UNARY)(b"x")
    eventually(lambda: one.active == 0)


def test_blocking_calls_end_with_the_last_channel_of_the_mesh(
    server: Any, mesh: Any, channel: MeshChannel, eventually: Any
) -> None:
    """Also when their endpoint has gone meanwhile."""
    one, other = server(), MeshChannel(mesh.source, "xds:///checkout")
    mesh.serve(one.address)
    codes: list[Any] = []

    def call() -> None:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(UNARY)(b"wait")
        codes.append(caught.value.code())  # type: ignore[attr-defined]  # every error of gRPC's has one

    thread = threading.Thread(target=call)
    thread.start()
    eventually(lambda: one.active == 1)
    channel.close()
    two = server()
    mesh.serve(two.address)
    assert b"%d x" % two.port == other.unary_unary(UNARY)(b"x")
    assert 1 == one.active and thread.is_alive()
    other.close()
    thread.join(60)
    assert [grpc.StatusCode.CANCELLED] == codes
    eventually(lambda: not one.active and not mesh.active)


def test_a_channel_that_is_closed_during_a_pause_makes_no_other_attempt(
    server: Any, mesh: Any, channel: MeshChannel, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = server()
    one.refusals = 1
    mesh.serve(one.address, retries=1)
    monkeypatch.setattr(grpc_sync_calls, "time", SimpleNamespace(sleep=lambda seconds: channel.close()))
    with pytest.raises(grpc.RpcError, match="Channel closed!") as caught:
        channel.unary_unary(UNARY)(b"x")
    assert grpc.StatusCode.CANCELLED is caught.value.code()  # type: ignore[attr-defined]  # every error of gRPC's has one
    assert 1 == len(one.seen) and 0 == mesh.active


def test_channel_ready_future_is_ready_with_the_configuration(mesh: Any, channel: MeshChannel) -> None:
    mesh.serve("127.0.0.1:1")
    grpc.channel_ready_future(channel).result(timeout=10)


def test_mesh_channels_share_endpoint_channels(server: Any, mesh: Any, channel: MeshChannel) -> None:
    one = server()
    mesh.serve(one.address)
    channel.unary_unary(UNARY)(b"x")
    with MeshChannel(mesh.source, "xds:checkout") as other:
        other.unary_unary(UNARY)(b"x")
        assert {"channels": 1, "active": 0} == channels_of(mesh.source).sync.statistics()


def test_the_disabled_mesh_goes_out_directly(server: Any) -> None:
    from meshlib.model.snapshot import Snapshot
    from meshlib.testing.source import mesh_source

    one = server()
    with MeshChannel(mesh_source(Snapshot(), is_disabled=True), f"xds:///{one.address}") as channel:
        assert b"%d x" % one.port == channel.unary_unary(UNARY)(b"x")


def test_a_generated_stub_works_unchanged(server: Any, mesh: Any, channel: MeshChannel) -> None:
    """As protoc-gen-grpc writes it, `_registered_method` included."""

    class Stub:
        def __init__(self, channel: Any) -> None:
            self.Unary = channel.unary_unary(
                UNARY,
                request_serializer=str.encode,
                response_deserializer=bytes.decode,
                _registered_method=True,
            )
            self.Chat = channel.stream_stream(
                CHAT,
                request_serializer=str.encode,
                response_deserializer=bytes.decode,
                _registered_method=True,
            )

    one = server()
    mesh.serve(one.address)
    stub = Stub(channel)
    assert f"{one.port} x" == stub.Unary("x", timeout=5)
    assert [f"{one.port} a", f"{one.port} b"] == list(stub.Chat(iter(["a", "b"])))


def test_threads_share_a_channel(server: Any, mesh: Any, channel: MeshChannel) -> None:
    first, second = server(), server()
    mesh.serve(first.address, second.address)
    call = channel.unary_unary(UNARY)
    failures: list[BaseException] = []

    def many() -> None:
        try:
            for _ in range(50):
                call(b"x")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=many) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == failures
    assert 400 == len(first.seen) + len(second.seen)
    assert 0 == mesh.active
