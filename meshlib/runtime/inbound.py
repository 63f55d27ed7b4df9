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
        """Wait until the listener is there.

        Raises:
            RoutingError: The management server says that it does not exist: nothing is registered at this address.
            UnavailableError: It was not there in time, or cannot be used; the text says why.
        """
        if self._mesh.is_disabled:
            raise UnavailableError("the mesh is disabled (MESHLIB_DISABLE=1): it knows no listeners")
        found = self._mesh._waiters.wait(self._usable, timeout_s, self._mesh.clock)
        if found is None:
            raise self._mesh.not_ready(f"inbound listener of {self.address}", self.name, timeout_s)
        return found

    def _usable(self) -> InboundConfig | None:
        found = self.current
        if isinstance(found, ConfigFault):
            if found.is_absent:
                raise RoutingError(found.message, resource=self.name)
            raise UnavailableError(found.message, resource=self.name)
        return found
