import ssl

import httpcore
import httpx
import pytest

from meshlib.clients.httpx_errors import failure_of, is_safe_to_resend, mapped
from meshlib.clients.timeouts import AttemptTimeouts
from meshlib.errors import IdentityError
from meshlib.model.outcome import Failure, FailureKind
from meshlib.model.request import Headers, RequestHead
from meshlib.testing.clock import FakeClock

REQUEST = httpx.Request("GET", "http://checkout/")


def timeouts(*steps: str, timeout_s: float | None = None, elapsed_s: float = 0.0) -> AttemptTimeouts:
    clock = FakeClock()
    found = AttemptTimeouts({}, timeout_s=timeout_s, connect_timeout_s=5.0, clock=clock)
    for step in steps:
        found.get(step)
    clock.advance(elapsed_s)
    return found


@pytest.mark.parametrize(
    ("error", "kind", "sent"),
    [
        (httpcore.ConnectError("refused"), FailureKind.CONNECT, False),
        (httpcore.ConnectTimeout("slow"), FailureKind.CONNECT, False),
        (httpcore.ConnectError(ssl.SSLCertVerificationError("who?")), FailureKind.IDENTITY, False),
        (httpcore.ConnectError(ssl.SSLError("handshake")), FailureKind.CONNECT, False),
        (IdentityError("no certificate"), FailureKind.IDENTITY, False),
        (httpcore.ReadTimeout("slow"), FailureKind.TIMEOUT, True),
        (httpcore.WriteTimeout("slow"), FailureKind.TIMEOUT, True),
        (httpcore.ReadError("reset"), FailureKind.RESET, True),
        (httpcore.WriteError("reset"), FailureKind.RESET, True),
        (httpcore.RemoteProtocolError("Server disconnected"), FailureKind.RESET, True),
    ],
)
def test_exceptions_become_failures(error, kind, sent):
    failure = failure_of(error, timeouts("connect", "write", "read"))
    assert failure is not None
    assert (failure.kind, failure.request_sent, failure.error) == (kind, sent, error)


@pytest.mark.parametrize("error", [httpcore.PoolTimeout(), httpcore.LocalProtocolError(), ValueError()])
def test_what_no_endpoint_could_mend_is_no_failure(error):
    assert failure_of(error, timeouts()) is None


def test_connecting_past_the_time_of_the_attempt_is_a_timeout():
    failure = failure_of(httpcore.ConnectTimeout(), timeouts("connect", timeout_s=1.0, elapsed_s=2.0))
    assert failure is not None
    assert (failure.kind, failure.request_sent) == (FailureKind.TIMEOUT, False)


def test_refused_stream_is_known_by_its_code():
    class StreamReset:
        error_code = 7

    failure = failure_of(httpcore.RemoteProtocolError(StreamReset()), timeouts("write"))
    assert failure is not None
    assert (failure.kind, failure.request_sent) == (FailureKind.REFUSED_STREAM, False)


def test_reset_of_a_stream_is_not_the_end_of_its_connection():
    """Of a connection that was kept the latter is repeated without a word."""

    class StreamReset:
        error_code = 2

    class Goodbye(StreamReset):
        last_stream_id = 5

    found = [failure_of(httpcore.RemoteProtocolError(event()), timeouts("write")) for event in (StreamReset, Goodbye)]
    assert [FailureKind.STREAM_RESET, FailureKind.RESET] == [failure.kind for failure in found if failure]
    assert [False, True] == [
        is_safe_to_resend(head("GET"), timeouts("write"), failure, replayable=True) for failure in found if failure
    ]


@pytest.mark.parametrize(
    "name",
    [
        "ConnectTimeout",
        "ReadTimeout",
        "WriteTimeout",
        "PoolTimeout",
        "ConnectError",
        "ReadError",
        "WriteError",
        "LocalProtocolError",
        "RemoteProtocolError",
        "UnsupportedProtocol",
    ],
)
def test_types_of_httpx_are_kept(name):
    found = mapped(getattr(httpcore, name)("why"), REQUEST)
    assert type(found) is getattr(httpx, name)
    assert (str(found), found.request) == ("why", REQUEST)


RESET = Failure(FailureKind.RESET, True)


def head(method: str, headers: dict[str, str] | None = None) -> RequestHead:
    return RequestHead(method, "checkout", "/", Headers.of(headers))


def test_resend_needs_a_reused_connection_and_a_request_that_may_be_repeated():
    reused, fresh = timeouts("write", "read"), timeouts("connect", "write", "read")
    assert is_safe_to_resend(head("GET"), reused, RESET, replayable=True)
    assert is_safe_to_resend(head("POST", {"Idempotency-Key": "1"}), reused, RESET, replayable=True)
    assert not is_safe_to_resend(head("POST"), reused, RESET, replayable=True)
    assert not is_safe_to_resend(head("PUT"), reused, RESET, replayable=False)
    assert not is_safe_to_resend(head("GET"), fresh, RESET, replayable=True)
    assert not is_safe_to_resend(head("GET"), reused, Failure(FailureKind.TIMEOUT, True), replayable=True)
