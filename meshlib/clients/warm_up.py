"""Connections made ahead of the first request: to whom."""

from collections.abc import Iterator
from typing import Any

import httpx

from meshlib.call import Attempt
from meshlib.clients.httpx_common import authority_of, head_of, pool_key_of
from meshlib.clients.httpx_requests import http1_request_for, http2_request_for
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
) -> Iterator[tuple[PoolKey, Any]]:
    """Return where to open connections, and what to open each for: every healthy endpoint that the request may reach.

    That is a request as pools of the key take it.
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
                made = http2_request_for if key.http2 else http1_request_for
                yield key, made(attempt, request, timeouts, key)
