"""How connections begin and end: opened ahead, given up before the server does it, let go with their endpoint."""

import socket
import struct
import threading
import time
from typing import Any

import httpx
import pytest
from httpx_drivers import DRIVERS, opened

from meshlib.clients import network, network_async
from meshlib.clients.network import idle_limit_s
from meshlib.model.cluster import CircuitBreakers

MESHED = [name for name in DRIVERS if not name.startswith("plain")]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def read_request(connection: socket.socket) -> bytes:
    """Return a request without a body, or what there was of it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return data
        data += piece
    return data


@pytest.fixture(params=MESHED)
def driver(request: pytest.FixtureRequest, mesh: Any) -> Any:
    with opened(request.param, mesh) as made:
        yield made


def test_warm_up_opens_connections_that_requests_then_use(
    driver: Any, mesh: Any, http_server: Any, dead_address: str
) -> None:
    servers = [http_server(), http_server()]
    mesh.serve("checkout", {"c": [*(server.address for server in servers), dead_address]})
    client = driver.client()
    transport = client.inner._transport
    assert driver.call(lambda: transport.warm_up("http://checkout/", connections=2)) == 4
    assert driver.call(lambda: transport.warm_up("http://checkout/", connections=2)) == 0, "they are there"
    assert mesh.cluster("c").breaker.connections == 4
    mesh.serve("checkout", {"c": [server.address for server in servers]})
    for _ in range(6):
        assert client.get("http://checkout/").status_code == 200
    assert sum(len(server.connections) for server in servers) == 4
    assert driver.call(lambda: transport.warm_up("http://checkout/", connections=1)) == 0


def test_warm_up_keeps_to_limits(driver: Any, mesh: Any, http_server: Any) -> None:
    servers = [http_server(), http_server()]
    limits = CircuitBreakers(max_connections=1)
    mesh.serve("checkout", {"c": [server.address for server in servers]}, circuit_breakers=limits)
    client = driver.client()
    transport = client.inner._transport
    assert driver.call(lambda: transport.warm_up("http://checkout/", connections=3)) == 2, (
        "a host's first is always allowed"
    )
    assert mesh.cluster("c").breaker.connections == 2
    client.close()
    assert mesh.cluster("c").breaker.connections == 0
    client = driver.client(limits=httpx.Limits(max_connections=2, max_keepalive_connections=1))
    mesh.serve("checkout", {"c": [servers[0].address]})
    transport = client.inner._transport
    assert driver.call(lambda: transport.warm_up("http://checkout/", connections=3)) == 1
    assert client.get("http://checkout/").status_code == 200


def test_warm_up_of_a_stranger_is_an_error(driver: Any, mesh: Any) -> None:
    transport = driver.client().inner._transport
    with pytest.raises(httpx.ConnectError):
        driver.call(lambda: transport.warm_up("http://elsewhere/"))


def test_time_that_the_server_announces_is_kept_to(driver: Any, mesh: Any, raw_server: Any, monkeypatch: Any) -> None:
    connections: list[int] = []

    def handle(connection: socket.socket, number: int) -> None:
        connections.append(number)
        while read_request(connection):
            connection.sendall(OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=2, max=9\r\n\r\n", 1))

    mesh.serve("checkout", {"c": [raw_server(handle).address]})
    client = driver.client()
    for _ in range(3):
        client.get("http://checkout/")
    assert len(connections) == 1
    time.sleep(1.05)  # more than half of that time: the server might close it at the same moment
    client.get("http://checkout/")
    assert len(connections) == 2


@pytest.mark.parametrize(
    ("kept_s", "announced_s", "limit_s"),
    [
        (4.0, None, 4.0),
        (None, None, None),
        (4.0, 65.0, 4.0),
        (4.0, 5.0, 4.0),
        (10.0, 5.0, 4.0),
        (None, 5.0, 4.0),
        (4.0, 1.0, 0.5),
    ],
)
def test_connections_are_given_up_before_the_server_does_it(kept_s: Any, announced_s: Any, limit_s: Any) -> None:
    assert limit_s == idle_limit_s(kept_s, announced_s)


def test_request_that_a_dead_connection_took_nothing_of_is_sent_again(
    driver: Any, mesh: Any, raw_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A POST too: nobody can have processed it. The connection's end is overlooked, as if it came a moment later."""
    for kind in (network.SocketStream, network_async.AsyncioStream, network_async.TrioStream):
        monkeypatch.setattr(kind, "is_readable", False)
    seen: list[bytes] = []
    closed = threading.Event()

    def handle(connection: socket.socket, number: int) -> None:
        seen.append(read_request(connection))
        connection.sendall(OK)
        if not number:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST
            connection.close()
            closed.set()
        else:
            read_request(connection)

    mesh.serve("checkout", {"c": [raw_server(handle).address]})
    client = driver.client()
    client.get("http://checkout/")
    assert closed.wait(30)
    time.sleep(0.05)
    if driver.name == "trio":  # its streams do not say whether anything was taken: only safe methods go again
        with pytest.raises(httpx.TransportError):
            client.post("http://checkout/", content=b"order")
    else:
        response = client.post("http://checkout/", content=b"order")
        assert (response.status_code, response.extensions["mesh"].attempts) == (200, 1)
        assert [request.split()[0] for request in seen] == [b"GET", b"POST"]
    assert client.get("http://checkout/").status_code == 200


