"""What is remembered about an endpoint while configurations come and go."""

from typing import Protocol

from meshlib.model.endpoint import Endpoint, HealthStatus

__all__ = ["EndpointState", "LoadCount"]

_HEALTHY = frozenset({HealthStatus.UNKNOWN, HealthStatus.HEALTHY})


class LoadCount(Protocol):
    """Who counts the requests of an endpoint's locality for a load report; the cluster's lock is held."""

    in_progress: int

    def begin(self) -> None: ...

    def end(self, *, is_success: bool) -> None: ...


class EndpointState:
    """The lasting side of one endpoint of one cluster; its identity is the address.

    An endpoint that leaves the cluster and comes back gets a new state. Calls in flight keep the old one, so that what
    they took is given back to where it came from.

    Attributes:
        address: `host:port`; fixed at creation.
        endpoint: The newest configuration; swapped by updates, one assignment.
        is_ejected: Outlier detection took it out; written by the cluster only.
        active: Attempts in flight; guarded by the cluster's lock.
        load: None: nobody wants to know. Guarded by the cluster's lock.
    """

    __slots__ = ("active", "address", "endpoint", "is_ejected", "load")

    def __init__(self, endpoint: Endpoint) -> None:
        self.address = endpoint.address
        self.endpoint = endpoint
        self.is_ejected = False
        self.active = 0
        self.load: LoadCount | None = None

    @property
    def is_healthy(self) -> bool:
        """EDS says UNKNOWN or HEALTHY, and it is not ejected (an unhealthy flag wins over degraded)."""
        return not self.is_ejected and self.endpoint.health in _HEALTHY

    @property
    def is_degraded(self) -> bool:
        """EDS says DEGRADED, and it is not ejected: used when the healthy ones cannot take all."""
        return not self.is_ejected and self.endpoint.health is HealthStatus.DEGRADED

    @property
    def is_excluded(self) -> bool:
        """EDS says DRAINING: it does not count as a host, but is used in panic."""
        return self.endpoint.health is HealthStatus.DRAINING

    @property
    def status(self) -> HealthStatus:
        """All that is known put into one word, as Envoy does for `override_host_status`."""
        return HealthStatus.UNHEALTHY if self.is_ejected else self.endpoint.health

    def __repr__(self) -> str:
        return f"EndpointState({self.address}, active={self.active}{', ejected' if self.is_ejected else ''})"
