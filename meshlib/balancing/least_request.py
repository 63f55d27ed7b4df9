"""Least request: of a few drawn endpoints, or of all, the one with the fewest requests in flight.

With equal weights that is the power of two choices. With unequal ones Envoy takes turns by weight instead, each weight
being divided by the requests in flight (plus one) when its endpoint is put back into the order.

Source: Envoy, "Weighted least request".
"""

from collections.abc import Callable, Sequence

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.live_weights import LiveWeightPicker
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.picker import HostPicker
from meshlib.balancing.slow_start import with_slow_start
from meshlib.model.lb_policy import SlowStart
from meshlib.ports import Rng

__all__ = ["FullScanPicker", "LeastRequestPicker", "WeightedLeastRequestPicker", "least_request"]


class LeastRequestPicker(HostPicker):
    """Equal weights: `choice_count` independent draws, repeats possible, the first of equals wins."""

    __slots__ = ("_more", "_size", "_states")

    def __init__(self, states: Sequence[EndpointState], choice_count: int = 2) -> None:
        self._states = tuple(states)
        self._size = len(self._states)
        self._more = range(choice_count - 1)

    def choose(self, rng: Rng) -> EndpointState:
        draw, states, size = rng.random, self._states, self._size
        best = states[int(draw() * size)]
        for _ in self._more:
            other = states[int(draw() * size)]
            if other.active < best.active:
                best = other
        return best


class FullScanPicker(HostPicker):
    """Equal weights: the least of all, of several by chance."""

    __slots__ = ("_states",)

    def __init__(self, states: Sequence[EndpointState]) -> None:
        self._states = tuple(states)

    def choose(self, rng: Rng) -> EndpointState:
        # Read once: counts may change meanwhile, and somebody must be the least.
        counts = [state.active for state in self._states]
        least = min(counts)
        found = [index for index, count in enumerate(counts) if count == least]
        return self._states[found[0] if len(found) == 1 else found[int(rng.random() * len(found))]]


def _by_load(active_request_bias: float) -> Callable[[EndpointState], float]:
    def weight(state: EndpointState) -> float:
        load = state.active + 1
        return float(state.endpoint.weight / (load if active_request_bias == 1.0 else load**active_request_bias))

    return weight


class WeightedLeastRequestPicker(LiveWeightPicker):
    """Unequal weights: earliest deadline first with `weight / (active + 1) ** active_request_bias`."""

    __slots__ = ()

    def __init__(self, states: Sequence[EndpointState], active_request_bias: float = 1.0) -> None:
        super().__init__(states, _by_load(active_request_bias))


def least_request(
    states: Sequence[EndpointState],
    choice_count: int,
    active_request_bias: float,
    *,
    full_scan: bool = False,
    slow_start: SlowStart | None = None,
    memory: PolicyMemory | None = None,
) -> HostPicker:
    """Make the picker for a list that is not empty."""
    settled: HostPicker
    if len({state.endpoint.weight for state in states}) > 1:
        settled = WeightedLeastRequestPicker(states, active_request_bias)
    elif full_scan:
        settled = FullScanPicker(states)
    else:
        settled = LeastRequestPicker(states, choice_count)
    if slow_start is None or memory is None:
        return settled
    return with_slow_start(slow_start, states, memory, _by_load(active_request_bias), settled)
