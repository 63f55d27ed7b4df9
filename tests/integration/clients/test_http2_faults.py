"""What servers and networks do wrong over HTTP/2, and how much a client may ask of a server."""

import gc
import itertools
import os
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import httpx
import pytest
from httpx_drivers import opened
from sockets import half_close

from meshlib.clients import http2_async, http2_sync
from meshlib.model.retry import RetryPolicy

NAMES = pytest.mark.parametrize("name", ["sync", "asyncio"])
EVERY = pytest.mark.parametrize("name", ["sync", "asyncio", "uvloop", "trio"])
RETRY = RetryPolicy(frozenset({"reset", "refused-stream"}), num_retries=2, base_interval_s=0.001)
URL = "http://checkout/"
MIB = 1 << 20


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Server:
    """The server's side of connections; `ended` is called for each request that is there in full."""

    def __init__(
        self,
        ended: "Callable[[Server, h2.connection.H2Connection, int], None]",
        *,
        settings: dict[int, int] | None = None,
        acknowledges: bool = True,
    ) -> None:
        self._ended = ended
        self._settings = settings or {}
        self._acknowledges = acknowledges
        self.count = 0
        self.connections = 0
        self.open: set[int] = set()
        self.most = 0
        self.received = 0
        self.socket: Any = None

    def handle(self, connection: socket.socket, number: int) -> None:
        self.connections += 1
        self.socket = connection
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        if self._settings:
            state.local_settings = h2.settings.Settings(client=False, initial_values=self._settings)
        state.initiate_connection()
        connection.sendall(state.data_to_send())
        while data := connection.recv(65536):
            for event in state.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    self.open.add(event.stream_id)
                    self.most = max(self.most, len(self.open))
                elif isinstance(event, h2.events.DataReceived):
                    self.received += len(event.data)
                    if self._acknowledges and event.flow_controlled_length:
                        state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamEnded):
                    self.count += 1
                    self._ended(self, state, event.stream_id)
                elif isinstance(event, h2.events.WindowUpdated):
                    self.more(state)
            connection.sendall(state.data_to_send())

    def more(self, state: h2.connection.H2Connection) -> None:
        """The client takes more."""

    def respond(self, state: h2.connection.H2Connection, stream: int) -> None:
        state.send_headers(stream, [(":status", "200"), ("content-length", "2")])
        state.send_data(stream, b"ok", end_stream=True)
        self.open.discard(stream)


