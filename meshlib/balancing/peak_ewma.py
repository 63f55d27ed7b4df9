"""Peak EWMA: of two hosts drawn by chance, the one whose expected latency times requests in flight is less.

Latency is an average that follows a peak at once and forgets it slowly, so that a host that stalls is left alone after
one slow answer, and tried again when the peak has decayed. Failures, 429 and 503 count as answers that took long; with
a `Retry-After` the host keeps that cost for as long as it asks for.

Source: Finagle, `PeakEwma`; Envoy's contrib extension of that name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.picker import HostPicker
from meshlib.model.lb_policy import PeakEwma
from meshlib.model.outcome import Failure, Outcome
from meshlib.ports import Rng

__all__ = ["Latency", "PeakEwmaPicker", "after_attempt", "cost"]

TOO_MANY = 429
UNAVAILABLE = 503
GRPC_REFUSALS = frozenset({8, 14})
"""RESOURCE_EXHAUSTED and UNAVAILABLE."""


@dataclass(frozen=True, slots=True)
class Latency:
    """Attributes:
    at: Monotonic seconds from which on it decays; of a host that asked to be left alone, that lies ahead.
    """

    seconds: float
    at: float


def _now(known: Latency, config: PeakEwma, now: float) -> float:
    age_s = now - known.at
    return known.seconds * exp(-age_s / config.decay_s) if age_s > 0 else known.seconds


def after_attempt(known: Latency | None, outcome: Outcome, latency_s: float, config: PeakEwma, now: float) -> Latency:
    """Return what is known of a host after an attempt."""
    wait_s = 0.0
    is_penalised = isinstance(outcome, Failure)
    if not isinstance(outcome, Failure) and (
        outcome.status in (TOO_MANY, UNAVAILABLE) or outcome.grpc_status in GRPC_REFUSALS
    ):
        is_penalised = True
        wait_s = _retry_after_s(outcome.headers.get("retry-after"), config.max_penalty_s)
    if is_penalised:
        latency_s = max(latency_s, config.penalty_s)
    if known is None:
        return Latency(latency_s, now + wait_s)
    before_s = _now(known, config, now)
    if latency_s >= before_s:
        return Latency(latency_s, max(now + wait_s, known.at))
    if now <= known.at:
        return Latency(known.seconds, max(now + wait_s, known.at))
    kept = exp(-(now - known.at) / config.decay_s)
    return Latency(known.seconds * kept + latency_s * (1 - kept), now + wait_s)


def _retry_after_s(text: str | None, most_s: float) -> float:
    """Return the seconds of a `Retry-After`; a date, which needs a wall clock, counts as none."""
    if text is None or not (text.isascii() and text.isdigit()):
        return 0.0
    return min(float(text), most_s)


def cost(state: EndpointState, config: PeakEwma, now: float) -> float:
    """Return what one more request to a host costs, in seconds."""
    known = state.latency
    seconds = config.default_rtt_s if known is None else _now(known, config, now)
    return seconds * (state.active + 1) / state.endpoint.weight


class PeakEwmaPicker(HostPicker):
    """Chooses among a list that is not empty."""

    __slots__ = ("_config", "_memory", "_size", "_states")

    def __init__(self, states: Sequence[EndpointState], config: PeakEwma, memory: PolicyMemory) -> None:
        self._states = tuple(states)
        self._size = len(self._states)
        self._config = config
        self._memory = memory

    def choose(self, rng: Rng) -> EndpointState:
        states, size = self._states, self._size
        if size == 1:
            return states[0]
        first = int(rng.random() * size)
        # Another one than the first: each pair with the same probability.
        second = (first + 1 + int(rng.random() * (size - 1))) % size
        one, other = states[first], states[second]
        now = self._memory.now
        return other if cost(other, self._config, now) < cost(one, self._config, now) else one
