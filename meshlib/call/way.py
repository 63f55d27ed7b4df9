"""What one call has found out that holds for the next."""

from collections.abc import Iterable
from types import EllipsisType
from typing import Any, Final

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.call.limits import is_control_name, without_retry_headers, written_head
from meshlib.call.replies import NO_HOST, OVERFLOW
from meshlib.model.outcome import LocalReply
from meshlib.model.profile import HTTP
from meshlib.model.request import Headers, RequestHead
from meshlib.model.snapshot import ClusterConfig
from meshlib.ports import Rng
from meshlib.resilience.circuit_breaker import CircuitBreaker
from meshlib.resilience.retry import RetryRules
from meshlib.routing.reads import names_read
from meshlib.routing.table import RouteMatch
from meshlib.view import ClusterState, RoutePlan, TargetView

__all__ = ["Way", "is_the_same_for_all"]

_MAX_SPARED: Final = 256
"""Names of metadata that are known to have no say; applications use a few, and what makes names up shall cost no memory."""


class Way:
    """The way of all calls of one method to one target, from their beginning to their first attempt.

    gRPC calls without metadata share a head, so what is worked out for the first of them holds for all, as long as chance
    has no part in it: routes that draw lots, faults, limits, sessions, hedging and aggregate clusters leave none. It holds for
    calls with metadata too that the way `spares`. HTTP calls that take one route share a way where besides nothing of the
    head matters after that but how the route changes it. What may change from call to call is looked at anew: the
    configuration, drops, the endpoint, breakers, time.

    Nine calls in ten go well at the first attempt, and then a `Call` of their own would have nothing to decide: where
    `is_express` a shell may `begin` one here, and tell the cluster that it `succeeded`, unless that has a learner by then.
    For any other ending, and whenever somebody wants to know more, `Call.join` makes the call that there would have been.

    Attributes:
        profile: Of its calls.
        target: Whose routes were asked; another view of it asks again.
        path: Of the method.
        config: The cluster's: the same.
        rules: Of retries, with what the head asks for.
        retries: At most.
        stream_s: Of the whole exchange, in seconds; None: no limit.
        limit_s: Of a first attempt, whatever the application says, in seconds; None: no limit.
        body_s: Of a first attempt that was answered, to the end of the response's body; None: no limit.
        expected_s: How long a first attempt may take, as it says itself; None: no limit.
        added: Headers that a first attempt gets from the mesh.
        is_express: `begin` can be asked.
        rewrites: Heads of HTTP calls are not sent as they are: `rewritten` says how.
        final_below: The HTTP status below which a response may go to the caller without more ado; 0: none.
        known: For a shell: what it keeps by endpoint.
    """

    __slots__ = (
        "_head",
        "_reads",
        "_spared",
        "added",
        "body_s",
        "breaker",
        "cluster",
        "config",
        "expected_s",
        "final_below",
        "idle_s",
        "is_express",
        "known",
        "limit_s",
        "match",
        "path",
        "plan",
        "profile",
        "retries",
        "rewrites",
        "rules",
        "stream_s",
        "target",
    )

    def __init__(
        self,
        target: TargetView,
        match: RouteMatch,
        plan: RoutePlan,
        cluster: ClusterState,
        breaker: CircuitBreaker,
        rules: RetryRules,
        retries: int,
        head: RequestHead,
    ) -> None:
        """Note a way.

        Args:
            head: Of a call that goes it; of HTTP calls only the profile matters.
        """
        self._head = head
        self.path = head.path
        self._reads: frozenset[str] | EllipsisType | None = ...  # not known yet
        self._spared: set[str] = set()
        self.profile = head.profile
        self.target = target
        self.match = match
        self.plan = plan
        self.cluster = cluster
        self.config: ClusterConfig = cluster.config
        self.breaker = breaker
        self.rules = rules
        self.retries = retries
        options, action = cluster.config.cluster, match.action
        self.idle_s = _least(plan.idle_s, plan.idle_try_s)
        timeout_s, per_try_s, self.stream_s = plan.grpc if self.profile.grpc_times else plan.http
        self.body_s = _least(timeout_s, self.stream_s)
        self.limit_s = _least(self.body_s, per_try_s, plan.idle_try_s)
        if not self.profile.grpc_times:
            self.body_s = _least(self.body_s, options.max_stream_duration_s)
            self.limit_s = _least(self.limit_s, self.body_s, plan.idle_s)
        self.known: dict[object, Any] = {}
        self.expected_s = _least(per_try_s, timeout_s)
        self.added = self.added_within(self.expected_s)
        self.rewrites = match.changes_requests
        is_final = not (match.changes_responses or match.include_attempt_count_in_response or action.internal_redirect)
        self.final_below = 500 if is_final else 0
        self.is_express = (
            not target.has_demands
            and not action.auto_host_rewrite
            and not options.named_by
            and options.authority_names is None
            and (self.profile is HTTP or not rules.on or rules.spares_ok)
        )

    def added_within(self, expected_s: float | None) -> tuple[tuple[str, str], ...]:
        """Return what the headers of a first attempt get that may take no longer than that."""
        nothing = RequestHead("GET", "", "/", Headers(), profile=self.profile)
        return written_head(nothing, 1, self.match.include_attempt_count, expected_s, None).headers.items

    def rewritten(self, head: RequestHead) -> RequestHead | None:
        """Return the head of an HTTP call as the route changes it; None: that says more of retries, as a `Call` would see."""
        match = self.match
        out = match.rewrite(head)
        return out if without_retry_headers(out, counts_attempts=match.include_attempt_count) is out else None

    def holds(self, target: TargetView) -> bool:
        """Whether nothing has changed since."""
        cluster = self.cluster
        return self.target is target and self.config is cluster.config and not cluster.drops

    def reads(self, rng: Rng) -> frozenset[str] | None:
        """Return the names of the headers that have a say in whether a call goes this way; None: any may."""
        reads = self._reads
        if reads is ...:
            reads = self._reads = names_read(self.target.routes, self._head, self.match, rng)
        return reads

    def spares(self, metadata: Iterable[tuple[str, object]], rng: Rng) -> bool:
        """Whether metadata change nothing for a call but what it sends."""
        spared = self._spared
        return all(name in spared or self._has_no_say(name, rng) for name, _ in metadata)

    def _has_no_say(self, name: str, rng: Rng) -> bool:
        reads = self.reads(rng)
        if reads is None or type(name) is not str or name in reads or is_control_name(name):
            return False
        if len(self._spared) < _MAX_SPARED:
            self._spared.add(name)
        return True

    def begin(self, now: float, rng: Rng) -> EndpointState | LocalReply | None:
        """Choose and count in the endpoint of a first attempt, as `Call.start` would; the target is known to be the same.

        Returns:
            Where to go; or why there is no attempt, of which `Call.join` is to be told; None: nothing was done, a
            `Call` has to see to it.
        """
        cluster = self.cluster
        if self.config is not cluster.config or cluster.drops or cluster.trials is not None:
            return None
        picker = cluster.picker
        if cluster.learner is not None or picker.uses_hash or picker.has_subsets:
            return None
        cluster.memory.now = now
        state = picker.pick(None, rng)
        if state is None:
            return NO_HOST
        return state if cluster.acquire(self.breaker, state) else OVERFLOW


def _least(*limits: float | None) -> float | None:
    return min((limit_s for limit_s in limits if limit_s is not None), default=None)


def is_the_same_for_all(match: RouteMatch) -> bool:
    """Whether calls with one head that take a route are all to begin alike."""
    return (
        match.fault is None
        and not match.limits
        and match.session is None
        and match.hedge is None
        and not match.mirrors
        and match.body_limit is None
    )
