"""What one call has found out that holds for the next."""

from collections.abc import Iterable
from types import EllipsisType
from typing import Any, Final

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.call.limits import is_control_name
from meshlib.call.replies import NO_HOST, OVERFLOW
from meshlib.model.outcome import LocalReply
from meshlib.model.request import RequestHead
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
    calls with metadata too that the way `spares`. What may change from call to call is looked at anew: the configuration,
    drops, the endpoint, breakers, time.

    Nine calls in ten go well at the first attempt, and then a `Call` of their own would have nothing to decide: where
    `is_express` a shell may `begin` one here, and tell the cluster that it `succeeded`, unless that has a learner by then.
    For any other ending, and whenever somebody wants to know more, `Call.join` makes the call that there would have been.

    Attributes:
        target: Whose routes were asked; another view of it asks again.
        path: Of the method.
        config: The cluster's: the same.
        rules: Of retries, with what the head asks for.
        retries: At most.
        stream_s: Of the whole exchange, in seconds; None: no limit.
        limit_s: Of a first attempt, whatever the application says, in seconds; None: no limit.
        is_express: `begin` can be asked.
        known: For a shell: what it keeps by endpoint.
    """

    __slots__ = (
        "_head",
        "_reads",
        "_spared",
        "breaker",
        "cluster",
        "config",
        "is_express",
        "known",
        "limit_s",
        "match",
        "path",
        "plan",
        "retries",
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
            head: Of a call that goes it.
        """
        self._head = head
        self.path = head.path
        self._reads: frozenset[str] | EllipsisType | None = ...  # not known yet
        self._spared: set[str] = set()
        self.target = target
        self.match = match
        self.plan = plan
        self.cluster = cluster
        self.config: ClusterConfig = cluster.config
        self.breaker = breaker
        self.rules = rules
        self.retries = retries
        self.stream_s = plan.grpc[2]
        limits = [limit_s for limit_s in (*plan.grpc, plan.idle_try_s) if limit_s is not None]
        self.limit_s = min(limits, default=None)
        self.known: dict[object, Any] = {}
        options = cluster.config.cluster
        self.is_express = (
            not target.has_demands
            and not match.action.auto_host_rewrite
            and not options.named_by
            and options.authority_names is None
            and (not rules.on or rules.spares_ok)
        )

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
