"""A certificate authority for tests: every kind of certificate, good and bad."""

import base64
import datetime
import json
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from meshlib.model.secret import Secret, TlsCertificate, TrustBundle, TrustedCa

PEM = Encoding.PEM
_SIGNING, _LEAF = ("key_cert_sign", "crl_sign"), ("digital_signature",)
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def key_usage(*names: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name in names for name in _USAGES})


def name_of(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)] if text else [])


class Leaf:
    """A certificate with its key and what has to be sent along."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, above: Sequence[bytes]) -> None:
        self.certificate = certificate
        self.der = certificate.public_bytes(Encoding.DER)
        self.chain_pem = certificate.public_bytes(PEM) + b"".join(above)
        self.key_pem = key.private_bytes(PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def value(self) -> TlsCertificate:
        return TlsCertificate(self.chain_pem, self.key_pem)

    def secret(self, name: str = "default") -> Secret:
        return Secret(name, self.value)

    @property
    def certificate_hash(self) -> bytes:
        return self.certificate.fingerprint(hashes.SHA256())

    @property
    def spki_hash(self) -> bytes:
        digest = hashes.Hash(hashes.SHA256())
        digest.update(self.certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
        return digest.finalize()


class Authority:
    """A root, or what it has certified to sign."""

    def __init__(
        self,
        name: str = "root",
        *,
        parent: "Authority | None" = None,
        path_length: int | None = None,
        permitted: Sequence[x509.GeneralName] | None = None,
        not_after: datetime.timedelta = datetime.timedelta(days=30),
        is_ca: bool = True,
    ) -> None:
        self.name = name_of(name)
        self.parent = parent
        self.key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(self.name, self.name if parent is None else parent.name, self.key, not_after=not_after)
        constraints = x509.BasicConstraints(ca=is_ca, path_length=path_length if is_ca else None)
        builder = builder.add_extension(constraints, critical=True).add_extension(key_usage(*_SIGNING), critical=True)
        if permitted is not None:
            builder = builder.add_extension(x509.NameConstraints(list(permitted), None), critical=True)
        issuer = self if parent is None else parent
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False
        )
        self.certificate = builder.sign(issuer.key, hashes.SHA256())
        self.pem = self.certificate.public_bytes(PEM)

    @property
    def trusted(self) -> TrustedCa:
        return TrustedCa(self.pem)

    def secret(self, name: str = "ROOTCA") -> Secret:
        return Secret(name, self.trusted)

    def bundle(self, trust_domain: str) -> TrustBundle:
        return TrustBundle(trust_domain, self.pem)

    def jwk(self) -> dict[str, Any]:
        der = base64.b64encode(self.certificate.public_bytes(Encoding.DER)).decode()
        return {"kty": "EC", "use": "x509-svid", "x5c": [der]}

    def issue(
        self,
        *uris: str,
        dns: Sequence[str] = (),
        ips: Sequence[str] = (),
        emails: Sequence[str] = (),
        subject: str = "",
        starts: datetime.timedelta = datetime.timedelta(hours=-1),
        ends: datetime.timedelta = datetime.timedelta(hours=1),
        usage: Sequence[str] | None = _LEAF,
        extended: Sequence[x509.ObjectIdentifier] = (),
        is_ca: bool = False,
    ) -> Leaf:
        """Issue a certificate.

        Args:
            starts: From now.
            ends: From now.
            usage: None: the certificate does not say.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(one) for one in uris]
        names += [x509.DNSName(one) for one in dns]
        names += [x509.IPAddress(ip_address(one)) for one in ips]
        names += [x509.RFC822Name(one) for one in emails]
        builder = _builder(name_of(subject), self.name, key, starts=starts, not_after=ends)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject)
        builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        if usage is not None:
            builder = builder.add_extension(key_usage(*usage), critical=True)
        if extended:
            builder = builder.add_extension(x509.ExtendedKeyUsage(list(extended)), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
        )
        return Leaf(builder.sign(self.key, hashes.SHA256()), key, self.above())

    def above(self) -> list[bytes]:
        """Return what a peer sends after its own certificate: everything but the root."""
        found, one = [], self
        while one.parent is not None:
            found.append(one.pem)
            one = one.parent
        return found

    def revoke(self, *revoked: "Leaf | Authority", ends: datetime.timedelta = datetime.timedelta(hours=1)) -> bytes:
        """Return a revocation list, as PEM."""
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(now - datetime.timedelta(hours=2))
            .next_update(now + ends)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        for one in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(one.certificate.serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(now - datetime.timedelta(hours=1)).build())
        return builder.sign(self.key, hashes.SHA256()).public_bytes(PEM)


def bundle_map(domains: Mapping[str, Sequence[Authority]]) -> str:
    """Return a SPIFFE bundle map."""
    found = {name: {"keys": [one.jwk() for one in roots]} for name, roots in domains.items()}
    return json.dumps({"trust_domains": found})


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    *,
    starts: datetime.timedelta = datetime.timedelta(days=-1),
    not_after: datetime.timedelta,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now + starts, now + not_after - datetime.timedelta(minutes=1)))
        .not_valid_after(now + not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
