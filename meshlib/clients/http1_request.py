"""HTTP/1.1 requests as bytes, without doing anything twice.

h11 looks at the name and the value of every header with a regular expression, each time a request is sent, which costs
more than the mesh's own decisions. Most headers of a client are the same each time, so the line that h11 made of one is
remembered: its checks are still h11's. What is unusual (two lengths, say) is given to h11 as a whole.
"""

import logging
import re
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import h11
import httpcore
from h11._abnf import method as method_pattern
from h11._abnf import request_target
from h11._headers import normalize_and_validate
from httpx._content import ByteStream

from meshlib.clients.timeouts import AttemptTimeouts
from meshlib.model.request import RequestHead

__all__ = [
    "JOINED_BYTES",
    "REMEMBERED_CHARACTERS",
    "Http1Request",
    "WrittenRequest",
    "encoded",
    "framed",
    "host_line",
    "is_target",
    "is_traced",
    "pairs_of",
    "plain_lines",
    "too_little",
    "too_much",
]

JOINED_BYTES: Final = 65536
"""A body up to this size goes out together with the head."""

REMEMBERED_CHARACTERS: Final = 128
_SECRET: Final = frozenset({"authorization", "cookie", "proxy-authorization"})
"""Not kept in memory for longer than their requests."""
_METHOD: Final = re.compile(method_pattern.encode("ascii"))
_TARGET: Final = re.compile(request_target.encode("ascii"))
_LOGS: Final = (logging.getLogger("httpcore.http11"), logging.getLogger("httpcore.connection"))

_PLAIN, _LENGTH, _CHUNKED, _CONNECTION, _UPGRADE = range(5)


class _Line(NamedTuple):
    wire: bytes
    kind: int = _PLAIN
    value: bytes = b""


class Http1Request:
    """A request for one connection. It looks like httpcore's to those who trace it.

    Attributes:
        head: Everything before the body, as it goes out.
        length: Of the body, in bytes; None: it goes out in chunks.
        body: All of it, if it is in memory.
        closes: It asks the server to close the connection afterwards.
        switches: Its headers that ask for another protocol.
        is_traced: Somebody wants to hear of every step.
    """

    __slots__ = (
        "_head",
        "body",
        "closes",
        "extensions",
        "head",
        "is_traced",
        "length",
        "method",
        "origin",
        "stream",
        "switches",
        "timeouts",
    )

    def __init__(
        self,
        head: RequestHead,
        origin: httpcore.Origin,
        stream: Iterable[bytes] | AsyncIterable[bytes],
        extensions: Mapping[str, Any],
        timeouts: AttemptTimeouts,
    ) -> None:
        self._head = head
        self.origin = origin
        self.stream = stream
        self.body = b"".join(stream) if isinstance(stream, ByteStream) else None
        self.extensions = extensions
        self.timeouts = timeouts
        self.is_traced = is_traced(extensions)
        self.closes = False
        self.switches: tuple[tuple[bytes, bytes], ...] = ()
        self.length: int | None = 0
        self.method = head.method.encode("ascii")
        try:
            self.head = self._written(head)
        except h11.LocalProtocolError as error:
            raise httpcore.LocalProtocolError(error) from error

    def _written(self, head: RequestHead) -> bytes:
        target = encoded(head.path)
        if _TARGET.fullmatch(target) is None or not _is_method(self.method):
            return self._asked(head)
        # The host first, as h11 does it.
        lines = [b"%s %s HTTP/1.1\r\n" % (self.method, target), _remembered("host", head.authority).wire]
        framing = 0
        for name, value in head.headers.items:
            if len(value) > REMEMBERED_CHARACTERS or name in _SECRET:
                line = _line(name, value)
            else:
                line = _remembered(name, value)
            lines.append(line.wire)
            if line.kind:
                framing += self._note(line)
        if framing > 1:
            return self._asked(head)
        lines.append(b"\r\n")
        return b"".join(lines)

    def _note(self, line: _Line) -> bool:
        """Take in what a line means for the connection; returns whether it is about the body's length."""
        match line.kind:
            case h if h == _LENGTH:
                self.length = int(line.value)
            case h if h == _CHUNKED:
                self.length = None
            case h if h == _CONNECTION:
                words = {word.strip() for word in line.value.lower().split(b",")}
                self.closes = self.closes or b"close" in words
                self.switches += ((b"connection", line.value),)
                return False
            case _:
                self.switches += ((b"upgrade", line.value),)
                return False
        return True

    def _asked(self, head: RequestHead) -> bytes:
        """Have h11 write the head, or refuse to."""
        request = h11.Request(method=self.method, target=encoded(head.path), headers=pairs_of(head))
        wire = h11.Connection(h11.CLIENT).send(request)
        assert wire is not None
        self.length = 0
        for name, value in request.headers:
            if name == b"transfer-encoding":
                self.length = None
            elif name == b"content-length" and self.length is not None:
                self.length = int(value)
        return wire

    # For those who trace.

    @property
    def url(self) -> httpcore.URL:
        """Where it goes to."""
        origin = self.origin
        return httpcore.URL(scheme=origin.scheme, host=origin.host, port=origin.port, target=encoded(self._head.path))

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """Its headers, as pairs."""
        return pairs_of(self._head)

    def __repr__(self) -> str:
        return f"<Request [{self.method!r}]>"


