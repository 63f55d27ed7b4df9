"""Attempts that run beside each other: what of a call is different when its route has hedging.

As in Envoy the attempts are a chain. Each is followed by at most one other: because its `per_try_timeout` is over, when
it goes on beside the next one; or because it failed in a way that the policy repeats, when it is out. So there is one
timer at a time, that of the newest attempt or of the wait before the next, and one retry permit per call, which is given
back when there can be no further attempt; each attempt in flight is one of the cluster's requests. The first
good response wins. A bad one, of an attempt that was followed or cannot be repeated, is dropped while others are in
flight or about to be; what comes last is the result.

A hedge is a retry in all that limits retries: number, permit, budget, deadline, replayable body, and whether repeating
does harm. Attempts at the beginning (`initial_requests`) do not use up `num_retries`.

Source: Envoy, `Filter::onPerTryTimeoutCommon`, `Filter::onSoftPerTryTimeout` and what `upstream_request.retried()` changes.
"""

from abc import ABC, abstractmethod

from meshlib.call.endings import RUNNING, WAITING, Flight, NoFurther
from meshlib.call.repeat import is_safe_to_hedge
from meshlib.call.replies import OVERFLOW
from meshlib.call.report import attempt_finished
from meshlib.call.retrying import RetryDecisions
from meshlib.call.steps import Attempt, Done, RaceStep, Sleep, Step, Wait
from meshlib.events import HostEjected, HostUnejected
from meshlib.model.outcome import NOT_REACHED, Failure, FailureKind, Outcome, Response
from meshlib.resilience.classify import as_grpc_answer
from meshlib.routing.matchers import in_fraction
from meshlib.routing.table import RouteMatch

__all__ = ["HedgedSteps"]


