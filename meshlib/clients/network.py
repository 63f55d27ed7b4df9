"""httpcore for one endpoint: its pool, its connections, its sockets.

Sockets have time-outs that end at a moment.

httpcore's time-outs are per operation: a peer that sends one byte a second keeps a request alive for ever, and connect
and TLS handshake get the time twice. A time-out of the kind `Until` is shortened before every step by what has passed.
Others are passed on as they are.
"""

import socket
import ssl
from collections.abc import Iterable
from typing import Any

import anyio
import httpcore
import httpx
from httpcore._backends.auto import AutoBackend
from httpcore._backends.sync import SyncBackend

from meshlib.clients.pools import PoolKey
from meshlib.clients.timeouts import Hold, Until

__all__ = ["BACKEND", "AsyncDeadlineBackend", "AsyncHttp2Pool", "Http2Pool", "keepalive_s"]

SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


def _left(timeout: float | None, expired: type[httpcore.TimeoutException]) -> float | None:
    if not isinstance(timeout, Until):
        return timeout
    left = timeout.left()
    if left <= 0.0:  # 0 would mean "do not block" to a socket
        raise expired("the time for this attempt is over")
    return left


class _Stream(httpcore.NetworkStream):
    """A socket. Reading and writing go past httpcore's own stream, whose context managers cost more than they do."""

    __slots__ = ("_inner", "_limit", "_socket")

    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner
        self._socket: socket.socket = inner.get_extra_info("socket")
        self._limit: float | None = -1.0  # the socket's time-out, once it was set here

    def _set_limit(self, left: float | None) -> None:
        # A system call, and mostly the same time-out as for the step before.
        if left != self._limit:
            self._socket.settimeout(left)
            self._limit = left

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            self._set_limit(_left(timeout, httpcore.ReadTimeout))
            if isinstance(timeout, Until) and timeout.hold is not None:
                return self._held_read(max_bytes, timeout.hold)
            return self._socket.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(error) from error
        except OSError as error:
            raise httpcore.ReadError(error) from error

    def _held_read(self, max_bytes: int, hold: Hold) -> bytes:
        """Read in a way that another thread can end."""
        try:
            if not hold.enter(self._socket):
                raise httpcore.ReadTimeout("the attempt was cancelled")
            return self._socket.recv(max_bytes)
        finally:
            hold.leave()

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            while buffer:
                self._set_limit(_left(timeout, httpcore.WriteTimeout))
                buffer = buffer[self._socket.send(buffer) :]
        except TimeoutError as error:
            raise httpcore.WriteTimeout(error) from error
        except OSError as error:
            raise httpcore.WriteError(error) from error

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            left = _left(timeout, httpcore.ConnectTimeout)
        except httpcore.ConnectTimeout:
            self._inner.close()
            raise
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class DeadlineBackend(httpcore.NetworkBackend):
    """For the blocking transport."""

    def __init__(self) -> None:
        self._inner = SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.connect_tcp(host, port, left, local_address, socket_options))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> httpcore.NetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.connect_unix_socket(path, left, socket_options))

    def sleep(self, seconds: float) -> None:
        self._inner.sleep(seconds)


class _AsyncStream(httpcore.AsyncNetworkStream):
    __slots__ = ("_inner",)

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._inner.read(max_bytes, _left(timeout, httpcore.ReadTimeout))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._inner.write(buffer, _left(timeout, httpcore.WriteTimeout))

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            left = _left(timeout, httpcore.ConnectTimeout)
        except httpcore.ConnectTimeout:
            await self._inner.aclose()
            raise
        return _AsyncStream(await self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class AsyncDeadlineBackend(httpcore.AsyncNetworkBackend):
    """For the async transport, under asyncio (uvloop too) or trio: the one that is running at its first connection."""

    def __init__(self) -> None:
        self._inner = AutoBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _AsyncStream(await self._inner.connect_tcp(host, port, left, local_address, socket_options))

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> httpcore.AsyncNetworkStream:
        left = _left(timeout, httpcore.ConnectTimeout)
        return _AsyncStream(await self._inner.connect_unix_socket(path, left, socket_options))

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


BACKEND = DeadlineBackend()


def keepalive_s(key: PoolKey, limits: httpx.Limits) -> float | None:
    """Return how long a connection may idle: as long as both the cluster and the application let it."""
    # A cluster that says 0 sets no limit; an application that says so keeps no connection.
    known = [seconds for seconds in (key.idle_s or None, limits.keepalive_expiry) if seconds is not None]
    return min(known, default=None)


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
