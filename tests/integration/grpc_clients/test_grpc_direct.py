"""Unary calls past gRPC's Python layer end, for their callers, as those through it do."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from meshlib.clients import grpc_direct
from meshlib.clients.grpc_direct import DirectUnary, PublicUnary, as_call, is_known, make_unary, trailing_metadata

UNARY = "/test.Service/Unary"
MODES: list[Any] = [DirectUnary, PublicUnary]
Make = Callable[..., Any]


@pytest.fixture(params=MODES, ids=["direct", "public"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def one(server: Any) -> Any:
    return server()


@pytest.fixture
def channel(one: Any) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(one.address) as made:
        yield made


def test_direct_calls_are_in_use_with_this_grpcio(channel: grpc.Channel) -> None:
    if not is_known(grpc.__version__):
        pytest.skip(
            f"grpcio {grpc.__version__} is newer than what was looked at: calls go the public way until KNOWN_GOOD says more"
        )
    assert type(make_unary(channel, UNARY, None, None)) is DirectUnary


@pytest.mark.parametrize("version", ["1.65.5", "1.86.0", "2.0.0", "", "1.x"])
def test_unknown_versions_are_called_the_public_way(version: str) -> None:
    assert not is_known(version)


@pytest.mark.parametrize("broken", ["_RPCState", "_InactiveRpcError", "_handle_event"])
def test_a_grpcio_without_what_is_needed_is_called_the_public_way(
    channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    grpc_direct.is_usable.cache_clear()
    monkeypatch.delattr(grpc_direct.native, broken)
    try:
        assert not grpc_direct.is_usable()
        assert type(make_unary(channel, UNARY, None, None)) is PublicUnary
    finally:
        grpc_direct.is_usable.cache_clear()


def test_it_can_be_switched_off(channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    grpc_direct.is_usable.cache_clear()
    monkeypatch.setenv(grpc_direct.SWITCH, "off")
    try:
        assert type(make_unary(channel, UNARY, None, None)) is PublicUnary
    finally:
        grpc_direct.is_usable.cache_clear()


def test_channels_of_other_kinds_are_called_the_public_way(channel: grpc.Channel) -> None:
    class Nothing(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]  # generic in the stubs only
        def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
            return continuation(details, request)

    made = make_unary(grpc.intercept_channel(channel, Nothing()), UNARY, None, None)
    assert type(made) is PublicUnary
    assert made(b"x", None, None, None, None)[0].endswith(b"x")


def test_answer_and_call(one: Any, channel: grpc.Channel, kind: Make) -> None:
    metadata = (("key", "value"), ("raw-bin", b"\x00\xff"))
    response, answer = kind(channel, UNARY, str.encode, bytes.decode)("x", 5.0, metadata, None, None)
    call = as_call(answer)
    assert f"{one.port} x" == response
    assert ("value", b"\x00\xff") == (one.seen[0]["key"], one.seen[0]["raw-bin"])
    assert {"last": "2"} == dict(trailing_metadata(answer))
    assert isinstance(call, grpc.Call) and isinstance(call, grpc.Future)
    assert (grpc.StatusCode.OK, "", response) == (call.code(), call.details(), call.result())
    assert ({"first": "1"}, {"last": "2"}) == (dict(call.initial_metadata()), dict(call.trailing_metadata()))
    assert call.done() and not call.is_active() and not call.cancelled() and not call.cancel()


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.NoCompression, None])
def test_compression_is_asked_for(one: Any, channel: grpc.Channel, kind: Make, compression: Any) -> None:
    response, _ = kind(channel, UNARY, None, None)(b"x" * 5000, 5.0, None, None, compression)
    assert response.endswith(b"x" * 5000)


def test_errors_of_the_server(one: Any, channel: grpc.Channel, kind: Make) -> None:
    one.refusals = 1
    with pytest.raises(grpc.RpcError) as caught:
        kind(channel, UNARY, None, None)(b"x", 5.0, None, None, None)
    error: Any = caught.value
    assert isinstance(error, grpc.Call) and isinstance(error, grpc.Future)
    assert (grpc.StatusCode.UNAVAILABLE, "asked to refuse") == (error.code(), error.details())
    assert {"reason": "asked for"} == dict(error.trailing_metadata())
    assert "asked to refuse" in error.debug_error_string() and "asked to refuse" in str(error)


def test_deadlines(channel: grpc.Channel, kind: Make) -> None:
    call = kind(channel, UNARY, None, None)
    for timeout_s in (0.05, 0.0, -1.0):
        with pytest.raises(grpc.RpcError) as caught:
            call(b"wait", timeout_s, None, None, None)
        error: Any = caught.value
        assert grpc.StatusCode.DEADLINE_EXCEEDED is error.code()
        assert "Deadline Exceeded" in error.details()


def test_messages_that_cannot_be_converted(channel: grpc.Channel, kind: Make) -> None:
    def fail(message: Any) -> Any:
        raise ValueError("no")

    def nothing(message: Any) -> Any:
        return None

    for broken in (fail, nothing):
        for serializer, deserializer, text in (
            (broken, None, "Exception serializing request!"),
            (None, broken, "Exception deserializing response!"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                kind(channel, UNARY, serializer, deserializer)(b"x", 5.0, None, None, None)
            error: Any = caught.value
            assert (grpc.StatusCode.INTERNAL, text) == (error.code(), error.details())


@pytest.mark.parametrize("metadata", [(("Upper", "x"),), (("key", "a\nb"),), (("key", 1),)])
def test_metadata_that_cannot_be_sent(channel: grpc.Channel, metadata: Any) -> None:
    raised = []
    for kind in MODES:
        with pytest.raises(Exception) as caught:
            kind(channel, UNARY, None, None)(b"x", 5.0, metadata, None, None)
        raised.append((type(caught.value), str(caught.value)))
    assert raised[0] == raised[1]


def test_messages_that_are_none_of_bytes(channel: grpc.Channel) -> None:
    raised = []
    for kind in MODES:
        with pytest.raises(Exception) as caught:
            kind(channel, UNARY, None, None)("text", 5.0, None, None, None)
        raised.append((type(caught.value), str(caught.value)))
    assert raised[0] == raised[1]


def test_call_credentials_are_sent(one: Any, kind: Make) -> None:
    token = grpc.access_token_call_credentials("secret")
    local = grpc.local_channel_credentials(grpc.LocalConnectionType.LOCAL_TCP)
    server = grpc.server(one.pool)
    handler = grpc.unary_unary_rpc_method_handler(
        lambda request, context: dict(context.invocation_metadata())["authorization"].encode()
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Unary": handler}),))
    credentials = grpc.local_server_credentials(grpc.LocalConnectionType.LOCAL_TCP)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        with grpc.secure_channel(f"127.0.0.1:{port}", local) as channel:
            response, _ = kind(channel, UNARY, None, None)(b"x", 5.0, None, token, None)
        assert b"Bearer secret" == response
    finally:
        server.stop(0).wait(5)


def test_closed_channels_say_so(channel: grpc.Channel, kind: Make) -> None:
    call = kind(channel, UNARY, None, None)
    channel.close()
    with pytest.raises(ValueError, match="closed channel"):
        call(b"x", 5.0, None, None, None)


def test_closing_the_channel_ends_a_call(one: Any, channel: grpc.Channel, kind: Make) -> None:
    call = kind(channel, UNARY, None, None)
    threading.Timer(0.1, channel.close).start()
    with pytest.raises(grpc.RpcError) as caught:
        call(b"wait", 10.0, None, None, None)
    error: Any = caught.value
    assert grpc.StatusCode.CANCELLED is error.code()


def test_many_threads_share_a_method(one: Any, channel: grpc.Channel, kind: Make) -> None:
    call = kind(channel, UNARY, None, None)
    wrong: list[bytes] = []

    def work(number: int) -> None:
        for turn in range(50):
            message = b"%d-%d" % (number, turn)
            if call(message, 10.0, None, None, None)[0] != b"%d " % one.port + message:
                wrong.append(message)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == wrong


def test_a_grpcio_without_these_modules_is_called_the_public_way(one: Any) -> None:
    """In a process of its own, as what is imported stays."""
    program = f"""
import builtins, sys
real = builtins.__import__

def without(name, globals=None, locals=None, fromlist=(), level=0):
    if globals and str(globals.get("__name__")).startswith("meshlib.clients.grpc_direct"):
        if name in ("grpc._cython", "grpc.aio") and fromlist:
            raise ImportError(name)
    return real(name, globals, locals, fromlist, level)

import grpc, grpc.aio
builtins.__import__ = without
from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_direct import PublicUnary, make_unary
from meshlib.clients.grpc_direct_aio import make_aio_unary, _is_usable
with grpc.insecure_channel({one.address!r}) as channel:
    made = make_unary(channel, {UNARY!r}, None, None)
    assert type(made) is PublicUnary and made(b"x", 20.0, None, None, None)[0].endswith(b"x")
assert not _is_usable()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert 0 == ended.returncode, ended.stderr
