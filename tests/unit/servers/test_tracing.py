"""The span of a request, and the trace that it hands to calls made meanwhile."""

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from meshlib.model.request import Headers, RequestHead
from meshlib.runtime.tracing import Tracing
from meshlib.servers.inbound import Inbound, InboundRequest
from meshlib.servers.peer import ANONYMOUS, Peer

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
GATEWAY = "spiffe://cluster.local/ns/default/sa/gateway"


@pytest.fixture
def spans(server_mesh) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    server_mesh.tracing = Tracing(provider)
    server_mesh.has_inbound = False
    return exporter


def begin(mesh, *headers: tuple[str, str], kind: str = "http", peer: Peer = ANONYMOUS) -> InboundRequest:
    head = RequestHead("GET", "checkout:8080", "/orders/7?token=s3cret", Headers(headers))
    if kind == "grpc":
        head = RequestHead("POST", "", "/shop.Checkout/Pay", Headers(headers), is_grpc=True)
    inbound = Inbound(mesh, kind=kind, service="checkout")
    return inbound.begin(head, peer, local=("127.0.0.1", 80), remote="10.0.0.9")


def test_a_request_has_a_server_span_below_its_caller(server_mesh, spans) -> None:
    request = begin(server_mesh, ("traceparent", PARENT), ("x-envoy-attempt-count", "2"), peer=Peer(GATEWAY))
    with request.entered():
        inside = trace.get_current_span().get_span_context()
    request.finish(200)
    request.finish(500)
    (span,) = spans.get_finished_spans()
    assert (SpanKind.SERVER, "GET", inside.span_id) == (span.kind, span.name, span.context.span_id)
    assert PARENT[3:52] == f"{trace.format_trace_id(span.parent.trace_id)}-{trace.format_span_id(span.parent.span_id)}"
    assert {
        "http.request.method": "GET",
        "url.scheme": "http",
        "url.path": "/orders/7",
        "server.address": "checkout",
        "server.port": 8080,
        "client.address": "10.0.0.9",
        "http.response.status_code": 200,
        "meshlib.attempt": 2,
        "meshlib.principal": GATEWAY,
        "meshlib.service": "checkout",
    } == dict(span.attributes)


def test_an_rpc_has_its_own_attributes(server_mesh, spans) -> None:
    request = begin(server_mesh, kind="grpc")
    request.finish(200, 14)
    (span,) = spans.get_finished_spans()
    assert ("shop.Checkout/Pay", StatusCode.ERROR) == (span.name, span.status.status_code)
    assert ("grpc", "shop.Checkout", "Pay", 14) == tuple(
        span.attributes[f"rpc.{name}"] for name in ("system", "service", "method", "grpc.status_code")
    )


@pytest.mark.parametrize(
    ("status", "grpc_status", "expected"),
    [
        (404, None, StatusCode.UNSET),
        (503, None, StatusCode.ERROR),
        (200, 0, StatusCode.UNSET),
        (200, 7, StatusCode.UNSET),
        (200, 13, StatusCode.ERROR),
    ],
)
def test_only_the_servers_own_faults_are_errors(server_mesh, spans, status, grpc_status, expected) -> None:
    begin(server_mesh, kind="http" if grpc_status is None else "grpc").finish(status, grpc_status)
    assert expected is spans.get_finished_spans()[0].status.status_code


def test_a_refused_request_has_a_span(server_mesh, spans) -> None:
    server_mesh.has_inbound = True
    request = begin(server_mesh)
    assert request.reply is not None
    request.finish(request.reply.status)
    assert 503 == spans.get_finished_spans()[0].attributes["http.response.status_code"]


def test_what_the_application_raises_is_on_the_span(server_mesh, spans) -> None:
    request = begin(server_mesh)
    with pytest.raises(KeyError):
        with request.entered():
            raise KeyError("id")
    request.finish(500)
    (span,) = spans.get_finished_spans()
    assert ["exception"] == [event.name for event in span.events]


def test_without_sdk_the_trace_is_current_as_it_came(server_mesh) -> None:
    server_mesh.has_inbound = False
    request = begin(server_mesh, ("traceparent", PARENT), ("baggage", "tenant=a"))
    with request.entered():
        inside = trace.get_current_span().get_span_context()
        assert "a" == baggage.get_baggage("tenant")
    assert (TRACE, True) == (trace.format_trace_id(inside.trace_id), inside.is_remote)
    assert not otel_context.get_current()


def test_without_sdk_and_trace_nothing_is_current(server_mesh) -> None:
    server_mesh.has_inbound = False
    with begin(server_mesh, ("accept", "*/*")).entered():
        assert not otel_context.get_current()


def test_another_instrumentations_server_span_stays_the_only_one(server_mesh, spans) -> None:
    tracer = server_mesh.tracing.tracer()
    with tracer.start_as_current_span("theirs", kind=SpanKind.SERVER) as theirs:
        request = begin(server_mesh, ("traceparent", PARENT))
        with request.entered():
            assert trace.get_current_span() is theirs
        request.finish(200)
    assert ["theirs"] == [span.name for span in spans.get_finished_spans()]


def test_a_context_is_left_even_if_the_application_forgot_its_own(server_mesh, spans) -> None:
    with begin(server_mesh).entered():
        otel_context.attach(baggage.set_baggage("left", "behind"))
    assert not otel_context.get_current()
