"""The same code on a plain httpx client and on a meshed one sees the same: what is left half-way, too.

Each test does something with a client that it knows nothing of. Meshed ones come with requests that need no `Call` ("express")
and with those that have one.
"""

import gc
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import anyio.lowlevel
import httpx
import pytest
from httpx_drivers import Client, Driver, opened

from meshlib.model.cluster import CircuitBreakers

from .conftest import FakeMesh
from .test_httpx_express import ExpressMesh

URL = "http://checkout"
ONE = httpx.Limits(max_connections=1)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
SIZE = 400_000
KINDS = [
    f"{mesh}{backend}"
    for backend in ("sync", "asyncio", "uvloop", "trio")
    for mesh in (("plain ", "", "express ") if backend in ("sync", "asyncio") else ("", "express "))
]


class Server:
    """Answers by path. Attributes: requests, paths in order; left, set when a client has closed a connection early."""

    def __init__(self, raw_server: Any) -> None:
        self.requests: list[bytes] = []
        self.left = threading.Event()
        self.address: str = raw_server(self.handle).address

    def handle(self, connection: socket.socket, number: int) -> None:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                piece = connection.recv(65536)
                if not piece:
                    return
                data += piece
            head, _, data = data.partition(b"\r\n\r\n")
            path = head.split(b" ")[1]
            self.requests.append(path)
            match path:
                case b"/big":
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % SIZE + b"x" * SIZE)
                case b"/endless":
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nthe beginning")
                    with suppress(OSError):
                        connection.recv(1)
                    self.left.set()
                    return
                case b"/garbled":
                    connection.sendall(b"HTTP/1.1 200 OK\r\nno header\r\n\r\n")
                case b"/begun":
                    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-")
                    return
                case _:
                    connection.sendall(OK)


@pytest.fixture(name="server")
def _server(raw_server: Any) -> Server:
    return Server(raw_server)


@pytest.fixture(params=KINDS)
def driver(request: pytest.FixtureRequest, server: Server) -> Iterator[Driver]:
    """Clients of some kind, for one server at `URL`."""
    name = request.param
    made = ExpressMesh() if name.startswith("express") else FakeMesh()
    made.serve("checkout", {"c": [server.address]}, timeout_s=0.0, circuit_breakers=CircuitBreakers(max_requests=1))
    with opened(name.removeprefix("express "), made) as found:
        yield found
    assert (0, 0) == made.held("c")
    assert (0, 0) == (made.cluster("c").breaker.connections, made.cluster("c").breaker.pending)


def url_of(driver: Driver, server: Server) -> str:
    return URL if driver.is_meshed else f"http://{server.address}"


def begun(client: Client, url: str) -> httpx.Response:
    """A response that nobody has read or closed."""
    return client.send(client.inner.build_request("GET", url), stream=True)


def broken_off(driver: Driver, response: httpx.Response) -> None:
    """Read the beginning only."""

    async def read() -> None:
        pieces = response.aiter_raw()
        async for _ in pieces:
            break
        await pieces.aclose()  # type: ignore[attr-defined]  # a generator; left to be collected, trio complains of it
        for _ in range(20):  # of the generators below it the loop ends one after the other
            await anyio.lowlevel.checkpoint()

    if driver.is_async:
        driver.call(read)
        return
    for _ in response.iter_raw():
        break


def failed_in(driver: Driver, response: httpx.Response) -> None:
    """Read, and fail with what was read."""

    async def read() -> None:
        pieces = response.aiter_bytes()
        try:
            async for _ in pieces:
                raise KeyError("of the application")
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]  # as above
            for _ in range(20):
                await anyio.lowlevel.checkpoint()

    def read_now() -> None:
        for _ in response.iter_bytes():
            raise KeyError("of the application")

    with pytest.raises(KeyError):
        driver.call(read if driver.is_async else read_now)


def cancelled_in(driver: Driver, response: httpx.Response) -> None:
    """Give up reading after a moment."""

    async def read() -> None:
        with anyio.move_on_after(0.01):
            await response.aread()

    if driver.is_async:
        driver.call(read)
    else:
        response.close()


