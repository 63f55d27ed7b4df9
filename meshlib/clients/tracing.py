"""Spans of outbound calls, and the headers that carry the trace.

A call has a CLIENT span from its beginning to its end: to the end of the response body, of the stream, or of the
function. Each attempt has a CLIENT span below it, until its status is known; the headers that go out name the attempt,
so a server's span hangs under the attempt that reached it.

All of that sits between a `Call` and whoever drives it, hence `begin_call` is all that a client needs. When nobody takes
spans and no trace came in, it returns a plain `Call`.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final, TypeVar

from opentelemetry import context as otel_context
from opentelemetry.context import Context

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.call import Attempt, Call, Done, RaceStep, Step
from meshlib.call.way import Way
from meshlib.clients.call_trace import Trace, begin_trace
from meshlib.clients.source import MeshSource
from meshlib.model.outcome import LocalReply, Outcome
from meshlib.model.request import RequestHead
from meshlib.routing.table import RouteMatch
from meshlib.runtime.context import InboundContext, peek_request, with_handed_on
from meshlib.runtime.tracing import report
from meshlib.view import TargetView

__all__ = ["TracedCall", "attempt_scope", "begin_call", "join_call"]

S = TypeVar("S", Step, RaceStep)

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
    is_idle = mesh.tracing.is_idle()
    call = _make(mesh, target, head, now, timeout_s, replayable, can_hedge, inbound, Call if is_idle else TracedCall)
    if isinstance(call, TracedCall):
        call.trace = begin_trace(mesh.tracing, call.head)
    return call


def join_call(
    mesh: MeshSource,
    way: Way,
    begun: EndpointState | LocalReply,
    head: RequestHead,
    *,
    now: float,
    timeout_s: float | None,
    inbound: InboundContext | None,
    trace: Trace | None,
    is_sent: bool,
) -> tuple[Call, Step]:
    """Make the call of an RPC that was begun along a way without one.

    Args:
        begun: As `Way.begin` returned it at `now`.
        head: As the application made it.
        inbound: The request that was being served then.
        trace: That has a span for the attempt already; None: none was begun.
        is_sent: The attempt was made, maybe in another context than this one: it is too late for a trace.

    Returns:
        The call, and what its `start` would have answered.
    """
    is_traced = trace is not None or not (is_sent or mesh.tracing.is_idle())
    call = _make(mesh, way.target, head, now, timeout_s, True, True, inbound, TracedCall if is_traced else Call)
    if not isinstance(call, TracedCall):
        return call, call.join(way, begun, now)
    if trace is None:
        call.trace = begin_trace(mesh.tracing, call.head)
        return call, call.join(way, begun, now)
    step = call.join(way, begun, now)  # before it is known whose span the attempt has
    call.trace = trace
    if isinstance(step, Attempt):
        step.head = trace.injected(step.head)
    return call, step


def _make(
    mesh: MeshSource,
    target: TargetView,
    head: RequestHead,
    now: float,
    timeout_s: float | None,
    replayable: bool,
    can_hedge: bool,
    inbound: InboundContext | None,
    kind: type[Call],
) -> Call:
    if inbound is not None and inbound.handed_on:
        head = with_handed_on(head, inbound.handed_on)
    return kind(
        target,
        head,
        rng=mesh.rng,
        now=now,
        timeout_s=timeout_s,
        replayable=replayable,
        guard_unsafe=mesh.guard_unsafe,
        can_hedge=can_hedge,
        is_repeated=inbound is not None and inbound.attempt > 1,
        hook=mesh.emit,
        meter=getattr(mesh, "_meter", None),
    )


def attempt_scope(call: Call) -> AbstractContextManager[None]:
    """Make the latest attempt's span the current one for a block: for attempts that are a function's own work."""
    return call.scope() if isinstance(call, TracedCall) else _NOTHING


class TracedCall(Call):
    """A call that makes spans, or only passes a trace on.

    Attributes:
        trace: Set once it is made; None: it could not be begun, or the call is over.
    """

    trace: Trace | None = None

    def join(self, way: Way, begun: EndpointState | LocalReply, now: float) -> Step:
        """As `Call.join`."""
        return self._traced(Call.join(self, way, begun, now))

    def start(self, now: float, found: RouteMatch | LocalReply | None = None) -> Step:
        """As `Call.start`."""
        return self._traced(Call.start(self, now, found))

    def slept(self, now: float) -> Step:
        """As `Call.slept`."""
        return self._traced(Call.slept(self, now))

    def finished(self, outcome: Outcome, now: float) -> Step:
        """As `Call.finished`; ends the attempt's span if the outcome says its status."""
        step = Call.finished(self, outcome, now)
        if self.trace is not None:
            try:
                self.trace.end_attempt(len(self._tried), outcome)
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
        if self.trace is not None:
            try:
                self.trace.end_attempt(attempt.number, outcome)
                if isinstance(step, Done):
                    self.trace.end_others(attempt.number)
            except Exception:
                report("ending a span")
        return self._traced(step)

    def close(self, now: float, *, status: int = 0, grpc_status: int | None = None) -> None:
        """As `Call.close`; ends the spans."""
        Call.close(self, now, status=status, grpc_status=grpc_status)
        found, self.trace = self.trace, None
        if found is not None:
            try:
                route = "" if self.match is None else self.match.route_name
                name, flag = self.cluster_name, self.flag
                found.end(name, route, self.attempts, flag, self.result, status, grpc_status)
            except Exception:
                report("ending a span")

    def _traced(self, step: S) -> S:
        if self.trace is not None and isinstance(step, Attempt):
            try:
                step.head = self.trace.begin_attempt(self.cluster_name, step.endpoint, step.number, step.head)
            except Exception:
                report("starting a span")
        return step

    def scope(self) -> AbstractContextManager[None]:
        """As `attempt_scope`."""
        return _NOTHING if self.trace is None else _attached(self.trace.context)


@contextmanager
def _attached(context: Context) -> Iterator[None]:
    token = otel_context.attach(context)
    try:
        yield
    finally:
        otel_context.detach(token)
