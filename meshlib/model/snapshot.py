"""One complete configuration: what a set of targets needs, all of it there, or the reason why not (gRFC A74)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import TypeVar

from meshlib.model.cluster import Cluster
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, Locality
from meshlib.model.listener import ClientListener, ServerListener
from meshlib.model.route import RouteConfiguration
from meshlib.model.secret import Secret

__all__ = [
    "ClusterConfig",
    "ConfigFault",
    "Demand",
    "DemandKind",
    "HomePlace",
    "InboundConfig",
    "ScopeConfig",
    "Snapshot",
    "TargetConfig",
]

K = TypeVar("K")
V = TypeVar("V")


def _empty() -> Mapping[K, V]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ConfigFault:
    """Why something cannot be used.

    Attributes:
        resource: `type: name` of the resource at fault.
        message: For the caller, naming the resource and the reason.
        is_absent: The resource does not exist (as opposed to: refused, or the server cannot be reached).
    """

    resource: str
    message: str
    is_absent: bool = False


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """A warm cluster.

    Attributes:
        assignment: Endpoints, from EDS, the resource itself or DNS.
        note: Why there may be no endpoints; empty when all is well.
        leaves: Of an aggregate cluster: the clusters that it stands for, in the order of preference. They are in the
            same snapshot; those that cannot be used are left out.
        spares: Of LOGICAL_DNS: the other addresses of its host, in the order in which they are tried.
    """

    cluster: Cluster
    assignment: ClusterLoadAssignment
    note: str = ""
    leaves: tuple[str, ...] = ()
    spares: tuple[Endpoint, ...] = ()


class DemandKind(Enum):
    """What is subscribed to when a request needs it."""

    CLUSTER = "cluster"
    VIRTUAL_HOST = "virtual host"
    SCOPE = "scope"


Demand = tuple[DemandKind, str]
"""Name of the cluster or scope, or the authority whose virtual host it is."""


@dataclass(frozen=True, slots=True)
class ScopeConfig:
    """One scope of a target.

    Attributes:
        key: Equals the key of the requests that it takes.
        routes: Theirs, or why there are none; None: nobody has needed them yet.
    """

    name: str
    key: tuple[str, ...]
    routes: RouteConfiguration | ConfigFault | None


@dataclass(frozen=True, slots=True)
class TargetConfig:
    """What one target (a listener resource name) resolves to.

    Attributes:
        routes: Of all requests; empty when scopes have them.
        scopes: By which a request's routes are chosen; None: there are none, and `routes` holds.
        answered: Demands that the configuration has an answer for, be it that there is no such thing.
    """

    listener: ClientListener
    routes: RouteConfiguration
    scopes: tuple[ScopeConfig, ...] | None = None
    answered: frozenset[Demand] = frozenset()

    @property
    def all_routes(self) -> tuple[RouteConfiguration, ...]:
        """Every route configuration that a request can meet."""
        if self.scopes is None:
            return (self.routes,)
        return tuple(scope.routes for scope in self.scopes if isinstance(scope.routes, RouteConfiguration))


@dataclass(frozen=True, slots=True)
class InboundConfig:
    """What applies to requests that come in at one address."""

    listener: ServerListener
    routes: RouteConfiguration


@dataclass(frozen=True, slots=True)
class HomePlace:
    """Where we are, for zone aware routing.

    Attributes:
        cluster: The local cluster: that whose endpoints the instances of this service are.
        locality: This instance's.
    """

    cluster: str
    locality: Locality


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Attributes:
    targets: By listener resource name.
    inbound: By listener resource name.
    clusters: Every cluster that a target's routes can choose; only warm ones, or the fault.
    secrets: By SDS name.
    number: Grows by one with each snapshot of a process.
    versions: version_info by (type URL, name) of every resource inside, for explanations.
    home: None: zones do not matter.
    """

    targets: Mapping[str, TargetConfig | ConfigFault] = field(default_factory=_empty)
    inbound: Mapping[str, InboundConfig | ConfigFault] = field(default_factory=_empty)
    clusters: Mapping[str, ClusterConfig | ConfigFault] = field(default_factory=_empty)
    secrets: Mapping[str, Secret] = field(default_factory=_empty, repr=False)
    number: int = 0
    versions: Mapping[tuple[str, str], str] = field(default_factory=_empty, repr=False)
    home: HomePlace | None = None
