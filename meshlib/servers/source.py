"""What the server shells ask of a Mesh."""

from collections.abc import Mapping
from typing import Protocol

from meshlib.events import Event
from meshlib.model.snapshot import ConfigFault, InboundConfig
from meshlib.ports import Clock, Rng
from meshlib.runtime.tracing import Tracing
from meshlib.view import View

__all__ = ["InboundHandle", "RegistrationHandle", "ServerSource"]


class InboundHandle(Protocol):
    """The subscription to the listener of one inbound address."""

    @property
    def current(self) -> InboundConfig | ConfigFault | None:
        """What applies now; None: not known yet."""
        ...

    def wait_ready(self, timeout_s: float) -> InboundConfig:
        """Wait until the listener is there.

        Raises:
            UnavailableError: It was not there in time; the text says what is missing and how the server is.
        """
        ...


class RegistrationHandle(Protocol):
    """A lease that announces one instance of a service."""

    def close(self) -> None:
        """Take the instance out. Safe to call twice; never raises for a server that is away."""
        ...

    def set_ready(self) -> None:
        """Let clients choose the instance from now on."""
        ...

    def add_label(self, name: str, value: str) -> None:
        """Announce one more label."""
        ...

    def release(self) -> None:
        """Stop renewing, but leave the lease to the other processes that share it."""
        ...

    def withdraw(self) -> None:
        """After `release`: end the lease that was left."""
        ...

    def hold(self, ttl_s: float) -> None:
        """After `release`: renew the lease once more, for whoever follows."""
        ...

    @property
    def error(self) -> str:
        """Why the instance is not announced; empty: it is."""
        ...


class ServerSource(Protocol):
    """The face of `Mesh` that server adapters depend on.

    Attributes:
        has_inbound: The bootstrap has a `server_listener_resource_name_template`: the mesh governs inbound requests.
        is_disabled: `MESHLIB_DISABLE=1`: requests pass untouched.
        tracing: Makes spans.
        default_inbound_address: The first announced address: it applies where an adapter cannot tell the local address
            of a connection.
        announced_addresses: The address announced for each that this process listens on, as `host:port`.
        handed_on: Names of the request headers that go on to the calls made while serving a request.
        forwarded: The remote IP address of connections that come through a front of ours, by what the server behind it
            takes for the remote address (`ip:port`).
        leaving_addresses: What applies at addresses that were announced and are no more, while requests still come.
    """

    clock: Clock
    rng: Rng
    is_disabled: bool
    tracing: Tracing
    handed_on: frozenset[str]
    default_inbound_address: str | None
    announced_addresses: dict[str, str]
    leaving_addresses: dict[str, InboundConfig]
    forwarded: dict[str, str]

    @property
    def has_inbound(self) -> bool: ...

    @property
    def view(self) -> View: ...

    def inbound(self, address: str) -> InboundHandle: ...

    def register(
        self,
        *,
        service: str,
        address: str,
        namespace: str = "default",
        labels: Mapping[str, str] | None = None,
        service_account: str = "",
        protocol: str = "http",
        service_port: int = 80,
        weight: int = 1,
        ttl_s: float = 5.0,
        lease_id: str | None = None,
        ready: bool = True,
    ) -> RegistrationHandle: ...

    def emit(self, event: Event) -> None: ...
