"""Makes the picker of a cluster from its configuration and the state of its endpoints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.hash_weights import flat_shares, locality_shares
from meshlib.balancing.host_sets import PriorityHosts, host_sets
from meshlib.balancing.least_request import least_request
from meshlib.balancing.locality import LocalityPicker, LocalityShare, effective_weights
from meshlib.balancing.maglev import MaglevPicker
from meshlib.balancing.picker import EmptyPicker, HostPicker, Picker
from meshlib.balancing.priority import (
    HashPriorityPicker,
    PriorityHealth,
    PriorityLoad,
    PriorityPicker,
    priority_load,
)
from meshlib.balancing.random_choice import RandomPicker
from meshlib.balancing.ring_hash import RingHashPicker
from meshlib.balancing.round_robin import round_robin
from meshlib.balancing.subset import SubsetPicker
from meshlib.model.cluster import LeastRequest, Maglev, Random, RingHash, RoundRobin
from meshlib.model.snapshot import ClusterConfig
from meshlib.ports import Pause, no_pause

__all__ = ["build_picker", "cluster_health"]

_NOBODY = EmptyPicker()


def _host_picker(policy: RoundRobin | LeastRequest | Random, states: Sequence[EndpointState]) -> HostPicker:
    if not states:
        return _NOBODY
    match policy:
        case RoundRobin():
            return round_robin(states)
        case LeastRequest(choice_count=choice_count, active_request_bias=bias):
            return least_request(states, choice_count, bias)
        case Random():
            return RandomPicker(states)
        case _:
            assert_never(policy)


def _source(
    config: ClusterConfig,
    policy: RoundRobin | LeastRequest | Random,
    priority: PriorityHosts,
    is_eligible: Callable[[EndpointState], bool],
    *,
    locality_weighted: bool,
) -> HostPicker:
    """Make the picker over a priority's healthy, or degraded, hosts."""
    if locality_weighted:
        eligible = [tuple(filter(is_eligible, locality.states)) for locality in priority.localities]
        shares = [
            LocalityShare(locality.weight, len(chosen), sum(not state.is_excluded for state in locality.states))
            for locality, chosen in zip(priority.localities, eligible, strict=True)
        ]
        weights = effective_weights(shares, config.assignment.overprovisioning_factor)
        if any(weights):
            return LocalityPicker([_host_picker(policy, chosen) for chosen in eligible], weights)
        # All localities without weight: the step is skipped and the hosts are used flat.
    return _host_picker(policy, tuple(filter(is_eligible, priority.states)))


def cluster_health(config: ClusterConfig, states: Mapping[str, EndpointState]) -> list[PriorityHealth]:
    """Return how the priorities of a cluster are, for the aggregate clusters that it is a leaf of."""
    factor = config.assignment.overprovisioning_factor
    return [replace(priority.health, overprovisioning_factor=factor) for priority in host_sets(config, states)]


def build_picker(config: ClusterConfig, states: Mapping[str, EndpointState], *, pause: Pause = no_pause) -> Picker:
    """Make the picker of a cluster: priorities, panic, localities, health, and the policy inside.

    Args:
        states: By address; endpoints without a state are left out.
        pause: Called between the steps.
    """
    priorities = host_sets(config, states)
    pause()
    subsets = config.cluster.subsets
    if subsets is None:
        return _picker(config, priorities, pause, locality_weighted=config.cluster.locality_weighted)
    # Without the option, the localities of a subset have no weights.
    weighted = config.cluster.locality_weighted and subsets.locality_weight_aware
    return SubsetPicker(
        subsets, priorities, lambda chosen: _picker(config, chosen, pause, locality_weighted=weighted), pause
    )


def _picker(
    config: ClusterConfig, priorities: Sequence[PriorityHosts], pause: Pause, *, locality_weighted: bool
) -> Picker:
    """Make the picker over the hosts of a cluster, or over some of them."""
    health = [priority.health for priority in priorities]
    pause()
    load = priority_load(
        health,
        overprovisioning_factor=config.assignment.overprovisioning_factor,
        panic_threshold=int(config.cluster.panic_threshold_percent),
    )
    if isinstance(config.cluster.lb_policy, RingHash | Maglev):
        return _by_hash(config.cluster.lb_policy, priorities, load, locality_weighted=locality_weighted)
    return _by_turns(config, config.cluster.lb_policy, priorities, load, locality_weighted=locality_weighted)


def _by_turns(
    config: ClusterConfig,
    policy: RoundRobin | LeastRequest | Random,
    priorities: Sequence[PriorityHosts],
    load: PriorityLoad,
    *,
    locality_weighted: bool,
) -> Picker:
    def source(priority: PriorityHosts, is_eligible: Callable[[EndpointState], bool]) -> HostPicker:
        return _source(config, policy, priority, is_eligible, locality_weighted=locality_weighted)

    sources: list[tuple[int, HostPicker]] = []
    for priority, healthy, degraded, panicking in zip(
        priorities, load.healthy, load.degraded, load.is_panicking, strict=True
    ):
        if panicking:
            if healthy + degraded:
                sources.append((healthy + degraded, _host_picker(policy, priority.states)))
            continue
        if healthy:
            sources.append((healthy, source(priority, lambda state: state.is_healthy)))
        if degraded:
            sources.append((degraded, source(priority, lambda state: state.is_degraded)))
    match sources:
        case []:
            return _NOBODY
        case [(_, only)]:
            return only
        case _:
            return PriorityPicker(sources)


def _by_hash(
    policy: RingHash | Maglev, priorities: Sequence[PriorityHosts], load: PriorityLoad, *, locality_weighted: bool
) -> Picker:
    """Make the picker of a policy that hashes: one ring or table per priority that gets load.

    It holds the healthy hosts, in panic all of them; never degraded ones, not even for the load that is theirs. Locality
    weights are not scaled with health, as they are for other policies, and count in panic too. All this is Envoy's.
    """
    made: dict[int, HostPicker] = {}
    loads: list[tuple[int, HostPicker]] = []
    for part in (load.healthy, load.degraded):
        for number, share in enumerate(part):
            if share:
                if number not in made:
                    made[number] = _hash_picker(
                        policy,
                        priorities[number],
                        is_panicking=load.is_panicking[number],
                        locality_weighted=locality_weighted,
                    )
                loads.append((share, made[number]))
    match loads:
        case []:
            return _NOBODY
        case [(_, only)]:
            return only
        case _:
            return HashPriorityPicker(loads)


def _hash_picker(
    policy: RingHash | Maglev, priority: PriorityHosts, *, is_panicking: bool, locality_weighted: bool
) -> HostPicker:
    def chosen(states: Sequence[EndpointState]) -> Sequence[EndpointState]:
        return states if is_panicking else tuple(state for state in states if state.is_healthy)

    if locality_weighted:
        # In Envoy's order, which decides about the rounding of points; there its own locality would be the first.
        ordered = sorted(priority.localities, key=lambda entry: entry.locality)
        shares = locality_shares([(entry.weight, chosen(entry.states)) for entry in ordered if entry.count])
    else:
        shares = flat_shares(chosen(priority.states))
    if not shares:
        return _NOBODY
    return RingHashPicker(shares, policy) if isinstance(policy, RingHash) else MaglevPicker(shares, policy)
