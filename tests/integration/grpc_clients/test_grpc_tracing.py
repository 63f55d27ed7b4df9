"""Interceptors that others wrote, around mesh channels: OpenTelemetry's, and one in the style of `grpc_interceptor`."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_aio_brought import InterceptedAioChannel, by_kind
from meshlib.clients.grpc_sync import MeshChannel

grpc_interceptor = pytest.importorskip("grpc_interceptor")
instrumentation = pytest.importorskip("opentelemetry.instrumentation.grpc")

UNARY, RESPONSES, REQUESTS, CHAT = (f"/test.Service/{name}" for name in ("Unary", "Responses", "Requests", "Chat"))
OK, UNAVAILABLE = 0, 14


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """Spans that have ended."""
    return InMemorySpanExporter()


@pytest.fixture
def provider(spans: InMemorySpanExporter) -> TracerProvider:
    """Makes them."""
    found = TracerProvider()
    found.add_span_processor(SimpleSpanProcessor(spans))
    return found


def told(spans: InMemorySpanExporter) -> list[tuple[str, Any]]:
    """Return name and gRPC status of the spans that have ended since the last time."""
    ended = spans.get_finished_spans()
    spans.clear()
    return [(span.name, (span.attributes or {}).get("rpc.grpc.status_code")) for span in ended]


@pytest.fixture(name="one")
def _one(server: Any, mesh: Any) -> Any:
    found = server()
    mesh.serve(found.address)
    return found


def call_all(channel: grpc.Channel, one: Any) -> None:
    """Make calls of all kinds, one of which is refused."""
    signed = b"%d a" % one.port
    unary = channel.unary_unary(UNARY)
    assert signed == unary(b"a")
    response, call = unary.with_call(b"a", timeout=60)
    assert (signed, grpc.StatusCode.OK, "2") == (response, call.code(), dict(call.trailing_metadata() or ())["last"])
    assert signed == unary.future(b"a").result(60)
    assert [b"0:a", b"1:a", b"2:a"] == list(channel.unary_stream(RESPONSES)(b"a"))
    assert b"a,b" == channel.stream_unary(REQUESTS)(iter((b"a", b"b")))
    assert [signed] == list(channel.stream_stream(CHAT)(iter((b"a",))))
    one.refusals = 1
    with pytest.raises(grpc.RpcError) as caught:
        unary(b"a")
    assert grpc.StatusCode.UNAVAILABLE is caught.value.code()  # type: ignore[attr-defined]  # every error of gRPC's has one


async def acall_all(channel: grpc.aio.Channel, one: Any) -> None:
    """Make calls of all kinds, one of which is refused."""
    signed = b"%d a" % one.port
    assert signed == await channel.unary_unary(UNARY)(b"a")
    assert [b"0:a", b"1:a", b"2:a"] == [item async for item in channel.unary_stream(RESPONSES)(b"a")]
    assert b"a,b" == await channel.stream_unary(REQUESTS)(iter((b"a", b"b")))
    assert [signed] == [item async for item in channel.stream_stream(CHAT)(iter((b"a",)))]
    one.refusals = 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(UNARY)(b"a")
    assert grpc.StatusCode.UNAVAILABLE is caught.value.code()


def test_opentelemetry_traces_blocking_channels(
    one: Any, mesh: Any, provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    interceptor = instrumentation.client_interceptor(provider)
    with MeshChannel(mesh.source, "xds:///checkout") as below:
        call_all(instrumentation.grpcext.intercept_channel(below, interceptor), one)
    unary = [(UNARY, OK)] * 3
    streams = [(RESPONSES, OK), (REQUESTS, OK), (CHAT, OK)]
    assert [*unary, *streams, (UNARY, UNAVAILABLE)] == told(spans)
    assert all("traceparent" in seen for seen in one.seen)


async def test_opentelemetry_traces_aio_channels(
    one: Any, mesh: Any, provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    kinds = by_kind(instrumentation.aio_client_interceptors(provider))
    async with InterceptedAioChannel(AioMeshChannel(mesh.source, "xds:///checkout"), kinds) as channel:
        await acall_all(channel, one)
    well = [(name, OK) for name in (UNARY, RESPONSES, REQUESTS, CHAT)]
    assert [*well, (UNARY, UNAVAILABLE)] == told(spans)
    assert all("traceparent" in seen for seen in one.seen)


async def test_connections_of_the_mesh_are_not_instrumented(
    one: Any, mesh: Any, provider: TracerProvider, spans: InMemorySpanExporter
) -> None:
    """`opentelemetry-instrument` puts interceptors around all channels, which hand out generators as calls."""
    instrumentors = (instrumentation.GrpcInstrumentorClient(), instrumentation.GrpcAioInstrumentorClient())
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=provider)
    try:
        with MeshChannel(mesh.source, "xds:///checkout") as channel:
            await asyncio.to_thread(call_all, channel, one)
        async with AioMeshChannel(mesh.source, "xds:///checkout") as aio_channel:
            await acall_all(aio_channel, one)
        assert [] == told(spans)
        with grpc.insecure_channel(one.address) as own:
            assert "opentelemetry" in type(own).__module__  # its spans go to the global provider only
        async with grpc.aio.insecure_channel(one.address) as aio_own:
            await aio_own.unary_unary(UNARY)(b"a")
        assert [(UNARY, OK)] == told(spans)
    finally:
        for instrumentor in instrumentors:
            instrumentor.uninstrument()


class Tagged(grpc_interceptor.ClientInterceptor):
    """Adds metadata, and notes calls."""

    def __init__(self) -> None:
        self.codes: list[Any] = []

    def intercept(self, method: Callable[..., Any], request_or_iterator: Any, call_details: Any) -> Any:
        metadata = (*(call_details.metadata or ()), ("x-tag", "1"))
        details = grpc_interceptor.ClientCallDetails(
            call_details.method,
            call_details.timeout,
            metadata,
            call_details.credentials,
            call_details.wait_for_ready,
            call_details.compression,
        )
        call = method(request_or_iterator, details)
        call.add_done_callback(lambda done: self.codes.append(done.code()))
        return call


def test_interceptors_of_grpc_interceptor(one: Any, mesh: Any, eventually: Any) -> None:
    tagged = Tagged()
    with MeshChannel(mesh.source, "xds:///checkout") as below:
        call_all(grpc.intercept_channel(below, tagged), one)
    eventually(lambda: len(tagged.codes) == 7)
    assert [grpc.StatusCode.OK] * 6 + [grpc.StatusCode.UNAVAILABLE] == tagged.codes
    assert all(seen["x-tag"] == "1" for seen in one.seen)
