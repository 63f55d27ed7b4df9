"""Zone aware routing: requests stay in their own zone as far as that loads nobody more than others.

Whoever calls is spread over zones too. If a zone has half of the callers and half of the hosts, all of its requests can
stay there; if it has two thirds of the callers and half of the hosts, three quarters of them can, and the rest goes to
zones that have more hosts than callers. So the hosts of the *callers* must be known: they are those of the local
cluster, which the bootstrap names.

Only the highest priority is divided in this way, and not when it is in panic. Shares are whole ten-thousandths, rounded
down, as Envoy has them.

Source: Envoy, `ZoneAwareLoadBalancerBase::regenerateLocalityRoutingStructures` and `hostSourceToUse`.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.host_sets import PriorityHosts
from meshlib.balancing.picker import EmptyPicker, HostPicker
from meshlib.model.endpoint import Locality
from meshlib.model.lb_policy import ZoneAware
from meshlib.ports import Rng

__all__ = ["Home", "HomeZones", "ZonePicker", "ZoneSplit", "home_zones", "zone_hosts", "zone_split"]

WHOLE = 10_000
_NOBODY = EmptyPicker()


@dataclass(frozen=True, slots=True, eq=False)
class HomeZones:
    """The hosts of the local cluster; a new one whenever anything about them changes.

    Attributes:
        own: The zone that we are in.
        hosts: All of a zone, for those with any.
        healthy: Hosts, and
        weights: their weights together, of a zone.
        usable_percent: Of those that count, healthy and degraded.
    """

    own: Locality
    hosts: Mapping[Locality, int]
    healthy: Mapping[Locality, int]
    weights: Mapping[Locality, int]
    usable_percent: float


class Home(Protocol):
    """Who knows the local cluster."""

    def zones(self) -> HomeZones | None:
        """Return how its hosts are now; None: it is not known. The same object as long as nothing changes."""
        ...

    @property
    def own(self) -> Locality: ...


@dataclass(frozen=True, slots=True)
class ZoneSplit:
    """Where the requests of our own zone go.

    Attributes:
        own: Of ten thousand requests so many stay in the first zone.
        beyond: Ten-thousandths of all hosts by which zones have more of them than callers, added up zone by zone.
        usable_percent: Of the local cluster.
    """

    own: int
    beyond: tuple[int, ...]
    usable_percent: float

    def choose(self, rng: Rng) -> int:
        """Return the number of a zone."""
        if self.own and (self.own >= WHOLE or int(rng.random() * WHOLE) < self.own):
            return 0
        if not self.beyond[-1]:
            return int(rng.random() * len(self.beyond))  # what rounding has left of two equal shares
        return bisect_right(self.beyond, int(rng.random() * self.beyond[-1]))


def zone_hosts(priority: PriorityHosts, own: Locality) -> list[tuple[Locality, tuple[EndpointState, ...]]]:
    """Return the hosts of a priority by zone, for zones with any: our own first, the others by name."""
    found: dict[Locality, list[EndpointState]] = {}
    for group in priority.localities:
        if group.states:
            found.setdefault(group.locality, []).extend(group.states)
    return [(zone, tuple(found[zone])) for zone in sorted(found, key=lambda zone: (zone != own, zone))]


def home_zones(priorities: Sequence[PriorityHosts], own: Locality) -> HomeZones | None:
    """Count the hosts of the local cluster; None: it has none."""
    if not priorities:
        return None
    zones = zone_hosts(priorities[0], own)
    health = priorities[0].health
    healthy = {zone: [state for state in states if state.is_healthy] for zone, states in zones}
    return HomeZones(
        own,
        {zone: len(states) for zone, states in zones},
        {zone: len(states) for zone, states in healthy.items()},
        {zone: sum(state.endpoint.weight for state in states) for zone, states in healthy.items()},
        100 * (health.healthy + health.degraded) / health.count if health.count else 0.0,
    )


def zone_split(
    config: ZoneAware, zones: Sequence[tuple[Locality, tuple[EndpointState, ...]]], home: HomeZones
) -> ZoneSplit | None:
    """Work out where requests go; None: zones do not matter.

    Args:
        zones: Hosts of the cluster that is called, as `zone_hosts` returns them.
    """
    healthy = [[state for state in states if state.is_healthy] for _, states in zones]
    if len(zones) < 2 or sum(map(len, healthy)) < config.min_cluster_size:
        return None
    if home.own == Locality() or not home.hosts.get(home.own):
        return None  # nobody knows of us: the shares of the others are worked out without us
    if len(home.hosts) < 2 and config.force_min_hosts is None:
        return None
    has_own = zones[0][0] == home.own
    if config.by_weight:
        ours, theirs = home.weights, [sum(state.endpoint.weight for state in states) for states in healthy]
    else:
        ours, theirs = home.healthy, [len(states) for states in healthy]
    all_ours, all_theirs = sum(ours.values()), sum(theirs)
    local, upstream = [], []
    for (zone, _), count in zip(zones, theirs, strict=True):
        # A zone without healthy hosts has no callers either, as Envoy counts.
        local.append(WHOLE * ours.get(zone, 0) // all_ours if all_ours and count else 0)
        upstream.append(WHOLE * count // all_theirs if all_theirs else 0)
    if has_own:
        is_forced = config.force_min_hosts is not None and len(healthy[0]) >= config.force_min_hosts
        if is_forced or (upstream[0] > 0 and upstream[0] >= local[0]):
            return ZoneSplit(WHOLE, tuple(0 for _ in zones), home.usable_percent)
    beyond = [
        0 if has_own and not number else max(0, more - less)
        for number, (more, less) in enumerate(zip(upstream, local, strict=True))
    ]
    own = upstream[0] * WHOLE // local[0] if has_own and local[0] else 0
    return ZoneSplit(own, tuple(accumulate(beyond)), home.usable_percent)


class ZonePicker(HostPicker):
    """Draws a zone, and has the policy choose within; where zones do not matter, among all hosts."""

    __slots__ = ("_all", "_config", "_fails", "_home", "_made", "_panic_threshold", "_within", "_zones")

    def __init__(
        self,
        config: ZoneAware,
        home: Home,
        zones: Sequence[tuple[Locality, tuple[EndpointState, ...]]],
        within: Sequence[HostPicker],
        everywhere: HostPicker,
        *,
        panic_threshold: int,
        fails_on_panic: bool,
    ) -> None:
        """Make the picker.

        Args:
            within: The policy in each zone, and
            everywhere: among all hosts.
            panic_threshold: Per cent of usable hosts below which the local cluster is not believed.
            fails_on_panic: There is no host then.
        """
        self._config = config
        self._home = home
        self._zones = tuple(zones)
        self._within = tuple(within)
        self._all = everywhere
        self._panic_threshold = panic_threshold
        self._fails = fails_on_panic
        # What was known of the local cluster, and what came of it: one value, so that threads see both or neither.
        self._made: tuple[HomeZones | None, ZoneSplit | None] = (None, None)

    def draw(self, rng: Rng) -> HostPicker:
        """Return who chooses this time."""
        home = self._home.zones()
        known, split = self._made
        if known is not home:
            split = None if home is None else zone_split(self._config, self._zones, home)
            self._made = (home, split)
        if split is None:
            return self._all
        enabled = self._config.enabled_percent
        if enabled < 100 and int(rng.random() * 100) >= enabled:
            return self._all
        if split.usable_percent < self._panic_threshold:
            return _NOBODY if self._fails else self._all
        return self._within[split.choose(rng)]

    def choose(self, rng: Rng) -> EndpointState | None:
        return self.draw(rng).choose(rng)
