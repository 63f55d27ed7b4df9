"""Which connection pools exist: one per endpoint and TLS identity, never a shared one.

A pool that holds the connections of many endpoints looks at all of them on every request: with 200 idle connections
httpcore 1.0.9 spends 14.7 ms a request that way, and 0.2 ms with a pool per endpoint.

Nobody has to say that an endpoint is gone or a certificate was rotated: calls then stop asking for that pool, and a
pool without a call for `idle_s` is closed, or within a second when its endpoint is in the configuration no more. Calls
look for such pools, and once a second the mesh does, for transports that nobody uses: their connections would stay open, and
count against the cluster's limit for everybody else. Calls that are running finish on theirs. The bookkeeping does no I/O; it hands out the pools that the shell closes.
"""

import os
import ssl
import weakref
from collections import deque
from collections.abc import Callable, Collection
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from meshlib.ports import Clock, Lock
from meshlib.resilience.circuit_breaker import CircuitBreaker

__all__ = ["Dropped", "Lease", "PoolKey", "PoolOverflow", "Pools"]

P = TypeVar("P")

# How often, at most, a call looks for idle pools: the look is linear in the number of pools.
SWEEP_INTERVAL_S = 1.0


class PoolKey(NamedTuple):
    """What connections of one pool have in common.

    Attributes:
        address: The endpoint's.
        http2: Spoken with prior knowledge, or by ALPN over TLS.
        context: One per TLS configuration and version of the secrets; None: plaintext.
        max_requests: Requests that a connection may carry; None: no limit.
        idle_s: How long the cluster lets a connection idle; None: it does not say.
        breaker: Counts the cluster's connections and who waits for one; None: nobody does. A cluster's connections
            are its own, also where another cluster has the same endpoint.
        dials: The endpoint's addresses in the order in which they are tried; empty: `address` alone.
    """

    address: str
    http2: bool = False
    context: ssl.SSLContext | None = None
    max_requests: int | None = None
    idle_s: float | None = None
    breaker: CircuitBreaker | None = None
    dials: tuple[str, ...] = ()

    @property
    def unix_path(self) -> str | None:
        """Where to connect to when the endpoint is a unix socket."""
        return self.address.removeprefix("unix:") if self.address.startswith("unix:") else None


class PoolOverflow(Exception):
    """Too many requests of a cluster wait for a connection."""


class Dropped(Protocol):
    """What a response holds that nobody closed and nobody can close any more. It can be closed, too, as responses are."""

    def give_back(self) -> None:
        """Count its request out, and no more: its connections are nobody's any more."""


class Lease(Generic[P]):
    """A pool in use by some calls. Fields below `pool` are guarded by the lock of `Pools`."""

    __slots__ = ("active", "key", "last_used", "pool", "shared")

    def __init__(self, key: PoolKey, pool: P, *, shared: bool) -> None:
        self.key = key
        self.pool = pool
        self.active = 0
        self.last_used = 0.0
        self.shared = shared


