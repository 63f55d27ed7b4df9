"""The profile of gRPC: each resource is taken by Envoy's rules, and refused by gRPC's at one place."""

from typing import Any

import pytest

from meshlib.model.route import RouteAction, RouteConfiguration
from meshlib.protos import from_dict
from meshlib.xds.cache import ResourceCache
from meshlib.xds.decode import decode_resource
from meshlib.xds.delta import new_machine
from meshlib.xds.resources import CDS, EDS, LDS, RDS

T = "type.googleapis.com/"
FILTERS = f"{T}envoy.extensions.filters."
ROUTER = {"name": "router", "typed_config": {"@type": f"{FILTERS}http.router.v3.Router"}}
RDS_SOURCE = {"route_config_name": "rc", "config_source": {"ads": {}}}
HCM = f"{FILTERS}network.http_connection_manager.v3.HttpConnectionManager"
M = "api_listener.api_listener"
P = f"{T}envoy.extensions.load_balancing_policies."
POLICY = "load_balancing_policy.policies[0].typed_extension_config.typed_config"
R = "virtual_hosts[0].routes[0]"
TLS = f"{T}envoy.extensions.transport_sockets."
ROOTS = {"ca_certificate_provider_instance": {"instance_name": "p"}}
C = "transport_socket.typed_config"


def listener(**fields: Any) -> dict[str, Any]:
    manager: dict[str, Any] = {"@type": HCM, "rds": RDS_SOURCE, "http_filters": [ROUTER], **fields}
    if "route_config" in fields:
        del manager["rds"]
    return {"name": "l", "api_listener": {"api_listener": manager}}


def routes(route: dict[str, Any] | None = None, **host: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"match": {"prefix": "/"}, "route": {"cluster": "c"}, **(route or {})}
    return {"name": "rc", "virtual_hosts": [{"name": "vh", "domains": ["*"], "routes": [base], **host}]}


def headers(**matcher: Any) -> dict[str, Any]:
    return routes({"match": {"prefix": "/", "headers": [{"name": "h", **matcher}]}})


