"""Listeners (LDS) for servers: one for each address at which an instance is registered."""

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
from xds_server.translate.tls import server_mutual

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
    for instance in sorted(instances, key=lambda one: (one.namespace, one.service, one.id)):
        name = NAME_PREFIX + host_port(instance.address, instance.port)
        labels = instance_labels(instance)
        mode = authentications.mode(instance.namespace, labels, instance.port)
        chain: Json = {
            "name": "inbound-mtls" if mode is MutualTls.STRICT else "inbound-plaintext",
            "filters": [
                {
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": _connection_manager(authorizations.filters(instance.namespace, labels)),
                }
            ],
        }
        if mode is MutualTls.STRICT:
            chain["transport_socket"] = server_mutual(profile, trust_domain)
        value: Json = {
            "name": name,
            "address": {"socket_address": {"address": instance.address, "port_value": instance.port}},
            "filter_chains": [chain],
        }
        if profile is Profile.MESHLIB:
            resource = f"/v1/registrations/{instance.namespace}/{instance.id}"
            value["metadata"] = {"filter_metadata": {"meshlib": {"config": resource}}}
        message = build(LISTENER, value)
        if name in result and _differs(result[name], message):
            report.warning(
                SAME_ADDRESS,
                f"{host_port(instance.address, instance.port)} is registered several times with different policies; "
                "those of the first, by namespace and service, guard it",
            )
        result.setdefault(name, message)
    return result


def _differs(first: Message, second: Message) -> bool:
    one, two = type(first)(), type(second)()
    one.CopyFrom(first)
    two.CopyFrom(second)
    for message in (one, two):
        message.ClearField("metadata")
    return one != two


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
