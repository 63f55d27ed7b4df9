"""Resources for the profile of gRPC: each rule of its clients from both sides, what they refuse and the nearest that they take."""

from collections.abc import Iterator
from typing import Any

from differential.grpc_resources import (
    ADS,
    ANYTHING,
    FAULT,
    FILTER_CONFIG,
    HCM,
    HTTP,
    IDENTITY,
    LIMIT,
    RBAC_TYPE,
    ROOTS,
    ROUTER,
    SECRET,
    STRUCT,
    TCP,
    Case,
    T,
    action,
    aggregate,
    assignment,
    cluster,
    cookie,
    dns,
    drops,
    endpoint,
    filters,
    group,
    header,
    hostname,
    listed,
    listener,
    match,
    more_addresses,
    nested,
    no_action,
    optional,
    override,
    peers,
    policies,
    policy,
    rbac,
    retry,
    routes,
    server,
    session,
    tls,
    weighted,
)
from meshlib.xds.resources import CDS, EDS, LDS, RDS

__all__ = ["all_cases"]


def all_cases() -> tuple[Case, ...]:
    tables = ((LDS, _LISTENERS), (RDS, _ROUTES), (CDS, _CLUSTERS), (EDS, _ENDPOINTS))
    return tuple(_named(tables))


def _named(tables: Any) -> Iterator[Case]:
    for kind, table in tables:
        short = kind.rpartition(".")[2].lower()
        for name, data in table.items():
            yield Case(f"{short}-{name}", kind, data)


