"""Rich clusters, and assignments of endpoints."""

from typing import Any

from xds_corpus_parts import ADS, FILTER, HTTP, SHARE, TEXT, TLS, TYPE, Json, address, listed, named, pem
from xds_corpus_routes import HASHES, RETRY

HOST: Json = {
    "endpoint": {
        "address": address(),
        "hostname": "h",
        "additional_addresses": [{"address": address("::1")}],
        "health_check_config": {"port_value": 9, "hostname": "c", "address": address("127.0.0.2")},
    },
    "metadata": {"filter_metadata": {"envoy.lb": {"a": "b"}}},
}
PIPE: Json = {"endpoint": {"address": {"pipe": {"path": "/a"}}}}
ASSIGNMENT: Json = {
    "cluster_name": "c",
    "endpoints": [
        {
            "locality": {"region": "r", "zone": "z", "sub_zone": "s"},
            "lb_endpoints": [HOST, PIPE],
        }
    ],
    "policy": {
        "drop_overloads": [{"category": "c", "drop_percentage": SHARE}],
        "overprovisioning_factor": 200,
        "weighted_priority_health": True,
    },
}


def cluster(kind: str = "EDS", **fields: Any) -> Json:
    own: Json = {"eds_cluster_config": {"eds_config": ADS, "service_name": "s"}} if kind == "EDS" else {}
    return {"name": "c", "type": kind, **own, **fields}


def check(**fields: Any) -> Json:
    base = {"timeout": "1s", "interval": "5s", "unhealthy_threshold": 2, "healthy_threshold": 3}
    return cluster(health_checks=[base | fields], http2_protocol_options={})


SLOW: Json = {
    "slow_start_window": "60s",
    "aggression": {"default_value": 2.0, "runtime_key": "a"},
    "min_weight_percent": {"value": 20},
}
ZONES: Json = {"routing_enabled": {"value": 50}, "min_cluster_size": 3, "fail_traffic_on_panic": True}
LOCALITIES: Json = {"zone_aware_lb_config": {**ZONES, "force_local_zone": {"min_size": 2}}}
HASHING: Json = {"use_hostname_for_hashing": True, "hash_balance_factor": 150, "hash_policy": HASHES[:1]}
SUBSETS: Json = {
    "fallback_policy": "DEFAULT_SUBSET",
    "default_subset": {"a": "b"},
    "subset_selectors": [
        {"keys": ["a", "b"], "fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": ["a"]},
        {"keys": ["c"], "single_host_per_subset": True},
    ],
    "scale_locality_weight": True,
    "panic_mode_any": True,
    "list_as_any": True,
    "metadata_fallback_policy": "FALLBACK_LIST",
}
BIAS: Json = {"default_value": 2.0, "runtime_key": "b"}
PREFIX_TLS = f"{TLS}UpstreamTlsContext"


def client_tls(**fields: Any) -> Json:
    return {"name": "tls", "typed_config": {"@type": PREFIX_TLS, "common_tls_context": fields, "sni": "a"}}


CHECK_HEADERS: list[Json] = [
    {"header": {"key": "user-agent", "value": "1"}},
    {"header": {"key": "x-a"}, "keep_empty_value": True},
]


