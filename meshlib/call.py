"""One request as a state machine: what to do next, as values. Shells do it and report back.

    step = call.start(now)
    Attempt -> send it, then call.finished(outcome, now)
    Sleep   -> wait, then call.slept(now)
    Done    -> give the result to the caller
    ... and in any case, at the end: call.close(now)

The order of steps is Envoy's: route, cluster, fault, drops, then per attempt the deadline, the pick, the circuit
breaker. A fault comes before everything that can be repeated, so it happens once and is never retried; the timeouts of
the route begin after its delay. The pick comes before the breaker, so a cluster without endpoints says `UH`, not `UO`.

What a call holds (a request permit with the endpoint's count, a retry permit, an active fault) is given back exactly
once: the request permit when its attempt fails or is repeated, else by `close`, since a response goes on until its body
has been read.
"""

from dataclasses import dataclass, replace

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.errors import DeadlineExceeded, IdentityError, MeshError, RoutingError, UnavailableError
from meshlib.events import AttemptFinished, CallFinished, Event, Hook
from meshlib.model.endpoint import Endpoint
from meshlib.model.outcome import Failure, FailureKind, LocalReply, Outcome, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.secret import ClientTls
from meshlib.model.snapshot import ConfigFault
from meshlib.ports import Rng
from meshlib.resilience.backoff import full_jitter_s, grpc_jitter_s
from meshlib.resilience.circuit_breaker import CircuitBreaker
from meshlib.resilience.classify import failure_flag
from meshlib.resilience.deadline import (
    TIMEOUT_HEADERS,
    format_grpc_timeout,
    parse_grpc_timeout_s,
    parse_ms,
    per_try_timeout_s,
    stream_duration_s,
)
from meshlib.resilience.retry import RETRY_HEADERS, RetryRules
from meshlib.routing.fault import decide_fault
from meshlib.routing.headers import with_headers
from meshlib.routing.replies import cluster_not_found
from meshlib.routing.table import RouteMatch
from meshlib.view import ClusterState, RoutePlan, TargetView

__all__ = ["Attempt", "Call", "Done", "Sleep", "Step"]

# The steps are not frozen: that triples the cost of making one, and every call makes two. Treat them as frozen.


@dataclass(slots=True, eq=False)
class Attempt:
    """Send the request to an endpoint.

    Attributes:
        number: 1 for the first.
        tls: How to reach the endpoint; None: plaintext.
        timeout_s: Until the response headers are there; None: no limit. When it is over, report `Failure(TIMEOUT)`.
        head: As it goes out.
    """

    number: int
    cluster: ClusterState
    endpoint: Endpoint
    tls: ClientTls | None
    timeout_s: float | None
    head: RequestHead


@dataclass(slots=True, eq=False)
class Sleep:
    """Wait, then call `slept`."""

    seconds: float


@dataclass(slots=True, eq=False)
class Done:
    """The call has its result.

    Attributes:
        result: The response; or the last failure, for which the caller gets an exception (`Call.error`); or the mesh's
            own answer.
        flag: Envoy's response flags, comma separated; empty: none.
    """

    result: Response | Failure | LocalReply
    flag: str


Step = Attempt | Sleep | Done

_NEW, _DELAYED, _RUNNING, _WAITING, _DONE, _CLOSED = range(6)
_STATES = ("new", "delayed by a fault", "attempt running", "waiting to retry", "done", "closed")

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})
"""Idempotent by RFC 9110, section 9.2.2."""

_GRPC_MAX_ATTEMPTS = 5
"""gRPC's cap on attempts, whatever the policy says (A6, A44)."""

_EXPECTED = "x-envoy-expected-rq-timeout-ms"
_COUNT = "x-envoy-attempt-count"
_REPLACED = RETRY_HEADERS | {_EXPECTED}
_REPLACED_WITH_COUNT = _REPLACED | {_COUNT}
_GRPC_TIMEOUT = frozenset({"grpc-timeout"})

