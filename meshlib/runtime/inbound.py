"""A server's subscription to what applies to requests that come in at one of its addresses."""

from typing import Protocol

from meshlib.errors import MeshError, RoutingError, UnavailableError
from meshlib.model.snapshot import ConfigFault, InboundConfig
from meshlib.ports import Clock
from meshlib.runtime.wait import Waiters
from meshlib.view import View

__all__ = ["InboundSubscription", "Source"]


class Source(Protocol):
    """The part of a mesh that a subscription needs."""

    clock: Clock
    is_disabled: bool
    _waiters: Waiters

    @property
    def view(self) -> View: ...

    def not_ready(self, what: str, name: str, timeout_s: float) -> MeshError: ...


class InboundSubscription:
    """Attributes:
    address: As listened on.
    name: Of the listener resource.
    """

    def __init__(self, mesh: Source, address: str, name: str) -> None:
        self.address = address
        self.name = name
        self._mesh = mesh

    @property
    def current(self) -> InboundConfig | ConfigFault | None:
        """What applies now; None: not known yet (or the mesh is disabled)."""
        if self._mesh.is_disabled:
            return None
        return self._mesh.view.inbound.get(self.name)

    def wait_ready(self, timeout_s: float) -> InboundConfig:
        """Wait until the listener is there. It exists as soon as an instance is registered at this address.

        Raises:
            RoutingError: The time is over, and the management server says that it does not exist.
            UnavailableError: It was not there in time, or cannot be used; the text says why.
        """
        if self._mesh.is_disabled:
            raise UnavailableError("the mesh is disabled (MESHLIB_DISABLE=1): it knows no listeners")
        found = self._mesh._waiters.wait(self._ready, timeout_s, self._mesh.clock)
        if found is not None:
            return found
        fault = self.current
        if isinstance(fault, ConfigFault):
            kind = RoutingError if fault.is_absent else UnavailableError
            raise kind(fault.message, resource=self.name)
        raise self._mesh.not_ready(f"inbound listener of {self.address}", self.name, timeout_s)

    def _ready(self) -> InboundConfig | None:
        found = self.current
        return None if isinstance(found, ConfigFault) else found
