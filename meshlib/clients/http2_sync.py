"""HTTP/2 to one endpoint from threads; what is added to httpcore is said in `http2.py`."""

import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import h2.config
import h2.events
import h2.exceptions
import httpcore
import httpx

from meshlib.clients.http2 import GONE, H2_CONFIG, Trailers, acknowledging, body_length, check_length
from meshlib.clients.network import backend_for, keepalive_s
from meshlib.clients.pools import PoolKey

__all__ = ["Http2Pool"]


class _Http2(httpcore.HTTP2Connection):
    """One connection, on its stream."""

    CONFIG = H2_CONFIG

    def __init__(self, origin: httpcore.Origin, stream: httpcore.NetworkStream, keepalive_expiry: float | None) -> None:
        super().__init__(origin, stream, keepalive_expiry)
        self._trailers = Trailers()
        self._lengths: dict[int, int | None] = {}
        self._expire_at = None if keepalive_expiry is None else time.monotonic() + keepalive_expiry
        self._looking = threading.Lock()

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        self._look(request)
        response = super().handle_request(request)
        stream_id = response.extensions["stream_id"]
        response.extensions["trailers"] = self._trailers.setdefault(stream_id, [])
        self._lengths[stream_id] = body_length(request, response)
        return response

    def _look(self, request: httpcore.Request) -> None:
        """Read what has come while nobody waited for anything."""
        if not self._sent_connection_init or not self._looking.acquire(blocking=False):
            return
        try:
            if self._events or not self._network_stream.get_extra_info("is_readable"):
                return
            try:
                self._receive_events(request)
            except GONE:
                self.close()
            if self._connection_terminated is not None:
                self.close()
        finally:
            self._looking.release()
        if self.is_closed():
            raise httpcore.ConnectionNotAvailable

    def _receive_events(self, request: httpcore.Request, stream_id: int | None = None) -> None:
        with nullcontext() if stream_id is None else acknowledging():
            super()._receive_events(request, stream_id)

    def _receive_response_body(self, request: httpcore.Request, stream_id: int) -> Iterator[bytes]:
        received = 0
        while not isinstance(event := self._receive_stream_event(request, stream_id), h2.events.StreamEnded):
            if isinstance(event, h2.events.DataReceived):
                received += len(event.data or b"")
                with acknowledging():
                    self._h2_state.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)
                    self._write_outgoing_data(request)
                yield event.data or b""
        check_length(self._lengths.get(stream_id), received)

    def _read_incoming_data(self, request: httpcore.Request) -> list[Any]:
        try:
            events = super()._read_incoming_data(request)
        except h2.exceptions.ProtocolError as error:
            # For the other streams of the connection too.
            self._read_exception = broken = httpcore.RemoteProtocolError(f"{type(error).__name__}: {error}")
            self._connection_error = True
            raise broken from error
        self._trailers.learn(events, self._events)
        return events

    def _response_closed(self, stream_id: int) -> None:
        self._trailers.pop(stream_id, None)
        self._lengths.pop(stream_id, None)
        super()._response_closed(stream_id)
        if self._connection_error and not self._events:  # nobody will use it again, or wants anything of it
            self.close()


class _Connection(httpcore.HTTPConnection):
    """Retires after a number of requests (Envoy's `max_requests_per_connection`)."""

    max_requests: int | None = None
    _served = 0

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        self._served += 1
        self.open(request)
        return super().handle_request(request)

    def open(self, request: httpcore.Request) -> None:
        """Connect as httpcore does, for a connection of ours."""
        with self._request_lock:
            if self._connection is None:
                try:
                    self._connection = _Http2(self._origin, self._connect(request), self._keepalive_expiry)
                except BaseException:
                    self._connect_failed = True
                    raise

    def has_expired(self) -> bool:
        limit = self.max_requests
        return super().has_expired() or (limit is not None and self._served >= limit and self.is_idle())


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
