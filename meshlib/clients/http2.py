"""HTTP/2 to one endpoint: httpcore's pools and connections, whose requests share connections.

Added to httpcore's connections is what they leave out (1.0.9), by methods of theirs that are not public, which the tests of
faults would notice to be gone:

- what a server says is checked by h2, and breaking the protocol is the server's fault: httpcore takes a response without a
  status for a 200, and blames the caller for the rest, or lets h2's own exceptions through;
- a response that is there in full is given, though acknowledgements of ours do not get through any more;
- what has come over an idle connection is read before it is used again: a server that has said goodbye meanwhile, or has
  gone, gets no request;
- trailers.
"""

import threading
import time
from collections.abc import AsyncIterator, Container, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import anyio
import h2.config
import h2.events
import h2.exceptions
import httpcore
import httpx

from meshlib.clients.network import BACKEND, keepalive_s
from meshlib.clients.network_async import AsyncDeadlineBackend
from meshlib.clients.pools import PoolKey

__all__ = ["AsyncHttp2Pool", "Http2Pool"]


_CONFIG: Final = h2.config.H2Configuration(validate_inbound_headers=True)
_GONE: Final = (httpcore.NetworkError, httpcore.RemoteProtocolError, httpcore.TimeoutException)

Field = tuple[bytes, bytes]


def _length(request: httpcore.Request, response: httpcore.Response) -> int | None:
    """Return how long a response says that its body is; None: it does not, or has none."""
    if request.method == b"HEAD" or response.status in (204, 304):
        return None
    for name, value in response.headers:
        if name.lower() == b"content-length":
            return int(value)  # h2 has checked it
    return None


def _check_length(declared: int | None, received: int) -> None:
    """h2 does so where the body ends the stream, but not where trailers do."""
    if declared is not None and declared != received:
        raise httpcore.RemoteProtocolError(f"the body has {received} bytes, and should have {declared}")


class _Trailers(dict[int, list[Field]]):
    """Of the streams that are open, by their ids."""

    def learn(self, events: list[Any], streams: Container[int]) -> None:
        for event in events:
            if isinstance(event, h2.events.TrailersReceived) and event.stream_id in streams:
                found = self.setdefault(event.stream_id, [])
                found += [(bytes(name), bytes(value)) for name, value in event.headers or ()]


@contextmanager
def _acknowledging() -> Iterator[None]:
    """For what a reader has to say: when it does not get through, what has come is there, or about to be read, all the same."""
    try:
        yield
    except (httpcore.WriteError, h2.exceptions.ProtocolError):
        pass
    except httpcore.WriteTimeout as error:
        raise httpcore.ReadTimeout(error) from error


class _Http2(httpcore.HTTP2Connection):
    """One connection, on its stream."""

    CONFIG = _CONFIG

    def __init__(self, origin: httpcore.Origin, stream: httpcore.NetworkStream, keepalive_expiry: float | None) -> None:
        super().__init__(origin, stream, keepalive_expiry)
        self._trailers = _Trailers()
        self._lengths: dict[int, int | None] = {}
        self._expire_at = None if keepalive_expiry is None else time.monotonic() + keepalive_expiry
        self._looking = threading.Lock()

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        self._look(request)
        response = super().handle_request(request)
        stream_id = response.extensions["stream_id"]
        response.extensions["trailers"] = self._trailers.setdefault(stream_id, [])
        self._lengths[stream_id] = _length(request, response)
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
            except _GONE:
                self.close()
            if self._connection_terminated is not None:
                self.close()
        finally:
            self._looking.release()
        if self.is_closed():
            raise httpcore.ConnectionNotAvailable

    def _receive_events(self, request: httpcore.Request, stream_id: int | None = None) -> None:
        with nullcontext() if stream_id is None else _acknowledging():
            super()._receive_events(request, stream_id)

    def _receive_response_body(self, request: httpcore.Request, stream_id: int) -> Iterator[bytes]:
        received = 0
        while not isinstance(event := self._receive_stream_event(request, stream_id), h2.events.StreamEnded):
            if isinstance(event, h2.events.DataReceived):
                received += len(event.data or b"")
                with _acknowledging():
                    self._h2_state.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)
                    self._write_outgoing_data(request)
                yield event.data or b""
        _check_length(self._lengths.get(stream_id), received)

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
            network_backend=BACKEND,
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
            network_backend=BACKEND,
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


class _AsyncHttp2(httpcore.AsyncHTTP2Connection):
    """As `_Http2`."""

    CONFIG = _CONFIG

    def __init__(
        self, origin: httpcore.Origin, stream: httpcore.AsyncNetworkStream, keepalive_expiry: float | None
    ) -> None:
        super().__init__(origin, stream, keepalive_expiry)
        self._trailers = _Trailers()
        self._lengths: dict[int, int | None] = {}
        self._expire_at = None if keepalive_expiry is None else time.monotonic() + keepalive_expiry
        self._is_looking = False

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        await self._look(request)
        response = await super().handle_async_request(request)
        stream_id = response.extensions["stream_id"]
        response.extensions["trailers"] = self._trailers.setdefault(stream_id, [])
        self._lengths[stream_id] = _length(request, response)
        return response

    async def _look(self, request: httpcore.Request) -> None:
        """As `_Http2._look`."""
        if not self._sent_connection_init or self._is_looking or self._events:
            return
        if not self._network_stream.get_extra_info("is_readable"):
            return
        self._is_looking = True
        try:
            try:
                await self._receive_events(request)
            except _GONE:
                await self.aclose()
            if self._connection_terminated is not None:
                await self.aclose()
        finally:
            self._is_looking = False
        if self.is_closed():
            raise httpcore.ConnectionNotAvailable

    async def _receive_events(self, request: httpcore.Request, stream_id: int | None = None) -> None:
        with nullcontext() if stream_id is None else _acknowledging():
            await super()._receive_events(request, stream_id)

    async def _receive_response_body(self, request: httpcore.Request, stream_id: int) -> AsyncIterator[bytes]:
        received = 0
        while not isinstance(event := await self._receive_stream_event(request, stream_id), h2.events.StreamEnded):
            if isinstance(event, h2.events.DataReceived):
                received += len(event.data or b"")
                with _acknowledging():
                    self._h2_state.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)
                    await self._write_outgoing_data(request)
                yield event.data or b""
        _check_length(self._lengths.get(stream_id), received)

    async def _read_incoming_data(self, request: httpcore.Request) -> list[Any]:
        try:
            events = await super()._read_incoming_data(request)
        except h2.exceptions.ProtocolError as error:
            self._read_exception = broken = httpcore.RemoteProtocolError(f"{type(error).__name__}: {error}")
            self._connection_error = True
            raise broken from error
        self._trailers.learn(events, self._events)
        return events

    async def _response_closed(self, stream_id: int) -> None:
        self._trailers.pop(stream_id, None)
        self._lengths.pop(stream_id, None)
        await super()._response_closed(stream_id)
        if self._connection_error and not self._events:
            await self.aclose()


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
            await self.open(request)
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

    async def open(self, request: httpcore.Request) -> None:
        """As `_Connection.open`."""
        async with self._request_lock:
            if self._connection is None:
                try:
                    self._connection = _AsyncHttp2(self._origin, await self._connect(request), self._keepalive_expiry)
                except BaseException:
                    self._connect_failed = True
                    raise

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

    async def warm_up(self, request: httpcore.Request, connections: int) -> int:
        """As `Http2Pool.warm_up`."""
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
