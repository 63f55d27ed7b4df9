"""What goes to h11 without its checks is what its checks would have made of it."""

from collections.abc import Sequence
from typing import Any

import h11
import httpx
import pytest

from meshlib.call import Attempt
from meshlib.clients.httpx_common import head_of
from meshlib.clients.httpx_requests import request_for
from meshlib.clients.pools import PoolKey
from meshlib.clients.timeouts import AttemptTimeouts
from meshlib.testing import FakeClock, mesh_source, service


def request_of(request: httpx.Request, key: PoolKey | None = None) -> Any:
    """Return what httpcore gets for a request of httpx."""
    mesh = mesh_source(service("checkout", "127.0.0.1:80"))
    cluster = mesh.cluster("checkout")
    endpoint = cluster.states["127.0.0.1:80"].endpoint
    attempt = Attempt(1, cluster, endpoint, None, None, head_of(request, "checkout"))
    timeouts = AttemptTimeouts({}, timeout_s=None, connect_timeout_s=1.0, clock=FakeClock())
    return request_for(attempt, request, timeouts, key or PoolKey("127.0.0.1:80"))


def wire(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """Return the head that h11 writes."""
    sent = h11.Connection(h11.CLIENT).send(h11.Request(method="GET", target="/", headers=headers))  # type: ignore[arg-type]
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
    found = request_of(httpx.Request("GET", "http://checkout/", headers=headers)).headers

    assert wire([(bytes(name), bytes(value)) for name, value in found]) == wire(found)


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
        found = request_of(httpx.Request("GET", "http://checkout/", headers=headers)).headers
        with pytest.raises(h11.LocalProtocolError):
            wire(found)


def test_header_of_many_values_is_not_kept_in_memory() -> None:
    from meshlib.clients import httpx_requests

    before = httpx_requests._remembered.cache_info().misses
    for number in range(5):
        request_of(httpx.Request("GET", "http://checkout/", headers={"authorization": f"Bearer {number}"}))
    assert httpx_requests._remembered.cache_info().misses - before <= 1, "only what all of them share"


def test_request_without_a_body_sends_no_empty_piece() -> None:
    assert list(request_of(httpx.Request("GET", "http://checkout/")).stream) == []
    assert list(request_of(httpx.Request("POST", "http://checkout/", content=b"")).stream) == []
    assert list(request_of(httpx.Request("POST", "http://checkout/", content=b"ab")).stream) == [b"ab"]


async def test_request_without_a_body_sends_no_empty_piece_asynchronously() -> None:
    assert [piece async for piece in request_of(httpx.Request("GET", "http://checkout/")).stream] == []


def test_http2_gets_plain_pairs() -> None:
    found = request_of(httpx.Request("GET", "http://checkout/"), PoolKey("127.0.0.1:80", http2=True))
    assert (b"host", b"checkout") == found.headers[0]
    assert isinstance(found.headers, list)
