"""What a connection may skip: the handshake's check of the peer, and the check of its chain by a session from before."""

import contextlib
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
import trustme

from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.secret import ClientTls, SanMatcher, SanType, Secret, SecretRef, ServerTls, TlsCertificate, TrustedCa
from meshlib.runtime.tls import client_context, server_context
from meshlib.runtime.tls_rotation import rotating_server_context

ROOT, MINE = SecretRef(sds_name="ROOTCA"), SecretRef(sds_name="default")
ANYBODY = ClientTls(MINE, ROOT)


def dns(name: str) -> tuple[SanMatcher, ...]:
    return (SanMatcher(SanType.DNS, StringMatcher(StringKind.EXACT, name)),)


def secrets_of(ca: trustme.CA, *roots: trustme.CA, not_after: datetime | None = None) -> dict[str, Secret]:
    leaf = ca.issue_cert("checkout.example", not_after=not_after)
    own = TlsCertificate(b"".join(blob.bytes() for blob in leaf.cert_chain_pems), leaf.private_key_pem.bytes())
    bundle = b"".join(root.cert_pem.bytes() for root in roots or (ca,))
    return {"default": Secret("default", own), "ROOTCA": Secret("ROOTCA", TrustedCa(bundle))}


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


class Pair:
    """A client and a server over memory."""

    def __init__(self, client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None = None) -> None:
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server.wrap_bio(to_server, to_client, server_side=True)
        # Not through our own class, which takes no session: this client is somebody else's.
        self.client = ssl.SSLContext.wrap_bio(client, to_client, to_server, session=session)

    def exchange(self) -> None:
        """Shake hands."""
        alternate(self.client.do_handshake, self.server.do_handshake)

    def deliver(self) -> None:
        """Have the client read something: what a server of TLS 1.3 sends after the handshake comes with it."""
        self.server.write(b"x")
        assert self.client.read(1) == b"x"


def alternate(*acts: Callable[[], object]) -> None:
    """Do things over and over until none of them waits for the other side."""
    left = list(acts)
    for _ in range(10):
        for act in tuple(left):
            with contextlib.suppress(ssl.SSLWantReadError):
                act()
                left.remove(act)
    assert not left


def plain_client(secrets: dict[str, Secret], version: ssl.TLSVersion) -> ssl.SSLContext:
    context = client_context(ClientTls(MINE, ROOT, sni=version.name), secrets)
    context.maximum_version = version
    return context


@pytest.mark.parametrize("step", ["read", "write"])
def test_server_that_reads_or_writes_first_does_not_skip_the_check_of_the_peer(ca, step):
    secrets = secrets_of(ca)
    tls = ServerTls(MINE, ROOT, dns("somebody.else"), require_client_certificate=True)
    pair = Pair(client_context(ANYBODY, secrets), server_context(tls, secrets))
    act = partial(pair.server.read, 1) if step == "read" else partial(pair.server.write, b"secret")
    with pytest.raises(ssl.SSLCertVerificationError, match="expected DNS"):
        alternate(pair.client.do_handshake, act)


def test_client_that_writes_first_does_not_skip_the_check_of_the_peer(ca):
    secrets = secrets_of(ca)
    client = client_context(ClientTls(MINE, ROOT, dns("somebody.else")), secrets)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(incoming, outgoing)
    theirs = server_context(ServerTls(MINE), secrets).wrap_bio(outgoing, incoming, server_side=True)
    write = partial(ours.write, b"secret")
    with pytest.raises(ssl.SSLCertVerificationError, match="expected DNS"):
        alternate(write, theirs.do_handshake)
    with pytest.raises(ssl.SSLCertVerificationError):
        write()  # trying again does not help


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_session_does_not_outlive_the_root_that_it_was_verified_by(ca, version):
    other = trustme.CA()
    ours = secrets_of(ca)
    secrets = dict(ours)
    tls = ServerTls(MINE, ROOT, require_client_certificate=True)
    front = rotating_server_context(tls, lambda: secrets)
    client = plain_client(ours, version)
    first = Pair(client, front)
    first.exchange()
    first.deliver()
    session = first.client.session
    secrets |= secrets_of(
        ca, other
    )  # the same issuer for our own certificate; the clients' root is not trusted any more
    second = Pair(client, front, session)
    with pytest.raises(ssl.SSLCertVerificationError):
        second.exchange()


def test_server_hands_out_no_tickets(ca):
    secrets = secrets_of(ca)
    server = server_context(ServerTls(MINE, ROOT, require_client_certificate=True), secrets)
    pair = Pair(plain_client(secrets, ssl.TLSVersion.TLSv1_3), server)
    pair.exchange()
    pair.deliver()
    assert not pair.client.session.has_ticket


def test_session_does_not_outlive_the_certificate_that_it_was_made_with(ca):
    secrets = secrets_of(ca, not_after=datetime.now(UTC) + timedelta(hours=1))
    own = secrets_of(ca)
    now = [datetime.now(UTC).timestamp()]
    tls = ServerTls(MINE, ROOT, require_client_certificate=True)
    front = rotating_server_context(tls, lambda: own, wall=lambda: now[0])
    client = plain_client(secrets, ssl.TLSVersion.TLSv1_2)
    first = Pair(client, front)
    first.exchange()
    again = Pair(client, front, first.client.session)
    again.exchange()
    now[0] += 7200
    late = Pair(client, front, first.client.session)
    assert again.server.session_reused
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        late.exchange()


def test_client_offers_no_session(ca):
    secrets = secrets_of(ca)
    client = plain_client(secrets, ssl.TLSVersion.TLSv1_2)
    server = server_context(ServerTls(MINE, ROOT, require_client_certificate=True), secrets)
    first = Pair(client, server)
    first.exchange()
    ours = client.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), session=first.client.session)
    assert ours.session is None


def test_front_that_has_no_certificate_now_lets_nobody_in(ca):
    secrets = secrets_of(ca)
    front = rotating_server_context(ServerTls(MINE, ROOT, require_client_certificate=True), lambda: secrets)
    client = client_context(ANYBODY, secrets)
    secrets.pop("default")
    with pytest.raises(ssl.SSLError):
        Pair(client, front).exchange()
