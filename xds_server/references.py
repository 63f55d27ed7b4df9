"""Which resources a resource names, found by walking its message, whatever filter or extension they sit in."""

from collections.abc import Iterator

from google.protobuf.message import DecodeError, Message

from meshlib.protos import from_any
from xds_server.ordering import CDS, ECDS, EDS, RDS, SDS

Reference = tuple[str, str]
"""Type URL and name."""

_HCM = "envoy.extensions.filters.network.http_connection_manager.v3."
_TCP = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"


def references(message: Message) -> tuple[Reference, ...]:
    """Return the resources that this one needs from the same management server, sorted, each once.

    Sources of configuration other than the stream itself (`ads` or `self`) are left out, as are clusters that a
    request header chooses. Contents of unknown extensions are not looked into.
    """
    return tuple(sorted(set(_walk(message))))


def _walk(message: Message) -> Iterator[Reference]:
    if message.DESCRIPTOR.full_name == "google.protobuf.Any":
        try:
            yield from _walk(from_any(message))
        except (KeyError, DecodeError):
            return
        return
    yield from _named_by(message)
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for item in value.values():
                    yield from _walk(item)
        elif isinstance(value, Message):
            yield from _walk(value)
        else:
            for item in value:
                yield from _walk(item)


def _named_by(message: Message) -> Iterator[Reference]:
    """Yield what this one message names itself, its parts aside."""
    value: object = message
    name = message.DESCRIPTOR.full_name
    match name:
        case "envoy.config.cluster.v3.Cluster":
            if _field(value, "type") == 3:  # EDS
                eds = _field(value, "eds_cluster_config")
                if _from_this_stream(_field(eds, "eds_config")):
                    yield EDS, str(_field(eds, "service_name") or _field(value, "name"))
        case "envoy.config.route.v3.RouteAction" | "envoy.config.route.v3.RouteAction.RequestMirrorPolicy":
            if cluster := _field(value, "cluster"):
                yield CDS, str(cluster)
        case "envoy.config.route.v3.WeightedCluster.ClusterWeight":
            if cluster := _field(value, "name"):
                yield CDS, str(cluster)
        case "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig":
            if _from_this_stream(_field(value, "sds_config")):
                yield SDS, str(_field(value, "name"))
        case "envoy.extensions.clusters.aggregate.v3.ClusterConfig":
            for cluster in getattr(value, "clusters", ()):
                yield CDS, str(cluster)
        case _ if name == _HCM + "Rds":
            if _from_this_stream(_field(value, "config_source")):
                yield RDS, str(_field(value, "route_config_name"))
        case "envoy.config.route.v3.ScopedRouteConfiguration":
            if routes := _field(value, "route_configuration_name"):
                yield RDS, str(routes)
        case _ if name == _HCM + "HttpFilter":
            discovery = _field(value, "config_discovery")
            assert isinstance(discovery, Message)
            if _from_this_stream(_field(discovery, "config_source")) and not discovery.HasField("default_config"):
                yield ECDS, str(_field(value, "name"))
        case _ if name == _TCP:
            if cluster := _field(value, "cluster"):
                yield CDS, str(cluster)
        case _ if name == _TCP + ".WeightedCluster.ClusterWeight":
            yield CDS, str(_field(value, "name"))


def _field(message: object, name: str) -> object:
    return getattr(message, name)


def _from_this_stream(config_source: object) -> bool:
    assert isinstance(config_source, Message)
    return config_source.HasField("ads") or config_source.HasField("self")
