"""From plaintext to mutual TLS, endpoint by endpoint, while calls run (`transport_socket_matches`)."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import grpc
import httpx
import pytest
from peers.bad_peers import GOOD, OURS, ROOT, named
from peers.recorder import Recorder

from meshlib.clients.grpc_channels import close_channels
from meshlib.clients.grpc_sync import MeshChannel
from meshlib.clients.httpx_sync import MeshTransport
from meshlib.model.cluster import Cluster, EdsDiscovery, TransportSocketMatch
from meshlib.model.endpoint import Endpoint
from meshlib.model.secret import ClientTls, SecretRef, ServerTls
from meshlib.model.snapshot import Snapshot
from meshlib.runtime.tls import server_context
from meshlib.testing.builders import cluster, service
from meshlib.testing.source import mesh_source

ENDPOINTS = 4
METHOD = "/test.Service/Unary"
TLS = ClientTls(SecretRef(sds_name="default"), SecretRef(sds_name="ROOTCA"), named())
MATCHES = (
    TransportSocketMatch("tlsMode-istio", (("tlsMode", "istio"),), TLS),
    TransportSocketMatch("tlsMode-disabled", (), None),
)


class Migration:
    """A service whose endpoints are either kind, by their metadata."""

    def __init__(self) -> None:
        self.mesh: Any = mesh_source(Snapshot(), clock=time.monotonic, rng=random.Random(7))

    def publish(self, plain: list[str], secure: list[str]) -> None:
        label = {"envoy.transport_socket_match": {"tlsMode": "istio"}}
        endpoints = [Endpoint(address) for address in plain]
        endpoints += [Endpoint(address, metadata=label) for address in secure]
        template = Cluster("checkout", EdsDiscovery("checkout"), socket_matches=MATCHES)
        found = cluster("checkout", *(one.address for one in endpoints), template=template)
        (group,) = found.assignment.localities
        assignment = replace(found.assignment, localities=(replace(group, endpoints=tuple(endpoints)),))
        self.mesh.publish(
            replace(
                service("checkout", endpoints[0].address),
                clusters={"checkout": replace(found, assignment=assignment)},
                secrets={"default": OURS.secret(), "ROOTCA": ROOT.secret()},
            )
        )


@pytest.fixture
def migration() -> Iterator[Migration]:
    made = Migration()
    yield made
    close_channels(made.mesh)


def migrate(
    migration: Migration, start: Callable[[bool], str], call: Callable[[], str], threads: int = 3
) -> tuple[list[str], list[Exception]]:
    """Replace plaintext instances by secure ones, one at a time; returns the answers and the failures.

    Args:
        start: Starts an instance and returns its address; its answers tell who called.
    """
    plain, secure = [start(False) for _ in range(ENDPOINTS)], []
    migration.publish(plain, secure)
    answers: list[str] = []
    failures: list[Exception] = []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                answers.append(call())
            except (httpx.HTTPError, grpc.RpcError) as error:
                failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for _ in range(ENDPOINTS):
        secure.append(start(True))
        plain.pop()
        migration.publish(plain, secure)
        after, deadline = len(answers) + 40, time.monotonic() + 20
        while len(answers) < after and time.monotonic() < deadline:
            time.sleep(0.005)
    stop.set()
    for worker in workers:
        worker.join()
    return answers, failures


def check(answers: list[str], failures: list[Exception]) -> None:
    assert [] == failures
    assert {"plaintext", "spiffe://a.example/ns/default/sa/orders"} == set(answers)
    assert "plaintext" not in answers[-10:]


def test_httpx(migration: Migration) -> None:
    context = server_context(
        ServerTls(SecretRef(inline=GOOD.value), SecretRef(inline=ROOT.trusted), require_client_certificate=True), {}
    )
    with ExitStack() as stack:
        client = stack.enter_context(httpx.Client(transport=MeshTransport(migration.mesh), timeout=20))

        def start(is_secure: bool) -> str:
            return stack.enter_context(Recorder(context if is_secure else None)).address

        check(*migrate(migration, start, lambda: client.get("http://checkout/").text))


def test_grpc(migration: Migration) -> None:
    def who(request: bytes, call: grpc.ServicerContext) -> bytes:
        return next(iter(call.peer_identities() or ()), b"plaintext")

    handler = grpc.method_handlers_generic_handler("test.Service", {"Unary": grpc.unary_unary_rpc_method_handler(who)})
    credentials = grpc.ssl_server_credentials([(GOOD.key_pem, GOOD.chain_pem)], ROOT.pem, True)
    servers: list[grpc.Server] = []

    def start(is_secure: bool) -> str:
        servers.append(grpc.server(ThreadPoolExecutor(4)))
        servers[-1].add_generic_rpc_handlers((handler,))
        port = (
            servers[-1].add_secure_port("127.0.0.1:0", credentials)
            if is_secure
            else servers[-1].add_insecure_port("127.0.0.1:0")
        )
        servers[-1].start()
        return f"127.0.0.1:{port}"

    try:
        with MeshChannel(migration.mesh, "xds:///checkout") as channel:
            unary: Any = channel.unary_unary(METHOD)
            check(*migrate(migration, start, lambda: unary(b"", timeout=20).decode()))
    finally:
        for running in servers:
            running.stop(None).wait()
