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
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

from meshlib.identity.san import PeerNames
from meshlib.identity.verify import Chain, LeafFacts, PeerRule, leaf_facts
from meshlib.ports import WallClock
from meshlib.runtime.clock import wall as system_wall

__all__ = ["MeshContext", "load_identity", "load_trust", "peer_identity"]


_DER: Final = 2
"""`_ssl.ENCODING_DER`."""
HANDSHAKE_TIMEOUT_S = 10.0
"""For servers that wait in the handshake and set no time themselves."""


def peer_identity(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> PeerNames | None:
    """Return the names of a connection's peer, whose certificate the handshake has verified; None: it showed none."""
    der = ssl_object.getpeercert(binary_form=True)
    return None if der is None else _facts(der).names


# Peers show the same few certificates all the time, and reading one takes longer than the rest of the check.
@lru_cache(maxsize=4096)
def _facts(der: bytes) -> LeafFacts:
    try:
        return leaf_facts(der)
    except ValueError as error:
        raise _refusal(str(error)) from error


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
    der = ssl_object.getpeercert(binary_form=True)
    is_reused = bool(ssl_object.session_reused)
    context.check(der, lambda: _verified_chain(ssl_object), is_reused=is_reused)


def _verified_chain(ssl_object: ssl.SSLObject | ssl.SSLSocket) -> tuple[bytes, ...] | None:
    """Return the chain that OpenSSL has found, leaf first."""
    if sys.version_info >= (3, 13):
        return tuple(ssl_object.get_verified_chain()) or None
    # What 3.13 made public is there since 3.10; certificates come as objects.
    found = ssl_object._sslobj.get_verified_chain()  # type: ignore[union-attr]
    return tuple(one.public_bytes(_DER) for one in found) if found else None


class MeshContext(ssl.SSLContext):
    """A context with an opinion on the peer's names. Not changed once it is in use.

    Attributes:
        rule: What the peer must be; None: whoever has a trusted certificate.
        peer_required: A peer without a certificate is refused.
        server_name: For clients: the SNI sent, whatever the library thinks that the host is called; empty: none.
        wall: Seconds since the epoch.
    """

    sslsocket_class = _VerifiedSocket
    sslobject_class = _VerifiedObject

    rule: PeerRule | None = None
    peer_required: bool = True
    server_name: str = ""
    wall: WallClock = staticmethod(system_wall)
    # Leaves whose chain was in order; made on first use. Only sessions of this very context can be resumed with it.
    _passed: "OrderedDict[bytes, None] | None" = None
    MAX_PASSED = 4096

    def forbid_tickets(self) -> None:
        """For servers: hand out nothing that lets a later connection skip the verification of its certificate."""
        self.num_tickets = 0  # TLS 1.3
        self.options |= ssl.OP_NO_TICKET

    def check(self, der: bytes | None, chain: Chain, *, is_reused: bool = False) -> None:
        """Compare a peer with what is expected.

        Args:
            der: Its certificate; None: it has shown none.
            chain: As the library has verified it.
            is_reused: The session was resumed, and nothing verified: what counts is that it was when the session began.

        Raises:
            ssl.SSLCertVerificationError: It is someone else, or shows no certificate where one is needed.
        """
        if der is None:
            if self.peer_required:
                raise _refusal("the peer shows no certificate")
            return
        leaf, rule = _facts(der), self.rule
        now = self.wall()
        # Otherwise the library has looked at the time.
        if is_reused or self.verify_mode is ssl.CERT_NONE:
            if now > leaf.not_after:
                raise _refusal(f"its certificate expired {now - leaf.not_after:.0f} s ago")
            if now < leaf.not_before:
                raise _refusal(f"its certificate is not valid for another {leaf.not_before - now:.0f} s")
        if rule is None:
            return
        # Where a pin alone says who the peer is, no chain has been verified.
        needs_chain = self.verify_mode is not ssl.CERT_NONE and rule.needs_chain(leaf)
        is_known = is_reused and leaf.certificate_hash in (self._passed or ())
        reason = rule.refusal(leaf, chain if needs_chain and not is_known else None, now)
        if reason:
            raise _refusal(reason)
        if needs_chain:
            self._remember(leaf.certificate_hash)

    def _remember(self, leaf: bytes) -> None:
        passed = self._passed
        if passed is None:
            passed = self._passed = OrderedDict()
        passed[leaf] = None
        while len(passed) > self.MAX_PASSED:
            passed.popitem(last=False)

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


def load_trust(context: ssl.SSLContext, pem: bytes) -> None:
    """Give a context roots and revocation lists.

    Raises:
        ssl.SSLError: There are none, or they cannot be read.
    """
    # `cadata` takes no revocation lists.
    with _as_file(pem) as path:
        context.load_verify_locations(cafile=path)


def load_identity(context: ssl.SSLContext, chain_pem: bytes, key_pem: bytes) -> None:
    """Give a context our certificate. The key is never on a disk that survives this process.

    Raises:
        ssl.SSLError: The two do not belong together, or are not PEM.
    """
    with _as_file(chain_pem.rstrip() + b"\n" + key_pem) as path:
        # A password callback, so that an encrypted key is an error and not a question on the terminal.
        context.load_cert_chain(path, password=lambda: b"")


@contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """`ssl` only loads files: memory of ours that has a name under /proc, else a file of mode 0600 that is gone at once."""
    try:
        fd = os.memfd_create("meshlib-identity", os.MFD_CLOEXEC)
        path, is_file = f"/proc/self/fd/{fd}", False
    except (AttributeError, OSError):
        fd, path = tempfile.mkstemp(prefix="meshlib-")
        is_file = True
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            yield path
    finally:
        if is_file:
            os.unlink(path)
