"""What can go wrong, as one tree.

    MeshError
      ConfigError            the bootstrap, a resource, an option
        BootstrapError
        ResourceError        a resource does not exist, was refused, or cannot be had
      RoutingError           no such service, no route, cluster not found
      UnavailableError       no endpoint, a limit reached, warming timed out
      DeadlineExceeded       the call's own time is over
      IdentityError          the peer is not who it must be, or we have no certificate

Clients raise what their users already catch (`httpx.ConnectError`, `grpc.RpcError`, ...); these are then the cause, and
hold the details as fields.
"""

from collections.abc import Sequence

__all__ = [
    "BootstrapError",
    "ConfigError",
    "DeadlineExceeded",
    "IdentityError",
    "MeshError",
    "ResourceError",
    "RoutingError",
    "UnavailableError",
]


class MeshError(Exception):
    """Base of all errors of meshlib.

    Attributes:
        cluster: Cluster that the call went to, or empty.
        endpoints: Endpoints tried, `host:port`, in order.
        attempts: Number of attempts made.
        flag: Envoy's response flag (`UH`, `UF`, `NR`, ...), or empty.
        resource: Name of the xDS resource at fault, or empty.
    """

    def __init__(
        self,
        message: str,
        *,
        cluster: str = "",
        endpoints: Sequence[str] = (),
        attempts: int = 0,
        flag: str = "",
        resource: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.cluster = cluster
        self.endpoints = tuple(endpoints)
        self.attempts = attempts
        self.flag = flag
        self.resource = resource

    def __str__(self) -> str:
        facts = []
        if self.flag:
            facts.append(f"flag {self.flag}")
        if self.cluster:
            facts.append(f"cluster {self.cluster!r}")
        if self.endpoints:
            facts.append("endpoints " + ", ".join(self.endpoints[:5]) + (", ..." if len(self.endpoints) > 5 else ""))
        if self.attempts:
            facts.append(f"attempts {self.attempts}")
        if self.resource:
            facts.append(f"resource {self.resource!r}")
        return f"{self.message} ({'; '.join(facts)})" if facts else self.message


class ConfigError(MeshError):
    """Configuration that cannot be used."""


class BootstrapError(ConfigError):
    """The bootstrap is missing or malformed; the text names the variable, the path, the JSON pointer and the reason."""


class ResourceError(ConfigError):
    """A resource does not exist, was refused, or cannot be had."""


class RoutingError(MeshError):
    """The request leads nowhere: unknown service, no route, unknown cluster."""


class UnavailableError(MeshError):
    """Nothing can take the request now: no endpoint, a limit reached, configuration not there in time."""


class DeadlineExceeded(MeshError):
    """The time allowed for the call is over."""


class IdentityError(MeshError):
    """The peer is not who it must be, or we cannot prove who we are."""
