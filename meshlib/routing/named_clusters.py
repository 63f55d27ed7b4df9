"""Which clusters a route can lead to."""

from meshlib.model.route import (
    ClusterHeader,
    RouteAction,
    SingleCluster,
    WeightedClusters,
)

__all__ = ["cluster_headers", "named_clusters"]


def cluster_headers(action: RouteAction) -> tuple[str, ...]:
    """Return the request headers that name clusters to which a route can lead, mirrors included; in lower case."""
    found = [mirror.cluster_header for mirror in action.mirrors]
    match action.cluster:
        case ClusterHeader(header=header):
            found.append(header)
        case WeightedClusters(clusters=clusters):
            found += [entry.cluster_header for entry in clusters if entry.weight > 0]
        case SingleCluster():
            pass
    return tuple(name.lower() for name in found if name)


def named_clusters(action: RouteAction) -> tuple[str, ...]:
    """Return the clusters that a route itself names, mirrors last."""
    found: list[str] = []
    match action.cluster:
        case SingleCluster(name=name):
            found.append(name)
        case WeightedClusters(clusters=clusters):
            found += [entry.name for entry in clusters if entry.weight > 0]
        case ClusterHeader():
            pass
    found += [mirror.cluster for mirror in action.mirrors]
    return tuple(name for name in found if name)
