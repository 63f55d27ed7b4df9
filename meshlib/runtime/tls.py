"""TLS contexts made of what the control plane says: transport sockets and secrets.

A context is kept for each pair of TLS configuration and secrets, so a rotated certificate means another context, and
whoever keeps connections per context moves on by itself. Nothing but the trust bundle decides which chains are good:
the system's roots are never loaded.
"""

import ssl
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from meshlib.errors import IdentityError
from meshlib.identity.certificates import check_certificate
from meshlib.identity.san import PeerNames, compile_sans, describe_sans
from meshlib.model.secret import ClientTls, Secret, SecretRef, ServerTls, TlsCertificate, TrustedCa
from meshlib.ports import Lock, WallClock
from meshlib.runtime.clock import wall as system_wall
from meshlib.runtime.tls_context import MeshContext, load_identity, peer_identity

__all__ = [
    "PeerNames",
    "RotatingServerContext",
    "client_context",
    "peer_identity",
    "rotating_server_context",
    "server_context",
    "server_material",
]

K = TypeVar("K")

MINIMUM = {"TLSv1_2": ssl.TLSVersion.TLSv1_2, "TLSv1_3": ssl.TLSVersion.TLSv1_3}


@dataclass(slots=True)
class _Made:
    """A context and what it was made of."""

    tls: ClientTls | ServerTls
    certificate: TlsCertificate | None
    trust: TrustedCa | None
    context: MeshContext
    valid_from: float
    valid_until: float


class _Contexts:
    """Contexts that were made, by identity of their configuration, and by value for a configuration sent again."""

    # Two versions of a few hundred services' settings; a context takes some 20 kB.
    CAPACITY = 1024

    def __init__(self) -> None:
        self._lock = Lock()
        # Guarded by the lock. An entry of `_recent` holds the configuration, so its id stays taken.
        self._recent: OrderedDict[tuple[int, tuple[str, ...]], _Made] = OrderedDict()
        self._by_value: OrderedDict[tuple[object, ...], _Made] = OrderedDict()

    def get(
        self,
        tls: ClientTls | ServerTls,
        certificate: TlsCertificate | None,
        trust: TrustedCa | None,
        alpn: tuple[str, ...],
        make: Callable[[], MeshContext],
        wall: WallClock,
    ) -> MeshContext:
        key, now = (id(tls), alpn), wall()
        with self._lock:
            made = self._recent.get(key)
        if (
            made is None
            or made.tls is not tls
            or not (made.certificate is certificate or made.certificate == certificate)
            or not (made.trust is trust or made.trust == trust)
        ):
            made = self._by_content(tls, certificate, trust, alpn, make, now)
            with self._lock:
                _keep(self._recent, key, made, self.CAPACITY)
        if certificate is not None and not made.valid_from <= now <= made.valid_until:
            check_certificate(certificate, wall_now=now, name=_name_of(tls.certificate))  # says what is wrong
        return made.context

    def _by_content(
        self,
        tls: ClientTls | ServerTls,
        certificate: TlsCertificate | None,
        trust: TrustedCa | None,
        alpn: tuple[str, ...],
        make: Callable[[], MeshContext],
        wall_now: float,
    ) -> _Made:
        key = (tls, certificate, trust, alpn)
        with self._lock:
            found = self._by_value.get(key)
        if found is None:
            valid_from, valid_until = 0.0, 0.0
            if certificate is not None:
                leaf = check_certificate(certificate, wall_now=wall_now, name=_name_of(tls.certificate))
                valid_from, valid_until = leaf.not_before, leaf.not_after
            found = _Made(tls, certificate, trust, make(), valid_from, valid_until)
        with self._lock:
            found = self._by_value.get(key, found)
            _keep(self._by_value, key, found, self.CAPACITY)
        # Its own entry for this very object, with the context that equal configurations share.
        return _Made(tls, certificate, trust, found.context, found.valid_from, found.valid_until)


def _keep(entries: OrderedDict[K, _Made], key: K, made: _Made, capacity: int) -> None:
    entries[key] = made
    entries.move_to_end(key)
    while len(entries) > capacity:
        entries.popitem(last=False)


