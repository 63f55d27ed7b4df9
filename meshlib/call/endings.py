"""How a call ends, and what it gives back then: everything of the machine that is not the way there."""

from dataclasses import replace

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.call.facts import CallFacts, counted
from meshlib.call.limiting import Passage
from meshlib.call.replies import NO_CONTENT, OVERFLOW, OVERFLOW_AGAIN
from meshlib.call.report import attempt_finished, call_finished
from meshlib.call.retry_hosts import TriedPriorities
from meshlib.call.steps import Attempt, Done, Step
from meshlib.events import Hook, HostEjected, HostUnejected, Meter
from meshlib.model.endpoint import Endpoint
from meshlib.model.outcome import Failure, FailureKind, LocalReply, Outcome, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import HashPolicy
from meshlib.ports import Rng
from meshlib.resilience.circuit_breaker import CircuitBreaker
from meshlib.resilience.classify import as_grpc_answer, failure_flag
from meshlib.resilience.retry import RetryRules
from meshlib.routing.format import Scene
from meshlib.routing.replies import trailers_only
from meshlib.routing.route_match import FaultedReply
from meshlib.view import ClusterState, RoutePlan, TargetView

__all__ = ["CLOSED", "DELAYED", "DONE", "NEW", "RUNNING", "WAITING", "CallEndings", "Flight", "NoFurther"]

NEW, DELAYED, RUNNING, WAITING, DONE, CLOSED = range(6)
_STATES = ("new", "delayed by a fault", "attempt running", "waiting to retry", "done", "closed")


class NoFurther(Exception):
    """There can be no attempt beside those in flight."""


class Flight:
    """An attempt that others may run beside.

    Attributes:
        is_followed: The next attempt has begun, or waits to.
        is_recorded: Outlier detection has heard of it.
    """

    __slots__ = (
        "attempt",
        "began_at",
        "breaker",
        "cluster",
        "is_deadline_next",
        "is_followed",
        "is_recorded",
        "is_stream_next",
        "state",
    )

    def __init__(
        self,
        attempt: Attempt,
        state: EndpointState,
        breaker: CircuitBreaker,
        began_at: float,
        *,
        is_deadline_next: bool,
        is_stream_next: bool,
    ) -> None:
        self.attempt = attempt
        self.state = state
        self.cluster = attempt.cluster
        self.breaker = breaker
        self.began_at = began_at
        self.is_deadline_next = is_deadline_next
        self.is_stream_next = is_stream_next
        self.is_followed = False
        self.is_recorded = False


