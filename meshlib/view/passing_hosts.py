"""Endpoints that discovery names no more, and that still pass their health checks.

Discovery may be wrong about a host that is well: in Envoy it stays until it fails a check.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.model.endpoint import Endpoint, HealthStatus
from meshlib.model.snapshot import ClusterConfig
from meshlib.view.health import HealthChecks

__all__ = ["with_passing"]

MAX_KEPT: Final = 4096
"""Endpoints that are kept though the resource names them no more."""
_BAD: Final = frozenset({HealthStatus.UNHEALTHY, HealthStatus.TIMEOUT})


def with_passing(
    config: ClusterConfig, before: ClusterConfig, states: Mapping[str, EndpointState]
) -> tuple[ClusterConfig, frozenset[str]]:
    """Return a configuration with the endpoints of the one before that it leaves out and that still pass, and their
    addresses; the same one when there are none.

    Args:
        states: Of the endpoints before.
    """
    named = {endpoint.address for group in config.assignment.localities for endpoint in group.endpoints}
    groups = {(group.priority, group.locality): group for group in config.assignment.localities}
    kept: set[str] = set()
    for group in before.assignment.localities:
        left = tuple([one for one in group.endpoints if one.address not in named and _stays(one, states)])
        if left and len(kept) < MAX_KEPT:
            key = (group.priority, group.locality)
            into = groups.get(key) or replace(group, endpoints=())
            groups[key] = replace(into, endpoints=(*into.endpoints, *left))
            kept.update(endpoint.address for endpoint in left)
    if not kept:
        return config, frozenset()
    assignment = replace(config.assignment, localities=tuple(groups.values()))
    return replace(config, assignment=assignment), frozenset(kept)


def _stays(endpoint: Endpoint, states: Mapping[str, EndpointState]) -> bool:
    state = states.get(endpoint.address)
    return state is not None and not state.is_failed and HealthChecks.concerns(endpoint) and endpoint.health not in _BAD
