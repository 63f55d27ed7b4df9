"""Scoped routes, virtual hosts and endpoints as resources, discovered filters, clusters on demand."""

from typing import Any

import pytest

from meshlib.model.authorization import Rbac
from meshlib.model.discovery import FilterConfig, KeyFragment, ScopedRoute, ScopedRoutes
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, HealthStatus
from meshlib.model.filters import AdaptiveConcurrency, AdmissionControl, LocalRateLimit
from meshlib.model.listener import ClientListener, DiscoveredFilter, ServerListener
from meshlib.model.matcher import Fraction
from meshlib.model.route import FaultAbort, FaultPolicy, RouteConfiguration, VirtualHost
from meshlib.protos import from_dict
from meshlib.xds.decode import Decoded, decode_resource
from meshlib.xds.resources import ECDS, EDS, LDS, LEDS, RDS, SRDS, VHDS

ADS = {"ads": {}}
FAULT = "envoy.extensions.filters.http.fault.v3.HTTPFault"
RBAC = "envoy.extensions.filters.http.rbac.v3.RBAC"
ON_DEMAND = "envoy.extensions.filters.http.on_demand.v3.OnDemand"
HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
GLOB = "xdstp://a/envoy.config.endpoint.v3.LbEndpoint/shop/*"
RDS_SOURCE = {"rds": {"route_config_name": "r", "config_source": ADS}}
WHOLE = {"header_value_extractor": {"name": "X-Scope", "index": 0}}


def typed(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/{kind}", **fields}


ROUTER = {"name": "router", "typed_config": typed("envoy.extensions.filters.http.router.v3.Router")}


def decode(type_url: str, data: dict[str, Any]) -> Decoded:
    return decode_resource(type_url, from_dict(type_url.rpartition("/")[2], data).SerializeToString())


def client(*filters: dict[str, Any], **fields: Any) -> Decoded:
    manager = typed(HCM, stat_prefix="x", http_filters=[*filters, ROUTER], **(fields or RDS_SOURCE))
    return decode(LDS, {"name": "l", "api_listener": {"api_listener": manager}})


def server(*filters: dict[str, Any], **fields: Any) -> Decoded:
    manager = typed(HCM, stat_prefix="x", http_filters=[*filters, ROUTER], **(fields or RDS_SOURCE))
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 1}}
    return decode(
        LDS,
        {"name": "l", "address": address, "filter_chains": [{"filters": [{"name": "m", "typed_config": manager}]}]},
    )


def scoped(*fragments: dict[str, Any], **fields: Any) -> Decoded:
    source = fields or {"scoped_rds": {"scoped_rds_config_source": ADS}}
    builder = {"fragments": list(fragments or (WHOLE,))}
    return client(scoped_routes={"name": "s", "scope_key_builder": builder, "rds_config_source": ADS, **source})


def inline(*scopes: dict[str, Any]) -> Decoded:
    return scoped(scoped_route_configurations_list={"scoped_route_configurations": list(scopes)})


def scope(name: str, *key: str, **fields: Any) -> dict[str, Any]:
    source = fields or {"route_configuration_name": "r"}
    return {"name": name, "key": {"fragments": [{"string_key": part} for part in key]}, **source}


def routes_of(decoded: Decoded) -> object:
    assert decoded.errors == ()
    assert isinstance(decoded.value, ClientListener)
    return decoded.value.routes


def test_scoped_routes_over_srds() -> None:
    fragments = (
        WHOLE,
        {"header_value_extractor": {"name": "a", "element_separator": ",", "index": 2}},
        {
            "header_value_extractor": {
                "name": "b",
                "element_separator": ";",
                "element": {"separator": "=", "key": "color"},
            }
        },
    )
    assert routes_of(scoped(*fragments)) == ScopedRoutes(
        "s",
        (KeyFragment("x-scope", "", 0), KeyFragment("a", ",", 2), KeyFragment("b", ";", None, "color", "=")),
    )


