"""HTTP/2 to one endpoint: httpcore's pools and connections, whose requests share connections."""

import anyio
import httpcore
import httpx

from meshlib.clients.network import BACKEND, keepalive_s
from meshlib.clients.network_async import AsyncDeadlineBackend
from meshlib.clients.pools import PoolKey

__all__ = ["AsyncHttp2Pool", "Http2Pool"]


class _Connection(httpcore.HTTPConnection):
    """Retires after a number of requests (Envoy's `max_requests_per_connection`)."""

    max_requests = 0
    _served = 0

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        self._served += 1
        return super().handle_request(request)

    def has_expired(self) -> bool:
        return super().has_expired() or (self._served >= self.max_requests and self.is_idle())


class Http2Pool(httpcore.ConnectionPool):
    """The HTTP/2 connections of one endpoint. httpcore's own retries are off: the mesh decides them."""

    def __init__(self, key: PoolKey, limits: httpx.Limits) -> None:
        self._key = key
        self._keepalive_s = keepalive_s(key, limits)
        super().__init__(
            ssl_context=key.context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=self._keepalive_s,
            http1=False,
            http2=True,
            uds=key.unix_path,
            network_backend=BACKEND,
        )

    def create_connection(self, origin: httpcore.Origin) -> httpcore.ConnectionInterface:
        """Called by httpcore, under its lock."""
        key = self._key
        if key.max_requests is None:
            return super().create_connection(origin)
        connection = _Connection(
            origin,
            ssl_context=key.context,
            keepalive_expiry=self._keepalive_s,
            http1=False,
            http2=True,
            uds=key.unix_path,
            network_backend=BACKEND,
        )
        connection.max_requests = key.max_requests
        return connection


class _AsyncConnection(httpcore.AsyncHTTPConnection):
    """As `_Connection`, and no connection is lost to a cancellation.

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
            response = await super().handle_async_request(request)
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

    def has_expired(self) -> bool:
        limit = self.max_requests
        return super().has_expired() or (limit is not None and self._served >= limit and self.is_idle())


class AsyncHttp2Pool(httpcore.AsyncConnectionPool):
    """As `Http2Pool`."""

    def __init__(self, key: PoolKey, limits: httpx.Limits) -> None:
        self._key = key
        self._keepalive_s = keepalive_s(key, limits)
        self._backend = AsyncDeadlineBackend()
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
