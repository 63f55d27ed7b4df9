"""Servers that leave, refuse and die at the wrong moment, spoken to frame by frame."""

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import h2.config
import h2.connection
import h2.events
import pytest

from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_sync import MeshChannel
from meshlib.errors import MeshError
from meshlib.events import AttemptFinished

UNARY, RESPONSES = "/test.Service/Unary", "/test.Service/Responses"
REFUSED, CANCEL, INTERNAL = 7, 8, 2


class Peer:
    """A HTTP/2 server whose connections do, one after the other, what a script says; the last entry goes on.

    Attributes:
        requests: Streams opened, over all connections.
        death: Connections whose script says None end with it.
    """

    def __init__(self, *scripts: "Callable[[Peer, h2.connection.H2Connection, int], bool | None]") -> None:
        self.requests = 0
        self.death = threading.Event()
        self._scripts = scripts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(30)  # before its number is given to another socket, on which it would accept
        self._listener.close()
        for one in self._sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        number = 0
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            script = self._scripts[min(number, len(self._scripts) - 1)]
            number += 1
            self._sockets.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=(connection, script)))
            self._threads[-1].start()

    def _serve(self, sock: socket.socket, script: Any) -> None:
        config = h2.config.H2Configuration(client_side=False)
        h2c = h2.connection.H2Connection(config)
        h2c.initiate_connection()
        with sock:
            try:
                sock.sendall(h2c.data_to_send())
                while data := sock.recv(65536):
                    for event in h2c.receive_data(data):
                        if isinstance(event, h2.events.StreamEnded):
                            self.requests += 1
                            goes_on = script(self, h2c, event.stream_id)
                            sock.sendall(h2c.data_to_send())
                            if goes_on is None:
                                self.death.wait(20)
                            if not goes_on:
                                return
                    sock.sendall(h2c.data_to_send())
            except OSError:
                return


HEADERS = [(":status", "200"), ("content-type", "application/grpc")]


def answer(peer: Peer, h2c: h2.connection.H2Connection, stream: int) -> bool:
    h2c.send_headers(stream, HEADERS)
    h2c.send_data(stream, b"\0\0\0\0\x02ok")
    h2c.send_headers(stream, [("grpc-status", "0")], end_stream=True)
    return True


def begin_and_die(peer: Peer, h2c: h2.connection.H2Connection, stream: int) -> None:
    h2c.send_headers(stream, HEADERS)
    h2c.send_data(stream, b"\0\0\0\0\x02ok")


def die(peer: Peer, h2c: h2.connection.H2Connection, stream: int) -> bool:
    return False


def go_away(peer: Peer, h2c: h2.connection.H2Connection, stream: int) -> bool:
    """The stream was not looked at, says the frame."""
    h2c.close_connection(0, last_stream_id=0)
    return False


def go_away_after(peer: Peer, h2c: h2.connection.H2Connection, stream: int) -> bool:
    """This stream is still answered, and no other taken."""
    answer(peer, h2c, stream)
    h2c.close_connection(0, last_stream_id=stream)
    return False


def reset(code: int) -> Any:
    def script(peer: Peer, h2c: h2.connection.H2Connection, stream: int) -> bool:
        h2c.reset_stream(stream, code)
        return True

    return script


@pytest.fixture
def peer() -> Iterator[Callable[..., Peer]]:
    """Start peers."""
    running: list[Peer] = []

    def start(*scripts: Any) -> Peer:
        running.append(Peer(*scripts))
        return running[-1]

    yield start
    for one in running:
        one.close()


@pytest.fixture
def attempts(mesh: Any) -> list[AttemptFinished]:
    """Attempts that ended."""
    seen: list[AttemptFinished] = []
    plain = mesh.source.emit

    def emit(event: Any) -> None:
        if isinstance(event, AttemptFinished):
            seen.append(event)
        plain(event)

    mesh.source.emit = emit
    return seen


def test_a_server_that_goes_away_before_the_call_is_not_noticed(mesh: Any, peer: Any) -> None:
    """GOAWAY below the stream: core sends it again on another connection, without a retry of the mesh."""
    one = peer(go_away, answer)
    mesh.serve(one.address)
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        assert b"ok" == channel.unary_unary(UNARY)(b"x", timeout=20)
    assert 2 == one.requests


def test_calls_go_on_over_connections_that_end(mesh: Any, peer: Any) -> None:
    one = peer(go_away_after)
    mesh.serve(one.address, retries=2)
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        unary = channel.unary_unary(UNARY)
        assert [b"ok"] * 20 == [unary(b"x", timeout=20) for _ in range(20)]
    assert 0 == mesh.active


@pytest.mark.parametrize(("script", "failure"), [(reset(REFUSED), "refused_stream"), (die, "reset")])
def test_another_endpoint_takes_over(
    mesh: Any, peer: Any, attempts: list[AttemptFinished], script: Any, failure: str
) -> None:
    bad, good = peer(script), peer(answer)
    mesh.serve(bad.address, good.address, retries=4)
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        unary = channel.unary_unary(UNARY)
        for _ in range(20):
            assert b"ok" == unary(b"x", timeout=20)
    failed = {one.failure for one in attempts if one.endpoint.address == bad.address}
    assert failed == {failure}
    assert 0 == mesh.active


async def test_another_endpoint_takes_over_for_aio(mesh: Any, peer: Any) -> None:
    bad, good = peer(reset(REFUSED)), peer(answer)
    mesh.serve(bad.address, good.address, retries=4)
    async with AioMeshChannel(mesh.source, "xds:///checkout") as channel:
        unary = channel.unary_unary(UNARY)
        for _ in range(20):
            assert b"ok" == await unary(b"x", timeout=20)
    assert bad.requests > 0
    assert 0 == mesh.active


def test_a_stream_whose_server_dies_is_an_error_and_not_repeated(mesh: Any, peer: Any) -> None:
    """One message has been handed out: the stream belongs to that server."""
    one = peer(begin_and_die)
    mesh.serve(one.address, retries=4)
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        stream = channel.unary_stream(RESPONSES)(b"x", timeout=20)
        assert b"ok" == next(stream)
        one.death.set()
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
        assert (one.address,) == caught.value.mesh.endpoints
        assert 1 == one.requests
    assert 0 == mesh.active


async def test_an_aio_stream_whose_server_dies_is_an_error_and_not_repeated(mesh: Any, peer: Any) -> None:
    one = peer(begin_and_die)
    mesh.serve(one.address, retries=4)
    async with AioMeshChannel(mesh.source, "xds:///checkout") as channel:
        stream = channel.unary_stream(RESPONSES)(b"x", timeout=20)
        assert b"ok" == await stream.read()
        one.death.set()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL)
    assert (1, 0) == (one.requests, mesh.active)


def test_what_is_reset_otherwise_is_not_repeated(mesh: Any, peer: Any) -> None:
    """RST_STREAM(CANCEL) says nothing of what was done."""
    one = peer(reset(CANCEL))
    mesh.serve(one.address, retries=4)
    with MeshChannel(mesh.source, "xds:///checkout") as channel, pytest.raises((grpc.RpcError, MeshError)) as caught:
        channel.unary_unary(UNARY)(b"x", timeout=20)
    assert grpc.StatusCode.CANCELLED is caught.value.code()
    assert 1 == one.requests