def test_scoped_routes_inline() -> None:
    found = routes_of(inline(scope("a", "red"), scope("b", "blue", route_configuration={"name": "in"})))
    assert isinstance(found, ScopedRoutes)
    assert found.scopes == (
        ScopedRoute("a", ("red",), "r"),
        ScopedRoute("b", ("blue",), RouteConfiguration("in", ())),
    )


@pytest.mark.parametrize(
    ("decoded", "error"),
    [
        (scoped({}), "scope_key_builder.fragments[0].type"),
        (
            scoped({"header_value_extractor": {"name": "a"}}),
            "header_value_extractor: one of index, element is required",
        ),
        (
            scoped({"header_value_extractor": {"name": "a", "index": 1}}),
            "index: must be 0 without an element_separator",
        ),
        (
            scoped(scoped_rds={"scoped_rds_config_source": {"path": "/x"}}),
            "scoped_rds_config_source.path: is not supported (only ads and self)",
        ),
        (
            scoped(scoped_rds={"scoped_rds_config_source": ADS, "srds_resources_locator": "xdstp://a/b/*"}),
            "srds_resources_locator: is not supported",
        ),
        (inline(scope("a", "red"), scope("a", "blue")), "[1].name: is that of [0] already"),
        (inline(scope("a", "red"), scope("b", "red")), "[1].key: is that of [0] already"),
        (
            server(
                scoped_routes={
                    "name": "s",
                    "scope_key_builder": {"fragments": [WHOLE]},
                    "scoped_rds": {"scoped_rds_config_source": ADS},
                }
            ),
            "scoped_routes: is not supported in a server",
        ),
    ],
)
def test_scoped_routes_that_cannot_be_honoured_are_refused(decoded: Decoded, error: str) -> None:
    assert any(error in found for found in decoded.errors), decoded.errors


def test_scope_as_a_resource() -> None:
    assert decode(SRDS, scope("a", "x", "y", route_configuration_name="r", on_demand=True)).value == ScopedRoute(
        "a", ("x", "y"), "r", on_demand=True
    )
    both = decode(SRDS, scope("a", "x", route_configuration_name="r", route_configuration={"name": "r"}))
    assert both.errors == ("route_configuration: cannot be given together with route_configuration_name",)
    neither = decode(SRDS, {"name": "a", "key": {"fragments": [{"string_key": "x"}]}})
    assert neither.errors == ("one of route_configuration, route_configuration_name is required",)


# Virtual hosts.


def test_virtual_host_as_a_resource() -> None:
    found = decode(VHDS, {"name": "h", "domains": ["Shop.example"]})
    assert (found.name, found.value) == ("", VirtualHost("h", ("shop.example",), ()))
    assert decode(VHDS, {"name": "h", "domains": ["a", "a"]}).errors != ()


def test_route_configuration_with_more_hosts() -> None:
    found = decode(RDS, {"name": "r", "vhds": {"config_source": ADS}}).value
    assert isinstance(found, RouteConfiguration)
    assert found.has_more_hosts


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ({"name": "r", "vhds": {"config_source": {"path": "/x"}}}, "vhds.config_source.path"),
        ({"vhds": {"config_source": ADS}}, "vhds"),
        (
            {"name": "r", "vhds": {"config_source": ADS}, "request_mirror_policies": [{"cluster": "m"}]},
            "request_mirror_policies",
        ),
    ],
)
def test_more_hosts_that_cannot_be_honoured_are_refused(data: dict[str, Any], path: str) -> None:
    assert [error.partition(": ")[0] for error in decode(RDS, data).errors] == [path]


def test_server_has_no_more_hosts() -> None:
    found = server(route_config={"name": "r", "vhds": {"config_source": ADS}})
    assert any("vhds: is not supported in a server" in error for error in found.errors)


# Endpoints.


def test_endpoint_as_a_resource() -> None:
    address = {"socket_address": {"address": "10.0.0.1", "port_value": 80}}
    found = decode(LEDS, {"endpoint": {"address": address}, "load_balancing_weight": 3, "health_status": "DRAINING"})
    assert (found.name, found.value) == ("", Endpoint("10.0.0.1:80", 3, HealthStatus.DRAINING))
    assert decode(LEDS, {}).errors != ()
    assert decode(LEDS, {"endpoint_name": "x"}).errors != ()


