"""Limits on concurrent work, per cluster and priority (Envoy's thresholds).

`max_requests` and `max_retries` are counted for every attempt. `max_connections` and `max_pending_requests` are counted
by the pools of HTTP/1.1 connections, and only when a request finds no connection that is ready.
"""

from collections import deque

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
        connections: Open, or being opened; guarded by the lock.
        pending: Requests that wait for a connection, their own included; guarded by the lock.
    """

    __slots__ = ("_abandoned", "active", "connections", "limits", "lock", "pending", "retries")

    def __init__(self, limits: CircuitBreakers, lock: Lock) -> None:
        """Make a breaker.

        Args:
            lock: May be shared with what else is counted with each request.
        """
        self.limits = limits
        self.lock = lock
        self.active = 0
        self.retries = 0
        self.connections = 0
        self.pending = 0
        self._abandoned: deque[int] = deque()

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

        Call it before `release`: of a retry budget the failed attempt is one of the requests, as in Envoy.
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

    def try_pend(self) -> bool:
        """Let a request wait for a connection; False: too many wait already, nothing is counted."""
        with self.lock:
            if self.pending >= self.limits.max_pending_requests:
                return False
            self.pending += 1
            return True

    def end_pending(self) -> None:
        """A request has its connection, or waits no longer."""
        with self.lock:
            self.pending -= 1

    def try_connect(self, *, is_first: bool, of_host: int = 0) -> bool:
        """Take a permit to open a connection; False: the limit is reached, nothing is taken.

        Args:
            of_host: Connections that the endpoint has, in the pool that asks.
            is_first: The endpoint has none. "A host with no connection at all may always open one."
        """
        with self.lock:
            while self._abandoned:
                self.connections -= self._abandoned.popleft()
            limits = self.limits
            if not is_first:
                of_host_limit = limits.max_connections_per_host
                if self.connections >= limits.max_connections:
                    return False
                if of_host_limit is not None and of_host >= of_host_limit:
                    return False
            self.connections += 1
            return True

    def disconnected(self, count: int = 1) -> None:
        """Give the permits of connections back."""
        with self.lock:
            self.connections -= count

    def abandon(self, count: int) -> None:
        """As `disconnected`, for finalisers: they run anywhere, also while the lock is held, so none is taken here."""
        self._abandoned.append(count)
