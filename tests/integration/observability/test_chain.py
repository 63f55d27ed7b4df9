"""A caller's trace, deadline and attempt reach the services behind the one it calls."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

import meshlib
from meshlib.clients.grpc_intercept import aio_interceptors
from meshlib.model.request import Headers
from meshlib.runtime.context import InboundContext, entered
from meshlib.runtime.tracing import Tracing, extracted

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
WAYS = [(way_in, way_out) for way_in in ("asgi", "grpc") for way_out in ("http", "grpc")]
METHOD = "/test.Echo/Call"


@pytest.fixture
def spans(stage: Any, monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Spans of both services."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for mesh in (stage.back_mesh, stage.front_mesh):
        monkeypatch.setattr(mesh, "tracing", Tracing(provider))
    return exporter


@pytest.mark.parametrize(("way_in", "way_out"), WAYS)
def test_trace_and_deadline_are_carried_on_without_sdk(asking: Callable[..., Any], way_in: str, way_out: str) -> None:
    headers = {"traceparent": PARENT, "tracestate": "vendor=1", "baggage": "tenant=a"}
    seen = asking(way_in, way_out, headers, timeout_s=8.0)
    assert headers == {name: seen["headers"].get(name) for name in headers}
    assert 0 < seen["remaining_s"] < 8.0 - 0.1  # gRPC rounds what it sends up, by less than 1 % a hop
    assert (1, "1") == (seen["attempt"], seen["headers"]["x-envoy-attempt-count"])


@pytest.mark.parametrize(("way_in", "way_out"), WAYS)
def test_without_trace_and_deadline_the_routes_own_applies(
    asking: Callable[..., Any], way_in: str, way_out: str
) -> None:
    seen = asking(way_in, way_out, {})
    assert "traceparent" not in seen["headers"]
    assert 4.0 < seen["remaining_s"] <= 10.1


def test_expected_timeout_goes_out_as_envoy_writes_it(asking: Callable[..., Any]) -> None:
    seen = asking("asgi", "http", {}, timeout_s=8.0)
    assert 0 < int(seen["headers"]["x-envoy-expected-rq-timeout-ms"]) < 8000


@pytest.mark.parametrize(("way_in", "way_out"), WAYS)
def test_a_retried_request_knows_that_it_is_one(
    stage: Any, asking: Callable[..., Any], way_in: str, way_out: str
) -> None:
    stage.back.refusals = 1
    seen = asking(way_in, way_out, {"traceparent": PARENT})
    assert (2, PARENT) == (seen["attempt"], seen["headers"]["traceparent"])


@pytest.mark.parametrize(("way_in", "way_out"), WAYS)
def test_headers_that_are_handed_on_reach_the_next_service(
    asking: Callable[..., Any], way_in: str, way_out: str
) -> None:
    headers = {
        "b3": "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1",
        "x-request-id": "8f0c6a1e",
        "priority": "u=1",
        "x-mine": "stays",
    }
    seen = asking(way_in, way_out, headers)["headers"]
    assert {**headers, "x-mine": None} == {name: seen.get(name) for name in headers}


def chain(spans: InMemorySpanExporter) -> list[ReadableSpan]:
    """Return the spans from the outermost to the innermost, of a call without retries."""
    left = {span.parent.span_id if span.parent else 0: span for span in spans.get_finished_spans()}
    found = []
    key = int(PARENT[36:52], 16)
    while key in left:
        found.append(left.pop(key))
        key = found[-1].context.span_id
    assert {} == left
    return found


@pytest.mark.parametrize(("way_in", "way_out"), WAYS)
def test_spans_of_both_services_are_one_trace(
    asking: Callable[..., Any], spans: InMemorySpanExporter, way_in: str, way_out: str
) -> None:
    asking(way_in, way_out, {"traceparent": PARENT})
    rpc, http = "test.Echo/Call", "GET"
    inner = http if way_out == "http" else rpc
    wait_for(lambda: len(spans.get_finished_spans()) == 4)
    found = chain(spans)
    assert [
        (http if way_in == "asgi" else rpc, SpanKind.SERVER),
        (inner, SpanKind.CLIENT),
        (f"{inner} attempt", SpanKind.CLIENT),
        (inner, SpanKind.SERVER),
    ] == [(span.name, span.kind) for span in found]
    assert {int(TRACE, 16)} == {span.context.trace_id for span in found}
    cluster = f"outbound|{80 if way_out == 'http' else 81}||back.default.svc.cluster.local"
    assert cluster == (found[1].attributes or {})["meshlib.cluster"]


def wait_for(look: Callable[[], bool]) -> None:
    """A server ends its span after its client has the answer."""

    async def waiting() -> None:
        async with asyncio.timeout(30):
            while not look():
                await asyncio.sleep(0.005)

    asyncio.run(waiting())


def test_an_expired_deadline_sends_nothing_by_httpx(stage: Any) -> None:
    mesh, before = stage.front_mesh, stage.back.seen
    with entered(InboundContext(deadline=mesh.clock() - 1)):
        with httpx.Client(transport=mesh.httpx_transport()) as client, pytest.raises(httpx.TimeoutException) as caught:
            client.get("http://back/")
    assert isinstance(caught.value.mesh, meshlib.DeadlineExceeded)  # type: ignore[attr-defined]
    assert (0, before) == (caught.value.mesh.attempts, stage.back.seen)  # type: ignore[attr-defined]


async def test_an_expired_deadline_sends_nothing_by_async_httpx(stage: Any) -> None:
    mesh, before = stage.front_mesh, stage.back.seen
    with entered(InboundContext(deadline=mesh.clock() - 1)):
        async with httpx.AsyncClient(transport=mesh.async_httpx_transport()) as client:
            with pytest.raises(httpx.TimeoutException):
                await client.get("http://back/")
    assert before == stage.back.seen


def test_an_expired_deadline_sends_nothing_by_grpc(stage: Any) -> None:
    mesh, before = stage.front_mesh, stage.back.seen
    with mesh.channel("xds:///back:81") as channel, entered(InboundContext(deadline=mesh.clock() - 1)):
        unary, stream = channel.unary_unary(METHOD), channel.unary_stream(METHOD)
        for attempt in (lambda: unary(b"", timeout=5), lambda: unary.future(b"").result(), lambda: list(stream(b""))):
            with pytest.raises(grpc.RpcError) as caught:
                attempt()
            assert grpc.StatusCode.DEADLINE_EXCEEDED is caught.value.code()
    assert before == stage.back.seen


async def test_an_expired_deadline_sends_nothing_by_aio_grpc(stage: Any) -> None:
    mesh, before = stage.front_mesh, stage.back.seen
    with entered(InboundContext(deadline=mesh.clock() - 1)):
        async with mesh.aio_channel("xds:///back:81") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(METHOD)(b"", timeout=5)
    assert (grpc.StatusCode.DEADLINE_EXCEEDED, before) == (caught.value.code(), stage.back.seen)


def test_an_expired_deadline_runs_no_function(stage: Any) -> None:
    mesh = stage.front_mesh

    @mesh.call("back")
    def work(endpoint: meshlib.Endpoint) -> None:
        raise AssertionError("must not run")

    with entered(InboundContext(deadline=mesh.clock() - 1)), pytest.raises(meshlib.DeadlineExceeded):
        work()


def test_an_unknown_service_is_not_waited_for_longer_than_the_request(stage: Any) -> None:
    mesh = stage.front_mesh
    with entered(InboundContext(deadline=mesh.clock() - 1)), pytest.raises(meshlib.DeadlineExceeded, match="not ready"):
        mesh.wait_target("never-heard-of:9999")


def test_a_functions_own_calls_are_below_its_attempt(stage: Any, spans: InMemorySpanExporter) -> None:
    mesh = stage.front_mesh

    @mesh.call("back", method="GET")
    def work(endpoint: meshlib.Endpoint) -> Any:
        with httpx.Client(transport=mesh.httpx_transport()) as client:
            return client.get("http://back/").json()

    seen = work()
    wait_for(lambda: len(spans.get_finished_spans()) == 5)
    by_id = {span.context.span_id: span for span in spans.get_finished_spans()}
    server = next(span for span in by_id.values() if span.kind is SpanKind.SERVER)
    names, span = [], server
    while span.parent is not None:
        span = by_id[span.parent.span_id]
        names.append(span.name)
    assert ["GET attempt", "GET", "GET attempt", "GET"] == names
    assert json.dumps(seen["headers"]).count("traceparent") == 1


@contextmanager
def serving(mesh: Any) -> Iterator[None]:
    """Be in a request that came with a trace and 4 s."""
    context = extracted(Headers([("traceparent", PARENT)]), otel_context.Context())
    assert context is not None
    token = otel_context.attach(context)
    try:
        with entered(InboundContext(deadline=mesh.clock() + 4.0)):
            yield
    finally:
        otel_context.detach(token)


def check(answer: bytes) -> None:
    seen = json.loads(answer)
    assert PARENT == seen["headers"]["traceparent"]
    assert 0 < seen["remaining_s"] < 4.1


def test_every_kind_of_rpc_carries_them(stage: Any) -> None:
    with stage.front_mesh.channel("xds:///back:81") as channel, serving(stage.front_mesh):
        check(channel.unary_unary(METHOD)(b""))
        check(channel.unary_unary(METHOD).future(b"").result())
        check(channel.stream_unary(METHOD)(iter([b""])))
        (message,) = channel.unary_stream(METHOD)(b"")
        check(message)
        (message,) = channel.stream_stream(METHOD)(iter([b""]))
        check(message)


def test_a_future_of_a_service_not_used_before_carries_them(stage: Any) -> None:
    """Its configuration is waited for by another thread."""
    mesh = stage.front_mesh
    with mesh.channel("xds:///back.default:81") as channel:
        with serving(mesh):
            future = channel.unary_unary(METHOD).future(b"")
        check(future.result())


async def test_every_kind_of_aio_rpc_carries_them(stage: Any) -> None:
    async with stage.front_mesh.aio_channel("xds:///back:81") as channel:
        with serving(stage.front_mesh):
            check(await channel.unary_unary(METHOD)(b""))
            check(await channel.stream_unary(METHOD)(iter([b""])))
            check(await channel.unary_stream(METHOD)(b"").read())


def test_interceptors_of_the_applications_own_channel_carry_them(stage: Any) -> None:
    mesh = stage.front_mesh
    (address,) = mesh.view.clusters["outbound|81||back.default.svc.cluster.local"].states
    with grpc.insecure_channel(address) as own:
        channel = mesh.intercept(own, target="back:81")
        with serving(mesh):
            check(channel.unary_unary(METHOD)(b""))


async def test_aio_interceptors_carry_them(stage: Any) -> None:
    mesh = stage.front_mesh
    (address,) = mesh.view.clusters["outbound|81||back.default.svc.cluster.local"].states
    async with grpc.aio.insecure_channel(address, interceptors=aio_interceptors(mesh, "back:81")) as channel:
        with serving(mesh):
            check(await channel.unary_unary(METHOD)(b""))
