"""What Envoy 1.40 refuses and takes beyond the rules of single fields, as found beside a real one
(tests/conformance/differential/rejection.py).
"""

from collections.abc import Callable
from typing import Any

import pytest

from meshlib.xds.decode import Decoded

T = "type.googleapis.com/envoy.extensions."
TOO_LONG, LONGEST = "9223372036s", "9223372035s"
HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
TLS = {
    "name": "tls",
    "typed_config": {"@type": f"{T}transport_sockets.tls.v3.UpstreamTlsContext", "common_tls_context": {}},
}
RAW = {"name": "raw", "typed_config": {"@type": f"{T}transport_sockets.raw_buffer.v3.RawBuffer"}}
ROUTER = {"name": "router", "typed_config": {"@type": f"{T}filters.http.router.v3.Router"}}
Decode = Callable[[str, dict[str, Any]], Decoded]


def address(host: str = "127.0.0.1", **fields: Any) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": 1, **fields}}


def group(**endpoint: Any) -> dict[str, Any]:
    return {"lb_endpoints": [{"endpoint": {"address": address(), **endpoint}}]}


def eds(**endpoint: Any) -> dict[str, Any]:
    return {"cluster_name": "c", "endpoints": [group(**endpoint)]}


def cluster(**fields: Any) -> dict[str, Any]:
    return {"name": "c", "type": "STATIC", "load_assignment": eds(), **fields}


def options(**fields: Any) -> dict[str, Any]:
    return {"typed_extension_protocol_options": {HTTP: {"@type": f"type.googleapis.com/{HTTP}", **fields}}}


def manager(**fields: Any) -> dict[str, Any]:
    made = {
        "@type": f"{T}filters.network.http_connection_manager.v3.HttpConnectionManager",
        "rds": {"route_config_name": "r", "config_source": {"ads": {}}},
        "http_filters": [ROUTER],
        **fields,
    }
    return {"name": "l", "api_listener": {"api_listener": made}}


def server(**fields: Any) -> dict[str, Any]:
    made = manager()["api_listener"]["api_listener"]
    return {"name": "l", "filter_chains": [{"filters": [{"name": "m", "typed_config": made}]}], **fields}


