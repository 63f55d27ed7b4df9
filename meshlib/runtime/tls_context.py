"""SSL contexts that know who the peer must be, and check it inside the handshake.

One hook serves every client and server built on Python's `ssl`: whoever wraps a socket or a pair of BIOs with such a
context gets an object whose `do_handshake` also compares the peer's names. It raises before the caller can send or read
a single byte of application data. Reading or writing without a handshake before does the handshake first: OpenSSL would
do it too, but without the comparison.

Sessions: a session that is resumed skips the verification of the peer's chain. Clients here never resume, servers hand
out no tickets; what remains (session ids of TLS 1.2) never crosses from one trust bundle to another, since each has a
context of its own, and ends with the certificate that it was made with.
"""

import os
import ssl
import tempfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from cryptography import x509

from meshlib.identity.certificates import names_of
from meshlib.identity.san import PeerNames
from meshlib.ports import WallClock
from meshlib.runtime.clock import wall as system_wall

__all__ = ["MeshContext", "load_identity", "peer_identity"]


HANDSHAKE_TIMEOUT_S = 10.0
"""For servers that wait in the handshake and set no time themselves."""


def peer_identity(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> PeerNames | None:
    """Return the names of a connection's peer, whose certificate the handshake has verified; None: it showed none."""
    der = ssl_object.getpeercert(binary_form=True)
    return None if der is None else _names(der)


# Peers show the same few certificates all the time, and reading one takes longer than the rest of the check.
@lru_cache(maxsize=4096)
def _names(der: bytes) -> PeerNames:
    try:
        return names_of(x509.load_der_x509_certificate(der))
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise _refusal(f"the peer's certificate cannot be read: {error}") from error


def _refusal(text: str) -> ssl.SSLCertVerificationError:
    # With one argument only, SSLError shows itself as a tuple.
    return ssl.SSLCertVerificationError(ssl.SSL_ERROR_SSL, text)


class _VerifiedSocket(ssl.SSLSocket):
    _is_verified = False

    def do_handshake(self, block: bool = False) -> None:
        timeout = self.gettimeout()
        if timeout is not None or not self.server_side:
            super().do_handshake(block)
        else:
            # A caller that says nothing must not hold a thread of the server (gunicorn's) for ever.
            self.settimeout(HANDSHAKE_TIMEOUT_S)
            try:
                super().do_handshake(block)
            finally:
                self.settimeout(None)
        _check(self.context, self)
        self._is_verified = True

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        if not self._is_verified:
            self.do_handshake()
        return super().read(len, buffer)

    def write(self, data: Any) -> int:
        if not self._is_verified:
            self.do_handshake()
        return super().write(data)

    def send(self, data: Any, flags: int = 0) -> int:
        if not self._is_verified:
            self.do_handshake()
        return super().send(data, flags)


class _VerifiedObject(ssl.SSLObject):
    _is_verified = False

    def do_handshake(self) -> None:
        super().do_handshake()
        _check(self.context, self)
        self._is_verified = True

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        if not self._is_verified:
            self.do_handshake()
        # None is another thing than no buffer to `ssl`.
        return super().read(len) if buffer is None else super().read(len, buffer)

    def write(self, data: Any) -> int:
        if not self._is_verified:
            self.do_handshake()
        return super().write(data)


def _check(context: ssl.SSLContext, ssl_object: ssl.SSLObject | ssl.SSLSocket) -> None:
    if not isinstance(context, MeshContext):
        raise _refusal("the context does not say who the peer must be")
    if ssl_object.session_reused and context.is_over(ssl_object.getpeercert(binary_form=True)):
        raise _refusal("the session's certificate has expired")
    context.check(peer_identity(ssl_object))


class MeshContext(ssl.SSLContext):
    """A context with an opinion on the peer's names. Not changed once it is in use.

    Attributes:
        accepts: Test of the peer's names; None: whoever has a trusted certificate.
        expected: What `accepts` asks for, for errors.
        peer_required: A peer without a certificate is refused.
        server_name: For clients: the SNI sent, whatever the library thinks that the host is called; empty: none.
        wall: Seconds since the epoch.
    """

    sslsocket_class = _VerifiedSocket
    sslobject_class = _VerifiedObject

    accepts: Callable[[PeerNames], bool] | None = None
    expected: str = ""
    peer_required: bool = True
    server_name: str = ""
    wall: WallClock = staticmethod(system_wall)

    def forbid_tickets(self) -> None:
        """For servers: hand out nothing that lets a later connection skip the verification of its certificate."""
        self.num_tickets = 0  # TLS 1.3
        self.options |= ssl.OP_NO_TICKET

    def is_over(self, der: bytes | None) -> bool:
        """Whether a certificate that was verified once has expired since."""
        return der is not None and self.wall() > x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp()

    def check(self, names: PeerNames | None) -> None:
        """Compare a verified peer with what is expected.

        Raises:
            ssl.SSLCertVerificationError: It is someone else, or shows no certificate where one is needed.
        """
        if names is None:
            if self.peer_required:
                raise _refusal("the peer shows no certificate")
            return
        if self.accepts is not None and not self.accepts(names):
            shown = ", ".join((*names.uris, *names.dns, *names.ips)) or names.subject or "nobody by name"
            raise _refusal(f"the peer is {shown}, expected {self.expected}")

    def wrap_socket(
        self,
        sock: Any,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        """As in `ssl`; the mesh decides the server name, and no session is resumed."""
        return super().wrap_socket(
            sock,
            server_side=server_side,
            do_handshake_on_connect=do_handshake_on_connect,
            suppress_ragged_eofs=suppress_ragged_eofs,
            server_hostname=None if server_side else self.server_name or None,
        )

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As in `ssl`; the mesh decides the server name, and no session is resumed."""
        return super().wrap_bio(
            incoming,
            outgoing,
            server_side=server_side,
            server_hostname=None if server_side else self.server_name or None,
        )

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        """Ignored: HTTP libraries call it for every connection, and the mesh has decided."""

    def offer(self, protocols: Iterable[str]) -> None:
        """Set what ALPN offers or accepts, in order of preference; none: no ALPN."""
        wanted = list(protocols)
        if wanted:
            super().set_alpn_protocols(wanted)


def load_identity(context: ssl.SSLContext, chain_pem: bytes, key_pem: bytes) -> None:
    """Give a context our certificate. The key is never on a disk that survives this process.

    Raises:
        ssl.SSLError: The two do not belong together, or are not PEM.
    """
    # `ssl` only loads files: memory of ours that has a name under /proc, else a file of mode 0600 that is gone at once.
    try:
        fd = os.memfd_create("meshlib-identity", os.MFD_CLOEXEC)
        path, is_file = f"/proc/self/fd/{fd}", False
    except (AttributeError, OSError):
        fd, path = tempfile.mkstemp(prefix="meshlib-")
        is_file = True
    try:
        with open(fd, "wb") as file:
            file.write(chain_pem.rstrip() + b"\n" + key_pem)
            file.flush()
            # A password callback, so that an encrypted key is an error and not a question on the terminal.
            context.load_cert_chain(path, password=lambda: b"")
    finally:
        if is_file:
            os.unlink(path)
