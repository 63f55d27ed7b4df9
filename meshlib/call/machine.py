"""The machine of one call; `meshlib.call` says what it is for."""

from collections.abc import Iterable
from dataclasses import replace

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.picker import Picker
from meshlib.call.beginning import Beginnings
from meshlib.call.choosing import HostChoice
from meshlib.call.endings import DELAYED, DONE, NEW, RUNNING, WAITING
from meshlib.call.limiting import Passage
from meshlib.call.limits import (
    has_control_headers,
    is_longer,
    with_grpc_timeout,
    without_retry_headers,
    without_timeout_headers,
    written_head,
)
from meshlib.call.repeat import capped_retries
from meshlib.call.replies import MAINTENANCE, NO_HOST, OVERFLOW, OVERFLOW_AGAIN, drop_reply, no_cluster_reply
from meshlib.call.report import attempt_finished
from meshlib.call.steps import Attempt, Done, Sleep, Step
from meshlib.call.way import Way
from meshlib.events import HostEjected, HostUnejected
from meshlib.model.cluster import Cluster
from meshlib.model.outcome import GRPC_OK, NOT_REACHED, FailureKind, LocalReply, Outcome, Response
from meshlib.model.profile import HTTP
from meshlib.model.request import Moment, RequestHead
from meshlib.resilience.classify import as_grpc_answer
from meshlib.resilience.health_check import IMMEDIATE_FAILURE
from meshlib.resilience.retry import NO_RETRIES
from meshlib.routing.mirror import pick_mirrors
from meshlib.routing.prepare import EarlyAnswer
from meshlib.routing.table import RouteMatch
from meshlib.view import AggregateState, ClusterState

__all__ = ["Call"]


