"""A mesh as seen by a channel that chooses its connections itself: every cluster has one endpoint, the channel."""

from dataclasses import replace
from typing import Any

from meshlib.clients.source import MeshSource
from meshlib.errors import ConfigError
from meshlib.events import Event, Meter
from meshlib.model.cluster import EdsDiscovery
from meshlib.model.endpoint import Endpoint, Locality, LocalityEndpoints
from meshlib.model.request import RequestHead
from meshlib.model.retry import DEFAULT_SAFETY
from meshlib.model.route import RouteAction, SingleCluster, WeightedClusters
from meshlib.model.snapshot import ClusterConfig, ConfigFault, Snapshot, TargetConfig
from meshlib.ports import Lock
from meshlib.view import ClusterState, TargetView, View, build_view

__all__ = ["OwnEndpoint", "authority_of", "measure"]


def authority_of(target: str) -> str:
    """Return the authority in a channel's target: `dns:///checkout:80` is `checkout:80`.

    Raises:
        ConfigError: gRPC's own xDS would act below ours.
    """
    scheme, colon, rest = target.partition(":")
    if not colon or rest[:1].isdigit():
        return target
    if scheme.lower() == "xds":
        raise ConfigError(f"target {target!r}: gRPC's own xDS is at work there; use Mesh.channel or another target")
    return rest.rpartition("/")[2] if scheme.lower() != "unix" else rest


def measure(message: Any) -> int:
    """Return about how many bytes a message takes, which the channel will serialise."""
    if isinstance(message, bytes | bytearray | str):
        return len(message)
    size = getattr(message, "ByteSize", None)
    return int(size()) if size is not None else 1024


class OwnEndpoint:
    """A `MeshSource` for one application-made channel.

    Breakers of its clusters count the calls of that channel; without a choice of endpoints there is nothing to eject.
    """

    def __init__(self, mesh: MeshSource, authority: str) -> None:
        self._mesh = mesh
        self._endpoint = Endpoint(authority)
        self._lock = Lock()
        # Guarded by the lock: made of each other.
        self._of: TargetView | None = None
        self._view: View | None = None
        self.clock = mesh.clock
        self.rng = mesh.rng
        self.guard_unsafe = mesh.guard_unsafe
        self.is_disabled = mesh.is_disabled
        self.tracing = mesh.tracing

    @property
    def view(self) -> View:
        """The mesh's own view: nothing is dialled here."""
        return self._mesh.view

    @property
    def _meter(self) -> Meter | None:
        """As of the mesh."""
        return getattr(self._mesh, "_meter", None)

    def target(self, authority: str) -> TargetView | None:
        """As `MeshSource.target`."""
        found = self._mesh.target(authority)
        return None if found is None else self._adapted(found)

    def wait_target(self, authority: str, timeout_s: float | None = None, *, fails_fast: bool = False) -> TargetView:
        """As `MeshSource.wait_target`."""
        return self._adapted(self._mesh.wait_target(authority, timeout_s, fails_fast=fails_fast))

    async def wait_target_async(
        self, authority: str, timeout_s: float | None = None, *, fails_fast: bool = False
    ) -> TargetView:
        """As `MeshSource.wait_target_async`."""
        return self._adapted(await self._mesh.wait_target_async(authority, timeout_s, fails_fast=fails_fast))

    def meet(self, target: TargetView, head: RequestHead, timeout_s: float | None = None) -> TargetView:
        """As `MeshSource.meet`."""
        return self._adapted(self._mesh.meet(self._original(target), head, timeout_s))

    async def meet_async(self, target: TargetView, head: RequestHead, timeout_s: float | None = None) -> TargetView:
        """As `MeshSource.meet_async`."""
        return self._adapted(await self._mesh.meet_async(self._original(target), head, timeout_s))

    def _original(self, target: TargetView) -> TargetView:
        """Return what a target was made of, as the mesh has it now."""
        found = self._mesh.view.targets.get(target.name)
        return found if isinstance(found, TargetView) else target

    def emit(self, event: Event) -> None:
        """As `MeshSource.emit`."""
        self._mesh.emit(event)

    def _adapted(self, target: TargetView) -> TargetView:
        with self._lock:
            known, view = self._of, self._view
        if view is None or known is not target:
            configs = {name: self._cluster(found) for name, found in self._clusters(target).items()}
            snapshot = Snapshot(targets={target.name: target.config}, clusters=configs)
            states = (found for found in target.clusters.values() if isinstance(found, ClusterState))
            safety = next((state.safety for state in states), DEFAULT_SAFETY)
            view = build_view(snapshot, view, now=self.clock(), safety=safety)
            with self._lock:
                self._of, self._view = target, view
        adapted = view.targets[target.name]
        assert isinstance(adapted, TargetView)
        return adapted

    def _clusters(self, target: TargetView) -> dict[str, ClusterConfig | ConfigFault]:
        names = _names(target.config)
        found: dict[str, ClusterConfig | ConfigFault] = {}
        for name, cluster in target.clusters.items():
            if names is None or name in names:
                found[name] = cluster if isinstance(cluster, ConfigFault) else cluster.config
        return found

    def _cluster(self, config: ClusterConfig | ConfigFault) -> ClusterConfig | ConfigFault:
        if isinstance(config, ConfigFault):
            return config
        assignment = replace(
            config.assignment, localities=(LocalityEndpoints(Locality(), (self._endpoint,), weight=1),)
        )
        cluster = replace(
            config.cluster,
            discovery=EdsDiscovery(assignment.name),
            outlier_detection=None,
            tls=None,
            socket_matches=(),
        )
        return ClusterConfig(cluster, assignment)


def _names(config: TargetConfig) -> set[str] | None:
    """Return the clusters that the routes of a target can choose; None: any, a header names it."""
    names: set[str] = set()
    for host in (host for routes in config.all_routes for host in routes.virtual_hosts):
        for route in host.routes:
            if not isinstance(route.action, RouteAction):
                continue
            match route.action.cluster:
                case SingleCluster(name=name):
                    names.add(name)
                case WeightedClusters(clusters=clusters):
                    names.update(cluster.name for cluster in clusters)
                case _:
                    return None
    return names
