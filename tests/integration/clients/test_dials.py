"""Endpoints with several addresses: the first one that answers is used, by every client."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from httpx_drivers import DRIVERS, opened

from meshlib.clients import network_async
from meshlib.model.endpoint import Endpoint
from meshlib.runtime import eyeballs
from meshlib.runtime.eyeballs import HAPPY_EYEBALLS_S

MESHED = [name for name in DRIVERS if not name.startswith("plain")]


@pytest.fixture(params=MESHED)
def driver(request: pytest.FixtureRequest, mesh: Any) -> Iterator[Any]:
    with opened(request.param, mesh) as made:
        yield made


def serve(mesh: Any, *addresses: str, **options: Any) -> None:
    mesh.serve("checkout", {"c": [Endpoint(addresses[0], dials=addresses if len(addresses) > 1 else ())]}, **options)


def test_an_address_that_refuses_is_passed_over_at_once(
    driver: Any, mesh: Any, http_server: Any, dead_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (eyeballs, network_async):
        monkeypatch.setattr(module, "HAPPY_EYEBALLS_S", 60.0)
    server = http_server()
    serve(mesh, dead_address, server.address)
    client = driver.client(timeout=20)
    assert 200 == client.get("http://checkout/").status_code
    assert 200 == client.get("http://checkout/").status_code
    assert len(server.connections) == 1
    assert mesh.held("c") == (0, 0)
    state = mesh.cluster("c").states[dead_address]
    assert state.unreachable is None, "the endpoint could be reached"


def test_an_address_that_does_not_answer_is_waited_for_a_quarter_of_a_second(
    driver: Any, mesh: Any, http_server: Any, black_hole: str
) -> None:
    server = http_server()
    serve(mesh, black_hole, server.address)
    began = time.monotonic()
    assert 200 == driver.client(timeout=20).get("http://checkout/").status_code
    assert HAPPY_EYEBALLS_S * 0.9 <= time.monotonic() - began < 15.0


def test_both_families_may_be_mixed(driver: Any, mesh: Any, http_server: Any, dead_address: str) -> None:
    server = http_server()
    six = f"[::1]:{dead_address.rpartition(':')[2]}"  # where there is no IPv6, it fails just as well
    serve(mesh, six, server.address)
    assert 200 == driver.client().get("http://checkout/").status_code


def test_when_none_answers_the_endpoint_has_failed_once(driver: Any, mesh: Any, dead_address: str) -> None:
    serve(mesh, dead_address, dead_address.replace("127.0.0.1", "127.0.0.2"))
    with pytest.raises(httpx.ConnectError) as caught:
        driver.client().get("http://checkout/")
    record = caught.value.mesh  # type: ignore[attr-defined]  # where the mesh puts it
    assert ((dead_address,), 1, "UF") == (record.endpoints, record.attempts, record.flag)
    assert mesh.held("c") == (0, 0)


def test_the_time_to_connect_is_for_all_addresses_together(driver: Any, mesh: Any, black_hole: str) -> None:
    serve(mesh, black_hole, black_hole, connect_timeout_s=0.4)
    began = time.monotonic()
    with pytest.raises(httpx.ConnectTimeout):
        driver.client(timeout=20).get("http://checkout/")
    assert 0.3 < time.monotonic() - began < 15.0


def test_a_changed_list_is_another_pool(driver: Any, mesh: Any, http_server: Any, dead_address: str) -> None:
    one, two = http_server(body=b"one"), http_server(body=b"two")
    client = driver.client()
    for server in (one, two):
        serve(mesh, dead_address, server.address)
        assert server is (one if b"one" == client.get("http://checkout/").content else two)


def test_nothing_is_left_of_the_attempts_that_lost(
    driver: Any, mesh: Any, raw_server: Any, black_hole: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sockets are counted: what is not the connection in use has been closed."""
    made: list[socket.socket] = []

    def handle(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        connection.recv(1)

    class Counted(socket.socket):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    server = raw_server(handle)
    serve(mesh, black_hole, server.address)
    client = driver.client(timeout=20)
    hole = int(black_hole.rpartition(":")[2])
    monkeypatch.setattr(socket, "socket", Counted)
    assert 200 == client.get("http://checkout/").status_code
    monkeypatch.undo()
    for one in made:
        if one.fileno() >= 0 and one.family == socket.AF_INET:
            try:
                assert one.getpeername()[1] != hole
            except OSError:
                pytest.fail("a socket that is connected to nobody was left open")
