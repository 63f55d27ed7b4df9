"""The TLS of a gRPC server that follows rotation, and closes when its certificate can no longer be used."""

import datetime
import logging
from collections.abc import Callable, Mapping
from typing import Any

import grpc

from meshlib.certificates_library import ec, hashes, serialization, x509
from meshlib.errors import IdentityError
from meshlib.model.secret import Secret, ServerTls
from meshlib.runtime.tls import server_material

__all__ = ["GrpcCertificates"]

_LOG = logging.getLogger(__name__)


class GrpcCertificates:
    """What each handshake of a gRPC server gets.

    While there is no usable certificate, handshakes get one that nobody trusts and trust nobody: grpcio would otherwise
    go on with what it was given last, the expired certificate and roots that may have been withdrawn.
    """

    def __init__(self, tls: ServerTls, secrets: Callable[[], Mapping[str, Secret]]) -> None:
        """
        Raises:
            IdentityError: There is no usable certificate now.
        """
        self._tls = tls
        self._secrets = secrets
        self._served, self._initial = self._current()

    def credentials(self) -> grpc.ServerCredentials:
        """Return the credentials of a port."""
        return grpc.dynamic_ssl_server_credentials(
            self._initial, self._fetch, require_client_authentication=self._tls.require_client_certificate
        )

    def _current(self) -> tuple[object, Any]:
        chain, key, roots = server_material(self._tls, self._secrets())
        return (chain, key, roots), grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=roots)

    def _fetch(self) -> Any:
        """Called by grpcio for each handshake; None: what was given last still holds."""
        try:
            served, fresh = self._current()
        except IdentityError as error:
            if self._served is None:
                return None
            _LOG.error("gRPC server: no more handshakes until there is a usable certificate: %s", error)
            served, fresh = None, _closed()
        if served == self._served:
            return None
        self._served = served
        return fresh


def _closed() -> Any:
    """Return a configuration with a certificate made for nobody, which is also its only root."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "closed")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return grpc.ssl_server_certificate_configuration([(private, certificate)], root_certificates=certificate)
