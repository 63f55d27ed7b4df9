"""What servers and networks do wrong, seen through requests and aiohttp: an error of theirs in time, nothing left behind."""

import asyncio
import contextlib
import gc
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import requests
from anyio.from_thread import start_blocking_portal
from sockets import half_close

from meshlib.integrations.aiohttp import MeshMiddleware
from meshlib.integrations.requests import MeshAdapter

URL = "http://checkout/"
LENGTH = b"HTTP/1.1 200 OK\r\nX-A: b\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
ERRORS = {"requests": requests.RequestException, "aiohttp": (aiohttp.ClientError, TimeoutError)}


@dataclass
class Call:
    """Makes a request and returns its body.

    Attributes:
        settle: Returns when what has come on idle connections has been looked at.
    """

    make: Callable[[], str]
    settle: Callable[[], object] = lambda: None

    def __call__(self) -> str:
        return self.make()


@contextlib.contextmanager
def by_requests(mesh: Any) -> Iterator[Call]:
    with requests.Session() as session:
        session.mount("http://", MeshAdapter(mesh))
        yield Call(lambda: session.post(URL, data=b"x", timeout=30).text)


@contextlib.contextmanager
def by_aiohttp(mesh: Any) -> Iterator[Call]:
    with start_blocking_portal("asyncio") as portal:

        async def make() -> aiohttp.ClientSession:
            return aiohttp.ClientSession(
                middlewares=[MeshMiddleware(mesh)],
                timeout=aiohttp.ClientTimeout(total=30),
                skip_auto_headers=["Accept"],
            )

        session = portal.call(make)

        async def call() -> str:
            async with session.post(URL, data=b"x") as response:
                return await response.text()

        try:
            yield Call(lambda: portal.call(call), lambda: portal.call(asyncio.sleep, 0.01))
        finally:
            portal.call(session.close)
            portal.call(asyncio.sleep, 0.01)


BOTH = pytest.mark.parametrize("by", [by_requests, by_aiohttp])


def errors_of(by: Any) -> Any:
    return ERRORS[by.__wrapped__.__name__.removeprefix("by_")]


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_request(connection: socket.socket) -> bytes:
    """Read a request with its body of one byte."""
    data = b""
    while not data.endswith(b"\r\n\r\nx"):
        piece = connection.recv(65536)
        if not piece:
            return b""
        data += piece
    return data


@BOTH
@pytest.mark.parametrize("end", ["reset", "close"])
@pytest.mark.parametrize("wire", [LENGTH, CHUNKED], ids=["length", "chunked"])
def test_response_that_ends_at_any_byte(by: Any, wire: bytes, end: str, mesh: Any, raw_server: Any) -> None:
    """Every prefix but the whole is an error, never a response that looks complete."""
    after: list[int] = []

    def handle(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            connection.sendall(wire[: after[-1]])
            if after[-1] < len(wire):
                return (reset if end == "reset" else socket.socket.close)(connection)

    mesh.serve("checkout", {"c": [raw_server(handle).address]}, timeout_s=0.0)
    with by(mesh) as call:
        for size in range(len(wire)):
            after.append(size)
            with pytest.raises(errors_of(by)):
                call()
            assert mesh.held("c") == (0, 0)
        after.append(len(wire))
        assert call() in ("hello", "abcde")
    assert mesh.held("c") == (0, 0)


@BOTH
@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 200 OK\r\nx: " + b"v" * 300_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nnope\r\n",
        b"SSH-2.0-OpenSSH_9.0\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
    ],
    ids=["header", "no number", "truncated", "no chunk", "ssh", "alert"],
)
def test_what_is_no_http_is_refused(by: Any, wire: bytes, mesh: Any, raw_server: Any) -> None:
    def handle(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(wire)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    mesh.serve("checkout", {"c": [raw_server(handle).address]}, timeout_s=0.0)
    with by(mesh) as call, pytest.raises(errors_of(by)):
        call()
    assert mesh.held("c") == (0, 0)


@BOTH
def test_a_body_longer_than_declared_ends_where_declared(by: Any, mesh: Any, raw_server: Any) -> None:
    def handle(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            connection.sendall(LENGTH + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged")

    mesh.serve("checkout", {"c": [raw_server(handle).address]})
    answers = []
    with by(mesh) as call:
        for _ in range(6):
            # aiohttp may give up a connection with something left on it while the next request is on its way.
            with contextlib.suppress(aiohttp.ClientError):
                answers.append(call())
            time.sleep(0.01)
    assert len(answers) >= 3
    assert {"hello"} == set(answers)


@BOTH
def test_slow_servers_are_given_up_when_the_time_of_the_call_is_over(by: Any, mesh: Any, raw_server: Any) -> None:
    def handle(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-A: ")
        while True:  # until the client leaves
            connection.sendall(b"b")
            time.sleep(0.05)

    mesh.serve("checkout", {"c": [raw_server(handle).address]}, timeout_s=1.0)
    with by(mesh) as call:
        start = time.monotonic()
        with pytest.raises(errors_of(by)):
            call()
        assert time.monotonic() - start < 20, "aiohttp's own time for the whole is 30 s"
    assert mesh.held("c") == (0, 0)


@BOTH
def test_half_open_peers_are_found_out(by: Any, mesh: Any, raw_server: Any) -> None:
    numbers: list[int] = []
    left = threading.Semaphore(0)

    def handle(connection: socket.socket, number: int) -> None:
        numbers.append(number)
        read_request(connection)
        connection.sendall(LENGTH)
        half_close(connection)
        left.release()
        connection.recv(1)

    mesh.serve("checkout", {"c": [raw_server(handle).address]})
    with by(mesh) as call:
        for _ in range(3):
            assert "hello" == call()
            assert left.acquire(timeout=30)
            call.settle()
    assert len(numbers) == 3


@BOTH
def test_nothing_is_left_behind(by: Any, mesh: Any, raw_server: Any) -> None:
    """Sockets and threads after calls that end in every way."""
    wires = [LENGTH, CHUNKED, LENGTH[:-2], b"", b"junk\r\n\r\n", LENGTH.replace(b"200", b"503")]

    def handle(connection: socket.socket, number: int) -> None:
        for turn in range(100):
            if not read_request(connection):
                return
            wire = wires[(number + turn) % len(wires)]
            connection.sendall(wire)
            if wire not in (LENGTH, CHUNKED):
                return

    mesh.serve("checkout", {"c": [raw_server(handle).address]})
    gc.collect()
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    with by(mesh) as call:
        for _ in range(120):
            with contextlib.suppress(*([errors_of(by)] if isinstance(errors_of(by), type) else errors_of(by))):
                call()
        assert mesh.held("c") == (0, 0)
    end = time.monotonic() + 10
    while len(os.listdir("/proc/self/fd")) > before or threading.active_count() > threads:
        assert time.monotonic() < end, (before, os.listdir("/proc/self/fd"), threading.enumerate())
        gc.collect()
        time.sleep(0.02)
