"""What a certificate says about itself, for events and status pages."""

from dataclasses import dataclass

from cryptography import x509

__all__ = ["CertificateFacts", "describe"]


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """Attributes:
    spiffe_id: First URI name, or empty.
    expires_at: Seconds since the epoch.
    """

    spiffe_id: str
    subject: str
    starts_at: float
    expires_at: float


def describe(chain_pem: bytes) -> CertificateFacts | None:
    """Return what the first certificate of a chain says; None when it cannot be read."""
    try:
        leaf = x509.load_pem_x509_certificates(chain_pem)[0]
        subject = leaf.subject.rfc4514_string()
    except ValueError:
        return None
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        uris = []
    return CertificateFacts(
        uris[0] if uris else "",
        subject,
        leaf.not_valid_before_utc.timestamp(),
        leaf.not_valid_after_utc.timestamp(),
    )
