"""Certificates, trust and TLS contexts (SDS and transport sockets)."""

from dataclasses import dataclass, field
from enum import Enum

from meshlib.model.matcher import StringMatcher

__all__ = [
    "NO_CHECKS",
    "ClientTls",
    "PeerChecks",
    "SanMatcher",
    "SanType",
    "Secret",
    "SecretRef",
    "ServerTls",
    "SniSource",
    "TlsCertificate",
    "TlsParameters",
    "TrustBundle",
    "TrustedCa",
]


@dataclass(frozen=True, slots=True)
class TlsCertificate:
    """Attributes:
    chain_pem: Leaf first.
    key_pem: The private key; never shown.
    """

    chain_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)


class SanType(Enum):
    URI = "URI"
    DNS = "DNS"
    IP = "IP_ADDRESS"
    EMAIL = "EMAIL"
    ANY = "ANY"


@dataclass(frozen=True, slots=True)
class SanMatcher:
    """Attributes:
    san_type: ANY for the untyped, deprecated form.
    """

    san_type: SanType
    matcher: StringMatcher


@dataclass(frozen=True, slots=True)
class PeerChecks:
    """What a peer's certificate has to fulfil beside its chain and its names.

    Attributes:
        certificate_hashes: SHA-256 of certificates (DER); the leaf must be one of these, or have a key of the next.
        spki_hashes: SHA-256 of public keys (DER SubjectPublicKeyInfo). Both empty: no pins.
        crl_pem: Revocation lists; empty: none are asked for beside those in the trust bundle.
        crl_leaf_only: Of a chain only the leaf is looked up; else every certificate needs a list of its issuer.
        issuer_crls: Further lists, as DER: of the issuers that have one here, and nobody else is asked for one.
        max_depth: How many certificates may stand above the leaf, the root included; None: OpenSSL's 100.
    """

    certificate_hashes: tuple[bytes, ...] = ()
    spki_hashes: tuple[bytes, ...] = ()
    crl_pem: bytes = field(default=b"", repr=False)
    crl_leaf_only: bool = False
    max_depth: int | None = None
    issuer_crls: tuple[bytes, ...] = field(default=(), repr=False)

    def merged(self, other: "PeerChecks") -> "PeerChecks":
        """Return these with what is discovered laid over them: its values win, its lists are added."""
        if other == NO_CHECKS:
            return self
        return PeerChecks(
            self.certificate_hashes + other.certificate_hashes,
            self.spki_hashes + other.spki_hashes,
            other.crl_pem or self.crl_pem,
            self.crl_leaf_only or other.crl_leaf_only,
            self.max_depth if other.max_depth is None else other.max_depth,
            self.issuer_crls + other.issuer_crls,
        )


NO_CHECKS = PeerChecks()


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """The roots of one SPIFFE trust domain, as PEM."""

    trust_domain: str
    ca_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TrustedCa:
    """Whose certificates are good.

    Attributes:
        ca_pem: Bundle of roots; revocation lists may be among them.
        bundles: Not None: the peer must have a SPIFFE id, and only the roots of its trust domain count for it.
        needs_key_usage: With bundles: the leaf must say what its key is for (Envoy's SPIFFE validator).
        is_system: The roots of this machine.
        sans: With a secret: further names, any of these or of the TLS context's.
        checks: With a secret: laid over those of the TLS context.
    """

    ca_pem: bytes = field(repr=False)
    bundles: tuple[TrustBundle, ...] | None = None
    needs_key_usage: bool = False
    is_system: bool = False
    sans: tuple[SanMatcher, ...] = ()
    checks: PeerChecks = NO_CHECKS


@dataclass(frozen=True, slots=True)
class Secret:
    """One SDS resource."""

    name: str
    value: TlsCertificate | TrustedCa


@dataclass(frozen=True, slots=True)
class SecretRef:
    """Where certificates or trust come from.

    Attributes:
        sds_name: Name of an SDS resource, or empty.
        provider: Certificate provider instance of the bootstrap, or empty.
        inline: Given in the resource itself.
    """

    sds_name: str = ""
    provider: str = ""
    inline: TlsCertificate | TrustedCa | None = None


class SniSource(Enum):
    """Where the server name of a client comes from."""

    CONFIG = "sni"
    HOSTNAME = "auto_host_sni"
    """The endpoint's hostname where it has one, else as configured."""


@dataclass(frozen=True, slots=True)
class TlsParameters:
    """Attributes:
    maximum_version: `TLSv1_2` or `TLSv1_3`; empty: the newest there is.
    ciphers: Of TLS 1.2, in order of preference, by OpenSSL's names; empty: the library's.
    curve: The one curve for the key exchange, by OpenSSL's name; empty: the library's.
    """

    maximum_version: str = ""
    ciphers: tuple[str, ...] = ()
    curve: str = ""


DEFAULT_PARAMETERS = TlsParameters()


@dataclass(frozen=True, slots=True, weakref_slot=True)
class ClientTls:
    """`UpstreamTlsContext`.

    Attributes:
        certificate: Our own certificate; None: none is shown.
        trust: None: the peer is verified by pins alone, or else refused.
        sans: The peer's certificate must satisfy one of them; empty: any name of a trusted certificate.
        minimum_version: `TLSv1_2` or `TLSv1_3`.
        sni_source: Resolved per endpoint.
        san_is_sni: The name sent as SNI must be a DNS name of the certificate, instead of `sans` (no SNI: `sans`).
        authority_name: Must be a name of the certificate, beside `sans`; empty: none. Set per call.
    """

    certificate: SecretRef | None
    trust: SecretRef | None
    sans: tuple[SanMatcher, ...] = ()
    sni: str = ""
    alpn: tuple[str, ...] = ()
    minimum_version: str = "TLSv1_2"
    checks: PeerChecks = NO_CHECKS
    parameters: TlsParameters = DEFAULT_PARAMETERS
    sni_source: SniSource = SniSource.CONFIG
    san_is_sni: bool = False
    authority_name: str = ""

    def __hash__(self) -> int:
        # Part of keys that are looked up for each call: equal ones have these in common, and that tells most others apart.
        return hash((self.sni, self.authority_name, self.minimum_version))


@dataclass(frozen=True, slots=True, weakref_slot=True)
class ServerTls:
    """`DownstreamTlsContext`."""

    certificate: SecretRef
    trust: SecretRef | None = None
    sans: tuple[SanMatcher, ...] = ()
    require_client_certificate: bool = False
    alpn: tuple[str, ...] = ()
    minimum_version: str = "TLSv1_2"
    checks: PeerChecks = NO_CHECKS
    parameters: TlsParameters = DEFAULT_PARAMETERS
