"""Where calls of a mesh go."""

from meshlib import Mesh
from meshlib.model.snapshot import ClusterConfig


def ports(mesh: Mesh, cluster: str = "checkout") -> list[int]:
    """Return the ports of a cluster's endpoints; nothing: there is no such cluster in use.

    As of what has been published: a cluster's state knows its endpoints a moment before its picker does.
    """
    found = mesh.view.snapshot.clusters.get(cluster)
    if not isinstance(found, ClusterConfig):
        return []
    return sorted(endpoint.port for group in found.assignment.localities for endpoint in group.endpoints)
