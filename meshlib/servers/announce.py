"""Bring one listening address into the mesh: take out a lease, learn what its listener demands."""

from collections.abc import Mapping
from types import TracebackType
from typing import Self

from meshlib.errors import ConfigError, MeshError, UnavailableError
from meshlib.model.listener import ServerListener
from meshlib.model.secret import Secret
from meshlib.model.snapshot import InboundConfig
from meshlib.servers.addresses import advertised
from meshlib.servers.crew import Crew
from meshlib.servers.source import RegistrationHandle, ServerSource

__all__ = ["DRAIN_S", "LISTENER_TIMEOUT_S", "Announcement", "announce"]

DRAIN_S = 1.0
"""How long a server goes on accepting after leaving the registry: the time an update needs to reach every client, with
a margin for busy machines (the management server pushes within 0.1 s)."""

LISTENER_TIMEOUT_S = 15.0
"""gRPC's own time for a resource that does not come (gRFC A57)."""

SPEAKS_TLS = ("security.istio.io/tlsMode", "istio")
"""Istio's label of workloads that can speak mTLS. Where a listener takes both, clients learn by it that they may use it."""


class Announcement:
    """One announced address.

    Attributes:
        address: `host:port`.
        tls: What the listener demands of connections; None: plaintext.
        takes_plaintext: Beside TLS, on the same port.
    """

    def __init__(
        self,
        mesh: ServerSource,
        address: str,
        listener: ServerListener | None,
        registration: RegistrationHandle | None,
    ) -> None:
        tls = None if listener is None else listener.tls
        self.address = address
        self.tls = tls
        self.takes_plaintext = tls is not None and listener is not None and listener.takes_plaintext
        self._mesh = mesh
        self._registration = registration
        refs = () if tls is None else (tls.certificate, tls.trust)
        self._secret_names = {ref.sds_name for ref in refs if ref is not None and ref.sds_name}
        self._secrets: Mapping[str, Secret] = mesh.view.secrets if tls is not None else {}

    def secrets(self) -> Mapping[str, Secret]:
        """Return the secrets for TLS as they are now.

        When the instance is out its listener is gone, and what only that one needed: the last secrets then stay in use.
        """
        current = self._mesh.view.secrets
        if self._secret_names <= current.keys():
            self._secrets = current
        return self._secrets

    def set_ready(self) -> None:
        """Let clients choose the instance from now on."""
        if self._registration is not None:
            self._registration.set_ready()

    def close(self) -> None:
        """Take the instance out, so that clients stop choosing it. Safe to call twice."""
        self._keep_rules()
        registration, self._registration = self._registration, None
        if registration is not None:
            registration.close()

    def _keep_rules(self) -> None:
        """Have the rules of now guard the address until the process ends.

        The listener goes with the instance, but requests do not stop coming at once: clients hear of it a little later.
        """
        mesh = self._mesh
        if mesh.has_inbound and self.address not in mesh.leaving_addresses:
            self.secrets()
            config = mesh.inbound(self.address).current
            if isinstance(config, InboundConfig):
                mesh.leaving_addresses[self.address] = config

    def leave(self, crew: Crew, berth: int, *, handover_s: float, is_replaced: bool = False) -> bool:
        """End this process's part in a shared lease. Safe to call twice.

        Renewing stops before the others can see that we are gone, so who ends the lease is not contradicted. Where
        the others have yet to start, the lease is held for them.

        Args:
            crew: Who shares it.
            berth: Ours.
            handover_s: How long the lease is held where the others have yet to start: the time that they may take.
                Connections wait in the backlog of their socket meanwhile.
            is_replaced: Someone follows, whether it can be seen already or not: the lease is not ended.

        Returns:
            Whether the instance is out.
        """
        self._keep_rules()
        registration, self._registration = self._registration, None
        if registration is None:
            return crew.leave(berth)
        registration.release()
        crew.board(berth)
        if (is_replaced or not crew.is_alone(berth)) and not crew.is_renewed:
            registration.hold(handover_s)
        is_out = crew.leave(berth) and not is_replaced
        if is_out:
            registration.withdraw()
        return is_out

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
    advertise: str | None = None,
    labels: Mapping[str, str] | None = None,
    namespace: str = "default",
    service_account: str = "",
    protocol: str = "http",
    service_port: int = 80,
    weight: int = 1,
    ttl_s: float = 5.0,
    lease_id: str | None = None,
    ready: bool = True,
    timeout_s: float = LISTENER_TIMEOUT_S,
) -> Announcement:
    """Register an address that is already bound, then wait for its listener.

    The socket must be listening before clients can learn of it, so that none of them is refused; connections that come
    early wait in its backlog. While the registry is away the instance is announced in the background: a process whose
    copy on disk knows the listener serves meanwhile.

    Args:
        mesh: The mesh to join.
        service: Name that clients call; empty: someone else registers the address.
        address: `host:port` listened on.
        advertise: Host or `host:port` as clients reach it, where it is another; needed for a socket bound to all
            addresses.
        labels: For subsets and selectors.
        namespace: Of the service.
        service_account: Its identity.
        protocol: `http` or `grpc`.
        service_port: Port that clients name.
        weight: Load-balancing weight.
        ttl_s: Lifetime of the lease in seconds.
        lease_id: Shared by the processes that share the address; None: a new one.
        ready: Clients may choose it at once; else not before `Announcement.set_ready`.
        timeout_s: How long to wait for the listener.

    Raises:
        ConfigError: The registry refuses the instance, or the address is none that clients could use.
        UnavailableError: The listener was not there in time; nothing stays registered.
    """
    try:
        announced = advertised(address, advertise)
    except ValueError as error:
        raise ConfigError(f"announce {service or address}: {error}") from error
    registration = None
    if service:
        registration = mesh.register(
            service=service,
            address=announced,
            namespace=namespace,
            labels=labels,
            service_account=service_account,
            protocol=protocol,
            service_port=service_port,
            weight=weight,
            ttl_s=ttl_s,
            lease_id=lease_id,
            ready=ready,
        )
    listener = None
    try:
        if mesh.has_inbound:
            listener = _listener(mesh, announced, timeout_s, registration)
    except BaseException:
        if registration is not None:
            # The others that share a lease may well be serving.
            (registration.close if lease_id is None else registration.release)()
        raise
    mesh.leaving_addresses.pop(announced, None)
    mesh.announced_addresses[address] = announced
    if mesh.default_inbound_address is None:
        mesh.default_inbound_address = announced
    announcement = Announcement(mesh, announced, listener, registration)
    if announcement.takes_plaintext and registration is not None:
        registration.add_label(*SPEAKS_TLS)
    return announcement


def _listener(
    mesh: ServerSource, address: str, timeout_s: float, registration: RegistrationHandle | None
) -> ServerListener:
    try:
        return mesh.inbound(address).wait_ready(timeout_s).listener
    except MeshError as error:
        # Without an instance there is no listener: then the registry's word is the reason.
        if registration is not None and registration.error:
            raise UnavailableError(f"{error}; {address} could not be registered: {registration.error}") from error
        raise
