"""What tells plaintext and TLS on one port apart, by itself."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from peers.authority import Authority

from meshlib.servers import mixed
from meshlib.servers.addresses import listen
from meshlib.servers.grpc_front import GrpcFront
from meshlib.servers.mixed import MixedServer, begins_with_tls

LOOPBACK = "127.0.0.1"


class Echo(asyncio.Protocol):
    """Answers what it gets, with whether it came over TLS."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._mark = b"tls:" if transport.get_extra_info("ssl_object") else b"plain:"

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._mark + data)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's."""
    authority = Authority()
    leaf = authority.issue(dns=["localhost"])
    pem: Path = tmp_path_factory.mktemp("front") / "pem"
    pem.write_bytes(leaf.chain_pem + leaf.key_pem)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(pem)
    client.load_verify_locations(cadata=authority.pem.decode())
    return server, client


@asynccontextmanager
async def mixed_server(context: ssl.SSLContext) -> AsyncIterator[tuple[str, int]]:
    with socket.create_server((LOOPBACK, 0)) as listening:
        server = MixedServer(listening, Echo, context, 10)
        try:
            yield listening.getsockname()
        finally:
            server.close()
            await server.wait_closed()


async def ask(address: tuple[str, int], context: ssl.SSLContext | None, data: bytes = b"GET") -> bytes:
    name = None if context is None else "localhost"
    reader, writer = await asyncio.open_connection(*address, ssl=context, server_hostname=name)
    writer.write(data)
    answer = await reader.read(100)
    writer.close()
    await writer.wait_closed()
    return answer


async def test_the_first_byte_decides_and_is_not_lost(contexts: Any) -> None:
    async with mixed_server(contexts[0]) as address:
        answers = await asyncio.gather(*(ask(address, one) for one in (None, contexts[1]) * 10))
        assert [b"plain:GET", b"tls:GET"] * 10 == answers
        assert b"plain:\x17x" == await ask(address, None, b"\x17x")


async def test_the_first_byte_may_come_late_and_alone(contexts: Any) -> None:
    async with mixed_server(contexts[0]) as address:
        reader, writer = await asyncio.open_connection(*address)
        await asyncio.sleep(0.05)
        writer.write(b"G")
        assert b"plain:G" == await reader.read(100)
        writer.close()
        await writer.wait_closed()


async def test_who_says_nothing_is_dropped_in_time(contexts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also who begins a handshake and stops."""
    monkeypatch.setattr(mixed, "FIRST_BYTE_S", 0.2)
    async with mixed_server(contexts[0]) as address:
        for beginning in (b"", b"\x16\x03\x01"):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(beginning)
            with suppress(ConnectionError):
                assert b"" == await asyncio.wait_for(reader.read(100), 10)
            writer.close()
        assert b"plain:GET" == await ask(address, None)


async def test_closing_drops_who_has_said_nothing_and_leaves_no_file(contexts: Any, open_files: Any) -> None:
    before = open_files()
    async with mixed_server(contexts[0]) as address:
        others = [await asyncio.open_connection(*address) for _ in range(5)]
        broken, _ = await asyncio.open_connection(*address), None
        broken[1].transport.abort()
        await asyncio.sleep(0.05)
    for reader, writer in others:
        assert b"" == await reader.read(100)
        writer.close()
        await writer.wait_closed()
    await asyncio.sleep(0.05)
    assert before == open_files()


async def test_closing_does_not_wait_for_who_is_in_the_middle_of_a_handshake(contexts: Any, open_files: Any) -> None:
    before = open_files()
    begin = time.monotonic()
    async with mixed_server(contexts[0]) as address:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"\x16\x03\x01")
        await asyncio.sleep(0.05)
    with suppress(ConnectionError):
        assert b"" == await reader.read(100)
    writer.close()
    assert time.monotonic() - begin < 5
    await asyncio.sleep(0.05)
    assert before >= open_files()


def test_a_blocking_server_waits_no_longer_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed, "FIRST_BYTE_S", 0.05)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(7.0)
        with pytest.raises(TimeoutError):
            begins_with_tls(ours)
        assert 7.0 == ours.gettimeout()
        theirs.sendall(b"\x16\x03")
        assert begins_with_tls(ours)
        assert b"\x16\x03" == ours.recv(10)


@pytest.fixture
def open_files() -> Callable[[], int]:
    return lambda: len(list(Path("/proc/self/fd").iterdir()))


class Behind:
    """A server behind a front; `handle` gets each connection."""

    def __init__(self, handle: Callable[[socket.socket], None]) -> None:
        self._handle = handle
        self.listening = socket.create_server((LOOPBACK, 0))
        self.port = self.listening.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(30)  # before its number is given to another socket, on which it would accept
        self.listening.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(connection,), daemon=True).start()


@pytest.fixture
def front() -> Iterator[Callable[[Callable[[socket.socket], None]], tuple[str, int]]]:
    made: list[Any] = []

    def make(handle: Callable[[socket.socket], None]) -> tuple[str, int]:
        behind = Behind(handle)
        listening = listen(LOOPBACK, 0, 100)
        address: tuple[str, int] = listening.getsockname()
        one = GrpcFront(listening, plaintext_port=behind.port, tls_port=1, forwarded={})
        made.extend([behind, one])
        return address

    yield make
    for one in made:
        one.close()
    end = time.monotonic() + 10
    while any(thread.name == "meshlib-front" for thread in threading.enumerate()):
        assert time.monotonic() < end, "the front's thread goes on"
        time.sleep(0.01)


def test_what_the_server_says_first_is_not_lost(front: Any) -> None:
    def greet(connection: socket.socket) -> None:
        with connection:
            connection.sendall(b"hello")
            connection.recv(10)

    address = front(greet)
    for _ in range(20):
        with socket.create_connection(address, 5) as connection:
            connection.sendall(b"P")
            assert b"hello" == connection.recv(10)


def test_half_closed_connections_go_on_in_the_other_direction(front: Any) -> None:
    def answer_at_the_end(connection: socket.socket) -> None:
        with connection:
            connection.sendall(b"".join(iter(lambda: connection.recv(65536), b"")).upper())

    with socket.create_connection(front(answer_at_the_end), 5) as connection:
        connection.sendall(b"abc")
        connection.shutdown(socket.SHUT_WR)
        assert b"ABC" == b"".join(iter(lambda: connection.recv(65536), b""))


def test_a_server_that_does_not_read_stops_the_caller(front: Any) -> None:
    """The front holds no more than its buffers: a caller's send does not go on for ever."""
    held = threading.Event()

    def wait(connection: socket.socket) -> None:
        with connection:
            held.wait(20)

    with socket.create_connection(front(wait), 5) as connection:
        connection.settimeout(0.5)
        sent = 0
        with suppress(TimeoutError):
            while sent < 40_000_000:
                sent += connection.send(b"x" * 65536)
        assert sent < 40_000_000
    held.set()


def test_a_server_that_has_gone_ends_the_callers_connections(front: Any) -> None:
    def go(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.recv(1)
        connection.close()

    with socket.create_connection(front(go), 5) as connection:
        connection.sendall(b"P")
        with suppress(ConnectionError):
            assert b"" == connection.recv(10)
    with socket.create_connection(front(go), 5) as connection:
        connection.sendall(b"\x16")  # nobody listens at the TLS port
        with suppress(ConnectionError):
            assert b"" == connection.recv(10)
