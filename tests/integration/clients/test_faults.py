"""What servers and networks do wrong: an error of httpx's in time, nothing left behind, and the next call works."""

import contextlib
import gc
import os
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
from httpx_drivers import DRIVERS, opened
from sockets import half_close

from meshlib.errors import DeadlineExceeded
from meshlib.model.retry import RetryPolicy

MESHED = [name for name in DRIVERS if not name.startswith("plain")]
LENGTH = b"HTTP/1.1 200 OK\r\nX-A: b\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-T: u\r\n\r\n"
RETRY = RetryPolicy(frozenset({"reset", "refused-stream"}), num_retries=2, base_interval_s=0.001)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return data
        data += piece
    return data


@pytest.mark.parametrize("end", ["reset", "close"])
@pytest.mark.parametrize("wire", [LENGTH, CHUNKED], ids=["length", "chunked"])
@pytest.mark.parametrize("name", ["sync", "asyncio", "uvloop", "trio"])
def test_response_that_ends_at_any_byte(name: str, wire: bytes, end: str, mesh: Any, raw_server: Any) -> None:
    """Every prefix but the whole is an error, never a response that looks complete."""
    after: list[int] = []

    def handle(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(wire[: after[-1]])
        if after[-1] < len(wire):
            (reset if end == "reset" else socket.socket.close)(connection)
        else:
            read_request(connection)

    address = raw_server(handle).address
    mesh.serve("checkout", {"c": [address]}, timeout_s=0.0)
    with opened(name, mesh) as driver:
        client = driver.client(timeout=30)
        for size in range(len(wire)):
            after.append(size)
            with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)) as caught:
                client.post("http://checkout/")
            assert caught.value.mesh.flag == "UC"
            assert f"(flag UC; cluster 'c'; endpoints {address}; attempts 1)" in str(caught.value)
            assert mesh.held("c") == (0, 0)
        after.append(len(wire))
        assert client.get("http://checkout/").status_code == 200
        assert mesh.cluster("c").breaker.connections == 1
    assert mesh.cluster("c").breaker.connections == 0


@pytest.mark.parametrize("name", MESHED)
def test_reset_is_repeated_where_the_route_says_so(name: str, mesh: Any, raw_server: Any) -> None:
    def handle(connection: socket.socket, number: int) -> None:
        read_request(connection)
        if number < 2:
            reset(connection)
        else:
            connection.sendall(LENGTH)

    mesh.serve("checkout", {"c": [raw_server(handle).address]}, retry=RETRY)
    with opened(name, mesh) as driver:
        response = driver.client().get("http://checkout/")
    assert (response.text, response.extensions["mesh"].attempts) == ("hello", 3)


