"""FastAPI and Django (ASGI) on uvicorn."""

import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

GATEWAY = "spiffe://cluster.local/ns/default/sa/gateway"


@pytest.fixture(scope="module")
def guarded(shared_world: Any) -> str:
    """Address of a service with STRICT mTLS and rules."""
    shared_world.start("web", "mesh", "guarded")
    shared_world.start("web", "mesh", "by-address", namespace="plain")
    (address,) = shared_world.wait_serving("guarded")
    return str(address)


def get(address: str, context: ssl.SSLContext, target: str = "/users/7", method: str = "GET") -> tuple[int, bytes]:
    """Send one request over TLS with the target exactly as given."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as plain, context.wrap_socket(plain) as connection:
        connection.sendall(
            f"{method} {target} HTTP/1.1\r\nhost: guarded\r\nconnection: close\r\n\r\n".encode("latin-1")
        )
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    if not answer:
        raise ConnectionResetError("closed without an answer")
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


def test_the_right_identity_is_let_in_and_known(shared_world: Any, guarded: str) -> None:
    with shared_world.client("gateway", "guarded") as client:
        answer = client.get("http://guarded/users/7", timeout=10)
        assert (200, GATEWAY) == (answer.status_code, answer.json()["principal"])
        assert b"in context\n" * 3 == client.get("http://guarded/stream").content
        assert 403 == client.delete("http://guarded/users/7").status_code
        assert 403 == client.get("http://guarded/admin").status_code
        assert (200, b"") == ((head := client.head("http://guarded/users/7")).status_code, head.content)
        assert (403, b"") == ((head := client.head("http://guarded/admin")).status_code, head.content)


def test_another_identity_of_the_mesh_is_refused_by_the_rules(shared_world: Any, guarded: str) -> None:
    assert (403, b"RBAC: access denied") == get(guarded, shared_world.server.client_context("stranger"))


def test_callers_without_certificate_or_from_elsewhere_do_not_get_through_the_handshake(
    shared_world: Any, guarded: str
) -> None:
    server = shared_world.server
    for context in (server.client_context(None), server.client_context("gateway", "elsewhere.example")):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            get(guarded, context)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{guarded}/users/7", trust_env=False)


@pytest.mark.parametrize(
    "target",
    [
        "/admin",
        "/%61dmin",
        "//admin",
        "/users/../admin",
        "/users/%2e%2e/admin",
        "/users%2F..%2Fadmin",
        "/users/..%5cadmin",
        "/./admin",
        "/admin;x=1",
        "/admin?x",
        "/admin%3Fx",
    ],
)
def test_no_way_of_writing_a_path_passes_a_rule_about_it(shared_world: Any, guarded: str, target: str) -> None:
    assert (403, b"RBAC: access denied") == get(guarded, shared_world.server.client_context("gateway"), target)


def test_a_target_that_is_no_path_is_refused(shared_world: Any, guarded: str) -> None:
    context = shared_world.server.client_context("gateway")
    assert 400 == get(guarded, context, "http://elsewhere/admin")[0]


def test_forwarded_headers_do_not_change_who_calls(shared_world: Any, guarded: str) -> None:
    """uvicorn believes X-Forwarded-For from 127.0.0.1; rules about addresses are about the connection."""
    (address,) = shared_world.wait_serving("by-address")
    headers = {"x-forwarded-for": "203.0.113.7", "x-forwarded-host": "10.0.0.9:80", "host": "10.0.0.9:80"}
    answer = httpx.get(f"http://{address}/users/7", headers=headers, trust_env=False)
    assert 200 == answer.status_code
    assert "203.0.113.7" == answer.json()["client"][0]  # for the application nothing changes


def test_plain_uvicorn_needs_three_lines(shared_world: Any, port: int) -> None:
    shared_world.start("web", "bare", "bare", namespace="plain", environment={"PORT": str(port)})
    (address,) = shared_world.wait_serving("bare")
    with shared_world.client("gateway", "bare.plain", namespace="plain") as client:
        answer = client.get("http://bare.plain/users/7", timeout=10)
    assert (200, "") == (answer.status_code, answer.json()["principal"])
    assert 200 == httpx.get(f"http://{address}/users/7", trust_env=False).status_code


def test_django_under_asgi(shared_world: Any) -> None:
    shared_world.start("site_django", "asgi", "site-asgi")
    shared_world.wait_serving("site-asgi")
    with shared_world.client("gateway", "site-asgi") as client:
        answer = client.get("http://site-asgi/users/7", timeout=10)
        assert (200, GATEWAY, "/users/7") == (answer.status_code, answer.json()["principal"], answer.json()["path"])
        assert b"in context\n" * 3 == client.get("http://site-asgi/stream").content
        assert 500 == client.get("http://site-asgi/boom").status_code


def test_certificates_rotate_under_load(shared_world: Any, guarded: str, load: Any) -> None:
    """On kept connections and on new ones; ten seconds are a certificate's whole life."""
    server = shared_world.server

    def serial() -> bytes:
        host, _, port = guarded.rpartition(":")
        context = server.client_context("gateway")
        with socket.create_connection((host, int(port)), 10) as plain, context.wrap_socket(plain) as connection:
            return connection.getpeercert(binary_form=True) or b""

    with shared_world.client("gateway", "guarded") as client:

        def call() -> int:
            answer = client.get("http://guarded/users/7")
            answer.raise_for_status()
            return answer.status_code

        first = serial()
        with load(call, 3) as calls:
            deadline = time.monotonic() + 15
            while serial() == first:
                assert time.monotonic() < deadline, "the certificate was not renewed"
                time.sleep(0.2)
            before = len(calls.answers)
            while len(calls.answers) < before + 50 and not calls.failures:
                time.sleep(0.02)
    assert [] == calls.failures


