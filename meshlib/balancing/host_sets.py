"""The hosts of a cluster, sorted into priorities and localities."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.priority import PriorityHealth
from meshlib.balancing.subsetting import random_subset
from meshlib.model.cluster import StaticDiscovery
from meshlib.model.endpoint import HealthStatus, Locality
from meshlib.model.lb_policy import RandomSubsetting
from meshlib.model.snapshot import ClusterConfig

__all__ = ["LocalityHosts", "PriorityHosts", "health_of", "host_sets"]

_OUT = frozenset({HealthStatus.UNHEALTHY, HealthStatus.TIMEOUT, HealthStatus.DRAINING})


@dataclass(frozen=True, slots=True)
class LocalityHosts:
    """Attributes:
    weight: 0 when the resource gives none.
    count: Hosts of the locality in the whole cluster; of a subset `states` may be fewer.
    """

    locality: Locality
    weight: int
    states: tuple[EndpointState, ...]
    count: int


@dataclass(frozen=True, slots=True)
class PriorityHosts:
    """Attributes:
    states: Of all localities, in order.
    """

    localities: tuple[LocalityHosts, ...]
    states: tuple[EndpointState, ...]

    @classmethod
    def of(cls, localities: tuple[LocalityHosts, ...]) -> "PriorityHosts":
        """Put localities together."""
        return cls(localities, tuple([state for locality in localities for state in locality.states]))

    @property
    def health(self) -> PriorityHealth:
        """How the hosts are at the moment."""
        healthy = degraded = excluded = 0
        for state in self.states:
            if state.is_healthy:
                healthy += 1
                if state.is_held_out:  # what EDS calls healthy is not draining
                    excluded += 1
            else:
                degraded += state.is_degraded
                excluded += state.is_excluded
        return PriorityHealth(healthy, degraded, count=len(self.states) - excluded, hosts=len(self.states))


def health_of(priority: PriorityHosts, config: ClusterConfig) -> PriorityHealth:
    """Return how a priority is, by the numbers of its hosts, or by their weights where the resource says so."""
    health = priority.health
    if not config.assignment.weighs_health:
        return health
    states = priority.states
    weights = (
        sum([state.endpoint.weight for state in states if state.is_healthy]),
        sum([state.endpoint.weight for state in states if state.is_degraded]),
        sum([state.endpoint.weight for state in states if not state.is_excluded]),
    )
    return replace(health, weights=weights)


def host_sets(config: ClusterConfig, states: Mapping[str, EndpointState], seed: int = 0) -> list[PriorityHosts]:
    """Sort the hosts into priorities. A repeated address counts once, except in a STATIC cluster (as in Envoy).

    Args:
        seed: Decides which part of them this client uses, where the policy is random subsetting.
    """
    keep_repeats = isinstance(config.cluster.discovery, StaticDiscovery)
    seen: set[str] = set()
    grouped: dict[int, list[LocalityHosts]] = {}
    for group in config.assignment.localities:
        hosts = []
        for endpoint in group.endpoints:
            state = states.get(endpoint.address)
            if state is None or (endpoint.address in seen and not keep_repeats):
                continue
            seen.add(endpoint.address)
            hosts.append(state)
        entry = LocalityHosts(group.locality, group.weight or 0, tuple(hosts), len(hosts))
        grouped.setdefault(group.priority, []).append(entry)
    # A gap in the numbers is a priority without hosts.
    priorities = [PriorityHosts.of(tuple(grouped.get(number, ()))) for number in range(max(grouped, default=-1) + 1)]
    policy = config.cluster.lb_policy
    while isinstance(policy, RandomSubsetting):
        priorities = [_part(priority, policy, seed) for priority in priorities]
        policy = policy.child
    return priorities


def _part(priority: PriorityHosts, policy: RandomSubsetting, seed: int) -> PriorityHosts:
    """Leave the hosts that this client uses, of those that EDS lets it use: gRPC does not get to see the others."""

    def chosen(states: Sequence[EndpointState]) -> tuple[EndpointState, ...]:
        usable = [state for state in states if state.endpoint.health not in _OUT]
        return random_subset(usable or states, policy.size, seed)

    if policy.per_locality:
        kept = frozenset(state for locality in priority.localities for state in chosen(locality.states))
    else:
        kept = frozenset(chosen(priority.states))
    return PriorityHosts.of(
        tuple(
            replace(locality, states=tuple(state for state in locality.states if state in kept))
            for locality in priority.localities
        )
    )
