"""What is settled before the first attempt: answers of the mesh itself, injected faults, sessions, times, what others keep.

`Call` has the order of these steps.
"""

from dataclasses import replace
from typing import Final

from meshlib.call.endings import DELAYED
from meshlib.call.hedging import HedgedSteps
from meshlib.call.limiting import Passage
from meshlib.call.limits import asked_limits, is_control_name
from meshlib.call.repeat import capped_retries
from meshlib.call.steps import Sleep, Step
from meshlib.call.way import Way, is_the_same_for_all
from meshlib.model.outcome import LocalReply
from meshlib.model.profile import GRPC, HTTP
from meshlib.model.request import Headers, HeadMemo, RequestHead
from meshlib.model.route import FaultPolicy
from meshlib.resilience.deadline import parse_ms
from meshlib.routing.fault import NO_FAULT, decide_fault
from meshlib.routing.limits import RouteLimit
from meshlib.routing.redirect import HttpsRedirect
from meshlib.routing.route_match import FaultedReply
from meshlib.routing.session import Session
from meshlib.routing.table import RouteMatch
from meshlib.view import ClusterState, RoutePlan, TargetView

__all__ = ["Beginnings"]

MAX_WAYS: Final = 4096
"""Of one target."""
_ANY_HEAD: Final = RequestHead("GET", "", "/", Headers(), profile=HTTP)


