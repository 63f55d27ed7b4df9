"""What the sync and the aio gRPC channel share: targets, request heads, metadata, and what became of an attempt."""

import re
import ssl
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, unquote

import grpc

from meshlib.errors import ConfigError, IdentityError
from meshlib.model.outcome import GRPC_OK, NO_HEADERS, Failure, FailureKind, Outcome, Response
from meshlib.model.request import Headers, HeadMemo, RequestHead
from meshlib.options import check_type, entries

__all__ = [
    "OK",
    "STARTED",
    "HeadMaker",
    "Metadata",
    "Target",
    "attempt_metadata",
    "classify_error",
    "has_connected",
    "parse_target",
    "split_options",
]

Metadata = Iterable[tuple[str, str | bytes]]

OK: Final = GRPC_OK
STARTED: Final = Response(200, NO_HEADERS, None)
"""The response has begun: from here on the call belongs to this endpoint."""

_AUTHORITY_CHARACTERS: Final = ":@[]!$&'()*+,;="
"""What an authority may hold beside letters, digits and `-._~` (RFC 3986 section 3.2)."""

_CONTENT_TYPE = ("content-type", "application/grpc")
_GRPC_HEADERS = Headers((_CONTENT_TYPE,))
# Written by the transport, or not metadata at all: never copied from a rewritten head.
_RESERVED = frozenset({"content-type", "te", "host", "user-agent", "grpc-timeout", "grpc-encoding"})