class WrittenRequest(Http1Request):
    """A request whose head is written already and whose body is in memory. Nobody traces it, and it asks nothing special."""

    __slots__ = ()

    def __init__(
        self,
        method: str,
        head: bytes,
        body: bytes,
        origin: httpcore.Origin,
        extensions: Mapping[str, Any],
        timeouts: AttemptTimeouts,
    ) -> None:
        self.method = method.encode("ascii")
        self.head = head
        self.body = body
        self.length = len(body)
        self.origin = origin
        self.stream = ()
        self.extensions = extensions
        self.timeouts = timeouts
        self.is_traced = self.closes = False
        self.switches = ()


def is_traced(extensions: Mapping[str, Any]) -> bool:
    """Whether somebody wants to hear of every step of a request."""
    return "trace" in extensions or _LOGS[0].isEnabledFor(10) or _LOGS[1].isEnabledFor(10)


def is_target(method: str, target: bytes) -> bool:
    """Whether a first line can be made of these without h11 having a look."""
    return _TARGET.fullmatch(target) is not None and _is_method(method.encode("ascii"))


def host_line(authority: str) -> bytes | None:
    """Return the line that names the host; None: it is malformed."""
    try:
        return (_remembered if len(authority) <= REMEMBERED_CHARACTERS else _line)("host", authority).wire
    except h11.LocalProtocolError:
        return None


def plain_lines(items: Iterable[tuple[str, str]]) -> tuple[bytes, int, bool] | None:
    """Return the lines of headers, the length of the body, and whether these lines may be remembered.

    Returns:
        None: There is more to say of such requests: they have no length, ask for another protocol, or are malformed.
    """
    try:
        lines, length, is_common = [], -1, True
        for name, value in items:
            if len(value) > REMEMBERED_CHARACTERS or name in _SECRET:
                is_common = False
                line = _line(name, value)
            else:
                line = _remembered(name, value)
            lines.append(line.wire)
            if line.kind == _LENGTH and length < 0:
                length = int(line.value)
            elif line.kind:
                return None
    except h11.LocalProtocolError:
        return None
    return b"".join(lines), max(length, 0), is_common


def too_much() -> httpcore.LocalProtocolError:
    """Return h11's complaint."""
    return httpcore.LocalProtocolError("Too much data for declared Content-Length")


def too_little() -> httpcore.LocalProtocolError:
    """Return h11's complaint."""
    return httpcore.LocalProtocolError("Too little data for declared Content-Length")


def framed(piece: bytes) -> bytes:
    """Return a chunk."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def encoded(text: str) -> bytes:
    """Return the bytes of a value: latin-1, which is how values were read."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:  # only what the mesh's configuration adds can be wider
        return text.encode("utf-8")


def pairs_of(head: RequestHead) -> list[tuple[bytes, bytes]]:
    """Return the headers, the host first."""
    return [(b"host", encoded(head.authority)), *((_wire(name), encoded(value)) for name, value in head.headers.items)]


def _line(name: str, value: str) -> _Line:
    """Return a header as a line.

    Raises:
        h11.LocalProtocolError: It is not a valid header.
    """
    raw, lower, checked = normalize_and_validate([(_wire(name), encoded(value))], False)._full_items[0]
    wire = b"%s: %s\r\n" % (raw, checked)
    match lower:
        case b"content-length":
            return _Line(wire, _LENGTH, checked)
        case b"transfer-encoding":
            return _Line(wire, _CHUNKED)
        case b"connection":
            # Only what httpx writes by itself is common, and means nothing special.
            return _Line(wire) if checked == b"keep-alive" else _Line(wire, _CONNECTION, checked)
        case b"upgrade":
            return _Line(wire, _UPGRADE, checked)
        case _:
            return _Line(wire)


_remembered = lru_cache(maxsize=2048)(_line)


@lru_cache(maxsize=64)
def _is_method(method: bytes) -> bool:
    return _METHOD.fullmatch(method) is not None


# Names of headers are few, and looking one up is quicker than making it.
@lru_cache(maxsize=1024)
def _wire(name: str) -> bytes:
    return name.encode("latin-1")
