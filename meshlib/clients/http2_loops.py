"""A connection of HTTP/2 that the tasks of an event loop share; what is added to httpcore is said in `http2.py`."""

import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import nullcontext, suppress
from typing import Any, cast

import anyio
import h2.config
import h2.events
import h2.exceptions
import httpcore
from httpcore._async.http2 import HTTPConnectionState

from meshlib.clients.http2 import (
    GONE,
    H2_CONFIG,
    LAST_WORDS,
    OF_STREAMS,
    WINDOW,
    GivenUp,
    Trailers,
    acknowledging,
    body_length,
    check_length,
    is_answered,
    traced,
)
from meshlib.clients.http2_headers import Field, receive, request_fields
from meshlib.clients.network import left_of
from meshlib.clients.network_async import TrioStream

__all__ = ["AsyncHttp2"]


class _Places:
    """The streams that a server lets be open at once; one until it says how many.

    Attributes:
        limit: At least 1, or nobody ever gets a place.
    """

    def __init__(self) -> None:
        self.limit = 1
        self._taken = 0
        self._waiting: deque[anyio.Event] = deque()

    async def acquire(self) -> None:
        while self._taken >= self.limit:
            turn = anyio.Event()
            self._waiting.append(turn)
            try:
                await turn.wait()
            except BaseException:
                if turn.is_set():
                    self._wake()
                else:
                    self._waiting.remove(turn)
                raise
        self._taken += 1

    def release(self) -> None:
        self._taken -= 1
        self._wake()

    def set_limit(self, limit: int) -> None:
        self.limit = max(limit, 1)
        for _ in range(len(self._waiting)):
            self._wake()

    def _wake(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()


class AsyncHttp2(httpcore.AsyncHTTP2Connection):
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
        self._given_up = GivenUp()
        self._reading = anyio.Lock()
        self._writing = anyio.Lock()
        # httpcore's own is miscounted when a request is cancelled.
        self._places = _Places()

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        try:
            fields, has_body = request_fields(request)
        except h2.exceptions.ProtocolError as error:
            raise httpcore.LocalProtocolError(error) from error
        await self._look(request)
        if not self._sent_connection_init:
            await self._introduce(request)
        if self._given_up:
            self._given_up.sweep(self._h2_state, time.monotonic(), self._places.limit // 2)
        stream_id = await self._begin()
        about = {"request": request, "stream_id": stream_id}
        try:
            self._open(stream_id, fields, has_body=has_body)
            async with traced("send_request_headers", request, about):
                await self._write_outgoing_data(request)
            async with traced("send_request_body", request, about):
                if has_body:
                    await self._send_request_body(request, stream_id)
            async with traced("receive_response_headers", request, about) as trace:
                trace.return_value = status, headers = await self._receive_response(request, stream_id)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self.end(request, stream_id)
            if isinstance(error, h2.exceptions.ProtocolError):
                # A goodbye of the server makes what we say afterwards wrong; else it is our own fault.
                if self._connection_terminated is not None:
                    raise httpcore.RemoteProtocolError(self._connection_terminated) from error
                raise httpcore.LocalProtocolError(error) from error
            raise
        response = httpcore.Response(
            status,
            headers=headers,
            content=_Body(self, request, stream_id),
            extensions={
                "http_version": b"HTTP/2",
                "network_stream": self._network_stream,
                "stream_id": stream_id,
                "trailers": self._trailers.setdefault(stream_id, []),
            },
        )
        self._lengths[stream_id] = body_length(request, response)
        return response

    async def _begin(self) -> int:
        """Take a stream, when the server takes one more."""
        if self._state == HTTPConnectionState.CLOSED:
            raise httpcore.ConnectionNotAvailable
        self._request_count += 1
        self._expire_at = None
        self._state = HTTPConnectionState.ACTIVE
        await self._places.acquire()
        try:
            stream_id: int = self._h2_state.get_next_available_stream_id()
        except h2.exceptions.NoAvailableStreamIDError:
            self._places.release()
            self._used_all_stream_ids = True
            self._request_count -= 1
            raise httpcore.ConnectionNotAvailable from None
        self._events[stream_id] = []
        return stream_id

    def _open(self, stream_id: int, fields: list[Field], *, has_body: bool) -> None:
        self._h2_state.send_headers(stream_id, fields, end_stream=not has_body)
        self._h2_state.increment_flow_control_window(WINDOW, stream_id=stream_id)

    async def end(self, request: httpcore.Request, stream_id: int) -> None:
        """Let go of a request's stream."""
        async with traced("response_closed", request, {"stream_id": stream_id}):
            await self._response_closed(stream_id)

    async def _introduce(self, request: httpcore.Request) -> None:
        """Say what has to be said first."""
        async with self._init_lock:
            if self._sent_connection_init:
                return
            try:
                async with traced("send_connection_init", request, {"request": request}):
                    await self._send_connection_init(request)
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await self.aclose()
                raise
            self._sent_connection_init = True

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
        """Read once, when it is this request's turn, unless somebody else has read what it waits for.

        Args:
            stream_id: None: what is waited for is anything at all.
        """
        with nullcontext() if stream_id is None else acknowledging():
            step = "pool" if stream_id is None else "read"
            await self._take_turn(request, step)
            try:
                if stream_id is None or not self._events.get(stream_id):
                    self._check_alive(stream_id)
                    await self._take(request, step)
            finally:
                self._reading.release()
            await self._write_outgoing_data(request)

    async def _take_turn(self, request: httpcore.Request, step: str) -> None:
        if _takes_at_once(self._reading):
            return
        # Whoever reads may have more time than this one.
        left = left_of(request.extensions.get("timeout", {}).get(step), httpcore.ReadTimeout)
        try:
            with anyio.fail_after(left):
                await self._reading.acquire()
        except TimeoutError as error:
            self._connection_error = True
            raise httpcore.ReadTimeout("timed out") from error

    def _check_alive(self, stream_id: int | None) -> None:
        if self._connection_terminated is not None:
            last = self._connection_terminated.last_stream_id
            if stream_id and last and stream_id > last:
                self._request_count -= 1
                raise httpcore.ConnectionNotAvailable  # the server has not looked at the request
            raise httpcore.RemoteProtocolError(self._connection_terminated)

    async def _take(self, request: httpcore.Request, step: str) -> None:
        for event in await self._read_incoming_data(request, step):
            if isinstance(event, h2.events.RemoteSettingsChanged):
                # A server that says nothing of it sets no limit.
                ours, theirs = self._h2_state.local_settings, self._h2_state.remote_settings
                self._places.set_limit(min(ours.max_concurrent_streams, theirs.max_concurrent_streams))
            elif isinstance(event, OF_STREAMS):
                if event.stream_id in self._events:
                    self._events[event.stream_id].append(event)
                else:
                    self._given_up.heard(self._h2_state, event)
            elif isinstance(event, h2.events.ConnectionTerminated):
                self._connection_terminated = event

    async def _send_request_body(self, request: httpcore.Request, stream_id: int) -> None:
        made = aiter(cast(AsyncIterable[bytes], request.stream))
        try:
            await self._send_pieces(request, stream_id, made)
        finally:
            # As for HTTP/1.1: the application's generator ends here and not when it is collected.
            if isinstance(made, AsyncGenerator):
                await made.aclose()

    async def _send_pieces(self, request: httpcore.Request, stream_id: int, made: AsyncIterator[bytes]) -> None:
        events = self._events[stream_id]
        async for piece in made:
            if not self._reading.locked() and self._network_stream.get_extra_info("has_data"):
                await self._read_for(request, stream_id)  # the server may not want the rest
            while piece:
                room = await self._wait_for_outgoing_flow(request, stream_id)
                if is_answered(events):
                    return
                self._h2_state.send_data(stream_id, piece[:room])
                piece = piece[room:]
                await self._write_outgoing_data(request)
        if not is_answered(events):
            self._h2_state.end_stream(stream_id)
            await self._write_outgoing_data(request)

    async def _wait_for_outgoing_flow(self, request: httpcore.Request, stream_id: int) -> int:
        """Wait until something can be sent, or need not be; returns how much."""
        events = self._events[stream_id]
        while not is_answered(events):
            room = self._room(stream_id)
            if room > 0:
                return room
            await self._read_for(request, stream_id)
        return 0

    async def _read_for(self, request: httpcore.Request, stream_id: int) -> None:
        """Read once for a request that is not whole, when it is its turn, unless that brought what it waits for."""
        await self._take_turn(request, "write")
        try:
            if not is_answered(self._events[stream_id]) and self._room(stream_id) <= 0:
                self._check_alive(stream_id)
                await self._take(request, "write")
            elif self._network_stream.get_extra_info("has_data"):
                await self._take(request, "write")
        finally:
            self._reading.release()
        await self._write_outgoing_data(request)

    def _room(self, stream_id: int) -> int:
        return min(self._h2_state.local_flow_control_window(stream_id), self._h2_state.max_outbound_frame_size)

    async def pieces(self, request: httpcore.Request, stream_id: int) -> AsyncIterator[bytes]:
        """Yield what comes of a response's body."""
        received = 0
        while not isinstance(event := await self._receive_stream_event(request, stream_id), h2.events.StreamEnded):
            if isinstance(event, h2.events.DataReceived):
                received += len(event.data or b"")
                with acknowledging():
                    self._h2_state.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)
                    await self._write_outgoing_data(request)
                yield event.data or b""
        check_length(self._lengths.get(stream_id), received)

    async def _read_incoming_data(self, request: httpcore.Request, step: str = "read") -> list[Any]:
        if self._read_exception is not None:
            raise self._read_exception
        try:
            timeout = request.extensions.get("timeout", {}).get(step)
            data = await self._network_stream.read(self.READ_NUM_BYTES, timeout)
            if not data:
                raise httpcore.RemoteProtocolError("Server disconnected")
        except httpcore.TimeoutException:
            self._connection_error = True  # no new requests; those beside this one go on
            raise
        except Exception as error:
            self._read_exception = error
            self._connection_error = True
            raise
        try:
            events = receive(self._h2_state, data)
        except h2.exceptions.ProtocolError as error:
            self._read_exception = broken = httpcore.RemoteProtocolError(f"{type(error).__name__}: {error}")
            self._connection_error = True
            raise broken from error
        self._trailers.learn(events, self._events)
        return events

    async def _write_outgoing_data(self, request: httpcore.Request) -> None:
        self._writers += 1
        try:
            if not _takes_at_once(self._writing):
                await self._writing.acquire()
            try:
                if self._write_exception is not None:
                    raise self._write_exception
                data = self._h2_state.data_to_send()
                if data:
                    await self._write(data, request.extensions.get("timeout", {}).get("write"))
            finally:
                self._writing.release()
        finally:
            self._writers -= 1

    async def _write(self, data: bytes, timeout: float | None) -> None:
        stream = self._network_stream
        try:
            # Frames of others are among it. asyncio's transports have all of it before anything is waited for; a
            # cancelled write of trio's would leave the peer with a part.
            if isinstance(stream, TrioStream):
                with anyio.CancelScope(shield=True):
                    await stream.write(data, timeout)
            else:
                await stream.write(data, timeout)
        except Exception as error:
            self._write_exception = error
            self._connection_error = True
            raise

    async def _response_closed(self, stream_id: int) -> None:
        self._trailers.pop(stream_id, None)
        is_answered = stream_id in self._lengths
        self._lengths.pop(stream_id, None)
        unread = self._events[stream_id]
        is_urgent = self._given_up.leave(self._h2_state, stream_id, unread, time.monotonic(), is_answered=is_answered)
        # Whoever is writing may wait for the peer; what is to be said goes out with what is written next.
        if is_urgent and not self._writers:
            with suppress(*GONE), anyio.CancelScope(shield=True):
                await self._write_outgoing_data(LAST_WORDS)
        self._places.release()
        del self._events[stream_id]
        if self._events:
            return
        if self._connection_terminated is not None or self._connection_error or self._used_all_stream_ids:
            await self.aclose()
        elif self._state == HTTPConnectionState.ACTIVE:
            self._state = HTTPConnectionState.IDLE
            if self._keepalive_expiry is not None:
                self._expire_at = time.monotonic() + self._keepalive_expiry


class _Body:
    """The body of a response, as httpcore's pools take it."""

    def __init__(self, connection: AsyncHttp2, request: httpcore.Request, stream_id: int) -> None:
        self._connection = connection
        self._request = request
        self._stream_id = stream_id
        self._is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        request, stream_id = self._request, self._stream_id
        try:
            async with traced("receive_response_body", request, {"request": request, "stream_id": stream_id}):
                async for piece in self._connection.pieces(request, stream_id):
                    yield piece
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await self._connection.end(self._request, self._stream_id)


def _takes_at_once(lock: anyio.Lock) -> bool:
    """Take a lock, if that needs no waiting. Else it lets the loop go round once, and a request takes half a dozen."""
    try:
        lock.acquire_nowait()
    except anyio.WouldBlock:
        return False
    return True
