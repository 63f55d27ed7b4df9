"""What one call has found out that holds for the next."""

from meshlib.model.snapshot import ClusterConfig
from meshlib.resilience.circuit_breaker import CircuitBreaker
from meshlib.resilience.retry import RetryRules
from meshlib.routing.table import RouteMatch
from meshlib.view import ClusterState, RoutePlan, TargetView

__all__ = ["Way", "is_the_same_for_all"]


class Way:
    """The way of all calls with one head to one target, from their beginning to their first attempt.

    gRPC calls without metadata share a head, so what is worked out for the first of them holds for all, as long as chance
    has no part in it: routes that draw lots, faults, limits, sessions, hedging and aggregate clusters leave none. What may
    change from call to call is looked at anew: the configuration, drops, the endpoint, breakers, time.

    Attributes:
        target: Whose routes were asked; another view of it asks again.
        config: The cluster's: the same.
        rules: Of retries, with what the head asks for.
        retries: At most.
        stream_s: Of the whole exchange, in seconds; None: no limit.
    """

    __slots__ = ("breaker", "cluster", "config", "match", "plan", "retries", "rules", "stream_s", "target")

    def __init__(
        self,
        target: TargetView,
        match: RouteMatch,
        plan: RoutePlan,
        cluster: ClusterState,
        breaker: CircuitBreaker,
        rules: RetryRules,
        retries: int,
    ) -> None:
        self.target = target
        self.match = match
        self.plan = plan
        self.cluster = cluster
        self.config: ClusterConfig = cluster.config
        self.breaker = breaker
        self.rules = rules
        self.retries = retries
        self.stream_s = plan.grpc[2]

    def holds(self, target: TargetView) -> bool:
        """Whether nothing has changed since."""
        cluster = self.cluster
        return self.target is target and self.config is cluster.config and not cluster.drops


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
