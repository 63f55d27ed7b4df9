"""TLS contexts made of what the control plane says: transport sockets and secrets.

A context is kept for each pair of TLS configuration and secrets, so a rotated certificate means another context, and
whoever keeps connections per context moves on by itself. Nothing but the trust bundle decides which chains are good:
the system's roots are loaded only where a resource asks for them by name.
"""

import ssl
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from threading import RLock

from meshlib.errors import IdentityError
from meshlib.identity.certificates import check_certificate, parse_chain
from meshlib.identity.san import PeerNames
from meshlib.identity.verify import PeerRule, compile_peer_rule
from meshlib.model.secret import ClientTls, Secret, SecretRef, ServerTls, TlsCertificate, TrustedCa
from meshlib.ports import WallClock
from meshlib.runtime.clock import wall as system_wall
from meshlib.runtime.tls_context import MeshContext, load_identity, load_trust, peer_identity
from meshlib.xds.follow_resources import provider_secret_names

__all__ = [
    "PeerNames",
    "client_context",
    "client_material",
    "peer_identity",
    "server_context",
    "server_material",
    "validity",
]

_CRL = b"-----BEGIN X509 CRL-----"

VERSIONS = {"TLSv1_2": ssl.TLSVersion.TLSv1_2, "TLSv1_3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True, slots=True)
class _Made:
    """What a context was made of, beside the configuration, and when it may be used."""

    certificate: TlsCertificate | None
    trust: TrustedCa | None
    valid_from: float = 0.0
    valid_until: float = 0.0


class _Contexts:
    """Contexts that were made, by identity of their configuration, and by value for a configuration sent again.

    Kept is the newest context of each configuration that somebody still has. Others live as long as the connections that
    hold on to them: a context takes a quarter of a megabyte, and each rotation makes new ones.
    """

    def __init__(self) -> None:
        # Reentrant: a configuration may be collected, and then its entry goes, anywhere in here.
        self._lock = RLock()
        # Guarded by the lock.
        self._recent: dict[
            tuple[int, tuple[str, ...]], tuple[weakref.ref[ClientTls | ServerTls], MeshContext, _Made]
        ] = {}
        self._by_value: weakref.WeakValueDictionary[tuple[object, ...], MeshContext] = weakref.WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._recent)

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
        found = self._recent.get(key)
        if (
            found is not None
            and found[0]() is tls
            and (found[2].certificate is certificate or found[2].certificate == certificate)
            and (found[2].trust is trust or found[2].trust == trust)
        ):
            context, made = found[1], found[2]
        else:
            made = _made(tls, certificate, trust, now)
            context = self._by_content((tls, certificate, trust, alpn), make)
            with self._lock:
                self._recent[key] = (weakref.ref(tls, partial(self._forget, key)), context, made)
        if certificate is not None and not made.valid_from <= now <= made.valid_until:
            check_certificate(certificate, wall_now=now, name=_name_of(tls.certificate))  # says what is wrong
        return context

    def _forget(self, key: tuple[int, tuple[str, ...]], gone: object) -> None:
        with self._lock:
            found = self._recent.get(key)
            if found is not None and found[0] is gone:
                del self._recent[key]

    def _by_content(self, key: tuple[object, ...], make: Callable[[], MeshContext]) -> MeshContext:
        with self._lock:
            found = self._by_value.get(key)
        if found is None:
            made = make()
            with self._lock:
                found = self._by_value.setdefault(key, made)
        return found


def _made(
    tls: ClientTls | ServerTls, certificate: TlsCertificate | None, trust: TrustedCa | None, wall_now: float
) -> _Made:
    if certificate is None:
        return _Made(None, trust)
    leaf = check_certificate(certificate, wall_now=wall_now, name=_name_of(tls.certificate))
    return _Made(certificate, trust, leaf.not_before, leaf.not_after)


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
    trust = _trust(tls.trust, secrets) if tls.trust is not None else None
    if not _has_roots(trust) and not _has_pins(tls, trust):
        raise IdentityError("the TLS configuration has no trusted CA, so that anybody could be the peer")
    alpn = tls.alpn or default_alpn

    def make() -> MeshContext:
        context = MeshContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # names are compared by the matchers
        # Without roots a pin says who the peer is, and the handshake proves that it has the key.
        context.verify_mode = ssl.CERT_REQUIRED if _has_roots(trust) else ssl.CERT_NONE
        context.wall = wall
        context.server_name = tls.sni
        _fill(context, tls, certificate, trust, alpn)
        return context

    return _contexts.get(tls, certificate, trust, alpn, make, wall)


