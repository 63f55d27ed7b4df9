"""Secrets (SDS): our own certificate with its key, or the roots that peers are verified against.

Errors never quote what they complain about: it may be a private key.
"""

from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from meshlib.model.secret import Secret, TlsCertificate, TrustedCa
from meshlib.xds.decode_common import cover, inline_data, join
from meshlib.xds.problems import Problems

__all__ = ["decode_secret", "tls_certificate", "trusted_ca"]

_CERTIFICATE_USED: Final = frozenset({"certificate_chain", "private_key"})
_CERTIFICATE_HARMLESS: Final = frozenset({"watched_directory", "ocsp_staple", "signed_certificate_timestamp"})


def decode_secret(message: Any, path: str, problems: Problems) -> Secret:
    """Decode a Secret."""
    used = frozenset({"name", "tls_certificate", "validation_context"})
    cover(message, path, problems, used=used, harmless=frozenset())
    if not message.name:
        problems.error(join(path, "name"), "must not be empty")
    match message.WhichOneof("type"):
        case "tls_certificate":
            return Secret(
                message.name, tls_certificate(message.tls_certificate, join(path, "tls_certificate"), problems)
            )
        case "validation_context":
            place = join(path, "validation_context")
            context = message.validation_context
            # Further conditions in a secret would be added to those of the cluster; the model has no place for them.
            harmless = frozenset({"watched_directory", "only_verify_leaf_cert_crl"})
            cover(context, place, problems, used=frozenset({"trusted_ca"}), harmless=harmless)
            if not context.HasField("trusted_ca"):
                problems.error(join(place, "trusted_ca"), "is required")
                return Secret(message.name, TrustedCa(b""))
            return Secret(message.name, trusted_ca(context.trusted_ca, join(place, "trusted_ca"), problems))
        case None:
            problems.error(join(path, "type"), "one of tls_certificate, validation_context is required")
    return Secret(message.name, TrustedCa(b""))


def tls_certificate(message: Any, path: str, problems: Problems) -> TlsCertificate:
    """Decode a TlsCertificate; the key must be that of the first certificate."""
    cover(message, path, problems, used=_CERTIFICATE_USED, harmless=_CERTIFICATE_HARMLESS)
    chain = _pem(message, "certificate_chain", path, problems)
    key = _pem(message, "private_key", path, problems)
    if not chain or not key:
        return TlsCertificate(b"", b"")
    leaf_key = _leaf_key(chain, join(path, "certificate_chain"), problems)
    own_key = _public_part(key, join(path, "private_key"), problems)
    if leaf_key and own_key and leaf_key != own_key:
        problems.error(join(path, "private_key"), "is not the key of the certificate")
    return TlsCertificate(chain, key)


def trusted_ca(source: Any, path: str, problems: Problems) -> TrustedCa:
    """Decode a bundle of root certificates."""
    bundle = inline_data(source, path, problems)
    if bundle is None:
        return TrustedCa(b"")
    try:
        x509.load_pem_x509_certificates(bundle)
    except ValueError:
        problems.error(path, "is not a PEM bundle of certificates")
    return TrustedCa(bundle)


def _pem(message: Any, name: str, path: str, problems: Problems) -> bytes | None:
    if not message.HasField(name):
        problems.error(join(path, name), "is required")
        return None
    data = inline_data(getattr(message, name), join(path, name), problems)
    if data == b"":
        problems.error(join(path, name), "is empty")
    return data


def _leaf_key(chain: bytes, path: str, problems: Problems) -> bytes:
    """Return the public key of the first certificate, or nothing after an error."""
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        return leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        problems.error(path, "is not a PEM chain of certificates")
        return b""


def _public_part(key: bytes, path: str, problems: Problems) -> bytes:
    try:
        private = load_pem_private_key(key, password=None)
        return private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        problems.error(path, "is not an unencrypted PEM private key")
        return b""
