"""What the pickers of one cluster have in common, and keep over updates."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from meshlib.model.custom_policy import LbPolicy
from meshlib.model.lb_policy import CustomPolicy

if TYPE_CHECKING:
    from meshlib.balancing.zone_aware import Home

__all__ = ["PolicyMemory"]


def _nothing() -> int:
    return 0


class PolicyMemory:
    """Lives as long as its cluster. What is kept about one endpoint is in its `EndpointState`.

    Attributes:
        now: Monotonic seconds of the newest attempt or tick: for policies whose weights move with time, so that the
            many others need not be handed it. Written by whoever is about to pick; a value that another thread has
            just written is as good.
        seed: 64 bits of this client's own, fixed at creation.
        in_flight: Returns the requests in flight to the cluster.
        home: Who knows the local cluster; None: zones do not matter. Fixed at creation.
        is_grpc: The load report that came last was of a gRPC call, or out of band: the profile of the cluster's calls.
    """

    __slots__ = ("_custom", "home", "in_flight", "is_grpc", "now", "seed")

    def __init__(
        self,
        now: float = 0.0,
        seed: int = 0,
        in_flight: Callable[[], int] = _nothing,
        home: "Home | None" = None,
    ) -> None:
        self.now = now
        self.seed = seed
        self.in_flight = in_flight
        self.home = home
        self.is_grpc = False
        self._custom: tuple[CustomPolicy, LbPolicy] | None = None

    def custom(self, config: CustomPolicy, make: Callable[[CustomPolicy], LbPolicy]) -> LbPolicy:
        """Return the application's policy for a configuration: the same one as long as that stays equal."""
        known = self._custom
        if known is None or known[0] != config:
            known = self._custom = (config, make(config))
        return known[1]
