"""What an exception of a function under `@mesh.call` says about its attempt.

    ConnectionRefusedError, unreachable hosts, name errors, a peer      no connection; nothing was sent
      whose certificate is refused, httpx.ConnectError, .ConnectTimeout
    TimeoutError, httpx.TimeoutException                                timeout
    other ConnectionError and OSError, httpx.TransportError             reset
    httpx.HTTPStatusError                                               a response with that status
    of requests, urllib, urllib3, aiohttp, botocore (boto3)             as what they stand for
    any other Exception                                                 a response with status 500

The libraries wrap what happened: urllib's `URLError` is an `OSError` without a number, requests' `HTTPError` is one too,
and botocore's errors are none. They are known by name, so that nothing is imported for them. Only wrappers of theirs
are looked into: an exception of the function's own may have been raised while it handled another one that concerned
somebody else, after this endpoint had got its request.
"""

import errno
import socket
import ssl
from typing import Final

import httpx

from meshlib.errors import IdentityError
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.model.request import Headers

__all__ = ["outcome_of"]

_NO_CONNECTION = frozenset(
    {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EADDRNOTAVAIL}
)
_WRAPPERS: Final = frozenset({"aiohttp", "botocore", "requests", "urllib", "urllib3"})
_CONNECT: Final = frozenset(
    {
        ("aiohttp", "ClientConnectorError"),
        ("aiohttp", "ConnectionTimeoutError"),
        ("botocore", "ConnectTimeoutError"),
        ("botocore", "EndpointConnectionError"),
        ("requests", "ConnectTimeout"),
        ("urllib3", "ConnectTimeoutError"),
        ("urllib3", "NameResolutionError"),
        ("urllib3", "NewConnectionError"),
    }
)
_TIMEOUT: Final = frozenset(
    {
        ("aiohttp", "ServerTimeoutError"),
        ("botocore", "ReadTimeoutError"),
        ("requests", "Timeout"),
        ("urllib3", "TimeoutError"),
    }
)
_STATUS: Final = frozenset(
    {
        ("aiohttp", "ClientResponseError"),
        ("botocore", "ClientError"),
        ("requests", "HTTPError"),
        ("urllib", "HTTPError"),
    }
)
MAX_DEPTH: Final = 8
"""Wrappers in wrappers: requests has three around a refused connection."""


def outcome_of(error: BaseException, depth: int = 0) -> Outcome:
    """Say how an attempt ended whose function raised; the table is in the module's docstring.

    Args:
        depth: In so many wrappers it was found.
    """
    match error:
        case IdentityError():
            return Failure(FailureKind.IDENTITY, False, error)
        case httpx.ConnectError() | httpx.ConnectTimeout() | ConnectionRefusedError() | socket.gaierror():
            return Failure(FailureKind.CONNECT, False, error)
        case ssl.SSLCertVerificationError():
            return Failure(FailureKind.CONNECT, False, error)
        case httpx.TimeoutException():
            return Failure(FailureKind.TIMEOUT, True, error)
        case httpx.HTTPStatusError():
            return Response(error.response.status_code, Headers.of(error.response.headers.multi_items()))
        case OSError() if error.errno in _NO_CONNECTION:
            return Failure(FailureKind.CONNECT, False, error)
    wrapped = _wrapped(error, depth)
    if wrapped is not None:
        return wrapped
    match error:
        case TimeoutError():
            return Failure(FailureKind.TIMEOUT, True, error)
        case OSError() | httpx.TransportError():
            return Failure(FailureKind.RESET, True, error)
        case _:
            return Response(500)


def _wrapped(error: BaseException, depth: int) -> Outcome | None:
    """Read an exception of a library that has its own; None: it is not one, or says nothing more."""
    names = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    if not any(library in _WRAPPERS for library, _ in names):
        return None
    if names & _CONNECT:
        return Failure(FailureKind.CONNECT, False, error)
    if names & _TIMEOUT:
        return Failure(FailureKind.TIMEOUT, True, error)
    if names & _STATUS:
        status = _status(error)
        return None if status is None else Response(status)
    beneath = _beneath(error)
    if beneath is None or depth >= MAX_DEPTH:
        return None
    found = outcome_of(beneath, depth + 1)
    # Nothing known beneath: what the library's own exception is counts.
    return found if isinstance(found, Failure) else None


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif response is not None:
        found = getattr(response, "status_code", None)
    else:
        found = getattr(error, "status", None) or getattr(error, "code", None)
    return found if isinstance(found, int) and 100 <= found <= 599 else None


def _beneath(error: BaseException) -> BaseException | None:
    """Return what a library's exception wraps, where libraries put it."""
    places = (getattr(error, "reason", None), *error.args, error.__cause__, error.__context__)
    return next((one for one in places if isinstance(one, BaseException)), None)
