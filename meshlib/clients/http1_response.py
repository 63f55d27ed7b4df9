"""Reading HTTP/1.1 responses, without I/O.

h11 is the judge of what a response is; it is also slow. So `ResponseReader` reads by itself what needs no judgement: a
head of HTTP/1.1 of lines that h11 has found to be good (it is asked once per line, and remembered), and a body of known
length, in chunks, or up to the end of the connection. Everything else (interim responses, switches of protocol,
HTTP/1.0, folded lines, repeated lengths, anything malformed) goes to h11, from the head's first byte on.

What differs from h11 on purpose: bytes after the end of a response make the connection unusable; h11 would keep them for
the next response, which nobody has asked for yet.
"""

import re
from functools import lru_cache
from typing import Any, Final, NamedTuple

import h11
import httpcore
import httpx
from h11._abnf import chunk_header
from h11._readers import header_field_re, status_line_re

__all__ = ["MAX_HEAD_BYTES", "RawResponse", "ResponseHead", "ResponseReader"]

MAX_HEAD_BYTES: Final = 100 * 1024
"""As in httpcore."""
MAX_LINE_BYTES: Final = 16 * 1024
"""Of the line of a chunk, and of all trailers."""
_PATIENCE_BYTES: Final = 4096
"""A head that comes in pieces is looked at from its beginning with each; h11 looks at every byte once."""
_REMEMBERED_BYTES: Final = 128
_REMEMBERED_HEAD_BYTES: Final = 1024
_REMEMBERED_HEADS: Final = 256
"""A server says the same for as long as its `date` stays, that is a second, and its answers have one length."""
_CHUNK_LINE: Final = re.compile(chunk_header.encode("ascii"))
_KEEP_ALIVE_TIMEOUT: Final = re.compile(rb"(?:^|[,;\s])timeout\s*=\s*\"?([0-9]{1,6})", re.IGNORECASE)

Field = tuple[bytes, bytes]
_PLAIN, _LENGTH, _CHUNKED, _CLOSE, _KEEP_ALIVE, _STRANGE = range(6)
_UNTIL_CLOSED: Final = -1
"""Instead of a length."""
_heads: "dict[bytes, _Known]" = {}
# Where a chunked body stands when it is not inside of a chunk.
_AT_LINE, _AT_END_OF_CHUNK, _AT_TRAILERS = 0, -1, -2


class ResponseHead(NamedTuple):
    """Attributes:
    version: E.g. `HTTP/1.1`.
    headers: Names as sent. Not to be changed: other responses may have the same.
    """

    version: bytes
    status: int
    reason: bytes
    headers: list[Field]


class _Known(NamedTuple):
    """A head, and what it says of the body and the connection.

    Attributes:
        length: Of the body; -1: it is not said.
        keep_alive_s: How long the server keeps an idle connection; None: it does not say.
        is_common: It may come again, and holds nothing that should not be remembered.
    """

    head: ResponseHead
    length: int
    is_chunked: bool
    closes: bool
    keep_alive_s: float | None
    is_common: bool


class RawResponse:
    """What a connection gives for a request; the part of httpcore's response that is used here."""

    __slots__ = ("extensions", "headers", "status", "stream")

    def __init__(
        self,
        head: ResponseHead,
        stream: httpx.SyncByteStream | httpx.AsyncByteStream,
        extensions: dict[str, Any],
    ) -> None:
        self.status = head.status
        self.headers = head.headers
        self.stream = stream
        self.extensions = extensions