class Beginnings(HedgedSteps):
    """The parts of a call's beginning."""

    __slots__ = ()

    def _answer(self, reply: LocalReply, now: float) -> Step:
        """The mesh answers by itself; filters come before."""
        fault, limits = self._before(reply)
        if fault is None and not limits:
            return self._finish(reply, reply.flag)
        self._reply = reply
        self._timeout_at = self.deadline
        if limits:
            self._passage = Passage(self.target.limiter, self.head)
            refused = self._passage.enter(limits, now, self._rng, after_fault=False)
            if refused is not None:
                return self._local(refused)
        if fault is not None:
            step = self._inject(fault, "", now)
            if step is not None:
                return step
        return self._answer_after_fault(reply, now)

    def _answer_after_fault(self, reply: LocalReply, now: float) -> Step:
        """Go on with an answer of the mesh itself where the fault filter has let the call pass."""
        if self._passage is not None:
            refused = self._passage.enter(self._before(reply)[1], now, self._rng, after_fault=True)
            if refused is not None:
                return self._local(refused)
            if self._passage.response_headers:
                reply = replace(reply, headers=(*reply.headers, *self._passage.response_headers))
        return self._finish(reply, reply.flag)

    def _before(self, reply: LocalReply) -> tuple[FaultPolicy | None, tuple[RouteLimit, ...]]:
        """Return the fault and the limits that come before an answer of the mesh itself."""
        if isinstance(reply, FaultedReply):
            return reply.fault, reply.limits
        if (reply.flag == "NR" or isinstance(reply, HttpsRedirect)) and self.head.profile.answers_itself:
            # No route, so nobody has overridden them.
            return self.target.config.listener.fault, self.target.routes.unrouted_limits
        return None, ()

    def _inject(self, policy: FaultPolicy, cluster: str, now: float) -> Step | None:
        """Inject a fault, if this call is to have one; None: go on."""
        faults = self.target.faults
        decision = decide_fault(policy, self._out, self._rng, active=faults.active, cluster=cluster)
        if decision is NO_FAULT:
            return None
        if not faults.try_acquire(policy.max_active):
            return None  # Another call took the last place since.
        self._has_fault = True
        self.body_rate = decision.rate_bytes_s
        if not decision.delay_s:
            return None if decision.abort is None else self._local(decision.abort)
        self.flag = "DI"
        self._abort = decision.abort
        self._state = DELAYED
        wait_s = decision.delay_s
        return Sleep(wait_s if self.deadline is None else max(0.0, min(wait_s, self.deadline - now)))

    def _keep_way(self, match: RouteMatch, cluster: ClusterState, head: RequestHead) -> None:
        """Let other calls of the same method begin as this one did, if that is the same for all."""
        target, plan, memo, own = self.target, self._plan, head.memo, head.headers.items[:0]
        if memo is None:
            memo, own = head.kin, head.headers.items[1:]  # after the content type, which all have
            assert memo is not None
            if (memo.way is not None and memo.way.holds(target)) or _has_say(own, memo, target):
                return
        if (
            is_the_same_for_all(match)
            and head.profile is GRPC
            and not (target.routes.has_chance or self._is_asking or cluster.drops)
            and not cluster.config.cluster.maintenance_percent
            and self._out is head
            and self._rules is plan.rules
            and plan.grpc[0] is None
            and self.match is match
            and target.clusters.get(match.cluster) is cluster
        ):
            way = Way(target, match, plan, cluster, self._breaker, self._rules, self._retries_left, head)
            if not own or way.spares(own, self._rng):
                memo.way = way
            else:
                known, before = memo.reads
                reads = way.reads(self._rng)
                if known is target and before is not None and reads is not None:
                    reads |= before
                memo.reads = (target, reads)

    def _keep_http_way(self, match: RouteMatch, cluster: ClusterState) -> None:
        """Let HTTP calls that take the same route begin as this one did, if that is the same for all."""
        target, plan, ways = self.target, self._plan, self.target.ways
        if self._is_asking or self.match is not match:
            return
        if len(ways) >= MAX_WAYS:
            ways.clear()  # routes that name another cluster for each request
        way: Way | None = None
        if (
            is_the_same_for_all(match)
            and not match.filters_requests
            and not cluster.config.cluster.maintenance_percent
            and not plan.rules.needs_request
            and target.clusters.get(match.cluster) is cluster
        ):
            retries = capped_retries(plan.rules.num_retries, HTTP)
            way = Way(target, match, plan, cluster, self._breaker, plan.rules, retries, _ANY_HEAD)
        ways[match] = way

    def _begin_session(self, match: RouteMatch, session: Session, now: float) -> RouteMatch:
        """Read the mark of a request; of a gRPC call it also chooses among the clusters of its route (A55)."""
        if not session.concerns(self.head):
            return match
        self._mark = mark = session.read(self.head, now + self.target.wall_offset_s)
        self._has_session = True
        self._answered_at = now
        if self.head.profile.grpc_sessions and mark.cluster and mark.cluster != match.cluster:
            sibling = match.siblings.get(mark.cluster)
            if sibling is None:
                self._mark = replace(mark, addresses=())
            else:
                match = self.match = sibling
        return match

    def _take_limits(self, match: RouteMatch, plan: RoutePlan) -> float | None:
        """Take over the times of a plan, or what the request asks for; returns that of the whole exchange."""
        limits = plan.grpc if self.head.profile.grpc_times else plan.http
        if self._is_asking:
            limits = self._asked_limits(plan)
        self._timeout_s, self._per_try_s, stream_s = limits
        self._idle_try_s = plan.idle_try_s
        if match.hedge is not None or self._is_asking:
            asked = self.head.headers.get("x-envoy-hedge-on-per-try-timeout") if self._is_asking else None
            self._begin_hedging(match, asked)
        return stream_s

    def _ask_more(self, headers: Headers) -> None:
        """Read what else a request may ask for."""
        stream_s = parse_ms(headers, "x-envoy-upstream-stream-duration-ms")
        if stream_s is not None:
            self._stream_try_s = stream_s or None
        self._has_alternative = "x-envoy-upstream-rq-timeout-alt-response" in headers

    def _asked_limits(self, plan: RoutePlan) -> tuple[float | None, float | None, float | None]:
        """Return the limits of a request whose headers ask for some."""
        asked = asked_limits(self.head, plan, self.target.max_stream_duration_s)
        if asked.asked_s is not None and (self.deadline is None or self._began_at + asked.asked_s < self.deadline):
            self.deadline = self._began_at + asked.asked_s
        return asked.timeout_s, asked.per_try_s, asked.stream_s


def _has_say(own: tuple[tuple[str, str], ...], memo: HeadMemo, target: TargetView) -> bool:
    """Whether headers are known to have a say in where a call goes, by what calls before have found out."""
    known, reads = memo.reads
    return known is target and (reads is None or any(name in reads or is_control_name(name) for name, _ in own))
