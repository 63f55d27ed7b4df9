"""Endpoints with several addresses: the order in which their cluster has them tried."""

from dataclasses import replace

from meshlib.model.dialling import DEFAULT_ORDER, DialOrder
from meshlib.model.endpoint import Endpoint
from meshlib.model.snapshot import ClusterConfig

__all__ = ["with_dial_order"]


def with_dial_order(config: ClusterConfig) -> ClusterConfig:
    """Return a configuration whose endpoints are dialled in its cluster's order; the same one if they are already."""
    order, localities = config.cluster.dial_order, config.assignment.localities
    if order == DEFAULT_ORDER or not any(one.dials for group in localities for one in group.endpoints):
        return config
    changed = tuple(
        replace(group, endpoints=tuple(_ordered(endpoint, order) for endpoint in group.endpoints))
        for group in localities
    )
    return replace(config, assignment=replace(config.assignment, localities=changed))


def _ordered(endpoint: Endpoint, order: DialOrder) -> Endpoint:
    if not endpoint.dials:
        return endpoint
    # Where no family is named, that of the endpoint's own address is first: it stands first in the resource.
    dials = order.of((endpoint.address, *(address for address in endpoint.dials if address != endpoint.address)))
    return endpoint if dials == endpoint.dials else replace(endpoint, dials=dials)