class ResponseReader:
    """Reads the responses of one connection, one after the other: `begin`, `head` until there is one, then `body`.

    Attributes:
        is_complete: The response is over, its body included.
        is_reusable: Another response may follow it; only once it is complete.
        keep_alive_s: How long the server said last that it keeps an idle connection; None: it does not say.
        trailers: Of a body in chunks; filled once it is complete. None: the body is not in chunks.
    """

    __slots__ = (
        "_buffer",
        "_h11",
        "_left",
        "_length",
        "_method",
        "_switches",
        "is_complete",
        "is_reusable",
        "keep_alive_s",
        "rest",
        "trailers",
    )

    def __init__(self) -> None:
        self.keep_alive_s: float | None = None
        self.begin(b"GET", ())

    def begin(self, method: bytes, switches: "tuple[Field, ...]") -> None:
        """A request was sent, or is about to be.

        Args:
            switches: Its headers that ask for another protocol.
        """
        self._method = method
        self._switches = switches
        self._buffer = b""
        self._h11: h11.Connection | None = None
        self._length = self._left = 0
        self.rest = b""
        self.is_complete = False
        self.is_reusable = False
        self.trailers: list[Field] | None = None

    def head(self, data: bytes) -> ResponseHead | None:
        """Take bytes; returns the head when it is complete. What came with it of the body is in `rest`.

        Args:
            data: Empty: the peer sends nothing any more.

        Raises:
            httpcore.RemoteProtocolError: That is no HTTP.
        """
        if not data:
            raise httpcore.RemoteProtocolError("Server disconnected without sending a response.")
        if self._h11 is not None:
            return self._asked_head(data)
        if self._buffer:
            data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if (
                len(data) > _PATIENCE_BYTES
                or b"\n\n" in data
                or b"\n\r\n" in data
                or not data.startswith(b"HTTP"[: len(data)])
            ):
                return self._ask(data)
            self._buffer = data
            return None
        if end > MAX_HEAD_BYTES or self._method == b"CONNECT":
            return self._ask(data)
        raw = data[:end]
        known = _heads.get(raw)
        if known is None:
            known = _read(raw)
            if known is None:
                return self._ask(data)
            if known.is_common and end <= _REMEMBERED_HEAD_BYTES:
                if len(_heads) >= _REMEMBERED_HEADS:
                    _heads.clear()
                _heads[raw] = known
        return self._begin_body(known, data[end + 4 :])

    def _begin_body(self, known: _Known, rest: bytes) -> ResponseHead:
        """Be ready for the body that follows a head.

        Args:
            rest: What came with the head.
        """
        head, length, is_chunked, closes, keep_alive_s, _ = known
        if keep_alive_s is not None:
            self.keep_alive_s = keep_alive_s
        self.is_reusable = not closes
        self._buffer = b""
        self.rest = rest
        status = head.status
        if status == 204 or status == 304 or self._method == b"HEAD":
            self._end(rest)
        elif is_chunked:
            self.trailers = []
            self._left = _AT_LINE
        elif length >= 0:
            self._length = self._left = length
            if not length:
                self._end(rest)
        else:
            self._left = _UNTIL_CLOSED
            self.is_reusable = False
        return head

    def _end(self, rest: bytes) -> None:
        self.is_complete = True
        if rest:
            self.is_reusable = False
        self.rest = b""

    def body(self, data: bytes) -> list[bytes]:
        """Take bytes; returns the pieces of the body that they hold.

        Args:
            data: Empty: the peer sends nothing any more.

        Raises:
            httpcore.RemoteProtocolError: The body is malformed, or not complete.
        """
        if self._h11 is not None:
            self._h11.receive_data(data)
            pieces = self._asked_body()
            if not data:
                self.is_reusable = False
            return pieces
        if self.trailers is not None:
            return self._chunks(data)
        left = self._left
        if left == _UNTIL_CLOSED:
            if data:
                return [data]
            self.is_complete = True
            return []
        size = len(data)
        if size < left:
            if not size:
                raise httpcore.RemoteProtocolError(
                    "peer closed connection without sending complete message body "
                    f"(received {self._length - left} bytes, expected {self._length})"
                )
            self._left = left - size
            return [data]
        if size > left:
            data = data[:left]
            self.is_reusable = False
        self._left = 0
        self.is_complete = True
        return [data]

    def _chunks(self, data: bytes) -> list[bytes]:
        if not data:
            raise httpcore.RemoteProtocolError(
                "peer closed connection without sending complete message body (incomplete chunked read)"
            )
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        pieces: list[bytes] = []
        at, size, left = 0, len(data), self._left
        while True:
            if left > 0:
                if at == size:
                    break
                piece = data[at : at + left]
                pieces.append(piece)
                at += len(piece)
                left -= len(piece)
                if left:
                    break
                left = _AT_END_OF_CHUNK
            if left == _AT_END_OF_CHUNK:
                if not b"\r\n".startswith(data[at : at + 2]):
                    raise httpcore.RemoteProtocolError(f"malformed chunk footer: {data[at : at + 2]!r}")
                if size - at < 2:
                    break
                at += 2
                left = _AT_LINE
            if left == _AT_LINE:
                end = data.find(b"\r\n", at, at + MAX_LINE_BYTES)
                if end < 0:
                    break
                found = _CHUNK_LINE.fullmatch(data, at, end + 2)
                if found is None:
                    raise httpcore.RemoteProtocolError(f"illegal chunk header: {data[at : end + 2]!r}")
                at = end + 2
                left = int(found["chunk_size"], 16) or _AT_TRAILERS
            if left == _AT_TRAILERS:
                at = self._trailers(data, at)
                break
        self._left = left
        if not self.is_complete:
            if size - at > MAX_LINE_BYTES:
                raise httpcore.RemoteProtocolError("the line of a chunk, or trailers, are too long")
            self._buffer = data[at:]
        return pieces

    def _trailers(self, data: bytes, at: int) -> int:
        if data.startswith(b"\r\n", at):
            self._end(data[at + 2 :])
            return at + 2
        end = data.find(b"\r\n\r\n", at)
        if end < 0:
            return at
        trailers: list[Field] = []
        for line in data[at:end].split(b"\r\n"):
            found = header_field_re.fullmatch(line)
            if found is None:
                raise httpcore.RemoteProtocolError(f"illegal trailer: {line!r}")
            trailers.append((found["field_name"], found["field_value"]))
        assert self.trailers is not None
        self.trailers += trailers  # in place: the caller has the list already
        self._end(data[end + 4 :])
        return end + 4

    # h11, for what is unusual.

    def _ask(self, data: bytes) -> ResponseHead | None:
        """Have h11 read this response, from its first byte on."""
        judge = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        # A request like ours, without a body: h11 only wants to know what kind of response may come.
        headers = [(b"host", b"-"), *self._switches]
        judge.send(h11.Request(method=self._method, target=b"/", headers=headers))
        judge.send(h11.EndOfMessage())
        self._h11 = judge
        self._buffer = b""
        return self._asked_head(data)

    def _asked_head(self, data: bytes) -> ResponseHead | None:
        judge = self._h11
        assert judge is not None
        judge.receive_data(data)
        while True:
            try:
                event = judge.next_event()
            except h11.RemoteProtocolError as error:
                raise httpcore.RemoteProtocolError(error) from error
            if event is h11.NEED_DATA:
                return None
            if isinstance(event, h11.Response) or (
                isinstance(event, h11.InformationalResponse) and event.status_code == 101
            ):
                for _, name, value in event.headers._full_items:
                    timeout = _KEEP_ALIVE_TIMEOUT.search(value) if name == b"keep-alive" else None
                    if timeout is not None:
                        self.keep_alive_s = float(timeout[1])
                    if name == b"transfer-encoding":
                        self.trailers = []
                headers = event.headers.raw_items()
                return ResponseHead(b"HTTP/" + event.http_version, event.status_code, event.reason, headers)

    @property
    def has_begun(self) -> bool:
        """Something of a response has come that is not complete, or no good."""
        return bool(self._buffer) or self._h11 is not None

    @property
    def leading_data(self) -> bytes:
        """What came after the head of a switch of protocols; it belongs to the other protocol."""
        return self.rest if self._h11 is None else bytes(self._h11.trailing_data[0])

    def _asked_body(self) -> list[bytes]:
        judge = self._h11
        assert judge is not None
        pieces: list[bytes] = []
        while True:
            try:
                event = judge.next_event()
            except h11.RemoteProtocolError as error:
                raise httpcore.RemoteProtocolError(error) from error
            if isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
            elif event is h11.NEED_DATA:
                return pieces
            else:
                if isinstance(event, h11.EndOfMessage) and self.trailers is not None:
                    self.trailers += event.headers.raw_items()
                is_done = judge.our_state is h11.DONE and judge.their_state is h11.DONE
                self.is_reusable = is_done and not judge.trailing_data[0]
                self.is_complete = True
                return pieces

    def open_body(self) -> list[bytes]:
        """Return the pieces of the body that came together with the head; called once, after `head`."""
        if self._h11 is not None:
            return self._asked_body()
        rest, self.rest = self.rest, b""
        return self.body(rest) if rest and not self.is_complete else []


