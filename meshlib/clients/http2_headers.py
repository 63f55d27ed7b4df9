"""Header blocks of HTTP/2: what h2 makes of those that go out, and checks of those that come in, in fewer steps.

h2 looks at each character of each header in Python, in a chain of a dozen generators, which costs more than all else that
it does for a request. Most headers of a client are the same each time, so what goes out is remembered; what comes in is
looked at by two regular expressions. The rules are h2's (4.4), which are those of RFC 9113, and laws in `tests/property/`
hold them together. One is added: characters that no header may have do not go out either.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final, NamedTuple

import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import httpcore
from hpack import NeverIndexedHeaderTuple

from meshlib.clients.http1_request import REMEMBERED_CHARACTERS

__all__ = ["Field", "check_fields", "receive", "request_fields"]

Field = tuple[bytes, bytes]

# Visible, no capitals, and a colon at most in front.
_is_name: Final = re.compile(rb":?[!-9;-@\[-~]*").fullmatch
_is_value: Final = re.compile(rb"[^\0\r\n]*").fullmatch
_OF_CONNECTIONS: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"}
)
_NEVER_INDEXED: Final = frozenset({b"authorization", b"proxy-authorization"})
_SECRET: Final = frozenset({*_NEVER_INDEXED, b"cookie"})
"""Not kept in memory for longer than their requests."""
_HEADS: Final = (h2.events.ResponseReceived, h2.events.InformationalResponseReceived, h2.events.TrailersReceived)

_SENT, _DROPPED, _HOST, _LENGTH = range(4)


class _Known(NamedTuple):
    field: Field
    kind: int


def request_fields(request: httpcore.Request) -> tuple[list[Field], bool]:
    """Return the header block of a request, as it goes out, and whether a body comes after it.

    Raises:
        h2.exceptions.ProtocolError: There is none such.
    """
    method, path = request.method, request.url.target.strip()
    if not path or not (_is_value(path) and _is_value(method)):
        raise h2.exceptions.ProtocolError(f"no request is for {method!r} {path!r}")
    if method == b"CONNECT":
        raise h2.exceptions.ProtocolError("Ordinary CONNECT MUST NOT include :scheme or :path")
    fields = [(b":method", method), _NO_HOST, (b":scheme", request.url.scheme), (b":path", path)]
    has_body = False
    for name, value in request.headers:
        is_common = len(value) <= REMEMBERED_CHARACTERS and name not in _SECRET
        field, kind = (_remembered if is_common else _known)(name, value)
        if kind == _SENT:
            fields.append(field)
        elif kind == _LENGTH:
            has_body = True
            if field[0] == b"content-length":
                fields.append(field)
        elif kind == _HOST and fields[1] is _NO_HOST:
            fields[1] = field
    if fields[1] is _NO_HOST:
        raise h2.exceptions.ProtocolError("Request header block does not have an :authority or Host header.")
    return fields, has_body


_NO_HOST: Final = (b":authority", b"")


def _known(name: bytes, value: bytes) -> _Known:
    name, value = name.strip().lower(), value.strip()
    if not name or name[:1] == b":" or not (_is_name(name) and _is_value(value)):
        raise h2.exceptions.ProtocolError(f"no header is {name!r}: {value!r}")
    if name == b"host":
        return _Known((b":authority", value), _HOST)
    if name in (b"content-length", b"transfer-encoding"):
        return _Known((name, value), _LENGTH)
    if name in _OF_CONNECTIONS:
        return _Known((name, value), _DROPPED)
    if name == b"te" and value.lower() != b"trailers":
        raise h2.exceptions.ProtocolError(f"Invalid value for TE header: {value!r}")
    # What an attacker may guess, piece by piece, is kept out of compression.
    if name in _NEVER_INDEXED or (name == b"cookie" and len(value) < 20):
        return _Known(NeverIndexedHeaderTuple(name, value), _SENT)
    return _Known((name, value), _SENT)


_remembered = lru_cache(maxsize=2048)(_known)


def receive(state: h2.connection.H2Connection, data: bytes) -> list[Any]:
    """Return the events of what came.

    Raises:
        h2.exceptions.ProtocolError: It breaks the protocol, and so the connection is over.
    """
    events: list[Any] = state.receive_data(data)
    for event in events:
        if isinstance(event, _HEADS):
            try:
                check_fields(event.headers or (), is_trailer=isinstance(event, h2.events.TrailersReceived))
            except h2.exceptions.ProtocolError:
                with suppress(h2.exceptions.ProtocolError):  # it may be over already
                    state.close_connection(h2.errors.ErrorCodes.PROTOCOL_ERROR)
                raise
    return events


def check_fields(fields: Iterable[Field], *, is_trailer: bool) -> None:
    """Check a header block of a server, or of what comes after a body.

    Raises:
        h2.exceptions.ProtocolError: It is malformed (RFC 9113, 8.2 and 8.3).
    """
    has_status = has_others = False
    for name, value in fields:
        if not _is_name(name) or not _is_value(value) or value[:1] in _BLANK or value[-1:] in _BLANK:
            raise h2.exceptions.ProtocolError(f"malformed header {name!r}: {value!r}")
        if name[:1] == b":" or not name:
            if name != b":status" or has_status or has_others or is_trailer:
                raise h2.exceptions.ProtocolError(f"there must be no {name!r} here")
            has_status = True
            continue
        has_others = True
        if name in _OF_CONNECTIONS or (name == b"te" and value.lower() != b"trailers"):
            raise h2.exceptions.ProtocolError(f"HTTP/2 knows no {name!r}: {value!r}")
    if not has_status and not is_trailer:
        raise h2.exceptions.ProtocolError("Header block missing mandatory ':status' header")


_BLANK: Final = frozenset({b" ", b"\t"})
