"""The HTTP/1.1 connections of one endpoint, over httpcore's connections but not its pool.

httpcore's pool asks every connection about its state, with a system call for each idle one, at the beginning and at the
end of every request. These pools look at the connection they take. The youngest idle connection is taken first, so that
those that are not needed grow old and are closed. Callers wait in order when the limit is reached.

The two classes are twins: locks, events and closing are all that differs. HTTP/2, where requests share connections,
stays with httpcore's pool.
"""

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import cast

import anyio
import httpcore
import httpx

from meshlib.clients.network import BACKEND, AsyncDeadlineBackend, keepalive_s
from meshlib.clients.pools import PoolKey
from meshlib.ports import Lock

__all__ = ["AsyncHttp1Pool", "Http1Pool"]


class _Connection(httpcore.HTTPConnection):
    """A connection with what its pool knows of it."""

    served = 0
    parked_at = 0.0


class Http1Pool:
    """For threads."""

    def __init__(self, key: PoolKey, limits: httpx.Limits) -> None:
        self._key = key
        self._keepalive_s = keepalive_s(key, limits)
        self._max_idle = limits.max_keepalive_connections
        # Guarded by the lock:
        self._lock = Lock()
        self._free = limits.max_connections  # None: no limit
        self._waiting: deque[threading.Event] = deque()
        self._idle: deque[_Connection] = deque()
        self._open: set[_Connection] = set()
        self._is_closed = False

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request and return its response; the connection is kept when the response is closed at its end.

        Raises:
            httpcore.PoolTimeout: No connection was free in time.
            Exception: As httpcore's pool.
        """
        connection: _Connection | None = None
        self._enter(request)
        try:
            connection = self._take(request)
            response = connection.handle_request(request)
        except BaseException:
            self._leave(connection, keep=False)
            raise
        response.stream = _Stream(self, connection, cast(httpx.SyncByteStream, response.stream))
        return response

    def _enter(self, request: httpcore.Request) -> None:
        with self._lock:
            if self._free is None:
                return
            if self._free:
                self._free -= 1
                return
            turn = threading.Event()
            self._waiting.append(turn)
        if not turn.wait(request.extensions["timeout"].get("pool")):
            with self._lock:
                if not turn.is_set():  # else our turn came just now
                    self._waiting.remove(turn)
                    raise httpcore.PoolTimeout("all connections to the endpoint are in use")

    def _take(self, request: httpcore.Request) -> _Connection:
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                break
            if not connection.has_expired():
                connection.served += 1
                return connection
            self._close([connection])
        connection = _Connection(
            request.url.origin,
            ssl_context=self._key.context,
            keepalive_expiry=self._keepalive_s,
            uds=self._key.unix_path,
            network_backend=BACKEND,
        )
        connection.served = 1
        with self._lock:
            self._open.add(connection)
        return connection

    def _leave(self, connection: _Connection | None, *, keep: bool) -> None:
        now = time.monotonic()
        closing: list[_Connection] = []
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()  # the place goes on to it
            elif self._free is not None:
                self._free += 1
            if connection is not None:
                limit = self._key.max_requests
                fits = self._max_idle is None or len(self._idle) < self._max_idle
                if keep and fits and not self._is_closed and (limit is None or connection.served < limit):
                    connection.parked_at = now
                    self._idle.append(connection)
                else:
                    closing.append(connection)
            if self._keepalive_s is not None:
                while self._idle and now - self._idle[0].parked_at > self._keepalive_s:
                    closing.append(self._idle.popleft())
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
            self._idle.clear()
            connections = list(self._open)
        self._close(connections)


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


class _AsyncConnection(httpcore.AsyncHTTPConnection):
    """As `_Connection`."""

    served = 0
    parked_at = 0.0


class AsyncHttp1Pool:
    """For one event loop; nothing here is interrupted except at an await."""

    def __init__(self, key: PoolKey, limits: httpx.Limits) -> None:
        self._key = key
        self._keepalive_s = keepalive_s(key, limits)
        self._backend = AsyncDeadlineBackend()
        self._max_idle = limits.max_keepalive_connections
        self._free = limits.max_connections  # None: no limit
        self._waiting: deque[anyio.Event] = deque()
        self._idle: deque[_AsyncConnection] = deque()
        self._open: set[_AsyncConnection] = set()
        self._is_closed = False

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """As `Http1Pool.handle_request`. A cancellation at any await leaves no place and no connection behind."""
        connection: _AsyncConnection | None = None
        if self._free is not None:
            if self._free:
                self._free -= 1
            else:
                await self._wait(request)
        try:
            connection = await self._take(request)
            response = await connection.handle_async_request(request)
        except BaseException:
            await self._leave(connection, keep=False)
            raise
        response.stream = _AsyncStream(self, connection, cast(httpx.AsyncByteStream, response.stream))
        return response

    async def _wait(self, request: httpcore.Request) -> None:
        turn = anyio.Event()
        self._waiting.append(turn)
        try:
            with anyio.fail_after(request.extensions["timeout"].get("pool")):
                await turn.wait()
        except BaseException as error:
            if turn.is_set():
                self._pass_on()
            else:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise httpcore.PoolTimeout("all connections to the endpoint are in use") from None
            raise

    def _pass_on(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()  # the place goes on to it
        elif self._free is not None:
            self._free += 1

    async def _take(self, request: httpcore.Request) -> _AsyncConnection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.has_expired():
                connection.served += 1
                return connection
            await self._close([connection])
        connection = _AsyncConnection(
            request.url.origin,
            ssl_context=self._key.context,
            keepalive_expiry=self._keepalive_s,
            uds=self._key.unix_path,
            network_backend=self._backend,
        )
        connection.served = 1
        self._open.add(connection)
        return connection

    async def _leave(self, connection: _AsyncConnection | None, *, keep: bool) -> None:
        now = time.monotonic()
        closing: list[_AsyncConnection] = []
        self._pass_on()
        if connection is not None:
            limit = self._key.max_requests
            fits = self._max_idle is None or len(self._idle) < self._max_idle
            if keep and fits and not self._is_closed and (limit is None or connection.served < limit):
                connection.parked_at = now
                self._idle.append(connection)
            else:
                closing.append(connection)
        if self._keepalive_s is not None:
            while self._idle and now - self._idle[0].parked_at > self._keepalive_s:
                closing.append(self._idle.popleft())
        if closing:
            await self._close(closing)

    async def _close(self, connections: list[_AsyncConnection]) -> None:
        with anyio.CancelScope(shield=True):
            for connection in connections:
                self._open.discard(connection)
                await connection.aclose()

    async def aclose(self) -> None:
        """Close every connection, those in use too."""
        self._is_closed = True
        self._idle.clear()
        await self._close(list(self._open))


class _AsyncStream(httpx.AsyncByteStream):
    """As `_Stream`."""

    def __init__(self, pool: AsyncHttp1Pool, connection: _AsyncConnection, inner: httpx.AsyncByteStream) -> None:
        self._pool = pool
        self._connection = connection
        self._inner = inner
        self._is_closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._inner.__aiter__()

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            try:
                await self._inner.aclose()
            finally:
                await self._pool._leave(self._connection, keep=self._connection.is_idle())
