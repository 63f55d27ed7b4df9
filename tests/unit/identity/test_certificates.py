from datetime import UTC, datetime
from functools import cache
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from meshlib.errors import IdentityError
from meshlib.identity.certificates import check_certificate, is_expired, key_matches, parse_chain
from meshlib.identity.san import PeerNames
from meshlib.identity.spiffe import SpiffeId
from meshlib.model.secret import TlsCertificate

START, END = 1_700_000_000, 1_700_003_600
CHECKOUT = "spiffe://cluster.local/ns/default/sa/checkout"
NAMES = (
    x509.UniformResourceIdentifier(CHECKOUT),
    x509.DNSName("checkout"),
    x509.IPAddress(ip_address("127.0.0.1")),
    x509.RFC822Name("a@example.com"),
)


@cache
def key(number: int) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(number: int = 0) -> bytes:
    return key(number).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def certificate(*names: x509.GeneralName, is_ca: bool = False) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "checkout")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key(0).public_key())
        .serial_number(1)
        .not_valid_before(datetime.fromtimestamp(START, UTC))
        .not_valid_after(datetime.fromtimestamp(END, UTC))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if is_ca:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key(0), hashes.SHA256()).public_bytes(Encoding.PEM)


def test_what_a_certificate_says() -> None:
    (leaf,) = parse_chain(certificate(*NAMES))
    assert leaf.names == PeerNames((CHECKOUT,), ("checkout",), ("127.0.0.1",), ("a@example.com",), "CN=checkout")
    assert (leaf.not_before, leaf.not_after, leaf.is_ca, leaf.issuer) == (START, END, False, "CN=checkout")
    assert leaf.spiffe_id == SpiffeId("cluster.local", "/ns/default/sa/checkout")


def test_certificate_without_names() -> None:
    (root,) = parse_chain(certificate(is_ca=True))
    assert (root.names, root.is_ca, root.spiffe_id) == (PeerNames(subject="CN=checkout"), True, None)


def test_chain_keeps_its_order() -> None:
    leaf, root = parse_chain(certificate(*NAMES) + certificate(is_ca=True))
    assert (leaf.is_ca, root.is_ca) == (False, True)


@pytest.mark.parametrize("pem", [b"", b"nonsense", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_unreadable_chain(pem: bytes) -> None:
    with pytest.raises(ValueError, match="not a PEM certificate chain"):
        parse_chain(pem)


def test_expiry() -> None:
    (leaf,) = parse_chain(certificate())
    assert is_expired(leaf, END) is False
    assert is_expired(leaf, END + 0.1) is True


def test_key_belongs_to_its_certificate() -> None:
    (leaf,) = parse_chain(certificate())
    assert key_matches(leaf, key_pem()) is True
    assert key_matches(leaf, key_pem(1)) is False


def test_unreadable_key_is_not_quoted() -> None:
    (leaf,) = parse_chain(certificate())
    with pytest.raises(ValueError, match="not a PEM private key") as caught:
        key_matches(leaf, b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n")
    assert "c2VjcmV0" not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_usable_certificate() -> None:
    pair = TlsCertificate(certificate(*NAMES), key_pem())
    assert check_certificate(pair, wall_now=START + 1, name="default").names.dns == ("checkout",)


@pytest.mark.parametrize(
    ("number", "wall_now", "message"),
    [
        (1, START + 1, "'default' cannot be used: its key belongs to another one"),
        (0, END + 60, "'default' expired 60 s ago"),
        (0, START - 60, "'default' is not valid for another 60 s"),
    ],
)
def test_unusable_certificate(number: int, wall_now: float, message: str) -> None:
    pair = TlsCertificate(certificate(), key_pem(number))
    with pytest.raises(IdentityError, match=message) as caught:
        check_certificate(pair, wall_now=wall_now, name="default")
    assert caught.value.resource == "default"


def test_unreadable_certificate_names_the_secret() -> None:
    with pytest.raises(IdentityError, match="'default' cannot be used: not a PEM certificate chain"):
        check_certificate(TlsCertificate(b"", b""), wall_now=START, name="default")
