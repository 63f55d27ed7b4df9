"""mTLS: who may talk to whom, what reaches a peer that is someone else, and rotation under load."""

import contextlib
import datetime
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import peers.authority
import pytest

from meshlib.clients.httpx_async import AsyncMeshTransport
from meshlib.clients.httpx_sync import MeshTransport
from meshlib.errors import IdentityError
from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.retry import RetryPolicy
from meshlib.model.secret import (
    ClientTls,
    SanMatcher,
    SanType,
    Secret,
    SecretRef,
    ServerTls,
)
from meshlib.runtime.tls import PeerNames, client_context, peer_identity, server_context, server_material
from meshlib.runtime.tls_rotation import rotating_server_context

CHECKOUT = "spiffe://cluster.local/ns/default/sa/checkout"
ORDERS = "spiffe://cluster.local/ns/default/sa/orders"
ROOT, MINE = SecretRef(sds_name="ROOTCA"), SecretRef(sds_name="default")
RETRY = RetryPolicy(frozenset({"connect-failure"}), num_retries=2, base_interval_s=0.001)


class Authority:
    """A CA that issues Istio-shaped certificates: no subject, one critical URI name."""

    def __init__(self) -> None:
        self._ca = peers.authority.Authority()
        self.root = self._ca.secret()

    def issue(self, *uris: str, minutes: float = 60, name: str = "default") -> Secret:
        ends = datetime.timedelta(minutes=minutes)
        return self._ca.issue(*uris, starts=datetime.timedelta(hours=-2), ends=ends).secret(name)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def expecting(*matchers: StringMatcher, sni: str = "") -> ClientTls:
    return ClientTls(MINE, ROOT, tuple(SanMatcher(SanType.URI, matcher) for matcher in matchers), sni=sni)


def exactly(uri: str) -> StringMatcher:
    return StringMatcher(StringKind.EXACT, uri)


