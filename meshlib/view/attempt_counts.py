"""What of one cluster's attempts is counted: for its limits, the process's own budget of retries, and load reports."""

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.model.cluster import Cluster
from meshlib.model.retry import Safety
from meshlib.ports import Lock
from meshlib.resilience.budget import RetryAccount
from meshlib.resilience.circuit_breaker import CircuitBreaker
from meshlib.xds.load_report import ClusterLoad

__all__ = ["AttemptCounts"]


class AttemptCounts:
    """The counts of a cluster, over all its configurations. For any thread.

    Attributes:
        breaker: Limits and counts of requests of the default priority.
        high_breaker: Of routes with high priority.
        attempts: So far; guarded by the lock.
        account: What retries may still be made by the process's own budget; None: it has none.
        load: What is counted for the management server; None: it does not want to know.
    """

    __slots__ = ("_lock", "account", "attempts", "breaker", "high_breaker", "load")

    def __init__(self, cluster: Cluster, safety: Safety, now: float) -> None:
        # Guards the counts of both breakers and of the endpoints, and what the cluster itself says it guards.
        self._lock = Lock()
        self.account = None if safety.budget is None else RetryAccount(safety.budget, now)
        self.attempts = 0
        self.breaker = CircuitBreaker(cluster.circuit_breakers, self._lock)
        self.high_breaker = CircuitBreaker(cluster.high_priority_circuit_breakers, self._lock)
        self.load: ClusterLoad | None = None

    def limit(self, cluster: Cluster) -> None:
        """Have the limits of a later configuration."""
        self.breaker.limits = cluster.circuit_breakers
        self.high_breaker.limits = cluster.high_priority_circuit_breakers

    def acquire(self, breaker: CircuitBreaker, state: EndpointState) -> bool:
        """Count an attempt in; False: the limit of requests is reached, nothing is counted."""
        with self._lock:
            if breaker.active < breaker.limits.max_requests:
                breaker.active += 1
                self.attempts += 1
                state.active += 1
                if state.load is not None:
                    state.load.begin()
                return True
        if self.load is not None:
            self.load.drop()
        return False

    def release(self, breaker: CircuitBreaker, state: EndpointState, *, is_success: bool = True) -> None:
        """Count an attempt out.

        Args:
            is_success: For load reports: the service answered, and with no error of its own.
        """
        with self._lock:
            breaker.active -= 1
            state.active -= 1
            if state.load is not None:
                state.load.end(is_success=is_success)

    def _in_flight(self) -> int:
        return self.breaker.active + self.high_breaker.active
