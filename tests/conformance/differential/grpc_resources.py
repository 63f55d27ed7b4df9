"""Short forms for the resources of `grpc_profile_cases.py`.

A case changes one of the four resources of a service; the others are good, so that a client gets to it.
"""

from dataclasses import dataclass
from typing import Any

from meshlib.protos import from_dict
from meshlib.xds.resources import CDS, EDS, LDS, RDS

T = "type.googleapis.com/"
HTTP = f"{T}envoy.extensions.filters.http."
HCM = f"{T}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
LB = f"{T}envoy.extensions.load_balancing_policies."
TLS = f"{T}envoy.extensions.transport_sockets.tls.v3."
PROVIDER_INSTANCE = "p"
"""Name of the certificate provider that the bootstraps have."""

Data = dict[str, Any]
ROUTER: Data = {"name": "router", "typed_config": {"@type": f"{HTTP}router.v3.Router"}}
FAULT: Data = {"name": "fault", "typed_config": {"@type": f"{HTTP}fault.v3.HTTPFault"}}
LIMIT: Data = {
    "@type": f"{HTTP}local_ratelimit.v3.LocalRateLimit",
    "stat_prefix": "x",
    "token_bucket": {"max_tokens": 1, "fill_interval": "1s"},
}
RBAC_TYPE = f"{HTTP}rbac.v3.RBAC"
SESSION_TYPE = f"{HTTP}stateful_session.v3.StatefulSession"
COOKIE_TYPE = f"{T}envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState"
FILTER_CONFIG = f"{T}envoy.config.route.v3.FilterConfig"
STRUCT = f"{T}xds.type.v3.TypedStruct"
ADS: Data = {"ads": {}}
ANYTHING: list[Data] = [{"any": True}]
TCP: Data = {"socket_address": {"address": "127.0.0.1", "port_value": 1}}
ROOTS: Data = {"ca_certificate_provider_instance": {"instance_name": PROVIDER_INSTANCE}}
IDENTITY: Data = {"tls_certificate_provider_instance": {"instance_name": PROVIDER_INSTANCE}}
SECRET: Data = {"name": "x", "sds_config": ADS}


@dataclass(frozen=True, slots=True)
class Case:
    """Attributes:
    name: Unique; also of the service and of all its resources.
    type_url: Of the resource that it is about.
    """

    name: str
    type_url: str
    data: Data

    def body(self) -> bytes:
        key = "cluster_name" if self.type_url == EDS else "name"
        message = from_dict(self.type_url.rpartition("/")[2], {**self.data, key: self.name})
        made: bytes = message.SerializeToString(deterministic=True)
        return made

    def resources(self) -> dict[str, bytes]:
        """Return the service's resources by type URL."""
        made = {kind: Case(self.name, kind, good(kind, self.name)).body() for kind in (LDS, RDS, CDS, EDS)}
        return {**made, self.type_url: self.body()}


def good(kind: str, name: str) -> Data:
    if kind == LDS:
        return listener(rds={"route_config_name": name, "config_source": ADS})
    if kind == RDS:
        return routes({"route": {"cluster": name}})
    return cluster() if kind == CDS else {"endpoints": [group("a", 1)]}


def listener(**manager: Any) -> Data:
    return {"api_listener": {"api_listener": {"@type": HCM, "http_filters": [ROUTER], **manager}}}


def filters(*chain: Data) -> Data:
    return listener(route_config=routes(), http_filters=list(chain))


def optional(item: Data) -> Data:
    return {**item, "is_optional": True}


def routes(route: Data | None = None, **host: Any) -> Data:
    base: Data = {"match": {"prefix": "/"}, "route": {"cluster": "c"}, **(route or {})}
    return {"virtual_hosts": [{"name": "vh", "domains": ["*"], "routes": [base], **host}]}


def match(**fields: Any) -> Data:
    return routes({"match": fields})


def header(**matcher: Any) -> Data:
    return match(prefix="/", headers=[{"name": "h", **matcher}])


def action(**fields: Any) -> Data:
    return routes({"route": fields if fields.keys() & SPECIFIERS else {"cluster": "c", **fields}})