class Call(Beginnings, HostChoice):
    """One call. Used by one thread or task at a time."""

    __slots__ = ()

    # --- the machine ---------------------------------------------------------------------------------------------

    def start(self, now: float, found: RouteMatch | LocalReply | None = None) -> Step:
        """Begin. Call it once.

        Args:
            found: What the routes say of the call, if they were asked already: where chance has a part in it they would
                say something else the next time.

        Raises:
            RuntimeError: It began already.
        """
        if self._state != NEW:
            raise self._unexpected(NEW)
        head, routes = self.head, self.target.routes
        if head.memo is not None and (way := head.memo.way) is not None and way.holds(self.target):
            return self._along(way, now)
        if routes.needs_moment and head.moment is None:
            wall_now = now + self.target.wall_offset_s
            moment = Moment(self.target.hostname, wall_now, self._rng, self.target.metadata_of)
            head = self.head = self._out = head.but(moment=moment)
        if routes.prepare is not None:
            prepared = routes.prepare(head)
            if isinstance(prepared, EarlyAnswer):
                return self._finish(routes.local_reply(prepared.reply, prepared.head))
            head = self.head = prepared
        if found is None:
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
            self._timeout_s, self._per_try_s, stream_s = plan.grpc if head.profile.grpc_times else plan.http
            self._idle_try_s = plan.idle_try_s
        if head.is_grpc and stream_s is not None and not head.profile.grpc_times:
            self.head = with_grpc_timeout(self.head, found.action, stream_s)
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
        if self.head.moment is not None:
            self.head.moment.goes_on(now + self.target.wall_offset_s)
        if self._state == DELAYED:
            if self.deadline is not None and now >= self.deadline:
                return self._expired(now)
            if self._abort is not None:
                return self._local(self._abort)
            if self._reply is not None:
                return self._answer_after_fault(self._reply, now)
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
        profile, failure = self.head.profile, None
        if isinstance(outcome, Response):
            is_recorded = not profile.grpc_results or outcome.grpc_status is not None
            is_good = self._is_success(outcome)
        else:
            failure, is_good = outcome, False
            if failure.kind is FailureKind.OVERFLOW:
                return self._overflowed(state.endpoint, failure, now)
            if profile.connects_first and failure.kind in NOT_REACHED:
                cluster.has_lost = True
            if not self._replayable and failure.kind is FailureKind.TIMEOUT:
                self._see_whose_time_is_over(now)
            is_recorded = not self._is_limit_of_stream(failure)
        if self._has_session:
            self._answered_at = now
        assert self.match is not None
        if (
            self.match.action.auto_host_rewrite
            and not profile.grpc_authority
            and not (failure and failure.kind in NOT_REACHED)
        ):
            # In Envoy what comes later finds the host that the endpoint was given: retries, redirects, formats.
            self._out = self.match.rewrite_for(self._out, state.endpoint)
        if self.head.moment is not None:
            self.head.moment.goes_on(now + self.target.wall_offset_s)
        ejected: HostEjected | HostUnejected | None = None
        by_grpc = profile.grpc_outliers
        if (cluster.grpc_outlier if by_grpc else cluster.outlier) is not None:
            if is_recorded:
                counted = outcome
                if self.head.is_grpc and not profile.grpc_results and isinstance(outcome, Response):
                    counted = as_grpc_answer(outcome)
                ejected = cluster.record(state, counted, now, self._rng, is_grpc=by_grpc)
            elif failure is None:
                self._is_unrecorded = True
        if cluster.checks is not None and isinstance(outcome, Response) and IMMEDIATE_FAILURE in outcome.headers:
            # After outlier detection, as in Envoy: the endpoint may go for good with this.
            cluster.fail_at_once(state)
        learner = cluster.learner
        if learner is not None:
            learner.finished(state, outcome, now - began_at, now, is_grpc=profile.grpc_weights)
        if self._has_retry:
            # "The slot is held through backoff and the retried attempt, until the next retry decision."
            self._drop_permit()
        self._is_good = is_good

        number = len(self._tried)
        if failure is not None and (
            (learner is not None and learner.moves_on(cluster.states, self._tried, failure, now))
            or (profile.connects_first and self._goes_elsewhere(failure, cluster))
        ):
            # The policy's own business, as in gRPC, where a call waits until one of the addresses is connected to.
            wait_s: float | None = 0.0
        elif not self._rules.on or (outcome is GRPC_OK and self._rules.spares_ok):
            wait_s = None
        else:
            wait_s = self._retry_wait_s(outcome, now)
        if wait_s is not None or failure is not None:
            self._release()  # Only now: Envoy counts the attempt among the requests of which a retry budget is a share.
        step: Step
        if wait_s is not None:
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
            cluster.learner.trailers(held, metadata, now, is_grpc=self.head.profile.grpc_weights)

    def commit(self) -> None:
        """From now on the body cannot be sent again: a stream outgrew what is kept of it."""
        self._replayable = False
        self._was_sent = True

    # --- before the first attempt --------------------------------------------------------------------------------

    def _begin(self, match: RouteMatch, now: float) -> Step:
        """Work out what holds for all attempts, and make the first."""
        if match.session is not None:
            match = self._begin_session(match, match.session, now)
        head, action, profile = self.head, match.action, self.head.profile
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
        options = cluster.config.cluster
        if options.maintenance_percent and self._rng.getrandbits(64) % 100 < options.maintenance_percent:
            return self._local(MAINTENANCE)
        # Retries, hashes and copies are the business of the cluster that the route names, also if it is an aggregate;
        # attempts are that of the leaf. Drops are Envoy's `cluster` and gRPC's leaf (A37).
        routed, drops, picker = cluster, cluster.drops, cluster.picker
        if cluster.is_aggregate:
            cluster, picker = cluster.choose(self._rng)
            if profile.grpc_drops:
                drops = cluster.drops
        self.cluster = cluster
        if options.retry is not None and options.retry is not self._plan.retry:
            self._plan = self.target.plan(action, match.retry, options.retry)
        if options.mirrors:
            mirrors = pick_mirrors(options.mirrors, self._rng.getrandbits(64), head)
            match = self.match = replace(match, mirrors=mirrors)
        for share, category in drops:
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
        self._retries_left = capped_retries(rules.num_retries, profile)
        self._is_hashed = False
        self._one_layer = cluster.safety.one_layer
        self._breaker = cluster.high_breaker if action.high_priority else cluster.breaker
        self._retry_breaker = routed.high_breaker if action.high_priority else routed.breaker
        if options.hash_policies:
            self._own_hashes = options.hash_policies

        self._set_end(cluster.config.cluster, head, now)
        if head.memo is not None or head.kin is not None:
            self._keep_way(match, cluster, head)
        elif self.target.is_plain and profile is HTTP and not (options.mirrors or match.mirrors):
            ways = self.target.ways
            if match not in ways or ((way := ways[match]) is not None and way.config is not cluster.config):
                self._keep_http_way(match, cluster)
        return self._attempt(match, cluster, picker, now)

    def _set_end(self, options: Cluster, head: RequestHead, now: float) -> None:
        """Work out when the call, and its attempts, must be over."""
        # "The global timeout starts when the request is complete and an attempt exists": not during an injected delay.
        if self._timeout_s is not None:
            if not self._replayable:
                self._whole_at = self.deadline
            ends_at = now + self._timeout_s
            if self._timeout_at is None or ends_at < self._timeout_at:
                self._timeout_at = ends_at
            if self.deadline is None or ends_at < self.deadline:
                self.deadline = ends_at
        by_grpc = head.profile.grpc_times
        if not by_grpc:
            self._stream_try_s = options.max_stream_duration_s
            if self._is_asking:
                self._ask_more(head.headers)
        self._ends_at = self.deadline
        idle_s = self._plan.idle_s
        if idle_s is not None and not by_grpc:
            self._idle_stream_s = idle_s
            idle_at = now + idle_s
            if self.deadline is None or idle_at < self.deadline:
                self._ends_at = idle_at

    def join(self, way: Way, begun: EndpointState | LocalReply, now: float) -> Step:
        """Take over a call that was begun without one; instead of `start`.

        Args:
            begun: What `Way.begin` returned.
            now: When it did.

        Raises:
            RuntimeError: It began already.
        """
        if self._state != NEW:
            raise self._unexpected(NEW)
        if way.rewrites and way.profile is HTTP:
            out = way.rewritten(self.head)
            assert out is not None  # or it would not have begun there
            self._out = out
        return self._along(way, now, begun)

    def answered(self, response: Response) -> None:
        """Note the response of the attempt that `join` returned, of which all have heard who are to; instead of `finished`."""
        self._is_good = self._is_success(response)
        self._state = DONE
        self.result = response

    def _along(self, way: Way, now: float, begun: EndpointState | LocalReply | None = None) -> Step:
        """Begin as another call has begun: what `start` and `_begin` come to for such a call."""
        plan = way.plan
        self.match, self.cluster, self._plan, self._rules = way.match, way.cluster, plan, way.rules
        self._breaker = self._retry_breaker = way.breaker
        self._retries_left, self._one_layer = way.retries, way.cluster.safety.one_layer
        self._timeout_s, self._per_try_s, stream_s = plan.grpc if way.profile.grpc_times else plan.http
        self._idle_try_s = plan.idle_try_s
        deadline = self._timeout_at = self.deadline
        if stream_s is not None and (deadline is None or self._began_at + stream_s < deadline):
            self.deadline = self._began_at + stream_s
        self._set_end(way.config.cluster, self.head, now)
        if isinstance(begun, LocalReply):
            return self._unable(begun)
        return self._attempt(way.match, way.cluster, way.cluster.picker, now, begun)

    # --- attempts ------------------------------------------------------------------------------------------------

    def _again(self, now: float) -> Step:
        assert self.match is not None and self.cluster is not None
        routed = self.target.clusters.get(self.match.cluster)
        if isinstance(routed, AggregateState):
            leaf, picker = self._next_leaf(routed)
            self._move(leaf)
            return self._attempt(self.match, leaf, picker, now)
        return self._attempt(self.match, self.cluster, self.cluster.picker, now)

    def _attempt(
        self, match: RouteMatch, cluster: ClusterState, picker: Picker, now: float, state: EndpointState | None = None
    ) -> Step:
        """Make an attempt.

        Args:
            picker: The cluster's, or that for the part of it which an aggregate cluster has chosen.
            state: The endpoint, when it is chosen and counted in.
        """
        deadline, tried = self._ends_at, self._tried
        if state is None:
            if deadline is not None and now >= deadline:
                return self._expired(now)
            cluster.memory.now = now
            if match.session is not None and not tried:
                state, is_final = self._of_session(match.session, cluster)
                if is_final:
                    return self._unable(NO_HOST)
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
                self._refused = state.endpoint
                return self._unable(OVERFLOW_AGAIN if tried else OVERFLOW)
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

    # --- after an attempt ----------------------------------------------------------------------------------------

    def _wait(self, wait_s: float, now: float) -> Step:
        if self._ends_at is not None and wait_s > self._ends_at - now:
            wait_s = self._ends_at - now  # Then `slept` finds that time is over.
        return Sleep(wait_s) if wait_s > 0 else self._again(now)
