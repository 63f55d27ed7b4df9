"""Who is at the other end of an inbound connection, from its verified certificate."""

import ssl
from dataclasses import dataclass
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

__all__ = ["ANONYMOUS", "Peer", "peer_of_der", "peer_of_pem"]


@dataclass(frozen=True, slots=True)
class Peer:
    """Names of the caller; only ever made from a certificate that the TLS stack has verified.

    Attributes:
        spiffe_id: The certificate's one SPIFFE URI; empty when there is none, or more than one URI SAN (the SPIFFE
            standard calls such a certificate invalid).
        uri_sans: URI subject alternative names.
        dns_sans: DNS subject alternative names.
        subject: RFC 4514 name; may be empty.
        is_authenticated: A certificate was shown.
    """

    spiffe_id: str = ""
    uri_sans: tuple[str, ...] = ()
    dns_sans: tuple[str, ...] = ()
    subject: str = ""
    is_authenticated: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What a principal may be matched against: URI SANs, else DNS SANs, else the subject (Envoy's rule)."""
        return self.uri_sans or self.dns_sans or ((self.subject,) if self.subject else ())


ANONYMOUS = Peer()


def _peer(certificate: x509.Certificate) -> Peer:
    try:
        sans = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
        assert isinstance(sans, x509.SubjectAlternativeName)
        uris = tuple(sans.get_values_for_type(x509.UniformResourceIdentifier))
        names = tuple(sans.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:
        uris = names = ()
    spiffe_id = uris[0] if len(uris) == 1 and uris[0].startswith("spiffe://") else ""
    return Peer(spiffe_id, uris, names, certificate.subject.rfc4514_string(), True)


# A connection shows the same certificate for all its requests, and a rotated one is a new key: the bound only matters
# to a server with thousands of callers.
@lru_cache(maxsize=2048)
def peer_of_der(der: bytes) -> Peer:
    """Read the names in a verified certificate."""
    return _peer(x509.load_der_x509_certificate(der))


@lru_cache(maxsize=2048)
def peer_of_pem(pem: str) -> Peer:
    """Read the names in a verified certificate."""
    return peer_of_der(ssl.PEM_cert_to_DER_cert(pem))