def _read(raw: bytes) -> _Known | None:
    """Read a complete head, without the blank line; None: let h11 judge."""
    first, *lines = raw.split(b"\r\n")
    found = _status(first)
    if found is None:
        return None
    headers: list[Field] = []
    length, keep_alive_s = -1, None
    chunked = closes = False
    is_common = True
    for line in lines:
        if len(line) <= _REMEMBERED_BYTES and line[:4] not in _SECRET:
            kind, field = _remembered(line)
        else:
            is_common = False
            kind, field = _field(line)
        if kind:
            if kind == _STRANGE:
                return None
            if kind == _LENGTH:
                if length >= 0:
                    return None
                length = int(field[1])
            elif kind == _CHUNKED:
                if chunked:
                    return None
                chunked = True
            elif kind == _CLOSE:
                closes = True
            else:
                timeout = _KEEP_ALIVE_TIMEOUT.search(field[1])
                if timeout is not None:
                    keep_alive_s = float(timeout[1])
        headers.append(field)
    if chunked and length >= 0:
        return None
    version, status, reason = found
    return _Known(ResponseHead(version, status, reason, headers), length, chunked, closes, keep_alive_s, is_common)


@lru_cache(maxsize=256)
def _status(line: bytes) -> tuple[bytes, int, bytes] | None:
    """Return version, status and reason; None: for h11."""
    found = status_line_re.fullmatch(line)
    if found is None or found["http_version"] != b"1.1":
        return None
    status = int(found["status_code"])
    return None if status < 200 else (b"HTTP/1.1", status, found["reason"] or b"")


def _field(line: bytes) -> tuple[int, Field]:
    """Return what a line of a head means for the connection, and the field as sent."""
    found = header_field_re.fullmatch(line)
    if found is None:
        return _STRANGE, (b"", b"")
    name, value = found["field_name"], found["field_value"]
    kind = _PLAIN
    match name.lower():
        case b"content-length":
            kind = _LENGTH if value.isdigit() and len(value) <= 20 else _STRANGE
        case b"transfer-encoding":
            kind = _CHUNKED if value == b"chunked" else _STRANGE
        case b"connection":
            words = {word.strip() for word in value.lower().split(b",")}
            kind = _CLOSE if b"close" in words else _PLAIN
        case b"keep-alive":
            kind = _KEEP_ALIVE
        case _:
            pass
    return kind, (name, value)


# Most headers of a server are the same each time. Not those which should not stay in memory: set-cookie, www-authenticate.
_remembered = lru_cache(maxsize=2048)(_field)
_SECRET: Final = frozenset({b"Set-", b"set-", b"SET-", b"WWW-", b"www-", b"Www-"})
