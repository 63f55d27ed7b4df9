"""Round robin: everyone in turn, as often as its weight says.

Source: Envoy, "Supported load balancers", and spec of the EDF scheduler in `schedule.py`.
"""

from collections.abc import Sequence
from itertools import count

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.picker import HostPicker
from meshlib.balancing.schedule import weighted_schedule
from meshlib.ports import Rng

__all__ = ["RoundRobinPicker", "WeightedRoundRobinPicker", "round_robin"]


class RoundRobinPicker(HostPicker):
    """Equal weights: the list over and over, from a random start."""

    __slots__ = ("_size", "_states", "_turn")

    def __init__(self, states: Sequence[EndpointState]) -> None:
        self._states = tuple(states)
        self._size = len(self._states)
        self._turn: count[int] | None = None

    def choose(self, rng: Rng) -> EndpointState:
        turn = self._turn
        if turn is None:
            turn = self._turn = count(int(rng.random() * self._size))
        return self._states[next(turn) % self._size]


class WeightedRoundRobinPicker(HostPicker):
    """Unequal weights: earliest deadline first."""

    __slots__ = ("_schedule", "_states")

    def __init__(self, states: Sequence[EndpointState]) -> None:
        self._states = tuple(states)
        self._schedule = weighted_schedule([state.endpoint.weight for state in states])

    def choose(self, rng: Rng) -> EndpointState:
        return self._states[self._schedule.next(rng)]


def round_robin(states: Sequence[EndpointState]) -> HostPicker:
    """Make the picker for a list that is not empty."""
    if len({state.endpoint.weight for state in states}) == 1:
        return RoundRobinPicker(states)
    return WeightedRoundRobinPicker(states)
