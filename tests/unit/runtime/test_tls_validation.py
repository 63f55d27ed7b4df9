"""What a peer's certificate must fulfil, decided inside the handshake: in memory, client and server alike."""

import datetime
import ssl
from dataclasses import replace

import pytest
from cryptography import x509
from peers.authority import Authority, Leaf

from meshlib.errors import IdentityError
from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.secret import (
    ClientTls,
    PeerChecks,
    SanMatcher,
    SanType,
    Secret,
    SecretRef,
    ServerTls,
    TlsParameters,
    TrustBundle,
    TrustedCa,
)
from meshlib.runtime.tls import client_context, server_context, server_material
from meshlib.runtime.tls_context import load_identity

CHECKOUT = "spiffe://a.example/ns/default/sa/checkout"
MINE, ROOT = SecretRef(sds_name="default"), SecretRef(sds_name="ROOTCA")
HOURS = datetime.timedelta(hours=1)
ROOT_A, ROOT_B = Authority("same name"), Authority("same name")
MIDDLE = Authority("middle", parent=ROOT_A)
LOWER = Authority("lower", parent=MIDDLE)
OURS = ROOT_A.issue("spiffe://a.example/ns/default/sa/caller")


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    for _ in range(10):
        for one in (ours, theirs):
            if one not in done:
                try:
                    one.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                done.add(one)
    assert {ours, theirs} == done
    return ours, theirs


