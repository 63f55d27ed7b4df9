"""The whole view, and how it is made from a snapshot and the view before."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import eq
from types import MappingProxyType

from meshlib.events import Event
from meshlib.model.cluster import AggregateDiscovery
from meshlib.model.retry import DEFAULT_SAFETY, Safety
from meshlib.model.secret import Secret
from meshlib.model.snapshot import ClusterConfig, ConfigFault, InboundConfig, Snapshot, TargetConfig
from meshlib.ports import Pause, Rng, no_pause
from meshlib.view.aggregate_state import AggregateState
from meshlib.view.cluster_state import ClusterState
from meshlib.view.home import HomeState
from meshlib.view.target import TargetView
from meshlib.xds.follow import clusters_of
from meshlib.xds.load_report import ClusterLoad

__all__ = ["View", "build_view"]


@dataclass(frozen=True, slots=True)
class _Counting:
    """What of some clusters the control thread looks at after every update.

    Attributes:
        loads: As `View.loads`, and so are `View.reporting` and `View.has_checks`.
    """

    loads: tuple[ClusterLoad, ...]
    reporting: tuple[tuple[ClusterState, float], ...]
    has_checks: bool

    @classmethod
    def of(cls, states: Iterable[ClusterState | ConfigFault]) -> "_Counting":
        found = [state for state in states if isinstance(state, ClusterState)]
        return cls(
            tuple([state.load for state in found if state.load is not None]),
            tuple(
                [
                    (state, period_s)
                    for state in found
                    if state.learner is not None and (period_s := state.learner.reporting_period_s) is not None
                ]
            ),
            any(state.checks is not None for state in found),
        )


class View:
    """One complete configuration in its working form.

    Attributes:
        number: The snapshot's.
        targets: By listener resource name.
        clusters: By cluster name.
        inbound: By listener resource name.
        secrets: By SDS name.
        snapshot: What the view was made of.
        home: Who knows the local cluster; None: zones do not matter.
    """

    __slots__ = ("_counting", "clusters", "home", "inbound", "number", "secrets", "snapshot", "targets")

    def __init__(
        self,
        snapshot: Snapshot,
        targets: Mapping[str, TargetView | ConfigFault],
        clusters: Mapping[str, ClusterState | ConfigFault],
        home: HomeState | None = None,
        counting: "_Counting | None" = None,
    ) -> None:
        """Make a view.

        Args:
            home: As the attribute.
            counting: Of the clusters, where it is known.
        """
        self.home = home
        self.number = snapshot.number
        self.snapshot = snapshot
        self.targets = targets
        self.clusters = clusters
        self.inbound: Mapping[str, InboundConfig | ConfigFault] = snapshot.inbound
        self.secrets: Mapping[str, Secret] = snapshot.secrets
        self._counting = _Counting.of(clusters.values()) if counting is None else counting

    def __repr__(self) -> str:
        return f"View({self.number}, {len(self.targets)} targets, {len(self.clusters)} clusters)"

    @property
    def loads(self) -> tuple[ClusterLoad, ...]:
        """What is counted for load reports."""
        return self._counting.loads

    @property
    def reporting(self) -> tuple[tuple[ClusterState, float], ...]:
        """The clusters whose endpoints are to report their load out of band, and how often, in seconds."""
        return self._counting.reporting

    @property
    def has_checks(self) -> bool:
        """There are clusters with active health checks."""
        return self._counting.has_checks

    def keep_time(self, wall_offset_s: float) -> None:
        """Take over what is to be added to monotonic seconds now: the wall clock is set, or the machine has slept."""
        for target in self.targets.values():
            if isinstance(target, TargetView):
                target.wall_offset_s = wall_offset_s

    def sweep(self, now: float, rng: Rng) -> tuple[Event, ...]:
        """Do the periodic work that is due. Cheap; ask about once a second.

        Returns:
            What changed, for the hooks.
        """
        return tuple(
            event
            for cluster in self.clusters.values()
            if isinstance(cluster, ClusterState)
            for event in cluster.sweep(now, rng)
        )


def _build_cluster(
    config: ClusterConfig | ConfigFault,
    previous: ClusterState | ConfigFault | None,
    now: float,
    rng: Rng | None,
    pause: Pause,
    safety: Safety,
    home: HomeState | None,
) -> ClusterState | ConfigFault:
    if isinstance(config, ConfigFault):
        return config
    is_aggregate = isinstance(config.cluster.discovery, AggregateDiscovery)
    if isinstance(previous, ClusterState) and previous.is_aggregate is is_aggregate:
        previous.update(config, now, pause)
        return previous
    seed = 0 if rng is None else rng.getrandbits(64)
    made = AggregateState if is_aggregate else ClusterState
    return made(config, now, seed, safety, home)


def _changed(before: Mapping[str, object], now: Mapping[str, object]) -> list[str] | None:
    """Return under which names other objects stand than before; None: the names, or their order, are other ones too."""
    if len(before) != len(now) or not all(map(eq, before, now)):
        return None
    return [name for name, old, new in zip(now, before.values(), now.values(), strict=True) if old is not new]


def _build_clusters(
    snapshot: Snapshot,
    previous: View,
    now: float,
    rng: Rng | None,
    pause: Pause,
    safety: Safety,
    home: HomeState | None,
) -> tuple[Mapping[str, ClusterState | ConfigFault], _Counting | None]:
    """Make or bring up to date the states of all clusters.

    Returns:
        The same mapping as before when it holds the same objects; and what they count, if that is known.
    """
    before, states = previous.snapshot.clusters, previous.clusters
    if snapshot.clusters is before and home is previous.home:
        return states, previous._counting
    pause()
    changed = _changed(before, snapshot.clusters)
    pause()
    if changed is None:
        changed = [
            name for name, config in snapshot.clusters.items() if before.get(name) is not config or name not in states
        ]
        is_rebuilt = True
    else:
        is_rebuilt = False
    olds = [states[name] for name in changed if name in states]
    counting = _Counting.of(olds)
    made: dict[str, ClusterState | ConfigFault] = {}
    for name in changed:
        pause()
        made[name] = _build_cluster(snapshot.clusters[name], states.get(name), now, rng, pause, safety, home)
    pause()
    if not is_rebuilt and home is previous.home and all(state is states.get(name) for name, state in made.items()):
        if any(isinstance(state, AggregateState) for state in olds):
            _link_leaves(states)
        return states, previous._counting if counting == _Counting.of(olds) else None
    clusters = {name: made[name] if name in made else states[name] for name in snapshot.clusters}
    _link_leaves(clusters)
    if home is not None:
        found = clusters.get(home.place.cluster)
        home.cluster = found if isinstance(found, ClusterState) else None
    # The same objects: targets that have not changed can stay as they are.
    return states if clusters == states else MappingProxyType(clusters), None


def _link_leaves(clusters: Mapping[str, ClusterState | ConfigFault]) -> None:
    """Have each aggregate cluster know the states of its leaves."""
    for state in clusters.values():
        if isinstance(state, AggregateState):
            leaves = [clusters.get(name) for name in state.config.leaves]
            found = tuple([leaf for leaf in leaves if isinstance(leaf, ClusterState) and not leaf.is_aggregate])
            if found != state.leaves:
                state.leaves = found


def _warming(config: TargetConfig, clusters: Mapping[str, ClusterState | ConfigFault]) -> tuple[ClusterState, ...]:
    """Return the clusters of a target whose endpoints have not all had their first health check."""
    found: list[ClusterState] = []
    for name in clusters_of(config.routes):
        state = clusters.get(name)
        if isinstance(state, ClusterState):
            found += state.leaves if isinstance(state, AggregateState) else (state,)
    return tuple([state for state in found if state.checks is not None and state.checks.is_warming])


def _build_target(
    name: str,
    config: TargetConfig | ConfigFault,
    previous: TargetView | ConfigFault | None,
    clusters: Mapping[str, ClusterState | ConfigFault],
    wall_offset_s: float,
    hostname: str,
) -> TargetView | ConfigFault:
    if isinstance(config, ConfigFault):
        return config
    old = previous if isinstance(previous, TargetView) else None
    if old is not None and old.clusters is clusters and (old.config is config or old.config == config):
        return old
    # Who uses it already goes on; in panic, if need be.
    warming = () if old is not None and not old.is_warming else _warming(config, clusters)
    try:
        return TargetView(
            name, config, clusters, warming=warming, previous=old, wall_offset_s=wall_offset_s, hostname=hostname
        )
    except ValueError as error:
        # The decoders refuse what cannot be compiled; a snapshot from elsewhere must not take the other targets down.
        return ConfigFault(f"RouteConfiguration: {config.routes.name}", f"target {name!r} cannot be used: {error}")


def build_view(
    snapshot: Snapshot,
    previous: View | None,
    *,
    now: float,
    wall_offset_s: float = 0.0,
    hostname: str = "",
    rng: Rng | None = None,
    pause: Pause = no_pause,
    safety: Safety = DEFAULT_SAFETY,
) -> View:
    """Make the view of a snapshot, taking over from the view before what has not changed.

    Args:
        previous: The view in use, or None for the first.
        now: Monotonic seconds.
        wall_offset_s: What has to be added to monotonic seconds to get those since the epoch.
        hostname: Of this machine, for formats that speak of it.
        rng: Gives each new cluster its seed; None: 0, so that policies by which clients differ choose the same.
        pause: Called now and then while there is much to do.
        safety: Of clusters that are new; those that stay keep theirs.
    """
    if previous is None:
        previous = View(Snapshot(), {}, {})
    home = previous.home
    if snapshot.home is not None and (home is None or home.place != snapshot.home):
        home = HomeState(snapshot.home)
    clusters, counting = _build_clusters(snapshot, previous, now, rng, pause, safety, home)
    if clusters is previous.clusters and snapshot.targets is previous.snapshot.targets:
        return View(snapshot, previous.targets, clusters, home, counting)
    targets: dict[str, TargetView | ConfigFault] = {}
    for name, config in snapshot.targets.items():
        pause()
        targets[name] = _build_target(name, config, previous.targets.get(name), clusters, wall_offset_s, hostname)
    return View(snapshot, MappingProxyType(targets), clusters, home, counting)
