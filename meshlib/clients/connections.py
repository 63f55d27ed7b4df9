"""The HTTP/1.1 connections of one endpoint, over httpcore's connections but not its pool.

httpcore's pool asks every connection about its state, with a system call for each idle one, at the beginning and at the
end of every request. These pools look at the connection they take. The youngest idle connection is taken first, so that
those that are not needed grow old and are closed. Callers wait in order when the limit is reached, be it the application's
(per endpoint) or the cluster's (over all its endpoints); what the cluster allows is only asked for when a request finds no
connection that is ready.

`meshlib.clients.connections_async` has the twin for event loops: locks, events and closing are all that differs. HTTP/2,
where requests share connections, stays with httpcore's pool.
"""

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import cast

import httpcore
import httpx

from meshlib.clients.network import BACKEND, keepalive_s
from meshlib.clients.pools import PoolKey, PoolOverflow
from meshlib.ports import Lock
from meshlib.resilience.circuit_breaker import CircuitBreaker

__all__ = ["Http1Pool"]


class _Connection(httpcore.HTTPConnection):
    """A connection with what its pool knows of it.

    Attributes:
        served: Requests that it was given.
        parked_at: When it became idle.
        pending: Counts the request that waits for this connection to be made; None: nobody waits.
    """

    served = 0
    parked_at = 0.0
    pending: CircuitBreaker | None = None

    def _connect(self, request: httpcore.Request) -> httpcore.NetworkStream:
        stream = super()._connect(request)
        self.settle()
        return stream

    def settle(self) -> None:
        """Nobody waits for it any more."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.end_pending()


class _Turn(threading.Event):
    """Somebody waits for a connection. Once set, its place in the pool is theirs, and so is `connection`.

    Attributes:
        connection: One that is ready; None: to be opened, the cluster's permit for that is taken.
    """

    connection: _Connection | None = None


class Http1Pool:
    """For threads."""

    def __init__(self, key: PoolKey, limits: httpx.Limits) -> None:
        self._key = key
        self._keepalive_s = keepalive_s(key, limits)
        self._max_idle = limits.max_keepalive_connections
        # Guarded by the lock:
        self._lock = Lock()
        self._free = limits.max_connections  # None: no limit
        self._waiting: deque[_Turn] = deque()
        self._idle: deque[_Connection] = deque()
        self._open: set[_Connection] = set()
        self._permits = 0  # of the breaker: as many as there are connections, or about to be
        self._is_closed = False

    def __del__(self) -> None:
        if self._permits and self._key.breaker is not None:  # nobody closed the transport
            self._key.breaker.abandon(self._permits)

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request and return its response; the connection is kept when the response is closed at its end.

        Raises:
            httpcore.PoolTimeout: No connection was free in time.
            PoolOverflow: The cluster lets no more requests wait for a connection.
            Exception: As httpcore's pool.
        """
        connection = self._take(request)
        try:
            response = connection.handle_request(request)
        except BaseException:
            self._leave(connection, keep=False)
            raise
        response.stream = _Stream(self, connection, cast(httpx.SyncByteStream, response.stream))
        return response

    def _take(self, request: httpcore.Request) -> _Connection:
        while True:
            connection: _Connection | None = None
            with self._lock:
                if self._idle and self._free != 0:
                    connection = self._pop_idle()
            if connection is None:
                connection = self._wait_or_open(request)
            if not connection.served or not connection.has_expired():
                connection.served += 1
                return connection
            self._leave(connection, keep=False)

    def _pop_idle(self) -> _Connection:
        """Take the youngest idle connection and a place. The lock is held."""
        if self._free is not None:
            self._free -= 1
        return self._idle.pop()

    def _wait_or_open(self, request: httpcore.Request) -> _Connection:
        breaker = self._key.breaker
        if breaker is None:
            turn = self._begin(breaker)
            return self._new(request, None) if turn is None else self._wait(turn, request) or self._new(request, None)
        if not breaker.try_pend():
            raise PoolOverflow("too many requests wait for a connection to the cluster")
        pending: CircuitBreaker | None = breaker
        try:
            turn = self._begin(breaker)
            connection = None if turn is None else self._wait(turn, request)
            if connection is None:
                connection = self._new(request, breaker)
                pending = None  # until it is connected
            return connection
        finally:
            if pending is not None:
                pending.end_pending()

    def _begin(self, breaker: CircuitBreaker | None) -> _Turn | None:
        """Take a place with a permit to open a connection: None. Or get into the queue for either."""
        turn = _Turn()
        while True:
            with self._lock:
                if self._free == 0:
                    self._waiting.append(turn)
                    return turn
                if self._idle:  # came back in this moment
                    turn.connection = self._pop_idle()
                    turn.set()
                    return turn
                if self._free is not None:
                    self._free -= 1
                is_first = not self._permits
                self._permits += 1
            if breaker is None or breaker.try_connect(is_first=is_first):
                return None
            with self._lock:
                self._permits -= 1
                if self._free is not None:
                    self._free += 1
                # Somebody else's connection will come back here. If there is none any more, we are the first.
                if self._permits and not self._idle:
                    self._waiting.append(turn)
                    return turn

    def _wait(self, turn: _Turn, request: httpcore.Request) -> _Connection | None:
        try:
            is_ours = turn.wait(request.extensions["timeout"].get("pool"))
        except BaseException:
            if not self._give_up(turn):
                self._return(turn.connection, keep=True)
            raise
        if not is_ours and self._give_up(turn):
            raise httpcore.PoolTimeout("all connections to the endpoint are in use")
        return turn.connection

    def _give_up(self, turn: _Turn) -> bool:
        """Leave the queue; False: the turn came just now."""
        with self._lock:
            if turn.is_set():
                return False
            self._waiting.remove(turn)
            return True

    def _new(self, request: httpcore.Request, pending: CircuitBreaker | None) -> _Connection:
        connection = _Connection(
            request.url.origin,
            ssl_context=self._key.context,
            keepalive_expiry=self._keepalive_s,
            uds=self._key.unix_path,
            network_backend=BACKEND,
        )
        connection.pending = pending
        with self._lock:
            self._open.add(connection)
        return connection

    def _leave(self, connection: _Connection, *, keep: bool) -> None:
        if connection.pending is not None:
            connection.settle()
        limit = self._key.max_requests
        is_good = keep and not self._is_closed and (limit is None or connection.served < limit)
        self._return(connection, keep=is_good)

    def _return(self, connection: _Connection | None, *, keep: bool) -> None:
        """Give back a place with its connection; None: with the permit to open one."""
        now = time.monotonic()
        closing: list[_Connection] = []
        gone = 0
        with self._lock:
            if self._waiting:
                # Place, and connection or permit, go on to whoever has waited longest.
                turn = self._waiting.popleft()
                if keep:
                    turn.connection = connection
                elif connection is not None:
                    closing.append(connection)
                turn.set()
            else:
                if self._free is not None:
                    self._free += 1
                if connection is not None and keep and (self._max_idle is None or len(self._idle) < self._max_idle):
                    connection.parked_at = now
                    self._idle.append(connection)
                else:
                    gone += 1
                    if connection is not None:
                        closing.append(connection)
            if self._keepalive_s is not None:
                while self._idle and now - self._idle[0].parked_at > self._keepalive_s:
                    closing.append(self._idle.popleft())
                    gone += 1
            self._permits -= gone
        if gone and self._key.breaker is not None:
            self._key.breaker.disconnected(gone)
        if closing:
            self._close(closing)

    def _close(self, connections: list[_Connection]) -> None:
        for connection in connections:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def close(self) -> None:
        """Close every connection, those in use too."""
        with self._lock:
            self._is_closed = True
            gone = len(self._idle)
            self._permits -= gone
            self._idle.clear()
            connections = list(self._open)
        self._close(connections)
        if gone and self._key.breaker is not None:
            self._key.breaker.disconnected(gone)


class _Stream(httpx.SyncByteStream):
    """A response body that gives its connection back."""

    def __init__(self, pool: Http1Pool, connection: _Connection, inner: httpx.SyncByteStream) -> None:
        self._pool = pool
        self._connection = connection
        self._inner = inner
        self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._inner)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            try:
                self._inner.close()
            finally:
                self._pool._leave(self._connection, keep=self._connection.is_idle())
