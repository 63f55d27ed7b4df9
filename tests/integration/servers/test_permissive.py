"""PERMISSIVE: plaintext and mTLS on one port, on every server that announces itself."""

import signal
import socket
import ssl
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import grpc
import httpx
import pytest

GATEWAY = "spiffe://cluster.local/ns/mixed/sa/gateway"
UNARY, SECRET = "/test.Greeter/UnaryUnary", "/test.Greeter/Secret"
KINDS = ("uvicorn", "gunicorn", "grpc", "grpc-aio")


def start(world: Any, kind: str, name: str) -> Any:
    match kind:
        case "uvicorn":
            return world.start("web", "mesh", name, namespace="mixed")
        case "gunicorn":
            return world.gunicorn(name, namespace="mixed")
        case _:
            return world.start("greeter", "sync" if kind == "grpc" else "aio", name, namespace="mixed")


@pytest.fixture(scope="module")
def processes() -> dict[str, Any]:
    """Those of `addresses`."""
    return {}


@pytest.fixture(scope="module")
def addresses(shared_world: Any, processes: dict[str, Any]) -> dict[str, str]:
    """Where each kind of server listens. They start one after the other: at once they would not on a busy machine."""
    found: dict[str, str] = {}
    for kind in KINDS:
        processes[kind] = start(shared_world, kind, kind)
        (found[kind],) = shared_world.wait_serving(kind)
    return found


@pytest.fixture(scope="module")
def gateway(shared_world: Any, addresses: dict[str, str]) -> Any:
    """A mesh with an identity."""
    return shared_world.mesh("gateway", *(f"{kind}.mixed" for kind in KINDS), namespace="mixed")


def http(address: str, path: str, context: ssl.SSLContext | None = None) -> tuple[int, str]:
    scheme = "http" if context is None else "https"
    with httpx.Client(verify=context or True, trust_env=False) as client:
        answer = client.get(f"{scheme}://{address}{path}", timeout=10)
    return answer.status_code, answer.json()["principal"] or "" if answer.status_code == 200 else ""


@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn"])
def test_plaintext_is_anonymous_and_falls_under_the_rules(addresses: dict[str, str], kind: str) -> None:
    assert (200, "") == http(addresses[kind], "/open")
    assert (403, "") == http(addresses[kind], "/users/7")


@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn"])
def test_mutual_tls_on_the_same_port_has_an_identity(
    shared_world: Any, gateway: Any, addresses: dict[str, str], kind: str, wait_for: Any
) -> None:
    with httpx.Client(transport=gateway.httpx_transport(), timeout=10) as client:
        # Clients of the mesh learn from the registration that they may use it.
        wait_for(lambda: client.get(f"http://{kind}.mixed/open").json()["principal"] == GATEWAY, "mTLS is used")
        assert GATEWAY == client.get(f"http://{kind}.mixed/users/7").json()["principal"]
    stranger = shared_world.server.client_context("stranger")
    assert (200, "spiffe://cluster.local/ns/default/sa/stranger") == http(addresses[kind], "/open", stranger)
    assert (403, "") == http(addresses[kind], "/users/7", stranger)


@pytest.mark.parametrize("kind", ["uvicorn", "gunicorn"])
def test_tls_without_a_certificate_of_the_mesh_is_refused(
    shared_world: Any, addresses: dict[str, str], kind: str
) -> None:
    server = shared_world.server
    for context in (server.client_context(None), server.client_context("gateway", "elsewhere.example")):
        try:
            status, _ = http(addresses[kind], "/open", context)
        except httpx.TransportError:
            continue
        assert (403, "gunicorn") == (status, kind)  # which answers over the connection that it has refused


def test_the_scheme_is_that_of_the_connection(shared_world: Any, addresses: dict[str, str], gateway: Any) -> None:
    """gunicorn has one setting for all connections; applications make links and redirects of it."""
    with httpx.Client(transport=gateway.httpx_transport(), timeout=10) as client:
        for kind in ("uvicorn", "gunicorn"):
            assert "http" == httpx.get(f"http://{addresses[kind]}/open", trust_env=False).json()["scheme"]
            assert "https" == client.get(f"http://{kind}.mixed/open").json()["scheme"]


def test_connections_that_say_nothing_do_not_hold_others_up(addresses: dict[str, str]) -> None:
    for kind in ("uvicorn", "grpc"):
        host, _, port = addresses[kind].rpartition(":")
        with ExitStack() as stack:
            silent = [stack.enter_context(socket.create_connection((host, int(port)), 5)) for _ in range(50)]
            silent[0].sendall(b"\x16")  # the beginning of a handshake, and no more
            silent[1].sendall(b"G")
            if kind == "uvicorn":
                assert (200, "") == http(addresses[kind], "/open")
            else:
                assert b"" == plain(addresses[kind], UNARY)


def plain(address: str, method: str) -> bytes:
    with grpc.insecure_channel(address) as channel:
        answer: bytes = channel.unary_unary(method)(b"", timeout=10)
    return answer


def code_of(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    code = caught.value.code()  # type: ignore[attr-defined]
    assert isinstance(code, grpc.StatusCode)
    return code


@pytest.mark.parametrize("kind", ["grpc", "grpc-aio"])
def test_grpc_takes_both_and_knows_who_calls_and_from_where(addresses: dict[str, str], gateway: Any, kind: str) -> None:
    """The rule for anonymous callers is about their address, which is not the front's."""
    assert b"" == plain(addresses[kind], UNARY)
    assert grpc.StatusCode.PERMISSION_DENIED is code_of(lambda: plain(addresses[kind], SECRET))
    with gateway.channel(f"xds:///{kind}.mixed") as channel:
        assert GATEWAY.encode() == channel.unary_unary(UNARY)(b"", timeout=10)
        assert GATEWAY.encode() == channel.unary_unary(SECRET)(b"", timeout=10)
        big = b"x" * 3_000_000
        answers = list(channel.stream_stream("/test.Greeter/StreamStream")(iter([big] * 3), timeout=20))
        assert [big + GATEWAY.encode()] * 3 == answers


@pytest.mark.parametrize("kind", ["grpc", "grpc-aio"])
def test_grpc_refuses_tls_of_others(shared_world: Any, addresses: dict[str, str], kind: str) -> None:
    host, _, port = addresses[kind].rpartition(":")
    context = shared_world.server.client_context(None)
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), 10) as connection:
        try:
            with context.wrap_socket(connection) as secure:
                secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
                assert b"" == secure.recv(65536)
        except (ssl.SSLError, ConnectionError):
            pass  # TLS 1.3: the refusal may come with the first read


def test_they_stop_in_order(processes: dict[str, Any], addresses: dict[str, str]) -> None:
    """The last test: with connections open, some of which have said nothing."""
    with ExitStack() as stack:
        for kind in KINDS:
            host, _, port = addresses[kind].rpartition(":")
            if kind != "gunicorn":  # which gives them some seconds
                stack.enter_context(socket.create_connection((host, int(port)), 5))
            if not kind.startswith("grpc"):
                client = stack.enter_context(httpx.Client(trust_env=False))
                assert 200 == client.get(f"http://{addresses[kind]}/open", timeout=10).status_code
        for process in processes.values():
            process.send(signal.SIGTERM)
        for kind, process in processes.items():
            assert 0 == process.wait(90), f"{kind}: {process.output}"
            assert "Traceback" not in process.output
