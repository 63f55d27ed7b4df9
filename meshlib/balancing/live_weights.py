"""Earliest deadline first over weights that move: each is read when its host is put back into the order.

The order depends on load or time, so it cannot be worked out before; the lock guards one step of the heap.
"""

from collections.abc import Callable, Sequence
from heapq import heapify, heapreplace

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.picker import HostPicker
from meshlib.ports import Lock, Rng

__all__ = ["LiveWeightPicker"]


class LiveWeightPicker(HostPicker):
    """Chooses among a list that is not empty."""

    __slots__ = ("_heap", "_is_started", "_lock", "_states", "_step", "_weight")

    def __init__(self, states: Sequence[EndpointState], weight: Callable[[EndpointState], float]) -> None:
        """Make the picker.

        Args:
            weight: Returns a host's weight now, more than 0.
        """
        self._states = tuple(states)
        self._weight = weight
        # (deadline, order of insertion, index)
        self._heap = [(1 / weight(state), index, index) for index, state in enumerate(self._states)]
        heapify(self._heap)
        self._step = len(self._heap)
        self._is_started = False
        self._lock = Lock()

    def _advance(self) -> EndpointState:
        deadline, _, index = self._heap[0]
        state = self._states[index]
        self._step += 1
        heapreplace(self._heap, (deadline + 1 / self._weight(state), self._step, index))
        return state

    def choose(self, rng: Rng) -> EndpointState:
        with self._lock:
            if not self._is_started:
                self._is_started = True
                for _ in range(int(rng.random() * min(2 * len(self._states), 256))):
                    self._advance()
            return self._advance()
