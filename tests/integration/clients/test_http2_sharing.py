"""Requests that share an HTTP/2 connection do each other no harm: in threads, given up, or late."""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import h2.config
import h2.connection
import h2.events
import h2.settings
import httpx
import pytest
from httpx_drivers import opened

URL = "http://checkout"
EVERY = pytest.mark.parametrize("name", ["sync", "asyncio", "uvloop", "trio"])
ASYNC = pytest.mark.parametrize("name", ["asyncio", "uvloop", "trio"])
LIMIT = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS


class Echo:
    """Answers with the path and how many bytes came; `/hang` never, `/late` after a while, `/big` with a megabyte.

    Attributes:
        resets: Streams that clients gave up.
        hanging: Streams that wait for ever, or did.
        late: Streams that are answered after a while, or were.
        uploads: Begun.
        most: Open at once.
    """

    def __init__(self, limit: int | None = 100) -> None:
        self.limit = limit
        self.resets = 0
        self.hanging = 0
        self.late = 0
        self.uploads = 0
        self.most = 0
        self.connections = 0

    def handle(self, connection: socket.socket, number: int) -> None:
        self.connections += 1
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        values = None if self.limit is None else {LIMIT: self.limit}
        state.local_settings = h2.settings.Settings(client=False, initial_values=values)
        state.initiate_connection()
        connection.sendall(state.data_to_send())
        paths: dict[int, str] = {}
        sizes: dict[int, int] = {}
        left: dict[int, bytes] = {}
        late: list[tuple[float, int]] = []
        wait_s = 0.02
        while True:
            connection.settimeout(wait_s)
            try:
                data = connection.recv(65536)
            except TimeoutError:
                data = None
            if data == b"":
                return
            ended: list[int] = []
            for event in state.receive_data(data) if data else ():
                if isinstance(event, h2.events.RequestReceived):
                    fields = {bytes(name): bytes(value) for name, value in event.headers}
                    paths[event.stream_id] = fields[b":path"].decode()
                    sizes[event.stream_id] = 0
                    self.uploads += paths[event.stream_id] == "/up"
                    self.most = max(self.most, len(paths))
                elif isinstance(event, h2.events.DataReceived):
                    sizes[event.stream_id] += len(event.data)
                    state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.StreamReset):
                    self.resets += 1
                    paths.pop(event.stream_id, None)
                    left.pop(event.stream_id, None)
                elif isinstance(event, h2.events.StreamEnded):
                    ended.append(event.stream_id)
            for stream in ended:
                path = paths.get(stream)  # None: given up in the same breath
                if path == "/hang":
                    self.hanging += 1
                elif path == "/late":
                    self.late += 1
                    late.append((time.monotonic() + 0.6, stream))
                elif path is not None:
                    body = b"x" * 1_000_000 if path == "/big" else f"{path} {sizes[stream]}".encode()
                    state.send_headers(stream, [(":status", "200")])
                    left[stream] = body
            for at, stream in tuple(late):
                if time.monotonic() >= at:
                    late.remove((at, stream))
                    if stream in paths:
                        state.send_headers(stream, [(":status", "200")])
                        left[stream] = b"late"
            for stream, body in tuple(left.items()):
                room = min(state.local_flow_control_window(stream), state.max_outbound_frame_size, len(body))
                if room or not body:
                    state.send_data(stream, body[:room], end_stream=room == len(body))
                    left[stream] = body[room:]
                    if room == len(body):
                        del left[stream]
                        del paths[stream]
            connection.settimeout(20)
            connection.sendall(state.data_to_send())
            wait_s = 0.001 if left else 0.02


@contextmanager
def serving(name: str, mesh: Any, raw_server: Any, limit: int | None = 100) -> Iterator[tuple[Any, Any, Echo]]:
    echo = Echo(limit)
    mesh.serve("checkout", {"c": [raw_server(echo.handle).address]}, http2=True)
    with opened(name, mesh) as driver:
        yield driver, driver.client(timeout=20), echo


