"""Callers that must not be let in: uvicorn, gunicorn and gRPC servers hand no byte of theirs to the application.

What counts as a good caller is part of a secret here, so one server can be asked under many rules: its context follows
the secrets from one connection to the next.
"""

import asyncio
import contextlib
import pickle
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from peers.bad_peers import BAD_PEERS, GOOD, ROOT, BadPeer, named

from meshlib.integrations.uvicorn import MeshConfig, MeshServer
from meshlib.model.secret import Secret, SecretRef, ServerTls, TlsCertificate
from meshlib.runtime.relay import TlsRelay
from meshlib.runtime.tls_context import load_identity
from meshlib.runtime.tls_rotation import rotating_server_context
from meshlib.servers.grpc_certificates import GrpcCertificates

LOOPBACK = "127.0.0.1"
TLS = ServerTls(SecretRef(sds_name="default"), SecretRef(sds_name="ROOTCA"), require_client_certificate=True)
OWN = ROOT.issue("spiffe://a.example/ns/default/sa/server")
REQUEST = b"POST /pay HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\nconnection: close\r\n\r\n4111"
CATEGORIES = pytest.mark.parametrize("peer", BAD_PEERS.values(), ids=BAD_PEERS.keys())


def secrets_for(peer: BadPeer) -> dict[str, Secret]:
    checks = peer.fields.get("checks", peer.trust.checks)
    return {"default": OWN.secret(), "ROOTCA": Secret("ROOTCA", replace(peer.trust, sans=named(), checks=checks))}


def ask(port: int, certificate: TlsCertificate | None, *, is_plain: bool = False) -> bytes:
    """Send a request as whoever has a certificate (None: nobody); returns what comes back."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate is not None:
        load_identity(context, certificate.chain_pem, certificate.key_pem)
    received = b""
    with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=20) as plain:
        with plain if is_plain else context.wrap_socket(plain) as connection:
            connection.sendall(REQUEST)
            while data := connection.recv(65536):
                received += data
    return received


class Server:
    """One that is running.

    Attributes:
        port: Where.
        set_secrets: Puts other secrets into use.
        requests: Paths that the application has seen.
    """

    def __init__(
        self, port: int, set_secrets: Callable[[Mapping[str, Secret]], None], requests: Callable[[], list[str]]
    ) -> None:
        self.port, self.set_secrets, self.requests = port, set_secrets, requests


@pytest.fixture(scope="module")
def uvicorn_server() -> Iterator[Server]:
    secrets: dict[str, Secret] = secrets_for(BadPeer(GOOD))
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            seen.append(scope["path"])
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
            await send({"type": "http.response.body", "body": b"ok"})

    context = rotating_server_context(TLS, lambda: secrets)
    config = MeshConfig(app, tls_context=context, log_level="critical", lifespan="off")
    server = MeshServer(config, lambda: None, drain_s=0.0)
    with socket.create_server((LOOPBACK, 0)) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])))
        thread.start()
        yield Server(listening.getsockname()[1], secrets.update, lambda: list(seen))
        server.should_exit = True
        thread.join(20)


GUNICORN = """
import os, pickle
from meshlib.runtime.relay import TlsRelay
from meshlib.runtime.tls_rotation import rotating_server_context
certfile = os.devnull
workers, threads, worker_class, timeout = 1, 4, "gthread", 30
accesslog = None
def secrets():
    with open({secrets!r}, "rb") as file:
        return pickle.load(file)
def ssl_context(config, default):
    with open({tls!r}, "rb") as file:
        return rotating_server_context(pickle.load(file), secrets)
def post_worker_init(worker):
    open({ready!r}, "w").close()
"""
APPLICATION = """
def application(environ, start_response):
    with open({seen!r}, "a") as file:
        file.write(environ["PATH_INFO"] + "\\n")
    start_response("200 OK", [("content-length", "2")])
    return [b"ok"]
