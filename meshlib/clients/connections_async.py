"""As `meshlib.clients.connections`, for an event loop."""

import time
from collections import deque
from collections.abc import AsyncIterator

import anyio
import httpcore
import httpx

from meshlib.clients.http1_async import AsyncHttp1Connection
from meshlib.clients.http1_request import Http1Request
from meshlib.clients.http1_response import RawResponse, ResponseHead
from meshlib.clients.http1_sync import response_closed
from meshlib.clients.network import idle_limit_s, keepalive_s
from meshlib.clients.network_async import AsyncDeadlineBackend
from meshlib.clients.pools import PoolKey, PoolOverflow
from meshlib.resilience.circuit_breaker import CircuitBreaker

__all__ = ["AsyncHttp1Pool"]


class _AsyncTurn:
    """As `_Turn`."""

    __slots__ = ("connection", "event")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.connection: AsyncHttp1Connection | None = None


class AsyncHttp1Pool:
    """For one event loop; nothing here is interrupted except at an await."""

    def __init__(self, key: PoolKey, limits: httpx.Limits) -> None:
        self._key = key
        self._keepalive_s = keepalive_s(key, limits)
        self._backend = AsyncDeadlineBackend(key.dials)
        self._max_idle = limits.max_keepalive_connections
        self._free = limits.max_connections  # None: no limit
        self._waiting: deque[_AsyncTurn] = deque()
        self._idle: deque[AsyncHttp1Connection] = deque()
        self._open: set[AsyncHttp1Connection] = set()
        self._permits = 0  # of the breaker: as many as there are connections, or about to be
        self._is_closed = False

    def __del__(self) -> None:
        if self._permits and self._key.breaker is not None:  # nobody closed the transport
            self._key.breaker.abandon(self._permits)

    async def handle_async_request(self, request: Http1Request) -> RawResponse:
        """As `Http1Pool.handle_request`. A cancellation at any await leaves no place and no connection behind."""
        connection, head = await self.exchange(request)
        return self.response(connection, head, request)

    def response(self, connection: AsyncHttp1Connection, head: ResponseHead, request: Http1Request) -> RawResponse:
        """Return the response of an exchange; closing it gives the connection back."""
        return RawResponse(head, _AsyncBody(self, connection, request), connection.extensions(request, head))

    async def exchange(self, request: Http1Request) -> tuple[AsyncHttp1Connection, ResponseHead]:
        """As `Http1Pool.exchange`; a cancellation at any await leaves no place and no connection behind."""
        connection = self._ready() or await self._take(request)
        try:
            return connection, await connection.send(request)
        except BaseException:
            if connection.reader.has_begun:
                request.timeouts.has_connected = True
            await self.close_all(self.leave(connection, keep=False))
            raise

    async def warm_up(self, request: Http1Request, connections: int) -> int:
        """As `Http1Pool.warm_up`."""
        opened = 0
        while len(self._open) < connections and not self._is_closed:
            if self._max_idle is not None and len(self._idle) >= self._max_idle:
                break
            if not self._may_open(self._key.breaker):
                break
            connection = self._new(None)
            try:
                await connection.connect(request)
            except BaseException:
                await self.close_all(self.leave(connection, keep=False))
                raise
            await self.close_all(self._return(connection, keep=not self._is_closed))
            opened += 1
        return opened

    def _ready(self) -> AsyncHttp1Connection | None:
        """Take the youngest idle connection if it can be used; None: `_take` has to see to it."""
        idle = self._idle
        if idle and self._free != 0:
            connection = idle[-1]
            if not _is_old(connection, time.monotonic()) and not connection.is_stale:
                connection.served += 1
                return self._pop_idle()
        return None

    async def _take(self, request: Http1Request) -> AsyncHttp1Connection:
        while True:
            if self._idle and self._free != 0:
                connection = self._pop_idle()
            else:
                connection = await self._wait_or_open(request)
            if connection.is_new or not (_is_old(connection, time.monotonic()) or connection.is_stale):
                connection.served += 1
                return connection
            await self.close_all(self.leave(connection, keep=False))

    def _pop_idle(self) -> AsyncHttp1Connection:
        if self._free is not None:
            self._free -= 1
        return self._idle.pop()

    async def _wait_or_open(self, request: Http1Request) -> AsyncHttp1Connection:
        breaker = self._key.breaker
        if breaker is not None and not breaker.try_pend():
            raise PoolOverflow("too many requests wait for a connection to the cluster")
        pending = breaker
        try:
            connection = None if self._may_open(breaker) else await self._wait(request)
            if connection is None:
                connection = self._new(pending)
                pending = None  # until it is connected
            return connection
        finally:
            if pending is not None:
                pending.end_pending()

    def _may_open(self, breaker: CircuitBreaker | None) -> bool:
        """Take a place with a permit to open a connection, if they are to be had."""
        if self._free == 0:
            return False
        of_host = self._permits
        if breaker is not None and not breaker.try_connect(is_first=not of_host, of_host=of_host):
            return False
        if self._free is not None:
            self._free -= 1
        self._permits += 1
        return True

    async def _wait(self, request: Http1Request) -> AsyncHttp1Connection | None:
        turn = _AsyncTurn()
        self._waiting.append(turn)
        try:
            with anyio.fail_after(request.timeouts.get("pool")):
                await turn.event.wait()
        except BaseException as error:
            if turn.event.is_set():
                await self.close_all(self._return(turn.connection, keep=True))
            else:
                self._waiting.remove(turn)
            if isinstance(error, TimeoutError):
                raise httpcore.PoolTimeout("all connections to the endpoint are in use") from None
            raise
        return turn.connection

    def _new(self, pending: CircuitBreaker | None) -> AsyncHttp1Connection:
        connection = AsyncHttp1Connection(self._key, self._backend)
        connection.pending = pending
        self._open.add(connection)
        return connection

    def leave(self, connection: AsyncHttp1Connection, *, keep: bool) -> list[AsyncHttp1Connection]:
        """As `Http1Pool.leave`; what it returns is to be closed."""
        if connection.pending is not None:
            connection.settle()
        limit = self._key.max_requests
        is_good = keep and not self._is_closed and (limit is None or connection.served < limit)
        return self._return(connection, keep=is_good)

    def _return(self, connection: AsyncHttp1Connection | None, *, keep: bool) -> list[AsyncHttp1Connection]:
        """Give back a place with its connection; None: with the permit to open one. Returns what is to be closed."""
        now = time.monotonic()
        closing: list[AsyncHttp1Connection] = []
        gone = 0
        if self._waiting:
            # Place, and connection or permit, go on to whoever has waited longest.
            turn = self._waiting.popleft()
            if keep:
                turn.connection = connection
            elif connection is not None:
                closing.append(connection)
            turn.event.set()
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
        if gone:
            self._permits -= gone
            if self._key.breaker is not None:
                self._key.breaker.disconnected(gone)
        return closing

    async def close_all(self, connections: list[AsyncHttp1Connection]) -> None:
        """Close connections that `leave` has returned."""
        if not connections:
            return
        with anyio.CancelScope(shield=True):
            for connection in connections:
                self._open.discard(connection)
                await connection.aclose()

    async def aclose(self) -> None:
        """Close every connection, those in use too."""
        self._is_closed = True
        gone = len(self._idle)
        self._permits -= gone
        self._idle.clear()
        if gone and self._key.breaker is not None:
            self._key.breaker.disconnected(gone)
        await self.close_all(list(self._open))


def _is_old(connection: AsyncHttp1Connection, now: float) -> bool:
    return connection.expires_at is not None and now >= connection.expires_at


class _AsyncBody(httpx.AsyncByteStream):
    """As `Http1Body`."""

    __slots__ = ("_connection", "_is_closed", "_pool", "_request")

    def __init__(self, pool: AsyncHttp1Pool, connection: AsyncHttp1Connection, request: Http1Request) -> None:
        self._pool = pool
        self._connection = connection
        self._request = request
        self._is_closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._connection.body(self._request)

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        pool, connection = self._pool, self._connection
        if self._request.is_traced:
            async with response_closed(self._request):
                await pool.close_all(pool.leave(connection, keep=connection.is_reusable))
        else:
            await pool.close_all(pool.leave(connection, keep=connection.is_reusable))
