"""The machine of one call; `meshlib.call` says what it is for."""

from collections.abc import Iterable
from dataclasses import replace

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.picker import Picker
from meshlib.call.endings import DELAYED, DONE, NEW, RUNNING, WAITING
from meshlib.call.hedging import HedgedSteps
from meshlib.call.limiting import Passage
from meshlib.call.limits import (
    asked_limits,
    has_control_headers,
    is_longer,
    without_retry_headers,
    without_timeout_headers,
    written_head,
)
from meshlib.call.named import named_endpoints
from meshlib.call.repeat import GRPC_MAX_ATTEMPTS
from meshlib.call.replies import NO_HOST, OVERFLOW, drop_reply, no_cluster_reply
from meshlib.call.report import attempt_finished
from meshlib.call.retry_hosts import MAX_UNREACHABLE, TriedPriorities, another_host, unwanted_hosts
from meshlib.call.steps import Attempt, Done, Sleep, Step
from meshlib.call.way import Way, is_the_same_for_all
from meshlib.events import HostEjected, HostUnejected
from meshlib.model.lb_policy import Maglev, RandomSubsetting, RingHash
from meshlib.model.outcome import GRPC_OK, Failure, FailureKind, LocalReply, Outcome, Response
from meshlib.model.request import Headers, HeadMemo, RequestHead
from meshlib.model.route import FaultPolicy
from meshlib.resilience.deadline import parse_ms
from meshlib.resilience.health_check import IMMEDIATE_FAILURE
from meshlib.resilience.retry import NO_RETRIES
from meshlib.routing.fault import NO_FAULT, decide_fault
from meshlib.routing.hash_policy import CookieMaker, cluster_hash
from meshlib.routing.prepare import EarlyAnswer
from meshlib.routing.route_match import FaultedReply
from meshlib.routing.session import Session
from meshlib.routing.table import RouteMatch
from meshlib.view import AggregateState, ClusterState, RoutePlan

__all__ = ["Call"]