@pytest.fixture
def client_call(world: Any) -> Iterator[Callable[[str], Callable[[], int]]]:
    clients: list[httpx.Client] = []

    def make(url: str) -> Callable[[], int]:
        client = world.client("gateway", url.split("/")[2])
        clients.append(client)

        def call() -> int:
            answer = client.get(url)
            assert 200 == answer.status_code, (answer.text, answer.extensions.get("mesh"))
            return int(answer.json()["pid"])

        return call

    yield make
    for client in clients:
        client.close()


def test_sigterm_under_load_fails_no_request_and_sigkill_ends_the_lease(
    world: Any, client_call: Any, load: Any, wait_for: Any
) -> None:
    """Of three instances one is asked to stop, then one is killed."""
    processes = [world.start("web", "mesh", "drained") for _ in range(3)]
    world.wait_serving("drained", 3)
    call, slow = client_call("http://drained/users/7"), client_call("http://drained/slow")
    with load(call) as calls, load(slow, 4) as slow_calls:
        wait_for(lambda: {process.pid for process in processes} <= set(calls.answers), "all are called")
        processes[0].send(signal.SIGTERM)
        assert 0 == processes[0].wait()
        assert "closed" in processes[0].output
    assert [] == calls.failures + slow_calls.failures
    assert 2 == len(world.server.instances("drained"))
    processes[1].send(signal.SIGKILL)
    processes[1].wait()
    wait_for(lambda: len(world.server.instances("drained")) == 1, "the lease has ended")
    assert processes[2].pid == call()


def test_ipv6(shared_world: Any) -> None:
    shared_world.start("web", "mesh", "six", host="::1")
    shared_world.start("greeter", "sync", "six-grpc", address="[::1]:0")
    shared_world.wait_serving("six")
    shared_world.wait_serving("six-grpc")
    mesh = shared_world.mesh("gateway", "six", "six-grpc")
    with httpx.Client(transport=mesh.httpx_transport(), timeout=10) as client:
        assert GATEWAY == client.get("http://six/users/7").json()["principal"]
    channel = mesh.channel("xds:///six-grpc")
    assert GATEWAY.encode() == channel.unary_unary("/test.Greeter/UnaryUnary")(b"", timeout=10)
    channel.close()
