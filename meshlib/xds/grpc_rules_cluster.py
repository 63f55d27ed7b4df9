"""What gRPC's clients refuse in clusters; see `grpc_rules.py`."""

from typing import Any, Final

from meshlib.model.custom_policy import has_lb_policy
from meshlib.xds.decode_common import any_type, is_typed_struct, join, unpack
from meshlib.xds.decode_hashing_lb import RING_HASH_TYPE
from meshlib.xds.decode_lb_list import (
    CLIENT_SIDE_TYPE,
    LEAST_REQUEST_TYPE,
    MAX_DEPTH,
    PICK_FIRST_TYPE,
    ROUND_ROBIN_TYPE,
    WRR_LOCALITY_TYPE,
    is_utilization,
)
from meshlib.xds.grpc_rules_security import check_client_socket
from meshlib.xds.problems import Problems

__all__ = ["check_cluster"]

AGGREGATE_TYPE: Final = "envoy.extensions.clusters.aggregate.v3.ClusterConfig"
_LOGICAL_DNS, _EDS = 2, 3
_POLICIES: Final = frozenset(
    {
        ROUND_ROBIN_TYPE,
        LEAST_REQUEST_TYPE,
        RING_HASH_TYPE,
        CLIENT_SIDE_TYPE,
        PICK_FIRST_TYPE,
        WRR_LOCALITY_TYPE,
    }
)
_ENUM_POLICIES: Final = frozenset({0, 1, 2})
"""ROUND_ROBIN, LEAST_REQUEST (in Go and Java) and RING_HASH."""
_LEGACY_MURMUR: Final = 1
_MURMUR: Final = 2


def check_cluster(message: Any, path: str, problems: Problems, providers: frozenset[str] | None = None) -> None:
    """Check a Cluster.

    Args:
        providers: Names of the bootstrap's certificate providers; None: any will do.
    """
    if not message.HasField("cluster_type"):
        _check_discovery(message, path, problems)
    elif (kind := any_type(message.cluster_type.typed_config)) != AGGREGATE_TYPE:
        reason = f"{kind or message.cluster_type.name} is not a type of gRPC (only EDS, LOGICAL_DNS and aggregates)"
        problems.error(join(path, "cluster_type"), reason)
    # That of an aggregate does not count (A75), but is read: CLUSTER_PROVIDED, which Envoy wants of it, is refused.
    if message.HasField("load_balancing_policy"):
        _check_list(message.load_balancing_policy, join(path, "load_balancing_policy"), problems, 0)
    elif message.lb_policy not in _ENUM_POLICIES:
        value = message.DESCRIPTOR.enum_types_by_name["LbPolicy"].values_by_number.get(message.lb_policy)
        name = value.name if value else message.lb_policy
        problems.error(join(path, "lb_policy"), f"{name} is not a policy of gRPC")
    elif message.lb_policy == 2:  # RING_HASH
        _check_ring(message.ring_hash_lb_config, join(path, "ring_hash_lb_config"), problems, _LEGACY_MURMUR)
    if message.HasField("transport_socket"):
        check_client_socket(message.transport_socket, join(path, "transport_socket"), problems, providers)
    if message.transport_socket_matches:
        problems.error(join(path, "transport_socket_matches"), "is not supported by gRPC")


def _check_discovery(message: Any, path: str, problems: Problems) -> None:
    if message.type == _LOGICAL_DNS:
        groups = message.load_assignment.endpoints
        if len(groups) != 1 or len(groups[0].lb_endpoints) != 1:
            reason = "LOGICAL_DNS must have exactly one locality with exactly one endpoint"
            problems.error(join(path, "load_assignment"), reason)
        elif groups[0].lb_endpoints[0].endpoint.address.WhichOneof("address") != "socket_address":
            place = join(path, "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address")
            problems.error(place, "must be a socket_address for gRPC")
    elif message.type != _EDS:
        value = message.DESCRIPTOR.enum_types_by_name["DiscoveryType"].values_by_number.get(message.type)
        name = value.name if value else message.type
        problems.error(join(path, "type"), f"{name} is not a type of gRPC (only EDS, LOGICAL_DNS and aggregates)")


def _check_list(message: Any, path: str, problems: Problems, depth: int) -> None:
    """Check a LoadBalancingPolicy: one of its policies has to be gRPC's, and the first of those has to be right."""
    for index, item in enumerate(message.policies):
        packed = item.typed_extension_config.typed_config
        kind, is_struct = any_type(packed), is_typed_struct(packed)
        if is_struct and has_lb_policy(kind):
            return
        # gRPC takes a TypedStruct for the configuration of a policy of the application, whatever it stands for.
        if kind in _POLICIES and not is_struct:
            place = f"{join(path, 'policies')}[{index}].typed_extension_config.typed_config"
            config = unpack(packed, place, Problems())
            if config is not None:
                _check_policy(kind, config, place, problems, depth)
            return
    problems.error(path, "no policy of gRPC is among them")


def _check_policy(kind: str, config: Any, path: str, problems: Problems, depth: int) -> None:
    if kind == WRR_LOCALITY_TYPE and depth < MAX_DEPTH:
        _check_list(config.endpoint_picking_policy, join(path, "endpoint_picking_policy"), problems, depth + 1)
    elif kind == RING_HASH_TYPE:
        _check_ring(config, path, problems, _MURMUR)
    elif kind == CLIENT_SIDE_TYPE:
        for index, metric in enumerate(config.metric_names_for_computing_utilization):
            if not is_utilization(metric):
                place = f"{join(path, 'metric_names_for_computing_utilization')}[{index}]"
                problems.error(place, f"{metric!r} is no metric")


def _check_ring(message: Any, path: str, problems: Problems, murmur: int) -> None:
    if message.hash_function == murmur:
        problems.error(join(path, "hash_function"), "must be XX_HASH for gRPC")
