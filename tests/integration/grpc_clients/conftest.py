"""gRPC servers that do what a test asks of them, a mesh without a control plane, and certificates."""

import datetime
import random
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from peers import authority

from meshlib.clients.grpc_channels import channels_of, close_channels
from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.endpoint import Endpoint
from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.retry import RetryPolicy
from meshlib.model.secret import ClientTls, SanMatcher, SanType, Secret, SecretRef, TlsCertificate
from meshlib.model.snapshot import Snapshot
from meshlib.testing.builders import cluster, service
from meshlib.testing.source import FakeMesh, mesh_source

CHECKOUT = "spiffe://cluster.local/ns/default/sa/checkout"
ORDERS = "spiffe://cluster.local/ns/default/sa/orders"


class Server:
    """A server of `/test.Service/{Unary,Responses,Requests,Chat}`, whose messages are bytes.

    Attributes:
        refusals: So many RPCs are refused as UNAVAILABLE, after their first request.
        seen: Metadata of each RPC, in order.
        active: RPCs under way.
    """

    def __init__(self, credentials: grpc.ServerCredentials | None = None, port: int = 0) -> None:
        self.refusals = 0
        self.seen: list[dict[str, Any]] = []
        self.active = 0
        self._lock = threading.Lock()
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self._unary),
            "Responses": grpc.unary_stream_rpc_method_handler(self._responses),
            "Requests": grpc.stream_unary_rpc_method_handler(self._requests),
            "Chat": grpc.stream_stream_rpc_method_handler(self._chat),
        }
        self.pool = futures.ThreadPoolExecutor(16)
        self.grpc = grpc.server(self.pool)
        self.grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
        if credentials is None:
            self.port = self.grpc.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self.grpc.add_secure_port(f"127.0.0.1:{port}", credentials)
        self.address = f"127.0.0.1:{self.port}"
        self.grpc.start()

    def stop(self) -> None:
        self.grpc.stop(0).wait(5)
        self.pool.shutdown()

    def _enter(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self.seen.append({item.key: item.value for item in context.invocation_metadata()})
            # No public way to the authority.
            self.seen[-1][":authority"] = context._rpc_event.call_details.host.decode()  # type: ignore[attr-defined]
            refuse = self.refusals > 0
            self.refusals -= refuse
            self.active += 1
        context.add_callback(self._leave)
        if refuse:
            context.set_trailing_metadata((("reason", "asked for"),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "asked to refuse")

    def _leave(self) -> None:
        with self._lock:
            self.active -= 1

    def _unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self._enter(context)
        context.send_initial_metadata((("first", "1"),))
        context.set_trailing_metadata((("last", "2"),))
        _wait_if_asked(request, context)
        return self._signed(request)

    def _responses(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        self._enter(context)
        for number in range(3):
            yield b"%d:" % number + request
        _wait_if_asked(request, context)

    def _requests(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        first = next(requests, b"")
        self._enter(context)
        return b",".join((first, *requests))

    def _chat(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        first = next(requests, b"")
        self._enter(context)
        yield self._signed(first)
        for request in requests:
            yield self._signed(request)

    def _signed(self, request: bytes) -> bytes:
        return b"%d " % self.port + request


def _wait_if_asked(request: bytes, context: grpc.ServicerContext) -> None:
    if request == b"wait":
        over = threading.Event()
        context.add_callback(over.set)
        over.wait(20)


class Authority:
    """A CA that issues certificates as Istio does: no subject, one critical URI name."""

    def __init__(self) -> None:
        self._ca = authority.Authority("test root")
        self.pem = self._ca.pem
        self.root = self._ca.secret()

    def issue(self, uri: str, *, starts_s: float = -3600.0, ends_s: float = 3600.0) -> Secret:
        """Issue a certificate that is valid between two moments from now, in seconds."""
        starts, ends = datetime.timedelta(seconds=starts_s), datetime.timedelta(seconds=ends_s)
        return self._ca.issue(uri, starts=starts, ends=ends).secret()

    def server_credentials(self, uri: str, **validity: float) -> grpc.ServerCredentials:
        value = self.issue(uri, **validity).value
        assert isinstance(value, TlsCertificate)
        return grpc.ssl_server_credentials([(value.key_pem, value.chain_pem)], self.pem, True)

    @contextmanager
    def recorder(self, uri: str) -> Iterator[tuple[str, list[bytes]]]:
        """Serve one TLS connection with an identity; yields the address, and what comes over it after the handshake."""
        value = self.issue(uri).value
        assert isinstance(value, TlsCertificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            pem = Path(folder, "pem")
            pem.write_bytes(value.chain_pem + value.key_pem)
            context.load_cert_chain(pem)
        context.set_alpn_protocols(["h2"])
        received: list[bytes] = []
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve() -> None:
                plain, _ = listener.accept()
                with plain:
                    try:
                        with context.wrap_socket(plain, server_side=True) as secure:
                            received.append(secure.recv(65536))
                    except OSError:
                        # The other side left in the middle of the handshake.
                        received.append(b"")

            thread = threading.Thread(target=serve)
            thread.start()
            yield f"127.0.0.1:{listener.getsockname()[1]}", received
            thread.join(10)


class Mesh:
    """What tests set up: snapshots of one service, `checkout`."""

    def __init__(self) -> None:
        self.source: FakeMesh = mesh_source(Snapshot(), clock=time.monotonic, rng=random.Random(7))

    def serve(self, *addresses: str | Endpoint, retries: int = 0, **options: Any) -> None:
        retry = RetryPolicy(frozenset({"unavailable"}), num_retries=retries, base_interval_s=0.001)
        self.source.publish(service("checkout", *addresses, retry=retry if retries else None, **options))

    def serve_tls(
        self,
        address: str | Endpoint,
        authority: Authority,
        mine: Secret,
        peer: str = CHECKOUT,
        minimum_version: str = "TLSv1_3",
        template: Cluster | None = None,
    ) -> None:
        """Serve an endpoint with mTLS. Of TLS versions gRPC's own TLS cannot be told, so that the relay is used."""
        tls = ClientTls(
            SecretRef(sds_name="default"),
            SecretRef(sds_name="ROOTCA"),
            (SanMatcher(SanType.URI, StringMatcher(StringKind.EXACT, peer)),),
            minimum_version=minimum_version,
        )
        template = replace(template or Cluster("checkout", EdsDiscovery("checkout")), tls=tls)
        plain = service("checkout", address)
        self.source.publish(
            replace(
                plain,
                clusters={"checkout": cluster("checkout", address, template=template)},
                secrets={"default": mine, "ROOTCA": authority.root},
            )
        )

    @property
    def active(self) -> int:
        """Requests that the cluster's breaker counts as under way."""
        return self.source.cluster("checkout").breaker.active


@pytest.fixture
def server() -> Iterator[Callable[..., Server]]:
    """Start servers."""
    running: list[Server] = []

    def start(credentials: grpc.ServerCredentials | None = None, port: int = 0) -> Server:
        running.append(Server(credentials, port))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    """A mesh; nothing of it may be left when the test has closed its channels."""
    made = Mesh()
    yield made
    left = channels_of(made.source).sync.statistics()
    close_channels(made.source)
    assert {"channels": 0, "active": 0} == left


@pytest.fixture(scope="session", name="authority")
def _authority() -> Authority:
    """A certificate authority."""
    return Authority()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait until something holds that another thread or process brings about."""

    def wait(holds: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 60
        while not holds():
            assert time.monotonic() < give_up, "it never came true"
            time.sleep(0.005)

    return wait
