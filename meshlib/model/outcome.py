"""How an attempt ended, as its shell reports it, and the answers that the mesh gives itself."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from meshlib.model.request import Headers

__all__ = [
    "GRPC_OK",
    "NOT_REACHED",
    "Connected",
    "Failure",
    "FailureKind",
    "LocalReply",
    "Outcome",
    "Response",
    "grpc_status_of",
]

NO_HEADERS = Headers()


class FailureKind(Enum):
    """Why there is no response (Envoy's reset reasons)."""

    CONNECT = "connect"
    """No connection: refused, unreachable, timed out, TLS failed. No byte of the request was sent."""
    IDENTITY = "identity"
    """The peer is not who it must be. No byte of the request was sent."""
    RESET = "reset"
    """The connection ended before response headers."""
    STREAM_RESET = "stream_reset"
    """The peer reset the HTTP/2 stream, on a connection that goes on."""
    REFUSED_STREAM = "refused_stream"
    """HTTP/2 REFUSED_STREAM, or a GOAWAY that excludes the stream: surely not processed."""
    TIMEOUT = "timeout"
    """The time that `Attempt.timeout_s` gave is over."""
    OVERFLOW = "overflow"
    """Too many requests wait for a connection (the cluster's `max_pending_requests`). Nothing was sent."""


@dataclass(frozen=True, slots=True)
class Connected:
    """The connection over which a response came.

    Attributes:
        protocol: `HTTP/1.1` or `HTTP/2`.
        local_address: `host:port` of our end; empty: it has none, or it is not known.
    """

    protocol: str
    local_address: str = ""


@dataclass(frozen=True, slots=True)
class Response:
    """Response headers have arrived.

    Attributes:
        status: HTTP status; 200 for gRPC.
        headers: Response headers; for gRPC initial and trailing metadata together.
        grpc_status: The status code of a gRPC call that has ended, else None.
    """

    status: int
    headers: Headers = NO_HEADERS
    grpc_status: int | None = None


NOT_REACHED: Final = frozenset({FailureKind.CONNECT, FailureKind.IDENTITY})
"""There was no connection."""

GRPC_OK: Final = Response(200, NO_HEADERS, 0)
"""A gRPC call that went well."""


@dataclass(frozen=True, slots=True)
class Failure:
    """No response.

    Attributes:
        request_sent: Whether any byte of the request may have reached the peer.
        error: What the transport raised.
    """

    kind: FailureKind
    request_sent: bool
    error: BaseException | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class LocalReply:
    """An answer of the mesh itself, as Envoy's local replies.

    Attributes:
        flag: Response flag (`NR`, `NC`, `UH`, `UO`, `UT`, `FI`, ...), or empty (redirects, direct responses).
        details: Envoy's response code details, e.g. `route_not_found`.
        grpc_status: For gRPC callers; None: mapped from the HTTP status.
        is_trailers_only: It has the form of an answer to a gRPC request: HTTP 200, the status in its headers, no body.
    """

    status: int
    flag: str
    details: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    grpc_status: int | None = None
    is_trailers_only: bool = False


Outcome = Response | Failure

_HTTP_TO_GRPC: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
_UNKNOWN: Final = 2


def grpc_status_of(status: int) -> int:
    """Return the gRPC status of an HTTP status, for those who got no other."""
    return _HTTP_TO_GRPC.get(status, _UNKNOWN)
