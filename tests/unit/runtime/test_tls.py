import gc
import os
import ssl
import tempfile
from dataclasses import replace

import pytest
import trustme

from meshlib.errors import IdentityError
from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.secret import ClientTls, SanMatcher, SanType, Secret, SecretRef, ServerTls, TlsCertificate, TrustedCa
from meshlib.runtime.tls import client_context, server_context, server_material
from meshlib.runtime.tls_context import load_identity
from meshlib.runtime.tls_rotation import rotating_server_context

ROOT, MINE = SecretRef(sds_name="ROOTCA"), SecretRef(sds_name="default")
CHECKOUT = SanMatcher(SanType.URI, StringMatcher(StringKind.EXACT, "spiffe://cluster.local/ns/default/sa/checkout"))
TLS = ClientTls(MINE, ROOT, (CHECKOUT,), sni="checkout")


def certificate(ca: trustme.CA) -> TlsCertificate:
    leaf = ca.issue_cert("checkout.example")
    return TlsCertificate(b"".join(blob.bytes() for blob in leaf.cert_chain_pems), leaf.private_key_pem.bytes())


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def secrets(ca: trustme.CA) -> dict[str, Secret]:
    return {
        "default": Secret("default", certificate(ca)),
        "ROOTCA": Secret("ROOTCA", TrustedCa(ca.cert_pem.bytes())),
    }


def test_context_verifies_by_the_bundle_alone(secrets):
    context = client_context(TLS, secrets)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert len(context.get_ca_certs()) == 1
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_equal_configurations_share_a_context(secrets):
    context = client_context(TLS, secrets)
    assert client_context(TLS, secrets) is context
    assert client_context(replace(TLS, sni="checkout"), dict(secrets)) is context


def test_other_secrets_names_or_protocols_are_another_context(ca, secrets):
    context = client_context(TLS, secrets)
    rotated = {**secrets, "default": Secret("default", certificate(ca))}
    assert client_context(TLS, rotated) is not context
    assert client_context(replace(TLS, sni="other"), secrets) is not context
    assert client_context(TLS, secrets, default_alpn=("h2",)) is not context
    assert client_context(TLS, secrets) is context


def test_context_that_was_cached_is_refused_once_its_certificate_has_expired(secrets):
    client_context(TLS, secrets)
    with pytest.raises(IdentityError, match="expired"):
        client_context(TLS, secrets, wall=lambda: 4e10)
    with pytest.raises(IdentityError, match="not valid for another"):
        client_context(TLS, secrets, wall=lambda: 1e8)


def test_libraries_cannot_change_alpn(secrets):
    context = client_context(TLS, secrets, default_alpn=("h2",))
    context.set_alpn_protocols(["http/1.1"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    assert client.server_hostname == "checkout"
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    hello = outgoing.read()
    assert b"\x02h2" in hello
    assert b"http/1.1" not in hello


@pytest.mark.parametrize(
    ("tls", "text"),
    [
        (replace(TLS, trust=None), "no trusted CA"),
        (replace(TLS, certificate=SecretRef(sds_name="nowhere")), "nowhere"),
        (replace(TLS, certificate=ROOT), "ROOTCA"),
        (replace(TLS, trust=MINE), "default"),
        (replace(TLS, certificate=SecretRef(provider="files")), "files"),
        (replace(TLS, minimum_version="TLSv1_0"), "TLSv1_0"),
        (replace(TLS, trust=SecretRef(inline=TrustedCa(b"no PEM"))), "inline"),
    ],
)
def test_what_cannot_be_used_is_an_identity_error_that_names_it(secrets, tls, text):
    with pytest.raises(IdentityError, match=text):
        client_context(tls, secrets)


def test_key_of_another_certificate_is_refused_without_showing_it(ca, secrets):
    first, second = certificate(ca), certificate(ca)
    mixed = {**secrets, "default": Secret("default", TlsCertificate(first.chain_pem, second.key_pem))}
    with pytest.raises(IdentityError) as caught:
        client_context(TLS, mixed)
    assert "PRIVATE" not in str(caught.value)
    assert "PRIVATE" not in repr(mixed)


def test_key_leaves_no_file_and_no_descriptor_behind(ca, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = certificate(ca)
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    load_identity(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), own.chain_pem, own.key_pem)
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.iterdir()) == []


def test_without_memfd_the_key_is_in_a_private_file_for_a_moment(ca, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delattr(os, "memfd_create", raising=False)
    modes: list[int] = []

    class Context(ssl.SSLContext):
        def load_cert_chain(self, certfile, keyfile=None, password=None):
            modes.append(os.stat(certfile).st_mode & 0o777)
            super().load_cert_chain(certfile, keyfile, password)

    own = certificate(ca)
    load_identity(Context(ssl.PROTOCOL_TLS_SERVER), own.chain_pem, own.key_pem)
    assert modes == [0o600]
    assert list(tmp_path.iterdir()) == []


def test_server_asks_for_certificates_as_configured(secrets):
    required = server_context(ServerTls(MINE, ROOT, require_client_certificate=True), secrets)
    optional = server_context(ServerTls(MINE, ROOT), secrets)
    nobody = server_context(ServerTls(MINE), secrets)
    assert [required.verify_mode, optional.verify_mode, nobody.verify_mode] == [
        ssl.CERT_REQUIRED,
        ssl.CERT_OPTIONAL,
        ssl.CERT_NONE,
    ]
    with pytest.raises(IdentityError, match="no trusted CA"):
        server_context(ServerTls(MINE, require_client_certificate=True), secrets)


def test_rotating_context_needs_a_certificate_from_the_start(secrets):
    assert isinstance(rotating_server_context(ServerTls(MINE, ROOT), lambda: secrets), ssl.SSLContext)
    with pytest.raises(IdentityError, match="default"):
        rotating_server_context(ServerTls(MINE, ROOT), lambda: {"ROOTCA": secrets["ROOTCA"]})


def test_material_without_trust_has_no_bundle(secrets):
    assert server_material(ServerTls(MINE), secrets)[2] is None
