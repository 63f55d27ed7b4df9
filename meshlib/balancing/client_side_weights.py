"""Client-side weighted round robin: round robin by the weights that the hosts' own load reports give.

Weights are looked at anew every `update_s`, by the first pick after that; a pick in between is one step of the
scheduler. Without any usable weight it is round robin.

Source: gRFC A58; Envoy, "Client-side weighted round robin".
"""

from collections.abc import Sequence
from itertools import count

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.picker import HostPicker
from meshlib.balancing.reported_weight import fill_weights, usable_weight
from meshlib.balancing.slow_start import slow_start_factor
from meshlib.balancing.static_stride import StaticStride
from meshlib.model.lb_policy import ClientSideWeightedRoundRobin
from meshlib.ports import Lock, Rng

__all__ = ["ClientSideWeightedPicker"]


class ClientSideWeightedPicker(HostPicker):
    """Chooses among a list that is not empty."""

    __slots__ = ("_config", "_due_at", "_lock", "_memory", "_scheduler", "_size", "_states", "_turn")

    def __init__(
        self, states: Sequence[EndpointState], config: ClientSideWeightedRoundRobin, memory: PolicyMemory
    ) -> None:
        self._states = tuple(states)
        self._size = len(self._states)
        self._config = config
        self._memory = memory
        self._scheduler: StaticStride | None = None
        self._due_at = float("-inf")
        self._turn: count[int] | None = None
        # Guards `_due_at`: one thread looks at the weights, the others go on meanwhile.
        self._lock = Lock()

    def choose(self, rng: Rng) -> EndpointState:
        turn = self._turn
        if turn is None:
            # Two threads may both be first: each then has a random start, and one of the counters stays.
            turn = self._turn = count(rng.getrandbits(32))
        now = self._memory.now
        if now >= self._due_at:
            self._refresh(turn, now)
        scheduler = self._scheduler
        return self._states[next(turn) % self._size if scheduler is None else scheduler.next()]

    def _refresh(self, turn: "count[int]", now: float) -> None:
        config = self._config
        with self._lock:
            if now < self._due_at:
                return
            self._due_at = now + config.update_s
        is_grpc = self._memory.is_grpc
        weights = fill_weights([usable_weight(s.reported, config, now) for s in self._states], is_grpc=is_grpc)
        slow = config.slow_start
        if slow is not None:
            # By weight 1 each, as long as nobody has reported.
            weights = [
                weight * slow_start_factor(slow, state, now)
                for weight, state in zip(weights or [1.0] * self._size, self._states, strict=True)
            ]
        if weights is None or len(set(weights)) == 1:
            self._scheduler = None
        else:
            self._scheduler = StaticStride(weights, turn.__next__, is_clamped=is_grpc and slow is None)
