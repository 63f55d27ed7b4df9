"""The whole view, and how it is made from a snapshot and the view before."""

from collections.abc import Mapping
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

    __slots__ = ("_reporting", "clusters", "home", "inbound", "number", "secrets", "snapshot", "targets")

    def __init__(
        self,
        snapshot: Snapshot,
        targets: Mapping[str, TargetView | ConfigFault],
        clusters: Mapping[str, ClusterState | ConfigFault],
        home: HomeState | None = None,
    ) -> None:
        self.home = home
        self.number = snapshot.number
        self.snapshot = snapshot
        self.targets = targets
        self.clusters = clusters
        self.inbound: Mapping[str, InboundConfig | ConfigFault] = snapshot.inbound
        self.secrets: Mapping[str, Secret] = snapshot.secrets
        self._reporting = tuple(
            (state, period_s)
            for state in clusters.values()
            if isinstance(state, ClusterState)
            and state.learner is not None
            and (period_s := state.learner.reporting_period_s) is not None
        )

    def __repr__(self) -> str:
        return f"View({self.number}, {len(self.targets)} targets, {len(self.clusters)} clusters)"

    @property
    def loads(self) -> tuple[ClusterLoad, ...]:
        """What is counted for load reports."""
        states = self.clusters.values()
        return tuple(state.load for state in states if isinstance(state, ClusterState) and state.load is not None)

    @property
    def reporting(self) -> tuple[tuple[ClusterState, float], ...]:
        """The clusters whose endpoints are to report their load out of band, and how often, in seconds."""
        return self._reporting

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


def _build_clusters(
    snapshot: Snapshot,
    previous: View,
    now: float,
    rng: Rng | None,
    pause: Pause,
    safety: Safety,
    home: HomeState | None,
) -> Mapping[str, ClusterState | ConfigFault]:
    """Make or bring up to date the states of all clusters; the same mapping when it holds the same objects."""
    before, states = previous.snapshot.clusters, previous.clusters
    if snapshot.clusters is before:
        return states
    clusters: dict[str, ClusterState | ConfigFault] = {}
    for name, config in snapshot.clusters.items():
        state = states.get(name)
        if state is None or before.get(name) is not config:
            pause()
            state = _build_cluster(config, state, now, rng, pause, safety, home)
        clusters[name] = state
    _link_leaves(clusters)
    if home is not None:
        found = clusters.get(home.place.cluster)
        home.cluster = found if isinstance(found, ClusterState) else None
    # The same objects: targets that have not changed can stay as they are.
    return states if clusters == states else MappingProxyType(clusters)


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
) -> TargetView | ConfigFault:
    if isinstance(config, ConfigFault):
        return config
    old = previous if isinstance(previous, TargetView) else None
    if old is not None and old.clusters is clusters and (old.config is config or old.config == config):
        return old
    # Who uses it already goes on; in panic, if need be.
    warming = () if old is not None and not old.is_warming else _warming(config, clusters)
    try:
        return TargetView(name, config, clusters, warming=warming, previous=old, wall_offset_s=wall_offset_s)
    except ValueError as error:
        # The decoders refuse what cannot be compiled; a snapshot from elsewhere must not take the other targets down.
        return ConfigFault(f"RouteConfiguration: {config.routes.name}", f"target {name!r} cannot be used: {error}")


def build_view(
    snapshot: Snapshot,
    previous: View | None,
    *,
    now: float,
    wall_offset_s: float = 0.0,
    rng: Rng | None = None,
    pause: Pause = no_pause,
    safety: Safety = DEFAULT_SAFETY,
) -> View:
    """Make the view of a snapshot, taking over from the view before what has not changed.

    Args:
        previous: The view in use, or None for the first.
        now: Monotonic seconds.
        wall_offset_s: What has to be added to monotonic seconds to get those since the epoch.
        rng: Gives each new cluster its seed; None: 0, so that policies by which clients differ choose the same.
        pause: Called now and then while there is much to do.
        safety: Of clusters that are new; those that stay keep theirs.
    """
    if previous is None:
        previous = View(Snapshot(), {}, {})
    home = previous.home
    if snapshot.home is not None and (home is None or home.place != snapshot.home):
        home = HomeState(snapshot.home)
    clusters = _build_clusters(snapshot, previous, now, rng, pause, safety, home)
    if clusters is previous.clusters and snapshot.targets is previous.snapshot.targets:
        return View(snapshot, previous.targets, clusters, home)
    targets: Mapping[str, TargetView | ConfigFault] = MappingProxyType(
        {
            name: _build_target(name, config, previous.targets.get(name), clusters, wall_offset_s)
            for name, config in snapshot.targets.items()
        }
    )
    return View(snapshot, targets, clusters, home)