class HedgedSteps(RetryDecisions, ABC):
    """The steps of a call whose attempts may run beside each other; `Call` has the others."""

    __slots__ = ()

    def racing(self, now: float) -> RaceStep:
        """Go on after an attempt was started that others may run beside."""
        while self._initial_left > 0:
            self._initial_left -= 1
            newest = self._flights[-1]
            if not newest.is_followed and self._may_hedge() and self._take_permit(now):
                newest.is_followed = True
                return self._next(now)
        return self._wait_on(now)

    def waited(self, now: float) -> RaceStep:
        """Go on when the time of a `Wait` is over."""
        if self._state == WAITING:
            return self._next(now)
        if self._wake_at is None or not self._flights:
            return self._wait_on(now)
        self._wake_at = None
        newest = self._flights[-1]
        self._record_timeout(newest, now)
        if not self._rules.can_hedge or not self._may_hedge():
            return self._wait_on(now)
        self._drop_permit()
        wait_s = self._permit_s(None, now)
        if wait_s is None:
            return self._wait_on(now)
        newest.is_followed = True
        self._is_timeout_retry = True
        return self._pause(wait_s, now)

    def ended(self, attempt: Attempt, outcome: Outcome, now: float) -> RaceStep:
        """Go on when an attempt has ended. Its response is the result if the step is a `Done` with it, else dropped.

        Raises:
            RuntimeError: The call did not ask for it.
        """
        flight = next((flight for flight in self._flights if flight.attempt is attempt), None)
        if flight is None:
            raise RuntimeError(f"attempt {attempt.number} is not in flight")
        if self.head.moment is not None:
            self.head.moment.goes_on(now + self.target.wall_offset_s)
        if isinstance(outcome, Failure):
            if outcome.kind is FailureKind.OVERFLOW:
                return self._crowded_out(flight, outcome, now)
            if outcome.kind is FailureKind.TIMEOUT and flight.is_deadline_next:
                return self._out_of_time(flight, outcome, now)
        self._is_deadline_next, self._is_stream_next = flight.is_deadline_next, flight.is_stream_next
        ejected = self._record(flight, outcome, now)
        was_pending = self._state == WAITING
        wait_s: float | None = None
        if flight.is_followed:
            is_bad = isinstance(outcome, Failure) or self._rules.wants_response(outcome)
        else:
            self._drop_permit()
            self._wake_at = None
            wait_s = self._retry_wait_s(outcome, now) if self._rules.on else None
            is_bad = wait_s is not None or isinstance(outcome, Failure) or self._rules.wants_response(outcome)
        step: RaceStep
        if wait_s is not None:
            self._land(flight)
            step = self._pause(wait_s, now)
        elif is_bad and (was_pending or len(self._flights) > 1):
            self._land(flight)
            step = self._wait_on(now)
        else:
            step = self._conclude(flight, outcome)
        self._tell(flight, outcome, now, ejected, will_retry=wait_s is not None)
        if isinstance(step, Done):
            self._land_all(now)
        elif isinstance(step, Wait) and step.seconds == 0.0 and self._state == WAITING:
            return self._next(now)
        return step

    # --- parts ---------------------------------------------------------------------------------------------------

    def _begin_hedging(self, match: RouteMatch, asked: str | None) -> None:
        """Decide whether this call's attempts run beside each other.

        Args:
            asked: `x-envoy-hedge-on-per-try-timeout` of the request; None: absent.
        """
        policy = match.hedge
        self._is_hedged, self._patience_s, self._initial_left = False, None, 0
        self._flights = []
        on_timeout = policy is not None and policy.on_per_try_timeout
        if asked in ("true", "false"):
            on_timeout = asked == "true"
        times = [seconds for seconds in (self._per_try_s, self._idle_try_s) if seconds is not None]
        if on_timeout and times:
            # The times of an attempt end nothing any more.
            self._is_hedged = True
            self._patience_s = min(times)
            self._per_try_s = self._idle_try_s = None
        if policy is not None and match.metadata.get("meshlib", {}).get("hedge_initial_requests") is True:
            more = in_fraction(policy.additional_chance, self._rng.getrandbits(64))
            self._initial_left = policy.initial_requests - 1 + more
            self._is_hedged = self._is_hedged or self._initial_left > 0
        if not self._can_hedge:
            self._is_hedged = False
            self._initial_left = 0

    def _launched(self, attempt: Attempt, now: float) -> Attempt:
        """Put a new attempt among those in flight."""
        held, self._held = self._held, None
        assert held is not None
        is_deadline_next, is_stream_next = self._is_deadline_next, self._is_stream_next
        self._flights.append(
            Flight(attempt, held, self._breaker, now, is_deadline_next=is_deadline_next, is_stream_next=is_stream_next)
        )
        self._wake_at = None if self._patience_s is None else now + self._patience_s
        attempt.is_raced = True
        return attempt

    def _next(self, now: float) -> RaceStep:
        """Make the next attempt, if there can be one; those in flight go on in any case."""
        self._state = RUNNING
        self._wake_at = None
        try:
            step = self._again(now)
        except NoFurther:
            self._drop_permit()
            return self._wait_on(now)
        assert not isinstance(step, Sleep)
        return step

    def _wait_on(self, now: float) -> Wait:
        return Wait(None if self._wake_at is None else max(0.0, self._wake_at - now))

    def _pause(self, wait_s: float, now: float) -> Wait:
        self._state = WAITING
        if self._ends_at is not None:
            wait_s = max(0.0, min(wait_s, self._ends_at - now))  # then `_next` finds that time is over
        self._wake_at = now + wait_s
        return Wait(wait_s)

    def _may_hedge(self) -> bool:
        if not self._replayable or (self._is_repeated and self._one_layer):
            return False
        assert self.match is not None
        return not self._guard_unsafe or is_safe_to_hedge(self.head, self.match)

    def _take_permit(self, now: float) -> bool:
        """Take what an attempt at the beginning needs beside the first; the retry permit is one for all of them."""
        cluster = self.cluster
        assert cluster is not None
        if self._has_retry:
            return self._take_budget(now)
        if not self._retry_breaker.try_acquire_retry():
            return False
        self._has_retry = True
        return self._take_budget(now)

    def _conclude(self, flight: Flight, outcome: Outcome) -> RaceStep:
        """The call ends with what this attempt has brought."""
        self._drop_permit()
        self._answered = flight.state
        self._attempt_at = flight.began_at
        self._tls = flight.attempt.tls
        if isinstance(outcome, Failure):
            self._land(flight)
            return self._finish(outcome, self._failure_flag(outcome))
        self._flights.remove(flight)
        self._held, self.cluster, self._breaker = flight.state, flight.cluster, flight.breaker
        self._is_good = self._is_success(outcome)
        self._is_unrecorded = (
            self.head.profile.grpc_results and outcome.grpc_status is None and self.cluster.grpc_outlier is not None
        )
        return self._finish(outcome)

    def _crowded_out(self, flight: Flight, outcome: Failure, now: float) -> RaceStep:
        """The attempt got no connection by the cluster's limits: never repeated, and no fault of the endpoint."""
        if not flight.is_followed:
            self._wake_at = None
            self._drop_permit()
        self._land(flight)
        self._tell(flight, outcome, now, None, will_retry=False)
        if self._flights or self._state == WAITING:
            return self._wait_on(now)
        self._drop_permit()
        step = self._local(OVERFLOW, len(self._tried))
        assert not isinstance(step, Sleep)
        return step

    def _out_of_time(self, flight: Flight, outcome: Failure, now: float) -> RaceStep:
        """The call's time is over, for all attempts."""
        self._is_deadline_next = True
        if not self._is_limit_of_stream(outcome):
            for other in tuple(self._flights):
                self._record_timeout(other, now)
        self._answered = flight.state
        self._drop_permit()
        self._land(flight)
        step = self._finish(outcome, self._timeout_flag())
        self._tell(flight, outcome, now, None, will_retry=False)
        self._land_all(now)
        return step

    def _record(self, flight: Flight, outcome: Outcome, now: float) -> HostEjected | HostUnejected | None:
        if self.head.profile.connects_first and isinstance(outcome, Failure) and outcome.kind in NOT_REACHED:
            flight.cluster.has_lost = True
        learner = flight.cluster.learner
        if learner is not None:
            learner.finished(flight.state, outcome, now - flight.began_at, now, is_grpc=self.head.profile.grpc_weights)
        if isinstance(outcome, Response):
            if self.head.profile.grpc_results:
                if outcome.grpc_status is None:
                    return None  # its status is counted at its end
            elif self.head.is_grpc:
                outcome = as_grpc_answer(outcome)
        is_timeout = isinstance(outcome, Failure) and outcome.kind is FailureKind.TIMEOUT
        if is_timeout and flight.is_recorded:
            return None
        if isinstance(outcome, Failure) and self._is_limit_of_stream(outcome):
            return None
        return self._record_end(flight.cluster, flight.state, outcome, now)

    def _record_timeout(self, flight: Flight, now: float) -> None:
        """Have outlier detection know of an attempt that takes too long, once."""
        if flight.is_recorded:
            return
        flight.is_recorded = True
        ejected = self._record_end(flight.cluster, flight.state, Failure(FailureKind.TIMEOUT, True), now)
        if ejected is not None and self._hook is not None:
            self._hook(ejected)

    def _tell(
        self,
        flight: Flight,
        outcome: Outcome,
        now: float,
        ejected: HostEjected | HostUnejected | None,
        *,
        will_retry: bool,
    ) -> None:
        hook = self._hook
        if hook is not None:
            if ejected is not None:
                hook(ejected)
            attempt, duration_s = flight.attempt, now - flight.began_at
            hook(attempt_finished(self, attempt.endpoint, attempt.number, outcome, duration_s, will_retry=will_retry))

    # --- of `Call` -----------------------------------------------------------------------------------------------

    @abstractmethod
    def _again(self, now: float) -> Step:
        """Make the next attempt."""
