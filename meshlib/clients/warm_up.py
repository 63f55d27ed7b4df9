"""Connections made ahead of the first request: to whom."""

from collections.abc import Iterator

import httpx

from meshlib.call import Attempt
from meshlib.clients.http1_request import Http1Request
from meshlib.clients.httpx_common import authority_of, head_of, pool_key_of
from meshlib.clients.httpx_requests import http1_request_for
from meshlib.clients.pools import PoolKey
from meshlib.clients.source import MeshSource
from meshlib.clients.timeouts import AttemptTimeouts
from meshlib.errors import IdentityError
from meshlib.model.outcome import LocalReply
from meshlib.model.route import ClusterHeader, SingleCluster
from meshlib.view import AggregateState, ClusterState, TargetView

__all__ = ["warm_connections"]


def warm_connections(
    mesh: MeshSource, target: TargetView, request: httpx.Request, timeout_s: float
) -> Iterator[tuple[PoolKey, Http1Request]]:
    """Return where to open connections, and what to open each for: every healthy endpoint that the request may reach.

    Clusters of HTTP/2 are left out: their connections are made by httpcore, with the first request.
    """
    head = head_of(request, authority_of(request))
    found = target.routes.match(head, mesh.rng)
    if isinstance(found, LocalReply):
        return
    match found.action.cluster:
        case SingleCluster(name=name):
            names = [name]
        case ClusterHeader():
            names = [found.cluster]
        case weighted:
            names = [one.name for one in weighted.clusters if one.weight]
    clusters = [cluster for cluster in map(target.clusters.get, names) if isinstance(cluster, ClusterState)]
    for cluster in [leaf for one in clusters for leaf in (one.leaves if isinstance(one, AggregateState) else (one,))]:
        if cluster.config.cluster.http2:
            continue
        breaker = cluster.high_breaker if found.action.high_priority else cluster.breaker
        for state in cluster.states.values():
            if state.is_healthy:
                endpoint = state.endpoint
                attempt = Attempt(1, cluster, endpoint, cluster.tls_for(endpoint), None, head)
                try:
                    key = pool_key_of(attempt, mesh, request, breaker)
                except (IdentityError, httpx.TransportError):
                    continue  # no certificate yet, say: requests will find out
                timeouts = AttemptTimeouts(
                    {},
                    timeout_s=timeout_s,
                    connect_timeout_s=cluster.config.cluster.connect_timeout_s,
                    clock=mesh.clock,
                )
                yield key, http1_request_for(attempt, request, timeouts, key)