@pytest.mark.parametrize("path", ["/", "/endless"])
def test_responses_that_were_read_in_part_and_dropped(driver: Driver, server: Server, path: str) -> None:
    client = driver.client(transport=driver.transport(limits=ONE), timeout=httpx.Timeout(20, pool=5))
    url = url_of(driver, server)
    # httpx leaves generators of its own unfinished then, mesh or not, and trio complains of it.
    acts = [cancelled_in] if driver.name == "trio" else [cancelled_in, broken_off, failed_in]
    for act in acts:
        act(driver, begun(client, f"{url}{path}"))
        assert 200 == client.get(url).status_code


def test_connections_end_when_reading_is_broken_off(driver: Driver, server: Server) -> None:
    if driver.name == "trio":
        pytest.skip("trio would complain of what httpx leaves unfinished")
    client = driver.client()
    response = begun(client, f"{url_of(driver, server)}/endless")
    broken_off(driver, response)
    assert server.left.wait(20)
    if driver.is_async:
        driver.call(response.aclose)
    else:
        response.close()


def test_iterators_that_outlive_their_response_leave_its_connection_alone(driver: Driver, server: Server) -> None:
    if driver.is_async:
        pytest.skip("the end of an async iterator is no accident")
    client = driver.client(transport=driver.transport(limits=ONE))
    url = url_of(driver, server)
    response = begun(client, f"{url}/big")
    pieces = response.iter_raw()
    size = 0
    while size < SIZE:
        size += len(next(pieces))
    response.close()
    assert 200 == client.get(url).status_code
    del pieces
    assert 200 == client.get(url).status_code


MESHED = [name for name in KINDS if not name.startswith("plain")]


@pytest.mark.parametrize("driver", MESHED, indirect=True)
def test_responses_that_nobody_has_read_and_that_were_dropped(driver: Driver, server: Server) -> None:
    """httpx's own pool has them for good."""
    client = driver.client(transport=driver.transport(limits=ONE), timeout=httpx.Timeout(20, pool=5))
    begun(client, f"{URL}/big")
    gc.collect()
    assert 200 == client.get(URL).status_code


@pytest.mark.parametrize("path", ["/garbled", "/begun"])
def test_requests_that_get_a_bad_answer_are_not_repeated(driver: Driver, server: Server, path: str) -> None:
    """That the connection was used before says nothing then: it was not dead."""
    client, url = driver.client(), url_of(driver, server)
    assert 200 == client.get(url).status_code
    with pytest.raises(httpx.RemoteProtocolError) as caught:
        client.get(f"{url}{path}")
    assert f"{url}{path}" == str(caught.value.request.url)
    assert [b"/", path.encode()] == server.requests


def test_requests_with_two_hosts_are_refused(driver: Driver, server: Server) -> None:
    with pytest.raises(httpx.LocalProtocolError, match="multiple Host"):
        driver.client().get(url_of(driver, server), headers=[("Host", "one.example"), ("Host", "two.example")])
    assert [] == server.requests


@pytest.mark.parametrize("driver", MESHED, indirect=True)
def test_answers_of_the_mesh_are_like_any_other(driver: Driver, server: Server) -> None:
    """The second request at a time is one too many for the cluster's limits."""
    seen: list[Any] = []
    hooks = {"response": [driver.hook(lambda response: seen.append((response.status_code, response.is_closed)))]}
    client = driver.client(event_hooks=hooks)
    with client.stream("GET", URL):
        response = client.get(URL)
        with client.stream("HEAD", URL) as streamed:
            assert not streamed.response.is_closed
            assert b"" == streamed.read()
    assert [(200, False), (503, False), (503, False)] == seen
    assert (503, "Service Unavailable", "HTTP/1.1") == (
        response.status_code,
        response.reason_phrase,
        response.http_version,
    )
    assert (True, True) == (response.is_closed, response.is_stream_consumed)
    assert response.elapsed.total_seconds() >= 0
    assert int(response.headers["content-length"]) == len(response.content) == response.num_bytes_downloaded > 0
    assert "text/plain" == response.headers["content-type"]
