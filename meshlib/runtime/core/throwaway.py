"""Certificates for a moment: a CA that nobody has the key of, and peers for the self-test."""

import datetime
from dataclasses import dataclass

from meshlib.certificates_library import ec, hashes, serialization, x509

__all__ = ["ThrowawayCa"]


@dataclass(frozen=True, slots=True)
class Pair:
    """PEM."""

    chain_pem: bytes
    key_pem: bytes


class ThrowawayCa:
    """A CA whose key ends with this object.

    Attributes:
        pem: Its certificate.
    """

    def __init__(self, wall_now: float) -> None:
        self._now = datetime.datetime.fromtimestamp(wall_now, datetime.UTC)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "meshlib throwaway")])
        certificate = self._builder(self._name, self._key, is_ca=True).sign(self._key, hashes.SHA256())
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, uri: str) -> Pair:
        """Return a certificate for a URI, good for some minutes."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])
        builder = self._builder(x509.Name([]), key, is_ca=False).add_extension(names, critical=True)
        certificate = builder.sign(self._key, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Pair(certificate.public_bytes(serialization.Encoding.PEM), private)

    def _builder(
        self, subject: "x509.Name", key: "ec.EllipticCurvePrivateKey", *, is_ca: bool
    ) -> "x509.CertificateBuilder":
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - datetime.timedelta(minutes=5))
            .not_valid_after(self._now + datetime.timedelta(minutes=10))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
