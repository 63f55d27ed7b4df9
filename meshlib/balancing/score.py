"""What a policy thinks of an endpoint, in words for people."""

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.peak_ewma import cost
from meshlib.balancing.reported_weight import usable_weight
from meshlib.balancing.slow_start import slow_start_factor
from meshlib.model.lb_policy import (
    ClientSideWeightedRoundRobin,
    LbPolicy,
    LeastRequest,
    PeakEwma,
    PickFirst,
    RandomSubsetting,
    RoundRobin,
)

__all__ = ["score_words"]


def score_words(policy: LbPolicy, state: EndpointState, now: float) -> str:
    """Return what makes an endpoint get more or less than its configured weight says; empty: nothing does."""
    words = []
    match policy:
        case RandomSubsetting():
            return score_words(policy.child, state, now)
        case ClientSideWeightedRoundRobin():
            weight = usable_weight(state.reported, policy, now)
            if weight:
                words.append(f"weight {weight:.4g} by its reports")
            else:
                words.append("not reported yet" if state.reported is None else "its reports do not count now")
        case PeakEwma():
            words.append(f"cost {1000 * cost(state, policy, now):.4g} ms")
        case PickFirst():
            if state.unreachable is not None:
                words.append("not reachable")
            elif state.is_selected:
                words.append("chosen")
    if isinstance(policy, RoundRobin | LeastRequest | ClientSideWeightedRoundRobin) and policy.slow_start is not None:
        factor = slow_start_factor(policy.slow_start, state, now)
        if factor < 1.0:
            words.append(f"slow start at {100 * factor:.0f} %")
    return ", ".join(words)