class TlsServer:
    """Counts handshakes and application bytes; answers each request with the caller's name."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.handshakes = 0
        self.received = b""
        self.server_names: list[str | None] = []
        self.errors: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(10)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                secure = self.context.wrap_socket(connection, server_side=True)
            except (OSError, ssl.SSLError) as error:
                self.errors.append(str(error))
                return
            self.handshakes += 1
            with secure, contextlib.suppress(OSError):
                peer = peer_identity(secure)
                name = ",".join(peer.uris).encode() if peer is not None else b"nobody"
                while data := secure.recv(65536):
                    self.received += data
                    secure.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(name), name))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()  # before its number is given to another socket, on which it would accept
        self._listener.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def tls_server(authority: Authority) -> Iterator[Callable[..., TlsServer]]:
    servers: list[TlsServer] = []

    def start(identity: Secret, *, root: Secret | None = None, required: bool = True) -> TlsServer:
        trusted = root or authority.root
        tls = ServerTls(MINE, ROOT, require_client_certificate=required)
        context = server_context(tls, {"default": identity, "ROOTCA": trusted})
        servers.append(TlsServer(context))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_right_identity_is_served_and_learns_ours(mesh, authority, tls_server):
    server = tls_server(authority.issue(CHECKOUT))
    secrets = {"default": authority.issue(ORDERS), "ROOTCA": authority.root}
    mesh.serve("checkout", {"c": [server.address]}, tls=expecting(exactly(CHECKOUT)), secrets=secrets)
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        assert client.get("http://checkout/").text == ORDERS
        assert client.get("https://checkout/").text == ORDERS
    assert server.handshakes == 1
    assert b"GET / HTTP/1.1\r\nhost: checkout" in server.received
    assert mesh.events[-1].secure


async def test_right_identity_is_served_async(mesh, authority, tls_server):
    server = tls_server(authority.issue(CHECKOUT))
    secrets = {"default": authority.issue(ORDERS), "ROOTCA": authority.root}
    mesh.serve("checkout", {"c": [server.address]}, tls=expecting(exactly(CHECKOUT)), secrets=secrets)
    async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
        assert (await client.get("http://checkout/")).text == ORDERS


@pytest.mark.parametrize(
    "uris",
    [
        pytest.param(["spiffe://cluster.local/ns/default/sa/payments"], id="other service"),
        pytest.param(["spiffe://elsewhere/ns/default/sa/checkout"], id="other trust domain"),
        pytest.param(["spiffe://CLUSTER.local/ns/default/sa/checkout"], id="other case"),
        pytest.param([CHECKOUT, "spiffe://cluster.local/ns/default/sa/payments"], id="two identities"),
    ],
)
def test_wrong_identity_gets_no_application_byte(mesh, authority, tls_server, uris):
    server = tls_server(authority.issue(*uris))
    secrets = {"default": authority.issue(ORDERS), "ROOTCA": authority.root}
    mesh.serve("checkout", {"c": [server.address]}, tls=expecting(exactly(CHECKOUT)), retry=RETRY, secrets=secrets)
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        with pytest.raises(httpx.ConnectError) as caught:
            client.post("http://checkout/", json={"card": "4111"})
    assert isinstance(caught.value.mesh, IdentityError)
    assert caught.value.mesh.attempts == 3
    assert uris[0] in str(caught.value)
    assert CHECKOUT in str(caught.value)
    assert server.received == b""
    assert mesh.held("c") == (0, 0)


async def test_wrong_identity_gets_no_application_byte_async(mesh, authority, tls_server):
    server = tls_server(authority.issue("spiffe://cluster.local/ns/default/sa/payments"))
    secrets = {"default": authority.issue(ORDERS), "ROOTCA": authority.root}
    mesh.serve("checkout", {"c": [server.address]}, tls=expecting(exactly(CHECKOUT)), secrets=secrets)
    async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
        with pytest.raises(httpx.ConnectError) as caught:
            await client.post("http://checkout/", json={"card": "4111"})
    assert isinstance(caught.value.mesh, IdentityError)
    assert (server.handshakes, server.received) == (0, b"")


def test_certificate_of_another_ca_is_refused(mesh, authority, tls_server):
    other = Authority()
    server = tls_server(other.issue(CHECKOUT))
    secrets = {"default": authority.issue(ORDERS), "ROOTCA": authority.root}
    mesh.serve("checkout", {"c": [server.address]}, tls=expecting(exactly(CHECKOUT)), secrets=secrets)
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        with pytest.raises(httpx.ConnectError) as caught:
            client.get("http://checkout/")
    assert isinstance(caught.value.mesh, IdentityError)
    assert server.received == b""


def test_plaintext_server_is_refused(mesh, authority, http_server):
    server = http_server()
    secrets = {"default": authority.issue(ORDERS), "ROOTCA": authority.root}
    mesh.serve("checkout", {"c": [server.address]}, tls=expecting(exactly(CHECKOUT)), secrets=secrets)
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        with pytest.raises(httpx.ConnectError):
            client.get("http://checkout/")
    assert server.requests == []


def test_server_refuses_a_caller_of_another_ca(mesh, authority, tls_server):
    server = tls_server(authority.issue(CHECKOUT))
    secrets = {"default": Authority().issue(ORDERS), "ROOTCA": authority.root}
    mesh.serve("checkout", {"c": [server.address]}, tls=expecting(exactly(CHECKOUT)), secrets=secrets)
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        with pytest.raises(httpx.TransportError):
            client.post("http://checkout/", json={})
    assert server.received == b""


@pytest.mark.parametrize("missing", ["default", "ROOTCA"])
def test_missing_secret_is_an_error_and_never_plaintext(mesh, authority, tls_server, missing):
    server = tls_server(authority.issue(CHECKOUT))
    secrets = {"default": authority.issue(ORDERS), "ROOTCA": authority.root}
    del secrets[missing]
    mesh.serve("checkout", {"c": [server.address]}, tls=expecting(exactly(CHECKOUT)), secrets=secrets)
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        with pytest.raises(httpx.ConnectError, match=missing) as caught:
            client.get("http://checkout/")
    assert isinstance(caught.value.mesh, IdentityError)
    assert (server.handshakes, server.received) == (0, b"")


def test_expired_certificate_of_ours_is_never_used(mesh, authority, tls_server):
    server = tls_server(authority.issue(CHECKOUT))
    secrets = {"default": authority.issue(ORDERS, minutes=-1), "ROOTCA": authority.root}
    mesh.serve("checkout", {"c": [server.address]}, tls=expecting(exactly(CHECKOUT)), secrets=secrets)
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        with pytest.raises(httpx.ConnectError, match="expired"):
            client.get("http://checkout/")
    assert server.handshakes == 0


def test_server_name_is_the_one_of_the_configuration(mesh, authority, tls_server):
    server = tls_server(authority.issue(CHECKOUT))
    seen: list[str | None] = []
    server.context.sni_callback = lambda connection, name, context: seen.append(name)
    name = "outbound_.80_.v1_.checkout.default.svc.cluster.local"
    secrets = {"default": authority.issue(ORDERS), "ROOTCA": authority.root}
    mesh.serve("checkout", {"c": [server.address]}, tls=expecting(exactly(CHECKOUT), sni=name), secrets=secrets)
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        client.get("http://checkout/")
    server.context.sni_callback = None
    assert seen == [name]


def test_rotation_moves_to_new_connections_without_a_failed_call(mesh, authority, tls_server):
    server = tls_server(authority.issue(CHECKOUT))
    other = "spiffe://cluster.local/ns/default/sa/orders-2"
    tls = expecting(exactly(CHECKOUT))
    mesh.serve(
        "checkout",
        {"c": [server.address]},
        tls=tls,
        secrets={"default": authority.issue(ORDERS), "ROOTCA": authority.root},
    )
    answers: list[str] = []
    stop = threading.Event()
    with httpx.Client(transport=MeshTransport(mesh)) as client:

        def work() -> None:
            while not stop.is_set():
                answers.append(client.get("http://checkout/").text)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(answers) > 20)
        mesh.serve("checkout", {"c": [server.address]}, tls=tls, secrets={"default": authority.issue(other)})
        rotated_at = len(answers)
        wait_for(lambda: len(answers) > rotated_at + 60)
        stop.set()
        for thread in threads:
            thread.join()
    assert set(answers) == {ORDERS, other}
    assert set(answers[rotated_at + 10 :]) == {other}
    assert mesh.held("c") == (0, 0)


def test_server_follows_rotation_of_certificate_and_trust(authority):
    first, second = Authority(), Authority()
    secrets = {"default": first.issue(CHECKOUT), "ROOTCA": first.root}
    server = TlsServer(rotating_server_context(ServerTls(MINE, ROOT, require_client_certificate=True), lambda: secrets))

    def ask(caller: Secret, root: Secret) -> str:
        context = client_context(expecting(exactly(CHECKOUT)), {"default": caller, "ROOTCA": root})
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5) as plain, context.wrap_socket(plain) as secure:
            secure.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return secure.recv(4096).decode().rpartition("\r\n")[2]

    try:
        assert ask(first.issue(ORDERS), first.root) == ORDERS
        with pytest.raises((ssl.SSLError, OSError)):
            ask(second.issue(ORDERS), first.root)
        secrets = {"default": second.issue(CHECKOUT), "ROOTCA": second.root}
        assert ask(second.issue(ORDERS), second.root) == ORDERS
        with pytest.raises((ssl.SSLError, OSError)):
            ask(first.issue(ORDERS), second.root)
        secrets = {"default": second.issue(CHECKOUT, minutes=-1), "ROOTCA": second.root}
        with pytest.raises((ssl.SSLError, OSError)):
            ask(second.issue(ORDERS), second.root)
    finally:
        server.close()


def test_server_compares_the_names_of_its_callers(authority):
    san = SanMatcher(SanType.URI, StringMatcher(StringKind.PREFIX, "spiffe://cluster.local/ns/prod/"))
    tls = ServerTls(MINE, ROOT, (san,), require_client_certificate=True)
    secrets = {"default": authority.issue(CHECKOUT), "ROOTCA": authority.root}
    server = TlsServer(rotating_server_context(tls, lambda: secrets))
    host, _, port = server.address.rpartition(":")

    def ask(uri: str) -> bytes:
        own = {"default": authority.issue(uri), "ROOTCA": authority.root}
        context = client_context(expecting(exactly(CHECKOUT)), own)
        with socket.create_connection((host, int(port)), timeout=5) as plain, context.wrap_socket(plain) as secure:
            secure.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return secure.recv(4096)

    try:
        assert ask("spiffe://cluster.local/ns/prod/sa/a").endswith(b"/ns/prod/sa/a")
        with contextlib.suppress(OSError):
            assert ask("spiffe://cluster.local/ns/test/sa/a") == b""
    finally:
        server.close()
    assert server.handshakes == 1
    assert "expected URI prefix" in server.errors[0]


def test_optional_client_certificate_may_be_missing(authority, tls_server):
    server = tls_server(authority.issue(CHECKOUT), required=False)
    context = client_context(
        ClientTls(None, ROOT, (SanMatcher(SanType.URI, exactly(CHECKOUT)),)), {"ROOTCA": authority.root}
    )
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as plain, context.wrap_socket(plain) as secure:
        assert peer_identity(secure) == PeerNames(uris=(CHECKOUT,))
        secure.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert secure.recv(4096).endswith(b"nobody")


def test_material_for_other_stacks_is_checked_first(authority):
    good, old = authority.issue(CHECKOUT), authority.issue(CHECKOUT, minutes=-1)
    tls = ServerTls(MINE, ROOT, require_client_certificate=True)
    chain, key, root = server_material(tls, {"default": good, "ROOTCA": authority.root})
    assert (chain, key, root) == (good.value.chain_pem, good.value.key_pem, authority.root.value.ca_pem)
    with pytest.raises(IdentityError, match="expired"):
        server_material(tls, {"default": old, "ROOTCA": authority.root})


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)
