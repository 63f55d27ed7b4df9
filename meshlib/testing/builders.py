"""Snapshots in one line, without a management server.

service("checkout", "127.0.0.1:8001", "127.0.0.1:8002", timeout_s=2.0)
merge(service("a", "127.0.0.1:1"), service("b", "127.0.0.1:2"))
split("checkout", {"v1": (80, ["127.0.0.1:8001"]), "v2": (20, ["127.0.0.1:8002"])})
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, Locality, LocalityEndpoints
from meshlib.model.listener import ClientListener
from meshlib.model.matcher import PathKind, PathMatcher
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import (
    ClusterWeight,
    FaultPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatcher,
    SingleCluster,
    VirtualHost,
    WeightedClusters,
)
from meshlib.model.snapshot import ClusterConfig, Snapshot, TargetConfig

__all__ = ["any_path", "assignment", "cluster", "merge", "service", "split", "target"]


def assignment(name: str, endpoints: Sequence[str | Endpoint]) -> ClusterLoadAssignment:
    """Put endpoints, or their addresses, into one locality of the highest priority."""
    found = tuple(Endpoint(entry) if isinstance(entry, str) else entry for entry in endpoints)
    return ClusterLoadAssignment(name, (LocalityEndpoints(Locality(), found, weight=1),) if found else ())


def cluster(name: str, *endpoints: str | Endpoint, template: Cluster | None = None) -> ClusterConfig:
    """Make a warm cluster.

    Args:
        template: Its options; the name is replaced.
    """
    options = Cluster(name, EdsDiscovery(name)) if template is None else replace(template, name=name)
    return ClusterConfig(options, assignment(name, endpoints))


def any_path(action: RouteAction, *, name: str = "", fault: FaultPolicy | None = None, prefix: str = "/") -> Route:
    """Make a route that takes every path, or those with a prefix."""
    return Route(RouteMatcher(PathMatcher(PathKind.PREFIX, prefix)), action, name=name, fault=fault)


def target(
    name: str,
    *routes: Route,
    domains: Sequence[str] = (),
    retry: RetryPolicy | None = None,
    include_attempt_count: bool = False,
    max_stream_duration_s: float | None = None,
) -> TargetConfig:
    """Make a target with one virtual host.

    Args:
        domains: Of the virtual host; by default the target's name.
        retry: Of the virtual host.
        max_stream_duration_s: Of the listener.
    """
    host = VirtualHost(
        name, tuple(domains) or (name,), tuple(routes), retry=retry, include_attempt_count=include_attempt_count
    )
    config = RouteConfiguration(name, (host,))
    listener = ClientListener(name, config, has_fault_filter=True, max_stream_duration_s=max_stream_duration_s)
    return TargetConfig(listener, config)


def service(
    name: str,
    *endpoints: str | Endpoint,
    timeout_s: float | None = None,
    retry: RetryPolicy | None = None,
    fault: FaultPolicy | None = None,
    action: RouteAction | None = None,
    template: Cluster | None = None,
    include_attempt_count: bool = False,
) -> Snapshot:
    """Make a snapshot of one service: target, route `default` and cluster, all of that name.

    Args:
        endpoints: Or their addresses, `host:port`.
        timeout_s: Of the route; None: Envoy's default of 15 s.
        retry: Of the route.
        action: The route's other options; its cluster, timeout and retry give way to what is given here.
        template: Options of the cluster.
    """
    action = RouteAction(SingleCluster(name)) if action is None else replace(action, cluster=SingleCluster(name))
    if timeout_s is not None:
        action = replace(action, timeout_s=timeout_s)
    if retry is not None:
        action = replace(action, retry=retry)
    route = any_path(action, name="default", fault=fault)
    return Snapshot(
        targets={name: target(name, route, include_attempt_count=include_attempt_count)},
        clusters={name: cluster(name, *endpoints, template=template)},
        number=1,
    )


def split(
    name: str,
    subsets: Mapping[str, tuple[int, Sequence[str | Endpoint]]],
    *,
    action: RouteAction | None = None,
    fault: FaultPolicy | None = None,
) -> Snapshot:
    """Make a snapshot of one service whose calls are shared out among subsets.

    Args:
        subsets: Weight and endpoints by subset; the clusters are named `name|subset`.
    """
    weighted = WeightedClusters(
        tuple(ClusterWeight(f"{name}|{subset}", share) for subset, (share, _) in subsets.items())
    )
    action = RouteAction(weighted) if action is None else replace(action, cluster=weighted)
    clusters = {f"{name}|{subset}": cluster(f"{name}|{subset}", *found) for subset, (_, found) in subsets.items()}
    return Snapshot(
        targets={name: target(name, any_path(action, name="default", fault=fault))}, clusters=clusters, number=1
    )


def merge(*snapshots: Snapshot, number: int = 1) -> Snapshot:
    """Put snapshots together; of equal names the last wins."""
    return Snapshot(
        targets={name: value for snapshot in snapshots for name, value in snapshot.targets.items()},
        inbound={name: value for snapshot in snapshots for name, value in snapshot.inbound.items()},
        clusters={name: value for snapshot in snapshots for name, value in snapshot.clusters.items()},
        secrets={name: value for snapshot in snapshots for name, value in snapshot.secrets.items()},
        number=number,
    )
