"""HTTP/2 to one endpoint from event loops; what is added to httpcore is said in `http2.py`."""

import time
from collections.abc import AsyncIterator
from contextlib import nullcontext, suppress
from typing import Any

import anyio
import h2.config
import h2.events
import h2.exceptions
import httpcore
import httpx

from meshlib.clients.http2 import GONE, H2_CONFIG, LAST_WORDS, Trailers, acknowledging, body_length, check_length, leave
from meshlib.clients.network import keepalive_s
from meshlib.clients.network_async import AsyncDeadlineBackend
from meshlib.clients.pools import PoolKey

__all__ = ["AsyncHttp2Pool"]


class _AsyncHttp2(httpcore.AsyncHTTP2Connection):
    """One connection, on its stream; as its twin in `http2_sync.py`."""

    CONFIG = H2_CONFIG

    def __init__(
        self, origin: httpcore.Origin, stream: httpcore.AsyncNetworkStream, keepalive_expiry: float | None
    ) -> None:
        super().__init__(origin, stream, keepalive_expiry)
        self._trailers = Trailers()
        self._lengths: dict[int, int | None] = {}
        self._expire_at = None if keepalive_expiry is None else time.monotonic() + keepalive_expiry
        self._is_looking = False
        self._writers = 0

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        await self._look(request)
        response = await super().handle_async_request(request)
        stream_id = response.extensions["stream_id"]
        response.extensions["trailers"] = self._trailers.setdefault(stream_id, [])
        self._lengths[stream_id] = body_length(request, response)
        return response

    async def _look(self, request: httpcore.Request) -> None:
        """Read what has come while nobody waited for anything."""
        if not self._sent_connection_init or self._is_looking or self._events:
            return
        if not self._network_stream.get_extra_info("is_readable"):
            return
        self._is_looking = True
        try:
            try:
                await self._receive_events(request)
            except GONE:
                await self.aclose()
            if self._connection_terminated is not None:
                await self.aclose()
        finally:
            self._is_looking = False
        if self.is_closed():
            raise httpcore.ConnectionNotAvailable

    async def _receive_events(self, request: httpcore.Request, stream_id: int | None = None) -> None:
        with nullcontext() if stream_id is None else acknowledging():
            await super()._receive_events(request, stream_id)

    async def _receive_response_body(self, request: httpcore.Request, stream_id: int) -> AsyncIterator[bytes]:
        received = 0
        while not isinstance(event := await self._receive_stream_event(request, stream_id), h2.events.StreamEnded):
            if isinstance(event, h2.events.DataReceived):
                received += len(event.data or b"")
                with acknowledging():
                    self._h2_state.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)
                    await self._write_outgoing_data(request)
                yield event.data or b""
        check_length(self._lengths.get(stream_id), received)

    async def _read_incoming_data(self, request: httpcore.Request) -> list[Any]:
        try:
            events = await super()._read_incoming_data(request)
        except h2.exceptions.ProtocolError as error:
            self._read_exception = broken = httpcore.RemoteProtocolError(f"{type(error).__name__}: {error}")
            self._connection_error = True
            raise broken from error
        self._trailers.learn(events, self._events)
        return events

    async def _write_outgoing_data(self, request: httpcore.Request) -> None:
        self._writers += 1
        try:
            await super()._write_outgoing_data(request)
        finally:
            self._writers -= 1

    async def _response_closed(self, stream_id: int) -> None:
        self._trailers.pop(stream_id, None)
        self._lengths.pop(stream_id, None)
        # Whoever is writing may wait for the peer; what is to be said goes out with what is written next.
        if leave(self._h2_state, stream_id, self._events[stream_id]) and not self._writers:
            with suppress(*GONE), anyio.CancelScope(shield=True):
                await self._write_outgoing_data(LAST_WORDS)
        await super()._response_closed(stream_id)
        if self._connection_error and not self._events:
            await self.aclose()


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
        """Connect as httpcore does, for a connection of ours."""
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
