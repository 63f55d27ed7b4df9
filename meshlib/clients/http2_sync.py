"""HTTP/2 to one endpoint from threads; what is added to httpcore is said in `http2.py`."""

from collections.abc import Iterable, Iterator
from typing import Any

import httpcore
import httpx

from meshlib.clients.http2_threads import Http2
from meshlib.clients.network import backend_for, keepalive_s
from meshlib.clients.pools import PoolKey

__all__ = ["Http2Pool"]


class _Connection(httpcore.HTTPConnection):
    """Retires after a number of requests (Envoy's `max_requests_per_connection`)."""

    max_requests: int | None = None
    _served = 0

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        self._served += 1
        if self._connection is None:
            self.open(request)
        assert self._connection is not None
        return self._connection.handle_request(request)

    def open(self, request: httpcore.Request) -> None:
        """Connect as httpcore does, for a connection of ours."""
        with self._request_lock:
            if self._connection is None:
                try:
                    self._connection = Http2(self._origin, self._connect(request), self._keepalive_expiry)
                except BaseException:
                    self._connect_failed = True
                    raise

    def has_expired(self) -> bool:
        limit = self.max_requests
        return super().has_expired() or (limit is not None and self._served >= limit and self.is_idle())


class Http2Answer:
    """A response, in the place that a connection of HTTP/1.1 has for its one request.

    Attributes:
        reader: Itself: nothing of the body is there before it is asked for.
    """

    __slots__ = ("raw", "reader")

    is_complete = False
    is_reusable = True

    def __init__(self, raw: httpcore.Response) -> None:
        self.raw = raw
        self.reader = self

    def open_body(self) -> list[bytes]:
        return []

    def pieces(self, request: httpcore.Request) -> Iterator[bytes]:
        assert isinstance(self.raw.stream, Iterable)
        return iter(self.raw.stream)

    @property
    def trailers(self) -> Any:
        return self.raw.extensions["trailers"]

    def extensions(self, request: httpcore.Request, head: httpcore.Response) -> dict[str, Any]:
        return dict(self.raw.extensions)

    def close(self) -> None:
        self.raw.close()


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
            network_backend=backend_for(key),
        )

    def create_connection(self, origin: httpcore.Origin) -> httpcore.ConnectionInterface:
        """Called by httpcore, under its lock."""
        key = self._key
        connection = _Connection(
            origin,
            ssl_context=key.context,
            keepalive_expiry=self._keepalive_s,
            http1=False,
            http2=True,
            uds=key.unix_path,
            network_backend=backend_for(key),
        )
        connection.max_requests = key.max_requests
        return connection

    def exchange(self, request: httpcore.Request) -> tuple[Http2Answer, httpcore.Response]:
        """As `Http1Pool.exchange`."""
        response = self.handle_request(request)
        return Http2Answer(response), response

    def response(
        self, answer: Http2Answer, response: httpcore.Response, request: httpcore.Request
    ) -> httpcore.Response:
        """As `Http1Pool.response`."""
        return response

    def leave(self, answer: Http2Answer, *, keep: bool) -> None:
        """As `Http1Pool.leave`."""
        answer.close()

    def warm_up(self, request: httpcore.Request, connections: int) -> int:
        """Open connections until so many are there; returns how many were opened. They age as idle ones do.

        Raises:
            httpcore.ConnectError: It cannot be connected to; or `httpcore.ConnectTimeout`.
        """
        opened = 0
        while self._has_room(connections):
            made = self.create_connection(request.url.origin)
            assert isinstance(made, _Connection)
            made.open(request)
            with self._optional_thread_lock:
                is_kept = self._has_room(connections)
                if is_kept:
                    self._connections.append(made)
            if not is_kept:  # requests have opened some meanwhile
                made.close()
                break
            opened += 1
        return opened

    def _has_room(self, connections: int) -> bool:
        return len(self._connections) < min(connections, self._max_connections, self._max_keepalive_connections)