@pytest.fixture
def hectic() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hectic")
def test_threads_share_a_connection(mesh: Any, raw_server: Any) -> None:
    """Streams begin in their order, headers are unpacked as they were packed, and windows are not overdrawn."""
    failures: list[BaseException] = []

    def work(client: Any, number: int) -> None:
        try:
            for turn in range(6):
                path = f"/{number}-{turn}"
                headers = {f"x-{number}-{turn}": "a" * 50}
                if turn % 3 == 0:
                    assert f"{path} 0" == client.get(URL + path, headers=headers).text
                elif turn % 3 == 1:
                    body = client.driver.pieces([b"y" * 20000] * 10)
                    assert f"{path} 200000" == client.post(URL + path, content=body, headers=headers).text
                else:
                    with client.stream("GET", URL + "/big") as streamed:
                        assert 1_000_000 == streamed.count("bytes")
        except BaseException as error:
            failures.append(error)

    with serving("sync", mesh, raw_server) as (_, client, echo):
        threads = [threading.Thread(target=work, args=(client, number)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(40)
    assert not failures, failures[:3]
    assert echo.connections == 1
    assert mesh.held("c") == (0, 0)


# trio says of the generators of httpx and httpcore that nobody closes them when a request is cancelled.
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
@ASYNC
def test_requests_that_are_cancelled_are_given_up_on_the_server_too(name: str, mesh: Any, raw_server: Any) -> None:
    """More of them than a connection may have open at once; uploads and downloads are left in the middle, too."""
    with serving(name, mesh, raw_server) as (driver, client, echo):

        async def pieces() -> Any:
            while True:
                yield b"y" * 1000
                await anyio.sleep(0.005)

        async def give_up(kind: int) -> None:
            if kind == 0:
                await client.inner.get(URL + "/hang")
            elif kind == 1:
                await client.inner.post(URL + "/up", content=pieces())
            else:
                async with client.inner.stream("GET", URL + "/big") as response:
                    async for _ in response.aiter_bytes():
                        break

        async def rounds() -> None:
            for number in range(1, 6):
                async with anyio.create_task_group() as tasks:
                    for each in range(30):
                        tasks.start_soon(give_up, each % 3)
                    while echo.hanging < 10 * number or echo.uploads < 10 * number:
                        await anyio.sleep(0.01)
                    tasks.cancel_scope.cancel()

        client.get(URL + "/first")  # so that all go over one connection
        driver.call(rounds)
        assert "/then 0" == client.get(URL + "/then").text
        with client.stream("GET", URL + "/big") as streamed:
            assert 1_000_000 == streamed.count("bytes")
        assert (1, True) == (echo.connections, echo.resets >= 50), "of the uploads at least"
    assert mesh.held("c") == (0, 0)


@EVERY
def test_a_request_that_is_late_ends_alone(name: str, mesh: Any, raw_server: Any) -> None:
    """One waits for ever, for at most a moment; others beside it get their answers, over the same connection."""
    answers: list[str] = []
    with serving(name, mesh, raw_server) as (_, client, echo):
        client.get(URL + "/first")
        others = [
            threading.Thread(target=lambda: answers.append(client.get(URL + "/late").text), daemon=True)
            for _ in range(2)
        ]
        for thread in others:
            thread.start()
        while echo.late < 2:
            time.sleep(0.01)
        with pytest.raises(httpx.ReadTimeout):
            client.get(URL + "/hang", timeout=httpx.Timeout(20, read=0.2))
        for thread in others:
            thread.join(20)
        assert ["late", "late"] == answers
        assert echo.connections == 1
        assert "/next 0" == client.get(URL + "/next").text
        assert echo.connections == 2, "a connection on which somebody waited in vain takes nothing new"


@EVERY
def test_each_has_its_own_time_while_another_reads(name: str, mesh: Any, raw_server: Any) -> None:
    with serving(name, mesh, raw_server) as (_, client, echo):
        client.get(URL + "/first")

        def wait_long() -> None:
            with pytest.raises(httpx.ReadTimeout):
                client.get(URL + "/hang", timeout=httpx.Timeout(20, read=2.5))

        reader = threading.Thread(target=wait_long, daemon=True)
        reader.start()
        while not echo.hanging:
            time.sleep(0.01)
        with pytest.raises(httpx.ReadTimeout):
            client.get(URL + "/hang", timeout=httpx.Timeout(20, read=0.2))
        assert reader.is_alive(), "the other one still waits"
        assert echo.connections == 1
        reader.join(20)


@EVERY
def test_a_server_that_names_no_limit_sets_none(name: str, mesh: Any, raw_server: Any) -> None:
    with serving(name, mesh, raw_server, limit=None) as (_, client, echo):
        client.get(URL + "/first")
        threads = [threading.Thread(target=client.get, args=(URL + "/late",), daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert (1, True) == (echo.connections, echo.most > 1)
