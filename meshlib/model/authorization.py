"""Authorization rules (RBAC, `envoy.config.rbac.v3`) as a tree of conditions."""

from dataclasses import dataclass
from enum import Enum

from meshlib.model.matcher import HeaderMatcher, StringMatcher

__all__ = [
    "All",
    "And",
    "Condition",
    "DestinationPort",
    "DestinationPortRange",
    "Header",
    "Ip",
    "IpKind",
    "Not",
    "Or",
    "Policy",
    "Principal",
    "Rbac",
    "RbacAction",
    "ServerName",
    "UrlPath",
]


class RbacAction(Enum):
    ALLOW = "ALLOW"
    DENY = "DENY"
    LOG = "LOG"


class IpKind(Enum):
    DIRECT_REMOTE = "direct_remote_ip"
    REMOTE = "remote_ip"
    SOURCE = "source_ip"
    DESTINATION = "destination_ip"


@dataclass(frozen=True, slots=True)
class All:
    """Always true."""


@dataclass(frozen=True, slots=True)
class And:
    parts: "tuple[Condition, ...]"


@dataclass(frozen=True, slots=True)
class Or:
    parts: "tuple[Condition, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    part: "Condition"


@dataclass(frozen=True, slots=True)
class Header:
    matcher: HeaderMatcher


@dataclass(frozen=True, slots=True)
class UrlPath:
    """The path without its query."""

    matcher: StringMatcher


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller is authenticated by its certificate; with a matcher, as one of its names (URI SAN, DNS SAN, subject)."""

    matcher: StringMatcher | None


@dataclass(frozen=True, slots=True)
class Ip:
    """Attributes:
    cidr: `address/prefix length`.
    """

    kind: IpKind
    cidr: str


@dataclass(frozen=True, slots=True)
class DestinationPort:
    port: int


@dataclass(frozen=True, slots=True)
class DestinationPortRange:
    """Ports with `start <= port < end`."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ServerName:
    """The SNI of the connection; gRPC compares with the empty string (A41)."""

    matcher: StringMatcher


Condition = (
    All | And | Or | Not | Header | UrlPath | Principal | Ip | DestinationPort | DestinationPortRange | ServerName
)


@dataclass(frozen=True, slots=True)
class Policy:
    """Both must hold.

    Attributes:
        name: Names the rule in explanations.
    """

    name: str
    permission: Condition
    principal: Condition


@dataclass(frozen=True, slots=True)
class Rbac:
    """One RBAC filter.

    Attributes:
        policies: ALLOW: one must match; DENY: none may.
        shadow: Evaluated and counted only.
    """

    name: str
    action: RbacAction
    policies: tuple[Policy, ...]
    shadow: "Rbac | None" = None
