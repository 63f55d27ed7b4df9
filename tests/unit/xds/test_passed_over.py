"""What small messages say without effect is told: nothing is ignored in silence."""

from collections.abc import Callable
from typing import Any

import pytest

from meshlib.model.cluster import AggregateDiscovery, Cluster, DnsDiscovery, StaticDiscovery
from meshlib.protos import from_any, from_dict
from meshlib.xds.decode import Decoded, decode_resource
from meshlib.xds.resources import CDS

Decode = Callable[[str, dict[str, Any]], Decoded]
TYPE = "type.googleapis.com/"
HTTP = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
DNS = TYPE + "envoy.extensions.clusters.dns.v3.DnsCluster"
AGGREGATE = TYPE + "envoy.extensions.clusters.aggregate.v3.ClusterConfig"
CODEC = TYPE + "envoy.extensions.filters.http.upstream_codec.v3.UpstreamCodec"
TLS = TYPE + "envoy.extensions.transport_sockets.tls.v3."
MANAGER = TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = {"name": "router", "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"}}
ADS: dict[str, Any] = {"ads": {}}
OPTIONS = f'typed_extension_protocol_options["{HTTP}"]'


def cluster(**fields: Any) -> dict[str, Any]:
    return {"name": "c", "type": "EDS", "eds_cluster_config": {"eds_config": ADS}, **fields}


def options(**fields: Any) -> dict[str, Any]:
    return cluster(typed_extension_protocol_options={HTTP: {"@type": TYPE + HTTP, **fields}})


def socket(**common: Any) -> dict[str, Any]:
    context = {"@type": TLS + "UpstreamTlsContext", "common_tls_context": common}
    return cluster(transport_socket={"name": "tls", "typed_config": context})


def source(**fields: Any) -> dict[str, Any]:
    return {"name": "c", "type": "EDS", "eds_cluster_config": {"eds_config": {**ADS, **fields}}}


def server(chain: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    manager = {"@type": MANAGER, "rds": {"route_config_name": "r", "config_source": ADS}, "http_filters": [ROUTER]}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 80}}
    filters = [{"name": "m", "typed_config": manager}]
    return {"name": "l", "address": address, "filter_chains": [{"filters": filters, **(chain or {})}], **fields}


INSPECTOR = {
    "name": "i",
    "typed_config": {
        "@type": TYPE + "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        "enable_ja3_fingerprinting": True,
    },
}
TYPED = {"typed_filter_metadata": {"n": {"@type": TYPE + "google.protobuf.Empty"}}}
HOST = {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 80}}}


def hosts(*endpoints: dict[str, Any]) -> dict[str, Any]:
    return {"cluster_name": "c", "endpoints": [{"lb_endpoints": list(endpoints)}]}


@pytest.mark.parametrize(
    ("kind", "resource", "path"),
    [
        ("CDS", cluster(http2_protocol_options={"max_concurrent_streams": 9}), "http2_protocol_options.max_concurrent_streams"),
        (
            "CDS",
            options(explicit_http_config={"http_protocol_options": {"accept_http_10": True}}),
            f"{OPTIONS}.explicit_http_config.http_protocol_options.accept_http_10",
        ),
        (
            "CDS",
            options(use_downstream_protocol_config={"http2_protocol_options": {"allow_connect": True}}),
            f"{OPTIONS}.use_downstream_protocol_config.http2_protocol_options.allow_connect",
        ),
        ("CDS", source(initial_fetch_timeout="0s"), "eds_cluster_config.eds_config.initial_fetch_timeout"),
        ("CDS", source(resource_api_version="AUTO", authorities=[{"name": "a"}]), "eds_cluster_config.eds_config.authorities"),
        ("CDS", cluster(lrs_server={"self": {"transport_api_version": "V2"}}), "lrs_server.self.transport_api_version"),
        ("CDS", cluster(metadata=TYPED), "metadata.typed_filter_metadata"),
        ("CDS", cluster(circuit_breakers={"per_host_thresholds": [{"track_remaining": True}]}), "circuit_breakers.per_host_thresholds[0].track_remaining"),
        (
            "CDS",
            socket(tls_certificate_provider_instance={"instance_name": "i", "certificate_name": "n"}),
            "transport_socket.typed_config.common_tls_context.tls_certificate_provider_instance.certificate_name",
        ),
        ("EDS", hosts({"endpoint": HOST, "metadata": TYPED}), "endpoints[0].lb_endpoints[0].metadata.typed_filter_metadata"),
        ("EDS", hosts({"endpoint": {"address": {"pipe": {"path": "/a", "mode": 7}}}}), "endpoints[0].lb_endpoints[0].endpoint.address.pipe.mode"),
        ("LDS", server(listener_filters=[INSPECTOR]), "listener_filters[0].typed_config.enable_ja3_fingerprinting"),
    ],
)  # fmt: skip
def test_it_is_told(decode: Decode, kind: str, resource: dict[str, Any], path: str) -> None:
    found = decode(kind, resource)
    assert () == found.errors
    assert path in [note.partition(": ")[0] for note in found.unused]


