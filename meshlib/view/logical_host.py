"""A host of LOGICAL_DNS that has several addresses: one is in use, and the next one when it cannot be reached.

To Envoy and gRPC it is one endpoint whose addresses are tried in turn. Here each address is an endpoint and the policy
is pick first, which comes to the same: a call that could not connect goes to the next address by itself, and the one
that answered stays.
"""

from dataclasses import replace

from meshlib.model.lb_policy import PickFirst
from meshlib.model.snapshot import ClusterConfig

__all__ = ["with_spares"]


def with_spares(config: ClusterConfig) -> ClusterConfig:
    """Return a configuration with the other addresses of its host; the same one if there are none."""
    if not config.spares:
        return config
    localities = tuple(
        replace(group, endpoints=(*group.endpoints, *config.spares)) if group.endpoints else group
        for group in config.assignment.localities
    )
    cluster = replace(config.cluster, lb_policy=PickFirst())
    return replace(config, cluster=cluster, assignment=replace(config.assignment, localities=localities))