def client_material(tls: ClientTls, secrets: Mapping[str, Secret]) -> tuple[TlsCertificate | None, TrustedCa | None]:
    """Return what a client's context is made of.

    Raises:
        IdentityError: A secret is missing, or of the wrong kind.
    """
    certificate = None if tls.certificate is None else _certificate(tls.certificate, secrets)
    return certificate, None if tls.trust is None else _trust(tls.trust, secrets)


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
    if tls.require_client_certificate and not _has_roots(trust):
        raise IdentityError("the TLS configuration asks for client certificates and has no trusted CA")
    alpn = tls.alpn or default_alpn

    def make() -> MeshContext:
        context = MeshContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = _server_verify_mode(tls, trust)
        context.peer_required = tls.require_client_certificate
        context.forbid_tickets()
        context.wall = wall
        _fill(context, tls, certificate, trust, alpn)
        return context

    return _contexts.get(tls, certificate, trust, alpn, make, wall)


def _has_roots(trust: TrustedCa | None) -> bool:
    return trust is not None and bool(trust.ca_pem or trust.bundles is not None or trust.is_system)


def _has_pins(tls: ClientTls, trust: TrustedCa | None) -> bool:
    checks = tls.checks if trust is None else tls.checks.merged(trust.checks)
    return bool(checks.certificate_hashes or checks.spki_hashes)


def _server_verify_mode(tls: ServerTls, trust: TrustedCa | None) -> ssl.VerifyMode:
    if not _has_roots(trust):
        return ssl.CERT_NONE
    return ssl.CERT_REQUIRED if tls.require_client_certificate else ssl.CERT_OPTIONAL


def _fill(
    context: MeshContext,
    tls: ClientTls | ServerTls,
    certificate: TlsCertificate | None,
    trust: TrustedCa | None,
    alpn: tuple[str, ...],
) -> None:
    _set_parameters(context, tls)
    context.offer(alpn)
    # A bundle may hold intermediates without their root: Envoy trusts them too.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        context.rule = compile_peer_rule(tls, trust)
    except ValueError as error:
        raise IdentityError(f"the expected names cannot be used: {error}", resource=_name_of(tls.trust)) from error
    if trust is not None:
        try:
            _load_roots(context, trust, context.rule)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise IdentityError(f"the trust bundle cannot be used: {error}", resource=_name_of(tls.trust)) from error
    if certificate is not None:
        try:
            load_identity(context, certificate.chain_pem, certificate.key_pem)
        except (ssl.SSLError, OSError, ValueError) as error:
            raise IdentityError(
                f"our certificate and key cannot be used: {error}", resource=_name_of(tls.certificate)
            ) from error


def _load_roots(context: MeshContext, trust: TrustedCa, rule: PeerRule) -> None:
    if trust.bundles is not None:
        # Of no domain at all: then nobody is trusted, and nothing has to be loaded for that.
        roots = b"".join(one.ca_pem.rstrip() + b"\n" for one in trust.bundles)
    elif trust.is_system and not trust.ca_pem:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        roots = b""
    else:
        roots = trust.ca_pem
    lists = rule.checks.crl_pem
    if roots:
        load_trust(context, roots.rstrip() + b"\n" + lists)
    elif lists:
        load_trust(context, lists)
    if lists or _CRL in roots:
        flag = ssl.VERIFY_CRL_CHECK_LEAF if rule.checks.crl_leaf_only else ssl.VERIFY_CRL_CHECK_CHAIN
        context.verify_flags |= flag


