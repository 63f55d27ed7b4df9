"""Certificates, trust and TLS contexts (SDS and transport sockets)."""

from dataclasses import dataclass, field
from enum import Enum

from meshlib.model.matcher import StringMatcher

__all__ = ["ClientTls", "SanMatcher", "SanType", "Secret", "SecretRef", "ServerTls", "TlsCertificate", "TrustedCa"]


@dataclass(frozen=True, slots=True)
class TlsCertificate:
    """Attributes:
    chain_pem: Leaf first.
    key_pem: The private key; never shown.
    """

    chain_pem: bytes = field(repr=False)
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TrustedCa:
    """Attributes:
    ca_pem: Bundle of roots.
    """

    ca_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Secret:
    """One SDS resource."""

    name: str
    value: TlsCertificate | TrustedCa


class SanType(Enum):
    URI = "URI"
    DNS = "DNS"
    IP = "IP_ADDRESS"
    ANY = "ANY"


@dataclass(frozen=True, slots=True)
class SanMatcher:
    """Attributes:
    san_type: ANY for the untyped, deprecated form.
    """

    san_type: SanType
    matcher: StringMatcher


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


@dataclass(frozen=True, slots=True)
class ClientTls:
    """`UpstreamTlsContext`.

    Attributes:
        certificate: Our own certificate; None: none is shown.
        trust: None: the peer is not verified (refused for mesh traffic unless `insecure_ok`).
        sans: The peer's certificate must satisfy one of them; empty: any name of a trusted certificate.
        minimum_version: `TLSv1_2` or `TLSv1_3`.
    """

    certificate: SecretRef | None
    trust: SecretRef | None
    sans: tuple[SanMatcher, ...] = ()
    sni: str = ""
    alpn: tuple[str, ...] = ()
    minimum_version: str = "TLSv1_2"


@dataclass(frozen=True, slots=True)
class ServerTls:
    """`DownstreamTlsContext`."""

    certificate: SecretRef
    trust: SecretRef | None = None
    sans: tuple[SanMatcher, ...] = ()
    require_client_certificate: bool = False
    alpn: tuple[str, ...] = ()
    minimum_version: str = "TLSv1_2"
