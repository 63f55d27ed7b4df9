"""What is worth seeing, one event each. Logs, metrics and traces are hooks on events.

Events are not to be changed: every hook gets the same one. Those that each request makes are not frozen all the same,
as that triples the cost of making them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from meshlib.model.endpoint import Endpoint

__all__ = [
    "AttemptFinished",
    "CallFinished",
    "CertificateExpiring",
    "CertificateRotated",
    "ControlPlaneConnected",
    "ControlPlaneLost",
    "Event",
    "HealthChecked",
    "Hook",
    "HostEjected",
    "HostUnejected",
    "Meter",
    "RequestMirrored",
    "RequestServed",
    "ResourceAccepted",
    "ResourceRejected",
]


@dataclass(slots=True, unsafe_hash=True)
class AttemptFinished:
    """One attempt ended: response headers are there, or it failed.

    Attributes:
        number: 1 for the first attempt.
        duration_s: From the pick to the response headers or the failure.
        status: HTTP status, or 0 without a response.
        grpc_status: gRPC status code, or None when it is not a gRPC call or unknown.
        failure: Kind of failure (`connect`, `reset`, ...), or empty.
        will_retry: Another attempt follows.
    """

    target: str
    cluster: str
    endpoint: Endpoint
    number: int
    duration_s: float
    status: int
    grpc_status: int | None
    failure: str
    will_retry: bool


@dataclass(slots=True, unsafe_hash=True)
class CallFinished:
    """A call ended as its caller sees it.

    Attributes:
        kind: `http` or `grpc`.
        route: Name of the route, or empty.
        endpoint: Of the last attempt, or None when there was none.
        status: HTTP status given to the caller; 0: an exception.
        flag: Envoy's response flags, comma separated, or `-`.
    """

    kind: str
    target: str
    method: str
    route: str
    cluster: str
    endpoint: Endpoint | None
    attempts: int
    duration_s: float
    status: int
    grpc_status: int | None
    flag: str
    secure: bool


@dataclass(frozen=True, slots=True)
class RequestMirrored:
    """A copy of a request went, or was to go, to a cluster that only gets to see it; its caller knows nothing of that.

    Attributes:
        target: Of the request itself.
        cluster: That got the copy.
        endpoint: That got it, or None when it was not sent.
        status: HTTP status of the answer, which was dropped; 0: none.
        failure: Why there is no answer (`connect`, `timeout`, ..., Envoy's flag `UH`, `UO` or `NC`), `body` when the
            body cannot be sent twice, `overflow` when too many copies are under way; else empty.
    """

    target: str
    cluster: str
    endpoint: Endpoint | None
    duration_s: float
    status: int
    failure: str


@dataclass(frozen=True, slots=True)
class RequestServed:
    """A request that came in was answered.

    Attributes:
        principal: SPIFFE id of the caller, or empty.
        denied: Authorization refused it.
    """

    kind: str
    service: str
    method: str
    path: str
    principal: str
    duration_s: float
    status: int
    grpc_status: int | None
    denied: bool


@dataclass(frozen=True, slots=True)
class HostEjected:
    """Outlier detection took an endpoint out."""

    cluster: str
    endpoint: Endpoint
    reason: str
    ejection_time_s: float


@dataclass(frozen=True, slots=True)
class HostUnejected:
    """An ejected endpoint came back."""

    cluster: str
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class HealthChecked:
    """An active health check ended in a way that is worth telling. The words are those of Envoy's event log.

    Attributes:
        change: `eject_unhealthy`, `add_healthy`, `health_check_failure`, `successful_health_check`,
            `degraded_healthy_host` or `no_longer_degraded_host`.
        failure: `ACTIVE`, `PASSIVE`, `NETWORK` or `NETWORK_TIMEOUT`; empty: it passed.
        reason: For people; empty: it passed.
        is_first: It was the endpoint's first check.
    """

    cluster: str
    endpoint: Endpoint
    change: str
    failure: str
    reason: str
    is_first: bool


@dataclass(frozen=True, slots=True)
class ResourceAccepted:
    """A resource was taken over."""

    type_url: str
    name: str
    version: str


@dataclass(frozen=True, slots=True)
class ResourceRejected:
    """A resource was refused; the one before it stays in use."""

    type_url: str
    name: str
    version: str
    reason: str


@dataclass(frozen=True, slots=True)
class ControlPlaneConnected:
    """A stream to a management server delivered its first response."""

    server_uri: str


@dataclass(frozen=True, slots=True)
class ControlPlaneLost:
    """A stream to a management server ended; the last configuration stays in use."""

    server_uri: str
    reason: str


@dataclass(frozen=True, slots=True)
class CertificateRotated:
    """A certificate took the place of another.

    Attributes:
        expires_at: Seconds since the epoch.
    """

    name: str
    spiffe_id: str
    expires_at: float


@dataclass(frozen=True, slots=True)
class CertificateExpiring:
    """A certificate in use, or the longest-lived root of a bundle, has not been replaced in time.

    Fires once when a third of its lifetime is left, and once when it has expired.

    Attributes:
        kind: `certificate` or `roots`.
        spiffe_id: Empty: it has none.
        expires_at: Seconds since the epoch.
        left_s: Seconds left; negative: it has expired, and is not used any more.
    """

    name: str
    kind: str
    spiffe_id: str
    expires_at: float
    left_s: float


Event = (
    AttemptFinished
    | CallFinished
    | RequestMirrored
    | RequestServed
    | HostEjected
    | HostUnejected
    | HealthChecked
    | ResourceAccepted
    | ResourceRejected
    | ControlPlaneConnected
    | ControlPlaneLost
    | CertificateExpiring
    | CertificateRotated
)
Hook = Callable[[Event], None]


@runtime_checkable
class Meter(Protocol):
    """A hook that calls tell what it counts, so that they need not make events which nobody else takes."""

    def __call__(self, event: Event, /) -> None:
        """Take over any event."""
        ...

    def attempted(self, cluster: str, status: int, grpc_status: int | None, failure: str, will_retry: bool, /) -> None:
        """Take over what `AttemptFinished` would say."""
        ...

    def ended(
        self,
        kind: str,
        cluster: str,
        target: str,
        status: int,
        grpc_status: int | None,
        flag: str,
        secure: bool,
        duration_s: float,
        /,
    ) -> None:
        """Take over what `CallFinished` would say."""
        ...

    def succeeded(self, cluster: str, target: str, secure: bool, duration_s: float, /) -> None:
        """Take over a gRPC call whose only attempt went well: `attempted` and `ended` at once."""
        ...