_contexts = _Contexts()


def client_context(
    tls: ClientTls,
    secrets: Mapping[str, Secret],
    *,
    default_alpn: tuple[str, ...] = (),
    wall: WallClock = system_wall,
) -> MeshContext:
    """Return the context for connections to peers of one TLS configuration.

    The peer's names are compared inside the handshake, before any application byte. Equal arguments give the same
    context.

    Args:
        tls: From the cluster, or the endpoint's transport socket match.
        secrets: By SDS name, e.g. `view.secrets`.
        default_alpn: Offered when the configuration says nothing of ALPN.
        wall: Seconds since the epoch.

    Raises:
        IdentityError: A secret is missing, cannot be used or has expired, or the peer would not be verified.
    """
    certificate = _certificate(tls.certificate, secrets) if tls.certificate is not None else None
    if tls.trust is None:
        raise IdentityError("the TLS configuration has no trusted CA, so that anybody could be the peer")
    trust = _trust(tls.trust, secrets)
    alpn = tls.alpn or default_alpn

    def make() -> MeshContext:
        context = MeshContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # names are compared by the matchers
        context.verify_mode = ssl.CERT_REQUIRED
        context.server_name = tls.sni
        _fill(context, tls, certificate, trust, alpn)
        return context

    return _contexts.get(tls, certificate, trust, alpn, make, wall)


def server_context(
    tls: ServerTls,
    secrets: Mapping[str, Secret],
    *,
    default_alpn: tuple[str, ...] = (),
    wall: WallClock = system_wall,
) -> MeshContext:
    """Return the context for connections that come in; see `client_context`."""
    certificate = _certificate(tls.certificate, secrets)
    trust = _trust(tls.trust, secrets) if tls.trust is not None else None
    if tls.require_client_certificate and trust is None:
        raise IdentityError("the TLS configuration asks for client certificates and has no trusted CA")
    alpn = tls.alpn or default_alpn

    def make() -> MeshContext:
        context = MeshContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = _server_verify_mode(tls)
        context.peer_required = tls.require_client_certificate
        context.forbid_tickets()
        context.wall = wall
        _fill(context, tls, certificate, trust, alpn)
        return context

    return _contexts.get(tls, certificate, trust, alpn, make, wall)


def _server_verify_mode(tls: ServerTls) -> ssl.VerifyMode:
    if tls.trust is None:
        return ssl.CERT_NONE
    return ssl.CERT_REQUIRED if tls.require_client_certificate else ssl.CERT_OPTIONAL


