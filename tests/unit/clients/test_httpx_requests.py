"""What goes out without h11's checks is what its checks would have made of it."""

from collections.abc import Sequence
from typing import Any

import h11
import httpcore
import httpx
import pytest

from meshlib.call import Attempt
from meshlib.clients import http1_request
from meshlib.clients.http1_request import Http1Request, pairs_of
from meshlib.clients.httpx_common import head_of
from meshlib.clients.httpx_requests import http1_request_for, http2_request_for
from meshlib.clients.pools import PoolKey
from meshlib.clients.timeouts import AttemptTimeouts
from meshlib.testing import FakeClock, mesh_source, service


def attempt_of(request: httpx.Request) -> tuple[Attempt, AttemptTimeouts]:
    mesh = mesh_source(service("checkout", "127.0.0.1:80"))
    cluster = mesh.cluster("checkout")
    endpoint = cluster.states["127.0.0.1:80"].endpoint
    attempt = Attempt(1, cluster, endpoint, None, None, head_of(request, "checkout"))
    return attempt, AttemptTimeouts({}, timeout_s=None, connect_timeout_s=1.0, clock=FakeClock())


def request_of(request: httpx.Request) -> Http1Request:
    """Return what a connection gets for a request of httpx."""
    attempt, timeouts = attempt_of(request)
    return http1_request_for(attempt, request, timeouts, PoolKey("127.0.0.1:80"))


def wire(method: str, target: str, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the head that h11 writes."""
    sent = h11.Connection(h11.CLIENT).send(h11.Request(method=method, target=target, headers=list(headers)))
    assert sent is not None
    return sent


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-User": "ann", "accept": "a, b"},
        {"x-long": "v" * 500, "authorization": "Bearer abc", "x-empty": ""},
        {"x-latin": "caf\xe9".encode("latin-1")},
        {"content-length": "12"},
        {"transfer-encoding": "Chunked"},
        [("x-twice", "1"), ("x-twice", "2"), ("content-length", "3"), ("content-length", "3")],
        {"host": "other.example:81"},
    ],
)
def test_head_on_the_wire_is_the_one_that_checks_make(headers: Any) -> None:
    request = httpx.Request("GET", "http://checkout/a?b=%20", headers=headers)

    assert wire("GET", "/a?b=%20", pairs_of(head_of(request, "checkout"))) == request_of(request).head


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ({}, 0),
        ({"content-length": "12"}, 12),
        ({"transfer-encoding": "Chunked"}, None),
        ([("content-length", "3"), ("content-length", "3")], 3),
        ([("content-length", "3"), ("transfer-encoding", "chunked")], None),
    ],
)
def test_length_of_the_body_is_what_the_headers_say(headers: Any, length: int | None) -> None:
    assert length == request_of(httpx.Request("GET", "http://checkout/", headers=headers)).length


@pytest.mark.parametrize(
    "headers",
    [
        {"x-bad": "a\r\nx-injected: b"},
        {"bad name": "a"},
        {"x-space": "a "},
        {"x-null": "a\0b"},
        {"host": "a\nb"},
        {"authorization": "a\nb"},
        [("content-length", "1"), ("content-length", "2")],
        {"content-length": "twelve"},
        [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
    ],
)
def test_what_checks_refuse_is_still_refused(headers: Any) -> None:
    for _ in range(2):  # the second time it could be remembered
        request = httpx.Request("GET", "http://checkout/", headers=headers)
        with pytest.raises(httpcore.LocalProtocolError):
            request_of(request)
        with pytest.raises(h11.LocalProtocolError):
            wire("GET", "/", pairs_of(head_of(request, "checkout")))


@pytest.mark.parametrize(("method", "target"), [("GE T", b"/"), ("GET", b"/a b"), ("GET", b""), ("GET", b"/\r\nx: y")])
def test_line_of_the_request_is_checked(method: str, target: bytes) -> None:
    with pytest.raises(httpcore.LocalProtocolError):
        request_of(httpx.Request(method, "http://checkout/", extensions={"target": target or b" "}))


def test_header_of_many_values_is_not_kept_in_memory() -> None:
    before = http1_request._remembered.cache_info().misses
    for number in range(5):
        request_of(httpx.Request("GET", "http://checkout/", headers={"authorization": f"Bearer {number}"}))
    assert http1_request._remembered.cache_info().misses - before <= 1, "only what all of them share"


def test_body_in_memory_is_at_hand() -> None:
    assert request_of(httpx.Request("GET", "http://checkout/")).body == b""
    assert request_of(httpx.Request("POST", "http://checkout/", content=b"ab")).body == b"ab"
    assert request_of(httpx.Request("POST", "http://checkout/", content=iter([b"ab"]))).body is None


@pytest.mark.parametrize(
    ("headers", "closes", "switches"),
    [
        ({}, False, ()),
        ({"connection": "Close"}, True, ((b"connection", b"Close"),)),
        ({"connection": "Upgrade", "upgrade": "a"}, False, ((b"connection", b"Upgrade"), (b"upgrade", b"a"))),
    ],
)
def test_what_headers_mean_for_the_connection(headers: Any, closes: bool, switches: Any) -> None:
    request = request_of(httpx.Request("GET", "http://checkout/", headers=headers))
    assert (closes, switches) == (request.closes, request.switches)


def http2_request_of(request: httpx.Request) -> Any:
    attempt, timeouts = attempt_of(request)
    return http2_request_for(attempt, request, timeouts, PoolKey("127.0.0.1:80", http2=True))


def test_request_without_a_body_sends_no_empty_piece() -> None:
    assert list(http2_request_of(httpx.Request("GET", "http://checkout/")).stream) == []
    assert list(http2_request_of(httpx.Request("POST", "http://checkout/", content=b"")).stream) == []
    assert list(http2_request_of(httpx.Request("POST", "http://checkout/", content=b"ab")).stream) == [b"ab"]


async def test_request_without_a_body_sends_no_empty_piece_asynchronously() -> None:
    assert [piece async for piece in http2_request_of(httpx.Request("GET", "http://checkout/")).stream] == []


def test_http2_gets_plain_pairs() -> None:
    found = http2_request_of(httpx.Request("GET", "http://checkout/"))
    assert (b"host", b"checkout") == found.headers[0]
    assert isinstance(found.headers, list)
