"""The mesh's policy on channels that the application made."""

import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from meshlib.clients.grpc_errors import MeshRpcError
from meshlib.clients.grpc_intercept import aio_interceptors, intercept
from meshlib.errors import ConfigError
from meshlib.events import CallFinished
from meshlib.model.matcher import Fraction
from meshlib.model.route import FaultAbort, FaultPolicy

UNARY, RESPONSES, REQUESTS, CHAT = (f"/test.Service/{name}" for name in ("Unary", "Responses", "Requests", "Chat"))


def test_every_arity_is_retried(server: Any, mesh: Any) -> None:
    one = server()
    mesh.serve("10.0.0.1:1", retries=1)  # never dialled: the channel knows where to go
    with grpc.insecure_channel(one.address) as plain:
        channel = intercept(mesh.source, plain, target="checkout")
        one.refusals = 1
        assert b"%d x" % one.port == channel.unary_unary(UNARY)(b"x")
        one.refusals = 1
        assert [b"0:x", b"1:x", b"2:x"] == list(channel.unary_stream(RESPONSES)(b"x"))
        one.refusals = 1
        assert b"x,y" == channel.stream_unary(REQUESTS)(iter([b"x", b"y"]))
        one.refusals = 1
        assert [b"%d x" % one.port] == list(channel.stream_stream(CHAT)(iter([b"x"])))
        assert b"%d x" % one.port == channel.unary_unary(UNARY).future(b"x").result(10)
    calls = [event for event in mesh.source.events if isinstance(event, CallFinished)]
    assert [(0, 2)] * 4 + [(0, 1)] == [(call.grpc_status, call.attempts) for call in calls]


def test_faults_and_unknown_services(server: Any, mesh: Any) -> None:
    one = server()
    mesh.serve("10.0.0.1:1", fault=FaultPolicy(abort=FaultAbort(Fraction(100, 100), grpc_status=8)))
    with grpc.insecure_channel(one.address) as plain:
        with pytest.raises(MeshRpcError) as caught:
            intercept(mesh.source, plain, target="checkout").unary_unary(UNARY)(b"x")
        assert grpc.StatusCode.RESOURCE_EXHAUSTED is caught.value.code()
        with pytest.raises(MeshRpcError, match=f"'{one.address}' is not in the mesh"):
            intercept(mesh.source, plain).unary_unary(UNARY)(b"x")
    assert [] == one.seen


def test_grpcs_own_xds_channels_are_refused(mesh: Any) -> None:
    with pytest.raises(ConfigError, match="xds:///checkout"):
        aio_interceptors(mesh.source, "xds:///checkout")


async def test_every_aio_arity_is_retried(server: Any, mesh: Any) -> None:
    one = server()
    mesh.serve("10.0.0.1:1", retries=1)
    interceptors = aio_interceptors(mesh.source, "checkout")
    async with grpc.aio.insecure_channel(one.address, interceptors=interceptors) as channel:
        one.refusals = 1
        assert b"%d x" % one.port == await channel.unary_unary(UNARY)(b"x")
        one.refusals = 1
        assert [b"0:x", b"1:x", b"2:x"] == [item async for item in channel.unary_stream(RESPONSES)(b"x")]
        one.refusals = 1
        assert b"x,y" == await channel.stream_unary(REQUESTS)(iter([b"x", b"y"]))
        one.refusals = 1
        assert [b"%d x" % one.port] == [item async for item in channel.stream_stream(CHAT)(iter([b"x"]))]
    calls = [event for event in mesh.source.events if isinstance(event, CallFinished)]
    assert [(0, 2)] * 4 == [(call.grpc_status, call.attempts) for call in calls]


async def test_a_refusal_is_not_hidden_by_the_message_that_could_not_be_sent_any_more(
    server: Any, mesh: Any, eventually: Any
) -> None:
    """grpc.aio says INTERNAL instead of UNAVAILABLE when the loop learns of both at once."""
    one = server()
    mesh.serve("10.0.0.1:1", retries=1)

    async def messages() -> AsyncIterator[bytes]:
        yield b"x"
        eventually(lambda: not one.refusals and not one.active)
        time.sleep(0.03)  # noqa: ASYNC251  # the loop stands still while the refusal arrives
        yield b"y"

    interceptors = aio_interceptors(mesh.source, "checkout")
    async with grpc.aio.insecure_channel(one.address, interceptors=interceptors) as channel:
        for _ in range(5):
            one.refusals = 1
            assert b"x,y" == await channel.stream_unary(REQUESTS)(messages())
            one.refusals = 1
            signed = [b"%d x" % one.port, b"%d y" % one.port]
            assert signed == [item async for item in channel.stream_stream(CHAT)(messages())]


class _Numbered(grpc.aio.UnaryStreamClientInterceptor):
    """Hands out an iterator of its own, as tracing does."""

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        call = await continuation(client_call_details, request)

        async def numbered() -> AsyncIterator[bytes]:
            number = 0
            async for message in call:
                yield b"%d=%b" % (number, message)
                number += 1

        return numbered()


async def test_interceptors_further_down_may_hand_out_iterators(server: Any, mesh: Any) -> None:
    one = server()
    mesh.serve("10.0.0.1:1", retries=1)
    interceptors = [*aio_interceptors(mesh.source, "checkout"), _Numbered()]
    async with grpc.aio.insecure_channel(one.address, interceptors=interceptors) as channel:
        one.refusals = 1
        assert [b"0=0:x", b"1=1:x", b"2=2:x"] == [item async for item in channel.unary_stream(RESPONSES)(b"x")]
