"""Limits on concurrent work, per cluster and priority (Envoy's thresholds).

`max_requests` and `max_retries` are counted here. `max_connections` and `max_pending_requests` concern connections:
the pools read them from `limits`.
"""

from meshlib.model.cluster import CircuitBreakers
from meshlib.ports import Lock
from meshlib.resilience.budget import retry_limit

__all__ = ["CircuitBreaker"]


class CircuitBreaker:
    """Counts what is in flight. Changing the limits keeps the counts.

    Attributes:
        limits: Swapped by updates, one assignment.
        active: Requests in flight; guarded by the lock.
        retries: Retries waiting or in flight; guarded by the lock.
    """

    __slots__ = ("active", "limits", "lock", "retries")

    def __init__(self, limits: CircuitBreakers, lock: Lock) -> None:
        """Make a breaker.

        Args:
            lock: May be shared with what else is counted with each request.
        """
        self.limits = limits
        self.lock = lock
        self.active = 0
        self.retries = 0

    def try_acquire(self) -> bool:
        """Take a permit for a request; False: the limit is reached, nothing is taken."""
        with self.lock:
            if self.active >= self.limits.max_requests:
                return False
            self.active += 1
            return True

    def release(self) -> None:
        """Give the permit of a request back."""
        with self.lock:
            self.active -= 1

    def try_acquire_retry(self) -> bool:
        """Take a permit for a retry; False: the limit is reached, nothing is taken.

        Call it while the failed attempt still holds its request permit or not, as Envoy does not count it any more:
        after `release`.
        """
        with self.lock:
            if self.retries >= retry_limit(self.limits, self.active):
                return False
            self.retries += 1
            return True

    def release_retry(self) -> None:
        """Give the permit of a retry back."""
        with self.lock:
            self.retries -= 1
