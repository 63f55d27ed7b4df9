"""gRPC servers that do what a test asks of them, a mesh without a control plane, and certificates."""

import datetime
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import replace
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshlib.clients.grpc_channels import channels_of, close_channels
from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.endpoint import Endpoint
from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.retry import RetryPolicy
from meshlib.model.secret import ClientTls, SanMatcher, SanType, Secret, SecretRef, TlsCertificate, TrustedCa
from meshlib.model.snapshot import Snapshot
from meshlib.testing.builders import cluster, service
from meshlib.testing.source import FakeMesh, mesh_source

CHECKOUT = "spiffe://cluster.local/ns/default/sa/checkout"
ORDERS = "spiffe://cluster.local/ns/default/sa/orders"
PEM = serialization.Encoding.PEM


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
        self._key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test root")])
        certificate = _builder(name, name, self._key).add_extension(x509.BasicConstraints(True, None), True)
        certificate = certificate.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), False
        )
        self._certificate = certificate.sign(self._key, hashes.SHA256())
        self.pem = self._certificate.public_bytes(PEM)
        self.root = Secret("ROOTCA", TrustedCa(self.pem))

    def issue(self, uri: str, *, starts_s: float = -3600.0, ends_s: float = 3600.0) -> Secret:
        """Issue a certificate that is valid between two moments from now, in seconds."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = _builder(x509.Name([]), self._certificate.subject, key, starts_s, ends_s).add_extension(names, True)
        certificate = builder.add_extension(issuer, False).sign(self._key, hashes.SHA256())
        private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return Secret("default", TlsCertificate(certificate.public_bytes(PEM), private))

    def server_credentials(self, uri: str, **validity: float) -> grpc.ServerCredentials:
        value = self.issue(uri, **validity).value
        assert isinstance(value, TlsCertificate)
        return grpc.ssl_server_credentials([(value.key_pem, value.chain_pem)], self.pem, True)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Any, starts_s: float = -3600.0, ends_s: float = 3600.0
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(seconds=starts_s))
        .not_valid_after(now + datetime.timedelta(seconds=ends_s))
    )


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


@pytest.fixture(scope="session")
def authority() -> Authority:
    """A certificate authority."""
    return Authority()


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait until something holds that another thread or process brings about."""

    def wait(holds: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 10
        while not holds():
            assert time.monotonic() < give_up, "it never came true"
            time.sleep(0.005)

    return wait
