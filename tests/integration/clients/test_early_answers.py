"""Servers that answer before they have the whole request, and those that reset it; over HTTP/1.1 and HTTP/2."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
from httpx_drivers import opened

from meshlib.model.retry import RetryPolicy

NAMES = pytest.mark.parametrize("name", ["sync", "asyncio", "uvloop"])
URL = "http://checkout/"
MUCH = b"x" * (8 << 20)
"""More than the buffers between here and a server on loopback hold."""
ANSWER = b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno"


def uploads(driver: Any) -> list[Any]:
    return [MUCH, driver.pieces([MUCH[:65536]] * 128)]


@NAMES
@pytest.mark.parametrize("which", [0, 1], ids=["bytes", "pieces"])
def test_answer_of_a_server_that_reads_nothing_any_more_is_given(
    name: str, which: int, mesh: Any, raw_server: Any
) -> None:
    over = threading.Event()

    def answer(connection: socket.socket, number: int) -> None:
        connection.recv(1000)
        connection.sendall(ANSWER)
        assert over.wait(30)

    server = raw_server(answer)
    mesh.serve("checkout", {"v1": [server.address]})
    try:
        with opened(name, mesh) as driver:
            found = driver.client(timeout=20).request("PUT", URL, content=uploads(driver)[which])
            assert (413, b"no") == (found.status_code, found.content)
    finally:
        over.set()


@NAMES
def test_response_that_has_only_begun_does_not_end_its_request(name: str, mesh: Any, raw_server: Any) -> None:
    """It may depend on the rest; an interim response says nothing at all."""
    began = b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nhello"

    def answer(connection: socket.socket, number: int) -> None:
        got = connection.recv(1000)
        connection.sendall(began)
        while not got.endswith(b"\r\n0\r\n\r\n"):
            got += connection.recv(65536)
        connection.sendall(b"%02d" % got.count(b"piece"))

    server = raw_server(answer)
    mesh.serve("checkout", {"v1": [server.address]})

    def pieces() -> Iterator[bytes]:
        for _ in range(40):
            yield b"piece"
            threading.Event().wait(0.002)

    with opened(name, mesh) as driver:
        found = driver.client(timeout=20).request("PUT", URL, content=driver.pieces(pieces()))
        assert (200, b"hello40") == (found.status_code, found.content)


def serve_h2(heard: Callable[[h2.connection.H2Connection, Any], None]) -> Callable[[socket.socket, int], None]:
    """Serve HTTP/2, acknowledging nothing: a client can send no more than the windows let it."""

    def handle(connection: socket.socket, number: int) -> None:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        connection.sendall(state.data_to_send())
        while data := connection.recv(65536):
            for event in state.receive_data(data):
                heard(state, event)
            connection.sendall(state.data_to_send())

    return handle


@NAMES
@pytest.mark.parametrize("resets", [False, True], ids=["ends", "ends and resets"])
@pytest.mark.parametrize("which", [0, 1], ids=["bytes", "pieces"])
def test_early_answer_over_http2_is_given(name: str, which: int, resets: bool, mesh: Any, raw_server: Any) -> None:
    def heard(state: h2.connection.H2Connection, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            state.send_headers(event.stream_id, [(":status", "413"), ("content-length", "2")])
            state.send_data(event.stream_id, b"no", end_stream=True)
            if resets:
                state.reset_stream(event.stream_id)

    server = raw_server(serve_h2(heard))
    mesh.serve("checkout", {"v1": [server.address]}, http2=True)
    with opened(name, mesh) as driver:
        client = driver.client(timeout=20)
        for _ in range(2):
            found = client.request("PUT", URL, content=uploads(driver)[which])
            assert (413, b"no") == (found.status_code, found.content)


@NAMES
def test_reset_of_a_stream_is_for_the_policy(name: str, mesh: Any, raw_server: Any) -> None:
    """Its connection is good: it is no connection that died while it idled, whose request is repeated without a word."""
    seen = []

    def heard(state: h2.connection.H2Connection, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            seen.append(event.stream_id)
            if len(seen) == 1:
                state.send_headers(event.stream_id, [(":status", "204")], end_stream=True)
            else:
                state.reset_stream(event.stream_id, 2)

    server = raw_server(serve_h2(heard))
    mesh.serve("checkout", {"v1": [server.address]}, http2=True)
    with opened(name, mesh) as driver:
        client = driver.client(timeout=20)
        assert 204 == client.get(URL).status_code
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            client.get(URL)
        assert ("UR", 2) == (caught.value.mesh.flag, len(seen))
        mesh.serve("checkout", {"v1": [server.address]}, http2=True, retry=RetryPolicy(frozenset({"reset"}), 2))
        with pytest.raises(httpx.RemoteProtocolError):
            client.get(URL)
        assert 5 == len(seen)


@NAMES
def test_time_of_a_request_that_is_being_made_begins_at_its_end_over_http2(
    name: str, mesh: Any, raw_server: Any
) -> None:
    def heard(state: h2.connection.H2Connection, event: Any) -> None:
        if isinstance(event, h2.events.StreamEnded):
            state.send_headers(event.stream_id, [(":status", "204")], end_stream=True)

    server = raw_server(serve_h2(heard))
    mesh.serve("checkout", {"v1": [server.address]}, http2=True, timeout_s=1.0)

    def pieces() -> Iterator[bytes]:
        for _ in range(3):
            threading.Event().wait(0.5)
            yield b"piece"

    with opened(name, mesh) as driver:
        assert 204 == driver.client(timeout=20).request("PUT", URL, content=driver.pieces(pieces())).status_code
