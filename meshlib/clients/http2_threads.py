"""One HTTP/2 connection that threads share.

httpcore's (1.0.9) lets them change the protocol's state beside each other: two get the same stream, header blocks leave in
another order than they were compressed in, windows are overdrawn; sixteen threads break a connection every few dozen
requests. And whoever reads holds up all others for as long as its own answer takes, though theirs have come.

Here the state has one lock, which is never held while the socket is waited for. One thread at a time reads, for all; the
others wait for what it finds, each for its own time. A time-out is its request's alone: the connection takes no new
requests then, and the others go on.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, cast

import h2.events
import h2.exceptions
import httpcore
from httpcore._sync.http2 import HTTPConnectionState

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
from meshlib.clients.network import SocketStream, left_of

__all__ = ["Http2"]


class Http2(httpcore.HTTP2Connection):
    """A connection on its stream."""

    CONFIG = H2_CONFIG

    def __init__(self, origin: httpcore.Origin, stream: httpcore.NetworkStream, keepalive_expiry: float | None) -> None:
        super().__init__(origin, stream, keepalive_expiry)
        self._expire_at = None if keepalive_expiry is None else time.monotonic() + keepalive_expiry
        self._writing = threading.Lock()  # taken before the next one
        # Guards what follows, the protocol's state and the events of streams.
        self._changed = threading.Condition(threading.Lock())
        self._is_reading = False
        self._running = 0
        self._max_streams = 1  # until the server says
        self._given_up = GivenUp()
        self._trailers = Trailers()
        self._lengths: dict[int, int | None] = {}

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        try:
            fields, has_body = request_fields(request)
        except h2.exceptions.ProtocolError as error:
            raise httpcore.LocalProtocolError(error) from error
        self._look(request)
        stream_id = self._begin(request, fields, has_body=has_body)
        about = {"request": request, "stream_id": stream_id}
        try:
            with traced("send_request_headers", request, about):
                self._write_outgoing_data(request)
            with traced("send_request_body", request, about):
                if has_body:
                    self._send_request_body(request, stream_id)
            with traced("receive_response_headers", request, about) as trace:
                trace.return_value = status, headers = self._receive_response(request, stream_id)
        except BaseException as error:
            self.end(request, stream_id)
            if isinstance(error, h2.exceptions.ProtocolError):
                raise self._translated(error) from error
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

    def close(self) -> None:
        """Close it, whatever is under way."""
        with self._changed:
            with suppress(h2.exceptions.ProtocolError):
                self._h2_state.close_connection()
            self._state = HTTPConnectionState.CLOSED
            self._changed.notify_all()
        self._network_stream.close()

    # The beginning and the end of a request.

    def _look(self, request: httpcore.Request) -> None:
        """Read what has come while nobody waited for anything."""
        with self._changed:
            if not self._sent_connection_init or self._is_reading or self._events:
                return
            if not self._network_stream.get_extra_info("is_readable"):
                return
            self._is_reading = True
        try:
            self._read(request, "pool")
            self._write_outgoing_data(request)
        except GONE:
            self.close()
        if self._connection_terminated is not None:
            self.close()
        if self.is_closed():
            raise httpcore.ConnectionNotAvailable

    def _begin(self, request: httpcore.Request, fields: list[Field], *, has_body: bool) -> int:
        """Open a stream; its headers are ready to be written."""
        with self._changed:
            if self._state == HTTPConnectionState.CLOSED:
                raise httpcore.ConnectionNotAvailable
            self._state = HTTPConnectionState.ACTIVE
            self._expire_at = None
            self._request_count += 1
            self._running += 1
        try:
            with self._init_lock:
                if not self._sent_connection_init:
                    with traced("send_connection_init", request, {"request": request}):
                        self._send_connection_init(request)
                    self._sent_connection_init = True
            with self._changed:
                self._wait_for_place(request)
                return self._open(fields, has_body=has_body)
        except BaseException:
            if not self._sent_connection_init:
                self.close()
            self._left()
            raise

    def _wait_for_place(self, request: httpcore.Request) -> None:
        """Wait until the server takes one more stream. The lock is held."""
        timeout = request.extensions.get("timeout", {}).get("pool")
        while len(self._events) >= self._max_streams:
            if not self.is_available():
                raise httpcore.ConnectionNotAvailable
            if not self._changed.wait(left_of(timeout, httpcore.PoolTimeout)):
                raise httpcore.PoolTimeout("the server takes no more requests on this connection")

    def _open(self, fields: list[Field], *, has_body: bool) -> int:
        """Take a stream and say the headers, in one: streams have to begin in their order. The lock is held."""
        if self._given_up:
            self._given_up.sweep(self._h2_state, time.monotonic(), self._max_streams // 2)
        try:
            stream_id: int = self._h2_state.get_next_available_stream_id()
            self._h2_state.send_headers(stream_id, fields, end_stream=not has_body)
            self._h2_state.increment_flow_control_window(WINDOW, stream_id=stream_id)
        except h2.exceptions.NoAvailableStreamIDError:
            self._used_all_stream_ids = True
            raise httpcore.ConnectionNotAvailable from None
        except h2.exceptions.ProtocolError as error:
            raise self._translated(error) from error
        self._events[stream_id] = []
        return stream_id

    def _translated(self, error: h2.exceptions.ProtocolError) -> Exception:
        """A goodbye of the server makes what we say afterwards wrong; else it is our own fault."""
        if self._connection_terminated is not None:
            return httpcore.RemoteProtocolError(self._connection_terminated)
        return httpcore.LocalProtocolError(error)

    def end(self, request: httpcore.Request, stream_id: int) -> None:
        """Let go of a request's stream."""
        with traced("response_closed", request, {"stream_id": stream_id}):
            self._response_closed(stream_id)

    def _response_closed(self, stream_id: int) -> None:
        with self._changed:
            unread = self._events.pop(stream_id)
            self._trailers.pop(stream_id, None)
            is_answered = stream_id in self._lengths
            self._lengths.pop(stream_id, None)
            now = time.monotonic()
            is_urgent = self._given_up.leave(self._h2_state, stream_id, unread, now, is_answered=is_answered)
            self._changed.notify_all()
        # Whoever is writing goes on until everything is written.
        if is_urgent and self._writing.acquire(blocking=False):
            try:
                with suppress(*GONE):
                    self._write_all(LAST_WORDS)
            finally:
                self._writing.release()
        self._left()

    def _left(self) -> None:
        with self._changed:
            self._running -= 1
            if self._running or self._state != HTTPConnectionState.ACTIVE:
                return
            is_over = self._connection_terminated is not None or self._connection_error or self._used_all_stream_ids
            if not is_over:
                self._state = HTTPConnectionState.IDLE
                if self._keepalive_expiry is not None:
                    self._expire_at = time.monotonic() + self._keepalive_expiry
        if is_over:  # nobody will use it again, or wants anything of it
            self.close()

    # Sending.

    def _send_request_body(self, request: httpcore.Request, stream_id: int) -> None:
        for piece in cast(Iterable[bytes], request.stream):
            self._read_what_came(request)
            if not self._sent_data(request, stream_id, piece):
                return
        with self._changed:
            if not is_answered(self._events[stream_id]):
                self._h2_state.end_stream(stream_id)
        self._write_outgoing_data(request)

    def _sent_data(self, request: httpcore.Request, stream_id: int, data: bytes) -> bool:
        """Send a piece of a body; False: the answer is there, and nobody wants the rest."""
        events = self._events[stream_id]
        while data:
            self._read_until(request, stream_id, lambda: is_answered(events) or self._room(stream_id) > 0, "write")
            with self._changed:
                if is_answered(events):
                    return False
                room = self._room(stream_id)
                if room > 0:  # another one may have taken it
                    self._h2_state.send_data(stream_id, data[:room])
                    data = data[room:]
            self._write_outgoing_data(request)
        return True

    def _read_what_came(self, request: httpcore.Request) -> None:
        """Read what is there while a body goes out, unless somebody else does: the server may not want the rest."""
        with self._changed:
            if self._is_reading or not self._network_stream.get_extra_info("is_readable"):
                return
            self._is_reading = True
        self._read(request, "write", at_once=True)

    def _room(self, stream_id: int) -> int:
        return min(self._h2_state.local_flow_control_window(stream_id), self._h2_state.max_outbound_frame_size)

    def _write_outgoing_data(self, request: httpcore.Request) -> None:
        with self._writing:
            self._write_all(request)

    def _write_all(self, request: httpcore.Request) -> None:
        timeout = request.extensions.get("timeout", {}).get("write")
        while True:
            if self._write_exception is not None:
                raise self._write_exception
            with self._changed:
                data = self._h2_state.data_to_send()
            if not data:
                return
            try:
                self._network_stream.write(data, timeout)
            except Exception as error:
                # Nobody knows how much of it has got through.
                self._write_exception = error
                self._connection_error = True
                raise

    # Receiving.

    def pieces(self, request: httpcore.Request, stream_id: int) -> Iterator[bytes]:
        """Yield what comes of a response's body."""
        received = 0
        while not isinstance(event := self._receive_stream_event(request, stream_id), h2.events.StreamEnded):
            if isinstance(event, h2.events.DataReceived):
                received += len(event.data or b"")
                with acknowledging():
                    with self._changed:
                        self._h2_state.acknowledge_received_data(event.flow_controlled_length or 0, stream_id)
                    self._write_outgoing_data(request)
                yield event.data or b""
        check_length(self._lengths.get(stream_id), received)

    def _receive_stream_event(self, request: httpcore.Request, stream_id: int) -> Any:
        events = self._events[stream_id]
        if not events:
            self._read_until(request, stream_id, lambda: bool(events))
        event = events.pop(0)
        if isinstance(event, h2.events.StreamReset):
            raise httpcore.RemoteProtocolError(event)
        return event

    def _read_until(
        self, request: httpcore.Request, stream_id: int, holds: Callable[[], bool], step: str = "read"
    ) -> None:
        """Wait until something holds, reading if nobody else does.

        Args:
            holds: Called with the lock held.
            step: Whose time-out it is. Time that runs from the end of a request begins with its first `read`.
        """
        timeout = request.extensions.get("timeout", {}).get(step)
        while True:
            with self._changed:
                while not holds():
                    self._check_alive(stream_id)
                    if not self._is_reading:
                        self._is_reading = True
                        break
                    if not self._changed.wait(left_of(timeout, httpcore.ReadTimeout)):
                        self._connection_error = True
                        raise httpcore.ReadTimeout("timed out")
                else:
                    return
            self._read(request, step)
            with acknowledging():
                self._write_outgoing_data(request)

    def _check_alive(self, stream_id: int) -> None:
        """Raise why nothing more will come. The lock is held."""
        if self._connection_terminated is not None:
            last = self._connection_terminated.last_stream_id
            if last and stream_id > last:
                raise httpcore.ConnectionNotAvailable  # the server has not looked at the request
            raise httpcore.RemoteProtocolError(self._connection_terminated)
        if self._read_exception is not None:
            raise self._read_exception
        if self._state == HTTPConnectionState.CLOSED:
            raise httpcore.ReadError("the connection was closed")

    def _read(self, request: httpcore.Request, step: str, *, at_once: bool = False) -> None:
        """Read once and hand out what came. `_is_reading` has been set by the caller, and is not any more afterwards.

        Args:
            at_once: Wait for nothing: what has come may be TLS's own.
        """
        failure: Exception | None = None
        data: bytes | None = b""
        try:
            if at_once:
                data = cast(SocketStream, self._network_stream).read_at_once(self.READ_NUM_BYTES)
            else:
                data = self._network_stream.read(self.READ_NUM_BYTES, request.extensions.get("timeout", {}).get(step))
            if data == b"":
                failure = httpcore.RemoteProtocolError("Server disconnected")
        except Exception as error:
            failure = error
        finally:
            with self._changed:
                self._is_reading = False
                if data:
                    failure = self._take(data)
                if failure is not None:
                    self._connection_error = True
                    if not isinstance(failure, httpcore.TimeoutException):  # that is this request's alone
                        self._read_exception = failure
                self._changed.notify_all()
        if failure is not None:
            raise failure

    def _take(self, data: bytes) -> Exception | None:
        """Hand out what came; returns what is wrong with it. The lock is held."""
        try:
            events = receive(self._h2_state, data)
        except h2.exceptions.ProtocolError as error:
            # For the other streams of the connection too.
            broken = httpcore.RemoteProtocolError(f"{type(error).__name__}: {error}")
            broken.__cause__ = error
            return broken
        self._trailers.learn(events, self._events)
        for event in events:
            if isinstance(event, OF_STREAMS):
                if event.stream_id in self._events:
                    self._events[event.stream_id].append(event)
                else:
                    self._given_up.heard(self._h2_state, event)
            elif isinstance(event, h2.events.RemoteSettingsChanged):
                # A server that says nothing of it sets no limit.
                ours, theirs = self._h2_state.local_settings, self._h2_state.remote_settings
                self._max_streams = max(1, min(ours.max_concurrent_streams, theirs.max_concurrent_streams))
            elif isinstance(event, h2.events.ConnectionTerminated):
                self._connection_terminated = event
        return None


class _Body:
    """The body of a response, as httpcore's pools take it."""

    def __init__(self, connection: Http2, request: httpcore.Request, stream_id: int) -> None:
        self._connection = connection
        self._request = request
        self._stream_id = stream_id
        self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        request, stream_id = self._request, self._stream_id
        try:
            with traced("receive_response_body", request, {"request": request, "stream_id": stream_id}):
                yield from self._connection.pieces(request, stream_id)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._connection.end(self._request, self._stream_id)
