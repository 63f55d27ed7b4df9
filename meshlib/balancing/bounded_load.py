"""Bounded loads: a host that has more than its fair share of the requests in flight passes them on.

A share is the host's part of the ring or table, times the requests in flight, times the balance factor. Where a request
goes instead is a shuffle of the hosts that its hash seeds, so that requests with one hash still go together.

Source: Envoy, `BoundedLoadHashingLoadBalancer`; Mirrokni et al., "Consistent Hashing with Bounded Loads".
"""

from collections.abc import Sequence
from math import ceil

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.hash_weights import Shares
from meshlib.balancing.maglev import MaglevPicker
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.mt19937 import Mt19937
from meshlib.balancing.picker import HostPicker
from meshlib.balancing.ring_hash import RingHashPicker
from meshlib.ports import Rng

__all__ = ["BoundedLoadPicker"]


class BoundedLoadPicker(HostPicker):
    """Looks whether the host that the hash says has room, and finds another one when it has not."""

    __slots__ = ("_factor", "_hashing", "_memory", "_parts", "_states")

    uses_hash = True

    def __init__(
        self, hashing: RingHashPicker | MaglevPicker, shares: Shares, factor: int, memory: PolicyMemory
    ) -> None:
        """Make the picker.

        Args:
            hashing: The ring or table of these hosts.
            factor: Per cent of a fair share, from 100 on.
        """
        self._hashing = hashing
        self._states = tuple(state for state, _ in shares)
        self._parts = dict(shares)
        self._factor = factor
        self._memory = memory

    def choose(self, rng: Rng) -> EndpointState:
        return self.pick(None, rng)

    def _fullness(self, state: EndpointState, slots: int) -> float:
        return state.active / max(ceil(slots * self._parts[state]), 1)

    def pick(
        self, hash_: int | None, rng: Rng, avoid: Sequence[EndpointState] = (), attempts: int = 1
    ) -> EndpointState:
        """As `Picker.pick`; each pick looks for room."""
        if hash_ is None:
            hash_ = rng.getrandbits(64)
        slots = ((self._memory.in_flight() + 1) * self._factor + 99) // 100
        state = self._nth(hash_, 0, slots)
        if avoid:
            for step in range(1, attempts + 1):
                if state not in avoid:
                    break
                state = self._nth(hash_, step, slots)
        return state

    def _nth(self, hash_: int, number: int, slots: int) -> EndpointState:
        state = self._hashing.nth(hash_, number)
        fullness = self._fullness(state, slots)
        return state if fullness <= 1.0 else self._elsewhere(hash_, state, fullness, slots)

    def _elsewhere(self, hash_: int, state: EndpointState, least: float, slots: int) -> EndpointState:
        draw = Mt19937(hash_ & 0xFFFFFFFF)
        order = list(range(len(self._states)))
        best = state
        for index in range(len(order)):
            other_index = index + draw.below(len(order) - index)
            order[index], order[other_index] = order[other_index], order[index]
            other = self._states[order[index]]
            if other is state:
                continue
            fullness = self._fullness(other, slots)
            if fullness <= 1.0:
                return other
            if fullness < least:
                best, least = other, fullness
        return best