def wire_of_response() -> bytes:
    """Everything that a server sends for the first request of a connection, its settings before."""
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.send_headers(1, [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/")], True)
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    server.receive_data(client.data_to_send())
    server.send_headers(1, [(":status", "200"), ("content-length", "2"), ("x-a", "b")])
    server.send_data(1, b"ok", end_stream=True)
    return server.data_to_send()


@NAMES
@pytest.mark.parametrize("end", ["reset", "close"])
def test_response_that_ends_at_any_byte(name: str, end: str, mesh: Any, raw_server: Any) -> None:
    """Every prefix but the whole is an error, never a response that looks complete."""
    wire = wire_of_response()
    after: list[int] = []

    def handle(connection: socket.socket, number: int) -> None:
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        while not any(isinstance(one, h2.events.StreamEnded) for one in state.receive_data(connection.recv(65536))):
            pass
        connection.sendall(wire[: after[-1]])
        if after[-1] < len(wire):
            (reset if end == "reset" else socket.socket.close)(connection)
        else:
            connection.recv(65536)

    mesh.serve("checkout", {"c": [raw_server(handle).address]}, timeout_s=0.0, http2=True)
    with opened(name, mesh) as driver:
        for size in range(len(wire)):
            after.append(size)
            client = driver.client(timeout=30)
            with pytest.raises(httpx.TransportError) as caught:
                client.post(URL)
            assert caught.value.mesh.flag == "UC"  # type: ignore[attr-defined]
            assert mesh.held("c") == (0, 0)
            client.close()
        after.append(len(wire))
        assert driver.client(timeout=30).post(URL).text == "ok"


def short(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
    state.send_headers(stream, [(":status", "200"), ("content-length", "9")])
    state.send_data(stream, b"hello", end_stream=True)


def long(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
    state.send_headers(stream, [(":status", "200"), ("content-length", "2")])
    state.send_data(stream, b"hello", end_stream=True)


def not_a_number(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
    state.send_headers(stream, [(":status", "200"), ("content-length", "five")])
    state.send_data(stream, b"hello", end_stream=True)


def no_status(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
    state.config.validate_outbound_headers = False
    state.send_headers(stream, [("x-a", "b")], end_stream=True)


def one_large_header(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
    state.send_headers(stream, [(":status", "200"), *((f"x-{number}", "v" * 10_000) for number in range(30))])


def endless_headers(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
    """HEADERS without an end, and CONTINUATION frames that go on."""
    piece = b"\x00\x07x-piece\x7f\x91\x06" + b"v" * 913  # a literal header of 920 bytes or so
    frame = lambda kind: struct.pack(">I", len(piece))[1:] + bytes([kind, 0]) + struct.pack(">I", stream) + piece  # noqa: E731
    connection = server.socket
    connection.sendall(state.data_to_send() + frame(1))
    for _ in range(5000):
        connection.sendall(frame(9))


def junk(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
    """A frame of data of no stream."""
    server.socket.sendall(bytes(9))


def short_with_trailers(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
    state.send_headers(stream, [(":status", "200"), ("content-length", "9")])
    state.send_data(stream, b"hello")
    state.send_headers(stream, [("x-a", "b")], end_stream=True)


BROKEN = (short, short_with_trailers, long, not_a_number, no_status, one_large_header, endless_headers, junk)


@EVERY
@pytest.mark.parametrize("answer", BROKEN)
def test_what_breaks_the_rules_is_refused(name: str, answer: Any, mesh: Any, raw_server: Any) -> None:
    """And the next request, on another connection, is answered."""
    turn = iter([answer])

    def ended(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
        (next(turn, None) or Server.respond)(server, state, stream)

    mesh.serve("checkout", {"c": [raw_server(Server(ended).handle).address]}, timeout_s=0.0, http2=True)
    with opened(name, mesh) as driver:
        client = driver.client(timeout=30)
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            client.post(URL)
        assert mesh.held("c") == (0, 0)
        assert client.post(URL).text == "ok"


@EVERY
def test_slow_servers_are_given_up_when_the_time_of_the_call_is_over(name: str, mesh: Any, raw_server: Any) -> None:
    """A frame of one byte now and then keeps httpx's own time-outs from passing."""

    def ended(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
        state.send_headers(stream, [(":status", "200")])
        for _ in range(1000):
            state.send_data(stream, b"x")
            server.socket.sendall(state.data_to_send())
            time.sleep(0.03)

    mesh.serve("checkout", {"c": [raw_server(Server(ended).handle).address]}, timeout_s=1.0, http2=True)
    with opened(name, mesh) as driver:
        start = time.monotonic()
        with pytest.raises(httpx.ReadTimeout):
            driver.client(timeout=30).get(URL)
        assert time.monotonic() - start < 25
        assert mesh.held("c") == (0, 0)


@EVERY
def test_half_open_peers_are_found_out(name: str, mesh: Any, raw_server: Any) -> None:
    """The server answers and stops sending, but goes on to read: a request that may be repeated gets another connection."""

    def ended(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
        connection = server.socket
        server.respond(state, stream)
        connection.sendall(state.data_to_send())
        half_close(connection)
        left.release()
        while connection.recv(65536):
            pass

    left = threading.Semaphore(0)
    server = Server(ended)
    mesh.serve("checkout", {"c": [raw_server(server.handle).address]}, retry=RETRY, http2=True)
    with opened(name, mesh) as driver:
        client = driver.client(timeout=30)
        for _ in range(3):
            assert client.get(URL).text == "ok"
            assert left.acquire(timeout=30)
            time.sleep(0.02)
    assert server.connections == 3


@EVERY
def test_a_server_that_leaves_with_its_answer_has_answered(name: str, mesh: Any, raw_server: Any) -> None:
    """It is gone before what the client says back arrives."""

    def ended(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
        server.respond(state, stream)
        server.socket.sendall(state.data_to_send())
        server.socket.shutdown(socket.SHUT_RDWR)
        left.release()

    left = threading.Semaphore(0)
    mesh.serve("checkout", {"c": [raw_server(Server(ended).handle).address]}, timeout_s=0.0, http2=True)
    with opened(name, mesh) as driver:
        client = driver.client(timeout=30)
        for _ in range(4):
            assert client.post(URL).text == "ok"
            assert left.acquire(timeout=30)  # else the next request may meet the connection while it ends
            time.sleep(0.03)


@EVERY
def test_a_stream_that_is_reset_in_its_body_is_an_error_and_takes_no_other_with_it(
    name: str, mesh: Any, raw_server: Any
) -> None:
    def ended(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
        if server.count != 2:
            server.respond(state, stream)
            return
        state.send_headers(stream, [(":status", "200"), ("content-length", "9")])
        state.send_data(stream, b"hel")
        state.reset_stream(stream, 2)

    server = Server(ended)
    mesh.serve("checkout", {"c": [raw_server(server.handle).address]}, timeout_s=0.0, http2=True)
    with opened(name, mesh) as driver:
        client = driver.client(timeout=30)
        assert client.get(URL).text == "ok"
        with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
            client.post(URL)
        assert client.post(URL).text == "ok"
    assert server.connections == 1
    assert mesh.held("c") == (0, 0)


def together(driver: Any, client: Any, count: int) -> list[Any]:
    """Make requests at once; returns their texts, or what went wrong."""

    def one(_: int) -> Any:
        try:
            return client.get(URL).text
        except httpx.HTTPError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@EVERY
def test_a_server_that_goes_away_answers_what_it_has_taken(name: str, mesh: Any, raw_server: Any) -> None:
    """GOAWAY with streams under way: those up to the last one are answered, the others go again on a new connection."""
    lock = threading.Lock()
    held: list[int] = []

    def ended(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
        with lock:
            if server.connections > 1 or server.count == 1:
                server.respond(state, stream)
                return
            held.append(stream)
            if len(held) == 6:
                taken = held[:3]
                for one in taken:
                    server.respond(state, one)
                server.socket.sendall(state.data_to_send())
                state.close_connection(0, last_stream_id=max(taken))

    server = Server(ended)
    retry = RetryPolicy(frozenset({"reset", "refused-stream"}), num_retries=3, base_interval_s=0.001)
    mesh.serve("checkout", {"c": [raw_server(server.handle).address]}, retry=retry, http2=True)
    with opened(name, mesh) as driver:
        client = driver.client(timeout=30)
        assert client.get(URL).text == "ok"  # the settings are known: streams run at once
        assert ["ok"] * 6 == together(driver, client, 6)
    assert server.connections >= 2
    assert mesh.held("c") == (0, 0)


@EVERY
def test_no_more_streams_are_opened_than_the_server_allows(name: str, mesh: Any, raw_server: Any) -> None:
    lock = threading.Lock()

    def ended(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
        time.sleep(0.01)
        with lock:
            server.respond(state, stream)

    server = Server(ended, settings={h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: 2})
    mesh.serve("checkout", {"c": [raw_server(server.handle).address]}, timeout_s=0.0, http2=True)
    with opened(name, mesh) as driver:
        client = driver.client(timeout=20, limits=httpx.Limits(max_connections=1))
        assert ["ok"] * 12 == together(driver, client, 12)
    assert (1, 12) == (server.connections, server.count)
    assert 1 <= server.most <= 2


class Big(Server):
    """Sends as much as the client takes."""

    SIZE = 64 * MIB

    def __init__(self) -> None:
        super().__init__(self.begin)
        self._stream = 0
        self._left = self.SIZE
        self.sent = 0

    def begin(self, server: Server, state: h2.connection.H2Connection, stream: int) -> None:
        self._stream = stream
        state.send_headers(stream, [(":status", "200"), ("content-length", str(self.SIZE))])
        self.more(state)

    def more(self, state: h2.connection.H2Connection) -> None:
        while self._stream and self._left:
            size = min(state.local_flow_control_window(self._stream), state.max_outbound_frame_size, self._left)
            if size <= 0:
                return
            self._left -= size
            state.send_data(self._stream, b"x" * size, end_stream=not self._left)
            self.socket.sendall(state.data_to_send())
            self.sent += size


@NAMES
def test_responses_are_streamed_in_constant_memory_and_hold_the_server_back(
    name: str, mesh: Any, raw_server: Any
) -> None:
    server = Big()
    mesh.serve("checkout", {"c": [raw_server(server.handle).address]}, timeout_s=0.0, http2=True)
    with opened(name, mesh) as driver, driver.client(timeout=20).stream("GET", URL) as streamed:
        time.sleep(0.3)
        assert server.sent < 16 * MIB, "nobody reads: buffers and windows are full"
        tracemalloc.start()
        try:
            assert Big.SIZE == streamed.count("raw")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert server.sent == Big.SIZE
    assert peak < 8 * MIB  # the server's share included, which is in this process


@NAMES
def test_requests_are_streamed_in_constant_memory_and_held_back_by_the_server(
    name: str, mesh: Any, raw_server: Any
) -> None:
    """1. A server that opens no window gets no more than the first one. 2. One that does gets everything."""
    made = 0

    def parts() -> Iterator[bytes]:
        nonlocal made
        for _ in range(24 * 16):
            made += 65536
            yield b"x" * 65536

    respond = lambda server, state, stream: server.respond(state, stream)  # noqa: E731
    closed, ready = Server(respond, acknowledges=False), Server(respond)
    mesh.serve("checkout", {"c": [raw_server(closed.handle).address]}, timeout_s=0.0, http2=True)
    with opened(name, mesh) as driver:
        with pytest.raises((httpx.ReadTimeout, httpx.WriteTimeout)):
            driver.client(timeout=1.5).post(URL, content=driver.pieces(parts()))
        assert made <= 4 * 65536 + 65536
        assert closed.received <= 65535
        mesh.serve("checkout", {"c": [raw_server(ready.handle).address]}, timeout_s=0.0, http2=True)
        made = 0
        tracemalloc.start()
        try:
            assert driver.client(timeout=20).post(URL, content=driver.pieces(parts())).text == "ok"
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert made == ready.received == 24 * MIB
    assert peak < 8 * MIB
    assert mesh.held("c") == (0, 0)


@EVERY
def test_a_server_that_has_said_goodbye_meanwhile_gets_no_request(name: str, mesh: Any, raw_server: Any) -> None:
    """GOAWAY over an idle connection: even a request that must not be repeated goes over a new one."""

    def ended(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
        server.respond(state, stream)
        server.socket.sendall(state.data_to_send())
        state.close_connection()
        server.socket.sendall(state.data_to_send())
        left.release()

    left = threading.Semaphore(0)
    server = Server(ended)
    mesh.serve("checkout", {"c": [raw_server(server.handle).address]}, timeout_s=0.0, http2=True)
    with opened(name, mesh) as driver:
        client = driver.client(timeout=30)
        for _ in range(4):
            assert client.post(URL).text == "ok"
            assert left.acquire(timeout=30)
            time.sleep(0.03)
    assert (4, 4) == (server.connections, server.count)


@EVERY
@pytest.mark.parametrize("pause_s", [0.0, 0.02])
def test_trailers_come_with_the_end_of_the_body(name: str, pause_s: float, mesh: Any, raw_server: Any) -> None:
    """Together with everything else, or later."""

    def ended(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
        state.send_headers(stream, [(":status", "200")])
        state.send_data(stream, b"ok")
        if pause_s:
            server.socket.sendall(state.data_to_send())
            time.sleep(pause_s)
        state.send_headers(stream, [("x-checksum", "1234"), ("x-more", str(server.count))], end_stream=True)

    mesh.serve("checkout", {"c": [raw_server(Server(ended).handle).address]}, timeout_s=0.0, http2=True)
    with opened(name, mesh) as driver:
        client = driver.client(timeout=30)
        for number in (b"1", b"2"):
            response = client.get(URL)
            assert [(b"x-checksum", b"1234"), (b"x-more", number)] == response.extensions["trailers"]
            assert response.text == "ok"


@EVERY
def test_warm_up_opens_connections_that_requests_then_use(
    name: str, mesh: Any, raw_server: Any, dead_address: str
) -> None:
    server = Server(Server.respond)
    mesh.serve("checkout", {"c": [raw_server(server.handle).address, dead_address]}, http2=True)
    with opened(name, mesh) as driver:
        client = driver.client(timeout=30)
        transport = client.inner._transport
        assert driver.call(lambda: transport.warm_up(URL)) == 1
        assert driver.call(lambda: transport.warm_up(URL)) == 0, "it is there"
        mesh.serve("checkout", {"c": [raw_server(server.handle).address]}, http2=True)
        assert driver.call(lambda: transport.warm_up(URL, connections=2)) == 2
        for _ in range(4):
            assert client.get(URL).http_version == "HTTP/2"
        few = driver.client(timeout=5, limits=httpx.Limits(max_connections=1)).inner._transport
        assert driver.call(lambda: few.warm_up(URL, connections=3)) == 1
        end = time.monotonic() + 10
        while server.connections < 4 and time.monotonic() < end:  # its threads begin when they like
            time.sleep(0.01)
    assert (4, 4) == (server.connections, server.count)


@EVERY
def test_connections_that_were_opened_ahead_age(
    name: str, mesh: Any, raw_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (http2_sync, http2_async):
        monkeypatch.setattr(module, "keepalive_s", lambda key, limits: 0.05)
    server = Server(Server.respond)
    mesh.serve("checkout", {"c": [raw_server(server.handle).address]}, http2=True)
    with opened(name, mesh) as driver:
        client = driver.client(timeout=30)
        transport = client.inner._transport
        assert driver.call(lambda: transport.warm_up(URL)) == 1
        end = time.monotonic() + 30
        while not server.connections and time.monotonic() < end:  # its threads begin when they like
            time.sleep(0.01)
        time.sleep(0.1)
        assert client.post(URL).text == "ok"
    assert server.connections == 2


@NAMES
def test_nothing_is_left_behind(name: str, mesh: Any, raw_server: Any) -> None:
    """Sockets, threads and memory after many calls that end in every way."""

    def refuse(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
        state.reset_stream(stream, 7)

    def leave(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
        server.respond(state, stream)
        state.close_connection()

    def trailers(server: Server, state: h2.connection.H2Connection, stream: int) -> None:
        state.send_headers(stream, [(":status", "200")])
        state.send_data(stream, b"ok")
        state.send_headers(stream, [("x-a", "b")], end_stream=True)

    ways = [Server.respond, trailers, short, Server.respond, refuse, trailers, leave, no_status, Server.respond]
    turn = itertools.cycle(ways)
    server = Server(lambda server, state, stream: next(turn)(server, state, stream))
    mesh.serve("checkout", {"c": [raw_server(server.handle).address]}, timeout_s=0.0, http2=True)
    gc.collect()
    with opened(name, mesh):
        pass  # what a loop keeps for the process
    before, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    with opened(name, mesh) as driver:
        client = driver.client(timeout=30)

        def calls(count: int) -> None:
            for _ in range(count):
                with suppress(httpx.TransportError):
                    client.post(URL, content=b"x" * 100)

        calls(36)
        mesh.events.clear()
        gc.collect()
        tracemalloc.start()
        try:
            calls(90)
            mesh.events.clear()
            gc.collect()
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert mesh.held("c") == (0, 0)
        client.close()
    assert kept < 500_000, "bytes kept after 90 calls"
    end = time.monotonic() + 10
    while len(os.listdir("/proc/self/fd")) > before or threading.active_count() > threads:
        assert time.monotonic() < end, (before, os.listdir("/proc/self/fd"), threading.enumerate())
        gc.collect()
        time.sleep(0.02)
