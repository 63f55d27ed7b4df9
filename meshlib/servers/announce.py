"""Bring one listening address into the mesh: take out a lease, learn what its listener demands."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from meshlib.errors import UnavailableError
from meshlib.model.secret import ServerTls
from meshlib.servers.source import RegistrationHandle, ServerSource

__all__ = ["Announcement", "announce"]

LISTENER_TIMEOUT_S = 15.0
"""gRPC's own time for a resource that does not come (gRFC A57)."""


class Announcement:
    """One announced address.

    Attributes:
        address: `host:port`.
        tls: What the listener demands of connections; None: plaintext.
    """

    def __init__(self, address: str, tls: ServerTls | None, registration: RegistrationHandle | None) -> None:
        self.address = address
        self.tls = tls
        self._registration = registration

    def close(self) -> None:
        """Take the instance out, so that clients stop choosing it. Safe to call twice."""
        registration, self._registration = self._registration, None
        if registration is not None:
            registration.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def announce(
    mesh: ServerSource,
    *,
    service: str,
    address: str,
    labels: Mapping[str, str] | None = None,
    namespace: str = "default",
    service_account: str = "",
    protocol: str = "http",
    service_port: int = 80,
    weight: int = 1,
    ttl_s: float = 5.0,
    timeout_s: float = LISTENER_TIMEOUT_S,
) -> Announcement:
    """Register an address that is already bound, then wait for its listener.

    The socket must be listening before clients can learn of it, so that none of them is refused; connections that come
    early wait in its backlog.

    Args:
        mesh: The mesh to join.
        service: Name that clients call; empty: someone else registers the address.
        address: `host:port` as clients reach it.
        labels: For subsets and selectors.
        namespace: Of the service.
        service_account: Its identity.
        protocol: `http` or `grpc`.
        service_port: Port that clients name.
        weight: Load-balancing weight.
        ttl_s: Lifetime of the lease in seconds.
        timeout_s: How long to wait for the listener.

    Raises:
        UnavailableError: The registry or the listener was not there in time; nothing stays registered.
    """
    registration = None
    if service:
        registration = mesh.register(
            service=service,
            address=address,
            namespace=namespace,
            labels=labels,
            service_account=service_account,
            protocol=protocol,
            service_port=service_port,
            weight=weight,
            ttl_s=ttl_s,
        )
    tls = None
    if mesh.has_inbound:
        try:
            tls = mesh.inbound(address).wait_ready(timeout_s).listener.tls
        except UnavailableError:
            if registration is not None:
                registration.close()
            raise
        if mesh.default_inbound_address is None:
            mesh.default_inbound_address = address
    return Announcement(address, tls, registration)