def _set_parameters(context: MeshContext, tls: ClientTls | ServerTls) -> None:
    wanted = tls.parameters
    for version in (tls.minimum_version, wanted.maximum_version):
        if version and version not in VERSIONS:
            raise IdentityError(f"TLS version {version!r} is not supported; known: {', '.join(VERSIONS)}")
    context.minimum_version = VERSIONS[tls.minimum_version]
    if wanted.maximum_version:
        context.maximum_version = VERSIONS[wanted.maximum_version]
    try:
        if wanted.ciphers:
            context.set_ciphers(":".join(wanted.ciphers))
        if wanted.curve:
            context.set_ecdh_curve(wanted.curve)
    except (ssl.SSLError, ValueError) as error:
        raise IdentityError(f"the TLS parameters cannot be used with {ssl.OPENSSL_VERSION}: {error}") from error


def _name_of(ref: SecretRef | None) -> str:
    if ref is None:
        return ""
    return ref.sds_name or ref.provider or "inline"


def _secret(ref: SecretRef, secrets: Mapping[str, Secret], kind: int) -> TlsCertificate | TrustedCa:
    """Return what a reference leads to.

    Args:
        kind: With a provider instance: 0 its certificate, 1 its roots.
    """
    if ref.inline is not None:
        return ref.inline
    if ref.provider:
        secret = secrets.get(provider_secret_names(ref.provider)[kind])
        if secret is None:
            what = ("certificate", "trust bundle")[kind]
            text = f"certificate provider {ref.provider!r} of the bootstrap does not exist, or has no {what} yet"
            raise IdentityError(text, resource=ref.provider)
        return secret.value
    secret = secrets.get(ref.sds_name)
    if secret is None:
        raise IdentityError("the secret has not arrived", resource=ref.sds_name)
    return secret.value


def validity(tls: ClientTls, secrets: Mapping[str, Secret]) -> tuple[float, float] | None:
    """Return from when to when the certificate may be used that we show, in seconds since the epoch; None: there is none.

    Raises:
        IdentityError: A secret is missing, or of the wrong kind.
    """
    return None if tls.certificate is None else _validity(_certificate(tls.certificate, secrets).chain_pem)


@lru_cache(maxsize=256)
def _validity(chain_pem: bytes) -> tuple[float, float]:
    leaf = parse_chain(chain_pem)[0]
    return leaf.not_before, leaf.not_after


def _certificate(ref: SecretRef, secrets: Mapping[str, Secret]) -> TlsCertificate:
    value = _secret(ref, secrets, 0)
    if not isinstance(value, TlsCertificate):
        raise IdentityError("the secret is a trust bundle, not a certificate", resource=_name_of(ref))
    return value


def _trust(ref: SecretRef, secrets: Mapping[str, Secret]) -> TrustedCa:
    value = _secret(ref, secrets, 1)
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
    for what in _only_for_ssl(tls, trust):
        raise IdentityError(f"{what} cannot be honoured by a gRPC server", resource=_name_of(tls.trust))
    return certificate.chain_pem, certificate.key_pem, None if trust is None else trust.ca_pem


def _only_for_ssl(tls: ServerTls, trust: TrustedCa | None) -> Iterator[str]:
    """Yield what grpcio, which is only given a certificate and roots, would leave out. `tls.sans` are checked later."""
    checks = tls.checks if trust is None else tls.checks.merged(trust.checks)
    parameters = tls.parameters
    bundle = b"" if trust is None else trust.ca_pem
    conditions: dict[str, object] = {
        "crl": checks.crl_pem or checks.issuer_crls or _CRL in bundle,
        "verify_certificate_hash": checks.certificate_hashes,
        "verify_certificate_spki": checks.spki_hashes,
        "max_verify_depth": checks.max_depth is not None,
        "a bundle per SPIFFE trust domain": trust is not None and trust.bundles is not None,
        "system_root_certs": trust is not None and trust.is_system,
        "match_typed_subject_alt_names of a secret": trust is not None and trust.sans,
        "tls_maximum_protocol_version": parameters.maximum_version,
        "cipher_suites": parameters.ciphers,
        "ecdh_curves": parameters.curve,
    }
    return (name for name, is_set in conditions.items() if is_set)
