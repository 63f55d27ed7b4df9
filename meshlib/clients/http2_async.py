"""HTTP/2 to one endpoint from event loops; the connections are those of `http2_loops.py`."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpcore
import httpx

from meshlib.clients.http2_loops import AsyncHttp2
from meshlib.clients.httpx_requests import Http2Request
from meshlib.clients.network import keepalive_s
from meshlib.clients.network_async import AsyncDeadlineBackend
from meshlib.clients.pools import PoolKey

__all__ = ["AsyncHttp2Answer", "AsyncHttp2Pool"]


class _AsyncConnection(httpcore.AsyncHTTPConnection):
    """Retires after a number of requests (Envoy's `max_requests_per_connection`), and no connection is lost to a cancellation.

    A request that is cancelled between connecting and sending leaves httpcore 1.0.9 with a connection that it takes for
    busy for ever; a pool that may have one connection is then stuck.
    """

    max_requests: int | None = None
    _served = 0
    _running = 0
    _has_responded = False

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        self._served += 1
        self._running += 1
        try:
            if self._connection is None:
                await self.open(request)
            assert self._connection is not None
            response = await self._connection.handle_async_request(request)
        except BaseException:
            # No response so far and no request beside this one: nobody else needs the connection.
            is_alone = not self._has_responded and self._running == 1
            if is_alone and not self.is_idle() and not self.is_closed():
                with anyio.CancelScope(shield=True):
                    await self.aclose()
            raise
        finally:
            self._running -= 1
        self._has_responded = True
        return response

    async def open(self, request: httpcore.Request) -> None:
        """Connect as httpcore does, for a connection of ours."""
        async with self._request_lock:
            if self._connection is None:
                try:
                    self._connection = AsyncHttp2(self._origin, await self._connect(request), self._keepalive_expiry)
                except BaseException:
                    self._connect_failed = True
                    raise

    def has_expired(self) -> bool:
        limit = self.max_requests
        return super().has_expired() or (limit is not None and self._served >= limit and self.is_idle())


class AsyncHttp2Answer:
    """As `http2_sync.Http2Answer`."""

    __slots__ = ("_pieces", "is_complete", "raw", "reader", "stream")

    is_reusable = True

    def __init__(self, raw: httpcore.Response) -> None:
        self.raw = raw
        self.reader = self.stream = self
        self.is_complete = False
        self._pieces: AsyncIterator[bytes] | None = None

    def open_body(self) -> list[bytes]:
        self._pieces = aiter(self.raw.stream)  # type: ignore[arg-type]  # httpcore types it as either kind
        return []

    async def read(self, max_bytes: int, timeout: float | None) -> bytes:
        assert self._pieces is not None
        try:
            return await anext(self._pieces)
        except StopAsyncIteration:
            self.is_complete = True
            return b""

    def body(self, data: bytes) -> list[bytes]:
        return [data] if data else []

    @property
    def trailers(self) -> Any:
        return self.raw.extensions["trailers"]

    def extensions(self, request: httpcore.Request, head: httpcore.Response) -> dict[str, Any]:
        return dict(self.raw.extensions)


class AsyncHttp2Pool(httpcore.AsyncConnectionPool):
    """As `http2_sync.Http2Pool`."""

    def __init__(self, key: PoolKey, limits: httpx.Limits) -> None:
        self._key = key
        self._keepalive_s = keepalive_s(key, limits)
        self._backend = AsyncDeadlineBackend(key.dials)
        super().__init__(
            ssl_context=key.context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=self._keepalive_s,
            http1=False,
            http2=True,
            uds=key.unix_path,
            network_backend=self._backend,
        )

    def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
        """Called by httpcore."""
        key = self._key
        connection = _AsyncConnection(
            origin,
            ssl_context=key.context,
            keepalive_expiry=self._keepalive_s,
            http1=False,
            http2=True,
            uds=key.unix_path,
            network_backend=self._backend,
        )
        connection.max_requests = key.max_requests
        return connection

    async def _close_connections(self, closing: list[httpcore.AsyncConnectionInterface]) -> None:
        if closing:  # httpcore shields nothing from cancellation twice a request
            await super()._close_connections(closing)

    async def share(self, request: Http2Request) -> httpcore.Response:
        """Send a request and return its response, in the time that its attempt has."""
        # Streams of one connection take turns at reading it, and nothing limits the wait for the turn.
        left = request.timeouts.left()
        if left is None:
            return await self.handle_async_request(request)
        with anyio.move_on_after(left):
            return await self.handle_async_request(request)
        raise httpcore.ReadTimeout("the time for this attempt is over")

    async def exchange(self, request: Http2Request) -> tuple[AsyncHttp2Answer, httpcore.Response]:
        """As `AsyncHttp1Pool.exchange`."""
        response = await self.share(request)
        return AsyncHttp2Answer(response), response

    def response(
        self, answer: AsyncHttp2Answer, response: httpcore.Response, request: httpcore.Request
    ) -> httpcore.Response:
        """As `AsyncHttp1Pool.response`."""
        return response

    def leave(self, answer: AsyncHttp2Answer, *, keep: bool) -> list[AsyncHttp2Answer]:
        """As `AsyncHttp1Pool.leave`."""
        return [answer]

    async def close_all(self, answers: list[AsyncHttp2Answer]) -> None:
        """Close responses that `leave` has returned."""
        for answer in answers:
            await answer.raw.aclose()

    async def warm_up(self, request: httpcore.Request, connections: int) -> int:
        """As `http2_sync.Http2Pool.warm_up`."""
        opened = 0
        while self._has_room(connections):
            made = self.create_connection(request.url.origin)
            assert isinstance(made, _AsyncConnection)
            await made.open(request)
            with self._optional_thread_lock:
                is_kept = self._has_room(connections)
                if is_kept:
                    self._connections.append(made)
            if not is_kept:  # requests have opened some meanwhile
                await made.aclose()
                break
            opened += 1
        return opened

    def _has_room(self, connections: int) -> bool:
        return len(self._connections) < min(connections, self._max_connections, self._max_keepalive_connections)
