"""A mesh without a control plane: its snapshot is given to it."""

from opentelemetry.trace import TracerProvider

from meshlib.errors import RoutingError, UnavailableError
from meshlib.events import Event
from meshlib.model.request import RequestHead
from meshlib.model.snapshot import ConfigFault, Snapshot
from meshlib.ports import Clock, Rng
from meshlib.runtime.tracing import Tracing
from meshlib.testing.clock import FakeClock
from meshlib.testing.rng import SeededRng
from meshlib.view import ClusterState, TargetView, View, build_view

__all__ = ["FakeMesh", "mesh_source"]


class FakeMesh:
    """What clients ask of a mesh, answered from a snapshot. An authority is its target's name.

    Attributes:
        events: What was emitted, in order.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        *,
        clock: Clock,
        rng: Rng,
        guard_unsafe: bool,
        is_disabled: bool,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        self.clock = clock
        self.rng = rng
        self.guard_unsafe = guard_unsafe
        self.is_disabled = is_disabled
        self.tracing = Tracing(tracer_provider)
        self.events: list[Event] = []
        self._view = build_view(snapshot, None, now=clock())

    @property
    def view(self) -> View:
        """The current view."""
        return self._view

    def publish(self, snapshot: Snapshot) -> View:
        """Put a new snapshot in place of the one before, as an update from a management server does."""
        self._view = build_view(snapshot, self._view, now=self.clock())
        return self._view

    def sweep(self) -> None:
        """Do the periodic work that is due, and emit what it brings."""
        for event in self._view.sweep(self.clock(), self.rng):
            self.emit(event)

    def cluster(self, name: str) -> ClusterState:
        """Return a cluster that must be there.

        Raises:
            KeyError: It is not, or cannot be used.
        """
        found = self._view.clusters[name]
        if isinstance(found, ConfigFault):
            raise KeyError(found.message)
        return found

    def target(self, authority: str) -> TargetView | None:
        """As `MeshSource.target`."""
        found = self._view.targets.get(authority)
        if isinstance(found, ConfigFault):
            kind = RoutingError if found.is_absent else UnavailableError
            raise kind(found.message, resource=found.resource)
        return found

    def wait_target(self, authority: str, timeout_s: float | None = None, *, fails_fast: bool = False) -> TargetView:
        """As `MeshSource.wait_target`, but nothing is waited for: what the snapshot has not does not exist."""
        found = self.target(authority)
        if found is None:
            raise RoutingError(f"{authority!r} is not in the mesh", resource=f"Listener: {authority}")
        return found

    async def wait_target_async(
        self, authority: str, timeout_s: float | None = None, *, fails_fast: bool = False
    ) -> TargetView:
        """As `wait_target`."""
        return self.wait_target(authority, timeout_s)

    def meet(self, target: TargetView, head: RequestHead, timeout_s: float | None = None) -> TargetView:
        """As `MeshSource.meet`, but nothing is asked for: the snapshot is all that there is."""
        return target

    async def meet_async(self, target: TargetView, head: RequestHead, timeout_s: float | None = None) -> TargetView:
        """As `meet`."""
        return target

    def emit(self, event: Event) -> None:
        """Keep an event."""
        self.events.append(event)


def mesh_source(
    snapshot: Snapshot,
    *,
    clock: Clock | None = None,
    rng: Rng | None = None,
    guard_unsafe: bool = True,
    is_disabled: bool = False,
    tracer_provider: TracerProvider | None = None,
) -> FakeMesh:
    """Make a mesh that serves a snapshot.

    Args:
        clock: None: a `FakeClock`.
        rng: None: a `SeededRng(0)`.
        tracer_provider: Who takes spans; None: the global one.
    """
    return FakeMesh(
        snapshot,
        clock=FakeClock() if clock is None else clock,
        rng=SeededRng() if rng is None else rng,
        guard_unsafe=guard_unsafe,
        is_disabled=is_disabled,
        tracer_provider=tracer_provider,
    )