DISCOVERY = {"config_source": ADS, "type_urls": [f"{HTTP}fault.v3.HTTPFault"]}
SCOPES = {
    "name": "s",
    "scope_key_builder": {"fragments": [{"header_value_extractor": {"name": "h", "index": 0}}]},
    "rds_config_source": ADS,
    "scoped_rds": {"scoped_rds_config_source": ADS},
}
PATH = {"path_config_source": {"path": "/x"}}
OTHER = {"@type": f"{T}envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}

_LISTENERS = {
    "rds": listener(rds={"route_config_name": "listener-rds", "config_source": ADS}),
    "rds-self": listener(rds={"route_config_name": "listener-rds-self", "config_source": {"self": {}}}),
    "rds-path": listener(rds={"route_config_name": "r", "config_source": PATH}),
    "rds-without-source": listener(rds={"route_config_name": "r"}),
    "inline": listener(route_config=routes()),
    "inline-broken": listener(route_config=routes(domains=[])),
    "no-routes": listener(),
    "scoped": listener(scoped_routes=SCOPES),
    "empty": {},
    "api-and-address": {**filters(ROUTER), "address": TCP},
    "trusted-hops": listener(route_config=routes(), xff_num_trusted_hops=1),
    "ip-detection": listener(
        route_config=routes(), original_ip_detection_extensions=[{"name": "x", "typed_config": OTHER}]
    ),
    "other-network-filter": {"api_listener": {"api_listener": OTHER}},
    "stream-duration": listener(
        route_config=routes(), common_http_protocol_options={"max_stream_duration": "3s", "idle_timeout": "1s"}
    ),
    "filters-none": filters(),
    "filters-without-name": filters({**FAULT, "name": ""}, ROUTER),
    "filters-same-name": filters(FAULT, FAULT, ROUTER),
    "filters-unknown": filters({"name": "a", "typed_config": LIMIT}, ROUTER),
    "filters-unknown-optional": filters(optional({"name": "a", "typed_config": LIMIT}), ROUTER),
    "filters-without-config": filters({"name": "a"}, ROUTER),
    "filters-without-router": filters(FAULT),
    "filters-two-routers": filters(ROUTER, {**ROUTER, "name": "again"}),
    "filters-router-first": filters(ROUTER, FAULT),
    "filters-fault": filters(FAULT, ROUTER),
    "filters-struct": filters(
        {"name": "f", "typed_config": {"@type": STRUCT, "type_url": f"{HTTP}fault.v3.HTTPFault", "value": {}}}, ROUTER
    ),
    "filters-disabled": filters({**FAULT, "disabled": True}, ROUTER),
    "filters-of-servers": filters({"name": "r", "typed_config": {"@type": RBAC_TYPE}}, ROUTER),
    "filters-of-servers-optional": filters(optional({"name": "r", "typed_config": {"@type": RBAC_TYPE}}), ROUTER),
    "filters-discovery": filters({"name": "f", "config_discovery": DISCOVERY}, ROUTER),
    "session-off": session(),
    "session-other": session(session_state={"name": "x", "typed_config": OTHER}),
    "session-cookie": cookie(name="c", ttl="3s", path="/a"),
    "session-cookie-without-name": cookie(path="/a"),
    "session-cookie-negative-ttl": cookie(name="c", ttl="-1s"),
    "server": server(),
    "server-no-chain": {"address": TCP},
    "server-default-chain": {"address": TCP, "default_filter_chain": server()["filter_chains"][0]},
    "server-pipe": server(address={"pipe": {"path": "/x"}}),
    "server-original-dst": server(use_original_dst=True),
    "server-empty-chain": {"address": TCP, "filter_chains": [{}]},
    "server-two-filters": {"address": TCP, "filter_chains": [{"filters": server()["filter_chains"][0]["filters"] * 2}]},
    "server-same-match": {"address": TCP, "filter_chains": server()["filter_chains"] * 2},
    "server-bad-range": server(
        filter_chains=[
            {**server()["filter_chains"][0], "filter_chain_match": {"prefix_ranges": [{"address_prefix": "nowhere"}]}}
        ]
    ),
    "server-fault": server(FAULT),
    "server-trusted-hops": {
        "address": TCP,
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "h",
                        "typed_config": {
                            "@type": HCM,
                            "route_config": {"name": "r"},
                            "http_filters": [ROUTER],
                            "xff_num_trusted_hops": 1,
                        },
                    }
                ]
            }
        ],
    },
    "server-tls": server(socket={"common_tls_context": IDENTITY}),
    "server-tls-without-identity": server(socket={"common_tls_context": {}}),
    "server-tls-unknown-identity": server(
        socket={"common_tls_context": {"tls_certificate_provider_instance": {"instance_name": "nobody"}}}
    ),
    "server-tls-secret": server(socket={"common_tls_context": {"tls_certificate_sds_secret_configs": [SECRET]}}),
    "server-tls-requires": server(
        socket={"common_tls_context": {**IDENTITY, "validation_context": ROOTS}, "require_client_certificate": True}
    ),
    "server-tls-requires-without-roots": server(
        socket={"common_tls_context": IDENTITY, "require_client_certificate": True}
    ),
    "server-tls-names": server(
        socket={
            "common_tls_context": {
                **IDENTITY,
                "validation_context": {**ROOTS, "match_subject_alt_names": [{"exact": "a"}]},
            }
        }
    ),
    "server-tls-sni": server(socket={"common_tls_context": IDENTITY, "require_sni": True}),
    "server-tls-ocsp": server(socket={"common_tls_context": IDENTITY, "ocsp_staple_policy": "MUST_STAPLE"}),
    "rbac-any": rbac(),
    "rbac-port-range": rbac({"destination_port_range": {"start": 1, "end": 9}}),
    "rbac-port": rbac({"destination_port": 80}),
    "rbac-path": rbac({"url_path": {"path": {"prefix": "/a"}}}),
    "rbac-header": rbac({"header": {"name": "h", "present_match": True}}),
    "rbac-header-grpc": rbac({"header": {"name": "grpc-x", "present_match": True}}),
    "rbac-header-scheme": rbac({"header": {"name": ":scheme", "exact_match": "http"}}),
    "rbac-header-broken": rbac({"header": {"name": "h", "safe_regex_match": {"regex": "("}}}),
    "rbac-metadata": rbac({"metadata": {"filter": "f", "path": [{"key": "k"}], "value": {"present_match": True}}}),
    "rbac-server-name": rbac({"requested_server_name": {"exact": "x"}}),
    "rbac-principal": rbac(principal={"authenticated": {"principal_name": {"exact": "x"}}}),
    "rbac-remote-ip": rbac(principal={"remote_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}}),
    "rbac-bad-ip": rbac(principal={"remote_ip": {"address_prefix": "x", "prefix_len": 8}}),
    "rbac-no-permission": server(
        {
            "name": "rbac",
            "typed_config": {"@type": RBAC_TYPE, "rules": {"policies": {"p": {"principals": ANYTHING}}}},
        }
    ),
    "rbac-nested": rbac(principal=nested(15)),
    "rbac-nested-deep": rbac(principal=nested(20)),
    "rbac-condition": rbac(condition={"const_expr": {"bool_value": True}}),
}

_ROUTES = {
    "no-hosts": {},
    "no-routes": routes(routes=[]),
    "domains-none": routes(domains=[]),
    "domains-empty": routes(domains=[""]),
    "domains-star-inside": routes(domains=["a*b"]),
    "domains-star-inside-and-first": routes(domains=["*a*b"]),
    "domains-suffix": routes(domains=["*.a", "a.*", "a", "*"]),
    "domains-only-stars": routes(domains=["**"]),
    "host-without-name": routes(name=""),
    "no-match": {"virtual_hosts": [{"name": "vh", "domains": ["*"], "routes": [{"route": {"cluster": "c"}}]}]},
    "no-path": match(headers=[{"name": "h", "present_match": True}]),
    "prefix-empty": match(prefix=""),
    "prefix-without-slash": match(prefix="a"),
    "prefix-three-slashes": match(prefix="/a/b/c"),
    "prefix-two-slashes": match(prefix="//a"),
    "path": match(path="/a/b"),
    "path-empty": match(path=""),
    "path-one-part": match(path="/a"),
    "path-no-service": match(path="//b"),
    "regex": match(safe_regex={"regex": "/a/.*"}),
    "regex-broken": match(safe_regex={"regex": "("}),
    "regex-empty": match(safe_regex={"regex": ""}),
    "case-insensitive": match(prefix="/a", case_sensitive=False),
    "connect": match(connect_matcher={}),
    "separated-prefix": match(path_separated_prefix="/a"),
    "path-policy": match(
        path_match_policy={
            "name": "t",
            "typed_config": {
                "@type": f"{T}envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
                "path_template": "/a/*",
            },
        }
    ),
    "fraction": match(prefix="/", runtime_fraction={"default_value": {"numerator": 5, "denominator": "MILLION"}}),
    "fraction-without-default": match(prefix="/", runtime_fraction={"runtime_key": "k"}),
    "query": match(prefix="/", query_parameters=[{"name": "q", "present_match": True}]),
    "query-and-broken-header": match(
        prefix="/", query_parameters=[{"name": "q", "present_match": True}], headers=[{"name": "h"}]
    ),
    "header-exact": header(exact_match="x"),
    "header-range": header(range_match={"start": 1, "end": 5}),
    "header-range-backwards": header(range_match={"start": 5, "end": 1}),
    "header-range-empty": header(range_match={"start": 5, "end": 5}),
    "header-without-test": header(),
    "header-regex-broken": header(safe_regex_match={"regex": "("}),
    "header-prefix-empty": header(prefix_match=""),
    "header-suffix-empty": header(suffix_match=""),
    "header-contains-empty": header(contains_match=""),
    "header-absent": header(present_match=False),
    "header-inverted": header(exact_match="x", invert_match=True),
    "header-string": header(string_match={"exact": "x", "ignore_case": True}),
    "header-string-regex-ignore-case": header(string_match={"safe_regex": {"regex": "x"}, "ignore_case": True}),
    "header-string-prefix-empty": header(string_match={"prefix": ""}),
    "header-string-nothing": header(string_match={}),
    "header-without-name": match(prefix="/", headers=[{"present_match": True}]),
    "cluster-empty": action(cluster=""),
    "no-cluster": routes({"route": {}}),
    "cluster-header": action(cluster_header="h"),
    "weights": weighted({"name": "a", "weight": 1}, {"name": "b", "weight": 3}),
    "weights-none": weighted(),
    "weights-without-name": weighted({"weight": 1}),
    "weights-by-header": weighted({"cluster_header": "h", "weight": 1}),
    "weights-unset": weighted({"name": "a"}),
    "weights-one-unset": weighted({"name": "a"}, {"name": "b", "weight": 1}),
    "weights-zero": weighted({"name": "a", "weight": 0}),
    "weights-one-zero": weighted({"name": "a", "weight": 0}, {"name": "b", "weight": 1}),
    "weights-too-many": weighted({"name": "a", "weight": 4294967295}, {"name": "b", "weight": 1}),
    "weights-total": weighted({"name": "a", "weight": 1}, total_weight=7),
    "weights-override": weighted({"name": "a", "weight": 1, "typed_per_filter_config": {"x": LIMIT}}),
    "plugin-unknown": action(cluster_specifier_plugin="nobody"),
    "plugin-of-unknown-type": {
        **action(cluster_specifier_plugin="x"),
        "cluster_specifier_plugins": [{"extension": {"name": "x", "typed_config": OTHER}}],
    },
    "plugin-of-unknown-type-optional": {
        **action(cluster_specifier_plugin="x"),
        "cluster_specifier_plugins": [{"extension": {"name": "x", "typed_config": OTHER}, "is_optional": True}],
    },
    "redirect": no_action(redirect={"host_redirect": "x"}),
    "direct-response": no_action(direct_response={"status": 503}),
    "non-forwarding": no_action(non_forwarding_action={}),
    "no-action": no_action(),
    "hash-header": action(hash_policy=[{"header": {"header_name": "h"}}]),
    "hash-header-without-name": action(hash_policy=[{"header": {}}]),
    "hash-regex-broken": action(
        hash_policy=[
            {"header": {"header_name": "h", "regex_rewrite": {"pattern": {"regex": "("}, "substitution": "x"}}}
        ]
    ),
    "hash-cookie": action(hash_policy=[{"cookie": {"name": "c"}}]),
    "hash-channel": action(hash_policy=[{"filter_state": {"key": "io.grpc.channel_id"}}]),
    "hash-nothing": action(hash_policy=[{"terminal": True}]),
    "retry": retry(num_retries=3, retry_back_off={"base_interval": "1s", "max_interval": "2s"}),
    "retry-none": retry(num_retries=0),
    "retry-unknown-words": retry(retry_on="5xx,cancelled"),
    "retry-without-base": retry(retry_back_off={"max_interval": "2s"}),
    "retry-zero-base": retry(retry_back_off={"base_interval": "0s"}),
    "retry-max-below-base": retry(retry_back_off={"base_interval": "2s", "max_interval": "1s"}),
    "retry-of-host": routes(retry_policy={"num_retries": 0}),
    "stream-duration": action(max_stream_duration={"max_stream_duration": "1s", "grpc_timeout_header_max": "0s"}),
    "stream-duration-negative": action(max_stream_duration={"max_stream_duration": "-1s"}),
    "timeouts": action(timeout="3s", idle_timeout="2s"),
    "override-unknown": override(LIMIT),
    "override-unknown-optional": override({"@type": FILTER_CONFIG, "is_optional": True, "config": LIMIT}),
    "override-wrapped": override({"@type": FILTER_CONFIG, "config": {"@type": f"{HTTP}fault.v3.HTTPFault"}}),
    "override-disabled": override({"@type": FILTER_CONFIG, "disabled": True}),
    "override-other-side": override({"@type": f"{HTTP}rbac.v3.RBACPerRoute"}),
    "override-of-host": routes(typed_per_filter_config={"a": LIMIT}),
    "auto-host-rewrite": action(auto_host_rewrite=True),
    "prefix-rewrite": action(prefix_rewrite="/x"),
    "mirror": action(request_mirror_policies=[{"cluster": "m"}]),
}

_MAX = 8388608
_CLUSTERS = {
    "eds": cluster(),
    "eds-self": cluster(eds_cluster_config={"eds_config": {"self": {}}}),
    "eds-path": cluster(eds_cluster_config={"eds_config": PATH}),
    "eds-without-source": cluster(eds_cluster_config={}),
    "eds-without-config": {"type": "EDS"},
    "eds-service": cluster(eds_cluster_config={"eds_config": ADS, "service_name": "cluster-eds-service"}),
    "static": {"type": "STATIC"},
    "strict-dns": {**dns(hostname("localhost", port_value=1)), "type": "STRICT_DNS"},
    "original-dst": {"type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"},
    "dns": dns(hostname("localhost", port_value=1)),
    "dns-without-assignment": {"type": "LOGICAL_DNS"},
    "dns-two-localities": dns(hostname("localhost", port_value=1), group("b")),
    "dns-two-endpoints": dns({"lb_endpoints": hostname("localhost", port_value=1)["lb_endpoints"] * 2}),
    "dns-none": dns(),
    "dns-without-port": dns(hostname("localhost")),
    "dns-without-address": dns(hostname("", port_value=1)),
    "dns-resolver": dns(
        {
            "lb_endpoints": [
                {"endpoint": {"address": {"socket_address": {"address": "x", "port_value": 1, "resolver_name": "own"}}}}
            ]
        }
    ),
    "dns-pipe": dns({"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": "/x"}}}}]}),
    "aggregate": aggregate("cluster-eds"),
    "aggregate-none": aggregate(),
    "aggregate-policy": {**aggregate("cluster-eds"), "lb_policy": "CLUSTER_PROVIDED"},
    "aggregate-list-unknown": {
        **aggregate("cluster-eds"),
        "load_balancing_policy": policies(policy("maglev.v3.Maglev")),
    },
    "aggregate-list": {
        **aggregate("cluster-eds"),
        "load_balancing_policy": policies(policy("round_robin.v3.RoundRobin")),
    },
    "aggregate-murmur": {
        **aggregate("cluster-eds"),
        "lb_policy": "RING_HASH",
        "ring_hash_lb_config": {"hash_function": "MURMUR_HASH_2"},
    },
    "other-cluster-type": {"cluster_type": {"name": "x", "typed_config": OTHER}},
    "round-robin": cluster(lb_policy="ROUND_ROBIN"),
    "random": cluster(lb_policy="RANDOM"),
    "maglev": cluster(lb_policy="MAGLEV"),
    "least-request": cluster(lb_policy="LEAST_REQUEST"),
    "least-request-one": cluster(lb_policy="LEAST_REQUEST", least_request_lb_config={"choice_count": 1}),
    "ring-hash": cluster(lb_policy="RING_HASH"),
    "ring-hash-sizes": cluster(
        lb_policy="RING_HASH", ring_hash_lb_config={"minimum_ring_size": 10, "maximum_ring_size": 20}
    ),
    "ring-hash-min-above-max": cluster(
        lb_policy="RING_HASH", ring_hash_lb_config={"minimum_ring_size": 20, "maximum_ring_size": 10}
    ),
    "ring-hash-too-large": cluster(lb_policy="RING_HASH", ring_hash_lb_config={"maximum_ring_size": _MAX + 1}),
    "ring-hash-min-zero": cluster(lb_policy="RING_HASH", ring_hash_lb_config={"minimum_ring_size": 0}),
    "ring-hash-murmur": cluster(lb_policy="RING_HASH", ring_hash_lb_config={"hash_function": "MURMUR_HASH_2"}),
    "list-none": cluster(load_balancing_policy={}),
    "list-round-robin": listed(policy("round_robin.v3.RoundRobin")),
    "list-unknown": listed(policy("maglev.v3.Maglev")),
    "list-unknown-first": listed(policy("maglev.v3.Maglev"), policy("round_robin.v3.RoundRobin")),
    "list-wins": cluster(lb_policy="MAGLEV", load_balancing_policy=policies(policy("round_robin.v3.RoundRobin"))),
    "list-localities": listed(
        policy("wrr_locality.v3.WrrLocality", endpoint_picking_policy=policies(policy("round_robin.v3.RoundRobin")))
    ),
    "list-localities-without": listed(policy("wrr_locality.v3.WrrLocality")),
    "list-localities-unknown": listed(
        policy("wrr_locality.v3.WrrLocality", endpoint_picking_policy=policies(policy("random.v3.Random")))
    ),
    "list-ring-hash": listed(policy("ring_hash.v3.RingHash", minimum_ring_size=10)),
    "list-ring-hash-murmur": listed(policy("ring_hash.v3.RingHash", hash_function="MURMUR_HASH_2")),
    "list-ring-hash-min-above-max": listed(policy("ring_hash.v3.RingHash", minimum_ring_size=20, maximum_ring_size=10)),
    "list-ring-hash-too-large": listed(policy("ring_hash.v3.RingHash", maximum_ring_size=_MAX + 1)),
    "list-ring-hash-bad-before-good": listed(
        policy("ring_hash.v3.RingHash", maximum_ring_size=_MAX + 1), policy("round_robin.v3.RoundRobin")
    ),
    "list-weights": listed(policy("client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin")),
    "list-weights-penalty": listed(
        policy("client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin", error_utilization_penalty=-1.0)
    ),
    "list-weights-metric": listed(
        policy(
            "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin",
            metric_names_for_computing_utilization=["x"],
        )
    ),
    "list-pick-first": listed(policy("pick_first.v3.PickFirst", shuffle_address_list=True)),
    "list-least-request": listed(policy("least_request.v3.LeastRequest")),
    "list-struct": listed({"@type": STRUCT, "type_url": "example.org/nobody", "value": {}}),
    "load-reports": cluster(lrs_server={"self": {}}),
    "load-reports-ads": cluster(lrs_server=ADS),
    "breakers": cluster(circuit_breakers={"thresholds": [{"max_requests": 5}]}),
    "breakers-host-zero": cluster(circuit_breakers={"per_host_thresholds": [{"max_connections": 0}]}),
    "outliers": cluster(outlier_detection={"interval": "5s", "enforcing_success_rate": 50}),
    "outliers-negative-interval": cluster(outlier_detection={"interval": "-5s"}),
    "outliers-negative-ejection": cluster(outlier_detection={"base_ejection_time": "-5s"}),
    "outliers-max-percent": cluster(outlier_detection={"max_ejection_percent": 101}),
    "outliers-success-percent": cluster(outlier_detection={"enforcing_success_rate": 101}),
    "outliers-failure-percent": cluster(outlier_detection={"enforcing_failure_percentage": 101}),
    "outliers-failure-threshold": cluster(outlier_detection={"failure_percentage_threshold": 101}),
    "override-status": cluster(common_lb_config={"override_host_status": {"statuses": ["DEGRADED", "HEALTHY"]}}),
    "upstream-other": cluster(upstream_config={"name": "x", "typed_config": OTHER}),
    "socket-other": cluster(transport_socket={"name": "x", "typed_config": OTHER}),
    "socket-without-config": cluster(transport_socket={"name": "tls"}),
    "socket-matches": cluster(transport_socket_matches=[{"name": "m", "match": {}}]),
    "tls-nothing": tls(),
    "tls-roots": peers(),
    "tls-system-roots": tls(validation_context={"system_root_certs": {}}),
    "tls-unknown-roots": tls(validation_context={"ca_certificate_provider_instance": {"instance_name": "nobody"}}),
    "tls-no-roots": tls(validation_context={"match_subject_alt_names": [{"exact": "a"}]}),
    "tls-combined": tls(
        combined_validation_context={
            "default_validation_context": ROOTS,
            "validation_context_sds_secret_config": SECRET,
        }
    ),
    "tls-secret": tls(validation_context_sds_secret_config=SECRET),
    "tls-names": peers(match_subject_alt_names=[{"exact": "a"}, {"suffix": ".b"}]),
    "tls-names-regex-broken": peers(match_subject_alt_names=[{"safe_regex": {"regex": "("}}]),
    "tls-names-empty-suffix": peers(match_subject_alt_names=[{"suffix": ""}]),
    "tls-spki": peers(verify_certificate_spki=["A" * 43 + "="]),
    "tls-hash": peers(verify_certificate_hash=["0" * 64]),
    "tls-timestamps": peers(require_signed_certificate_timestamp=True),
    "tls-crl": peers(crl={"inline_string": "x"}),
    "tls-identity": tls(**IDENTITY, validation_context=ROOTS),
    "tls-unknown-identity": tls(
        tls_certificate_provider_instance={"instance_name": "nobody"}, validation_context=ROOTS
    ),
    "tls-certificates": tls(validation_context=ROOTS, tls_certificate_sds_secret_configs=[SECRET]),
    "tls-params": tls(validation_context=ROOTS, tls_params={}),
    "tls-alpn": tls(validation_context=ROOTS, alpn_protocols=["h2"]),
}

