"""What a certificate says: names, validity, and whether a private key belongs to it.

Private keys pass through and are never kept, shown or quoted in an error.
"""

from dataclasses import dataclass, field

from meshlib.certificates_library import serialization, x509
from meshlib.errors import IdentityError
from meshlib.identity.san import PeerNames
from meshlib.identity.spiffe import SpiffeId, spiffe_id_of
from meshlib.model.secret import TlsCertificate

__all__ = ["CertificateInfo", "check_certificate", "is_expired", "key_matches", "names_of", "parse_chain"]


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """One certificate.

    Attributes:
        names: As verified by whoever verified it; parsing verifies nothing.
        issuer: RFC 4514 name.
        not_before: Seconds since the epoch.
        not_after: Seconds since the epoch; the last second at which it is valid.
        is_ca: It may sign others.
        public_key: DER SubjectPublicKeyInfo.
    """

    names: PeerNames
    issuer: str
    not_before: float
    not_after: float
    is_ca: bool
    public_key: bytes = field(repr=False)

    @property
    def spiffe_id(self) -> SpiffeId | None:
        """The workload's id, or None when the certificate has none that is valid."""
        try:
            return spiffe_id_of(self.names.uris)
        except ValueError:
            return None


def names_of(certificate: "x509.Certificate") -> PeerNames:
    """Return the names in a certificate."""
    subject = certificate.subject.rfc4514_string()
    try:
        sans = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return PeerNames(subject=subject)
    return PeerNames(
        uris=tuple(sans.get_values_for_type(x509.UniformResourceIdentifier)),
        dns=tuple(sans.get_values_for_type(x509.DNSName)),
        ips=tuple(str(address) for address in sans.get_values_for_type(x509.IPAddress)),
        emails=tuple(sans.get_values_for_type(x509.RFC822Name)),
        subject=subject,
    )


def _info(certificate: "x509.Certificate") -> CertificateInfo:
    try:
        is_ca = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_ca = False
    return CertificateInfo(
        names=names_of(certificate),
        issuer=certificate.issuer.rfc4514_string(),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        is_ca=is_ca,
        public_key=certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    )


def parse_chain(pem: bytes) -> tuple[CertificateInfo, ...]:
    """Read PEM certificates in order (a chain: the leaf first; a bundle: the roots).

    Raises:
        ValueError: There is none, or one cannot be read.
    """
    try:
        return tuple(_info(certificate) for certificate in x509.load_pem_x509_certificates(pem))
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(f"not a PEM certificate chain: {error}") from error


def is_expired(certificate: CertificateInfo, wall_now: float) -> bool:
    """Whether its time is over.

    Args:
        wall_now: Seconds since the epoch.
    """
    return wall_now > certificate.not_after


def key_matches(certificate: CertificateInfo, key_pem: bytes) -> bool:
    """Whether a private key (PEM, not encrypted) belongs to a certificate.

    Raises:
        ValueError: The key cannot be read.
    """
    try:
        key = serialization.load_pem_private_key(key_pem, None)
    except (ValueError, TypeError):
        # The cause could quote the input.
        raise ValueError("not a PEM private key without password") from None
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return public == certificate.public_key


def check_certificate(certificate: TlsCertificate, *, wall_now: float, name: str) -> CertificateInfo:
    """Return the leaf of a certificate that we can use now.

    Args:
        wall_now: Seconds since the epoch.
        name: Of the secret, for the error.

    Raises:
        IdentityError: Unreadable, not yet valid, expired, or the key belongs to another certificate. A mismatched pair
            handed to `ssl` would leave its context broken.
    """
    try:
        leaf = parse_chain(certificate.chain_pem)[0]
        belongs = key_matches(leaf, certificate.key_pem)
    except ValueError as error:
        raise IdentityError(f"certificate {name!r} cannot be used: {error}", resource=name) from error
    if not belongs:
        raise IdentityError(f"certificate {name!r} cannot be used: its key belongs to another one", resource=name)
    if is_expired(leaf, wall_now):
        late = wall_now - leaf.not_after
        raise IdentityError(f"certificate {name!r} expired {late:.0f} s ago", resource=name)
    if wall_now < leaf.not_before:
        early = leaf.not_before - wall_now
        raise IdentityError(f"certificate {name!r} is not valid for another {early:.0f} s", resource=name)
    return leaf
