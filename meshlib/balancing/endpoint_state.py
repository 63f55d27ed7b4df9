"""What is remembered about an endpoint while configurations come and go."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Protocol

from meshlib.model.endpoint import Endpoint, HealthStatus, Locality

if TYPE_CHECKING:
    from meshlib.balancing.peak_ewma import Latency
    from meshlib.balancing.pick_first import Unreachable
    from meshlib.balancing.reported_weight import ReportedWeight

__all__ = ["EndpointState", "LoadCount"]

NOWHERE: Final = Locality()
_UNKNOWN, _HEALTHY_STATUS = HealthStatus.UNKNOWN, HealthStatus.HEALTHY
_HEALTHY = frozenset({HealthStatus.UNKNOWN, HealthStatus.HEALTHY})


class LoadCount(Protocol):
    """Who counts the requests of an endpoint's locality for a load report; the cluster's lock is held."""

    in_progress: int

    def begin(self) -> None: ...

    def end(self, *, is_success: bool) -> None: ...

    def add_metrics(self, metrics: Mapping[str, float]) -> None: ...


class EndpointState:
    """The lasting side of one endpoint of one cluster; its identity is the address.

    An endpoint that leaves the cluster and comes back gets a new state, and so does one that moves to another locality
    or gets another name. Calls in flight keep the old one, so that what they took is given back to where it came from.

    Attributes:
        address: `host:port`; fixed at creation.
        endpoint: The newest configuration; swapped by updates, one assignment.
        locality: Fixed at creation.
        is_ejected: Outlier detection took it out; written by the cluster only.
        is_on_probation: It is out, and a trickle of requests tries it; written by the cluster only.
        is_failed: It does not pass its health checks, or has not been checked yet; written by the cluster only, like
            the next two.
        is_marked_degraded: Its health checks say that others are to be preferred.
        is_held_out: It asked not to be counted, or waits for its first check where new endpoints do.
        active: Attempts in flight; guarded by the cluster's lock.
        load: None: nobody wants to know. Guarded by the cluster's lock.
        healthy_since: When it first was healthy, or last passed its health checks after it had failed; None: not yet. For
            slow start.

    What policies know of it, each one immutable value that is replaced by one assignment:

    Attributes:
        reported: By its own load reports.
        latency: As requests have seen it.
        unreachable: It could not be connected to, and should be left alone for a while.
        is_selected: It is the one that pick first chose.
    """

    __slots__ = (
        "active",
        "address",
        "endpoint",
        "healthy_since",
        "is_ejected",
        "is_failed",
        "is_held_out",
        "is_marked_degraded",
        "is_on_probation",
        "is_selected",
        "latency",
        "load",
        "locality",
        "reported",
        "unreachable",
    )

    def __init__(self, endpoint: Endpoint, locality: Locality = NOWHERE) -> None:
        self.address = endpoint.address
        self.endpoint = endpoint
        self.locality = locality
        self.is_ejected = False
        self.is_on_probation = False
        self.is_failed = False
        self.is_marked_degraded = False
        self.is_held_out = False
        self.active = 0
        self.load: LoadCount | None = None
        self.healthy_since: float | None = None
        self.reported: ReportedWeight | None = None
        self.latency: Latency | None = None
        self.unreachable: Unreachable | None = None
        self.is_selected = False

    def as_if_in(self) -> "EndpointState":
        """Return a copy for pickers, as if it were not ejected; nothing is counted on it."""
        copy = EndpointState(self.endpoint, self.locality)
        for name in ("is_failed", "is_marked_degraded", "is_held_out", "healthy_since", "reported", "latency"):
            setattr(copy, name, getattr(self, name))
        return copy

    @property
    def is_healthy(self) -> bool:
        """EDS says UNKNOWN or HEALTHY, it is not ejected, and passes its checks without being marked degraded."""
        if self.is_ejected or self.is_failed or self.is_marked_degraded:
            return False
        # Asked of every endpoint at every update: looking up an enum's member in a set takes four times as long.
        health = self.endpoint.health
        return health is _UNKNOWN or health is _HEALTHY_STATUS

    @property
    def is_degraded(self) -> bool:
        """EDS or a check says so: used when the healthy ones cannot take all. An unhealthy flag wins over degraded."""
        if self.is_ejected or self.is_failed:
            return False
        health = self.endpoint.health
        return health is HealthStatus.DEGRADED or (self.is_marked_degraded and health in _HEALTHY)

    @property
    def is_excluded(self) -> bool:
        """EDS says DRAINING, or a check: it does not count as a host, but is used in panic."""
        return self.is_held_out or self.endpoint.health is HealthStatus.DRAINING

    @property
    def status(self) -> HealthStatus:
        """All that is known put into one word, as Envoy does for `override_host_status`."""
        health = self.endpoint.health
        if self.is_ejected or self.is_failed:
            return HealthStatus.UNHEALTHY
        return HealthStatus.DEGRADED if self.is_marked_degraded and health in _HEALTHY else health

    def __repr__(self) -> str:
        return f"EndpointState({self.address}, active={self.active}{', ejected' if self.is_ejected else ''}{', failed' if self.is_failed else ''})"
