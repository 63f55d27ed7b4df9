"""Names to look up again, because gRPC calls could not connect to what they stood for.

gRPC looks a name up when a connection has failed or ended, Envoy at the name's own pace. Both: the pace is the
cluster's, and a gRPC call that finds nobody has the next look-up come sooner.

Source: gRFC A74, on requests for re-resolution; narrower, as only the names of that cluster are looked up.
"""

from collections.abc import Iterable

from meshlib.model.cluster import DnsDiscovery
from meshlib.model.dns import DnsQuestion
from meshlib.view.cluster_state import ClusterState
from meshlib.xds.dns import dns_hosts

__all__ = ["lost_names"]


def lost_names(clusters: Iterable[object]) -> frozenset[str]:
    """Return the labels of the questions of clusters that have lost an endpoint since this was last asked."""
    found: set[str] = set()
    for cluster in clusters:
        if not isinstance(cluster, ClusterState) or not cluster.has_lost:
            continue
        cluster.has_lost = False
        dns = cluster.config.cluster.discovery
        if isinstance(dns, DnsDiscovery):
            found.update(DnsQuestion(host, dns.lookup).label for host in dns_hosts(dns.assignment))
    return frozenset(found)