def cluster(**fields: Any) -> dict[str, Any]:
    return {"name": "c", "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}, **fields}


def listed(name: str, **fields: Any) -> dict[str, Any]:
    config = {"@type": f"{P}{name}", **fields}
    return cluster(
        load_balancing_policy={"policies": [{"typed_extension_config": {"name": "p", "typed_config": config}}]}
    )


def tls(**common: Any) -> dict[str, Any]:
    config = {"@type": f"{TLS}tls.v3.UpstreamTlsContext", "common_tls_context": common}
    return cluster(transport_socket={"name": "tls", "typed_config": config})


def endpoint(port: int) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": port}}}}


def group(zone: str, *ports: int, weight: int | None = 1, priority: int = 0) -> dict[str, Any]:
    made: dict[str, Any] = {"locality": {"zone": zone}, "priority": priority}
    made["lb_endpoints"] = [endpoint(port) for port in ports]
    return made if weight is None else {**made, "load_balancing_weight": weight}


def assignment(*groups: dict[str, Any]) -> dict[str, Any]:
    return {"cluster_name": "c", "endpoints": list(groups)}


TOKENS = {"max_tokens": 1, "fill_interval": "1s"}
LIMIT = {"@type": f"{FILTERS}http.local_ratelimit.v3.LocalRateLimit", "stat_prefix": "x", "token_bucket": TOKENS}
PIPE = {"endpoint": {"address": {"pipe": {"path": "/run/x"}}}}

DISCOVERY = {"config_source": {"ads": {}}, "type_urls": [f"{FILTERS}http.fault.v3.HTTPFault"]}
SCOPES = {
    "name": "s",
    "scope_key_builder": {"fragments": [{"header_value_extractor": {"name": "h", "index": 0}}]},
    "rds_config_source": {"ads": {}},
    "scoped_rds": {"scoped_rds_config_source": {"ads": {}}},
}
PROVIDER = {"tls_certificate_provider_instance": {"instance_name": "p"}}
SECRET = {"name": "x", "sds_config": {"ads": {}}}
ANY = [{"any": True}]
CHAIN = "filter_chains[0]"
RULE = f'{CHAIN}.filters[0].typed_config.http_filters[0].typed_config.rules.policies["p"]'
COMMON = f"{CHAIN}.transport_socket.typed_config.common_tls_context"
TCP = {"socket_address": {"address": "10.0.0.1", "port_value": 1}}


def server(
    policy: dict[str, Any] | None = None, address: dict[str, Any] = TCP, tls: dict[str, Any] | None = None
) -> dict[str, Any]:
    rbac = {"@type": f"{FILTERS}http.rbac.v3.RBAC", "rules": {"policies": {"p": policy}}}
    filters = [{"name": "rbac", "typed_config": rbac}, ROUTER] if policy else [ROUTER]
    manager = {"@type": HCM, "route_config": {"name": "r"}, "http_filters": filters}
    chain: dict[str, Any] = {"filters": [{"name": "h", "typed_config": manager}]}
    if tls is not None:
        config = {"@type": f"{TLS}tls.v3.DownstreamTlsContext", "common_tls_context": tls}
        chain["transport_socket"] = {"name": "tls", "typed_config": config}
    return {"name": "l", "address": address, "filter_chains": [chain]}


def dns(*groups: dict[str, Any]) -> dict[str, Any]:
    return {"name": "c", "type": "LOGICAL_DNS", "load_assignment": assignment(*groups)}


def scoped() -> dict[str, Any]:
    made = listener(scoped_routes=SCOPES)
    del made["api_listener"]["api_listener"]["rds"]
    return made


def nested(depth: int) -> dict[str, Any]:
    return {"any": True} if not depth else {"not_id": nested(depth - 1)}


def override(**config: Any) -> dict[str, Any]:
    return routes({"typed_per_filter_config": {"a": {**config}}})


RANDOM = {"policies": [{"typed_extension_config": {"name": "r", "typed_config": {"@type": f"{P}random.v3.Random"}}}]}

AGGREGATE = {"@type": f"{T}envoy.extensions.clusters.aggregate.v3.ClusterConfig", "clusters": ["a"]}
STRUCT = {"@type": f"{T}xds.type.v3.TypedStruct", "type_url": f"{FILTERS}http.fault.v3.HTTPFault", "value": {}}


def aggregate(**fields: Any) -> dict[str, Any]:
    return {"name": "c", "cluster_type": {"name": "a", "typed_config": AGGREGATE}, **fields}


def more_addresses(*addresses: dict[str, Any]) -> dict[str, Any]:
    more = [{"address": address} for address in addresses]
    return assignment({**group("a"), "lb_endpoints": [{"endpoint": {"address": TCP, "additional_addresses": more}}]})


MORE = "endpoints[0].lb_endpoints[0].endpoint.additional_addresses[0].address"

RAW_BUFFER = {"name": "p", "typed_config": {"@type": f"{TLS}raw_buffer.v3.RawBuffer"}}
REFUSED = [
    (LDS, listener(http_filters=[{"name": "f", "typed_config": STRUCT}, ROUTER]), f"{M}.http_filters[0].typed_config"),
    (CDS, aggregate(lb_policy="CLUSTER_PROVIDED"), "lb_policy"),
    (CDS, aggregate(load_balancing_policy=RANDOM), "load_balancing_policy"),
    (EDS, more_addresses(TCP), MORE),
    (EDS, more_addresses({"pipe": {"path": "/x"}}), f"{MORE}.pipe"),
    (
        EDS,
        {**assignment(group("a", 1)), "policy": {"drop_overloads": [{"category": "x"}]}},
        "policy.drop_overloads[0].drop_percentage",
    ),
    (
        LDS,
        listener(http_filters=[{"name": "f", "config_discovery": DISCOVERY}, ROUTER]),
        f"{M}.http_filters[0].config_discovery",
    ),
    (LDS, scoped(), f"{M}.scoped_routes"),
    (LDS, server(address={"pipe": {"path": "/x"}}), "address.pipe"),
    (
        LDS,
        server({"permissions": [{"destination_port_range": {"start": 1, "end": 9}}], "principals": ANY}),
        f"{RULE}.permissions[0].destination_port_range",
    ),
    (
        LDS,
        server({"permissions": [{"header": {"name": "grpc-x", "present_match": True}}], "principals": ANY}),
        f"{RULE}.permissions[0].header.name",
    ),
    (LDS, server({"permissions": ANY, "principals": [nested(17)]}), f"{RULE}.principals[0]" + ".not_id" * 17),
    (
        LDS,
        server(tls={**PROVIDER, "validation_context": {**ROOTS, "match_subject_alt_names": [{"exact": "a"}]}}),
        f"{COMMON}.validation_context.match_subject_alt_names",
    ),
    (RDS, headers(range_match={"start": 5, "end": 1}), f"{R}.match.headers[0].range_match"),
    (RDS, routes({"match": {"connect_matcher": {}}}), f"{R}.match.connect_matcher"),
    (RDS, routes({"match": {"prefix": "/"}}, domains=[""]), "virtual_hosts[0].domains[0]"),
    (RDS, override(**LIMIT), f'{R}.typed_per_filter_config["a"]'),
    (
        CDS,
        dns({**group("a"), "lb_endpoints": [PIPE]}),
        "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address",
    ),
    (CDS, listed("wrr_locality.v3.WrrLocality", endpoint_picking_policy=RANDOM), f"{POLICY}.endpoint_picking_policy"),
    (
        CDS,
        tls(validation_context={**ROOTS, "verify_certificate_hash": ["0" * 64]}),
        f"{C}.common_tls_context.validation_context.verify_certificate_hash",
    ),
    (
        CDS,
        tls(validation_context_sds_secret_config=SECRET),
        f"{C}.common_tls_context.validation_context_sds_secret_config",
    ),
    (LDS, listener(http_filters=[{"name": "a", "typed_config": LIMIT}, ROUTER]), f"{M}.http_filters[0].typed_config"),
    (LDS, listener(route_config=routes(domains=["a*b"])), f"{M}.route_config.virtual_hosts[0].domains[0]"),
    (RDS, routes(domains=["a*b"]), "virtual_hosts[0].domains[0]"),
    (RDS, routes({"match": {"path_separated_prefix": "/a"}}), f"{R}.match.path_separated_prefix"),
    (RDS, headers(), f"{R}.match.headers[0]"),
    (RDS, routes(retry_policy={"num_retries": 0}), "virtual_hosts[0].retry_policy.num_retries"),
    (
        RDS,
        routes({"route": {"cluster": "c", "retry_policy": {"num_retries": 0}}}),
        f"{R}.route.retry_policy.num_retries",
    ),
    (
        RDS,
        routes({"route": {"weighted_clusters": {"clusters": [{"cluster_header": "h", "weight": 1}]}}}),
        f"{R}.route.weighted_clusters.clusters[0].name",
    ),
    (CDS, {"name": "c", "type": "STATIC"}, "type"),
    (CDS, cluster(lb_policy="RANDOM"), "lb_policy"),
    (CDS, cluster(lb_policy="MAGLEV"), "lb_policy"),
    (
        CDS,
        cluster(lb_policy="RING_HASH", ring_hash_lb_config={"hash_function": "MURMUR_HASH_2"}),
        "ring_hash_lb_config.hash_function",
    ),
    (CDS, listed("maglev.v3.Maglev"), "load_balancing_policy"),
    (CDS, listed("ring_hash.v3.RingHash", hash_function="MURMUR_HASH_2"), f"{POLICY}.hash_function"),
    (
        CDS,
        listed(
            "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
            metric_names_for_computing_utilization=["x"],
        ),
        f"{POLICY}.metric_names_for_computing_utilization[0]",
    ),
    (
        CDS,
        cluster(transport_socket_matches=[{"name": "m", "match": {}, "transport_socket": RAW_BUFFER}]),
        "transport_socket_matches",
    ),
    (
        CDS,
        cluster(transport_socket=RAW_BUFFER),
        C,
    ),
    (CDS, tls(), f"{C}.common_tls_context.validation_context"),
    (CDS, tls(validation_context=ROOTS, tls_params={}), f"{C}.common_tls_context.tls_params"),
    (EDS, assignment({"lb_endpoints": [endpoint(1)]}), "endpoints[0].locality"),
    (EDS, assignment(group("a", 1), group("a", 2)), "endpoints[1].locality"),
    (EDS, assignment(group("a", 1), group("b", 1)), "endpoints[1].lb_endpoints[0].endpoint.address"),
    (EDS, assignment(group("a", 1, weight=None), group("b", 2, priority=1)), "endpoints"),
    (
        EDS,
        assignment({**group("a"), "lb_endpoints": [PIPE]}),
        "endpoints[0].lb_endpoints[0].endpoint.address.pipe",
    ),
]


def body(type_url: str, data: dict[str, Any]) -> bytes:
    made: bytes = from_dict(type_url.rpartition("/")[2], data).SerializeToString()
    return made


@pytest.mark.parametrize(("type_url", "data", "path"), REFUSED)
def test_refused_by_grpc_alone(type_url: str, data: dict[str, Any], path: str) -> None:
    resource = body(type_url, data)
    assert decode_resource(type_url, resource).errors == ()
    strict = decode_resource(type_url, resource, with_grpc_rules=True)
    assert strict.value is None
    assert [error.partition(": ")[0] for error in strict.errors] == [path]


@pytest.mark.parametrize(
    ("type_url", "data"),
    [
        (LDS, listener()),
        (LDS, listener(http_filters=[{"name": "a", "typed_config": LIMIT, "is_optional": True}, ROUTER])),
        (RDS, routes(domains=["*.a", "a.*", "a"])),
        (RDS, override(**{"@type": f"{T}envoy.config.route.v3.FilterConfig", "is_optional": True, "config": LIMIT})),
        (LDS, server({"permissions": ANY, "principals": [nested(16)]}, tls=PROVIDER)),
        (CDS, dns(group("a", 1))),
        (CDS, aggregate()),
        (EDS, more_addresses({"socket_address": {"address": "::1", "port_value": 1}})),
        (CDS, cluster(lb_policy="RING_HASH")),
        (CDS, listed("round_robin.v3.RoundRobin")),
        (CDS, tls(validation_context=ROOTS)),
        (EDS, assignment(group("a", 1), group("b", 2), group("a", 3, priority=1))),
    ],
)
def test_taken_by_both(type_url: str, data: dict[str, Any]) -> None:
    plain = decode_resource(type_url, body(type_url, data))
    assert plain.errors == ()
    assert decode_resource(type_url, body(type_url, data), with_grpc_rules=True) == plain


@pytest.mark.parametrize("variant", [(), ("meshlib.delta",)])
@pytest.mark.parametrize("feature", ["", "trusted_xds_server"])
def test_routes_say_whether_their_server_is_trusted(variant: tuple[str, ...], feature: str) -> None:
    resource = body(RDS, routes({"route": {"cluster": "c", "auto_host_rewrite": True}}))
    value = new_machine(ResourceCache(), frozenset((*variant, feature)))._decode(RDS, resource).value
    assert isinstance(value, RouteConfiguration)
    action = value.virtual_hosts[0].routes[0].action
    assert isinstance(action, RouteAction)
    assert (True, bool(feature)) == (action.auto_host_rewrite, action.is_trusted)


@pytest.mark.parametrize("variant", [(), ("meshlib.delta",)])
def test_the_servers_feature_chooses_the_profile(variant: tuple[str, ...]) -> None:
    resource = body(CDS, cluster(lb_policy="RANDOM"))
    strict = new_machine(ResourceCache(), frozenset((*variant, "meshlib.validation_grpc")))
    assert strict._decode(CDS, resource).errors == ("lb_policy: RANDOM is not a policy of gRPC",)
    assert new_machine(ResourceCache(), frozenset(variant))._decode(CDS, resource).errors == ()


@pytest.mark.parametrize(
    ("type_url", "data", "path"),
    [
        (
            CDS,
            tls(validation_context=ROOTS),
            f"{C}.common_tls_context.validation_context.ca_certificate_provider_instance",
        ),
        (
            CDS,
            tls(combined_validation_context={"default_validation_context": ROOTS}),
            f"{C}.common_tls_context.combined_validation_context.default_validation_context.ca_certificate_provider_instance",
        ),
        (
            CDS,
            tls(**PROVIDER, validation_context={"system_root_certs": {}}),
            f"{C}.common_tls_context.tls_certificate_provider_instance",
        ),
        (LDS, server(tls=PROVIDER), f"{COMMON}.tls_certificate_provider_instance"),
    ],
)
def test_providers_are_those_of_the_bootstrap(type_url: str, data: dict[str, Any], path: str) -> None:
    resource = body(type_url, data)
    reason = "'p' is not among the bootstrap's certificate_providers"
    for with_grpc_rules, providers, errors in (
        (True, frozenset({"q"}), (f"{path}: {reason}",)),
        (True, frozenset({"p"}), ()),
        (True, None, ()),
        (False, frozenset({"q"}), ()),
    ):
        decoded = decode_resource(type_url, resource, with_grpc_rules=with_grpc_rules, providers=providers)
        assert decoded.errors == errors


def test_certificates_of_servers_come_from_provider_instances() -> None:
    resource = body(LDS, server(tls={"tls_certificate_sds_secret_configs": [SECRET]}))
    assert decode_resource(LDS, resource).errors == ()
    assert decode_resource(LDS, resource, with_grpc_rules=True).errors == (
        f"{COMMON}.tls_certificate_sds_secret_configs: "
        "is not supported by gRPC (only tls_certificate_provider_instance)",
        f"{COMMON}.tls_certificate_provider_instance: is required for gRPC",
    )
