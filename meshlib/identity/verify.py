"""Whether a certificate whose chain was verified may be the peer's: trust domain, pins, names, length of the chain.

The TLS library decides whether a chain leads to one of the roots that it was given, and whether it is in time and not
revoked. Everything else is decided here, from the leaf and the chain that was found.

With SPIFFE bundles the library is given the roots of all domains at once, because it does not know the peer's domain
before the handshake. A chain counts when one of its issuers is among the roots of the leaf's own domain: each
certificate of it is signed by the next, so that root vouches for the leaf whatever stands behind it.

Source: Envoy `DefaultCertValidator`, `SPIFFEValidator`; X509-SVID.md, sections 4 and 5; gRFC A87, A101.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from meshlib.certificates_library import serialization, x509
from meshlib.identity.certificates import names_of
from meshlib.identity.revocation import RevocationLists
from meshlib.identity.san import PeerNames, compile_authority, compile_sans, compile_sni, describe_sans
from meshlib.identity.spiffe import SpiffeId, spiffe_id_of
from meshlib.model.secret import NO_CHECKS, ClientTls, PeerChecks, SanMatcher, SanType, ServerTls, TrustedCa

__all__ = ["Chain", "LeafFacts", "PeerRule", "compile_peer_rule", "leaf_facts"]

Chain = Callable[[], tuple[bytes, ...] | None]
"""Returns the verified chain as DER, the leaf first and the root last; None: there was no verification."""


@dataclass(frozen=True, slots=True)
class LeafFacts:
    """What is asked of a leaf.

    Attributes:
        spiffe_id: None: it has none that is valid.
        spiffe_problem: Why.
        spki_hash: SHA-256 of its public key.
        signs: It may sign certificates or revocation lists.
        has_key_usage: It says what its key is for.
        not_before: Seconds since the epoch.
        not_after: Seconds since the epoch.
    """

    names: PeerNames
    spiffe_id: SpiffeId | None
    spiffe_problem: str
    certificate_hash: bytes
    spki_hash: bytes
    is_ca: bool
    signs: bool
    has_key_usage: bool
    not_before: float
    not_after: float

    @property
    def has_subject_alone(self) -> bool:
        """There are no alternative names that anything here knows of."""
        names = self.names
        return bool(names.subject) and not (names.uris or names.dns or names.ips or names.emails)


def leaf_facts(der: bytes) -> LeafFacts:
    """Read a certificate.

    Raises:
        ValueError: It cannot be read.
    """
    try:
        leaf = x509.load_der_x509_certificate(der)
        names = names_of(leaf)
        is_ca = _is_ca(leaf)
        usage = _key_usage(leaf)
        spki = leaf.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError) as error:
        raise ValueError(f"the certificate cannot be read: {error}") from error
    spiffe_id, problem = None, ""
    try:
        spiffe_id = spiffe_id_of(names.uris)
    except ValueError as error:
        problem = str(error)
    return LeafFacts(
        names=names,
        spiffe_id=spiffe_id,
        spiffe_problem=problem,
        certificate_hash=hashlib.sha256(der).digest(),
        spki_hash=hashlib.sha256(spki).digest(),
        is_ca=is_ca,
        signs=usage is not None and (usage.key_cert_sign or usage.crl_sign),
        has_key_usage=usage is not None,
        not_before=leaf.not_valid_before_utc.timestamp(),
        not_after=leaf.not_valid_after_utc.timestamp(),
    )


def _is_ca(leaf: "x509.Certificate") -> bool:
    try:
        return leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _key_usage(leaf: "x509.Certificate") -> "x509.KeyUsage | None":
    try:
        return leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return None


@dataclass(frozen=True, slots=True)
class PeerRule:
    """What a peer must be; made by `compile_peer_rule`.

    Attributes:
        accepts: Test of its names; None: any name.
        expected: What that asks for, in words.
        revoked: Lists that are looked at here; None: there are none.
        roots: By trust domain the DER of its roots; None: no SPIFFE id is asked for.
    """

    accepts: Callable[[PeerNames], bool] | None = None
    expected: str = ""
    checks: PeerChecks = NO_CHECKS
    roots: Mapping[str, frozenset[bytes]] | None = None
    needs_key_usage: bool = False
    revoked: RevocationLists | None = None

    def needs_chain(self, leaf: LeafFacts) -> bool:
        """Whether the verified chain of a leaf is asked for."""
        if self.revoked is not None:
            return True
        return self.roots is not None or self.checks.max_depth is not None or leaf.has_subject_alone

    def refusal(self, leaf: LeafFacts, chain: Chain | None, now: float) -> str:
        """Return why a peer is refused, or the empty string.

        Args:
            chain: None: there is none, or the chain of this leaf has been found to be in order before.
            now: Seconds since the epoch.
        """
        return (
            (self._of_chain(leaf, chain, now) if chain is not None and self.needs_chain(leaf) else "")
            or self._of_pins(leaf)
            or self._of_names(leaf)
        )

    def _of_chain(self, leaf: LeafFacts, chain: Chain, now: float) -> str:
        depth = self.checks.max_depth
        found = chain()
        if found is None:
            return "there is no verified chain of its certificate"
        # "Does not include the leaf but includes the trust anchor"; as in Envoy, 0 allows that as 1 does.
        if depth is not None and len(found) - 1 > max(depth, 1):
            return f"the chain of its certificate has {len(found) - 1} issuers, at most {max(depth, 1)} may be"
        if leaf.has_subject_alone and any(map(_has_name_constraints, found[1:])):
            # That CA has not vouched for a common name, which OpenSSL does not look at; BoringSSL refuses these, too.
            return "its certificate has a subject alone, and its issuer may only certify some alternative names"
        if self.revoked is not None and (reason := self.revoked.refusal(found, now)):
            return reason
        return "" if self.roots is None else self._of_trust_domain(leaf, found, self.roots)

    def _of_trust_domain(self, leaf: LeafFacts, chain: tuple[bytes, ...], roots: Mapping[str, frozenset[bytes]]) -> str:
        if leaf.spiffe_id is None:
            return leaf.spiffe_problem
        if leaf.is_ca or leaf.signs:
            return f"the certificate of {leaf.spiffe_id} may sign others, so it is not a workload's"
        if self.needs_key_usage and not leaf.has_key_usage:
            return f"the certificate of {leaf.spiffe_id} does not say what its key is for"
        domain = leaf.spiffe_id.trust_domain
        anchors = roots.get(domain)
        if anchors is None:
            return f"trust domain {domain} of {leaf.spiffe_id} is not trusted"
        if anchors.isdisjoint(chain[1:]):
            return f"the certificate of {leaf.spiffe_id} was not issued by trust domain {domain}"
        return ""

    def _of_pins(self, leaf: LeafFacts) -> str:
        checks = self.checks
        if not checks.certificate_hashes and not checks.spki_hashes:
            return ""
        if leaf.certificate_hash in checks.certificate_hashes or leaf.spki_hash in checks.spki_hashes:
            return ""
        return f"its certificate (SHA-256 {leaf.certificate_hash.hex()}) and key are not pinned"

    def _of_names(self, leaf: LeafFacts) -> str:
        names = leaf.names
        if self.accepts is None or self.accepts(names):
            return ""
        shown = ", ".join((*names.uris, *names.dns, *names.ips)) or names.subject or "nobody by name"
        # A SPIFFE id that looks like the one expected, and is none.
        is_malformed = leaf.spiffe_id is None and any(uri.startswith("spiffe:") for uri in names.uris)
        return f"the peer is {shown}, expected {self.expected}" + (f": {leaf.spiffe_problem}" if is_malformed else "")


@lru_cache(256)
def _has_name_constraints(der: bytes) -> bool:
    try:
        x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.NameConstraints)
    except x509.ExtensionNotFound:
        return False
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return True
    return True


def compile_peer_rule(tls: ClientTls | ServerTls, trust: TrustedCa | None) -> PeerRule:
    """Compile what a TLS configuration and the trust that it is used with ask of a peer.

    Raises:
        ValueError: A regex that is not valid RE2, a bundle that is not PEM, or a revocation list that cannot be read.
    """
    sans, checks, roots = tls.sans, tls.checks, None
    if trust is not None:
        sans, checks = sans + trust.sans, checks.merged(trust.checks)
        if trust.bundles is not None:
            roots = {one.trust_domain: _roots(one.ca_pem) for one in trust.bundles}
    accepts, expected = (compile_sans(sans), describe_sans(sans)) if sans else (None, "")
    if sans and roots is not None:
        accepts = _by_uri(sans)
    if isinstance(tls, ClientTls):
        if tls.authority_name:
            named = compile_authority(tls.authority_name)
            accepts = named if accepts is None else _both(named, accepts)
            expected = f"host {tls.authority_name}" + (f" and {expected}" if expected else "")
        elif tls.san_is_sni and tls.sni:
            accepts, expected = compile_sni(tls.sni), f"DNS name {tls.sni}"
    needs_key_usage = trust is not None and trust.needs_key_usage
    revoked = RevocationLists(checks.issuer_crls) if checks.issuer_crls else None
    return PeerRule(accepts, expected, checks, roots, needs_key_usage, revoked)


def _by_uri(sans: tuple[SanMatcher, ...]) -> Callable[[PeerNames], bool]:
    """Compile matchers where a SPIFFE id is asked for: no other name in the certificate counts."""
    of_uris = tuple(one for one in sans if one.san_type in (SanType.URI, SanType.ANY))
    test = compile_sans(of_uris)
    return lambda names: bool(of_uris) and test(PeerNames(uris=names.uris))


def _both(one: Callable[[PeerNames], bool], other: Callable[[PeerNames], bool]) -> Callable[[PeerNames], bool]:
    return lambda names: one(names) and other(names)


def _roots(pem: bytes) -> frozenset[bytes]:
    return frozenset(one.public_bytes(serialization.Encoding.DER) for one in x509.load_pem_x509_certificates(pem))
