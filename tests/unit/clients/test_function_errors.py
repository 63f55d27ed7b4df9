"""What exceptions of functions stand for, those of other libraries included."""

import errno
import socket
import ssl
import urllib.error
from email.message import Message
from typing import Any

import aiohttp
import httpx
import pytest
import requests
import urllib3

from meshlib.clients.function_errors import outcome_of
from meshlib.errors import IdentityError
from meshlib.model.outcome import Failure, FailureKind, Response

CONNECT, TIMEOUT, RESET = FailureKind.CONNECT, FailureKind.TIMEOUT, FailureKind.RESET
REFUSED = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
REQUEST = httpx.Request("GET", "http://a/")


def botocore(name: str, **attributes: Any) -> Exception:
    """Make an exception as botocore's are, which are no OSError; it is not among the packages of the tests."""
    made: Exception = type(name, (Exception,), {"__module__": "botocore.exceptions", **attributes})("text")
    return made


def beneath(error: Exception, cause: BaseException) -> Exception:
    error.__context__ = cause
    return error


def answer(status: int) -> requests.Response:
    made = requests.Response()
    made.status_code = status
    return made


def not_connected() -> urllib3.exceptions.MaxRetryError:
    pool: Any = None
    return urllib3.exceptions.MaxRetryError(pool, "/", urllib3.exceptions.NewConnectionError(pool, "refused"))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (REFUSED, CONNECT),
        (socket.gaierror(socket.EAI_NONAME, "no such name"), CONNECT),
        (OSError(errno.EHOSTUNREACH, "no route"), CONNECT),
        (ssl.SSLCertVerificationError(1, "who are you"), CONNECT),
        (httpx.ConnectTimeout("late"), CONNECT),
        (requests.ConnectionError(not_connected()), CONNECT),
        (requests.ConnectTimeout("late"), CONNECT),
        (urllib.error.URLError(REFUSED), CONNECT),
        (not_connected(), CONNECT),
        (botocore("EndpointConnectionError"), CONNECT),
        (botocore("ConnectTimeoutError"), CONNECT),
        (beneath(botocore("HTTPClientError"), REFUSED), CONNECT),
        (aiohttp.ConnectionTimeoutError("late"), CONNECT),
        (TimeoutError(), TIMEOUT),
        (httpx.ReadTimeout("late"), TIMEOUT),
        (requests.ReadTimeout("late"), TIMEOUT),
        (urllib.error.URLError(TimeoutError("late")), TIMEOUT),
        (botocore("ReadTimeoutError"), TIMEOUT),
        (aiohttp.SocketTimeoutError("late"), TIMEOUT),
        (ConnectionResetError(), RESET),
        (httpx.RemoteProtocolError("gone"), RESET),
        (requests.ConnectionError(urllib3.exceptions.ProtocolError("aborted", ConnectionResetError())), RESET),
        (urllib.error.URLError("unknown"), RESET),
    ],
)
def test_failures(error: Exception, kind: FailureKind) -> None:
    assert Failure(kind, kind is not CONNECT) == Failure(*_parts(outcome_of(error)))


def _parts(outcome: Any) -> tuple[FailureKind, bool]:
    assert isinstance(outcome, Failure)
    return outcome.kind, outcome.request_sent


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (httpx.HTTPStatusError("x", request=REQUEST, response=httpx.Response(404)), 404),
        (requests.HTTPError("x", response=answer(404)), 404),
        (urllib.error.HTTPError("http://a/", 404, "Not Found", Message(), None), 404),
        (botocore("ClientError", response={"ResponseMetadata": {"HTTPStatusCode": 404}}), 404),
        (beneath(botocore("ClientError", response={"Error": {"Code": "x"}}), REFUSED), 500),
        (aiohttp.ClientResponseError(None, (), status=503), 503),  # type: ignore[arg-type]  # nobody looks at it
        (ValueError("x"), 500),
        (botocore("ParamValidationError"), 500),
    ],
)
def test_answers(error: Exception, status: int) -> None:
    outcome = outcome_of(error)
    assert isinstance(outcome, Response)
    assert status == outcome.status


def test_an_identity_that_is_wrong_is_no_reset() -> None:
    assert (FailureKind.IDENTITY, False) == _parts(outcome_of(IdentityError("who")))


def test_what_a_function_raises_while_it_handles_something_else_is_not_looked_into() -> None:
    """The refused connection may have been another one, after this endpoint had got its request."""
    assert outcome_of(beneath(LookupError("no stock"), REFUSED)) == Response(500)


def test_wrappers_of_wrappers_end() -> None:
    error = urllib.error.URLError("x")
    error.reason = error
    assert (RESET, True) == _parts(outcome_of(error))