_UNAVAILABLE = 14
_TEXT = (("content-type", "text/plain"),)
_NO_HOST = LocalReply(503, "UH", "no_healthy_upstream", b"no healthy upstream", _TEXT, _UNAVAILABLE)
_OVERFLOW = LocalReply(
    503,
    "UO",
    "upstream_reset_before_response_started{overflow}",
    b"upstream connect error or disconnect/reset before headers. reset reason: overflow",
    (*_TEXT, ("x-envoy-overloaded", "true")),
    _UNAVAILABLE,
)


_FAILURES = {
    FailureKind.CONNECT: "no connection to the endpoint",
    FailureKind.IDENTITY: "the endpoint did not prove the identity it must have",
    FailureKind.RESET: "the connection ended before the response",
    FailureKind.REFUSED_STREAM: "the endpoint refused the request unprocessed",
    FailureKind.TIMEOUT: "the time allowed is over",
}


def _without(head: RequestHead, names: frozenset[str]) -> RequestHead:
    """Return the head without some headers; itself when it has none of them."""
    items = head.headers.items
    kept = tuple(item for item in items if item[0] not in names)
    return head if len(kept) == len(items) else with_headers(head, Headers(kept))


class Call:
    """One call. Used by one thread or task at a time.

    Attributes:
        target: Where it goes.
        head: As the application made it.
        match: The route; None before `start`, and when there is none.
        cluster: None when there is none.
        result: Of the `Done` step; None before.
        flag: Envoy's response flags so far, comma separated; empty: none.
        deadline: Monotonic seconds at which the call must be over, response body included; None: no limit.
    """

    __slots__ = (
        "_abort",
        "_attempt_at",
        "_backoffs",
        "_began_at",
        "_breaker",
        "_config_fault",
        "_guard_unsafe",
        "_has_fault",
        "_has_retry",
        "_hash",
        "_held",
        "_hook",
        "_is_deadline_next",
        "_is_unrecorded",
        "_out",
        "_per_try_s",
        "_plan",
        "_replayable",
        "_retries_left",
        "_rng",
        "_rules",
        "_state",
        "_timeout_at",
        "_tls",
        "_tried",
        "_was_sent",
        "cluster",
        "deadline",
        "flag",
        "head",
        "match",
        "result",
        "target",
    )

    _plan: RoutePlan
    _rules: RetryRules
    _out: RequestHead
    _breaker: CircuitBreaker
    _hash: int | None
    _per_try_s: float | None
    _timeout_at: float | None
    _retries_left: int
    _attempt_at: float
    _is_deadline_next: bool

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
        hook: Hook | None = None,
    ) -> None:
        """Make a call; nothing happens before `start`.

        Args:
            timeout_s: The application's own limit for the whole call; None: none. It caps the route's.
            replayable: The body can be sent again.
            guard_unsafe: Repeat what may have been processed only when that does no harm.
            hook: Gets the events; called without locks held.
        """
        self.target = target
        self.head = head
        self.match: RouteMatch | None = None
        self.cluster: ClusterState | None = None
        self.result: Response | Failure | LocalReply | None = None
        self.flag = ""
        self.deadline: float | None = None if timeout_s is None else now + timeout_s
        self._rng = rng
        self._hook = hook
        self._began_at = now
        self._replayable = replayable
        self._guard_unsafe = guard_unsafe
        self._state = _NEW
        self._tried: list[EndpointState] = []
        self._tls: ClientTls | None = None
        self._backoffs = 0
        self._was_sent = False
        # What is held, to be given back exactly once.
        self._held: EndpointState | None = None
        self._has_retry = False
        self._has_fault = False
        # A gRPC call goes on after its headers: its status is counted when it is closed.
        self._is_unrecorded = False
        self._abort: LocalReply | None = None
        self._config_fault: ConfigFault | None = None

    # --- what there is to know -----------------------------------------------------------------------------------

    @property
    def attempts(self) -> int:
        """Number of attempts made."""
        return len(self._tried)

    @property
    def endpoints(self) -> tuple[str, ...]:
        """Addresses of the endpoints tried, in order."""
        return tuple(state.address for state in self._tried)

    @property
    def cluster_name(self) -> str:
        """The cluster that the route names; empty when there is no route."""
        return "" if self.match is None else self.match.cluster

    def response_headers(self, headers: Headers) -> Headers:
        """Return a response's headers after the route's mutations; of a `LocalReply` they are applied already."""
        return headers if self.match is None else self.match.response_headers(headers, self.head)

    def __repr__(self) -> str:
        return f"Call({self.head!r}, {_STATES[self._state]}, attempts={self.attempts}, flag={self.flag or '-'})"

    # --- the machine ---------------------------------------------------------------------------------------------

    def start(self, now: float) -> Step:
        """Begin. Call it once.

        Raises:
            RuntimeError: It began already.
        """
        self._expect(_NEW)
        head = self.head
        found = self.target.routes.match(head, self._rng)
        if isinstance(found, LocalReply):
            return self._finish(found, found.flag)
        self.match = found
        cluster = self.target.clusters.get(found.cluster)
        if not isinstance(cluster, ClusterState):
            return self._no_cluster(found, cluster)
        self.cluster = cluster
        if found.fault is not None:
            step = self._inject(found, now)
            if step is not None:
                return step
        return self._begin(found, cluster, now)

    def slept(self, now: float) -> Step:
        """Go on after a `Sleep`.

        Raises:
            RuntimeError: The call did not ask for one.
        """
        if self._state == _DELAYED:
            assert self.match is not None and self.cluster is not None
            if self.deadline is not None and now >= self.deadline:
                return self._expired(now)
            if self._abort is not None:
                return self._local(self._abort)
            return self._begin(self.match, self.cluster, now)
        self._expect(_WAITING)
        return self._attempt(now)

    def finished(self, outcome: Outcome, now: float) -> Step:
        """Go on after an `Attempt`.

        Raises:
            RuntimeError: The call did not ask for one.
        """
        self._expect(_RUNNING)
        state, cluster = self._held, self.cluster
        assert state is not None and cluster is not None
        began_at, number = self._attempt_at, len(self._tried)
        ejected: Event | None = None
        if cluster.outlier is not None:
            if self.head.is_grpc and isinstance(outcome, Response) and outcome.grpc_status is None:
                self._is_unrecorded = True
            else:
                ejected = cluster.record(state, outcome, now, self._rng)
        if self._has_retry:
            # "The slot is held through backoff and the retried attempt, until the next retry decision."
            self._has_retry = False
            self._breaker.release_retry()
        if isinstance(outcome, Failure):
            self._release()

        wait_s = self._retry_wait_s(outcome) if self._rules.on else None
        step: Step
        if wait_s is not None:
            self._release()
            self._is_unrecorded = False
            self._state = _WAITING
            step = self._wait(wait_s, now)
        elif isinstance(outcome, Failure):
            step = self._finish(outcome, self._failure_flag(outcome))
        else:
            step = self._finish(outcome)

        hook = self._hook
        if hook is not None:
            if ejected is not None:
                hook(ejected)
            hook(
                AttemptFinished(
                    target=self.target.name,
                    cluster=cluster.name,
                    endpoint=state.endpoint,
                    number=number,
                    duration_s=now - began_at,
                    status=outcome.status if isinstance(outcome, Response) else 0,
                    grpc_status=outcome.grpc_status if isinstance(outcome, Response) else None,
                    failure=outcome.kind.value if isinstance(outcome, Failure) else "",
                    will_retry=wait_s is not None,
                )
            )
        return step

    def close(self, now: float, *, status: int = 0, grpc_status: int | None = None) -> None:
        """Give back what the call holds; in any state, any number of times. The first time emits `CallFinished`.

        Args:
            status: HTTP status given to the caller; 0: as in the result, if it has one.
            grpc_status: gRPC status of a call that has ended; None: as in the result, if it has one.
        """
        if self._state == _CLOSED:
            return
        self._state = _CLOSED
        held, cluster = self._held, self.cluster
        ejected: Event | None = None
        if held is not None:
            self._release()
            if self._is_unrecorded and cluster is not None:
                ejected = cluster.record(held, Response(200, grpc_status=grpc_status), now, self._rng)
        if self._has_retry:
            self._has_retry = False
            self._breaker.release_retry()
        if self._has_fault:
            self._has_fault = False
            self.target.faults.release()
        hook = self._hook
        if hook is not None:
            if ejected is not None:
                hook(ejected)
            hook(self._call_event(now, status, grpc_status))

    # --- before the first attempt --------------------------------------------------------------------------------

    def _no_cluster(self, match: RouteMatch, fault: ClusterState | ConfigFault | None) -> Step:
        reply = cluster_not_found(self.head, match.cluster, match.action.cluster_not_found_status)
        if isinstance(fault, ConfigFault):
            self._config_fault = fault
            # Envoy's answer has no body; here there is a reason to give.
            reply = replace(reply, body=fault.message.encode(), headers=_TEXT)
        return self._local(reply)

    def _inject(self, match: RouteMatch, now: float) -> Step | None:
        """Inject the route's fault, if this call is to have one; None: go on."""
        policy, faults = match.fault, self.target.faults
        assert policy is not None
        decision = decide_fault(policy, self.head, self._rng, active=faults.active)
        if not decision.delay_s and decision.abort is None:
            return None
        if not faults.try_acquire(policy.max_active):
            return None  # Another call took the last place since.
        self._has_fault = True
        if not decision.delay_s:
            assert decision.abort is not None
            return self._local(decision.abort)
        self.flag = "DI"
        self._abort = decision.abort
        self._state = _DELAYED
        wait_s = decision.delay_s
        return Sleep(wait_s if self.deadline is None else max(0.0, min(wait_s, self.deadline - now)))

    def _begin(self, match: RouteMatch, cluster: ClusterState, now: float) -> Step:
        """Work out what holds for all attempts, and make the first."""
        for share, category in cluster.drops:
            if self._rng.random() < share:
                return self._drop(share, category)
        action, head = match.action, self.head
        plan = self.target.plan(action, match.retry)
        timeout_s, per_try_s, stream_s = plan.grpc if head.is_grpc else plan.http
        rules = plan.rules
        is_special = False
        for name, _ in head.headers.items:
            if name[:8] == "x-envoy-" or name == "grpc-timeout":
                is_special = True
                break
        if is_special:
            # In Envoy's order: timeouts are read before the route changes the headers, retries after.
            timeout_s, per_try_s, stream_s = self._asked_timeouts(plan, timeout_s, per_try_s, stream_s)
            head = _without(head, TIMEOUT_HEADERS)
        out = match.rewrite(head)
        if is_special or out is not head or rules.needs_request:
            rules = rules.for_request(out)
            out = _without(out, _REPLACED_WITH_COUNT if match.include_attempt_count else _REPLACED)

        self._plan, self._rules, self._out = plan, rules, out
        self._hash = match.hash(out) if action.hash_policies else None
        self._breaker = cluster.high_breaker if action.high_priority else cluster.breaker
        self._per_try_s = per_try_s
        retries = rules.num_retries
        self._retries_left = min(retries, _GRPC_MAX_ATTEMPTS - 1) if head.is_grpc else retries

        deadline = self.deadline
        if timeout_s is not None and (deadline is None or now + timeout_s < deadline):
            deadline = now + timeout_s
        self._timeout_at = deadline
        if stream_s is not None and (deadline is None or self._began_at + stream_s < deadline):
            deadline = self._began_at + stream_s
        self.deadline = deadline
        return self._attempt(now)

    def _asked_timeouts(
        self, plan: RoutePlan, timeout_s: float | None, per_try_s: float | None, stream_s: float | None
    ) -> tuple[float | None, float | None, float | None]:
        """Apply the timeouts that the request's headers ask for. 0 is no limit."""
        headers, is_grpc = self.head.headers, self.head.is_grpc
        text = headers.get("grpc-timeout")
        grpc_timeout_s = None if text is None else parse_grpc_timeout_s(text)
        if grpc_timeout_s is not None:
            if is_grpc:
                asked_at = self._began_at + grpc_timeout_s
                self.deadline = asked_at if self.deadline is None else min(self.deadline, asked_at)
            else:
                listener_s = self.target.max_stream_duration_s
                stream_s = stream_duration_s(plan.action, listener_s, grpc_timeout_s, is_grpc=False)
        asked_s = parse_ms(headers, "x-envoy-upstream-rq-timeout-ms")
        if asked_s is not None:
            timeout_s = asked_s or None
        configured_s = None if plan.retry is None else plan.retry.per_try_timeout_s
        asked_try_s = parse_ms(headers, "x-envoy-upstream-rq-per-try-timeout-ms")
        if asked_s is not None or asked_try_s is not None:
            per_try_s = per_try_timeout_s(configured_s if asked_try_s is None else asked_try_s, timeout_s)
        return timeout_s, per_try_s, stream_s

    def _drop(self, share: float, category: str) -> Step:
        flag, what = ("UDO", "unconditional drop overload") if share >= 1 else ("DO", "drop overload")
        body = f"EDS-configured drop: {category}" if self.head.is_grpc else what
        headers = (*_TEXT, ("x-envoy-" + what.replace(" ", "-"), "true"))
        return self._local(
            LocalReply(503, flag, what.replace(" ", "_"), body.encode(), headers, grpc_status=_UNAVAILABLE)
        )

    # --- attempts ------------------------------------------------------------------------------------------------

    def _attempt(self, now: float) -> Step:
        cluster, match, deadline, tried = self.cluster, self.match, self.deadline, self._tried
        assert cluster is not None and match is not None
        if deadline is not None and now >= deadline:
            return self._expired(now)
        retry = self._plan.retry
        if tried and retry is not None and retry.avoid_previous_hosts:
            state = cluster.picker.pick(self._hash, self._rng, tried, retry.host_selection_attempts)
        else:
            state = cluster.picker.pick(self._hash, self._rng)
        if state is None:
            return self._local(_NO_HOST)
        if not cluster.acquire(self._breaker, state):
            return self._local(_OVERFLOW)
        self._held = state
        tried.append(state)
        endpoint = state.endpoint
        self._tls = tls = cluster.tls_for(endpoint)
        self._attempt_at = now
        self._state = _RUNNING
        timeout_s = self._per_try_s
        self._is_deadline_next = False
        if deadline is not None and (timeout_s is None or deadline - now < timeout_s):
            timeout_s = deadline - now
            self._is_deadline_next = True
        return Attempt(len(tried), cluster, endpoint, tls, timeout_s, self._head_for(match, endpoint, now))

    def _head_for(self, match: RouteMatch, endpoint: Endpoint, now: float) -> RequestHead:
        """Return the head of one attempt: what concerns the endpoint, the number and the time left is added."""
        out = self._out
        if match.action.auto_host_rewrite:
            out = match.rewrite_for(out, endpoint)
        number = len(self._tried)
        added: list[tuple[str, str]] = []
        if match.include_attempt_count:
            added.append((_COUNT, str(number)))
        if out.is_grpc:
            if number > 1:
                added.append(("grpc-previous-rpc-attempts", str(number - 1)))
            if "grpc-timeout" in out.headers:
                out = _without(out, _GRPC_TIMEOUT)
                if self.deadline is not None:
                    added.append(("grpc-timeout", format_grpc_timeout(max(self.deadline - now, 0.001))))
        else:
            expected_s = self._per_try_s
            if self._timeout_at is not None:
                left_s = self._timeout_at - now
                expected_s = left_s if expected_s is None else min(expected_s, left_s)
            if expected_s is not None:
                added.append((_EXPECTED, str(max(1, round(expected_s * 1000)))))
        if not added:
            return out
        return with_headers(out, Headers((*out.headers.items, *added)))

    def _release(self) -> None:
        """Give back the request permit, if one is held."""
        state = self._held
        if state is not None:
            self._held = None
            assert self.cluster is not None
            self.cluster.release(self._breaker, state)

    # --- after an attempt ----------------------------------------------------------------------------------------

    def _retry_wait_s(self, outcome: Outcome) -> float | None:
        """Decide about a retry, and take its permit.

        Returns:
            Seconds to wait before; None: no retry.
        """
        rules, is_grpc, sent_before = self._rules, self.head.is_grpc, self._was_sent
        if isinstance(outcome, Failure):
            self._was_sent = sent_before or outcome.request_sent
            if outcome.kind is FailureKind.TIMEOUT and self._is_deadline_next:
                return None
            if not rules.wants_failure(outcome, is_grpc=is_grpc, sent_before=sent_before):
                return None
        else:
            if not rules.wants_response(outcome):
                return None
            self._was_sent = True
        if not self._may_repeat(outcome):
            return None
        pushback_s: float | None = None
        if is_grpc and isinstance(outcome, Response):
            text = outcome.headers.get("grpc-retry-pushback-ms")
            if text is not None:
                pushback_s = parse_ms(outcome.headers, "grpc-retry-pushback-ms")
                if pushback_s is None:
                    return None  # "A negative or unparsable value: no more retries."
        if self._retries_left <= 0:
            self._add_flag("URX")
            return None
        self._retries_left -= 1  # A retry that the breaker then refuses has used up its count too.
        if not self._breaker.try_acquire_retry():
            self._add_flag("UO")
            return None
        self._has_retry = True
        if pushback_s is not None:
            self._backoffs = 0
            return pushback_s
        self._backoffs += 1
        retry = self._plan.retry
        jitter = grpc_jitter_s if is_grpc else full_jitter_s
        if retry is None:
            return jitter(self._backoffs, 0.025, None, self._rng)
        return jitter(self._backoffs, retry.base_interval_s, retry.max_interval_s, self._rng)

    def _may_repeat(self, outcome: Outcome) -> bool:
        """Whether repeating is possible, and does no harm."""
        if not self._replayable and self._was_sent:
            return False
        if not self._guard_unsafe:
            return True
        if isinstance(outcome, Failure) and (not outcome.request_sent or outcome.kind is FailureKind.REFUSED_STREAM):
            return True  # The application surely never saw this attempt.
        if self.head.is_grpc:
            return self._rules.wants_grpc_code(outcome)
        if self.head.method in _SAFE_METHODS or "idempotency-key" in self.head.headers:
            return True
        assert self.match is not None
        return self.match.metadata.get("meshlib", {}).get("retry_non_idempotent") is True

    def _wait(self, wait_s: float, now: float) -> Step:
        if self.deadline is not None and wait_s > self.deadline - now:
            wait_s = self.deadline - now  # Then `slept` finds that time is over.
        return Sleep(wait_s) if wait_s > 0 else self._attempt(now)

    # --- the end -------------------------------------------------------------------------------------------------

    def _add_flag(self, flag: str) -> None:
        self.flag = f"{self.flag},{flag}" if self.flag else flag

    def _failure_flag(self, failure: Failure) -> str:
        if failure.kind is FailureKind.TIMEOUT and self._is_deadline_next:
            return self._timeout_flag()
        return failure_flag(failure)

    def _timeout_flag(self) -> str:
        # Envoy documents DT for the end of `max_stream_duration`, though its log shows none.
        return "UT" if self.deadline == self._timeout_at else "DT"

    def _expired(self, now: float) -> Step:
        """The deadline passed while no attempt was running."""
        return self._finish(Failure(FailureKind.TIMEOUT, self._was_sent), self._timeout_flag())

    def _local(self, reply: LocalReply) -> Step:
        """Answer for the mesh. The route's mutations concern its own answers too, as in Envoy."""
        if self.match is not None:
            headers = Headers(reply.headers)
            changed = self.match.response_headers(headers, self.head)
            if changed is not headers:
                reply = replace(reply, headers=changed.items)
        return self._finish(reply, reply.flag)

    def _finish(self, result: Response | Failure | LocalReply, flag: str = "") -> Done:
        if flag:
            self._add_flag(flag)
        self._state = _DONE
        self.result = result
        return Done(result, self.flag)

    def _expect(self, state: int) -> None:
        if self._state != state:
            raise RuntimeError(f"the call is {_STATES[self._state]}, not {_STATES[state]}")

    def _call_event(self, now: float, status: int, grpc_status: int | None) -> CallFinished:
        result, head, match = self.result, self.head, self.match
        if isinstance(result, Response | LocalReply):
            status = status or result.status
            grpc_status = result.grpc_status if grpc_status is None else grpc_status
        return CallFinished(
            kind="grpc" if head.is_grpc else "http",
            target=self.target.name,
            method=head.path if head.is_grpc else head.method,
            route="" if match is None else match.route_name,
            cluster=self.cluster_name,
            endpoint=self._tried[-1].endpoint if self._tried else None,
            attempts=len(self._tried),
            duration_s=now - self._began_at,
            status=status,
            grpc_status=grpc_status,
            flag=self.flag or "-",
            secure=self._tls is not None,
        )

    def error(self, message: str = "", *, cause: BaseException | None = None) -> MeshError:
        """Make the exception for the caller, by what the call came to.

        Args:
            message: Instead of the one made here.
            cause: Becomes `__cause__`; None: what the transport raised, if it did.
        """
        result = self.result
        kind: type[MeshError]
        match result:
            case Failure(kind=FailureKind.TIMEOUT):
                kind = DeadlineExceeded
            case Failure(kind=FailureKind.IDENTITY):
                kind = IdentityError
            case LocalReply(flag="NR" | "NC"):
                kind = RoutingError
            case _:
                kind = UnavailableError
        fault = self._config_fault
        error = kind(
            message or self._explanation(),
            cluster=self.cluster_name,
            endpoints=self.endpoints,
            attempts=self.attempts,
            flag=self.flag,
            resource="" if fault is None else fault.resource,
        )
        error.__cause__ = cause or (result.error if isinstance(result, Failure) else None)
        return error

    def _explanation(self) -> str:
        """Say in a sentence why there is no response from the service."""
        result, head = self.result, self.head
        what = f"{head.method} {head.scheme}://{head.authority}{head.path.partition('?')[0]}"
        if isinstance(result, Failure):
            cause = f": {result.error}" if result.error is not None and str(result.error) else ""
            return f"{what}: {_FAILURES[result.kind]}{cause}"
        if not isinstance(result, LocalReply):
            return f"{what}: {'no result yet' if result is None else f'the service answered {result.status}'}"
        if self._config_fault is not None:
            return f"{what}: {self._config_fault.message}"
        return f"{what}: {self._local_explanation(result)}"

    def _local_explanation(self, reply: LocalReply) -> str:
        cluster = self.cluster
        match reply.flag:
            case "NR":
                return f"no route of {self.target.name!r} takes this request"
            case "NC":
                return f"the route leads to cluster {self.cluster_name!r}, which is not known"
            case "UH" if cluster is not None:
                count, ejected = len(cluster.states), sum(state.is_ejected for state in cluster.states.values())
                note = f"; {cluster.config.note}" if cluster.config.note else ""
                return f"no healthy endpoint among {count} ({ejected} ejected){note}"
            case "UO":
                return f"too many requests in flight; the limit is {self._breaker.limits.max_requests}"
            case _:
                return f"{reply.details} (status {reply.status})"