class CallEndings(CallFacts):
    """The state of a call, and its endings; `Call` adds the steps."""

    __slots__ = (
        "_began_at",
        "_breaker",
        "_can_hedge",
        "_ends_at",
        "_guard_unsafe",
        "_held",
        "_hook",
        "_idle_try_s",
        "_is_deadline_next",
        "_is_good",
        "_is_repeated",
        "_meter",
        "_one_layer",
        "_per_try_s",
        "_plan",
        "_replayable",
        "_retries_left",
        "_retry_breaker",
        "_rng",
        "_rules",
        "_state",
        "_timeout_at",
        "_timeout_s",
    )

    _plan: RoutePlan
    _rules: RetryRules
    _breaker: CircuitBreaker
    # Of the cluster that the route names: an aggregate has one of its own.
    _retry_breaker: CircuitBreaker
    _hash: int | None
    _one_layer: bool
    _per_try_s: float | None
    _timeout_at: float | None
    _retries_left: int
    _ends_at: float | None
    _is_deadline_next: bool
    _held: EndpointState | None

    # Hash policies of the cluster that the route names; empty: the route's count.
    _own_hashes: tuple[HashPolicy, ...] = ()
    _is_hedged = False
    _flights: list[Flight] = []  # noqa: RUF012 - `_begin_hedging` makes the call's own
    _patience_s: float | None = None
    _initial_left = 0
    _has_alternative = False
    _is_stream_next = False
    _wake_at: float | None = None
    _is_timeout_retry = False
    _priorities: TriedPriorities | None = None
    # Of a gRPC call: what it could not connect to, and where it goes instead.
    _unreachable: list[EndpointState] = []  # noqa: RUF012 - `_goes_elsewhere` makes the call's own
    _elsewhere: tuple[ClusterState, EndpointState] | None = None
    _named: list[str] | None = None
    _backoffs = 0
    _was_sent = False
    _is_asking = False
    _is_hashed = False
    _has_retry = False
    _has_fault = False
    # A gRPC call goes on after its headers: its status is counted when it is closed.
    _is_unrecorded = False
    _abort: LocalReply | None = None
    _reply: LocalReply | None = None  # of a route that answers by itself, after a fault

    def __init__(
        self,
        target: TargetView,
        head: RequestHead,
        *,
        rng: Rng,
        now: float,
        timeout_s: float | None = None,
        replayable: bool = True,
        guard_unsafe: bool = True,
        can_hedge: bool = False,
        is_repeated: bool = False,
        hook: Hook | None = None,
        meter: Meter | None = None,
    ) -> None:
        """Make a call; nothing happens before `start`.

        Args:
            timeout_s: The application's own limit for the whole call; None: none. It caps the route's.
            replayable: The body can be sent again.
            guard_unsafe: Repeat what may have been processed only when that does no harm.
            can_hedge: The shell can run attempts beside each other. If not, no attempt is hedged.
            is_repeated: It is made for a request that is itself a retry: whoever made that repeats it.
            hook: Gets the events; called without locks held.
            meter: Is told instead what it counts, so that most events need not be made.
        """
        CallFacts.__init__(self, target, head, None if timeout_s is None else now + timeout_s)
        self._rng = rng
        self._hook = hook
        self._began_at = now
        self._replayable = replayable
        self._guard_unsafe = guard_unsafe
        self._can_hedge = can_hedge
        self._is_repeated = is_repeated
        self._meter = meter
        self._state = NEW
        # When response headers must be there: the deadline, or before it the end of the route's idle timeout.
        self._ends_at = None
        # What is held, to be given back exactly once.
        self._held = None
        # For load reports: the attempt that is held has been answered, and not with an error.
        self._is_good = False

    def __repr__(self) -> str:
        return f"Call({self.head!r}, {_STATES[self._state]}, attempts={self.attempts}, flag={self.flag or '-'})"

    @property
    def breaker(self) -> CircuitBreaker:
        """The breaker that holds for this call; there must have been an attempt."""
        return self._breaker

    def cut_off(self, failure: Failure, now: float, *, is_idle: bool = False) -> None:
        """Note that a response broke off after its headers. `close` has to follow.

        A connection that was lost counts against the endpoint, beside the status that it sent before (in Envoy a local
        failure), and so does one over which nothing came for the policy's `per_try_idle_timeout`; another time that is
        over does not. How a gRPC call ends is counted by `close`.

        Args:
            is_idle: Nothing came for as long as `idle_s` allows.
        """
        held, cluster = self._held, self.cluster
        if held is None or cluster is None or self._state != DONE:
            return
        self._is_good = False
        if failure.kind is FailureKind.TIMEOUT:
            if not self._replayable:
                self._see_whose_time_is_over(now)
            if self.deadline is not None and now >= self.deadline:
                self._add_flag(self._deadline_flag())
                return
            if (ends_at := self._attempt_ends_at) is not None and now >= ends_at:
                self._add_flag("UMSDR")
                return
            if not is_idle:
                return
            if self._idle_try_s is None or self._idle_try_s != self.idle_s:
                self._add_flag("SI")
                return
        self._add_flag(failure_flag(failure))
        ejected = None if self._is_unrecorded else self._record_end(cluster, held, failure, now)
        if ejected is not None and self._hook is not None:
            self._hook(ejected)

    def close(self, now: float, *, status: int = 0, grpc_status: int | None = None) -> None:
        """Give back what the call holds; in any state, any number of times. The first time emits `CallFinished`.

        Args:
            status: HTTP status given to the caller; 0: as in the result, if it has one.
            grpc_status: gRPC status of a call that has ended; None: as in the result, if it is one of gRPC.
        """
        if self._state == CLOSED:
            return
        self._state = CLOSED
        held, cluster = self._held, self.cluster
        ejected: HostEjected | HostUnejected | None = None
        if held is not None:
            if grpc_status is not None:
                self._is_good = grpc_status == 0
            self._held = None
            assert cluster is not None
            cluster.release(self._breaker, held, is_success=self._is_good)
            if self._is_unrecorded:
                ejected = self._record_end(cluster, held, Response(200, grpc_status=grpc_status), now)
        if self._has_retry:
            self._drop_permit()
        if self._has_fault:
            self._has_fault = False
            self.target.faults.release()
        if self._passage is not None:
            self._leave(self._passage, now, status, grpc_status)
        if self._flights:
            self._land_all(now)
        hook, result = self._hook, self.result
        if result is not None and not isinstance(result, Failure):
            status = status or result.status
            # Answers of the mesh have one for either kind of call.
            if grpc_status is None and self.head.is_grpc:
                grpc_status = result.grpc_status
        if hook is not None and ejected is not None:
            hook(ejected)
        meter, duration_s = self._meter, now - self._began_at
        if meter is not None:
            match, kind = self.match, self.head.profile.name
            name, is_secure = "" if match is None else match.cluster, self._tls is not None
            meter.ended(kind, name, self.target.name, status, grpc_status, self.flag or "-", is_secure, duration_s)
        elif hook is not None:
            hook(call_finished(self, duration_s, status, grpc_status))

    def _record_end(
        self, cluster: ClusterState, state: EndpointState, outcome: Outcome, now: float
    ) -> HostEjected | HostUnejected | None:
        return cluster.record(state, outcome, now, self._rng, is_grpc=self.head.profile.grpc_outliers)

    def _is_success(self, response: Response) -> bool:
        """Whether the service answered with no error of its own, for load reports."""
        return response.grpc_status == 0 if self.head.profile.grpc_results else response.status < 500

    def _leave(self, passage: Passage, now: float, status: int, grpc_status: int | None) -> None:
        """Tell the limiting filters how the call ended."""
        result, head = self.result, self.head
        if isinstance(result, Response) and head.is_grpc and not head.profile.grpc_results:
            result = as_grpc_answer(result)
        if isinstance(result, Response | LocalReply):
            status = status or result.status
            grpc_status = result.grpc_status if grpc_status is None else grpc_status
        # Of an HTTP request with gRPC's content type only what says so itself is judged by its gRPC status.
        is_grpc = head.profile.grpc_results or (head.is_grpc and grpc_status is not None)
        passage.leave(
            now, self._rng, status=status, grpc_status=grpc_status, is_grpc=is_grpc, is_answered=result is not None
        )

    def _release(self) -> None:
        """Give back the request permit, if one is held."""
        state = self._held
        if state is not None:
            self._held = None
            assert self.cluster is not None
            self.cluster.release(self._breaker, state, is_success=self._is_good)

    def _drop_permit(self) -> None:
        """Give back the permit of a retry, if one is held."""
        if self._has_retry:
            self._has_retry = False
            self._retry_breaker.release_retry()

    def _land(self, flight: Flight, *, is_success: bool = False) -> None:
        """Take an attempt off those in flight, and give its permit back."""
        self._flights.remove(flight)
        flight.cluster.release(flight.breaker, flight.state, is_success=is_success)

    def _land_all(self, now: float) -> None:
        """Give back what the attempts hold that nobody waits for any more."""
        for flight in tuple(self._flights):
            self._land(flight)
            if self._hook is not None:
                attempt = flight.attempt
                duration_s = now - flight.began_at
                self._hook(attempt_finished(self, attempt.endpoint, attempt.number, None, duration_s, will_retry=False))

    def _overflowed(self, endpoint: Endpoint, outcome: Failure, now: float) -> Step:
        """The attempt got no connection by the cluster's limits: never retried, and no fault of the endpoint."""
        self._drop_permit()
        self._release()
        if self._hook is not None:
            duration_s = now - self._attempt_at
            self._hook(attempt_finished(self, endpoint, len(self._tried), outcome, duration_s, will_retry=False))
        number = len(self._tried)
        # Envoy gives a request its host when that has a connection for it.
        return self._local(OVERFLOW_AGAIN if number > 1 else OVERFLOW, number, has_host=False)

    def _add_flag(self, flag: str) -> None:
        self.flag = f"{self.flag},{flag}" if self.flag else flag

    def _failure_flag(self, failure: Failure) -> str:
        if failure.kind is FailureKind.TIMEOUT:
            if self._is_deadline_next:
                return self._timeout_flag()
            if self._is_stream_next:
                return "UMSDR"
        return failure_flag(failure)

    def _is_limit_of_stream(self, failure: Failure) -> bool:
        """Whether what ended an attempt was a limit of the exchange: that says nothing of its endpoint (as in Envoy).

        These are idle timeouts and durations of streams. Of a gRPC call gRPC counts how it ended, whoever ended it.
        """
        if failure.kind is not FailureKind.TIMEOUT or self.head.profile.grpc_outliers:
            return False
        if self._is_deadline_next:
            return self._ends_at != self.deadline or self.deadline != self._timeout_at
        return self._is_stream_next

    def _see_whose_time_is_over(self, now: float) -> None:
        """Of a request that is still being made: the limits of the whole exchange have run meanwhile, the others not."""
        ends_at = self.upload_deadline
        if ends_at is None or now < ends_at:
            return
        self._is_deadline_next = ends_at != self._attempt_ends_at
        self._is_stream_next = not self._is_deadline_next
        if self._is_deadline_next:
            self.deadline = self._ends_at = ends_at

    def _timeout_flag(self) -> str:
        if self._ends_at is not None and self._ends_at != self.deadline:
            return "SI"
        return self._deadline_flag()

    def _deadline_flag(self) -> str:
        # Envoy documents DT for the end of `max_stream_duration`, though its log shows none.
        return "UT" if self.deadline == self._timeout_at else "DT"

    def _expired(self, now: float) -> Step:
        """The deadline passed while no new attempt was running."""
        if self._flights:
            self._land_all(now)
        return self._finish(Failure(FailureKind.TIMEOUT, self._was_sent), self._timeout_flag())

    def _local(self, reply: LocalReply, attempts: int = 0, *, has_host: bool = True) -> Step:
        """Answer for the mesh. The route's mutations concern its own answers too, as in Envoy.

        Args:
            attempts: So far, if the response is to say so; 0: there was none.
            has_host: Formats may speak of the endpoint that was last chosen.
        """
        match = self.match
        if isinstance(self._reply, FaultedReply):
            reply = self._reply.aborted(reply, self.head)
        elif match is None:
            reply = self.target.routes.local_reply(reply, self.head)
        else:
            if match.changes_replies:
                flag = ",".join(part for part in (self.flag, reply.flag) if part)
                tried = (self._refused or self.endpoint) if has_host else None
                about = Scene(self._out, None, 0, flag, reply.details, tried, attempts or self.attempts)
                reply = match.local_reply(reply, self._out, about, has_cluster=match.cluster in self.target.clusters)
            if attempts and match.include_attempt_count_in_response:
                reply = replace(reply, headers=counted(Headers(reply.headers), attempts).items)
        if self._passage is not None and self._passage.response_headers:
            reply = replace(reply, headers=(*reply.headers, *self._passage.response_headers))
        return self._finish(reply, reply.flag)

    def _unable(self, reply: LocalReply) -> Step:
        """There can be no further attempt; any that are in flight go on."""
        if self._flights:
            raise NoFurther
        # An attempt that finds no host, or no room, counts as one.
        return self._local(reply, len(self._tried) + 1)

    def _finish(self, result: Response | Failure | LocalReply, flag: str = "") -> Done:
        if flag:
            self._add_flag(flag)
        if flag == "UT" and self._has_alternative and isinstance(result, Failure):
            result = NO_CONTENT
        if isinstance(result, LocalReply):
            result = trailers_only(result, self.head)
        self._state = DONE
        self.result = result
        return Done(result, self.flag)

    def _unexpected(self, state: int) -> RuntimeError:
        return RuntimeError(f"the call is {_STATES[self._state]}, not {_STATES[state]}")