def test_post_that_may_have_been_processed_is_not_sent_again(driver: Any, mesh: Any, raw_server: Any) -> None:
    seen: list[bytes] = []

    def handle(connection: socket.socket, number: int) -> None:
        while request := read_request(connection):
            seen.append(request)
            if request.startswith(b"POST"):
                return  # it was read, and perhaps carried out
            connection.sendall(OK)

    mesh.serve("checkout", {"c": [raw_server(handle).address]})
    client = driver.client()
    client.get("http://checkout/")
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        client.post("http://checkout/")
    assert [request.split()[0] for request in seen] == [b"GET", b"POST"]


def test_connections_of_an_endpoint_that_is_gone_are_let_go(
    driver: Any, mesh: Any, http_server: Any, raw_server: Any
) -> None:
    """Idle ones at once, those in use when their response is over; a call on its way is not disturbed."""
    ended: list[int] = []

    def handle(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(OK)
        if read_request(connection):
            connection.sendall(OK[:-2])
            time.sleep(1.2)  # the sweep comes once a second
            connection.sendall(b"ok")
        read_request(connection)
        ended.append(number)

    old, new = raw_server(handle), http_server()
    mesh.serve("checkout", {"c": [old.address]})
    client = driver.client()
    client.get("http://checkout/")
    with client.stream("GET", "http://checkout/") as streamed:
        mesh.serve("checkout", {"c": [new.address]})
        client.get("http://checkout/")
        time.sleep(1.05)
        client.get("http://checkout/")
        assert not ended
        assert streamed.read() == b"ok"
    deadline = time.monotonic() + 30
    while not ended and time.monotonic() < deadline:
        client.get("http://checkout/")
        time.sleep(0.05)
    assert ended == [0], "long before its time to idle was over"
    addresses = {lease.key.address for lease in client.inner._transport._pools._leases}
    assert addresses == {new.address}


def test_names_with_a_dead_address_are_connected_to(driver: Any, mesh: Any, http_server: Any, monkeypatch: Any) -> None:
    server = http_server()
    host, _, port = server.address.rpartition(":")
    real = socket.getaddrinfo

    def resolve(name: Any, *arguments: Any, **options: Any) -> Any:
        if name in ("several.test", b"several.test"):
            if options.get("flags", 0) & socket.AI_NUMERICHOST:
                raise socket.gaierror(socket.EAI_NONAME, "not a number")
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, int(port))) for one in ("127.0.0.9", host)]
        return real(name, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    mesh.serve("checkout", {"c": [f"several.test:{port}"]})
    if driver.name in ("trio", "uvloop"):
        pytest.skip("it resolves names by itself: this one is not known there")
    assert driver.client().get("http://checkout/").status_code == 200


def test_unix_sockets(driver: Any, mesh: Any, tmp_path: Any) -> None:
    path = str(tmp_path / "s")

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            while read_request(connection):
                connection.sendall(OK)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        mesh.serve("checkout", {"c": [f"unix:{path}"]})
        client = driver.client()
        for _ in range(3):
            assert client.get("http://checkout/").text == "ok"
        client.close()
        thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("limit", [1, 2])
def test_connections_carry_no_more_requests_than_allowed(driver: Any, mesh: Any, http_server: Any, limit: int) -> None:
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]}, max_requests_per_connection=limit)
    client = driver.client()
    for _ in range(4):
        client.get("http://checkout/")
    assert len(server.connections) == 4 // limit
