"""Least request: of a few drawn endpoints the one with the fewest requests in flight.

With equal weights that is the power of two choices. With unequal ones Envoy takes turns by weight instead, each weight
being divided by the requests in flight (plus one) when its endpoint is put back into the order.

Source: Envoy, "Weighted least request".
"""

from collections.abc import Sequence
from heapq import heapify, heapreplace

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.picker import HostPicker
from meshlib.ports import Lock, Rng

__all__ = ["LeastRequestPicker", "WeightedLeastRequestPicker", "least_request"]


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


class WeightedLeastRequestPicker(HostPicker):
    """Unequal weights: earliest deadline first with `weight / (active + 1) ** active_request_bias`.

    The order depends on the load, so it cannot be worked out before; the lock guards one step of the heap.
    """

    __slots__ = ("_bias", "_heap", "_is_started", "_lock", "_states", "_step")

    def __init__(self, states: Sequence[EndpointState], active_request_bias: float = 1.0) -> None:
        self._states = tuple(states)
        self._bias = active_request_bias
        # (deadline, order of insertion, index)
        self._heap = [(self._period(state), index, index) for index, state in enumerate(self._states)]
        heapify(self._heap)
        self._step = len(self._heap)
        self._is_started = False
        self._lock = Lock()

    def _period(self, state: EndpointState) -> float:
        load = state.active + 1
        return float((load if self._bias == 1.0 else load**self._bias) / state.endpoint.weight)

    def _advance(self) -> EndpointState:
        deadline, _, index = self._heap[0]
        state = self._states[index]
        self._step += 1
        heapreplace(self._heap, (deadline + self._period(state), self._step, index))
        return state

    def choose(self, rng: Rng) -> EndpointState:
        with self._lock:
            if not self._is_started:
                self._is_started = True
                for _ in range(int(rng.random() * min(2 * len(self._states), 256))):
                    self._advance()
            return self._advance()


def least_request(states: Sequence[EndpointState], choice_count: int, active_request_bias: float) -> HostPicker:
    """Make the picker for a list that is not empty."""
    if len({state.endpoint.weight for state in states}) == 1:
        return LeastRequestPicker(states, choice_count)
    return WeightedLeastRequestPicker(states, active_request_bias)
