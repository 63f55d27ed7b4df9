"""A network that swallows everything without a word: keepalive ends the stream, and the mesh goes on elsewhere."""

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from peers.endpoints import ports

from meshlib import Mesh
from meshlib.runtime import credentials
from meshlib.xds.resources import EDS

KEEPALIVE_MS, ANSWER_MS = 400, 4000


class Wire:
    """A TCP relay in front of a server. Once it swallows, old connections stay open and dead; new ones work."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self._dead: set[int] = set()
        self._sockets: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def swallow(self) -> None:
        self._dead.update(range(1, self.connections + 1))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(30)  # before its number is given to another socket, on which it would accept
        self._listener.close()
        for end in self._sockets:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            self.connections += 1
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(self.connections, source, sink), daemon=True).start()

    def _copy(self, number: int, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65_536):
                if number not in self._dead:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.fixture
def wire(ads: Any) -> Iterator[Wire]:
    result = Wire(ads.port)
    yield result
    result.close()


def test_a_black_hole_is_noticed_though_the_stream_was_quiet_for_long(
    ads: Any, wire: Wire, tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keepalive of 0.4 s instead of five minutes, whose answer may take 4 s instead of 20: a busy machine is no black hole.
    More keepalives pass than gRPC sends by default without data between them."""
    times = {"grpc.keepalive_time_ms": KEEPALIVE_MS}
    times |= dict.fromkeys(("grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"), ANSWER_MS)
    quick = tuple((name, times.get(name, value)) for name, value in credentials._OPTIONS)
    monkeypatch.setattr(credentials, "_OPTIONS", quick)

    with Mesh.connect(f"127.0.0.1:{wire.port}", node_id="n", state_dir="") as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        time.sleep(5 * KEEPALIVE_MS / 1000)
        assert wire.connections == 1
        wire.swallow()
        ads.put(EDS, tools.load_assignment("checkout", 2))
        start = time.monotonic()
        while ports(mesh) != [2]:
            assert ports(mesh) == [1]
            assert time.monotonic() - start < 50.0, mesh.status().connection_text
            time.sleep(0.02)
        assert wire.connections == 2