class Call(HedgedSteps):
    """One call. Used by one thread or task at a time."""

    __slots__ = ()

    # --- the machine ---------------------------------------------------------------------------------------------

    def start(self, now: float) -> Step:
        """Begin. Call it once.

        Raises:
            RuntimeError: It began already.
        """
        if self._state != NEW:
            raise self._unexpected(NEW)
        head, routes = self.head, self.target.routes
        if head.memo is not None and (way := head.memo.way) is not None and way.holds(self.target):
            return self._along(way, now)
        if routes.prepare is not None:
            prepared = routes.prepare(head)
            if isinstance(prepared, EarlyAnswer):
                return self._finish(routes.local_reply(prepared.reply, prepared.head))
            head = self.head = prepared
        found = routes.match(head, self._rng, is_prepared=True)
        if isinstance(found, LocalReply):
            return self._answer(found, now)
        self.match = found
        self.head = found.filtered(head)
        # Until it goes out: as the fault filter sees it.
        self._out = head if found.is_fault_first else self.head
        head = self.head
        plan = self._plan = self.target.plan(found.action, found.retry)
        self._is_asking = has_control_headers(head.headers)
        if self._is_asking or found.hedge is not None:
            stream_s = self._take_limits(found, plan)
        else:
            self._timeout_s, self._per_try_s, stream_s = plan.grpc if head.is_grpc else plan.http
            self._idle_try_s = plan.idle_try_s
        self._timeout_at = self.deadline
        if stream_s is not None and (self.deadline is None or self._began_at + stream_s < self.deadline):
            self.deadline = self._began_at + stream_s
        if found.limits:
            self._passage = Passage(self.target.limiter, head)
            reply = self._passage.enter(found.limits, now, self._rng, after_fault=False)
            if reply is not None:
                return self._local(reply)
        if found.fault is not None:
            step = self._inject(found.fault, found.cluster, now)
            if step is not None:
                return step
        return self._begin(found, now)

    def slept(self, now: float) -> Step:
        """Go on after a `Sleep`.

        Raises:
            RuntimeError: The call did not ask for one.
        """
        if self._state == DELAYED:
            if self.deadline is not None and now >= self.deadline:
                return self._expired(now)
            if self._abort is not None:
                return self._local(self._abort)
            if self._reply is not None:
                return self._finish(self._reply, self._reply.flag)
            assert self.match is not None
            return self._begin(self.match, now)
        if self._state != WAITING:
            raise self._unexpected(WAITING)
        return self._again(now)

    def finished(self, outcome: Outcome, now: float) -> Step:
        """Go on after an `Attempt`.

        Raises:
            RuntimeError: The call did not ask for one.
        """
        if self._state != RUNNING:
            raise self._unexpected(RUNNING)
        state, cluster = self._held, self.cluster
        assert state is not None and cluster is not None
        began_at = self._attempt_at
        is_grpc, failure = self.head.is_grpc, None
        if isinstance(outcome, Response):
            if cluster.checks is not None and IMMEDIATE_FAILURE in outcome.headers:
                cluster.fail_at_once(state)
            is_recorded = not is_grpc or outcome.grpc_status is not None
            is_good = outcome.grpc_status == 0 if is_grpc else outcome.status < 500
        else:
            failure, is_good = outcome, False
            if failure.kind is FailureKind.OVERFLOW:
                return self._overflowed(state.endpoint, failure, now)
            is_recorded = not self._is_idle_timeout(failure)
        if self._has_session:
            self._answered_at = now
        ejected: HostEjected | HostUnejected | None = None
        if cluster.outlier is not None:
            if is_recorded:
                ejected = cluster.record(state, outcome, now, self._rng)
            elif failure is None:
                self._is_unrecorded = True
        learner = cluster.learner
        if learner is not None:
            learner.finished(state, outcome, now - began_at, now, is_grpc=is_grpc)
        if self._has_retry:
            # "The slot is held through backoff and the retried attempt, until the next retry decision."
            self._drop_permit()
        self._is_good = is_good
        if failure is not None:
            self._release()

        number = len(self._tried)
        if failure is not None and (
            (learner is not None and learner.moves_on(cluster.states, self._tried, failure, now))
            or (is_grpc and self._goes_elsewhere(failure, cluster))
        ):
            # The policy's own business, as in gRPC, where a call waits until one of the addresses is connected to.
            wait_s: float | None = 0.0
        elif not self._rules.on or (outcome is GRPC_OK and self._rules.spares_ok):
            wait_s = None
        else:
            wait_s = self._retry_wait_s(outcome, now)
        step: Step
        if wait_s is not None:
            self._release()
            self._is_unrecorded = False
            self._state = WAITING
            step = self._wait(wait_s, now)
        elif failure is not None:
            step = self._finish(failure, self._failure_flag(failure))
        else:
            self._state = DONE
            self.result = outcome
            step = Done(outcome, self.flag)

        hook, meter = self._hook, self._meter
        if hook is not None and ejected is not None:
            hook(ejected)
        if meter is not None and isinstance(outcome, Response):
            assert self.match is not None
            meter.attempted(self.match.cluster, outcome.status, outcome.grpc_status, "", wait_s is not None)
        elif hook is not None:
            hook(attempt_finished(self, state.endpoint, number, outcome, now - began_at, will_retry=wait_s is not None))
        return step

    @property
    def wants_trailers(self) -> bool:
        """Whether `trailers` is to be called with what comes after a response, or with it but not in the outcome."""
        cluster = self.cluster
        return cluster is not None and cluster.learner is not None and cluster.learner.wants_reports

    def trailers(self, metadata: Iterable[tuple[str, str | bytes]], now: float) -> None:
        """Learn from trailers what the service says about its load; before `close`."""
        held, cluster = self._held, self.cluster
        if held is not None and cluster is not None and cluster.learner is not None:
            cluster.learner.trailers(held, metadata, now, is_grpc=self.head.is_grpc)

    def commit(self) -> None:
        """From now on the body cannot be sent again: a stream outgrew what is kept of it."""
        self._replayable = False
        self._was_sent = True

    # --- before the first attempt --------------------------------------------------------------------------------

    def _answer(self, reply: LocalReply, now: float) -> Step:
        """The mesh answers by itself; faults come before."""
        fault = reply.fault if isinstance(reply, FaultedReply) else None
        if reply.flag == "NR" and not self.head.is_grpc:
            fault = self.target.config.listener.fault  # no route, so nobody has overridden it
        if fault is not None:
            self._reply = reply
            self._timeout_at = self.deadline
            step = self._inject(fault, "", now)
            if step is not None:
                return step
        return self._finish(reply, reply.flag)

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

    def _begin(self, match: RouteMatch, now: float) -> Step:
        """Work out what holds for all attempts, and make the first."""
        if match.session is not None:
            match = self._begin_session(match, match.session, now)
        head, action = self.head, match.action
        if self._passage is not None:
            refused = self._passage.enter(match.limits, now, self._rng, after_fault=True)
            if refused is not None:
                return self._local(refused)
            head = self._passage.head
        cluster = self.target.clusters.get(match.cluster)
        if not isinstance(cluster, ClusterState):
            if cluster is None:
                return self._finish(match.cluster_not_found(head), "NC")
            return self._local(no_cluster_reply(head, match.cluster, action.cluster_not_found_status, cluster))
        if cluster.is_aggregate:
            cluster = cluster.choose(self._rng)
        self.cluster = cluster
        options = cluster.config.cluster
        if options.retry is not None and options.retry is not self._plan.retry:
            self._plan = self.target.plan(action, options.retry)
            self._take_limits(match, self._plan)
        for share, category in cluster.drops:
            if self._rng.random() < share:
                if cluster.load is not None:
                    cluster.load.drop(category)
                return self._local(drop_reply(head, share, category))

        # In Envoy's order: timeouts are read before the route changes the headers, retries after.
        out = match.rewrite(without_timeout_headers(head) if self._is_asking else head)
        if match.session is not None:
            out = match.session.opened(out)
        rules = self._plan.rules
        if out is not head or rules.needs_request or self._is_asking:
            rules = rules.for_request(out)
            out = without_retry_headers(out, counts_attempts=match.include_attempt_count)
        if match.body_limit is not None and is_longer(head.headers, match.body_limit):
            rules = NO_RETRIES
        self._out, self._rules = out, rules
        retries = rules.num_retries
        self._retries_left = min(retries, GRPC_MAX_ATTEMPTS - 1) if head.is_grpc else retries
        self._is_hashed = False
        self._one_layer = cluster.safety.one_layer
        self._breaker = cluster.high_breaker if action.high_priority else cluster.breaker

        # "The global timeout starts when the request is complete and an attempt exists": not during an injected delay.
        if self._timeout_s is not None:
            ends_at = now + self._timeout_s
            if self._timeout_at is None or ends_at < self._timeout_at:
                self._timeout_at = ends_at
            if self.deadline is None or ends_at < self.deadline:
                self.deadline = ends_at
        if not head.is_grpc:
            self._stream_try_s = options.max_stream_duration_s
            if self._is_asking:
                self._ask_more(head.headers)
        self._ends_at = self.deadline
        if action.idle_timeout_s and not head.is_grpc:
            idle_at = now + action.idle_timeout_s
            if self.deadline is None or idle_at < self.deadline:
                self._ends_at = idle_at
        if head.memo is not None:
            self._keep_way(match, cluster, head.memo)
        return self._attempt(match, cluster, now)

    def _along(self, way: Way, now: float) -> Step:
        """Begin as another call has begun: what `start` and `_begin` come to for such a call."""
        plan = way.plan
        self.match, self.cluster, self._plan, self._rules = way.match, way.cluster, plan, way.rules
        self._breaker, self._retries_left, self._one_layer = way.breaker, way.retries, way.cluster.safety.one_layer
        self._timeout_s, self._per_try_s, stream_s = plan.grpc
        self._idle_try_s = plan.idle_try_s
        deadline = self._timeout_at = self.deadline
        if stream_s is not None and (deadline is None or self._began_at + stream_s < deadline):
            deadline = self.deadline = self._began_at + stream_s
        self._ends_at = deadline
        return self._attempt(way.match, way.cluster, now)

    def _keep_way(self, match: RouteMatch, cluster: ClusterState, memo: HeadMemo) -> None:
        """Let calls with the same head begin as this one did, if that is the same for all."""
        target, plan = self.target, self._plan
        if (
            is_the_same_for_all(match)
            and self.head.is_grpc
            and not (target.routes.has_chance or self._is_asking or cluster.drops)
            and self._out is self.head
            and self._rules is plan.rules
            and plan.grpc[0] is None
            and self.match is match
            and target.clusters.get(match.cluster) is cluster
        ):
            memo.way = Way(target, match, plan, cluster, self._breaker, self._rules, self._retries_left)

    def _begin_session(self, match: RouteMatch, session: Session, now: float) -> RouteMatch:
        """Read the mark of a request; of a gRPC call it also chooses among the clusters of its route (A55)."""
        if not session.concerns(self.head):
            return match
        self._mark = mark = session.read(self.head, now + self.target.wall_offset_s)
        self._has_session = True
        self._answered_at = now
        if self.head.is_grpc and mark.cluster and mark.cluster != match.cluster:
            sibling = match.siblings.get(mark.cluster)
            if sibling is None:
                self._mark = replace(mark, addresses=())
            else:
                match = self.match = sibling
        return match

    def _take_limits(self, match: RouteMatch, plan: RoutePlan) -> float | None:
        """Take over the times of a plan, or what the request asks for; returns that of the whole exchange."""
        limits = plan.grpc if self.head.is_grpc else plan.http
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

    # --- attempts ------------------------------------------------------------------------------------------------

    def _again(self, now: float) -> Step:
        assert self.match is not None and self.cluster is not None
        routed = self.target.clusters.get(self.match.cluster)
        if isinstance(routed, ClusterState) and routed.is_aggregate:
            leaf = routed.choose(self._rng) if self._elsewhere is None else self._elsewhere[0]
            if not self._move(leaf):
                return self._unable(OVERFLOW)
        return self._attempt(self.match, self.cluster, now)

    def _move(self, leaf: ClusterState) -> bool:
        """Go on with another leaf of an aggregate cluster; False: its limit of retries is reached."""
        if leaf is self.cluster:
            return True
        assert self.match is not None
        breaker = leaf.high_breaker if self.match.action.high_priority else leaf.breaker
        if self._has_retry:
            # The permit is the leaf's, so it moves along.
            self._breaker.release_retry()
            self._has_retry = breaker.try_acquire_retry()
            if not self._has_retry:
                return False
        self.cluster, self._breaker = leaf, breaker
        return True

    def _attempt(self, match: RouteMatch, cluster: ClusterState, now: float) -> Step:
        deadline, tried = self._ends_at, self._tried
        if deadline is not None and now >= deadline:
            return self._expired(now)
        picker = cluster.picker
        cluster.memory.now = now
        state = None
        if match.session is not None and not tried:
            state, is_final = self._of_session(match.session, cluster)
            if is_final:
                return self._local(NO_HOST)
        if state is None and cluster.config.cluster.named_by:
            state = self._next_named(cluster)
        if state is None and cluster.trials is not None and not tried:
            hash_ = self._hash_for(match, cluster) if picker.uses_hash else None
            state = cluster.trials.pick(match.criteria, hash_, self._rng, now)
        if state is None:
            if tried or picker.has_subsets or picker.uses_hash:
                state = self._pick(picker, match, cluster)
            else:
                state = picker.pick(None, self._rng)
        if state is None:
            return self._unable(NO_HOST)
        if not cluster.acquire(self._breaker, state):
            return self._unable(OVERFLOW)
        self._held = state
        self._is_good = False
        tried.append(state)
        endpoint = state.endpoint
        tls = cluster.tls_for(endpoint)
        if tls is not None and (names := cluster.config.cluster.authority_names) is not None:
            tls = cluster.tls_for_request(tls, names, self._out)
        self._tls = tls
        self._attempt_at = now
        self._state = RUNNING
        timeout_s = self._per_try_s
        if self._idle_try_s is not None and (timeout_s is None or self._idle_try_s < timeout_s):
            timeout_s = self._idle_try_s
        self._is_deadline_next = False
        if self._is_stream_next:
            self._is_stream_next = False
        if self._stream_try_s is not None and (timeout_s is None or self._stream_try_s < timeout_s):
            timeout_s = self._stream_try_s
            self._is_stream_next = True
        if deadline is not None and (timeout_s is None or deadline - now < timeout_s):
            timeout_s = deadline - now
            self._is_deadline_next = True
        out = self._out
        if match.action.auto_host_rewrite:
            out = match.rewrite_for(out, endpoint)
        number = len(tried)
        if number == 1 and (memo := out.memo) is not None and memo.counted is not None and match.include_attempt_count:
            out = memo.counted
        else:
            out = self._written(out, number, match, deadline, now)
        attempt = Attempt(number, cluster, endpoint, tls, timeout_s, out)
        return self._launched(attempt, now) if self._is_hedged else attempt

    def _pick(self, picker: Picker, match: RouteMatch, cluster: ClusterState) -> EndpointState | None:
        """Choose an endpoint by all that may have a say: what was tried before, subsets, the request's hash."""
        if self._elsewhere is not None:
            (_, found), self._elsewhere = self._elsewhere, None
            return found
        retry, tried = self._plan.retry, self._tried
        if tried and retry is not None and retry.priority_update:
            picker = self._other_priorities(cluster, retry.priority_update)
        if picker.has_subsets:
            picker = picker.within(match.criteria)
        hash_ = self._hash_for(match, cluster) if picker.uses_hash else None
        if tried and retry is not None and retry.chooses_hosts:
            avoid = unwanted_hosts(retry, tried)
            return picker.pick(hash_, self._rng, avoid, retry.host_selection_attempts)
        return picker.pick(hash_, self._rng)

    def _goes_elsewhere(self, failure: Failure, cluster: ClusterState) -> bool:
        """Whether another endpoint is there for a gRPC call that its own could not be connected to.

        gRPC's policies pick among endpoints that are connected, and pass over priorities without any; what has not left
        the client is no retry (gRFC A6).
        """
        match = self.match
        if failure.kind is not FailureKind.CONNECT or failure.request_sent or self._is_hedged:
            return False
        if match is None or match.session is not None or self._named is not None:
            return False
        if not self._unreachable:
            self._unreachable = []
        if len(self._unreachable) >= MAX_UNREACHABLE:
            return False
        self._unreachable.append(self._tried[-1])

        routed = self.target.clusters.get(match.cluster)
        # The leaves of an aggregate cluster are lower priorities (gRFC A37).
        others = routed.leaves if isinstance(routed, AggregateState) else ()
        for leaf in (cluster, *(other for other in others if other is not cluster)):
            hash_ = self._hash_for(match, leaf) if leaf.picker.uses_hash else None
            found = another_host(leaf, self._unreachable, match.criteria, hash_, self._rng)
            if found is not None:
                self._elsewhere = leaf, found
                return True
        return False

    def _written(
        self, out: RequestHead, number: int, match: RouteMatch, deadline: float | None, now: float
    ) -> RequestHead:
        """Return the head of an attempt with what concerns its number and the time left."""
        expected_s = self._per_try_s
        if self._timeout_at is not None and (expected_s is None or self._timeout_at - now < expected_s):
            expected_s = self._timeout_at - now
        # Only a request that brought a grpc-timeout has it looked for again.
        left_s = deadline - now if self._is_asking and deadline is not None else None
        if number == 1:
            return written_head(out, 1, match.include_attempt_count, expected_s, left_s)
        return written_head(
            out,
            number,
            match.include_attempt_count,
            expected_s,
            left_s,
            is_marked=self._one_layer,
            is_timeout_retry=self._is_timeout_retry if match.include_timeout_retry else None,
        )

    def _other_priorities(self, cluster: ClusterState, update_frequency: int) -> Picker:
        """Return the picker of a retry which avoids the priorities that were tried."""
        if self._priorities is None:
            self._priorities = TriedPriorities()
        self._priorities.add(self._tried[-1])
        return self._priorities.picker(cluster, update_frequency)

    def _of_session(self, session: Session, cluster: ClusterState) -> tuple[EndpointState | None, bool]:
        """Return the endpoint that the request belongs to, and whether without it no other may be taken."""
        addresses = self._mark.addresses
        if not addresses:
            return None, False
        state = cluster.override(addresses, is_grpc=self.head.is_grpc)
        return state, state is None and session.is_strict

    def _next_named(self, cluster: ClusterState) -> EndpointState | None:
        """Return the next endpoint that the request names (the `override_host` policy); None: the policy chooses.

        What it names is read once: retries go on along the list, in Envoy as here.
        """
        if self._named is None:
            self._named = named_endpoints(self._out.headers, cluster.config.cluster.named_by)
        return cluster.next_named(self._named) if self._named else None

    def _hash_for(self, match: RouteMatch, cluster: ClusterState) -> int | None:
        """Return the request's hash, the same for all attempts: by the policies of the route, or else the cluster's."""
        policy = cluster.config.cluster.lb_policy
        while isinstance(policy, RandomSubsetting):
            policy = policy.child
        if isinstance(policy, RingHash | Maglev) and policy.hash_policies:
            return cluster_hash(policy.hash_policies)(self._out, None)
        if not self._is_hashed:
            self._is_hashed = True
            maker = None
            if match.makes_cookies:
                maker = CookieMaker(self.target.client_id(self._rng))
                self._cookies = maker.lines
            self._hash = match.hash(self._out, maker)
        return self._hash

    # --- after an attempt ----------------------------------------------------------------------------------------

    def _wait(self, wait_s: float, now: float) -> Step:
        if self._ends_at is not None and wait_s > self._ends_at - now:
            wait_s = self._ends_at - now  # Then `slept` finds that time is over.
        return Sleep(wait_s) if wait_s > 0 else self._again(now)