HTTP3 = {"auto_config": {"http3_protocol_options": {}}}
M, OPTIONS = "api_listener.api_listener", f'typed_extension_protocol_options["{HTTP}"]'
NO_REGEX, UPGRADES = (
    {"ignore_http_11_upgrade": [{"safe_regex": {"regex": "("}}]},
    "ignore_http_11_upgrade[0].safe_regex.regex",
)
REFUSED = [
    # Durations, also those that decide nothing here.
    ("CDS", cluster(connect_timeout=TOO_LONG), "connect_timeout"),
    ("CDS", cluster(cleanup_interval="-1s"), "cleanup_interval"),
    ("CDS", cluster(upstream_connection_options={}, dns_jitter=TOO_LONG), "dns_jitter"),
    (
        "CDS",
        cluster(dns_failure_refresh_rate={"base_interval": "1s", "max_interval": TOO_LONG}),
        "dns_failure_refresh_rate.max_interval",
    ),
    ("LDS", manager(stream_idle_timeout="-1s"), f"{M}.stream_idle_timeout"),
    (
        "LDS",
        manager(common_http_protocol_options={"max_connection_duration": "-1s"}),
        f"{M}.common_http_protocol_options.max_connection_duration",
    ),
    (
        "LDS",
        manager(rds={"route_config_name": "r", "config_source": {"ads": {}, "initial_fetch_timeout": TOO_LONG}}),
        f"{M}.rds.config_source.initial_fetch_timeout",
    ),
    # Rules of the protos that are rare.
    (
        "LDS",
        manager(scheme_header_transformation={"scheme_to_overwrite": "ftp"}),
        f"{M}.scheme_header_transformation.scheme_to_overwrite",
    ),
    (
        "CDS",
        cluster(**options(explicit_http_config={"http_protocol_options": {}}, upstream_http_protocol_options={"override_auto_sni_header": "a b"})),
        f"{OPTIONS}.upstream_http_protocol_options.override_auto_sni_header",
    ),
    # What belongs together.
    ("CDS", cluster(**options(auto_config={})), f"{OPTIONS}.auto_config"),
    (
        "CDS",
        cluster(
            **options(auto_config={}),
            transport_socket=TLS,
            transport_socket_matches=[{"name": "m", "transport_socket": RAW}],
        ),
        f"{OPTIONS}.auto_config",
    ),
    ("CDS", cluster(**options(**HTTP3), transport_socket=TLS), f"{OPTIONS}.auto_config.http3_protocol_options"),
    ("CDS", cluster(eds_cluster_config={"service_name": "x"}), "eds_cluster_config"),
    ("CDS", cluster(lb_subset_config={"locality_weight_aware": True}), "lb_subset_config.locality_weight_aware"),
    ("CDS", cluster(transport_socket_matches=[{"name": "m"}]), "transport_socket_matches[0].transport_socket"),
    (
        "CDS",
        cluster(type="LOGICAL_DNS", load_assignment={"cluster_name": "c", "endpoints": [group(), {}]}),
        "load_assignment",
    ),
    (
        "CDS",
        cluster(transport_socket={**TLS, "typed_config": {**TLS["typed_config"], "sni": "\0"}}),  # type: ignore[dict-item]
        "transport_socket.typed_config.sni",
    ),
    (
        "CDS",
        cluster(
            transport_socket={
                **TLS,
                "typed_config": {**TLS["typed_config"], "common_tls_context": {"alpn_protocols": ["h2", "a" * 255]}},  # type: ignore[dict-item]
            }
        ),
        "transport_socket.typed_config.common_tls_context.alpn_protocols[1]",
    ),
    # Options of connections have no effect here, and are compiled by Envoy.
    ("LDS", manager(http_protocol_options=NO_REGEX), f"{M}.http_protocol_options.{UPGRADES}"),
    ("CDS", cluster(http_protocol_options=NO_REGEX), f"http_protocol_options.{UPGRADES}"),
    (
        "CDS",
        cluster(**options(use_downstream_protocol_config={"http_protocol_options": NO_REGEX})),
        f"{OPTIONS}.use_downstream_protocol_config.http_protocol_options.{UPGRADES}",
    ),
    ("LDS", manager(codec_type="HTTP3"), f"{M}.codec_type"),
    (
        "LDS",
        manager(upgrade_configs=[{"upgrade_type": "websocket"}, {"upgrade_type": "WebSocket"}]),
        f"{M}.upgrade_configs",
    ),
    (
        "LDS",
        manager(common_http_protocol_options={"max_response_headers_kb": 9}),
        f"{M}.common_http_protocol_options.max_response_headers_kb",
    ),
    (
        "LDS",
        manager(internal_address_config={"cidr_ranges": [{"address_prefix": "::1"}, {"address_prefix": "a"}]}),
        f"{M}.internal_address_config.cidr_ranges[1].address_prefix",
    ),
    ("LDS", server(address=address(ipv4_compat=True)), "address.socket_address.ipv4_compat"),
    # Addresses.
    ("EDS", eds(address={"pipe": {"path": "/x", "mode": 0o1000}}), "endpoints[0].lb_endpoints[0].endpoint.address.pipe.mode"),
    ("EDS", eds(address={"pipe": {"path": "/\0"}}), "endpoints[0].lb_endpoints[0].endpoint.address.pipe.path"),
    (
        "EDS",
        eds(address={"pipe": {"path": "/x"}}, health_check_config={"port_value": 9}),
        "endpoints[0].lb_endpoints[0].endpoint.health_check_config.port_value",
    ),
    (
        "EDS",
        eds(additional_addresses=[{"address": address("x")}]),
        "endpoints[0].lb_endpoints[0].endpoint.additional_addresses[0].address.socket_address.address",
    ),
    (
        "EDS",
        {"cluster_name": "c", "endpoints": [{"load_balancer_endpoints": group(address=address("x"))}]},
        "endpoints[0].load_balancer_endpoints.lb_endpoints[0].endpoint.address.socket_address.address",
    ),
]  # fmt: skip
TAKEN = [
    ("CDS", cluster(connect_timeout=LONGEST)),
    ("CDS", cluster(**options(auto_config={}), transport_socket=TLS)),
    (
        "CDS",
        cluster(
            **options(auto_config={}),
            transport_socket=TLS,
            transport_socket_matches=[{"name": "m", "transport_socket": TLS}],
        ),
    ),
    ("CDS", cluster(type="STRICT_DNS", load_assignment=eds(additional_addresses=[{}]))),
    ("LDS", server(address=address("::ffff:127.0.0.1", ipv4_compat=True))),
    ("LDS", manager(scheme_header_transformation={"scheme_to_overwrite": "https"})),
]


@pytest.mark.parametrize(("kind", "resource", "path"), REFUSED, ids=[case[2] for case in REFUSED])
def test_refused(decode: Decode, kind: str, resource: dict[str, Any], path: str) -> None:
    assert [path] == [error.partition(": ")[0] for error in decode(kind, resource).errors]


@pytest.mark.parametrize(("kind", "resource"), TAKEN)
def test_taken(decode: Decode, kind: str, resource: dict[str, Any]) -> None:
    assert () == decode(kind, resource).errors
