"""Spans of outbound calls, and the headers that carry the trace.

A call has a CLIENT span from its beginning to its end: to the end of the response body, of the stream, or of the
function. Each attempt has a CLIENT span below it, until its status is known; the headers that go out name the attempt,
so a server's span hangs under the attempt that reached it.

All of that sits between a `Call` and whoever drives it, hence `begin_call` is all that a client needs. When nobody takes
spans and no trace came in, it returns a plain `Call`.

What an application says itself has the last word when no span of this process is current: `traceparent` on a request
goes out as it is (spans of the mesh join that trace). With a current span that header is ours to write.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final, TypeVar

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.util.types import AttributeValue

from meshlib.call import Attempt, Call, Done, RaceStep, Step
from meshlib.clients.source import MeshSource
from meshlib.model.outcome import Failure, LocalReply, Outcome, Response
from meshlib.model.profile import GRPC
from meshlib.model.request import Headers, RequestHead
from meshlib.routing.headers import with_headers
from meshlib.runtime.context import peek_request, with_handed_on
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
from meshlib.view import TargetView

__all__ = ["TracedCall", "attempt_scope", "begin_call"]

S = TypeVar("S", Step, RaceStep)

_PORTS: Final = {"http": 80, "https": 443}
_NOTHING: Final = nullcontext()


def begin_call(
    mesh: MeshSource,
    target: TargetView,
    head: RequestHead,
    *,
    now: float,
    timeout_s: float | None,
    replayable: bool = True,
    can_hedge: bool = False,
) -> Call:
    """Make a call of a mesh, traced if somebody wants to know.

    Args:
        timeout_s: The application's own limit, with that of the request being served here; None: none.
        replayable: The body can be sent again.
        can_hedge: It can be sent by several at once, and the client can run attempts beside each other.
    """
    inbound = peek_request()
    if inbound is not None and inbound.handed_on:
        head = with_handed_on(head, inbound.handed_on)
    is_repeated = inbound is not None and inbound.attempt > 1
    if mesh.tracing.is_idle():
        return Call(
            target,
            head,
            rng=mesh.rng,
            now=now,
            timeout_s=timeout_s,
            replayable=replayable,
            guard_unsafe=mesh.guard_unsafe,
            can_hedge=can_hedge,
            is_repeated=is_repeated,
            hook=mesh.emit,
            meter=getattr(mesh, "_meter", None),
        )
    return TracedCall(
        mesh,
        target,
        head,
        now=now,
        timeout_s=timeout_s,
        replayable=replayable,
        can_hedge=can_hedge,
        is_repeated=is_repeated,
    )


def attempt_scope(call: Call) -> AbstractContextManager[None]:
    """Make the latest attempt's span the current one for a block: for attempts that are a function's own work."""
    return call.scope() if isinstance(call, TracedCall) else _NOTHING


class TracedCall(Call):
    """A call that makes spans, or only passes a trace on."""

    __slots__ = ("_trace",)

    def __init__(
        self,
        mesh: MeshSource,
        target: TargetView,
        head: RequestHead,
        *,
        now: float,
        timeout_s: float | None,
        replayable: bool = True,
        can_hedge: bool = False,
        is_repeated: bool = False,
    ) -> None:
        """As `begin_call`."""
        Call.__init__(
            self,
            target,
            head,
            rng=mesh.rng,
            now=now,
            timeout_s=timeout_s,
            replayable=replayable,
            guard_unsafe=mesh.guard_unsafe,
            can_hedge=can_hedge,
            is_repeated=is_repeated,
            hook=mesh.emit,
            meter=getattr(mesh, "_meter", None),
        )
        self._trace: _Trace | None = None
        try:
            self._trace = _Trace(mesh.tracing, head)
        except Exception:
            report("starting a span")

    def start(self, now: float) -> Step:
        """As `Call.start`."""
        return self._traced(Call.start(self, now))

    def slept(self, now: float) -> Step:
        """As `Call.slept`."""
        return self._traced(Call.slept(self, now))

    def finished(self, outcome: Outcome, now: float) -> Step:
        """As `Call.finished`; ends the attempt's span if the outcome says its status."""
        step = Call.finished(self, outcome, now)
        if self._trace is not None:
            try:
                self._trace.end_attempt(len(self._tried), outcome)
            except Exception:
                report("ending a span")
        return self._traced(step)

    def racing(self, now: float) -> RaceStep:
        """As `Call.racing`."""
        return self._traced(Call.racing(self, now))

    def waited(self, now: float) -> RaceStep:
        """As `Call.waited`."""
        return self._traced(Call.waited(self, now))

    def ended(self, attempt: Attempt, outcome: Outcome, now: float) -> RaceStep:
        """As `Call.ended`; ends the attempt's span if the outcome says its status."""
        step = Call.ended(self, attempt, outcome, now)
        if self._trace is not None:
            try:
                self._trace.end_attempt(attempt.number, outcome)
                if isinstance(step, Done):
                    self._trace.end_others(attempt.number)
            except Exception:
                report("ending a span")
        return self._traced(step)

    def close(self, now: float, *, status: int = 0, grpc_status: int | None = None) -> None:
        """As `Call.close`; ends the spans."""
        Call.close(self, now, status=status, grpc_status=grpc_status)
        found, self._trace = self._trace, None
        if found is not None:
            try:
                found.end(self, status, grpc_status)
            except Exception:
                report("ending a span")

    def _traced(self, step: S) -> S:
        if self._trace is not None and isinstance(step, Attempt):
            try:
                step.head = self._trace.begin_attempt(self, step)
            except Exception:
                report("starting a span")
        return step

    def scope(self) -> AbstractContextManager[None]:
        """As `attempt_scope`."""
        return _NOTHING if self._trace is None else _attached(self._trace.context)


@contextmanager
def _attached(context: Context) -> Iterator[None]:
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)


class _Trace:
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

    def begin_attempt(self, call: Call, attempt: Attempt) -> RequestHead:
        """Start the span of an attempt; returns the head that names it."""
        if self._tracer is not None and self._span is not None and self._span.is_recording():
            host, port = split_authority(attempt.endpoint.address)
            attributes = {**self._attributes, "network.peer.address": host, "meshlib.cluster": call.cluster_name}
            if port is not None:
                attributes["network.peer.port"] = port
            if attempt.number > 1:
                key = "previous-rpc-attempts" if self._is_grpc else "http.request.resend_count"
                attributes[key] = attempt.number - 1
            span = self._tracer.start_span(f"{self._name} attempt", self._base, SpanKind.CLIENT, attributes)
            self._attempts[attempt.number] = span
            self.context = trace.set_span_in_context(span, self._base)
        return self._injected(attempt.head)

    def _injected(self, head: RequestHead) -> RequestHead:
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

    def end(self, call: Call, status: int, grpc_status: int | None) -> None:
        """End what is still open."""
        result = call.result
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
            span.set_attribute("meshlib.cluster", call.cluster_name)
            span.set_attribute("meshlib.route", "" if call.match is None else call.match.route_name)
            span.set_attribute("meshlib.attempts", call.attempts)
            span.set_attribute("meshlib.response_flags", call.flag or "-")
            _conclude(span, status, grpc_status if self._is_grpc else None, failure)
            trouble = call.flag.removeprefix("DI").lstrip(",")  # an injected delay alone is no failure
            if trouble and status < 400 and not failure and not grpc_status:
                span.set_attribute("error.type", trouble)  # cut off after the headers
                span.set_status(Status(StatusCode.ERROR))
        span.end()


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