_PIPE = {"endpoint": {"address": {"pipe": {"path": "/x"}}}}
_ENDPOINTS = {
    "one": assignment(group("a", 1)),
    "none": {},
    "empty-locality": assignment(group("a")),
    "no-locality": assignment({"load_balancing_weight": 1, "lb_endpoints": [endpoint(1)]}),
    "no-weight": assignment(group("a", 1, weight=None)),
    "no-weight-no-locality": assignment({"lb_endpoints": [endpoint(1)]}),
    "weights-too-many": assignment(group("a", 1, weight=4294967295), group("b", 2)),
    "same-locality": assignment(group("a", 1), group("a", 2)),
    "same-locality-other-priority": assignment(group("a", 1), group("a", 2, priority=1)),
    "priorities": assignment(group("a", 1), group("b", 2, priority=1)),
    "priority-gap": assignment(group("a", 1), group("b", 2, priority=2)),
    "priority-without-weight": assignment(group("a", 1, weight=None), group("b", 2, priority=1)),
    "same-address": assignment(group("a", 1), group("b", 1)),
    "same-address-without-weight": assignment(group("a", 1), group("b", 1, weight=None)),
    "pipe": assignment({**group("a"), "lb_endpoints": [_PIPE]}),
    "hostname": assignment({**group("a"), **hostname("localhost", port_value=1)}),
    "port-too-large": assignment(group("a", 65536)),
    "no-address": assignment({**group("a"), "lb_endpoints": [{"endpoint": {}}]}),
    "endpoint-weight-zero": assignment({**group("a"), "lb_endpoints": [endpoint(1, load_balancing_weight=0)]}),
    "endpoint-weights-too-many": assignment(
        {**group("a"), "lb_endpoints": [endpoint(1, load_balancing_weight=4294967295), endpoint(2)]}
    ),
    "unhealthy": assignment({**group("a"), "lb_endpoints": [endpoint(1, health_status="UNHEALTHY")]}),
    "more-addresses": more_addresses({"socket_address": {"address": "::1", "port_value": 1}}),
    "more-addresses-same": more_addresses(TCP),
    "more-addresses-twice": more_addresses(*[{"socket_address": {"address": "::1", "port_value": 1}}] * 2),
    "more-addresses-pipe": more_addresses({"pipe": {"path": "/x"}}),
    "more-addresses-hostname": more_addresses({"socket_address": {"address": "x", "port_value": 1}}),
    "drop": drops(category="a", drop_percentage={"numerator": 5}),
    "drop-without-category": drops(drop_percentage={"numerator": 5}),
    "drop-without-percentage": drops(category="a"),
    "drop-above-all": drops(category="a", drop_percentage={"numerator": 500}),
    "overprovisioning": assignment(group("a", 1), policy={"overprovisioning_factor": 200}),
}