def test_it_is_told_each_time_although_endpoints_are_remembered(decode: Decode) -> None:
    resource = hosts({"endpoint": HOST, "metadata": TYPED}, {"endpoint": HOST})
    first, second = decode("EDS", resource), decode("EDS", resource)
    assert ("endpoints[0].lb_endpoints[0].metadata.typed_filter_metadata",) == first.unused[:1]
    assert first == second


@pytest.mark.parametrize("versions", [{}, {"resource_api_version": "V3"}, {"resource_api_version": "AUTO"}])
def test_the_usual_source_needs_no_remark(decode: Decode, versions: dict[str, str]) -> None:
    assert () == decode("CDS", source(**versions)).unused


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("CDS", options(explicit_http_config={"http_protocol_options": {}}, http_filters=[{"name": "c", "typed_config": {"@type": CODEC}, "disabled": True}]), f"{OPTIONS}.http_filters[0].disabled"),
    ("CDS", options(explicit_http_config={"http_protocol_options": {}}, http_filters=[{"name": n, "typed_config": {"@type": CODEC}} for n in "ab"]), f"{OPTIONS}.http_filters[0]"),
    ("CDS", cluster(circuit_breakers={"per_host_thresholds": [{"max_connection_pools": 1}]}), "circuit_breakers.per_host_thresholds[0].max_connection_pools"),
    ("CDS", cluster(upstream_config={"name": "u", "typed_config": {"@type": TYPE + HTTP, "explicit_http_config": {"http_protocol_options": {}}}}), "upstream_config"),
    ("LDS", server({"filters": [{"name": "m", "config_discovery": {"config_source": ADS, "type_urls": [MANAGER]}}]}), "filter_chains[0].filters[0].config_discovery"),
    ("RDS", {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/", "dynamic_metadata": [{"filter": "f", "path": [{"key": "k"}], "value": {"or_match": {"value_matchers": [{"null_match": {}}, {"string_match": {"safe_regex": {"regex": "("}}}]}}}]}, "route": {"cluster": "c"}}]}]},
     "virtual_hosts[0].routes[0].match.dynamic_metadata[0].value.or_match.value_matchers[1].string_match.safe_regex.regex"),
]  # fmt: skip


# HTTP/3, for which Envoy wants a transport socket for QUIC.
REFUSED += [
    (
        "CDS",
        {
            **options(**{kind: {"http3_protocol_options": {}}}),
            "transport_socket": socket()["transport_socket"],
        },
        f"{OPTIONS}.{kind}.http3_protocol_options",
    )
    for kind in ("auto_config", "use_downstream_protocol_config", "explicit_http_config")
]


@pytest.mark.parametrize(("kind", "resource", "path"), REFUSED, ids=[case[2][-60:] for case in REFUSED])
def test_what_envoy_refuses_too(decode: Decode, kind: str, resource: dict[str, Any], path: str) -> None:
    assert [path] == [error.partition(": ")[0] for error in decode(kind, resource).errors]


@pytest.mark.parametrize("kind", ["http.v3.Http", "generic.v3.Generic"])
def test_the_usual_pools_of_connections(decode: Decode, kind: str) -> None:
    packed = {"@type": f"{TYPE}envoy.extensions.upstreams.http.{kind}ConnectionPoolProto"}
    found = decode("CDS", cluster(upstream_config={"name": "u", "typed_config": packed}))
    assert ((), ()) == (found.errors, found.unused)


@pytest.mark.parametrize(("size", "is_good"), [(79, False), (80, True), (81, False)])
def test_session_ticket_keys_have_80_bytes(decode: Decode, size: int, is_good: bool) -> None:
    context = {
        "@type": TLS + "DownstreamTlsContext",
        "common_tls_context": {"tls_certificate_provider_instance": {"instance_name": "i"}},
        "session_ticket_keys": {"keys": [{"inline_string": "k" * size}]},
    }
    found = decode("LDS", server({"transport_socket": {"name": "tls", "typed_config": context}}))
    place = "filter_chains[0].transport_socket.typed_config.session_ticket_keys"
    assert is_good is (place in found.unused and not found.errors)
    assert is_good is not any(error.startswith(f"{place}.keys[0]: ") for error in found.errors)


# Fields of later versions.

UNKNOWN = b"\xba\x3e\x01x"
"""Field 999, a text."""


def with_unknown(message: Any) -> None:
    message.MergeFromString(UNKNOWN)


def later_budget(cluster: Any) -> None:
    with_unknown(cluster.circuit_breakers.thresholds.add().retry_budget)


def later_options(cluster: Any) -> None:
    packed = cluster.typed_extension_protocol_options[HTTP]
    inner = from_any(packed)
    with_unknown(inner.explicit_http_config.http_protocol_options)
    packed.value = inner.SerializeToString()


def later_names(cluster: Any) -> None:
    made = cluster.transport_socket_matches.add(name="m")
    made.transport_socket.name = "raw_buffer"
    with_unknown(made.transport_socket)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (later_budget, "circuit_breakers.thresholds[0].retry_budget.<field 999>"),
        (later_options, f"{OPTIONS}.explicit_http_config.http_protocol_options.<field 999>"),
        (later_names, "transport_socket_matches[0].transport_socket.<field 999>"),
        (with_unknown, "<field 999>"),
    ],
)
def test_fields_of_later_versions_are_told(change: Callable[[Any], None], path: str) -> None:
    message = from_dict(CDS.rpartition("/")[2], options(explicit_http_config={"http_protocol_options": {}}))
    assert () == decode_resource(CDS, message.SerializeToString()).unused
    change(message)
    found = decode_resource(CDS, message.SerializeToString())
    assert ((), (f"{path}: is not known to this version",)) == (found.errors, found.unused)