def clusters() -> list[Json]:
    certificate, key = pem()
    secret = {"name": "s", "sds_config": ADS}
    inline = {"trusted_ca": {"inline_string": certificate}}
    spiffe = {
        "custom_validator_config": named(
            "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
            trust_domains=[{"name": "a.example", "trust_bundle": {"inline_string": certificate}}],
        )
    }
    thresholds = {
        "priority": "HIGH",
        "retry_budget": {"budget_percent": {"value": 50}, "min_retry_concurrency": 5},
    }
    return [
        cluster(
            circuit_breakers={"thresholds": [thresholds], "per_host_thresholds": [{"max_connections": 3}]},
            common_lb_config={
                "zone_aware_lb_config": ZONES,
                "override_host_status": {"statuses": ["HEALTHY", "DEGRADED"]},
            },
            lb_subset_config=SUBSETS,
            lb_policy="LEAST_REQUEST",
            least_request_lb_config={"choice_count": 3, "active_request_bias": BIAS, "slow_start_config": SLOW},
            upstream_connection_options={
                "happy_eyeballs_config": {"first_address_family_version": "V6", "first_address_family_count": 2},
            },
            transport_socket_matches=[
                {"name": "t", "match": {"a": "b"}, "transport_socket": {"name": "envoy.transport_sockets.raw_buffer"}}
            ],
            lrs_server={"self": {}},
            http2_protocol_options={"connection_keepalive": {"interval": "9s", "timeout": "1s"}},
            common_http_protocol_options={"max_stream_duration": "5s", "idle_timeout": "9s"},
            metadata={"filter_metadata": {"n": {"a": "b"}}},
        ),
        cluster(lb_policy="RING_HASH", ring_hash_lb_config={"minimum_ring_size": 10}),
        cluster(lb_policy="MAGLEV", maglev_lb_config={"table_size": 11}),
        cluster("STRICT_DNS", common_lb_config={"consistent_hashing_lb_config": {"use_hostname_for_hashing": True, "hash_balance_factor": 150}}, lb_policy="RING_HASH"),
        cluster(round_robin_lb_config={"slow_start_config": SLOW}),
        cluster(common_lb_config={"locality_weighted_lb_config": {}}),
        cluster(load_balancing_policy=listed("round_robin.v3.RoundRobin", slow_start_config=SLOW, locality_lb_config=LOCALITIES)),
        cluster(load_balancing_policy=listed("round_robin.v3.RoundRobin", locality_lb_config={"zone_aware_lb_config": {"force_locality_direct_routing": True}})),
        cluster(load_balancing_policy=listed("random.v3.Random", locality_lb_config={"locality_weighted_lb_config": {}})),
        cluster(load_balancing_policy=listed("least_request.v3.LeastRequest", choice_count=3, active_request_bias=BIAS)),
        cluster(load_balancing_policy=listed("ring_hash.v3.RingHash", consistent_hashing_lb_config=HASHING, locality_weighted_lb_config={})),
        cluster(load_balancing_policy=listed("override_host.v3.OverrideHost", override_host_sources=[{"header": "x-h"}], fallback_policy=listed("random.v3.Random"))),
        cluster(load_balancing_policy=listed("wrr_locality.v3.WrrLocality", endpoint_picking_policy=listed("random.v3.Random"))),
        cluster(load_balancing_policy=listed("subset.v3.Subset", **SUBSETS, allow_redundant_keys=True, subset_lb_policy=listed("random.v3.Random"))),
        cluster("STRICT_DNS", load_assignment=ASSIGNMENT, dns_failure_refresh_rate={"base_interval": "2s", "max_interval": "9s"}),
        cluster("STATIC", load_assignment=ASSIGNMENT),
        cluster("STRICT_DNS", dns_resolution_config={"resolvers": [address()], "dns_resolver_options": {"use_tcp_for_dns_lookups": True}}),
        {"name": "c", "cluster_type": named("envoy.extensions.clusters.dns.v3.DnsCluster", dns_failure_refresh_rate={"base_interval": "2s", "max_interval": "9s"})},
        {"name": "c", "cluster_type": named("envoy.extensions.clusters.aggregate.v3.ClusterConfig", clusters=["a"])},
        check(http_health_check={
            "path": "/", "send": {"text": "00"}, "receive": [{"text": "01"}], "method": "POST",
            "expected_statuses": [{"start": 200, "end": 300}], "service_name_matcher": TEXT,
            "request_headers_to_add": CHECK_HEADERS, "codec_client_type": "HTTP2",
        }, tls_options={"alpn_protocols": ["h2"]}),
        check(tcp_health_check={"send": {"text": "00"}, "receive": [{"binary": "AA=="}]}),
        check(grpc_health_check={"service_name": "s", "authority": "a", "initial_metadata": CHECK_HEADERS}),
        cluster(
            typed_extension_protocol_options={HTTP: {
                "@type": TYPE + HTTP,
                "explicit_http_config": {"http2_protocol_options": {"max_concurrent_streams": 9}},
                "upstream_http_protocol_options": {"auto_sni": True, "auto_san_validation": True, "override_auto_sni_header": "x-s"},
                "http_filters": [{"name": "codec", "typed_config": {"@type": FILTER + "upstream_codec.v3.UpstreamCodec"}}],
                "retry_policy": RETRY,
            }},
            transport_socket=client_tls(
                tls_certificates=[{"certificate_chain": {"inline_string": certificate}, "private_key": {"inline_string": key}}],
                validation_context=inline, tls_params={"tls_minimum_protocol_version": "TLSv1_3"},
            ),
        ),
        cluster(typed_extension_protocol_options={HTTP: {"@type": TYPE + HTTP, "explicit_http_config": {"http_protocol_options": {"accept_http_10": True}}}}),
        cluster(typed_extension_protocol_options={HTTP: {"@type": TYPE + HTTP, "use_downstream_protocol_config": {"http2_protocol_options": {}}}}),
        cluster(typed_extension_protocol_options={HTTP: {"@type": TYPE + HTTP, "auto_config": {}}}, transport_socket=client_tls(validation_context=inline)),
        cluster(transport_socket=client_tls(
            tls_certificate_sds_secret_configs=[secret],
            combined_validation_context={"default_validation_context": {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": TEXT}]}, "validation_context_sds_secret_config": secret},
        )),
        cluster(transport_socket=client_tls(
            tls_certificate_provider_instance={"instance_name": "i", "certificate_name": "n"},
            validation_context={"ca_certificate_provider_instance": {"instance_name": "i", "certificate_name": "n"}},
        )),
        cluster(transport_socket=client_tls(
            tls_certificate_certificate_provider_instance={"instance_name": "i", "certificate_name": "n"},
            validation_context_certificate_provider_instance={"instance_name": "i", "certificate_name": "n"},
        )),
        cluster(transport_socket=client_tls(combined_validation_context={"default_validation_context": {}, "validation_context_certificate_provider_instance": {"instance_name": "i"}})),
        cluster(transport_socket=client_tls(validation_context=spiffe)),
        cluster(transport_socket=client_tls(validation_context={"system_root_certs": {}, "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": TEXT}]})),
    ]  # fmt: skip