class Pools(Generic[P]):
    """The pools of one transport.

    Args:
        make: Creates a pool without any I/O.
        idle_s: A pool without a call for so long is closed. Not shorter than the keep-alive time of its connections.
        known: Returns the addresses of the endpoints that there are, the same object as long as they are the same.

    Attributes:
        dropped: Of responses that were dropped before they were closed. Finalisers put it there, since they run
            anywhere, also where a lock is held; the transport closes it.
    """

    def __init__(
        self,
        make: Callable[[PoolKey], P],
        *,
        clock: Clock,
        idle_s: float,
        known: Callable[[], Collection[str]] | None = None,
    ) -> None:
        self._make = make
        self._clock = clock
        self._idle_s = idle_s
        self._known = known
        self._swept_by: Collection[str] | None = None  # guarded by the lock
        # Guarded by the lock:
        self._lock = Lock()
        self._shared: dict[PoolKey, Lease[P]] = {}
        self._leases: set[Lease[P]] = set()
        self._next_sweep = 0.0
        self._is_closed = False
        self.dropped: deque[Any] = deque()
        _all_pools.add(self)
        while _orphans:
            try:
                orphan = _orphans.popleft()
            except IndexError:  # another thread, which makes a transport too, was quicker
                break
            orphan.give_back()

    def __del__(self) -> None:
        # Responses whose finalisers run after this one put themselves there.
        found, self.dropped = self.dropped, _orphans
        _orphans.extend(found)

    def acquire(self, key: PoolKey, *, fresh: bool = False) -> Lease[P]:
        """Take a pool for one attempt; `release` must follow.

        Args:
            fresh: A pool of its own, without connections from before; it is closed at its release.

        Raises:
            RuntimeError: The transport was closed.
        """
        with self._lock:
            if self._is_closed:
                raise RuntimeError("the transport was closed")
            lease = None if fresh else self._shared.get(key)
            if lease is None:
                lease = Lease(key, self._make(key), shared=not fresh)
                self._leases.add(lease)
                if not fresh:
                    self._shared[key] = lease
            lease.active += 1
            return lease

    def release(self, lease: Lease[P]) -> list[P]:
        """Give a pool back.

        Returns:
            Pools to close now: this one if nobody else may use it, and those that have been idle for too long.
        """
        now = self._clock()
        with self._lock:
            lease.active -= 1
            lease.last_used = now
            closing: list[P] = []
            if not lease.active and (not lease.shared or self._is_closed) and lease in self._leases:
                self._drop(lease, closing)
            if now >= self._next_sweep:
                self._sweep(now, closing)
            return closing

    def sweep(self) -> list[P]:
        """Look for pools that have been idle for too long, whether or not there are calls; hands them out for closing."""
        now = self._clock()
        closing: list[P] = []
        with self._lock:
            self._sweep(now, closing)
        return closing

    def _sweep(self, now: float, closing: list[P]) -> None:
        self._next_sweep = now + SWEEP_INTERVAL_S
        for lease in [lease for lease in self._leases if not lease.active and self._is_quiet(lease, now)]:
            self._drop(lease, closing)
        if self._known is not None:
            self._drain(self._known(), closing)

    def _is_quiet(self, lease: Lease[P], now: float) -> bool:
        """Whether all connections of a pool have idled for as long as they may."""
        of_cluster = lease.key.idle_s  # 0: no limit
        return now - lease.last_used > (min(of_cluster, self._idle_s) if of_cluster else self._idle_s)

    def _drain(self, known: Collection[str], closing: list[P]) -> None:
        """Let go of what belongs to endpoints that are gone."""
        if known is self._swept_by:
            return
        self._swept_by = known
        for lease in [lease for lease in self._leases if lease.key.address not in known]:
            if lease.active:
                lease.shared = False  # closed by the last call that uses it
                if self._shared.get(lease.key) is lease:
                    del self._shared[lease.key]
            else:
                self._drop(lease, closing)

    def close(self) -> list[P]:
        """Hand out every pool for closing; no call gets one afterwards."""
        with self._lock:
            self._is_closed = True
            closing = [lease.pool for lease in self._leases]
            self._shared.clear()
            self._leases.clear()
            return closing

    def forget(self) -> None:
        """After a fork, in the child: the sockets belong to the parent's conversations, so start without any."""
        self._lock = Lock()
        self._shared = {}
        self._leases = set()

    def __len__(self) -> int:
        return len(self._leases)

    def _drop(self, lease: Lease[P], closing: list[P]) -> None:
        self._leases.discard(lease)
        if self._shared.get(lease.key) is lease:
            del self._shared[lease.key]
        closing.append(lease.pool)


_all_pools: "weakref.WeakSet[Pools[Any]]" = weakref.WeakSet()
_orphans: deque[Dropped] = deque()
"""What was dropped of transports that were dropped themselves; whoever makes the next one gives it back."""


def _forget_all() -> None:
    for pools in list(_all_pools):
        pools.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
