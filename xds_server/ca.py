"""The certificate authority of one trust domain: a self-signed root that issues short-lived SPIFFE certificates."""

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from xds_server.identity import Identity
from xds_server.private_files import create_private, write_atomically

_ROOT_LIFETIME = timedelta(days=3650)
# Clocks of peers may be behind the server's by this much; it does not count as lifetime.
BACKDATE = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its key.

    Attributes:
        certificate_pem: The leaf alone: the root signs it directly.
        private_key_pem: PKCS#8. Not shown.
    """

    certificate_pem: bytes
    private_key_pem: bytes = field(repr=False)
    not_after: datetime


class CertificateAuthority:
    """Signs with the root's key; makes no decision about who gets what."""

    def __init__(self, root: x509.Certificate, key: ec.EllipticCurvePrivateKey, trust_domain: str) -> None:
        self.trust_domain = trust_domain
        self.root_pem = root.public_bytes(serialization.Encoding.PEM)
        self._root = root
        self._key = key

    @classmethod
    def create(cls, trust_domain: str, now: datetime) -> "CertificateAuthority":
        """Make a new root in memory."""
        key = ec.generate_private_key(ec.SECP256R1())
        return cls(_self_signed(key, trust_domain, now), key, trust_domain)

    @classmethod
    def open(cls, state_dir: Path, trust_domain: str, now: datetime) -> "CertificateAuthority":
        """Load the root of a state directory (`ca/root.pem`, `ca/root.key`); the first use makes it.

        Raises:
            ValueError: The files do not belong together or are of another trust domain.
            OSError: They can be neither read nor made.
        """
        key_path, root_path = state_dir / "ca" / "root.key", state_dir / "ca" / "root.pem"
        if root_path.exists() and not key_path.exists():
            raise ValueError(f"{root_path} is there and {key_path} is not; restore the key or remove both")
        key = _load_key(key_path, create_private(key_path, _new_key_pem))
        if not root_path.exists():
            root = _self_signed(key, trust_domain, now)
            write_atomically(root_path, root.public_bytes(serialization.Encoding.PEM), mode=0o644)
        try:
            root = x509.load_pem_x509_certificate(root_path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{root_path} holds no certificate in PEM") from error
        if root.public_key() != key.public_key():
            raise ValueError(f"{root_path} and {key_path} do not belong together; restore the right one or remove both")
        found = _trust_domain_of(root)
        if found != trust_domain:
            raise ValueError(f"{root_path} is of trust domain {found!r}, not {trust_domain!r} (--trust-domain)")
        return cls(root, key, trust_domain)

    def issue_svid(self, identity: Identity, ttl: timedelta, now: datetime) -> Issued:
        """Issue a SPIFFE certificate: one URI SAN, no subject, for both ends of a connection.

        Args:
            ttl: Lifetime from `now`; it ends with the root's at the latest.

        Source: SPIFFE X509-SVID, sections 2 and 4.
        """
        uri = x509.UniformResourceIdentifier(identity.spiffe_id(self.trust_domain))
        return self._issue([uri], (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH), ttl, now)

    def issue_server(self, hosts: Iterable[str], ttl: timedelta, now: datetime) -> Issued:
        """Issue the management server's own certificate.

        Args:
            hosts: DNS names and IP addresses by which clients reach it.
        """
        names = [_general_name(host) for host in dict.fromkeys(hosts)]
        return self._issue(names, (ExtendedKeyUsageOID.SERVER_AUTH,), ttl, now)

    def _issue(
        self, names: list[x509.GeneralName], usages: tuple[x509.ObjectIdentifier, ...], ttl: timedelta, now: datetime
    ) -> Issued:
        if ttl <= timedelta(0):
            raise ValueError("a certificate's lifetime must be positive")
        key = ec.generate_private_key(ec.SECP256R1())
        # Certificates count in whole seconds: round up, or a lifetime of 2 s could be little more than 1 s.
        ends_at = self._root.not_valid_after_utc
        ttl = min(ttl, ends_at - now)  # before adding: the sum may be later than any date
        not_after = min((now + ttl + timedelta(microseconds=999_999)).replace(microsecond=0), ends_at)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._root.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(not_after)
            # RFC 5280, 4.2.1.6: critical, since the subject is empty.
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        certificate = builder.sign(self._key, hashes.SHA256())
        return Issued(certificate.public_bytes(serialization.Encoding.PEM), _pem(key), not_after)


def utc_now() -> datetime:
    return datetime.now(UTC)


WallClock = Callable[[], datetime]


def _self_signed(key: ec.EllipticCurvePrivateKey, trust_domain: str, now: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"xds-server root of {trust_domain}"[:64])])
    uri = x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + _ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectAlternativeName([uri]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _trust_domain_of(root: x509.Certificate) -> str:
    try:
        names = root.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ""
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return uris[0].removeprefix("spiffe://") if uris else ""


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _new_key_pem() -> bytes:
    return _pem(ec.generate_private_key(ec.SECP256R1()))


def _load_key(path: Path, pem: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no private key in PEM") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{path} must hold an elliptic curve key")
    return key
