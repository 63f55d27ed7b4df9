"""Exceptions: httpcore's become outcomes of attempts, and failed calls become what users of httpx catch."""

import ssl
from collections.abc import Mapping
from typing import Final

import httpcore
import httpx

from meshlib.call import Call
from meshlib.clients.pools import PoolOverflow
from meshlib.clients.timeouts import AttemptTimeouts
from meshlib.errors import DeadlineExceeded, IdentityError, MeshError, RoutingError
from meshlib.model.outcome import Failure, FailureKind
from meshlib.model.request import RequestHead

__all__ = [
    "body_error",
    "failure_of",
    "failure_or_raise",
    "httpx_error",
    "is_safe_to_resend",
    "mapped",
    "refusal",
    "with_record",
]

# Methods that may be repeated without being asked to (RFC 9110, section 9.2.2).
IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})

_ERRORS: Mapping[type[Exception], type[httpx.TransportError]] = {
    httpcore.ConnectTimeout: httpx.ConnectTimeout,
    httpcore.ReadTimeout: httpx.ReadTimeout,
    httpcore.WriteTimeout: httpx.WriteTimeout,
    httpcore.PoolTimeout: httpx.PoolTimeout,
    httpcore.ConnectError: httpx.ConnectError,
    httpcore.ReadError: httpx.ReadError,
    httpcore.WriteError: httpx.WriteError,
    httpcore.LocalProtocolError: httpx.LocalProtocolError,
    httpcore.RemoteProtocolError: httpx.RemoteProtocolError,
    httpcore.UnsupportedProtocol: httpx.UnsupportedProtocol,
}

_BY_KIND: Mapping[FailureKind, type[httpx.TransportError]] = {
    FailureKind.CONNECT: httpx.ConnectError,
    FailureKind.IDENTITY: httpx.ConnectError,
    FailureKind.RESET: httpx.ReadError,
    FailureKind.STREAM_RESET: httpx.RemoteProtocolError,
    FailureKind.REFUSED_STREAM: httpx.RemoteProtocolError,
    FailureKind.TIMEOUT: httpx.ReadTimeout,
    FailureKind.OVERFLOW: httpx.PoolTimeout,
}


def mapped(error: BaseException | None, request: httpx.Request) -> httpx.TransportError | None:
    """Return the httpx exception for one of httpcore; None for others."""
    for origin, kind in _ERRORS.items():
        if isinstance(error, origin):
            return kind(str(error), request=request)
    return None


def failure_of(error: Exception, timeouts: AttemptTimeouts) -> Failure | None:
    """Say how an attempt failed.

    Returns:
        None when another endpoint could not help: the caller's request is malformed, or a local limit was reached.
    """
    match error:
        case httpcore.ConnectTimeout():
            return Failure(FailureKind.TIMEOUT if timeouts.is_over else FailureKind.CONNECT, False, error)
        case httpcore.ConnectError():
            is_identity = _origin_of(error, ssl.SSLCertVerificationError) is not None
            return Failure(FailureKind.IDENTITY if is_identity else FailureKind.CONNECT, False, error)
        case IdentityError():
            return Failure(FailureKind.IDENTITY, False, error)
        case PoolOverflow():
            return Failure(FailureKind.OVERFLOW, False, error)
        case httpcore.ReadTimeout() | httpcore.WriteTimeout():
            return Failure(FailureKind.TIMEOUT, timeouts.has_sent, error)
        case httpcore.RemoteProtocolError() if (code := _reset_code(error)) is not None:
            if code == _REFUSED_STREAM:
                return Failure(FailureKind.REFUSED_STREAM, False, error)
            return Failure(FailureKind.STREAM_RESET, timeouts.has_sent, error)
        case httpcore.ReadError() | httpcore.WriteError() | httpcore.RemoteProtocolError():
            return Failure(FailureKind.RESET, timeouts.has_sent, error)
        case _:
            return None


