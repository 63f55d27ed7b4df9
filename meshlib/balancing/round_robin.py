"""Round robin: everyone in turn, as often as its weight says.

Source: Envoy, "Supported load balancers", and spec of the EDF scheduler in `schedule.py`.
"""

from collections.abc import Sequence
from itertools import count

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.picker import HostPicker
from meshlib.balancing.schedule import weighted_schedule
from meshlib.balancing.slow_start import with_slow_start
from meshlib.model.lb_policy import SlowStart
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


def _weight(state: EndpointState) -> float:
    return state.endpoint.weight


def round_robin(
    states: Sequence[EndpointState], *, slow_start: SlowStart | None = None, memory: PolicyMemory | None = None
) -> HostPicker:
    """Make the picker for a list that is not empty."""
    is_equal = len({state.endpoint.weight for state in states}) == 1
    settled = RoundRobinPicker(states) if is_equal else WeightedRoundRobinPicker(states)
    if slow_start is None or memory is None:
        return settled
    return with_slow_start(slow_start, states, memory, _weight, settled)
