"""Pick first: all requests go to one endpoint, until it cannot be reached; then to the next of the list that can.

The one that was chosen stays, also when the list changes, as long as it is on it and reachable. One that could not be
reached is left alone for a while that grows, as a gRPC channel backs off; when nobody can be reached, they are tried in
turn.

Source: gRFCs A61, A62, A113.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import xxhash

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.picker import HostPicker
from meshlib.ports import Rng

__all__ = ["PickFirstPicker", "Unreachable", "next_failure", "shuffled"]

FIRST_WAIT_S = 1.0
WAIT_FACTOR = 1.6
MAX_WAIT_S = 120.0
"""gRPC's connection back-off, without its jitter: nothing is dialled by a timer here."""


@dataclass(frozen=True, slots=True)
class Unreachable:
    """Attributes:
    until: Monotonic seconds.
    wait_s: How long the whole wait is.
    """

    until: float
    wait_s: float


def next_failure(before: Unreachable | None, now: float) -> Unreachable:
    """Return how long an endpoint is left alone after it could not be reached, once more."""
    wait_s = FIRST_WAIT_S if before is None else min(before.wait_s * WAIT_FACTOR, MAX_WAIT_S)
    return Unreachable(now + wait_s, wait_s)


def shuffled(states: Sequence[EndpointState], seed: int) -> tuple[EndpointState, ...]:
    """Return the endpoints in an order that is this client's own, in which one that weighs more tends to be earlier.

    The order is made of hashes: an endpoint more or less does not change that of the others.
    """

    def key(state: EndpointState) -> float:
        # u ** (1 / w) with u in (0, 1), the greatest first: a weighted shuffle (A113).
        u = (xxhash.xxh64_intdigest(state.address.encode("utf-8", "surrogateescape"), seed) + 0.5) / 2**64
        return -float(u ** (1 / state.endpoint.weight))

    return tuple(sorted(states, key=key))


class PickFirstPicker(HostPicker):
    """Chooses among a list that is not empty."""

    __slots__ = ("_memory", "_selected", "_states")

    def __init__(self, states: Sequence[EndpointState], memory: PolicyMemory) -> None:
        self._states = tuple(states)
        self._memory = memory
        # One assignment; that two threads choose at the same time does no harm.
        self._selected = next((state for state in self._states if state.is_selected), self._states[0])

    def choose(self, rng: Rng) -> EndpointState:
        selected = self._selected
        if selected.unreachable is None:
            if not selected.is_selected:
                selected.is_selected = True
            return selected
        now = self._memory.now
        waits = [
            0.0 if (failure := state.unreachable) is None else max(0.0, failure.until - now) for state in self._states
        ]
        # The first that can be tried now, else the one whose wait is over first.
        found = self._states[min(range(len(waits)), key=waits.__getitem__)]
        selected.is_selected = False
        found.is_selected = True
        self._selected = found
        return found

    def pick(
        self, hash_: int | None, rng: Rng, avoid: Sequence[EndpointState] = (), attempts: int = 1
    ) -> EndpointState:
        """As `Picker.pick`; a repetition that is to go elsewhere goes to the next of the list, and only it does."""
        state = self.choose(rng)
        if attempts < 1 or state not in avoid:
            return state
        others = [other for other in self._states if other not in avoid]
        return next((other for other in others if other.unreachable is None), others[0] if others else state)