@pytest.mark.parametrize(
    ("wire", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nx: " + b"v" * 300_000 + b"\r\n\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 60_000 + b"\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\nhello", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnope\r\n", httpx.RemoteProtocolError),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;" + b"e" * 100_000, httpx.RemoteProtocolError),
        (b"SSH-2.0-OpenSSH_9.0\r\n\r\n", httpx.RemoteProtocolError),
        (b"\x15\x03\x01\x00\x02\x02\x46", httpx.RemoteProtocolError),
    ],
)
@pytest.mark.parametrize("name", MESHED)
def test_what_is_no_http_is_refused(name: str, wire: bytes, kind: Any, mesh: Any, raw_server: Any) -> None:
    def handle(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(wire)
        connection.shutdown(socket.SHUT_WR)
        read_request(connection)

    mesh.serve("checkout", {"c": [raw_server(handle).address]}, timeout_s=0.0)
    with opened(name, mesh) as driver, pytest.raises(kind):
        driver.client(timeout=30).post("http://checkout/")
    assert mesh.held("c") == (0, 0)


@pytest.mark.parametrize("name", MESHED)
def test_body_longer_than_declared_ends_where_declared(name: str, mesh: Any, raw_server: Any) -> None:
    def handle(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            connection.sendall(LENGTH + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")

    mesh.serve("checkout", {"c": [raw_server(handle).address]})
    with opened(name, mesh) as driver:
        client = driver.client()
        assert [client.get("http://checkout/").text for _ in range(4)] == ["hello"] * 4


@pytest.mark.parametrize("name", MESHED)
def test_slow_servers_are_given_up_when_the_time_of_the_call_is_over(name: str, mesh: Any, raw_server: Any) -> None:
    """One byte now and then keeps httpx's own time-outs from passing, in the head and in the body."""

    def handle(connection: socket.socket, number: int) -> None:
        request = read_request(connection)
        head = (
            b"HTTP/1.1 200 OK\r\nX-A: " if b"/head" in request else b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"
        )
        connection.sendall(head)
        for _ in range(1000):
            connection.sendall(b"x")
            time.sleep(0.03)

    mesh.serve("checkout", {"c": [raw_server(handle).address]}, timeout_s=1.0)
    with opened(name, mesh) as driver:
        client = driver.client(timeout=30)
        for path in ("/head", "/body"):
            start = time.monotonic()
            with pytest.raises(httpx.ReadTimeout) as caught:
                client.get(f"http://checkout{path}")
            assert isinstance(caught.value.mesh, DeadlineExceeded) or path == "/body"
            assert time.monotonic() - start < 25
            assert mesh.held("c") == (0, 0)


@pytest.mark.parametrize("name", MESHED)
def test_half_open_peers_are_found_out(name: str, mesh: Any, raw_server: Any) -> None:
    """The server stops sending but keeps its side open for reading: the connection is not used again."""
    numbers: list[int] = []
    left = threading.Semaphore(0)

    def handle(connection: socket.socket, number: int) -> None:
        numbers.append(number)
        read_request(connection)
        connection.sendall(LENGTH)
        half_close(connection)
        left.release()
        read_request(connection)

    mesh.serve("checkout", {"c": [raw_server(handle).address]})
    with opened(name, mesh) as driver:
        client = driver.client()
        for _ in range(3):
            assert client.post("http://checkout/").status_code == 200
            assert left.acquire(timeout=30)
            time.sleep(0.02)
    assert len(numbers) == 3


@pytest.mark.parametrize("name", MESHED)
def test_answer_before_the_request_is_read_is_given(name: str, mesh: Any, raw_server: Any) -> None:
    def handle(connection: socket.socket, number: int) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 20):
            pass

    mesh.serve("checkout", {"c": [raw_server(handle).address]})
    with opened(name, mesh) as driver:
        client = driver.client()
        for _ in range(2):
            assert client.post("http://checkout/", content=b"x" * (4 << 20)).status_code == 413


class Http2Server:
    """What a test does with each request of an HTTP/2 connection: `act(connection, stream id, number)`."""

    def __init__(self, act: Callable[[h2.connection.H2Connection, int, int], None]) -> None:
        self._act = act
        self.count = 0

    def handle(self, connection: socket.socket, number: int) -> None:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        connection.sendall(state.data_to_send())
        while data := connection.recv(65536):
            for event in state.receive_data(data):
                if isinstance(event, h2.events.StreamEnded):
                    self.count += 1
                    self._act(state, event.stream_id, self.count)
            connection.sendall(state.data_to_send())


def respond(state: h2.connection.H2Connection, stream: int) -> None:
    state.send_headers(stream, [(":status", "200"), ("content-length", "2")])
    state.send_data(stream, b"ok", end_stream=True)


@pytest.mark.parametrize("name", MESHED)
@pytest.mark.parametrize("trouble", ["refused", "goaway", "reset"])
def test_http2_streams_and_connections_that_end(name: str, trouble: str, mesh: Any, raw_server: Any) -> None:
    def act(state: h2.connection.H2Connection, stream: int, count: int) -> None:
        if count == 2 and trouble == "goaway":
            state.close_connection(0, last_stream_id=max(0, stream - 2))
        elif count == 2:
            state.reset_stream(stream, 7 if trouble == "refused" else 2)
        else:
            respond(state, stream)

    server = Http2Server(act)
    mesh.serve("checkout", {"c": [raw_server(server.handle).address]}, retry=RETRY, http2=True)
    with opened(name, mesh) as driver:
        client = driver.client()
        assert client.post("http://checkout/").http_version == "HTTP/2"
        # What was refused is surely not processed: it goes again whatever the method.
        response = client.request("POST" if trouble == "refused" else "GET", "http://checkout/")
        assert (response.status_code, response.text) == (200, "ok")
        assert client.get("http://checkout/").text == "ok"
    assert mesh.held("c") == (0, 0)


@pytest.mark.parametrize("name", MESHED)
def test_nothing_is_left_behind(name: str, mesh: Any, raw_server: Any) -> None:
    """Sockets, threads and memory after many calls that end in every way."""
    wires = [LENGTH, CHUNKED, LENGTH[:-2], b"", b"junk\r\n\r\n", LENGTH.replace(b"200", b"503")]

    def handle(connection: socket.socket, number: int) -> None:
        for turn in range(100):
            if not read_request(connection):
                return
            wire = wires[(number + turn) % len(wires)]
            connection.sendall(wire)
            if wire not in (LENGTH, CHUNKED):
                return

    mesh.serve("checkout", {"c": [raw_server(handle).address]}, retry=RETRY)
    with opened(name, mesh):
        pass  # what a loop keeps for the process
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    with opened(name, mesh) as driver:
        client = driver.client(timeout=30)

        def calls(count: int) -> None:
            for _ in range(count):
                with contextlib.suppress(httpx.TransportError):
                    client.post("http://checkout/", content=b"x" * 1000)

        calls(60)
        mesh.events.clear()
        gc.collect()
        tracemalloc.start()
        try:
            calls(300)
            mesh.events.clear()
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert mesh.held("c") == (0, 0)
        assert mesh.cluster("c").breaker.connections <= 1
        client.close()
        end = time.monotonic() + 10  # the server's side closes on threads of its own
        while len(os.listdir("/proc/self/fd")) > before + 8 and time.monotonic() < end:
            time.sleep(0.01)
    assert kept < 400_000, "bytes kept after 300 calls"
    end = time.monotonic() + 10
    while (len(os.listdir("/proc/self/fd")) > before or threading.active_count() > threads) and time.monotonic() < end:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert threading.active_count() <= threads
    assert mesh.cluster("c").breaker.connections == 0