def test_locality_of_a_collection() -> None:
    config = {"leds_config": ADS, "leds_collection_name": GLOB}
    found = decode(EDS, {"cluster_name": "c", "endpoints": [{"leds_cluster_locality_config": config}]}).value
    assert isinstance(found, ClusterLoadAssignment)
    assert [(locality.endpoints, locality.collections) for locality in found.localities] == [((), (GLOB,))]


def test_locality_of_a_list_inside() -> None:
    address = {"socket_address": {"address": "10.0.0.1", "port_value": 80}}
    inner = {"lb_endpoints": [{"endpoint": {"address": address}}]}
    found = decode(EDS, {"cluster_name": "c", "endpoints": [{"load_balancer_endpoints": inner}]}).value
    assert isinstance(found, ClusterLoadAssignment)
    assert found.localities[0].endpoints == (Endpoint("10.0.0.1:80"),)


# Filters.


LIMIT = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
CONCURRENCY = {
    "gradient_controller_config": {
        "concurrency_limit_params": {"concurrency_update_interval": "1s"},
        "min_rtt_calc_params": {"interval": "60s"},
    }
}


def discovered(name: str = "f", kind: str = FAULT, **fields: Any) -> dict[str, Any]:
    source = {"config_source": ADS, "type_urls": [f"type.googleapis.com/{kind}"], **fields.pop("config_discovery", {})}
    return {"name": name, "config_discovery": source, **fields}


def test_filter_of_a_client_that_is_discovered() -> None:
    abort = {"http_status": 503, "percentage": {"numerator": 100}}
    more = {"default_config": typed(FAULT, abort=abort), "apply_default_config_without_warming": True}
    found = client(discovered(config_discovery=more)).value
    assert isinstance(found, ClientListener)
    default = FilterConfig("f", FAULT, FaultPolicy(abort=FaultAbort(Fraction(100), 503)))
    assert found.discovered == (DiscoveredFilter("f", frozenset({FAULT}), default, skips_warming=True),)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("local_ratelimit.v3.LocalRateLimit", {"stat_prefix": "x"}),
        ("admission_control.v3.AdmissionControl", {"success_criteria": {}}),
        ("adaptive_concurrency.v3.AdaptiveConcurrency", CONCURRENCY),
    ],
)
def test_limits_may_be_discovered_and_know_their_place(kind: str, fields: dict[str, Any]) -> None:
    name = f"envoy.extensions.filters.http.{kind}"
    first = {"name": "first", "typed_config": typed(LIMIT, stat_prefix="x")}
    fault = {"name": "fault", "typed_config": typed(FAULT)}
    default = {"default_config": typed(name, **fields)}
    found = client(discovered("a", name), first, fault, discovered("b", name, config_discovery=default)).value
    assert isinstance(found, ClientListener)
    assert [(one.name, one.position, one.is_after_fault) for one in found.discovered] == [
        ("a", 0, False),
        ("b", 1, True),
    ]
    config = found.discovered[1].default
    assert config is not None
    assert config.type_name == name
    resource = decode(ECDS, {"name": "b", "typed_config": typed(name, **fields)})
    assert (resource.errors, resource.value) == ((), config)
    assert isinstance(config.config, LocalRateLimit | AdmissionControl | AdaptiveConcurrency)


def test_a_discovered_limit_that_is_broken_is_refused() -> None:
    bucket = {"max_tokens": 1, "fill_interval": "0.01s"}
    found = decode(ECDS, {"name": "f", "typed_config": typed(LIMIT, stat_prefix="x", token_bucket=bucket)})
    assert found.errors == ("typed_config.token_bucket.fill_interval: must be at least 0.05 s",)


