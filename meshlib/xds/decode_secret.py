"""Secrets (SDS): our own certificate with its key, or the roots that peers are verified against.

Errors never quote what they complain about: it may be a private key.
"""

from dataclasses import replace
from typing import Any, Final

from meshlib.certificates_library import exceptions, serialization, x509
from meshlib.model.secret import Secret, TlsCertificate, TrustedCa
from meshlib.xds.decode_common import cover, inline_data, join
from meshlib.xds.decode_validation import validation_context
from meshlib.xds.problems import Problems

__all__ = ["decode_secret", "tls_certificate"]

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
            return Secret(message.name, _trust(message.validation_context, place, problems))
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


def _trust(message: Any, path: str, problems: Problems) -> TrustedCa:
    found = validation_context(message, path, problems)
    if found.provider:
        problems.error(join(path, "ca_certificate_provider_instance"), "is not supported in a secret")
    if found.trust is None:
        if not found.has_pins:
            problems.error(join(path, "trusted_ca"), "is required")
        elif found.sans:
            problems.error(join(path, "trusted_ca"), "is required: names say nothing without it")
        return TrustedCa(b"", checks=found.checks)
    return replace(found.trust, sans=found.sans, checks=found.checks)


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
        return leaf.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except (ValueError, exceptions.UnsupportedAlgorithm):
        problems.error(path, "is not a PEM chain of certificates")
        return b""


def _public_part(key: bytes, path: str, problems: Problems) -> bytes:
    try:
        private = serialization.load_pem_private_key(key, password=None)
        return private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except (ValueError, TypeError, exceptions.UnsupportedAlgorithm):
        problems.error(path, "is not an unencrypted PEM private key")
        return b""
