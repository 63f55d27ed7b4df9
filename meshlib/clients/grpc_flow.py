"""One RPC, above the machine that decides: wait-for-ready, and the errors that its caller gets.

Shells drive a `Flow` as they would a `Call`. A wait-for-ready RPC that finds nobody to take it (no endpoint, nobody
answers, the configuration is not usable) is begun anew after a pause, until its deadline: gRPC's own flag would have
core wait for one endpoint only. Drops, limits and missing routes are final all the same, as in gRPC.
"""

import contextlib
from collections.abc import Callable
from typing import Any

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.call import Attempt, Call, Done, Sleep, Step
from meshlib.call.way import Way
from meshlib.clients.call_trace import Trace
from meshlib.clients.grpc_errors import CallInfo, Refusal, refusal_of_failure, refusal_of_reply
from meshlib.clients.source import MeshSource
from meshlib.clients.tracing import begin_call, join_call
from meshlib.errors import MeshError
from meshlib.model.outcome import NO_HEADERS, Failure, FailureKind, LocalReply, Outcome, Response
from meshlib.model.request import RequestHead
from meshlib.runtime.context import InboundContext
from meshlib.view import TargetView

__all__ = ["Flow", "pause_s"]

_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 1.0


def pause_s(number: int) -> float:
    """Return the pause before looking again for somebody to take a waiting RPC; `number` from 0."""
    return min(_FIRST_PAUSE_S * 2.0 ** min(number, 10), _LONGEST_PAUSE_S)


class Flow:
    """One RPC. Used by one thread or task at a time; `close` may come from another once the call is done.

    Attributes:
        call: The machine at work.
        deadline: Monotonic seconds, of the application; None: none.
        head: As the caller made it: what the mesh adds to it is not there.
    """

    __slots__ = (
        "_authority",
        "_can_hedge",
        "_is_committed",
        "_mesh",
        "_pauses",
        "_restarts",
        "call",
        "deadline",
        "head",
    )

    def __init__(
        self,
        mesh: MeshSource,
        authority: str,
        target: TargetView,
        head: RequestHead,
        now: float,
        timeout_s: float | None,
        wait_for_ready: bool,
        can_hedge: bool = False,
        call: Call | None = None,
    ) -> None:
        # By position, as it is called by every RPC.
        self._mesh = mesh
        self._authority = authority
        self.head = head
        self._is_committed = False
        self._can_hedge = can_hedge
        self._pauses = 0 if wait_for_ready else -1
        self._restarts = False
        self.deadline = None if timeout_s is None else now + timeout_s
        if call is None:
            call = begin_call(mesh, target, head, now=now, timeout_s=timeout_s, can_hedge=can_hedge)
        self.call = call

    @classmethod
    def joined(
        cls,
        mesh: MeshSource,
        authority: str,
        way: Way,
        begun: EndpointState | LocalReply,
        head: RequestHead,
        now: float,
        timeout_s: float | None,
        wait_for_ready: bool,
        inbound: InboundContext | None,
        trace: Trace | None,
        is_sent: bool,
    ) -> tuple["Flow", Step]:
        """Make the flow of an RPC that was begun along a way without one.

        Args:
            begun: As `Way.begin` returned it at `now`.
            inbound: The request that was being served then.
            trace: Of its attempt; None: there is none.
            is_sent: The attempt was made.

        Returns:
            The flow, and what `start` would have answered.
        """
        call, step = join_call(
            mesh, way, begun, head, now=now, timeout_s=timeout_s, inbound=inbound, trace=trace, is_sent=is_sent
        )
        flow = cls(mesh, authority, way.target, head, now, timeout_s, wait_for_ready, True, call)
        return flow, step if flow._pauses < 0 else flow._or_pause(step, now)

    def start(self, now: float) -> Step:
        """Begin."""
        step = self.call.start(now)
        return step if self._pauses < 0 else self._or_pause(step, now)

    def finished(self, outcome: Outcome, now: float) -> Step:
        """Go on after an attempt."""
        step = self.call.finished(outcome, now)
        return step if self._pauses < 0 else self._or_pause(step, now)

    def raced(self, done: Done, now: float) -> Step:
        """Go on after attempts that ran beside each other."""
        return done if self._pauses < 0 else self._or_pause(done, now)

    def slept(self, now: float) -> Step:
        """Go on after a pause, of the machine or for wait-for-ready."""
        if not self._restarts:
            step = self.call.slept(now)
            return step if self._pauses < 0 else self._or_pause(step, now)
        self._restarts = False
        target = self.call.target
        with contextlib.suppress(MeshError):  # gone for the moment: what it was will say why nobody answers
            target = self._mesh.target(self._authority) or target
        timeout_s = None if self.deadline is None else self.deadline - now
        self.call = begin_call(self._mesh, target, self.head, now=now, timeout_s=timeout_s, can_hedge=self._can_hedge)
        if self._is_committed:
            self.call.commit()
        return self.start(now)

    def commit(self) -> None:
        """The request cannot be sent again."""
        self._is_committed = True
        self.call.commit()

    def learn(self, trailers: Callable[[], Any], now: float) -> None:
        """Learn what the service says about its load, if anybody wants to know; after `finished`, before `close`.

        Args:
            trailers: Returns the trailing metadata of an attempt that has ended.
        """
        if self.call.wants_trailers:
            self.call.trailers(trailers() or (), now)

    def close(self, now: float, grpc_status: int | None = None) -> None:
        """Give back what the call holds; idempotent."""
        self.call.close(now, grpc_status=grpc_status)

    def info(self) -> CallInfo:
        """Return what errors of this call carry."""
        call = self.call
        return CallInfo(call.cluster_name, call.endpoints, call.attempts, call.flag)

    def marked(self, metadata: Any, make: Callable[..., Any] = tuple) -> Any:
        """Return initial metadata with the mark of a stateful session, if there is a new one (A55).

        Args:
            make: Makes metadata of pairs.
        """
        if not self.call.has_session:
            return metadata
        added = self.call.session_headers(NO_HEADERS).items
        return make((*(metadata or ()), *added)) if added else metadata

    def refusal(self, done: Done) -> Refusal | None:
        """Return why the mesh ends the call; None: the answer is the server's."""
        result = done.result
        if isinstance(result, Response):
            return None
        if isinstance(result, LocalReply):
            return refusal_of_reply(result, self.call.error)
        return refusal_of_failure(result, self.call.error)

    def _or_pause(self, step: Step, now: float) -> Step:
        if isinstance(step, Attempt | Sleep) or not _is_waitable(step) or self._is_committed:
            return step
        wait_s = pause_s(self._pauses)
        if self.deadline is not None:
            if now >= self.deadline:
                return step
            wait_s = min(wait_s, self.deadline - now)
        self._pauses += 1
        self._restarts = True
        self.call.close(now)
        return Sleep(wait_s)


def _is_waitable(done: Done) -> bool:
    result = done.result
    if isinstance(result, LocalReply):
        return result.flag in ("UH", "NC")
    return isinstance(result, Failure) and result.kind in (FailureKind.CONNECT, FailureKind.IDENTITY)