_CONNECT_FAILED = "failed to connect to all addresses"
# Texts of C-core for a stream that its own connection ended, seen with grpcio 1.85. A server that sends such a text by
# itself is treated as the transport trouble that it speaks of.
_RESET_TEXTS = (
    "Stream removed",
    "Socket closed",
    "Connection reset",
    "keepalive watchdog timeout",
    "recvmsg:",
    "sendmsg:",
    "Broken pipe",
)
_REFUSED = re.compile(r"RST_STREAM(?: with error code 7\b| \(Received RST_STREAM with error code 7\))")


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed channel target.

    Attributes:
        authority: What the mesh is asked for: `checkout`, `checkout:8080`, or `xds://authority/checkout` when the
            target names an xDS authority.
        host: The `:authority` of calls unless the channel's options say otherwise: the name, percent-encoded where an
            authority may not hold it (as C-core does).
    """

    authority: str
    host: str


def parse_target(target: str) -> Target:
    """Parse `xds:///name`, `xds:name` or `xds://authority/name` (gRFC A27, A47).

    It is a URI: the name is its path without one leading slash, decoded; a query or a fragment does not count.

    Raises:
        ConfigError: Another scheme, or no name.
        TypeError: It is no text.
    """
    check_type("target", target, str)
    scheme, colon, rest = target.partition(":")
    if not colon or scheme.lower() != "xds":
        raise ConfigError(f"target {target!r}: a mesh channel needs an xds: target, e.g. xds:///checkout")
    authority = ""
    if rest.startswith("//"):
        authority, slash, rest = rest[2:].partition("/")
        if not slash:
            raise ConfigError(f"target {target!r}: xds://{authority} has no service name; xds:///{authority} is meant?")
    else:
        rest = rest.removeprefix("/")
    name = unquote(re.split(r"[?#]", rest, maxsplit=1)[0])
    if not name:
        raise ConfigError(f"target {target!r}: no service name")
    # What cannot be written is refused where the listener's name is made.
    host = quote(name, safe=_AUTHORITY_CHARACTERS, errors="replace")
    return Target(f"xds://{authority}/{name}" if authority else name, host)


def split_options(options: Sequence[tuple[str, Any]] | None) -> tuple[tuple[tuple[str, Any], ...], str | None]:
    """Return the channel arguments for the endpoints' channels, and the authority that the application has set.

    Raises:
        ConfigError: An option that would take the mesh's decisions away.
        TypeError: They are no pairs of a name and a value.
    """
    kept = []
    authority = None
    for option in entries("options", options or (), "pairs"):
        if not (isinstance(option, tuple | list) and len(option) == 2 and isinstance(option[0], str | bytes)):
            raise TypeError(
                f"options: must be pairs of a name and a value, as in grpc.insecure_channel; {option!r} is none"
            )
        key, value = option
        if key == "grpc.default_authority":
            check_type(key, value, str, bytes)
            authority = value.decode() if isinstance(value, bytes) else value
        elif key in ("grpc.service_config", "grpc.lb_policy_name"):
            raise ConfigError(f"channel option {key!r} has no effect on a mesh channel: the mesh routes and balances")
        else:
            kept.append((key, value))
    return tuple(kept), authority


class HeadMaker:
    """Makes the request heads of one method.

    Attributes:
        plain: Of all calls without metadata.
        memo: What those leave for each other.
    """

    __slots__ = ("_authority", "_path", "memo", "plain")

    def __init__(self, authority: str, method: str | bytes) -> None:
        self._authority = authority
        self._path = method.decode() if isinstance(method, bytes) else method
        self.plain = RequestHead("POST", authority, self._path, _GRPC_HEADERS, is_grpc=True)
        self.plain.memo = self.memo = HeadMemo()

    def __call__(self, metadata: Metadata | None) -> RequestHead:
        """Return the head as routes see it: `-bin` entries are absent, the content type is there (A28)."""
        if not metadata:
            return self.plain
        # Values of -bin keys are bytes; a str under such a key is as invisible. So are keys that are bytes, which gRPC takes.
        items = [
            (key, value)
            for key, value in metadata
            if type(value) is str and type(key) is str and not key.endswith("-bin")
        ]
        if not items:
            return self.plain
        head = RequestHead("POST", self._authority, self._path, Headers((_CONTENT_TYPE, *items)), is_grpc=True)
        head.kin = self.memo
        return head


def attempt_metadata(
    original: RequestHead, sent: RequestHead, metadata: Metadata | None
) -> Sequence[tuple[str, str | bytes]] | None:
    """Return the metadata of an attempt: the caller's own, unless the mesh changed the head.

    Args:
        original: The head that the caller's metadata gave.
        sent: The head of the attempt.
        metadata: The caller's.
    """
    if sent is original:
        return metadata if metadata is None or isinstance(metadata, tuple | list) else tuple(metadata)
    pairs: list[tuple[str, str | bytes]] = [
        (name, value) for name, value in sent.headers.items if name not in _RESERVED and name[0] != ":"
    ]
    for key, value in metadata or ():
        if type(value) is not str or type(key) is not str or key.endswith("-bin"):
            pairs.append((key, value))
    return tuple(pairs)


def has_connected(details: str | None, dialled: str) -> bool:
    """Whether an UNAVAILABLE error is anything but a failure to connect.

    Args:
        details: Of the error.
        dialled: The target of the endpoint's channel. A server may pass on such a text of its own upstream, which
            names another address. Of several addresses with spaces between them; empty: a name, whose addresses only
            core knows.
    """
    if not details:
        return True
    if not dialled:
        return not details.startswith((_CONNECT_FAILED, "DNS resolution failed", "errors resolving"))
    return not (details.startswith(_CONNECT_FAILED) and any(f"{one}: " in details for one in dialled.split(" ")))


def classify_error(
    code: grpc.StatusCode,
    details: str | None,
    metadata: Iterable[tuple[str, str | bytes]],
    *,
    dialled: str,
    timed_out: bool,
    error: BaseException,
    refused_by: BaseException | None = None,
) -> Outcome:
    """Say what an error of an attempt means.

    Args:
        code: Status code.
        details: Status text; C-core gives transport failures no other mark.
        metadata: Initial and trailing metadata together.
        dialled: The target that the endpoint's channel dials, as C-core writes it (`ipv4:10.0.0.1:80`).
        timed_out: The attempt's time is over.
        error: What the transport raised.
        refused_by: Why the last TLS connection to the endpoint failed, if it did.

    Source: texts seen with grpcio 1.85.1; "surely not sent" is what C-core says when it has no connection.
    """
    if code is grpc.StatusCode.UNAVAILABLE:
        if not has_connected(details, dialled):
            if isinstance(refused_by, IdentityError | ssl.SSLCertVerificationError):
                return Failure(FailureKind.IDENTITY, False, refused_by)
            return Failure(FailureKind.CONNECT, False, refused_by or error)
        if details:
            if _REFUSED.search(details):
                return Failure(FailureKind.REFUSED_STREAM, False, error)
            if details.startswith(_RESET_TEXTS):
                return Failure(FailureKind.RESET, True, error)
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED and timed_out:
        return Failure(FailureKind.TIMEOUT, True, error)
    # Metadata are bytes under -bin keys only; decisions read text.
    headers = Headers((key, value) for key, value in metadata if type(value) is str)
    return Response(200, headers, code.value[0])