def serving(leaf: Leaf) -> ssl.SSLContext:
    """A server that shows a certificate, however bad it is, and asks for none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_identity(context, leaf.chain_pem, leaf.key_pem)
    return context


def as_client(trust: TrustedCa | None, leaf: Leaf, **fields: object) -> None:
    """Meet a server with a certificate."""
    ref = None if trust is None else SecretRef(inline=trust)
    tls = ClientTls(None, ref, **fields)  # type: ignore[arg-type]
    handshake(client_context(tls, {}), serving(leaf))


def as_server(trust: TrustedCa | None, leaf: Leaf, **fields: object) -> None:
    """Meet a client with a certificate."""
    tls = ServerTls(MINE, SecretRef(inline=trust), require_client_certificate=True, **fields)  # type: ignore[arg-type]
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
    load_identity(plain, leaf.chain_pem, leaf.key_pem)
    handshake(plain, server_context(tls, {"default": OURS.secret()}))


SIDES = pytest.mark.parametrize("meet", [as_client, as_server])


def uri(value: str, kind: StringKind = StringKind.EXACT) -> tuple[SanMatcher, ...]:
    return (SanMatcher(SanType.URI, StringMatcher(kind, value)),)


def bundles(**roots: Authority) -> TrustedCa:
    found = tuple(TrustBundle(name.replace("_", "."), one.pem) for name, one in sorted(roots.items()))
    return TrustedCa(b"", bundles=found)


LEAF = ROOT_A.issue(CHECKOUT)
BELOW = LOWER.issue(CHECKOUT)
REVOKED, NOT_REVOKED = ROOT_A.issue(CHECKOUT), ROOT_A.issue(CHECKOUT)
LIST = ROOT_A.revoke(REVOKED)
CONSTRAINED = Authority("constrained", parent=ROOT_A, permitted=[x509.DNSName("inside.example")])
SHORT = Authority("under short", parent=Authority("short", parent=ROOT_A, path_length=0))


@SIDES
@pytest.mark.parametrize(
    ("trust", "leaf", "fields"),
    [
        pytest.param(ROOT_A.trusted, LEAF, {"sans": uri(CHECKOUT)}, id="name"),
        pytest.param(ROOT_A.trusted, BELOW, {"sans": uri("spiffe://a.example/", StringKind.PREFIX)}, id="chain"),
        pytest.param(TrustedCa(MIDDLE.pem), BELOW, {}, id="only an intermediate is trusted"),
        pytest.param(ROOT_A.trusted, LEAF, {"checks": PeerChecks((LEAF.certificate_hash,))}, id="pin"),
        pytest.param(ROOT_A.trusted, LEAF, {"checks": PeerChecks((b"x" * 32,), (LEAF.spki_hash,))}, id="key pin"),
        pytest.param(ROOT_A.trusted, NOT_REVOKED, {"checks": PeerChecks(crl_pem=LIST)}, id="list"),
        pytest.param(TrustedCa(ROOT_A.pem + LIST), NOT_REVOKED, {}, id="list in the bundle"),
        pytest.param(
            ROOT_A.trusted,
            BELOW,
            {"checks": PeerChecks(crl_pem=LOWER.revoke(), crl_leaf_only=True)},
            id="list for the leaf alone",
        ),
        pytest.param(ROOT_A.trusted, BELOW, {"checks": PeerChecks(max_depth=3)}, id="depth"),
        pytest.param(ROOT_A.trusted, LEAF, {"checks": PeerChecks(max_depth=0)}, id="depth of none"),
        pytest.param(bundles(a_example=ROOT_A, b_example=ROOT_B), LEAF, {"sans": uri(CHECKOUT)}, id="trust domain"),
        pytest.param(bundles(a_example=ROOT_A, b_example=ROOT_B), BELOW, {}, id="trust domain, chain"),
        pytest.param(
            bundles(a_example=ROOT_A, b_example=ROOT_B), ROOT_B.issue("spiffe://b.example/x"), {}, id="federated"
        ),
        pytest.param(ROOT_A.trusted, CONSTRAINED.issue(dns=["x.inside.example"]), {}, id="name constraint"),
    ],
)
def test_accepted(meet, trust, leaf, fields):
    meet(trust, leaf, **fields)


@SIDES
@pytest.mark.parametrize(
    ("trust", "leaf", "fields", "reason"),
    [
        pytest.param(ROOT_B.trusted, LEAF, {}, "verify failed|unable|signature", id="other root of the same name"),
        pytest.param(ROOT_A.trusted, ROOT_A.issue(CHECKOUT, ends=-HOURS / 2), {}, "expired", id="expired"),
        pytest.param(ROOT_A.trusted, ROOT_A.issue(CHECKOUT, starts=HOURS / 2), {}, "not yet", id="not yet"),
        pytest.param(ROOT_A.trusted, LEAF, {"sans": uri(CHECKOUT + "x")}, "expected", id="wrong name"),
        pytest.param(
            ROOT_A.trusted, LEAF, {"checks": PeerChecks((BELOW.certificate_hash,))}, "not pinned", id="wrong pin"
        ),
        pytest.param(
            ROOT_A.trusted, LEAF, {"checks": PeerChecks((), (BELOW.spki_hash,))}, "not pinned", id="wrong key pin"
        ),
        pytest.param(ROOT_A.trusted, REVOKED, {"checks": PeerChecks(crl_pem=LIST)}, "revoked", id="revoked"),
        pytest.param(TrustedCa(ROOT_A.pem + LIST), REVOKED, {}, "revoked", id="revoked by the bundle's list"),
        pytest.param(ROOT_A.trusted, BELOW, {"checks": PeerChecks(crl_pem=LIST)}, "CRL", id="no list of its issuer"),
        pytest.param(
            ROOT_A.trusted,
            BELOW,
            {"checks": PeerChecks(crl_pem=ROOT_A.revoke(MIDDLE) + MIDDLE.revoke() + LOWER.revoke())},
            "revoked",
            id="revoked intermediate",
        ),
        pytest.param(
            ROOT_A.trusted, LEAF, {"checks": PeerChecks(crl_pem=ROOT_A.revoke(ends=-HOURS))}, "CRL", id="old list"
        ),
        pytest.param(ROOT_A.trusted, BELOW, {"checks": PeerChecks(max_depth=2)}, "3 issuers", id="too deep"),
        pytest.param(ROOT_A.trusted, SHORT.issue(CHECKOUT), {}, "path length", id="path length"),
        pytest.param(ROOT_A.trusted, CONSTRAINED.issue(dns=["x.outside.example"]), {}, "permitted", id="constraint"),
        pytest.param(ROOT_A.trusted, CONSTRAINED.issue(subject="x"), {}, "subject alone", id="constraint, no names"),
        pytest.param(
            ROOT_A.trusted, Authority("no CA", parent=ROOT_A, is_ca=False).issue(CHECKOUT), {}, "CA", id="not a CA"
        ),
        pytest.param(
            bundles(a_example=ROOT_B, b_example=ROOT_A), LEAF, {}, "not issued by trust domain a.example", id="CA of b"
        ),
        pytest.param(
            bundles(a_example=ROOT_A),
            ROOT_A.issue(CHECKOUT, dns=["a.example"]),
            {"sans": (SanMatcher(SanType.DNS, StringMatcher(StringKind.EXACT, "a.example")),)},
            "expected",
            id="a name beside the id",
        ),
        pytest.param(bundles(b_example=ROOT_A), LEAF, {}, "a.example of .* is not trusted", id="unknown trust domain"),
        pytest.param(bundles(), LEAF, {}, "verify failed|not trusted", id="no trust domain at all"),
        pytest.param(bundles(a_example=ROOT_A), ROOT_A.issue(dns=["a.example"]), {}, "URI", id="no SPIFFE id"),
        pytest.param(
            bundles(a_example=ROOT_A), ROOT_A.issue(CHECKOUT, "spiffe://a.example/x"), {}, "exactly one", id="two ids"
        ),
        pytest.param(
            bundles(a_example=ROOT_A), ROOT_A.issue("spiffe://a.example"), {}, "not a workload", id="domain's own id"
        ),
        pytest.param(
            bundles(a_example=ROOT_A),
            ROOT_A.issue(CHECKOUT, usage=("digital_signature", "key_cert_sign")),
            {},
            "may sign|purpose|unsuitable",
            id="may sign",
        ),
        pytest.param(
            replace(bundles(a_example=ROOT_A), needs_key_usage=True),
            ROOT_A.issue(CHECKOUT, usage=None),
            {},
            "what its key is for",
            id="no key usage",
        ),
    ],
)
def test_refused(meet, trust, leaf, fields, reason):
    with pytest.raises(ssl.SSLError, match=reason):
        meet(trust, leaf, **fields)


def test_conditions_of_a_secret_are_added_to_those_of_the_cluster():
    names = uri("spiffe://a.example/other")
    trust = TrustedCa(ROOT_A.pem, sans=uri(CHECKOUT), checks=PeerChecks(crl_pem=LIST))
    as_client(trust, NOT_REVOKED, sans=names)  # either name will do
    with pytest.raises(ssl.SSLError, match="revoked"):
        as_client(trust, REVOKED, sans=names)


def test_a_pin_without_roots_is_enough_and_nothing_else_is():
    pinned = ROOT_B.issue(CHECKOUT)
    as_client(None, pinned, checks=PeerChecks((pinned.certificate_hash,)))
    with pytest.raises(ssl.SSLError, match="not pinned"):
        as_client(None, LEAF, checks=PeerChecks((pinned.certificate_hash,)))
    for leaf, reason in (
        (ROOT_B.issue(CHECKOUT, ends=-HOURS / 2), "expired"),
        (ROOT_B.issue(CHECKOUT, starts=HOURS / 2), "not valid for another"),
    ):
        with pytest.raises(ssl.SSLError, match=reason):
            as_client(None, leaf, checks=PeerChecks((leaf.certificate_hash,)))
    with pytest.raises(IdentityError, match="no trusted CA"):
        as_client(TrustedCa(b""), pinned)


@pytest.mark.parametrize(
    ("fields", "names", "is_accepted"),
    [
        ({"authority_name": "a.example"}, {"dns": ["a.example"]}, True),
        ({"authority_name": "x.a.example"}, {"dns": ["*.a.example"]}, True),
        ({"authority_name": "a.example"}, {"dns": ["b.example"]}, False),
        ({"authority_name": "127.0.0.1"}, {"ips": ["127.0.0.1"]}, True),
        ({"authority_name": "127.0.0.1"}, {"dns": ["127.0.0.2"]}, False),
        # both count
        ({"authority_name": "a.example", "sans": uri(CHECKOUT)}, {"dns": ["a.example"]}, False),
        # the server name, instead of the other names
        ({"san_is_sni": True, "sni": "a.example", "sans": uri(CHECKOUT)}, {"dns": ["a.example"]}, True),
        ({"san_is_sni": True, "sni": "a.example"}, {"dns": ["b.example"]}, False),
        ({"san_is_sni": True, "sni": "a.example"}, {"ips": ["127.0.0.1"]}, False),
        # no server name: the other names
        ({"san_is_sni": True, "sans": uri(CHECKOUT)}, {"dns": ["a.example"]}, False),
    ],
)
def test_names_of_hosts(fields, names, is_accepted):
    if is_accepted:
        as_client(ROOT_A.trusted, ROOT_A.issue(**names), **fields)
    else:
        with pytest.raises(ssl.SSLError, match="expected"):
            as_client(ROOT_A.trusted, ROOT_A.issue(**names), **fields)


def test_parameters_are_set():
    parameters = TlsParameters("TLSv1_2", ("ECDHE-ECDSA-AES256-GCM-SHA384",), "prime256v1")
    tls = ClientTls(None, SecretRef(inline=ROOT_A.trusted), parameters=parameters)
    ours, theirs = handshake(client_context(tls, {}), serving(LEAF))
    assert ("TLSv1.2", "ECDHE-ECDSA-AES256-GCM-SHA384") == (ours.version(), ours.cipher()[0])
    assert theirs.shared_ciphers() is not None
    newest, _ = handshake(client_context(replace(tls, parameters=TlsParameters()), {}), serving(LEAF))
    assert "TLSv1.3" == newest.version()


def test_system_roots_are_loaded_when_asked_for_and_only_then(tmp_path, monkeypatch):
    bundle = tmp_path / "system.pem"
    bundle.write_bytes(ROOT_A.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    as_client(TrustedCa(b"", is_system=True), LEAF)
    with pytest.raises(ssl.SSLError):
        as_client(ROOT_B.trusted, LEAF)


def test_a_resumed_session_counts_for_those_whose_chain_was_in_order():
    """TLS 1.2 clients may resume by session id; then there is no chain to look at, only what was found before."""
    trust = bundles(a_example=ROOT_A)
    server = server_context(
        ServerTls(MINE, SecretRef(inline=trust), require_client_certificate=True), {"default": OURS.secret()}
    )
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    load_identity(client, LEAF.chain_pem, LEAF.key_pem)
    session, kept = None, []  # OpenSSL drops the session of a connection that is gone without a goodbye
    for is_reused in (False, True):
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours = client.wrap_bio(to_client, to_server, session=session)
        theirs = server.wrap_bio(to_server, to_client, server_side=True)
        done = 0
        for _ in range(6):
            for one in (ours, theirs):
                try:
                    one.do_handshake()
                    done += 1
                except ssl.SSLWantReadError:
                    continue
        assert done >= 2
        assert is_reused == theirs.session_reused
        session = ours.session
        kept += [ours, theirs]


@pytest.mark.parametrize(
    ("tls", "what"),
    [
        ({"checks": PeerChecks(crl_pem=LIST)}, "crl"),
        ({"checks": PeerChecks((b"x" * 32,))}, "verify_certificate_hash"),
        ({"checks": PeerChecks((), (b"x" * 32,))}, "verify_certificate_spki"),
        ({"checks": PeerChecks(max_depth=1)}, "max_verify_depth"),
        ({"trust": SecretRef(inline=bundles(a_example=ROOT_A))}, "SPIFFE trust domain"),
        ({"trust": SecretRef(inline=TrustedCa(b"", is_system=True))}, "system_root_certs"),
        ({"parameters": TlsParameters("TLSv1_2")}, "tls_maximum_protocol_version"),
        ({"parameters": TlsParameters(ciphers=("AES128-SHA",))}, "cipher_suites"),
        ({"parameters": TlsParameters(curve="prime256v1")}, "ecdh_curves"),
    ],
)
def test_grpc_server_refuses_by_name_what_it_cannot_honour(tls, what):
    secrets: dict[str, Secret] = {"default": OURS.secret(), "ROOTCA": ROOT_A.secret()}
    with pytest.raises(IdentityError, match=what):
        server_material(replace(ServerTls(MINE, ROOT), **tls), secrets)
