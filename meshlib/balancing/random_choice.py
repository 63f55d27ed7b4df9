"""Random: each endpoint with the same probability; weights do not count, as in Envoy."""

from collections.abc import Sequence

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.picker import HostPicker
from meshlib.ports import Rng

__all__ = ["RandomPicker"]


class RandomPicker(HostPicker):
    """Chooses among a list that is not empty."""

    __slots__ = ("_size", "_states")

    def __init__(self, states: Sequence[EndpointState]) -> None:
        self._states = tuple(states)
        self._size = len(self._states)

    def choose(self, rng: Rng) -> EndpointState:
        return self._states[int(rng.random() * self._size)]
