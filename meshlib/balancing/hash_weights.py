"""What ring hash and Maglev know of hosts: the key each is hashed by, and its share.

Source: Envoy, `ThreadAwareLoadBalancerBase`, `normalizeWeights` and `hashKey`. Shares are sums and quotients of doubles
in Envoy's order of operations: a last bit that differs would put one point of a ring elsewhere.
"""

from collections.abc import Sequence

from meshlib.balancing.endpoint_state import EndpointState

__all__ = ["Shares", "flat_shares", "hash_key", "locality_shares"]

Shares = list[tuple[EndpointState, float]]
"""Hosts in the order of the resource, and their shares, which sum to 1 at most."""


def hash_key(state: EndpointState, *, uses_hostname: bool) -> str:
    """Return the text that stands for a host: `hash_key` of its `envoy.lb` metadata, its hostname, or its address."""
    endpoint = state.endpoint
    lb = endpoint.metadata.get("envoy.lb")
    if lb is not None:
        key = lb.get("hash_key")
        if isinstance(key, str) and key:
            return key
    if uses_hostname:
        return endpoint.hostname
    return endpoint.address.removeprefix("unix:")


def flat_shares(states: Sequence[EndpointState], part: float = 1.0) -> Shares:
    """Return the shares of hosts by their weights.

    Args:
        part: What they sum to.
    """
    total = sum(state.endpoint.weight for state in states)
    return [(state, state.endpoint.weight * part / total) for state in states]


def locality_shares(localities: Sequence[tuple[int, Sequence[EndpointState]]]) -> Shares:
    """Return the shares of hosts by the weights of their localities, and inside of these by their own.

    A locality without weight gets nothing, also when all are without. One whose hosts are all out still takes its part,
    so that the others sum to less than 1: that decides how many points a ring has (as seen with Envoy 1.40).

    Args:
        localities: Weight and hosts that can be chosen; in Envoy's order, and only those with hosts of any health.
    """
    total = sum(weight for weight, _ in localities)
    return [
        entry for weight, states in localities if weight and states for entry in flat_shares(states, weight / total)
    ]
