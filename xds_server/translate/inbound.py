"""Listeners (LDS) for servers: one for each address at which an instance is registered.

An address may be registered more than once, by accident or by somebody who would like its owner's policies to be gone.
The listener then demands what any of them demands: mutual TLS if one does, and a request must pass the rules of each.

PERMISSIVE is two filter chains, told apart by whether a connection begins with TLS. gRPC's own servers cannot tell, and
get the one for plaintext (as istiod does it).
"""

from collections.abc import Sequence

from google.protobuf.message import Message

from xds_server.codes import SAME_ADDRESS
from xds_server.model import Instance, Profile
from xds_server.translate.authorization import Authorizations
from xds_server.translate.messages import LISTENER, Json, build, connection_manager, router
from xds_server.translate.names import host_port
from xds_server.translate.peer_authentication import MutualTls, PeerAuthentications
from xds_server.translate.report import Report
from xds_server.translate.services import instance_labels
from xds_server.translate.tls import TLS_INSPECTOR, server_mutual

_CAUTION = {MutualTls.PERMISSIVE: 1, MutualTls.STRICT: 2}
NAME_PREFIX = "xds.istio.io/grpc/lds/inbound/"


def inbound_listeners(
    instances: Sequence[Instance],
    authentications: PeerAuthentications,
    authorizations: Authorizations,
    trust_domain: str,
    report: Report,
) -> dict[str, Message]:
    """Return the listeners of servers by name. Envoy has none here: it runs beside clients only."""
    profile = authorizations.profile
    if profile is Profile.ENVOY:
        return {}
    result: dict[str, Message] = {}
    by_address: dict[tuple[str, int], list[Instance]] = {}
    for instance in sorted(instances, key=lambda one: (one.namespace, one.service, one.id)):
        by_address.setdefault((instance.address, instance.port), []).append(instance)
    for same in by_address.values():
        instance = same[0]
        name = NAME_PREFIX + host_port(instance.address, instance.port)
        policies = []
        for each in same:
            labels = instance_labels(each)
            mode = authentications.mode(each.namespace, labels, each.port)
            policy = (_CAUTION.get(mode, 0), authorizations.filters(each.namespace, labels))
            if policy not in policies:
                policies.append(policy)
        if len(policies) > 1:
            report.warning(
                SAME_ADDRESS,
                f"{host_port(instance.address, instance.port)} is registered several times with different policies "
                f"({', '.join(each.id for each in same[:10])}); it demands what any of them demands",
            )
        caution = max(number for number, _ in policies)
        if caution == _CAUTION[MutualTls.PERMISSIVE] and profile is Profile.GRPC:
            report.dropped(profile, "PERMISSIVE", "its servers take plaintext only", None)
            caution = 0
        value: Json = {
            "name": name,
            "address": {"socket_address": {"address": instance.address, "port_value": instance.port}},
            "filter_chains": _chains(
                _connection_manager(_all_of([filters for _, filters in policies])),
                server_mutual(profile, trust_domain) if caution else None,
                is_permissive=caution == _CAUTION[MutualTls.PERMISSIVE],
            ),
        }
        if len(value["filter_chains"]) > 1:
            value["listener_filters"] = [TLS_INSPECTOR]
        if profile is Profile.MESHLIB:
            resource = f"/v1/registrations/{instance.namespace}/{instance.id}"
            value["metadata"] = {"filter_metadata": {"meshlib": {"config": resource}}}
        result[name] = build(LISTENER, value)
    return result


def _chains(manager: Json, mutual: Json | None, *, is_permissive: bool) -> list[Json]:
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    plaintext: Json = {"name": "inbound-plaintext", "filters": filters}
    if mutual is None:
        return [plaintext]
    strict: Json = {"name": "inbound-mtls", "filters": filters, "transport_socket": mutual}
    if not is_permissive:
        return [strict]
    return [
        {**plaintext, "filter_chain_match": {"transport_protocol": "raw_buffer"}},
        {**strict, "filter_chain_match": {"transport_protocol": "tls"}},
    ]


def _all_of(lists: Sequence[list[Json]]) -> list[Json]:
    """Return the filters of all lists; no two have one name, which gRPC would refuse."""
    result: list[Json] = []
    for filters in lists:
        for one in filters:
            if all(one["typed_config"] != other["typed_config"] for other in result):
                count = sum(other["name"].partition("#")[0] == one["name"] for other in result)
                result.append({**one, "name": f"{one['name']}#{count + 1}"} if count else one)
    return result


def _connection_manager(filters: list[Json]) -> Json:
    route = {"match": {"prefix": "/"}, "non_forwarding_action": {}}
    return connection_manager(
        {
            "stat_prefix": "inbound",
            "route_config": {
                "name": "inbound",
                "virtual_hosts": [{"name": "inbound", "domains": ["*"], "routes": [route]}],
            },
            "http_filters": [*filters, router()],
        }
    )
