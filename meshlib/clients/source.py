"""What the client shells ask of a Mesh."""

from typing import Protocol

from meshlib.events import Event
from meshlib.model.request import RequestHead
from meshlib.ports import Clock, Rng
from meshlib.runtime.tracing import Tracing
from meshlib.view import TargetView, View

__all__ = ["MeshSource"]


class MeshSource(Protocol):
    """The face of `Mesh` that shells depend on; tests pass a fake.

    Attributes:
        clock: Monotonic seconds.
        guard_unsafe: Repeat requests that may have been processed only when that is safe.
        is_disabled: `MESHLIB_DISABLE=1`: everything goes out directly.
        tracing: Makes spans.

    A source may have a `_meter` besides, an `events.Meter` or None: it counts calls instead of `emit`; and an `_express`, which
    says to which targets RPCs and requests may do without a `Call` (see `grpc_express`, `httpx_express`). Its `_tidying_up`
    looks after what grows old without a call (see `Pools.sweep`).
    """

    clock: Clock
    rng: Rng
    guard_unsafe: bool
    is_disabled: bool
    tracing: Tracing

    @property
    def view(self) -> View:
        """The current view; read it once per call."""
        ...

    def target(self, authority: str) -> TargetView | None:
        """Return the target of an authority if it is known and usable right now; never blocks.

        Raises:
            RoutingError: The management server says that it does not exist.
            UnavailableError: Its configuration cannot be used.
        """
        ...

    def wait_target(self, authority: str, timeout_s: float | None = None, *, fails_fast: bool = False) -> TargetView:
        """Subscribe to a target if need be, and wait until it is usable; None: the mesh's default time.

        Args:
            fails_fast: Not any longer when no management server can be reached.

        Raises:
            RoutingError: The management server says that it does not exist.
            UnavailableError: It was not there in time; the text says what is missing and how the server is.
        """
        ...

    async def wait_target_async(
        self, authority: str, timeout_s: float | None = None, *, fails_fast: bool = False
    ) -> TargetView:
        """As `wait_target`, without blocking the event loop."""
        ...

    def meet(self, target: TargetView, head: RequestHead, timeout_s: float | None = None) -> TargetView:
        """Have what a request needs (see `TargetView.has_demands`) subscribed to, and wait for it for a bounded time.

        Returns:
            The target with it, or as it is.
        """
        ...

    async def meet_async(self, target: TargetView, head: RequestHead, timeout_s: float | None = None) -> TargetView:
        """As `meet`, without blocking the event loop."""
        ...

    def emit(self, event: Event) -> None:
        """Hand an event to the hooks; never raises."""
        ...
