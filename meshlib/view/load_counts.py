"""Where the requests of a cluster's endpoints are counted for load reports."""

from collections.abc import Mapping

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.model.cluster import Cluster, DnsDiscovery, EdsDiscovery
from meshlib.model.endpoint import Locality
from meshlib.model.snapshot import ClusterConfig
from meshlib.ports import Lock
from meshlib.xds.load_report import ClusterLoad

__all__ = ["count_by_locality", "load_of"]


def load_of(cluster: Cluster, before: ClusterLoad | None, now: float, lock: Lock) -> ClusterLoad | None:
    """Return what counts for a configuration: as before, unless what is reported under has changed."""
    reports, discovery = cluster.load_reports, cluster.discovery
    if reports is None:
        return None
    service = discovery.service_name if isinstance(discovery, EdsDiscovery) else ""
    service = "" if service == cluster.name else service
    if before is not None and (before.service, before.metrics) == (service, reports.metrics):
        return before
    return ClusterLoad(cluster.name, service, now, lock=lock, metrics=reports.metrics)


def count_by_locality(load: ClusterLoad | None, config: ClusterConfig, states: Mapping[str, EndpointState]) -> None:
    """Have the requests of each endpoint counted with its locality; the cluster's lock is held."""
    if load is None:
        for state in states.values():
            state.load = None
        return
    # "Reported under an empty locality for LOGICAL_DNS."
    discovery = config.cluster.discovery
    is_nowhere = isinstance(discovery, DnsDiscovery) and discovery.logical
    groups = config.assignment.localities
    counts = load.use(Locality() if is_nowhere else group.locality for group in groups)
    seen: set[str] = set()
    for group in groups:
        count = counts[Locality() if is_nowhere else group.locality]
        for endpoint in group.endpoints:
            if endpoint.address in seen:
                continue
            seen.add(endpoint.address)
            state = states[endpoint.address]
            if state.load is not count:
                # What is under way moves along, so that it ends where it is counted.
                if state.load is not None:
                    state.load.in_progress -= state.active
                count.in_progress += state.active
                state.load = count
