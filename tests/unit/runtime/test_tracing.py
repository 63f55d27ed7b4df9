"""What carries a trace, and when there is nothing to do."""

import pytest
from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider

from meshlib.model.request import Headers, RequestHead
from meshlib.runtime.tracing import (
    Tracing,
    extracted,
    has_local_span,
    limited_baggage,
    span_name,
    split_authority,
    split_method,
    trace_fields,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


def test_without_sdk_and_context_there_is_nothing_to_do() -> None:
    tracing = Tracing()
    assert (True, None) == (tracing.is_idle(), tracing.tracer())


def test_a_current_context_is_something_to_pass_on() -> None:
    tracing = Tracing()
    token = otel_context.attach(baggage.set_baggage("tenant", "a"))
    try:
        assert (False, None) == (tracing.is_idle(), tracing.tracer())
    finally:
        otel_context.detach(token)


def test_a_provider_of_its_own_takes_the_spans() -> None:
    tracing = Tracing(TracerProvider())
    tracer = tracing.tracer()
    assert not tracing.is_idle()
    assert tracer is not None
    assert tracer is tracing.tracer()


def test_no_spans_of_what_an_exporter_sends() -> None:
    tracing = Tracing(TracerProvider())
    token = otel_context.attach(otel_context.set_value("suppress_instrumentation", True))
    try:
        assert tracing.tracer() is None
    finally:
        otel_context.detach(token)


def test_headers_without_a_trace_give_no_context() -> None:
    assert extracted(Headers([("accept", "*/*")]), Context()) is None


def test_headers_give_trace_state_and_baggage() -> None:
    headers = Headers([("traceparent", PARENT), ("tracestate", "a=1,b=2"), ("baggage", "tenant=a")])
    context = extracted(headers, Context())
    assert context is not None
    span = trace.get_current_span(context).get_span_context()
    assert (TRACE, {"a": "1", "b": "2"}) == (trace.format_trace_id(span.trace_id), dict(span.trace_state))
    assert "a" == baggage.get_baggage("tenant", context)


def test_a_span_from_outside_is_not_local() -> None:
    context = extracted(Headers([("traceparent", PARENT)]), Context())
    assert context is not None
    assert not has_local_span(context)
    span = TracerProvider().get_tracer("t").start_span("s", context)
    assert has_local_span(trace.set_span_in_context(span, context))


def test_fields_name_spans_and_not_baggage() -> None:
    assert {"traceparent", "tracestate"} == trace_fields()


@pytest.mark.parametrize(
    ("authority", "expected"),
    [
        ("checkout", ("checkout", None)),
        ("checkout:8080", ("checkout", 8080)),
        ("[::1]:80", ("::1", 80)),
        ("[::1]", ("::1", None)),
        ("::1", ("::1", None)),
        ("unix:/run/a.sock", ("unix:/run/a.sock", None)),
        ("", ("", None)),
    ],
)
def test_authority_is_split(authority: str, expected: tuple[str, int | None]) -> None:
    assert expected == split_authority(authority)


def test_names_of_spans_are_few() -> None:
    names = [span_name(RequestHead(method, "a", "/users/7", Headers())) for method in ("GET", "FOO")]
    assert ["GET", "HTTP"] == names
    head = RequestHead("POST", "a", "/shop.Checkout/Pay", Headers(), is_grpc=True)
    assert ("shop.Checkout/Pay", ("shop.Checkout", "Pay")) == (span_name(head), split_method(head))


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("a=1", "a=1"),
        (",".join(f"k{n}=v" for n in range(64)), 64),
        (",".join(f"k{n}=v" for n in range(65)), 64),
        ("a=1," + "b=" + "x" * 8192 + ",c=1", "a=1"),
        ("a=" + "x" * 8190, "a=" + "x" * 8190),
        ("a=" + "x" * 8191, ""),
        ("," * 100_000, 64),
    ],
)
def test_baggage_goes_on_within_the_limits_of_w3c(given: str, left: str | int) -> None:
    """Whole members from the front; none is cut in two."""
    limited = limited_baggage(given)
    assert given.startswith(limited)
    assert len(limited) <= 8192
    assert left == (limited if isinstance(left, str) else limited.count(",") + 1)