# Types of clusters by name, as Envoy 1.40 was found to take them.


def by_name(name: str, values: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    extension: dict[str, Any] = {"name": name}
    if values is not None:
        extension["typed_config"] = {"@type": TYPE + "google.protobuf.Struct", "value": values}
    return {"name": "c", "cluster_type": extension, **fields}


def accepted(found: Decoded) -> Cluster:
    assert isinstance(found.value, Cluster), found.errors
    return found.value


def test_a_dns_cluster_by_name(decode: Decode) -> None:
    named = {"endpoint": {"address": {"socket_address": {"address": "a.example", "port_value": 80}}}}
    assignment = {"load_assignment": hosts(named)}
    plain = accepted(decode("CDS", by_name("envoy.cluster.dns", **assignment))).discovery
    assert isinstance(plain, DnsDiscovery)
    assert (plain.logical, plain.pace.refresh_s) == (False, 5.0)
    values = {"all_addresses_in_single_endpoint": True, "dns_refresh_rate": "9s", "nonsense": 1}
    found = decode("CDS", by_name("envoy.cluster.dns", values, **assignment))
    discovery = accepted(found).discovery
    assert isinstance(discovery, DnsDiscovery)
    assert (discovery.logical, discovery.pace.refresh_s) == (True, 9.0)
    assert ("cluster_type.typed_config.nonsense: is not known to this version",) == found.unused


def test_an_aggregate_by_name(decode: Decode) -> None:
    found = accepted(decode("CDS", by_name("envoy.clusters.aggregate", {"clusters": ["a"]})))
    assert AggregateDiscovery(("a",)) == found.discovery
    (error,) = decode("CDS", by_name("envoy.clusters.aggregate")).errors
    assert error.startswith("cluster_type.typed_config.clusters: needs at least 1")


def test_the_older_names_need_no_configuration(decode: Decode) -> None:
    found = decode("CDS", by_name("envoy.cluster.static", {"a": "b"}))
    assert isinstance(accepted(found).discovery, StaticDiscovery)
    assert ("cluster_type.typed_config: the name says all",) == found.unused


@pytest.mark.parametrize(
    ("extension", "error"),
    [
        ({"name": "envoy.clusters.dns"}, "cluster_type: envoy.clusters.dns is not supported"),
        (
            {"name": "envoy.cluster.dns", "typed_config": {"@type": TYPE + "google.protobuf.Struct", "value": {"dns_jitter": []}}},
            "cluster_type.typed_config: is not a envoy.extensions.clusters.dns.v3.DnsCluster",
        ),
        (
            {"name": "x", "typed_config": {"@type": TYPE + "xds.type.v3.TypedStruct", "type_url": AGGREGATE, "value": {"clusters": ["a"]}}},
            "cluster_type.typed_config: must be the message itself",
        ),
    ],
)  # fmt: skip
def test_types_of_clusters_that_are_none(decode: Decode, extension: dict[str, Any], error: str) -> None:
    (found,) = decode("CDS", {"name": "c", "cluster_type": extension}).errors
    assert found.startswith(error)
