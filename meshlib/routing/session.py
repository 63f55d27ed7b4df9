"""Stateful sessions: the endpoint that a request asks for by its mark, and the mark that a response leaves.

Two formats of the cookie, by the profile of the call: for HTTP Envoy's (a small protobuf message with the address and
the second since the epoch in which it ends, base64), for gRPC that of gRFC A55 (`address;cluster`,
base64). A header holds the address alone, base64.

Source: Envoy, `stateful_session` filter and its `cookie`, `header` and `envelope` states; gRFCs A55 and A75.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from meshlib.matching import to_bytes
from meshlib.model.endpoint import Endpoint
from meshlib.model.request import Headers, RequestHead
from meshlib.model.session import SessionCookie, SessionEnvelope, SessionHeader, SessionPolicy
from meshlib.routing.cookies import cookie_value, set_cookie
from meshlib.routing.headers import with_headers
from meshlib.routing.matchers import path_of

__all__ = ["Session", "SessionMark", "as_session"]

ORIGIN: Final = "UV:"
"""Before the service's own value in an envelope."""


@dataclass(frozen=True, slots=True)
class SessionMark:
    """What a request brought.

    Attributes:
        addresses: Endpoints asked for, the first one preferred; as `Endpoint.address` has them.
        cluster: Of gRPC calls: the cluster it was; empty: not said.
    """

    addresses: tuple[str, ...] = ()
    cluster: str = ""


_NOTHING: Final = SessionMark()


class Session:
    """Reads and writes the marks of one policy. Not changed after creation.

    Attributes:
        is_strict: A request whose endpoint cannot be used fails.
    """

    __slots__ = ("_cookie", "_header", "_is_envelope", "is_strict")

    def __init__(self, policy: SessionPolicy) -> None:
        state = policy.state
        self.is_strict = policy.is_strict
        self._cookie = state if isinstance(state, SessionCookie) else None
        self._is_envelope = isinstance(state, SessionEnvelope)
        self._header = state.name if isinstance(state, SessionHeader | SessionEnvelope) else ""

    def concerns(self, head: RequestHead) -> bool:
        """Whether a request takes part: its path is below the cookie's (RFC 6265, section 5.1.4)."""
        if self._cookie is None or self._cookie.made.path in ("", "/"):
            return True
        path, below = path_of(head.path), self._cookie.made.path
        return path.startswith(below) and (below[-1] == "/" or path[len(below) : len(below) + 1] in ("", "/"))

    def read(self, head: RequestHead, wall_now: float) -> SessionMark:
        """Return what a request asks for. What cannot be read, or has had its time, asks for nothing.

        Args:
            wall_now: Seconds since the epoch.
        """
        if self._cookie is not None:
            found = _decoded(cookie_value(head, self._cookie.name))
            return _grpc_mark(found) if head.profile.grpc_sessions else _http_mark(found, wall_now)
        value = head.headers.get(self._header) or ""
        if self._is_envelope:
            parts = [part for part in value.split(";") if part]
            if not parts or not _origin(parts):
                return _NOTHING
            value = parts[0]
        return _at(_text(_decoded(value)))

    def opened(self, head: RequestHead) -> RequestHead:
        """Return the head with the service's own value, which an envelope holds; others as they are."""
        if not self._is_envelope:
            return head
        value = head.headers.get(self._header)
        origin = _origin([part for part in value.split(";") if part]) if value else b""
        if not origin:
            return head
        kept = [item for item in head.headers.items if item[0] != self._header]
        return with_headers(head, Headers((*kept, (self._header, _text(origin)))))

    def marked(
        self, headers: Headers, mark: SessionMark, endpoint: Endpoint, cluster: str, wall_now: float, *, is_grpc: bool
    ) -> Headers:
        """Return a response's headers with the mark of the endpoint that answered; only if it is news.

        Args:
            mark: What the request brought.
            cluster: Which the route chose.
            wall_now: Seconds since the epoch.
            is_grpc: Of a gRPC call.
        """
        address = _wire(endpoint.address)
        if self._is_envelope:
            values = headers.all(self._header)
            if len(values) != 1:
                return headers
            return _replaced(headers, self._header, f"{_encoded(address)};{ORIGIN}{_encoded(values[0])}")
        is_same = mark.addresses[:1] == (endpoint.address,) and (not is_grpc or mark.cluster in ("", cluster))
        if is_same:
            return headers
        if self._cookie is None:
            return _replaced(headers, self._header, _encoded(address))
        made = self._cookie.made
        if is_grpc:
            value = _encoded(f"{address};{cluster}")
        else:
            value = base64.b64encode(
                _message(to_bytes(address), int(wall_now) + made.ttl_s if made.ttl_s else 0)
            ).decode()
        return Headers((*headers.items, ("set-cookie", set_cookie(self._cookie.name, value, made))))