def test_filter_of_a_server_that_is_discovered_knows_its_place() -> None:
    first = {"name": "first", "typed_config": typed(RBAC, rules={})}
    found = server(first, discovered("second", RBAC)).value
    assert isinstance(found, ServerListener)
    assert [(filter_.name, filter_.position) for filter_ in found.discovered] == [("second", 1)]


def test_limits_of_a_server_may_be_discovered_and_know_their_place() -> None:
    guard = {"name": "guard", "typed_config": typed(RBAC, rules={})}
    first = {"name": "first", "typed_config": typed(LIMIT, stat_prefix="x")}
    off = discovered("off", LIMIT, disabled=True)
    found = server(discovered("a", LIMIT), guard, first, discovered("b", LIMIT), off).value
    assert isinstance(found, ServerListener)
    expected = [("a", 0, False), ("b", 2, False), ("off", 2, True)]
    assert expected == [(one.name, one.position, one.is_disabled) for one in found.discovered]


@pytest.mark.parametrize(
    ("decoded", "error"),
    [
        (client(discovered(kind=RBAC)), f"type_urls: filter {RBAC} is not supported"),
        (server(discovered(kind=FAULT)), f"type_urls: filter {FAULT} is not supported"),
        (
            server(
                discovered(
                    kind=LIMIT,
                    config_discovery={
                        "default_config": typed(LIMIT, stat_prefix="x", local_rate_limit_per_downstream_connection=True)
                    },
                )
            ),
            "default_config.local_rate_limit_per_downstream_connection: is not supported in a server",
        ),
        (
            client(discovered(config_discovery={"config_source": {"path": "/x"}})),
            "config_source.path: is not supported (only ads and self)",
        ),
        (
            client(discovered(config_discovery={"apply_default_config_without_warming": True})),
            "apply_default_config_without_warming: needs a default_config",
        ),
        (
            client(discovered(config_discovery={"default_config": typed(RBAC)})),
            "default_config: is a envoy.extensions.filters.http.rbac.v3.RBAC, which is not among type_urls",
        ),
        (client(discovered("a"), discovered("b")), "is a second fault filter"),
    ],
)
def test_discovered_filters_that_cannot_be_honoured_are_refused(decoded: Decoded, error: str) -> None:
    assert any(error in found for found in decoded.errors), decoded.errors


def test_configuration_of_a_filter_as_a_resource() -> None:
    found = decode(ECDS, {"name": "f", "typed_config": typed(FAULT)})
    assert (found.name, found.value) == ("f", FilterConfig("f", FAULT, FaultPolicy()))
    rbac = decode(ECDS, {"name": "g", "typed_config": typed(RBAC, rules={})}).value
    assert isinstance(rbac, FilterConfig)
    assert isinstance(rbac.config, Rbac)
    other = decode(ECDS, {"name": "h", "typed_config": typed("envoy.extensions.filters.http.cors.v3.Cors")})
    assert other.errors == ("typed_config: filter envoy.extensions.filters.http.cors.v3.Cors is not supported",)


@pytest.mark.parametrize(
    ("odcds", "expected"),
    [(None, None), ({"source": ADS}, 5.0), ({"source": ADS, "timeout": "0.5s"}, 0.5)],
)
def test_clusters_on_demand(odcds: dict[str, Any] | None, expected: float | None) -> None:
    config = typed(ON_DEMAND) if odcds is None else typed(ON_DEMAND, odcds=odcds)
    found = client({"name": "on_demand", "typed_config": config}).value
    assert isinstance(found, ClientListener)
    assert found.on_demand_timeout_s == expected


@pytest.mark.parametrize(
    ("odcds", "path"),
    [
        ({"source": {"path": "/x"}}, "odcds.source.path"),
        ({"source": ADS, "resources_locator": "xdstp://a/b/*"}, "odcds.resources_locator"),
    ],
)
def test_clusters_on_demand_that_cannot_be_honoured_are_refused(odcds: dict[str, Any], path: str) -> None:
    found = client({"name": "on_demand", "typed_config": typed(ON_DEMAND, odcds=odcds)})
    assert [error.partition(": ")[0].rpartition("typed_config.")[2] for error in found.errors] == [path]
