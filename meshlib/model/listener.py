"""Listeners (LDS): what a client's target resolves to, and what a server applies to requests that come in."""

from dataclasses import dataclass

from meshlib.model.authorization import Rbac
from meshlib.model.route import FaultPolicy, RouteConfiguration
from meshlib.model.secret import ServerTls
from meshlib.model.session import SessionPolicy

__all__ = ["ClientListener", "Listener", "ServerListener"]


@dataclass(frozen=True, slots=True)
class ClientListener:
    """An API listener.

    Attributes:
        routes: Inline, or the name of an RDS resource.
        max_stream_duration_s: Default for routes; None: absent.
        has_fault_filter: Without it, fault overrides of routes have no effect.
        fault: The filter's own configuration.
        has_session_filter: Without it, overrides of routes concerning stateful sessions have no effect.
        session: That filter's own configuration.
    """

    name: str
    routes: RouteConfiguration | str
    has_fault_filter: bool = False
    fault: FaultPolicy | None = None
    has_session_filter: bool = False
    session: SessionPolicy | None = None
    max_stream_duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class ServerListener:
    """A socket listener of an inbound port.

    Attributes:
        address: `host:port`.
        tls: None: plaintext.
        rbac: In filter order; each must let the request pass.
        routes: Inline or RDS name; requests that match no route are refused.
    """

    name: str
    address: str
    tls: ServerTls | None
    rbac: tuple[Rbac, ...]
    routes: RouteConfiguration | str


Listener = ClientListener | ServerListener