def as_session(policy: SessionPolicy | None) -> Session | None:
    """Return what reads and writes the marks of a policy; None: there are no sessions."""
    return None if policy is None or policy.state is None else Session(policy)


# --- addresses -------------------------------------------------------------------------------------------------------


def _at(address: str) -> SessionMark:
    return SessionMark((_own(address),)) if address else _NOTHING


def _own(address: str) -> str:
    return f"unix:{address}" if address.startswith("/") else address


def _wire(address: str) -> str:
    return address.removeprefix("unix:")


# --- texts -----------------------------------------------------------------------------------------------------------


def _encoded(text: str) -> str:
    return base64.b64encode(to_bytes(text)).decode()


def _decoded(text: str) -> bytes:
    """Return what base64 stands for; nothing when it is none."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _origin(parts: list[str]) -> bytes:
    """Return the service's own value of an envelope; empty: it is none."""
    own = next((part for part in parts[1:] if part.startswith(ORIGIN)), "")
    return _decoded(own.removeprefix(ORIGIN))


def _replaced(headers: Headers, name: str, value: str) -> Headers:
    return Headers((*(item for item in headers.items if item[0] != name), (name, value)))


def _grpc_mark(value: bytes) -> SessionMark:
    addresses, _, cluster = _text(value).partition(";")
    return SessionMark(tuple(_own(address) for address in addresses.split(",") if address), cluster)


def _http_mark(value: bytes, wall_now: float) -> SessionMark:
    if not value:
        return _NOTHING
    fields = _fields(value)
    if fields is None:
        return _at(_text(value))  # the older form: the address alone
    address, expires = fields.get(1, b""), fields.get(2, 0)
    if not isinstance(address, bytes) or not isinstance(expires, int) or (expires and int(wall_now) > expires):
        return _NOTHING
    return _at(_text(address))


# --- Envoy's message: 1 is the address, 2 the second in which it ends ----------------------------------------------


def _message(address: bytes, expires: int) -> bytes:
    result = b"\x0a" + _varint(len(address)) + address
    return result + b"\x10" + _varint(expires) if expires else result


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _fields(value: bytes) -> Mapping[int, bytes | int] | None:
    """Return the fields that we know of a message; None: it is no message. Other fields are passed over."""
    found: dict[int, bytes | int] = {}
    at, end = 0, len(value)
    while at < end:
        tag, at = _read_varint(value, at)
        number, kind = tag >> 3, tag & 7
        if at < 0 or not number:
            return None
        field: bytes | int = 0
        if kind == 0:
            field, at = _read_varint(value, at)
        elif kind == 2:
            length, at = _read_varint(value, at)
            if at < 0:
                return None
            field, at = value[at : at + length], at + length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            return None
        if at < 0 or at > end:
            return None
        if (number, kind) in ((1, 2), (2, 0)):
            found[number] = field
    try:
        address = found.get(1, b"")
        assert isinstance(address, bytes)
        address.decode()
    except UnicodeDecodeError:
        return None
    return found


def _read_varint(value: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends; -1: it does not."""
    result = 0
    for shift in range(0, 70, 7):
        if at >= len(value):
            break
        byte = value[at]
        at += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, at
    return 0, -1
