"""Rich listeners of clients and servers."""

from typing import Any

from xds_corpus_parts import (
    ADDITION,
    ADS,
    FILTER,
    HEADERS,
    MUTATIONS,
    RUNTIME_SHARE,
    SHARE,
    TEXT,
    TLS,
    TYPE,
    Json,
    address,
    named,
    pem,
)
from xds_corpus_routes import BODY, DESCRIPTOR_ACTIONS


def client(*, filters: list[Json] | None = None, **fields: Any) -> Json:
    router = {"name": "router", "typed_config": {"@type": FILTER + "router.v3.Router"}}
    manager = {
        "@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "m",
        "http_filters": [*(filters or []), router],
        **({} if "scoped_routes" in fields else {"rds": {"config_source": ADS, "route_config_name": "r"}}),
        **fields,
    }
    return {"name": "l", "api_listener": {"api_listener": manager}}


def a_filter(kind: str, **fields: Any) -> Json:
    return {"name": kind, "typed_config": {"@type": FILTER + kind, **fields}}


COMPARISON: Json = {"comparison": {"op": "GE", "value": {"default_value": 500, "runtime_key": "k"}}}
REPLY_TESTS: list[Json] = [
    {"status_code_filter": COMPARISON},
    {"duration_filter": COMPARISON},
    {"header_filter": {"header": HEADERS[0]}},
    {"response_flag_filter": {"flags": ["NR"]}},
    {"grpc_status_filter": {"statuses": ["OK"], "exclude": True}},
    {"runtime_filter": {"runtime_key": "k", "percent_sampled": SHARE, "use_independent_randomness": True}},
    {"metadata_filter": {"matcher": {"filter": "f", "path": [{"key": "k"}], "value": {"present_match": True}}, "match_if_key_not_found": False}},
    {"log_type_filter": {"types": ["NotSet"], "exclude": True}},
    {"traceable_filter": {}},
    {"not_health_check_filter": {}},
]  # fmt: skip
REPLIES: Json = {
    "mappers": [
        {
            "filter": {"or_filter": {"filters": [{"and_filter": {"filters": REPLY_TESTS}}, REPLY_TESTS[0]]}},
            "status_code": 500,
            "body": {"inline_string": "x"},
            "body_format_override": BODY,
            "headers_to_add": [ADDITION],
        }
    ],
    "body_format": {"json_format": {"a": "%REQ(x)%"}, "omit_empty_values": True},
}
COOKIE: Json = {
    "name": "n",
    "typed_config": {
        "@type": TYPE + "envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState",
        "cookie": {"name": "c", "ttl": "5s", "path": "/", "attributes": [{"name": "Secure", "value": "1"}]},
    },
}
BUCKET: Json = {"max_tokens": 10, "tokens_per_fill": 5, "fill_interval": "1s"}
FAULT: Json = {
    "delay": {"fixed_delay": "1s", "percentage": SHARE},
    "abort": {"http_status": 503, "percentage": SHARE},
    "response_rate_limit": {"fixed_limit": {"limit_kbps": 1}, "percentage": SHARE},
    "headers": HEADERS,
}
FILTERS: list[Json] = [
    a_filter("fault.v3.HTTPFault", **FAULT),
    a_filter("stateful_session.v3.StatefulSession", session_state=COOKIE, strict=True),
    a_filter(
        "header_mutation.v3.HeaderMutation",
        mutations={
            "request_mutations": MUTATIONS,
            "response_mutations": MUTATIONS,
            "query_parameter_mutations": [
                {"append": {"record": {"key": "q", "value": "v"}, "action": "ADD_IF_ABSENT"}},
                {"append": {"entry": {"key": "q", "value": "dg=="}, "action": "ADD_IF_ABSENT"}},
                {"remove": "z"},
            ],
        },
        most_specific_header_mutations_wins=True,
    ),
    a_filter(
        "local_ratelimit.v3.LocalRateLimit",
        stat_prefix="s",
        status={"code": "Forbidden"},
        token_bucket=BUCKET,
        filter_enabled=RUNTIME_SHARE,
        filter_enforced=RUNTIME_SHARE,
        descriptors=[{"entries": [{"key": "k", "value": "v"}], "token_bucket": BUCKET}],
        rate_limits=[
            {"actions": DESCRIPTOR_ACTIONS, "hits_addend": {"number": 2}},
            {"actions": DESCRIPTOR_ACTIONS[:1], "hits_addend": {"format": "%REQ(x)%"}},
        ],
    ),
    a_filter(
        "admission_control.v3.AdmissionControl",
        enabled={"default_value": False, "runtime_key": "e"},
        success_criteria={
            "http_criteria": {"http_success_status": [{"start": 200, "end": 300}]},
            "grpc_criteria": {"grpc_success_status": [0]},
        },
        aggression={"default_value": 2.0, "runtime_key": "a"},
        sr_threshold={"default_value": {"value": 90.0}, "runtime_key": "s"},
        rps_threshold={"default_value": 5, "runtime_key": "r"},
    ),
    a_filter(
        "adaptive_concurrency.v3.AdaptiveConcurrency",
        gradient_controller_config={
            "sample_aggregate_percentile": {"value": 90},
            "concurrency_limit_params": {"max_concurrency_limit": 9, "concurrency_update_interval": "0.2s"},
            "min_rtt_calc_params": {
                "interval": "60s",
                "request_count": 9,
                "jitter": {"value": 5},
                "min_concurrency": 2,
                "buffer": {"value": 5},
            },
        },
        enabled={"default_value": False, "runtime_key": "e"},
    ),
    a_filter("on_demand.v3.OnDemand", odcds={"source": ADS}),
]
OTHER_FAULT: Json = {
    "delay": {"header_delay": {}, "percentage": SHARE},
    "abort": {"header_abort": {}, "percentage": SHARE},
    "response_rate_limit": {"header_limit": {}, "percentage": SHARE},
}
SCOPED: Json = {
    "name": "s",
    "scope_key_builder": {
        "fragments": [
            {"header_value_extractor": {"name": "x", "element_separator": ";", "element": {"separator": "=", "key": "k"}}},
            {"header_value_extractor": {"name": "y", "element_separator": ",", "index": 1}},
        ]
    },
}  # fmt: skip
SCOPE: Json = {"name": "s", "key": {"fragments": [{"string_key": "k"}]}, "route_configuration_name": "r"}
SESSION_BY_HEADER: Json = named("envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState", name="x-s")
SESSION_BY_ENVELOPE: Json = named(
    "envoy.extensions.http.stateful_session.envelope.v3.EnvelopeSessionState", header={"name": "x-s"}
)
CLIENTS: list[Json] = [
    client(
        filters=FILTERS,
        local_reply_config=REPLIES,
        common_http_protocol_options={"max_stream_duration": "5s"},
        stream_idle_timeout="300s",
        scheme_header_transformation={"scheme_to_overwrite": "https"},
    ),
    client(filters=[a_filter("fault.v3.HTTPFault", **OTHER_FAULT)]),
    client(filters=[a_filter("stateful_session.v3.StatefulSession", session_state=SESSION_BY_HEADER)]),
    client(filters=[a_filter("stateful_session.v3.StatefulSession", session_state=SESSION_BY_ENVELOPE)]),
    client(scoped_routes={**SCOPED, "scoped_rds": {"scoped_rds_config_source": ADS}}),
    client(
        scoped_routes={
            **SCOPED,
            "scoped_route_configurations_list": {"scoped_route_configurations": [SCOPE]},
            "rds_config_source": ADS,
        }
    ),
]
RULES: Json = {
    "action": "ALLOW",
    "policies": {
        "p": {
            "permissions": [
                {"and_rules": {"rules": [{"any": True}, {"header": HEADERS[0]}, {"destination_port": 80}]}},
                {"or_rules": {"rules": [{"url_path": {"path": TEXT}}, {"requested_server_name": TEXT}]}},
                {"destination_port_range": {"start": 1, "end": 9}},
                {"destination_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}},
                {"not_rule": {"any": True}},
            ],
            "principals": [
                {"and_ids": {"ids": [{"any": True}, {"header": HEADERS[0]}, {"url_path": {"path": TEXT}}]}},
                {"or_ids": {"ids": [{"authenticated": {"principal_name": TEXT}}]}},
                {"source_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}},
                {"direct_remote_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}},
                {"remote_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}},
                {"not_id": {"any": True}},
            ],
        }
    },
}


def server() -> Json:
    certificate, key = pem()
    manager = client(filters=[a_filter("rbac.v3.RBAC", rules=RULES, shadow_rules=RULES)])
    packed = manager["api_listener"]["api_listener"]
    common = {
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_2",
            "tls_maximum_protocol_version": "TLSv1_2",
            "cipher_suites": ["ECDHE-RSA-AES128-GCM-SHA256"],
            "ecdh_curves": ["X25519"],
        },
        "tls_certificates": [
            {"certificate_chain": {"inline_string": certificate}, "private_key": {"inline_string": key}}
        ],
        "validation_context": {
            "trusted_ca": {"inline_string": certificate},
            "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": TEXT}],
        },
        "alpn_protocols": ["h2"],
    }
    socket = {
        "name": "tls",
        "typed_config": {
            "@type": TLS + "DownstreamTlsContext",
            "common_tls_context": common,
            "require_client_certificate": True,
        },
    }
    chain = {
        "filter_chain_match": {"transport_protocol": "tls"},
        "filters": [{"name": "m", "typed_config": packed}],
        "transport_socket": socket,
    }
    inspector = TYPE + "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
    return {
        "name": "l",
        "address": address(port=8080),
        "filter_chains": [chain],
        "listener_filters": [{"name": "i", "typed_config": {"@type": inspector}}],
    }