def _fill(
    context: MeshContext,
    tls: ClientTls | ServerTls,
    certificate: TlsCertificate | None,
    trust: TrustedCa | None,
    alpn: tuple[str, ...],
) -> None:
    minimum = MINIMUM.get(tls.minimum_version)
    if minimum is None:
        raise IdentityError(f"TLS version {tls.minimum_version!r} is not supported; known: {', '.join(MINIMUM)}")
    context.minimum_version = minimum
    context.offer(alpn)
    # A bundle may hold intermediates without their root: Envoy trusts them too.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if tls.sans:
        try:
            context.accepts = compile_sans(tls.sans)
        except ValueError as error:
            raise IdentityError(f"the expected names cannot be used: {error}") from error
        context.expected = describe_sans(tls.sans)
    if trust is not None:
        try:
            context.load_verify_locations(cadata=trust.ca_pem.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise IdentityError(f"the trust bundle cannot be used: {error}", resource=_name_of(tls.trust)) from error
    if certificate is not None:
        try:
            load_identity(context, certificate.chain_pem, certificate.key_pem)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise IdentityError(
                f"our certificate and key cannot be used: {error}", resource=_name_of(tls.certificate)
            ) from error


def _name_of(ref: SecretRef | None) -> str:
    if ref is None:
        return ""
    return ref.sds_name or ref.provider or "inline"


def _secret(ref: SecretRef, secrets: Mapping[str, Secret]) -> TlsCertificate | TrustedCa:
    if ref.inline is not None:
        return ref.inline
    if ref.provider:
        raise IdentityError(
            "certificate provider instances of the bootstrap are not supported here; use SDS or inline certificates",
            resource=ref.provider,
        )
    secret = secrets.get(ref.sds_name)
    if secret is None:
        raise IdentityError("the secret has not arrived", resource=ref.sds_name)
    return secret.value


def _certificate(ref: SecretRef, secrets: Mapping[str, Secret]) -> TlsCertificate:
    value = _secret(ref, secrets)
    if not isinstance(value, TlsCertificate):
        raise IdentityError("the secret is a trust bundle, not a certificate", resource=_name_of(ref))
    return value


def _trust(ref: SecretRef, secrets: Mapping[str, Secret]) -> TrustedCa:
    value = _secret(ref, secrets)
    if not isinstance(value, TrustedCa):
        raise IdentityError("the secret is a certificate, not a trust bundle", resource=_name_of(ref))
    return value


def server_material(
    tls: ServerTls, secrets: Mapping[str, Secret], *, wall: WallClock = system_wall
) -> tuple[bytes, bytes, bytes | None]:
    """Return chain, key and trust bundle as PEM, for servers that do not use Python's `ssl` (grpcio).

    Raises:
        IdentityError: As `server_context`.
    """
    certificate = _certificate(tls.certificate, secrets)
    trust = _trust(tls.trust, secrets) if tls.trust is not None else None
    server_context(tls, secrets, wall=wall)  # refuses what does not fit together, and what has expired
    return certificate.chain_pem, certificate.key_pem, None if trust is None else trust.ca_pem


class RotatingServerContext:
    """A server's context whose certificate and trust follow the secrets.

    Servers take one context for their lifetime. This one wraps every connection with the context of the moment, so that
    a new certificate, or a CA taken away, counts from the next connection on. Running connections stay.

    Attributes:
        context: For the server.
    """

    def __init__(
        self,
        tls: ServerTls,
        secrets: Callable[[], Mapping[str, Secret]],
        *,
        default_alpn: tuple[str, ...] = ("http/1.1",),
        wall: WallClock = system_wall,
    ) -> None:
        """Make the first context.

        Raises:
            IdentityError: It cannot be made now.
        """

        def current() -> MeshContext:
            return server_context(tls, secrets(), default_alpn=default_alpn, wall=wall)

        first = current()
        front = _Front(ssl.PROTOCOL_TLS_SERVER)
        front.verify_mode = first.verify_mode
        front.minimum_version = first.minimum_version
        front.forbid_tickets()
        front.accepts = _nobody
        front.current = current
        self.context: ssl.SSLContext = front


class _Front(MeshContext):
    """Stands for the context of the moment. By itself it has no certificate, and lets nobody in."""

    current: Callable[[], MeshContext]

    def wrap_socket(self, sock: Any, *args: Any, **options: Any) -> ssl.SSLSocket:
        """As in `ssl`, by the context of the moment."""
        try:
            context = self.current()
        except IdentityError:
            # Servers close a connection whose handshake fails; one that cannot even begin might leak, or end them.
            return super().wrap_socket(sock, *args, **options)
        return context.wrap_socket(sock, *args, **options)

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **options: Any) -> ssl.SSLObject:
        """As in `ssl`, by the context of the moment."""
        try:
            context = self.current()
        except IdentityError:
            return super().wrap_bio(incoming, outgoing, *args, **options)
        return context.wrap_bio(incoming, outgoing, *args, **options)


def _nobody(names: PeerNames) -> bool:
    return False


def rotating_server_context(
    tls: ServerTls,
    secrets: Callable[[], Mapping[str, Secret]],
    *,
    default_alpn: tuple[str, ...] = ("http/1.1",),
    wall: WallClock = system_wall,
) -> ssl.SSLContext:
    """Return a context for a server that follows rotation; see `RotatingServerContext`."""
    return RotatingServerContext(tls, secrets, default_alpn=default_alpn, wall=wall).context
