"""What goes through the relay arrives whole, whoever is slow and whoever closes first."""

import hashlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustme

from meshlib.runtime.relay import TlsRelay
from meshlib.runtime.relay_link import BUFFER_BYTES, LINGER_S

DATA = os.urandom(1 << 20)
Serve = Callable[[ssl.SSLSocket], None]


class Peer:
    """A TLS server of one connection, which `serve` has."""

    def __init__(self, serve: Serve) -> None:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(context)
        context.set_alpn_protocols(["h2"])
        self._context = context
        self.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(self.client)
        self.client.set_alpn_protocols(["h2"])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._serve = serve
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        accepted, _ = self._listener.accept()
        self._listener.close()
        accepted.settimeout(20)
        with self._context.wrap_socket(accepted, server_side=True) as connection:
            self._serve(connection)


@pytest.fixture
def relay() -> Iterator[TlsRelay]:
    made = TlsRelay()
    yield made
    made.close()
    assert {"routes": 0, "connections": 0} == made.statistics()


def connected(relay: TlsRelay, peer: Peer) -> socket.socket:
    route = relay.open(peer.address, peer.client, server_name="localhost")
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(20)
    made.connect(route.path)
    return made


def received(connection: Any, *, pause_s: float = 0.0) -> bytes:
    """Read to the end, slowly if asked for."""
    found = bytearray()
    while part := connection.recv(65536):
        found += part
        if pause_s:
            time.sleep(pause_s)
    return bytes(found)


def wait_for_end(relay: TlsRelay) -> None:
    give_up = time.monotonic() + 40
    while relay.statistics()["connections"]:
        assert time.monotonic() < give_up
        time.sleep(0.005)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_both_ways_at_once_with_slow_readers(relay: TlsRelay) -> None:
    got: list[bytes] = []

    def serve(connection: ssl.SSLSocket) -> None:
        sender = threading.Thread(target=connection.sendall, args=(DATA * 4,))
        sender.start()
        found = bytearray()
        while len(found) < 4 * len(DATA):
            found += connection.recv(65536)
            time.sleep(0.001)
        got.append(bytes(found))
        sender.join()

    peer = Peer(serve)
    with connected(relay, peer) as client:
        sender = threading.Thread(target=client.sendall, args=(DATA * 4,))
        sender.start()
        found = bytearray()
        while len(found) < 4 * len(DATA):
            found += client.recv(65536)
            time.sleep(0.001)
            for link in tuple(relay._links):
                assert max(len(link._to_far), len(link._to_near)) <= BUFFER_BYTES
        sender.join()
        peer.thread.join()
        assert digest(DATA * 4) == digest(bytes(found)) == digest(got[0])


def test_what_the_client_sent_before_it_closed_arrives(relay: TlsRelay) -> None:
    got: list[bytes] = []

    def serve(connection: ssl.SSLSocket) -> None:
        time.sleep(0.1)
        got.append(received(connection, pause_s=0.001))

    peer = Peer(serve)
    with connected(relay, peer) as client:
        client.sendall(DATA * 2)
    peer.thread.join()
    assert digest(DATA * 2) == digest(got[0])


def test_what_the_peer_sent_before_it_closed_arrives(relay: TlsRelay) -> None:
    def serve(connection: ssl.SSLSocket) -> None:
        connection.sendall(DATA * 2)
        connection.unwrap()

    peer = Peer(serve)
    with connected(relay, peer) as client:
        assert digest(DATA * 2) == digest(received(client, pause_s=0.001))
    peer.thread.join()
    wait_for_end(relay)


@pytest.mark.parametrize("closes", ["client", "peer"])
def test_who_does_not_notice_the_end_holds_nothing(relay: TlsRelay, closes: str) -> None:
    over = threading.Event()

    def serve(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"x")
        if closes == "client":
            over.wait(20)

    peer = Peer(serve)
    client = connected(relay, peer)
    assert b"x" == client.recv(1)
    began_at = time.monotonic()
    if closes == "client":
        client.close()
    wait_for_end(relay)
    assert time.monotonic() - began_at < LINGER_S + 10
    over.set()
    client.close()
    peer.thread.join()
