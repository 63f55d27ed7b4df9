"""Connections of transports that nobody uses at the moment."""

import queue
import socket
from typing import Any

import pytest
from httpx_drivers import opened

from meshlib.runtime.tidying import TidyingUp
from meshlib.testing import FakeClock

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
BEGUN = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no"


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\r\n\r\n") and (piece := connection.recv(65536)):
        data += piece
    return data


@pytest.fixture
def quiet(mesh: Any) -> Any:
    """The mesh with a clock of the test's, and with what is done once a second."""
    mesh.clock = FakeClock()
    mesh._tidying_up = TidyingUp()
    return mesh


@pytest.mark.parametrize("name", ["sync", "asyncio", "uvloop", "trio"])
def test_idle_connections_are_closed_without_a_call(name: str, quiet: Any, raw_server: Any) -> None:
    """They stayed open until the next call, and counted against the limit of the cluster for every other transport."""
    ended: queue.Queue[bytes] = queue.Queue()

    def handle(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(ANSWER)
        ended.put(connection.recv(1))

    quiet.serve("checkout", {"c": [raw_server(handle).address]})
    breaker = quiet.cluster("c").breaker
    with opened(name, quiet) as driver:
        client = driver.client()
        assert "ok" == client.get("http://checkout/").text
        quiet.clock.advance(3.5)
        quiet._tidying_up.run()
        assert 1 == breaker.connections
        quiet.clock.advance(1.0)
        quiet._tidying_up.run()
        assert b"" == ended.get(timeout=10)
        assert 0 == breaker.connections
        assert "ok" == client.get("http://checkout/").text


@pytest.mark.parametrize("name", ["sync", "asyncio", "uvloop", "trio"])
def test_connections_of_an_endpoint_that_left_are_closed_without_a_call(name: str, quiet: Any, raw_server: Any) -> None:
    """But for the one that a response still comes on."""
    ended: queue.Queue[tuple[int, bytes]] = queue.Queue()
    rest: queue.Queue[bytes] = queue.Queue()

    def handle(connection: socket.socket, number: int) -> None:
        head = read_request(connection)
        if b"/slow" in head:
            connection.sendall(BEGUN)
            connection.sendall(rest.get(timeout=30))
        else:
            connection.sendall(ANSWER)
        ended.put((number, connection.recv(1)))

    quiet.serve("checkout", {"c": [raw_server(handle).address]}, timeout_s=0.0)
    with opened(name, quiet) as driver:
        idle, busy = driver.client(), driver.client()
        assert "ok" == idle.get("http://checkout/").text
        with busy.stream("GET", "http://checkout/slow") as response:
            quiet.serve("checkout", {"c": ["127.0.0.9:1"]}, timeout_s=0.0)
            quiet._tidying_up.run()
            assert (0, b"") == ended.get(timeout=10)
            rest.put(b"k")
            assert b"ok" == response.read()
        quiet._tidying_up.run()
        assert (1, b"") == ended.get(timeout=10)
