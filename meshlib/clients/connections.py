"""The HTTP/1.1 connections of one endpoint.

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

import httpcore
import httpx

from meshlib.clients.http1_request import Http1Request
from meshlib.clients.http1_response import RawResponse, ResponseHead
from meshlib.clients.http1_sync import Http1Connection, response_closed
from meshlib.clients.network import idle_limit_s, keepalive_s
from meshlib.clients.pools import PoolKey, PoolOverflow
from meshlib.ports import Lock
from meshlib.resilience.circuit_breaker import CircuitBreaker

__all__ = ["Http1Body", "Http1Pool"]


class _Turn(threading.Event):
    """Somebody waits for a connection. Once set, its place in the pool is theirs, and so is `connection`.

    Attributes:
        connection: One that is ready; None: to be opened, the cluster's permit for that is taken.
    """

    connection: Http1Connection | None = None


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
        self._idle: deque[Http1Connection] = deque()
        self._open: set[Http1Connection] = set()
        self._permits = 0  # of the breaker: as many as there are connections, or about to be
        self._is_closed = False

    def __del__(self) -> None:
        if self._permits and self._key.breaker is not None:  # nobody closed the transport
            self._key.breaker.abandon(self._permits)

    def handle_request(self, request: Http1Request) -> RawResponse:
        """Send a request and return its response; the connection is kept when the response is closed at its end.

        Raises:
            httpcore.PoolTimeout: No connection was free in time.
            PoolOverflow: The cluster lets no more requests wait for a connection.
            Exception: As httpcore's pool.
        """
        connection, head = self.exchange(request)
        return self.response(connection, head, request)

    def response(self, connection: Http1Connection, head: ResponseHead, request: Http1Request) -> RawResponse:
        """Return the response of an exchange; closing it gives the connection back."""
        return RawResponse(head, Http1Body(self, connection, request), connection.extensions(request, head))

    def exchange(self, request: Http1Request) -> tuple[Http1Connection, ResponseHead]:
        """Send a request and return its connection with the response's head; `leave` has to follow.

        Raises:
            Exception: As `handle_request`.
        """
        connection = self._take(request)
        try:
            return connection, connection.send(request)
        except BaseException:
            if connection.reader.has_begun:
                request.timeouts.has_connected = True
            self.leave(connection, keep=False)
            raise

    def warm_up(self, request: Http1Request, connections: int) -> int:
        """Open connections until so many are there, ready for use; returns how many were opened.

        Limits hold, and nobody's place is taken: when there is none, no connection is opened.

        Raises:
            httpcore.ConnectError: It cannot be connected to; or `httpcore.ConnectTimeout`.
        """
        opened = 0
        while self._may_add(connections):
            connection = self._new(None)
            try:
                connection.connect(request)
            except BaseException:
                self.leave(connection, keep=False)
                raise
            self._return(connection, keep=not self._is_closed)
            opened += 1
        return opened

    def _may_add(self, connections: int) -> bool:
        """Take a permit and a place for one more connection."""
        breaker = self._key.breaker
        if not self._has_room(connections):
            return False
        of_host = self._permits
        if breaker is not None and not breaker.try_connect(is_first=not of_host, of_host=of_host):
            return False
        with self._lock:
            if self._has_room(connections):
                if self._free is not None:
                    self._free -= 1
                self._permits += 1
                return True
        if breaker is not None:
            breaker.disconnected()
        return False

    def _has_room(self, connections: int) -> bool:
        """Whether one more connection may be opened ahead of requests."""
        is_full = self._max_idle is not None and len(self._idle) >= self._max_idle
        return not (self._is_closed or is_full or self._free == 0 or len(self._open) >= connections)

    def _take(self, request: Http1Request) -> Http1Connection:
        while True:
            connection: Http1Connection | None = None
            with self._lock:
                if self._idle and self._free != 0:
                    connection = self._pop_idle()
            if connection is None:
                connection = self._wait_or_open(request)
            if connection.is_new or not (_is_old(connection, time.monotonic()) or connection.is_stale):
                connection.served += 1
                return connection
            self.leave(connection, keep=False)

    def _pop_idle(self) -> Http1Connection:
        """Take the youngest idle connection and a place. The lock is held."""
        if self._free is not None:
            self._free -= 1
        return self._idle.pop()

    def _wait_or_open(self, request: Http1Request) -> Http1Connection:
        breaker = self._key.breaker
        if breaker is None:
            turn = self._begin(breaker)
            return self._new(None) if turn is None else self._wait(turn, request) or self._new(None)
        if not breaker.try_pend():
            raise PoolOverflow("too many requests wait for a connection to the cluster")
        pending: CircuitBreaker | None = breaker
        try:
            turn = self._begin(breaker)
            connection = None if turn is None else self._wait(turn, request)
            if connection is None:
                connection = self._new(breaker)
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
                of_host = self._permits
                self._permits += 1
            if breaker is None or breaker.try_connect(is_first=not of_host, of_host=of_host):
                return None
            with self._lock:
                self._permits -= 1
                if self._free is not None:
                    self._free += 1
                # Somebody else's connection will come back here. If there is none any more, we are the first.
                if self._permits and not self._idle:
                    self._waiting.append(turn)
                    return turn

    def _wait(self, turn: _Turn, request: Http1Request) -> Http1Connection | None:
        try:
            is_ours = turn.wait(request.timeouts.get("pool"))
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

    def _new(self, pending: CircuitBreaker | None) -> Http1Connection:
        connection = Http1Connection(self._key)
        connection.pending = pending
        with self._lock:
            self._open.add(connection)
        return connection

    def leave(self, connection: Http1Connection, *, keep: bool) -> None:
        """Give a connection back.

        Args:
            keep: It can be used again.
        """
        if connection.pending is not None:
            connection.settle()
        limit = self._key.max_requests
        is_good = keep and not self._is_closed and (limit is None or connection.served < limit)
        self._return(connection, keep=is_good)

    def _return(self, connection: Http1Connection | None, *, keep: bool) -> None:
        """Give back a place with its connection; None: with the permit to open one."""
        now = time.monotonic()
        closing: list[Http1Connection] = []
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
                    limit_s, announced_s = self._keepalive_s, connection.reader.keep_alive_s
                    if announced_s is not None:
                        limit_s = idle_limit_s(limit_s, announced_s)
                    connection.expires_at = None if limit_s is None else now + limit_s
                    self._idle.append(connection)
                else:
                    gone += 1
                    if connection is not None:
                        closing.append(connection)
            while self._idle and _is_old(self._idle[0], now):
                closing.append(self._idle.popleft())
                gone += 1
            self._permits -= gone
        if gone and self._key.breaker is not None:
            self._key.breaker.disconnected(gone)
        if closing:
            self._close(closing)

    def _close(self, connections: list[Http1Connection]) -> None:
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


def _is_old(connection: Http1Connection, now: float) -> bool:
    return connection.expires_at is not None and now >= connection.expires_at


class Http1Body(httpx.SyncByteStream):
    """A response body that gives its connection back."""

    __slots__ = ("_connection", "_is_closed", "_pool", "_request")

    def __init__(self, pool: Http1Pool, connection: Http1Connection, request: Http1Request) -> None:
        self._pool = pool
        self._connection = connection
        self._request = request
        self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self._connection.body(self._request)

    def cut(self) -> None:
        """Close the socket at once; `close` has to follow. For finalisers: no lock is taken."""
        if not self._is_closed and not self._connection.is_reusable:
            self._connection.close()

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._request.is_traced:
            with response_closed(self._request):
                self._pool.leave(self._connection, keep=self._connection.is_reusable)
        else:
            self._pool.leave(self._connection, keep=self._connection.is_reusable)
