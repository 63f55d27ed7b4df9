"""As `meshlib.clients.http1_sync`, for an event loop."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Final, cast

import httpcore
from httpcore._async.http11 import AsyncHTTP11UpgradeStream
from httpcore._trace import Trace

from meshlib.clients.http1_overheard import Answered, Overheard
from meshlib.clients.http1_request import JOINED_BYTES, Http1Request, framed, too_little, too_much
from meshlib.clients.http1_response import ResponseHead, ResponseReader
from meshlib.clients.http1_sync import refuse_http2
from meshlib.clients.network_async import AsyncDeadlineBackend, AsyncioStream, AsyncSocketStream
from meshlib.clients.pools import PoolKey
from meshlib.resilience.circuit_breaker import CircuitBreaker

__all__ = ["AsyncHttp1Connection"]

READ_BYTES: Final = 65536

_HTTP11 = logging.getLogger("httpcore.http11")
_CONNECTION = logging.getLogger("httpcore.connection")


class AsyncHttp1Connection:
    """As `Http1Connection`. After a cancellation it must be closed, as after any exception."""

    __slots__ = ("_backend", "_is_sent", "_key", "_stream", "expires_at", "pending", "reader", "served")

    def __init__(self, key: PoolKey, backend: AsyncDeadlineBackend) -> None:
        self._key = key
        self._backend = backend
        self._stream: AsyncSocketStream | None = None
        self._is_sent = False
        self.reader = ResponseReader()
        self.served = 0
        self.expires_at: float | None = None
        self.pending: CircuitBreaker | None = None

    def settle(self) -> None:
        """Nobody waits for it any more."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.end_pending()

    @property
    def stream(self) -> AsyncSocketStream:
        """What it reads and writes; it was opened."""
        assert self._stream is not None
        return self._stream

    @property
    def is_new(self) -> bool:
        """It was not opened yet."""
        return self._stream is None

    @property
    def is_reusable(self) -> bool:
        """The exchange is over, and another one may follow."""
        return self._is_sent and self.reader.is_complete and self.reader.is_reusable

    @property
    def is_stale(self) -> bool:
        """The server has closed it meanwhile, or sent what nobody asked for."""
        return self._stream is None or self._stream.is_readable

    async def aclose(self) -> None:
        """Close the socket."""
        if self._stream is not None:
            await self._stream.aclose()

    async def connect(self, request: Http1Request) -> None:
        """Open the connection, TLS included, unless it is open."""
        if self._stream is None:
            key = self._key
            timeout = request.timeouts.get("connect")
            traced = cast(httpcore.Request, request)
            stream: AsyncSocketStream
            if key.unix_path is not None:
                kwargs: dict[str, Any] = {"path": key.unix_path, "timeout": timeout, "socket_options": None}
                async with Trace("connect_unix_socket", _CONNECTION, traced, kwargs) as trace:
                    stream = trace.return_value = await self._backend.connect_unix_socket(key.unix_path, timeout)
            else:
                host, port = request.origin.host.decode("ascii"), request.origin.port
                kwargs = {"host": host, "port": port, "local_address": None, "timeout": timeout, "socket_options": None}
                async with Trace("connect_tcp", _CONNECTION, traced, kwargs) as trace:
                    stream = trace.return_value = await self._backend.connect_tcp(host, port, timeout)
            self._stream = stream
            if key.context is not None:
                name = request.extensions.get("sni_hostname") or request.origin.host.decode("ascii")
                kwargs = {"ssl_context": key.context, "server_hostname": name, "timeout": timeout}
                async with Trace("start_tls", _CONNECTION, traced, kwargs) as trace:
                    self._stream = trace.return_value = await stream.start_tls(key.context, name, timeout)
                refuse_http2(self._stream, key)
            self.settle()

    async def send(self, request: Http1Request) -> ResponseHead:
        """Send a request and receive the head of its response. After an exception the connection must be closed."""
        stream, reader, timeouts = self._stream, self.reader, request.timeouts
        if stream is None:
            await self.connect(request)
            stream = self._stream
            assert stream is not None
        self._is_sent = False
        reader.begin(request.method, request.switches)
        head: ResponseHead | None
        if request.is_traced:
            head = await self._traced(request, stream)
        else:
            try:
                body = request.body
                is_short = body is not None and len(body) == request.length and len(body) <= JOINED_BYTES
                if is_short and isinstance(stream, AsyncioStream):
                    if self._push(request, stream, request.head + body if body else request.head):
                        await stream.drain(timeouts.get("write"))
                    self._is_sent = True
                else:
                    await self._send_all(request, stream)
            except httpcore.WriteError:
                # A server may answer before it has read everything, and close. That answer is worth having.
                if not timeouts.has_sent:
                    raise
            except Answered as answered:
                head = reader.head(answered.data) or await self._receive_head(request, stream)
                return self._closing(request, head)
            head = reader.head(await stream.read(READ_BYTES, timeouts.step_s("read")))
            if head is None:
                head = await self._receive_head(request, stream)
        if request.closes:
            reader.is_reusable = False
        return head

    def _closing(self, request: Http1Request, head: ResponseHead) -> ResponseHead:
        if request.closes:
            self.reader.is_reusable = False
        return head

    def extensions(self, request: Http1Request, head: ResponseHead) -> dict[str, Any]:
        """Return what httpx's users find in `response.extensions`, and `trailers` if the body comes in chunks."""
        stream, reader = self._stream, self.reader
        assert stream is not None
        found: dict[str, Any] = {
            "http_version": head.version,
            "reason_phrase": head.reason,
            "network_stream": stream,
        }
        if reader.trailers is not None:
            found["trailers"] = reader.trailers
        if head.status == 101 or (request.method == b"CONNECT" and 200 <= head.status < 300):
            found["network_stream"] = AsyncHTTP11UpgradeStream(stream, reader.leading_data)
        return found

    async def _traced(self, request: Http1Request, stream: AsyncSocketStream) -> ResponseHead:
        """As `send`, step by step."""
        traced = cast(httpcore.Request, request)
        kwargs = {"request": traced}
        early: ResponseHead | None = None
        try:
            async with Trace("send_request_headers", _HTTP11, traced, kwargs):
                await self._write(request, stream, request.head)
            async with Trace("send_request_body", _HTTP11, traced, kwargs):
                await self._send_pieces(request, stream)
        except httpcore.WriteError:
            if not request.timeouts.has_sent:
                raise
        except Answered as answered:
            early = self.reader.head(answered.data)
        async with Trace("receive_response_headers", _HTTP11, traced, kwargs) as trace:
            head = early or await self._receive_head(request, stream)
            trace.return_value = (head.version, head.status, head.reason, head.headers)
        return head

    async def _send_all(self, request: Http1Request, stream: AsyncSocketStream) -> None:
        body = request.body
        if body is None:
            await self._write(request, stream, request.head)
            await self._send_pieces(request, stream)
        elif request.length is None:
            await self._write(request, stream, request.head + (framed(body) if body else b"") + b"0\r\n\r\n")
            self._is_sent = True
        elif len(body) != request.length:
            raise too_much() if len(body) > request.length else too_little()
        else:
            if len(body) <= JOINED_BYTES:
                await self._write(request, stream, request.head + body if body else request.head)
            else:
                await self._write(request, stream, request.head)
                overheard = Overheard(request)
                await self._write_hearing(request, stream, body, overheard)
                self._is_sent = True
                if overheard.data:
                    raise Answered(overheard.data)
            self._is_sent = True

    async def _send_pieces(self, request: Http1Request, stream: AsyncSocketStream) -> None:
        left, overheard = request.length, Overheard(request)
        made = aiter(cast(AsyncIterator[bytes], request.stream))
        try:
            left = await self._send_each(request, stream, made, left, overheard)
        except BaseException:
            # The generator of the application ends here and not when it is collected, which trio complains of.
            if isinstance(made, AsyncGenerator):
                await made.aclose()
            raise
        if left is None:
            await self._write(request, stream, b"0\r\n\r\n")
        elif left:
            raise too_little()
        self._is_sent = True
        if overheard.data:
            raise Answered(overheard.data)

    async def _send_each(
        self,
        request: Http1Request,
        stream: AsyncSocketStream,
        made: AsyncIterator[bytes],
        left: int | None,
        overheard: Overheard,
    ) -> int | None:
        async for piece in made:
            if left is None:
                if piece:
                    await self._write_hearing(request, stream, framed(piece), overheard)
                continue
            left -= len(piece)
            if left < 0:
                raise too_much()
            if piece:
                await self._write_hearing(request, stream, piece, overheard)
        return left

    async def _write(self, request: Http1Request, stream: AsyncSocketStream, data: bytes) -> None:
        timeouts = request.timeouts
        had_sent = timeouts.has_sent
        timeout = timeouts.get("write")
        try:
            await stream.write(data, timeout)
        except httpcore.WriteError:
            if not had_sent and not stream.wrote:
                timeouts.has_sent = False  # the socket took nothing: it was dead before
            raise

    async def _write_hearing(
        self, request: Http1Request, stream: AsyncSocketStream, data: bytes, overheard: Overheard
    ) -> None:
        """As `_write`, of a body; what the server says meanwhile is listened to."""
        try:
            await stream.write_hearing(data, request.timeouts.get("write"), overheard)
        except httpcore.WriteError:
            if overheard.data:
                raise Answered(overheard.data) from None
            raise

    def _push(self, request: Http1Request, stream: AsyncioStream, data: bytes) -> bool:
        """As `_write`, without waiting; True: the stream is to `drain`."""
        timeouts = request.timeouts
        had_sent, timeouts.has_sent = timeouts.has_sent, True
        try:
            return stream.push(data)
        except httpcore.WriteError:
            if not had_sent:
                timeouts.has_sent = False  # it was dead before
            raise

    async def _receive_head(self, request: Http1Request, stream: AsyncSocketStream) -> ResponseHead:
        head = None
        while head is None:
            head = self.reader.head(await stream.read(READ_BYTES, request.timeouts.step_s("read")))
        return head

    async def pieces(self, request: Http1Request) -> AsyncIterator[bytes]:
        """Receive the body of the response."""
        stream, reader = self._stream, self.reader
        assert stream is not None
        for piece in reader.open_body():
            yield piece
        while not reader.is_complete:
            for piece in reader.body(await stream.read(READ_BYTES, request.timeouts.step_s("read"))):
                yield piece

    def body(self, request: Http1Request) -> AsyncIterator[bytes]:
        """As `pieces`, and those who trace hear of it."""
        if not request.is_traced:
            return self.pieces(request)
        return self._traced_pieces(request)

    async def _traced_pieces(self, request: Http1Request) -> AsyncIterator[bytes]:
        traced = cast(httpcore.Request, request)
        async with Trace("receive_response_body", _HTTP11, traced, {"request": traced}):
            async for piece in self.pieces(request):
                yield piece
