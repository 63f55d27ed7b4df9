"""Descriptors: what a rate limit counts requests by, and how they are made of requests."""

from dataclasses import dataclass
from enum import Enum

from meshlib.model.matcher import HeaderMatcher, QueryMatcher

__all__ = [
    "DescriptorAction",
    "DestinationCluster",
    "GenericKey",
    "HeaderMatch",
    "HeaderValue",
    "HostLimits",
    "LimitRule",
    "QueryMatch",
    "QueryValue",
    "RemoteAddress",
    "RouteMetadata",
]


@dataclass(frozen=True, slots=True)
class GenericKey:
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class DestinationCluster:
    """The cluster that the route names."""


@dataclass(frozen=True, slots=True)
class RemoteAddress:
    """The caller's address: a server knows it, in a client there is none.

    Attributes:
        prefix_v4: So many bits of it count; None: the address itself.
    """

    prefix_v4: int | None = None
    prefix_v6: int = 128


@dataclass(frozen=True, slots=True)
class HeaderValue:
    """Attributes:
    may_be_absent: Then it is left out of the descriptor, else there is none.
    """

    name: str
    key: str
    may_be_absent: bool = False


@dataclass(frozen=True, slots=True)
class QueryValue:
    """As `HeaderValue`, of a query parameter, decoded."""

    name: str
    key: str
    may_be_absent: bool = False


@dataclass(frozen=True, slots=True)
class HeaderMatch:
    """The value counts if all conditions hold; `is_expected` False: if not all do."""

    key: str
    value: str
    headers: tuple[HeaderMatcher, ...]
    is_expected: bool = True


@dataclass(frozen=True, slots=True)
class QueryMatch:
    """As `HeaderMatch`, of query parameters, decoded."""

    key: str
    value: str
    parameters: tuple[QueryMatcher, ...]
    is_expected: bool = True


@dataclass(frozen=True, slots=True)
class RouteMetadata:
    """A string in the metadata of the route.

    Attributes:
        path: From the filter's name on; empty: dynamic metadata is meant, which nothing sets.
        default: Takes the place of one that is absent or empty; empty: nothing does.
    """

    key: str
    path: tuple[str, ...]
    default: str = ""
    may_be_absent: bool = False


DescriptorAction = (
    GenericKey
    | DestinationCluster
    | RemoteAddress
    | HeaderValue
    | QueryValue
    | HeaderMatch
    | QueryMatch
    | RouteMetadata
)


@dataclass(frozen=True, slots=True)
class LimitRule:
    """Makes one descriptor of a request, unless one of its parts cannot be had.

    Attributes:
        stage: Filters of this stage look at it.
        hits: What the request takes from a bucket.
        hits_format: A format that says so instead; empty: none does. Without a number there is no descriptor.
        is_off: It makes no descriptor; that it stands there may still mean that others do not count.
    """

    actions: tuple[DescriptorAction, ...]
    stage: int = 0
    hits: int = 1
    hits_format: str = ""
    is_off: bool = False


class HostLimits(Enum):
    """When the rules of the virtual host count, beside those of the route (`vh_rate_limits`)."""

    OVERRIDDEN = 0
    """If the route has none."""
    INCLUDED = 1
    IGNORED = 2