"""


@pytest.fixture(scope="module")
def gunicorn_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("gunicorn")
    secrets, tls, seen, ready = (folder / name for name in ("secrets", "tls", "seen", "ready"))
    seen.touch()

    def put(found: Mapping[str, Secret]) -> None:
        new = folder / "secrets.new"
        new.write_bytes(pickle.dumps(dict(found)))
        new.replace(secrets)

    put(secrets_for(BadPeer(GOOD)))
    tls.write_bytes(pickle.dumps(TLS))
    (folder / "config.py").write_text(GUNICORN.format(secrets=str(secrets), tls=str(tls), ready=str(ready)))
    (folder / "app.py").write_text(APPLICATION.format(seen=str(seen)))
    with socket.create_server((LOOPBACK, 0)) as listening:
        command = [sys.executable, "-m", "gunicorn", "-c", str(folder / "config.py"), "--chdir", str(folder)]
        bind = ["--bind", f"fd://{listening.fileno()}", "--no-control-socket", "app:application"]
        process = subprocess.Popen([*command, *bind], pass_fds=[listening.fileno()], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 40
            while not ready.exists():
                assert time.monotonic() < deadline and process.poll() is None, "gunicorn did not start"
                time.sleep(0.05)
            yield Server(listening.getsockname()[1], put, lambda: seen.read_text().split())
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(params=["uvicorn", "gunicorn"])
def server(request: pytest.FixtureRequest) -> Server:
    found: Server = request.getfixturevalue(f"{request.param}_server")
    return found


@CATEGORIES
def test_a_caller_that_must_be_refused_reaches_no_application(server: Server, peer: BadPeer) -> None:
    server.set_secrets(secrets_for(peer))
    before = server.requests()
    assert b"" == ask(server.port, peer.leaf.value)
    assert before == server.requests()
    # Under the very same rules a good caller gets through.
    assert ask(server.port, GOOD.value).startswith(b"HTTP/1.1 200")
    assert [*before, "/pay"] == server.requests()


def test_nobody_without_a_certificate_reaches_the_application(server: Server) -> None:
    before = server.requests()
    assert b"" == ask(server.port, None)
    assert not ask(server.port, None, is_plain=True).startswith(b"HTTP/1.1 200")
    assert before == server.requests()


IN_HANDSHAKE = {
    name: peer
    for name, peer in BAD_PEERS.items()
    if not peer.only_ssl and name not in ("wrong name", "wrong trust domain")
}


@pytest.mark.parametrize("peer", IN_HANDSHAKE.values(), ids=IN_HANDSHAKE.keys())
def test_a_grpc_server_refuses_in_the_handshake(peer: BadPeer) -> None:
    """Names are compared when the call comes in (tests/unit/servers); what it cannot be told is refused at the start."""
    seen: list[bytes] = []

    def pay(request: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(request)
        return b"ok"

    handler = grpc.method_handlers_generic_handler("test.Service", {"Pay": grpc.unary_unary_rpc_method_handler(pay)})
    running = grpc.server(ThreadPoolExecutor(2))
    running.add_generic_rpc_handlers((handler,))
    secrets = {"default": OWN.secret(), "ROOTCA": Secret("ROOTCA", peer.trust)}
    port = running.add_secure_port(f"{LOOPBACK}:0", GrpcCertificates(TLS, lambda: secrets).credentials())
    running.start()
    try:
        results = [pay_by_grpc(port, leaf.value) for leaf in (peer.leaf, GOOD)]
    finally:
        running.stop(None).wait()
    assert ["UNAVAILABLE", "OK"] == results
    assert [b"4111"] == seen


def pay_by_grpc(port: int, certificate: TlsCertificate) -> str:
    """Call as whoever has a certificate, which grpcio's own client would not let us be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    load_identity(context, certificate.chain_pem, certificate.key_pem)
    relay = TlsRelay()
    route = relay.open(f"{LOOPBACK}:{port}", context, server_name="x")
    credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
    try:
        with grpc.secure_channel(route.target, credentials) as channel:
            channel.unary_unary("/test.Service/Pay")(b"4111", timeout=20)
        return "OK"
    except grpc.RpcError as error:
        return str(error.code().name)  # type: ignore[attr-defined]
    finally:
        relay.release(route)
        relay.close()
