"""One HTTP/1.1 connection, blocking: a socket and who may read what from it.

`meshlib.clients.http1_async` has the twin for event loops. Nothing here waits for a connection to be free: that is the
pool's business. Exceptions are httpcore's, and so are the steps which `extensions["trace"]` and the loggers
`httpcore.http11` and `httpcore.connection` hear of.
"""

import logging
from collections.abc import Iterator
from typing import Any, Final, cast

import httpcore
from httpcore._sync.http11 import HTTP11UpgradeStream
from httpcore._trace import Trace

from meshlib.clients.http1_overheard import Answered, Overheard
from meshlib.clients.http1_request import JOINED_BYTES, Http1Request, framed, too_little, too_much
from meshlib.clients.http1_response import ResponseHead, ResponseReader
from meshlib.clients.network import SocketStream, backend_for
from meshlib.clients.pools import PoolKey
from meshlib.resilience.circuit_breaker import CircuitBreaker

__all__ = ["Http1Connection", "refuse_http2", "response_closed"]

READ_BYTES: Final = 65536

_HTTP11 = logging.getLogger("httpcore.http11")
_CONNECTION = logging.getLogger("httpcore.connection")


class Http1Connection:
    """Used by one request at a time; what is beside the connection itself belongs to its pool.

    Attributes:
        served: Requests that it was given.
        expires_at: Monotonic seconds after which it is too old to be used, while it is idle; None: never.
        pending: Counts the request that waits for this connection to be made; None: nobody waits.
    """

    __slots__ = ("_is_sent", "_key", "_stream", "expires_at", "pending", "reader", "served")

    def __init__(self, key: PoolKey) -> None:
        self._key = key
        self._stream: SocketStream | None = None
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

    def close(self) -> None:
        """Close the socket."""
        if self._stream is not None:
            self._stream.close()

    def connect(self, request: Http1Request) -> None:
        """Open the connection, TLS included, unless it is open."""
        if self._stream is None:
            key = self._key
            timeout = request.timeouts.get("connect")
            traced = cast(httpcore.Request, request)
            if key.unix_path is not None:
                kwargs: dict[str, Any] = {"path": key.unix_path, "timeout": timeout, "socket_options": None}
                with Trace("connect_unix_socket", _CONNECTION, traced, kwargs) as trace:
                    stream = trace.return_value = backend_for(key).connect_unix_socket(key.unix_path, timeout)
            else:
                host, port = request.origin.host.decode("ascii"), request.origin.port
                kwargs = {"host": host, "port": port, "local_address": None, "timeout": timeout, "socket_options": None}
                with Trace("connect_tcp", _CONNECTION, traced, kwargs) as trace:
                    stream = trace.return_value = backend_for(key).connect_tcp(host, port, timeout)
            if key.context is not None:
                name = request.extensions.get("sni_hostname") or request.origin.host.decode("ascii")
                kwargs = {"ssl_context": key.context, "server_hostname": name, "timeout": timeout}
                with Trace("start_tls", _CONNECTION, traced, kwargs) as trace:
                    stream = self._stream = trace.return_value = stream.start_tls(key.context, name, timeout)
                refuse_http2(stream, key)
            self._stream = stream
            self.settle()

    def send(self, request: Http1Request) -> ResponseHead:
        """Send a request and receive the head of its response. After an exception the connection must be closed."""
        stream, reader = self._stream, self.reader
        if stream is None:
            self.connect(request)
            stream = self._stream
            assert stream is not None
        self._is_sent = False
        reader.begin(request.method, request.switches)
        if request.is_traced:
            head = self._traced(request, stream)
        else:
            try:
                body = request.body
                if body is not None and len(body) == request.length and len(body) <= JOINED_BYTES:
                    self._write(request, stream, request.head + body if body else request.head)
                    self._is_sent = True
                else:
                    self._send_all(request, stream)
            except httpcore.WriteError:
                # A server may answer before it has read everything, and close. That answer is worth having.
                if not request.timeouts.has_sent:
                    raise
            except Answered as answered:
                return self._closing(request, reader.head(answered.data) or self._receive_head(request, stream))
            head = self._receive_head(request, stream)
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
            found["network_stream"] = HTTP11UpgradeStream(stream, reader.leading_data)
        return found

    def _traced(self, request: Http1Request, stream: SocketStream) -> ResponseHead:
        """As `send`, step by step."""
        traced = cast(httpcore.Request, request)
        kwargs = {"request": traced}
        early: ResponseHead | None = None
        try:
            with Trace("send_request_headers", _HTTP11, traced, kwargs):
                self._write(request, stream, request.head)
            with Trace("send_request_body", _HTTP11, traced, kwargs):
                self._send_pieces(request, stream)
        except httpcore.WriteError:
            if not request.timeouts.has_sent:
                raise
        except Answered as answered:
            early = self.reader.head(answered.data)
        with Trace("receive_response_headers", _HTTP11, traced, kwargs) as trace:
            head = early or self._receive_head(request, stream)
            trace.return_value = (head.version, head.status, head.reason, head.headers)
        return head

    def _send_all(self, request: Http1Request, stream: SocketStream) -> None:
        body = request.body
        if body is None:
            self._write(request, stream, request.head)
            self._send_pieces(request, stream)
        elif request.length is None:
            self._write(request, stream, request.head + (framed(body) if body else b"") + b"0\r\n\r\n")
            self._is_sent = True
        elif len(body) != request.length:
            raise too_much() if len(body) > request.length else too_little()
        else:
            self._write(request, stream, request.head)
            overheard = Overheard(request)
            self._write_hearing(request, stream, body, overheard)
            self._is_sent = True
            if overheard.data:
                raise Answered(overheard.data)

    def _send_pieces(self, request: Http1Request, stream: SocketStream) -> None:
        left, overheard = request.length, Overheard(request)
        for piece in cast(Iterator[bytes], request.stream):
            if left is None:
                if piece:
                    self._write_hearing(request, stream, framed(piece), overheard)
                continue
            left -= len(piece)
            if left < 0:
                raise too_much()
            if piece:
                self._write_hearing(request, stream, piece, overheard)
        if left is None:
            self._write(request, stream, b"0\r\n\r\n")
        elif left:
            raise too_little()
        self._is_sent = True
        if overheard.data:
            raise Answered(overheard.data)

    def _write(self, request: Http1Request, stream: SocketStream, data: bytes) -> None:
        timeouts = request.timeouts
        had_sent = timeouts.has_sent
        timeout = timeouts.step_s("write")
        try:
            sent = stream.write_once(data, timeout)
            if sent < len(data):
                stream.write_rest(memoryview(data)[sent:], timeouts.get("write"))
        except httpcore.WriteError:
            if not had_sent and not stream.wrote:
                timeouts.has_sent = False  # the socket took nothing: it was dead before
            raise

    def _write_hearing(self, request: Http1Request, stream: SocketStream, data: bytes, overheard: Overheard) -> None:
        """As `_write`, of a body; what the server says meanwhile is listened to."""
        if overheard.listens and stream.is_readable and (found := stream.read_at_once(READ_BYTES)) is not None:
            overheard.take(found)
        try:
            stream.write_hearing(data, request.timeouts.get("write"), overheard)
        except httpcore.WriteError:
            if overheard.data:
                raise Answered(overheard.data) from None
            raise

    def _receive_head(self, request: Http1Request, stream: SocketStream) -> ResponseHead:
        head, timeouts = None, request.timeouts
        while head is None:
            head = self.reader.head(stream.read(READ_BYTES, timeouts.step_s("read")))
        return head

    def pieces(self, request: Http1Request) -> Iterator[bytes]:
        """Receive the body of the response."""
        stream, reader = self._stream, self.reader
        assert stream is not None
        yield from reader.open_body()
        while not reader.is_complete:
            yield from reader.body(stream.read(READ_BYTES, request.timeouts.step_s("read")))

    def body(self, request: Http1Request) -> Iterator[bytes]:
        """As `pieces`, and those who trace hear of it."""
        if not request.is_traced:
            return self.pieces(request)
        return self._traced_pieces(request)

    def _traced_pieces(self, request: Http1Request) -> Iterator[bytes]:
        traced = cast(httpcore.Request, request)
        with Trace("receive_response_body", _HTTP11, traced, {"request": traced}):
            yield from self.pieces(request)


def refuse_http2(stream: httpcore.NetworkStream | httpcore.AsyncNetworkStream, key: PoolKey) -> None:
    """Make sure that the peer speaks what we are going to.

    Raises:
        httpcore.ConnectError: It chose HTTP/2, which this cluster's ALPN offers though its protocol is HTTP/1.1.
    """
    found = stream.get_extra_info("ssl_object")
    if found is not None and found.selected_alpn_protocol() == "h2":
        raise httpcore.ConnectError(
            f"{key.address} chose HTTP/2 by ALPN, which its cluster offers without being one of HTTP/2"
        )


def response_closed(request: Http1Request) -> Trace:
    """Return the last step, as a context manager."""
    return Trace("response_closed", _HTTP11, cast(httpcore.Request, request))
