"""Slow start: a host that has just become healthy begins with a part of its weight, which grows with its age.

While any host is inside its window, turns are taken by weights that are read anew at each turn; then the policy goes on
as without slow start, so that it costs one comparison.

Source: Envoy, "Slow start mode", `EdfLoadBalancerBase::applySlowStartFactor`.
"""

from collections.abc import Callable, Sequence

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.live_weights import LiveWeightPicker
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.picker import HostPicker
from meshlib.model.lb_policy import SlowStart
from meshlib.ports import Rng

__all__ = ["MIN_AGE_S", "slow_start_factor", "window_end", "with_slow_start"]

MIN_AGE_S = 0.001


def slow_start_factor(config: SlowStart, state: EndpointState, now: float) -> float:
    """Return what a host's weight is multiplied with, from `min_weight` up to 1.0."""
    since = state.healthy_since
    if since is None or not state.is_healthy:
        return 1.0
    age_s = now - since
    if age_s >= config.window_s:
        return 1.0
    part = max(MIN_AGE_S, age_s) / config.window_s
    grown = part if config.aggression == 1.0 else part ** (1 / config.aggression)
    return float(max(config.min_weight, grown))


def window_end(config: SlowStart, states: Sequence[EndpointState]) -> float:
    """Return when the last of the hosts will have its whole weight."""
    began = [state.healthy_since for state in states if state.healthy_since is not None and state.is_healthy]
    return max(began) + config.window_s if began else float("-inf")


class SlowStartPicker(HostPicker):
    """Takes turns by weights in motion until they have settled."""

    __slots__ = ("_ends_at", "_live", "_memory", "_settled")

    def __init__(self, memory: PolicyMemory, ends_at: float, live: LiveWeightPicker, settled: HostPicker) -> None:
        self._memory = memory
        self._ends_at = ends_at
        self._live = live
        self._settled = settled

    def choose(self, rng: Rng) -> EndpointState | None:
        return (self._live if self._memory.now < self._ends_at else self._settled).choose(rng)


def with_slow_start(
    config: SlowStart,
    states: Sequence[EndpointState],
    memory: PolicyMemory,
    weight: Callable[[EndpointState], float],
    settled: HostPicker,
) -> HostPicker:
    """Return the picker for hosts of which some may be inside their window.

    Args:
        weight: Returns a host's weight but for slow start.
        settled: Chooses when all windows are over.
    """
    ends_at = window_end(config, states)
    if memory.now >= ends_at:
        return settled

    def slowed(state: EndpointState) -> float:
        return weight(state) * slow_start_factor(config, state, memory.now)

    return SlowStartPicker(memory, ends_at, LiveWeightPicker(states, slowed), settled)
