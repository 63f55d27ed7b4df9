"""The span of a request that comes in, and the trace that it brings.

A request has a SERVER span, child of what its headers name; with nobody to take spans, the context of its headers is
made current as it came, so that outbound calls pass it on. Where another instrumentation has made a span for the request
already (OpenTelemetry's own middleware, further out), that one stays the current one and there is no second.
"""

from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from meshlib.model.profile import GRPC
from meshlib.model.request import RequestHead
from meshlib.runtime.context import InboundContext
from meshlib.runtime.tracing import Tracing, extracted, has_local_span, span_name, split_authority, split_method

__all__ = ["RequestTrace", "begin_trace"]

# By OpenTelemetry's conventions these are the server's fault, the others the client's:
# UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
_SERVER_FAULTS: Final = frozenset({2, 4, 12, 13, 14, 15})


class RequestTrace:
    """One request's part in a trace.

    Attributes:
        context: For the application's code.
    """

    __slots__ = ("_span", "context")

    def __init__(self, context: Context, span: Span | None) -> None:
        self.context = context
        self._span = span

    def failed(self, error: BaseException) -> None:
        """Note what the application raised."""
        if self._span is not None:
            self._span.record_exception(error)

    def end(self, status: int, grpc_status: int | None) -> None:
        """End the span; idempotent.

        Args:
            grpc_status: None: it was not a gRPC call.
        """
        span, self._span = self._span, None
        if span is None:
            return
        if grpc_status is not None:
            span.set_attribute("rpc.grpc.status_code", grpc_status)
            error = str(grpc_status) if grpc_status in _SERVER_FAULTS else ""
        else:
            span.set_attribute("http.response.status_code", status)
            error = str(status) if status >= 500 else ""
        if error:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR))
        span.end()


def begin_trace(
    tracing: Tracing, head: RequestHead, inbound: InboundContext, *, remote: str, service: str
) -> RequestTrace | None:
    """Begin the trace of a request; None: there is none, or somebody else has begun it.

    Args:
        remote: IP address of the caller; may be empty.
        service: Name of this service; may be empty.
    """
    base = otel_context.get_current()
    if tracing.is_idle():
        context = extracted(head.headers, base)
        return None if context is None else RequestTrace(context, None)
    if has_local_span(base) and getattr(trace.get_current_span(base), "kind", None) is SpanKind.SERVER:
        return None
    context = extracted(head.headers, base)
    tracer = tracing.tracer()
    if tracer is None:
        return None if context is None else RequestTrace(context, None)
    parent = base if context is None else context
    span = _span(tracer, head, inbound, parent, remote, service)
    return RequestTrace(trace.set_span_in_context(span, parent), span)


def _span(
    tracer: Tracer, head: RequestHead, inbound: InboundContext, parent: Context, remote: str, service: str
) -> Span:
    attributes: dict[str, AttributeValue] = {"meshlib.attempt": inbound.attempt}
    if head.profile is GRPC:
        rpc_service, method = split_method(head)
        attributes |= {"rpc.system": "grpc", "rpc.service": rpc_service, "rpc.method": method}
    else:
        attributes |= {
            "http.request.method": head.method if span_name(head) == head.method else "_OTHER",
            "url.scheme": head.scheme,
            "url.path": head.path.partition("?")[0],
        }
    host, port = split_authority(head.authority)
    if host:
        attributes["server.address"] = host
        if port is not None:
            attributes["server.port"] = port
    if remote:
        attributes["client.address"] = remote
    if inbound.principal:
        attributes["meshlib.principal"] = inbound.principal
    if service:
        attributes["meshlib.service"] = service
    return tracer.start_span(span_name(head), parent, SpanKind.SERVER, attributes)