def failure_or_raise(error: Exception, timeouts: AttemptTimeouts, call: Call, request: httpx.Request) -> Failure:
    """Return how an attempt failed, or raise when that ends the call.

    Raises:
        httpx.TransportError: A local limit was reached, or the request cannot be sent as it is.
        Exception: `error` itself when neither httpcore nor the mesh raised it, e.g. what a body generator raised.
    """
    failure = failure_of(error, timeouts)
    if failure is not None:
        return failure
    found = mapped(error, request)
    if found is None:
        raise error
    raise with_record(found, call.error(f"{request.method} {request.url} was not sent: {error}"), error)


def is_safe_to_resend(head: RequestHead, timeouts: AttemptTimeouts, failure: Failure, *, replayable: bool) -> bool:
    """Whether an attempt met a kept-alive connection that died under it, and may quietly go on a fresh one.

    When the socket took nothing of the request, nobody saw any of it. Else the server closed the connection while the
    request was on its way, so it is all but sure that it saw nothing of it; since that is not quite sure, only requests
    that are safe to repeat qualify, and the others are left to the route's retry policy.
    """
    return (
        failure.kind is FailureKind.RESET
        and not timeouts.has_connected
        and replayable
        and not timeouts.is_over
        and (not failure.request_sent or head.method in IDEMPOTENT or "idempotency-key" in head.headers)
    )


def _origin_of(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """Find an exception of a kind among an error's causes; httpcore keeps the first one only as an argument."""
    for _ in range(8):
        if error is None or isinstance(error, kind):
            return error
        inner = error.args[0] if error.args and isinstance(error.args[0], BaseException) else None
        error = inner or error.__cause__ or error.__context__
    return None


_REFUSED_STREAM: Final = 7
"""RFC 9113, section 7."""


def _reset_code(error: httpcore.RemoteProtocolError) -> int | None:
    """Return why a server has reset a stream; None: it has done something else."""
    # httpcore wraps h2's event; that of a goodbye has a code too, and names a stream as its last one.
    event = error.args[0] if error.args else None
    return None if hasattr(event, "last_stream_id") else getattr(event, "error_code", None)


def httpx_error(call: Call, failure: Failure, request: httpx.Request) -> httpx.TransportError:
    """Return what a caller of httpx expects for a call whose last attempt failed, with the mesh's record on it."""
    error = failure.error
    found = mapped(error, request)
    kind = _BY_KIND[failure.kind] if found is None else type(found)
    text = str(error) if error is not None and str(error) else failure.kind.value
    record = call.error(f"{request.method} {request.url} failed: {text}")
    return with_record(kind(str(record), request=request), record, error)


def with_record(
    error: httpx.TransportError, record: MeshError, cause: BaseException | None = None
) -> httpx.TransportError:
    """Attach the mesh's own error: as `error.mesh`, and as the cause, which has `cause` as its own."""
    error.mesh = record  # type: ignore[attr-defined]  # documented for users of the transport
    error.__cause__ = record
    if cause is not None:
        record.__cause__ = cause
    return error


def body_error(
    call: Call, error: Exception, request: httpx.Request, timeouts: AttemptTimeouts | None, now: float
) -> Exception:
    """Return what to raise when a response body ends in `error`; the call hears of it."""
    found = mapped(error, request)
    if found is None:
        return error
    failure = None if timeouts is None else failure_of(error, timeouts)
    if failure is not None and timeouts is not None:
        call.cut_off(failure, now, is_idle=timeouts.is_idle)
    record = call.error(f"the response to {request.method} {request.url} was cut off: {error}")
    return with_record(type(found)(str(record), request=request), record, error)


def refusal(authority: str, error: MeshError, request: httpx.Request) -> httpx.TransportError:
    """Return the error for a host that the mesh cannot lead to."""
    hint = ""
    if isinstance(error, RoutingError):
        hint = (
            f"; {authority!r} is not in the mesh: to send such requests out directly, "
            'make the transport with passthrough="unknown"'
        )
    kind = httpx.ReadTimeout if isinstance(error, DeadlineExceeded) else httpx.ConnectError
    return with_record(kind(f"{error}{hint}", request=request), error)