SPECIFIERS = {"cluster", "cluster_header", "weighted_clusters", "cluster_specifier_plugin"}


def no_action(**fields: Any) -> Data:
    made = routes(fields)
    del made["virtual_hosts"][0]["routes"][0]["route"]
    return made


def weighted(*clusters: Data, **more: Any) -> Data:
    return action(weighted_clusters={"clusters": list(clusters), **more})


def retry(**policy: Any) -> Data:
    return action(retry_policy={"retry_on": "unavailable", **policy})


def override(config: Data) -> Data:
    return routes({"typed_per_filter_config": {"a": config}})


def cluster(**fields: Any) -> Data:
    return {"type": "EDS", "eds_cluster_config": {"eds_config": ADS}, **fields}


def policies(*configs: Data) -> Data:
    return {"policies": [{"typed_extension_config": {"name": "p", "typed_config": config}} for config in configs]}


def listed(*configs: Data) -> Data:
    return cluster(load_balancing_policy=policies(*configs))


def policy(name: str, **fields: Any) -> Data:
    return {"@type": f"{LB}{name}", **fields}


def aggregate(*names: str) -> Data:
    config = {"@type": f"{T}envoy.extensions.clusters.aggregate.v3.ClusterConfig", "clusters": list(names)}
    return {"cluster_type": {"name": "envoy.clusters.aggregate", "typed_config": config}}


def dns(*groups: Data) -> Data:
    return {"type": "LOGICAL_DNS", "load_assignment": {"cluster_name": "x", "endpoints": list(groups)}}


def hostname(address: str, **port: Any) -> Data:
    return {"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": address, **port}}}}]}


def tls(**common: Any) -> Data:
    config = {"@type": f"{TLS}UpstreamTlsContext", "common_tls_context": common}
    return cluster(transport_socket={"name": "tls", "typed_config": config})


def peers(**context: Any) -> Data:
    return tls(validation_context={**ROOTS, **context})


def endpoint(port: int, **fields: Any) -> Data:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"endpoint": {"address": address}, **fields}


def group(zone: str, *ports: int, weight: int | None = 1, **fields: Any) -> Data:
    made: Data = {"locality": {"zone": zone}, "lb_endpoints": [endpoint(port) for port in ports], **fields}
    return made if weight is None else {**made, "load_balancing_weight": weight}


def assignment(*groups: Data, **fields: Any) -> Data:
    return {"endpoints": list(groups), **fields}


def more_addresses(*addresses: Data) -> Data:
    more = [{"address": address} for address in addresses]
    return assignment({**group("a"), "lb_endpoints": [{"endpoint": {"address": TCP, "additional_addresses": more}}]})


def drops(**drop: Any) -> Data:
    return assignment(group("a", 1), policy={"drop_overloads": [drop]})


def server(*http_filters: Data, socket: Data | None = None, **fields: Any) -> Data:
    manager = {"@type": HCM, "route_config": {"name": "r"}, "http_filters": [*http_filters, ROUTER]}
    chain: Data = {"filters": [{"name": "h", "typed_config": manager}]}
    if socket is not None:
        chain["transport_socket"] = {"name": "tls", "typed_config": {"@type": f"{TLS}DownstreamTlsContext", **socket}}
    return {"address": TCP, "filter_chains": [chain], **fields}


def rbac(permission: Data | None = None, principal: Data | None = None, **policy: Any) -> Data:
    rule = {"permissions": [permission or ANYTHING[0]], "principals": [principal or ANYTHING[0]], **policy}
    return server({"name": "rbac", "typed_config": {"@type": RBAC_TYPE, "rules": {"policies": {"p": rule}}}})


def nested(depth: int) -> Data:
    return {"any": True} if not depth else {"not_id": nested(depth - 1)}


def session(**fields: Any) -> Data:
    return filters({"name": "s", "typed_config": {"@type": SESSION_TYPE, **fields}}, ROUTER)


def cookie(**fields: Any) -> Data:
    return session(session_state={"name": "c", "typed_config": {"@type": COOKIE_TYPE, "cookie": fields}})
