"""The spans of one outbound call and of its attempts, and the headers that name them.

What an application says itself has the last word when no span of this process is current: `traceparent` on a request
goes out as it is (spans of the mesh join that trace). With a current span that header is ours to write.
"""

from typing import Final

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from meshlib.model.endpoint import Endpoint
from meshlib.model.outcome import Failure, LocalReply, Outcome, Response
from meshlib.model.profile import GRPC
from meshlib.model.request import Headers, RequestHead
from meshlib.routing.headers import with_headers
from meshlib.runtime.tracing import (
    BAGGAGE,
    Tracing,
    extracted,
    has_local_span,
    limited_baggage,
    report,
    span_name,
    split_authority,
    split_method,
    trace_fields,
)

__all__ = ["Trace", "begin_trace"]

_PORTS: Final = {"http": 80, "https": 443}


class Trace:
    """The spans of one call.

    Attributes:
        context: What the attempt at hand passes on.
    """

    __slots__ = ("_attempts", "_attributes", "_base", "_is_foreign", "_is_grpc", "_name", "_span", "_tracer", "context")

    def __init__(self, tracing: Tracing, head: RequestHead) -> None:
        base = otel_context.get_current()
        # The application has written a trace of its own, which is not that of a span made in this process.
        self._is_foreign = not has_local_span(base) and not trace_fields().isdisjoint(
            name for name, _ in head.headers.items
        )
        self._is_grpc = head.profile is GRPC
        self._tracer: Tracer | None = tracing.tracer()
        self._span: Span | None = None
        self._attempts: dict[int, Span] = {}  # by number: several, where attempts run beside each other
        self.context: Context = base
        if self._tracer is not None:
            parent = (extracted(head.headers, base) or base) if self._is_foreign else base
            self._name = span_name(head)
            self._attributes = _attributes(head)
            self._span = self._tracer.start_span(self._name, parent, SpanKind.CLIENT, self._attributes)
            self.context = trace.set_span_in_context(self._span, base)
        self._base = self.context

    def begin_attempt(self, cluster: str, endpoint: Endpoint, number: int, head: RequestHead) -> RequestHead:
        """Start the span of an attempt; returns the head that names it."""
        if self._tracer is not None and self._span is not None and self._span.is_recording():
            host, port = split_authority(endpoint.address)
            attributes = {**self._attributes, "network.peer.address": host, "meshlib.cluster": cluster}
            if port is not None:
                attributes["network.peer.port"] = port
            if number > 1:
                key = "previous-rpc-attempts" if self._is_grpc else "http.request.resend_count"
                attributes[key] = number - 1
            span = self._tracer.start_span(f"{self._name} attempt", self._base, SpanKind.CLIENT, attributes)
            self._attempts[number] = span
            self.context = trace.set_span_in_context(span, self._base)
        return self.injected(head)

    def injected(self, head: RequestHead) -> RequestHead:
        """Return a head that names the span of the attempt at hand."""
        carrier: dict[str, str] = {}
        propagate.inject(carrier, self.context)
        if not carrier:
            return head
        fields, items = trace_fields(), head.headers.items
        written = {name.lower(): value for name, value in carrier.items()}
        if BAGGAGE in written:
            written[BAGGAGE] = limited_baggage(written[BAGGAGE])
            if not written[BAGGAGE]:
                del written[BAGGAGE]
        if self._is_foreign:
            present = {name for name, _ in items}
            written = {name: value for name, value in written.items() if name not in fields and name not in present}
        elif not fields.isdisjoint(written):
            # All of them at once: a tracestate that stays behind would belong to another traceparent.
            items = tuple(item for item in items if item[0] not in fields)
        kept = (item for item in items if item[0] not in written)
        return with_headers(head, Headers((*kept, *written.items())))

    def end_attempt(self, number: int, outcome: Outcome) -> None:
        """End the span of an attempt, unless it is a stream that goes on."""
        if isinstance(outcome, Failure):
            self._end_attempt(number, 0, None, outcome)
        elif not self._is_grpc or outcome.grpc_status is not None:
            self._end_attempt(number, outcome.status, outcome.grpc_status, None)

    def end_others(self, number: int) -> None:
        """End the spans of attempts that are given up, as this one gave the result."""
        for other in [key for key in self._attempts if key != number]:
            self._end_attempt(other, 0, None, None)

    def _end_attempt(self, number: int, status: int, grpc_status: int | None, failure: Failure | None) -> None:
        span = self._attempts.pop(number, None)
        if span is not None:
            _conclude(span, status, grpc_status if self._is_grpc else None, failure)
            span.end()

    def end(
        self,
        cluster: str,
        route: str,
        attempts: int,
        flag: str,
        result: Response | Failure | LocalReply | None,
        status: int,
        grpc_status: int | None,
    ) -> None:
        """End what is still open.

        Args:
            cluster: What the call came to, as `CallFacts` has it; so with those that follow.
            status: As `Call.close` was told; so with `grpc_status`.
        """
        failure = result if isinstance(result, Failure) else None
        if isinstance(result, Response | LocalReply):
            status = status or result.status
            grpc_status = result.grpc_status if grpc_status is None else grpc_status
        for number in tuple(self._attempts):
            self._end_attempt(number, status, grpc_status, failure)
        span = self._span
        if span is None:
            return
        if span.is_recording():
            span.set_attribute("meshlib.cluster", cluster)
            span.set_attribute("meshlib.route", route)
            span.set_attribute("meshlib.attempts", attempts)
            span.set_attribute("meshlib.response_flags", flag or "-")
            _conclude(span, status, grpc_status if self._is_grpc else None, failure)
            trouble = flag.removeprefix("DI").lstrip(",")  # an injected delay alone is no failure
            if trouble and status < 400 and not failure and not grpc_status:
                span.set_attribute("error.type", trouble)  # cut off after the headers
                span.set_status(Status(StatusCode.ERROR))
        span.end()


def begin_trace(tracing: Tracing, head: RequestHead) -> Trace | None:
    """Begin the spans of a call; None: it cannot be, which is no trouble of the call."""
    try:
        return Trace(tracing, head)
    except Exception:
        report("starting a span")
        return None


def _attributes(head: RequestHead) -> dict[str, AttributeValue]:
    host, port = split_authority(head.authority)
    attributes: dict[str, AttributeValue] = {"server.address": host}
    if head.profile is GRPC:
        service, method = split_method(head)
        attributes |= {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    else:
        is_known = span_name(head) == head.method
        attributes["http.request.method"] = head.method if is_known else "_OTHER"
        if not is_known:
            attributes["http.request.method_original"] = head.method
        # Without the query: that is where tokens and names of people are, and this goes to another system.
        attributes["url.full"] = f"{head.scheme}://{head.authority}{head.path.partition('?')[0]}"
        port = port or _PORTS.get(head.scheme)
    if port is not None:
        attributes["server.port"] = port
    return attributes


def _conclude(span: Span, status: int, grpc_status: int | None, failure: Failure | None) -> None:
    """Write how it ended; clients take 4xx for an error as well."""
    error = ""
    if grpc_status is not None:
        span.set_attribute("rpc.grpc.status_code", grpc_status)
        error = "" if grpc_status == 0 else str(grpc_status)
    elif status and failure is None:
        span.set_attribute("http.response.status_code", status)
        error = "" if status < 400 else str(status)
    text = ""
    if failure is not None:
        error, text = failure.kind.value, str(failure.error or "")
    elif not status and grpc_status is None:
        error = "cancelled"
    if error:
        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR, text))
