"""Looking at the services from outside the mesh, with bare sockets."""

import contextlib
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509

__all__ = ["Probe", "RogueServer", "probe_tls", "speaks_plaintext"]

TIMEOUT_S = 3.0
REQUEST = b"GET / HTTP/1.1\r\nhost: probe\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Probe:
    """What a client without a certificate sees.

    Attributes:
        was_answered: The server answered a request although the client showed no certificate.
        serial: Of the server's certificate.
        remaining_s: Seconds until that certificate expires.
    """

    tls_version: str
    spiffe_id: str
    serial: int
    remaining_s: float
    was_answered: bool


def probe_tls(address: str, root_ca: Path) -> Probe:
    """Shake hands without a certificate, trusting only the mesh's CA, and try a request."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(root_ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as raw:
        # In TLS 1.3 the handshake is over for the client before the server has judged its certificate: the refusal
        # comes as an alert instead of an answer.
        with context.wrap_socket(raw) as tls:
            der = tls.getpeercert(binary_form=True)
            assert der is not None
            certificate = x509.load_der_x509_certificate(der)
            version = tls.version() or ""
            answered = False
            with contextlib.suppress(OSError):
                tls.sendall(REQUEST)
                answered = bool(tls.recv(1))
    sans = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (spiffe_id,) = sans.get_values_for_type(x509.UniformResourceIdentifier)
    remaining_s = certificate.not_valid_after_utc.timestamp() - time.time()  # noqa: TID251  # certificate lifetimes are wall-clock
    return Probe(version, spiffe_id, certificate.serial_number, remaining_s, answered)


def speaks_plaintext(address: str) -> bool:
    """Whether a request in the clear gets an HTTP answer other than a refusal."""
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as raw:
        raw.settimeout(TIMEOUT_S)
        raw.sendall(REQUEST)
        return raw.recv(12).startswith(b"HTTP/1.1 200")
    return False


class RogueServer:
    """A TLS server with a valid certificate of somebody else; counts what it is told."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.port: int = self._listening.getsockname()[1]
        self.handshakes = 0
        self.application_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(TIMEOUT_S)

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._listening.accept()
            except OSError:
                return  # closed
            self.handshakes += 1
            raw.settimeout(TIMEOUT_S)
            with contextlib.suppress(OSError), raw, self._context.wrap_socket(raw, server_side=True) as tls:
                while data := tls.recv(4096):
                    self.application_bytes += len(data)
