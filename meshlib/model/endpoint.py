"""Endpoints and their localities (EDS)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from meshlib.model.health import CheckTarget

__all__ = [
    "NO_METADATA",
    "ClusterLoadAssignment",
    "DropOverload",
    "Endpoint",
    "HealthStatus",
    "Locality",
    "LocalityEndpoints",
]

NO_METADATA: Mapping[str, Mapping[str, Any]] = MappingProxyType({})


class HealthStatus(Enum):
    UNKNOWN = 0
    HEALTHY = 1
    UNHEALTHY = 2
    DRAINING = 3
    TIMEOUT = 4
    DEGRADED = 5


@dataclass(frozen=True, slots=True, order=True)
class Locality:
    region: str = ""
    zone: str = ""
    sub_zone: str = ""

    def __str__(self) -> str:
        return "/".join((self.region, self.zone, self.sub_zone)).rstrip("/")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place that serves a cluster. Its identity is `address`.

    Attributes:
        address: `host:port`, IPv6 in brackets, or `unix:/path`.
        weight: At least 1.
        metadata: filter_metadata by filter name.
        hostname: For `auto_host_rewrite`, or empty.
        logical_host: `name:port` that was resolved, of a logical host (LOGICAL_DNS); else empty.
        check: How its health is checked, where that is different from the cluster's other endpoints.
        dials: All its addresses (`ip:port`) in the order in which they are connected to; empty: `address` alone.
    """

    address: str
    weight: int = 1
    health: HealthStatus = HealthStatus.UNKNOWN
    hostname: str = ""
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: NO_METADATA, hash=False, repr=False)
    check: CheckTarget | None = None
    dials: tuple[str, ...] = ()
    logical_host: str = ""

    @property
    def host(self) -> str:
        """The IP address or name, without brackets; a unix socket's path."""
        if self.address.startswith("unix:"):
            return self.address[5:]
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port; 0 for a unix socket."""
        return 0 if self.address.startswith("unix:") else int(self.address.rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class LocalityEndpoints:
    """Attributes:
    weight: Locality weight; None when the resource gives none.
    priority: 0 is the highest.
    collections: Names of collections whose members are endpoints of this locality too (LEDS); empty once they are in.
    """

    locality: Locality
    endpoints: tuple[Endpoint, ...]
    weight: int | None = None
    priority: int = 0
    collections: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DropOverload:
    """A category of requests to drop: a share of `numerator / denominator`."""

    category: str
    numerator: int
    denominator: int


@dataclass(frozen=True, slots=True)
class ClusterLoadAssignment:
    """Attributes:
    name: EDS resource name.
    overprovisioning_factor: Percent; Envoy's default is 140.
    weighs_health: How healthy a priority is goes by the weights of its hosts, not by their number.
    """

    name: str
    localities: tuple[LocalityEndpoints, ...] = ()
    drop_overloads: tuple[DropOverload, ...] = ()
    overprovisioning_factor: int = 140
    weighs_health: bool = False
