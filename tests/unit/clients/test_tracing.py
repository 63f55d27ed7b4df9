"""Spans and headers of calls, driven step by step."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry import context as otel_context
from opentelemetry.propagators.b3 import B3SingleFormat
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

from meshlib.call import Attempt, Call, Done, Sleep, Step
from meshlib.clients.tracing import TracedCall, attempt_scope, begin_call
from meshlib.model.outcome import Failure, FailureKind, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.runtime.context import InboundContext, entered
from meshlib.runtime.tracing import extracted
from meshlib.testing import FakeMesh, mesh_source, service

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
OTHER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
RETRY = RetryPolicy(retry_on=frozenset({"5xx", "connect-failure", "cancelled", "unavailable"}), num_retries=2)
SNAPSHOT = service("checkout", "10.0.0.1:8080", timeout_s=2.0, retry=RETRY, include_attempt_count=True)
OK = Response(200)


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(spans: InMemorySpanExporter) -> FakeMesh:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return mesh_source(SNAPSHOT, tracer_provider=provider)


@pytest.fixture
def untraced() -> FakeMesh:
    return mesh_source(SNAPSHOT)


def head(*headers: tuple[str, str]) -> RequestHead:
    return RequestHead("GET", "checkout", "/orders/7?token=s3cret", Headers(headers))


def rpc(*headers: tuple[str, str]) -> RequestHead:
    return RequestHead("POST", "checkout", "/shop.Checkout/Pay", Headers(headers), is_grpc=True)


def begin(mesh: FakeMesh, request: RequestHead | None = None) -> Call:
    return begin_call(mesh, mesh.wait_target("checkout"), request or head(), now=mesh.clock(), timeout_s=None)


def attempt_of(call: Call, step: Step, now: float = 0.0) -> Attempt:
    while isinstance(step, Sleep):
        step = call.slept(now)
    assert isinstance(step, Attempt)
    return step


def run(mesh: FakeMesh, request: RequestHead | None = None) -> Attempt:
    """Carry a call to its end; returns its attempt."""
    call = begin(mesh, request)
    attempt = attempt_of(call, call.start(mesh.clock()))
    call.finished(OK if not call.head.is_grpc else Response(200, grpc_status=0), mesh.clock())
    call.close(mesh.clock())
    return attempt


@contextmanager
def current(*headers: tuple[str, str]) -> Iterator[None]:
    """Be in the context that headers of an inbound request bring."""
    context = extracted(Headers(headers), otel_context.Context())
    assert context is not None
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def test_without_sdk_and_trace_the_call_is_a_plain_one(untraced: FakeMesh) -> None:
    call = begin(untraced)
    assert Call is type(call)
    sent = attempt_of(call, call.start(0.0)).head.headers
    assert "traceparent" not in sent


def test_without_sdk_a_trace_goes_on_unchanged(untraced: FakeMesh) -> None:
    with current(("traceparent", PARENT), ("tracestate", "vendor=1"), ("baggage", "tenant=a")):
        sent = run(untraced).head.headers
    assert (PARENT, "vendor=1", "tenant=a") == tuple(
        sent.get(name) for name in ("traceparent", "tracestate", "baggage")
    )


def test_every_attempt_passes_the_trace_on(untraced: FakeMesh) -> None:
    with current(("traceparent", PARENT)):
        call = begin(untraced)
        first = attempt_of(call, call.start(0.0))
    second = attempt_of(call, call.finished(Response(503), 0.0))
    assert [PARENT, PARENT] == [first.head.headers.get("traceparent"), second.head.headers.get("traceparent")]
    assert "2" == second.head.headers.get("x-envoy-attempt-count")


def test_call_and_attempt_have_client_spans(traced: FakeMesh, spans: InMemorySpanExporter) -> None:
    run(traced)
    found = by_name(spans)
    assert {"GET", "GET attempt"} == set(found)
    call, attempt = found["GET"], found["GET attempt"]
    assert (SpanKind.CLIENT, SpanKind.CLIENT) == (call.kind, attempt.kind)
    assert attempt.parent is not None and attempt.parent.span_id == call.context.span_id
    assert {
        "http.request.method": "GET",
        "url.full": "http://checkout/orders/7",
        "server.address": "checkout",
        "server.port": 80,
        "http.response.status_code": 200,
        "meshlib.cluster": "checkout",
        "meshlib.route": "default",
        "meshlib.response_flags": "-",
        "meshlib.attempts": 1,
    } == dict(call.attributes or {})
    assert ("10.0.0.1", 8080) == tuple(
        (attempt.attributes or {})[f"network.peer.{name}"] for name in ("address", "port")
    )


def test_headers_name_the_attempt(traced: FakeMesh, spans: InMemorySpanExporter) -> None:
    sent = run(traced).head.headers.get("traceparent")
    attempt = by_name(spans)["GET attempt"].context
    assert sent is not None
    assert f"00-{trace.format_trace_id(attempt.trace_id)}-{trace.format_span_id(attempt.span_id)}" == sent[:-3]
    assert int(sent[-2:], 16) & trace.TraceFlags.SAMPLED


def test_spans_continue_the_trace_that_came_in(traced: FakeMesh, spans: InMemorySpanExporter) -> None:
    with current(("traceparent", PARENT), ("tracestate", "vendor=1")):
        sent = run(traced).head.headers
    assert {TRACE} == {trace.format_trace_id(span.context.trace_id) for span in spans.get_finished_spans()}
    assert "vendor=1" == sent.get("tracestate")


def test_a_retry_is_a_second_attempt_span(traced: FakeMesh, spans: InMemorySpanExporter) -> None:
    call = begin(traced)
    attempt_of(call, call.start(0.0))
    attempt_of(call, call.finished(Failure(FailureKind.CONNECT, False, OSError("refused")), 0.0))
    call.finished(OK, 0.0)
    call.close(0.0)
    first, second, whole = spans.get_finished_spans()
    assert ("connect", StatusCode.ERROR) == ((first.attributes or {})["error.type"], first.status.status_code)
    assert "refused" == first.status.description
    assert 1 == (second.attributes or {})["http.request.resend_count"]
    assert (2, StatusCode.UNSET) == ((whole.attributes or {})["meshlib.attempts"], whole.status.status_code)


def test_call_span_ends_with_the_body_and_the_attempts_with_the_headers(
    traced: FakeMesh, spans: InMemorySpanExporter
) -> None:
    call = begin(traced)
    attempt_of(call, call.start(0.0))
    assert isinstance(call.finished(OK, 0.0), Done)
    assert ["GET attempt"] == [span.name for span in spans.get_finished_spans()]
    call.close(0.0)
    call.close(0.0)
    assert ["GET attempt", "GET"] == [span.name for span in spans.get_finished_spans()]


def test_rpc_spans_have_the_status_of_the_stream(traced: FakeMesh, spans: InMemorySpanExporter) -> None:
    call = begin(traced, rpc())
    attempt_of(call, call.start(0.0))
    call.finished(Response(200), 0.0)  # the first message
    assert () == spans.get_finished_spans()
    call.close(0.0, grpc_status=14)
    attempt, whole = spans.get_finished_spans()
    for span in (attempt, whole):
        assert ("grpc", "shop.Checkout", "Pay", 14) == tuple(
            (span.attributes or {})[f"rpc.{name}"] for name in ("system", "service", "method", "grpc.status_code")
        )
        assert StatusCode.ERROR is span.status.status_code
        assert "http.response.status_code" not in (span.attributes or {})
    assert ("shop.Checkout/Pay", "shop.Checkout/Pay attempt") == (whole.name, attempt.name)


def test_an_abandoned_call_ends_its_spans(traced: FakeMesh, spans: InMemorySpanExporter) -> None:
    call = begin(traced)
    attempt_of(call, call.start(0.0))
    call.close(0.0)
    assert ["cancelled", "cancelled"] == [(span.attributes or {})["error.type"] for span in spans.get_finished_spans()]


@pytest.mark.parametrize(("flag", "expected"), [("UC", StatusCode.ERROR), ("DI", StatusCode.UNSET)])
def test_a_response_that_is_cut_off_is_an_error_of_the_call(
    traced: FakeMesh, spans: InMemorySpanExporter, flag: str, expected: StatusCode
) -> None:
    call = begin(traced)
    attempt_of(call, call.start(0.0))
    call.finished(OK, 0.0)
    call.flag = flag
    call.close(0.0)
    assert expected is by_name(spans)["GET"].status.status_code


def test_the_meshs_own_answer_is_on_the_span(spans: InMemorySpanExporter) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    mesh = mesh_source(service("checkout"), tracer_provider=provider)
    call = begin(mesh)
    assert isinstance(call.start(0.0), Done)
    call.close(0.0)
    (span,) = spans.get_finished_spans()
    attributes = span.attributes or {}
    assert ("UH", 503, 0) == tuple(
        attributes[name] for name in ("meshlib.response_flags", "http.response.status_code", "meshlib.attempts")
    )


def test_what_the_application_wrote_stays_without_a_span_of_ours(untraced: FakeMesh) -> None:
    with current(("traceparent", PARENT), ("tracestate", "vendor=1"), ("baggage", "tenant=a")):
        sent = run(untraced, head(("traceparent", OTHER))).head.headers
    assert ((OTHER,), None, "tenant=a") == (sent.all("traceparent"), sent.get("tracestate"), sent.get("baggage"))


def test_spans_join_the_trace_that_the_application_wrote(traced: FakeMesh, spans: InMemorySpanExporter) -> None:
    sent = run(traced, head(("traceparent", OTHER))).head.headers
    assert (OTHER,) == sent.all("traceparent")
    assert {OTHER[3:35]} == {trace.format_trace_id(span.context.trace_id) for span in spans.get_finished_spans()}


def test_a_current_span_writes_the_header_anew(traced: FakeMesh) -> None:
    tracer = traced.tracing.tracer()
    assert tracer is not None
    with tracer.start_as_current_span("mine") as mine:
        sent = run(traced, head(("traceparent", OTHER), ("tracestate", "old=1"))).head.headers
    (written,) = sent.all("traceparent")
    assert trace.format_trace_id(mine.get_span_context().trace_id) == written[3:35]
    assert "tracestate" not in sent


def test_an_unsampled_call_says_so_and_has_no_attempt_span() -> None:
    mesh = mesh_source(SNAPSHOT, tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    sent = run(mesh).head.headers.get("traceparent")
    assert sent is not None
    assert not int(sent[-2:], 16) & trace.TraceFlags.SAMPLED


def test_baggage_travels_without_a_trace(untraced: FakeMesh) -> None:
    token = otel_context.attach(baggage.set_baggage("tenant", "a"))
    try:
        sent = run(untraced).head.headers
    finally:
        otel_context.detach(token)
    assert ("tenant=a", None) == (sent.get("baggage"), sent.get("traceparent"))


def test_another_propagator_writes_the_attempt_into_its_headers(
    traced: FakeMesh, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(propagate, "_HTTP_TEXT_FORMAT", B3SingleFormat())  # set_global_textmap, undone after the test
    with current(("b3", f"{TRACE}-b7ad6b7169203331-1")):
        sent = run(traced).head.headers
    attempt = by_name(spans)["GET attempt"].context
    assert (f"{TRACE}-{trace.format_span_id(attempt.span_id)}-1",) == sent.all("b3")
    assert "traceparent" not in sent


def test_too_much_baggage_stays_behind(untraced: FakeMesh) -> None:
    context = otel_context.get_current()
    for number in range(100):
        context = baggage.set_baggage(f"k{number}", "v", context)
    token = otel_context.attach(context)
    try:
        sent = run(untraced).head.headers
    finally:
        otel_context.detach(token)
    assert 64 == len((sent.get("baggage") or "").split(","))


@pytest.mark.parametrize("request_of", [head, rpc])
def test_headers_of_the_request_being_served_go_on(untraced: FakeMesh, request_of: Any) -> None:
    with entered(InboundContext(handed_on=(("b3", "0"), ("priority", "u=1")))):
        sent = run(untraced, request_of(("priority", "u=6"))).head.headers
    assert (("0",), ("u=6",)) == (sent.all("b3"), sent.all("priority"))


def test_attempt_is_current_in_its_scope(traced: FakeMesh, spans: InMemorySpanExporter) -> None:
    call = begin(traced)
    attempt_of(call, call.start(0.0))
    with attempt_scope(call):
        inside = trace.get_current_span().get_span_context()
    call.finished(OK, 0.0)
    call.close(0.0)
    assert inside.span_id == by_name(spans)["GET attempt"].context.span_id
    assert not trace.get_current_span().get_span_context().is_valid


def test_scope_of_a_plain_call_does_nothing(untraced: FakeMesh) -> None:
    with attempt_scope(begin(untraced)):
        assert not otel_context.get_current()


class _Broken:
    def start_span(self, *args: object, **kwargs: object) -> None:
        raise RuntimeError("broken")

    def get_tracer(self, *args: object, **kwargs: object) -> "_Broken":
        return self


def test_trouble_with_spans_is_no_trouble_of_the_call(caplog: pytest.LogCaptureFixture) -> None:
    mesh = mesh_source(SNAPSHOT, tracer_provider=_Broken())  # type: ignore[arg-type]
    call = begin(mesh)
    assert TracedCall is type(call)
    attempt_of(call, call.start(0.0))
    assert isinstance(call.finished(OK, 0.0), Done)
    call.close(0.0)
    assert 0 == mesh.cluster("checkout").breaker.active
