"""Makes the picker of a cluster from its configuration and the state of its endpoints."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import assert_never

from meshlib.balancing.bounded_load import BoundedLoadPicker
from meshlib.balancing.client_side_weights import ClientSideWeightedPicker
from meshlib.balancing.custom import custom_picker, make_custom
from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.hash_weights import flat_shares, locality_shares
from meshlib.balancing.host_sets import PriorityHosts, health_of, host_sets
from meshlib.balancing.least_request import least_request
from meshlib.balancing.locality import LocalityPicker, LocalityShare, effective_weights
from meshlib.balancing.maglev import MaglevPicker
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.peak_ewma import PeakEwmaPicker
from meshlib.balancing.pick_first import PickFirstPicker, shuffled
from meshlib.balancing.picker import DelegatingPicker, EmptyPicker, HostPicker, Picker
from meshlib.balancing.priority import (
    HashPriorityPicker,
    PriorityHealth,
    PriorityLoad,
    PriorityPart,
    PriorityPicker,
    load_of_part,
    load_without,
    priority_load,
)
from meshlib.balancing.random_choice import RandomPicker
from meshlib.balancing.ring_hash import RingHashPicker
from meshlib.balancing.round_robin import round_robin
from meshlib.balancing.subset import SubsetPicker
from meshlib.balancing.zone_aware import ZonePicker, zone_hosts
from meshlib.model.lb_policy import (
    ClientSideWeightedRoundRobin,
    CustomPolicy,
    LeastRequest,
    Maglev,
    PeakEwma,
    PickFirst,
    Random,
    RandomSubsetting,
    RingHash,
    RoundRobin,
)
from meshlib.model.snapshot import ClusterConfig
from meshlib.model.subset import MatchCriteria
from meshlib.ports import Pause, no_pause

__all__ = [
    "build_part_picker",
    "build_picker",
    "build_retry_picker",
    "cluster_health",
    "has_choice",
    "keeps_priorities",
    "priorities_of",
]

_NOBODY = EmptyPicker()
_AVOIDED = EmptyPicker()
"""Of a subset of which a retry avoids all priorities."""

TurnPolicy = RoundRobin | LeastRequest | Random | ClientSideWeightedRoundRobin | PickFirst | PeakEwma | CustomPolicy
"""Policies that choose among a list of hosts, which priorities, health and localities have left."""


def _host_picker(policy: TurnPolicy, states: Sequence[EndpointState], memory: PolicyMemory) -> HostPicker:
    if not states:
        return _NOBODY
    match policy:
        case RoundRobin(slow_start=slow_start):
            return round_robin(states, slow_start=slow_start, memory=memory)
        case LeastRequest(choice_count=count, active_request_bias=bias, slow_start=slow_start, full_scan=full_scan):
            return least_request(states, count, bias, full_scan=full_scan, slow_start=slow_start, memory=memory)
        case Random():
            return RandomPicker(states)
        case ClientSideWeightedRoundRobin():
            return ClientSideWeightedPicker(states, policy, memory)
        case PickFirst(shuffle=shuffle):
            return PickFirstPicker(shuffled(states, memory.seed) if shuffle else states, memory)
        case PeakEwma():
            return PeakEwmaPicker(states, policy, memory)
        case CustomPolicy():
            return custom_picker(states, memory.custom(policy, make_custom), memory)
        case _:
            assert_never(policy)


def _source(
    config: ClusterConfig,
    policy: TurnPolicy,
    priority: PriorityHosts,
    is_eligible: Callable[[EndpointState], bool],
    memory: PolicyMemory,
    *,
    locality_weighted: bool,
    has_zones: bool,
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
            children = [_host_picker(policy, chosen, memory) for chosen in eligible]
            return _delegating(LocalityPicker(children, weights), children)
        # All localities without weight: the step is skipped and the hosts are used flat.
    everywhere = _host_picker(policy, tuple(filter(is_eligible, priority.states)), memory)
    # Which address comes first is the whole of that policy, so zones have no say.
    if not has_zones or memory.home is None or isinstance(policy, PickFirst):
        return everywhere
    return _by_zone(config, policy, priority, is_eligible, memory, everywhere)


def _by_zone(
    config: ClusterConfig,
    policy: TurnPolicy,
    priority: PriorityHosts,
    is_eligible: Callable[[EndpointState], bool],
    memory: PolicyMemory,
    everywhere: HostPicker,
) -> HostPicker:
    """Have requests keep to their own zone, where that can matter."""
    assert memory.home is not None
    cluster, zones = config.cluster, zone_hosts(priority, memory.home.own)
    if len(zones) < 2 or not cluster.zone_aware.enabled_percent:
        return everywhere
    children = [_host_picker(policy, tuple(filter(is_eligible, states)), memory) for _, states in zones]
    picker = ZonePicker(
        cluster.zone_aware,
        memory.home,
        zones,
        children,
        everywhere,
        panic_threshold=int(cluster.panic_threshold_percent),
        fails_on_panic=cluster.fails_on_panic,
    )
    return _delegating(picker, [everywhere, *children])


def _delegating(parent: LocalityPicker | PriorityPicker | ZonePicker, children: Sequence[HostPicker]) -> HostPicker:
    """Return the parent, or what has a child make the whole pick when that has its own way of picking."""
    uses_hash = any(child.uses_hash for child in children)
    if uses_hash or any(isinstance(child, PickFirstPicker | DelegatingPicker) for child in children):
        return DelegatingPicker(parent.draw, uses_hash=uses_hash)
    return parent


def cluster_health(config: ClusterConfig, states: Mapping[str, EndpointState], seed: int = 0) -> list[PriorityHealth]:
    """Return how the priorities of a cluster are, for the aggregate clusters that it is a leaf of.

    Args:
        seed: The leaf's own, by which it may use a part of its endpoints only.
    """
    factor = config.assignment.overprovisioning_factor
    return [
        replace(health_of(priority, config), overprovisioning_factor=factor)
        for priority in host_sets(config, states, seed)
    ]


def build_picker(
    config: ClusterConfig,
    states: Mapping[str, EndpointState],
    *,
    memory: PolicyMemory | None = None,
    pause: Pause = no_pause,
) -> Picker:
    """Make the picker of a cluster: priorities, panic, localities, health, and the policy inside.

    Args:
        states: By address; endpoints without a state are left out.
        memory: The cluster's; None: a new one.
        pause: Called between the steps.
    """
    shared = PolicyMemory() if memory is None else memory
    priorities = host_sets(config, states, shared.seed)
    pause()
    return _whole(config, priorities, shared, pause, None)


def build_retry_picker(
    config: ClusterConfig, states: Mapping[str, EndpointState], memory: PolicyMemory, avoided: frozenset[int]
) -> Picker | None:
    """Make the picker for retries that avoid some priorities; None: the others can take nothing."""
    priorities = host_sets(config, states, memory.seed)
    if _load(config, [health_of(priority, config) for priority in priorities], avoided) is None:
        return None
    return _whole(config, priorities, memory, no_pause, avoided)


def has_choice(picker: Picker, criteria: MatchCriteria | None) -> bool:
    """Whether the priorities that a retry does not avoid can take something, in the subset that it goes to.

    Args:
        picker: Made by `build_retry_picker`.
    """
    return not picker.has_subsets or picker.within(criteria) is not _AVOIDED


def build_part_picker(
    config: ClusterConfig, states: Mapping[str, EndpointState], memory: PolicyMemory, part: PriorityPart
) -> Picker | None:
    """Make the picker for requests to which an aggregate cluster has said where in this leaf they go.

    Returns:
        None: it is where the cluster sends all its requests anyway.
    """
    priorities = host_sets(config, states, memory.seed)
    if config.cluster.subsets is None:
        health = [health_of(priority, config) for priority in priorities]
        if _load(config, health, None) == _load(config, health, part):
            return None
    return _whole(config, priorities, memory, no_pause, part)


def keeps_priorities(config: ClusterConfig) -> bool:
    """Whether a policy goes by the hash alone, and lets nobody else choose the priority (Envoy's)."""
    policy = config.cluster.lb_policy
    while isinstance(policy, RandomSubsetting):
        policy = policy.child
    return isinstance(policy, RingHash | Maglev)


def priorities_of(
    config: ClusterConfig, states: Mapping[str, EndpointState], chosen: Sequence[EndpointState], seed: int = 0
) -> frozenset[int]:
    """Return the priorities which some endpoints are of."""
    priorities = host_sets(config, states, seed)
    return frozenset(
        number for number, priority in enumerate(priorities) if any(state in priority.states for state in chosen)
    )


def _whole(
    config: ClusterConfig,
    priorities: Sequence[PriorityHosts],
    shared: PolicyMemory,
    pause: Pause,
    wanted: frozenset[int] | PriorityPart | None,
) -> Picker:
    subsets = config.cluster.subsets
    if subsets is None:
        weighted = config.cluster.locality_weighted
        return _picker(config, priorities, shared, pause, locality_weighted=weighted, wanted=wanted)
    # Without the option, the localities of a subset have no weights.
    weighted = config.cluster.locality_weighted and subsets.locality_weight_aware
    return SubsetPicker(
        subsets,
        priorities,
        lambda chosen: _picker(config, chosen, shared, pause, locality_weighted=weighted, wanted=wanted),
        pause,
    )


def _load(
    config: ClusterConfig, health: Sequence[PriorityHealth], wanted: frozenset[int] | PriorityPart | None
) -> PriorityLoad | None:
    """Spread the load.

    Args:
        wanted: Priorities that a retry avoids, or where an aggregate cluster sends a request; None: as usual.
    """
    factor, threshold = config.assignment.overprovisioning_factor, int(config.cluster.panic_threshold_percent)
    if wanted is None:
        return priority_load(health, overprovisioning_factor=factor, panic_threshold=threshold)
    if isinstance(wanted, PriorityPart):
        return load_of_part(health, wanted, overprovisioning_factor=factor, panic_threshold=threshold)
    return load_without(health, wanted, overprovisioning_factor=factor, panic_threshold=threshold)


def _picker(
    config: ClusterConfig,
    priorities: Sequence[PriorityHosts],
    memory: PolicyMemory,
    pause: Pause,
    *,
    locality_weighted: bool,
    wanted: frozenset[int] | PriorityPart | None,
) -> Picker:
    """Make the picker over the hosts of a cluster, or over some of them.

    Args:
        wanted: As with `_load`.
    """
    health = [health_of(priority, config) for priority in priorities]
    pause()
    load = _load(config, health, wanted)
    if load is None:
        return _AVOIDED
    policy = config.cluster.lb_policy
    while isinstance(policy, RandomSubsetting):
        policy = policy.child
    if isinstance(policy, RingHash | Maglev):
        return _by_hash(policy, priorities, load, memory, pause, locality_weighted=locality_weighted)
    return _by_turns(config, policy, priorities, load, memory, locality_weighted=locality_weighted)


def _by_turns(
    config: ClusterConfig,
    policy: TurnPolicy,
    priorities: Sequence[PriorityHosts],
    load: PriorityLoad,
    memory: PolicyMemory,
    *,
    locality_weighted: bool,
) -> Picker:
    def source(priority: PriorityHosts, is_eligible: Callable[[EndpointState], bool]) -> HostPicker:
        return _source(
            config,
            policy,
            priority,
            is_eligible,
            memory,
            locality_weighted=locality_weighted,
            has_zones=priority is priorities[0],
        )

    sources: list[tuple[int, HostPicker]] = []
    for priority, healthy, degraded, panicking in zip(
        priorities, load.healthy, load.degraded, load.is_panicking, strict=True
    ):
        if panicking:
            if healthy + degraded:
                everybody = _NOBODY if config.cluster.fails_on_panic else _host_picker(policy, priority.states, memory)
                sources.append((healthy + degraded, everybody))
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
            return _delegating(PriorityPicker(sources), [source for _, source in sources])


def _by_hash(
    policy: RingHash | Maglev,
    priorities: Sequence[PriorityHosts],
    load: PriorityLoad,
    memory: PolicyMemory,
    pause: Pause,
    *,
    locality_weighted: bool,
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
                        memory,
                        pause,
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
    policy: RingHash | Maglev,
    priority: PriorityHosts,
    memory: PolicyMemory,
    pause: Pause,
    *,
    is_panicking: bool,
    locality_weighted: bool,
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
    if isinstance(policy, RingHash):
        hashing: RingHashPicker | MaglevPicker = RingHashPicker(shares, policy, pause)
    else:
        hashing = MaglevPicker(shares, policy, pause)
    if policy.balance_factor is None:
        return hashing
    return BoundedLoadPicker(hashing, shares, policy.balance_factor, memory)
