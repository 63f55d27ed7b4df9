"""Endpoint resources (EDS)."""

from collections.abc import Callable, Iterable

from xds_server.model import Profile
from xds_server.translate.locality import LocalityGroup
from xds_server.translate.messages import Json
from xds_server.translate.services import Endpoint, Locality


def load_assignment(
    name: str, groups: Iterable[LocalityGroup], uses_tls: Callable[[Endpoint], bool], profile: Profile
) -> Json:
    """Return a ClusterLoadAssignment.

    Endpoints that are called over mTLS are marked, so that clients pick TLS for each endpoint by itself.
    """
    return {
        "cluster_name": name,
        "endpoints": [
            {
                **_locality(group.locality),
                "load_balancing_weight": group.weight,
                **({"priority": group.priority} if group.priority else {}),
                "lb_endpoints": [_endpoint(member, profile, secure=uses_tls(member)) for member in group.members],
            }
            for group in groups
        ],
    }


def _locality(locality: Locality) -> Json:
    # Present even when nameless: gRPC refuses a group of endpoints without the field.
    region, zone, sub_zone = locality
    return {"locality": {"region": region, "zone": zone, "sub_zone": sub_zone}}


def _endpoint(endpoint: Endpoint, profile: Profile, *, secure: bool) -> Json:
    address = {"socket_address": {"address": endpoint.address, "port_value": endpoint.port}}
    result: Json = {"endpoint": {"address": address}, "load_balancing_weight": endpoint.weight}
    if secure and profile is not Profile.GRPC:
        result["metadata"] = {"filter_metadata": {"envoy.transport_socket_match": {"tlsMode": "istio"}}}
    return result
