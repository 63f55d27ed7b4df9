"""What docs/reference/xds-features.md says of fields which the decoders alone would not say rightly."""

from collections.abc import Mapping

HEDGED = (
    "for httpx, unary gRPC calls and async functions: `hedge_on_per_try_timeout`; the others only with route metadata "
    "`meshlib: {hedge_initial_requests: true}`, as Envoy 1.40 does nothing with them"
)
NEEDS_DNS = "with the extra `meshlib-xds[dns]`; without it `dns_refresh_rate` serves instead, and the field is listed"
# Fields that depend on their content or on others; what the decoder says about the sample alone would mislead.
IN_PART: Mapping[tuple[str, str], str] = {
    ("Listener of a server (with `address`)", "api_listener"): "makes it a client's listener",
    ("FilterChain", "filter_chain_match"): (
        "`transport_protocol` `tls` or `raw_buffer`, for two chains with the same filters and routes (PERMISSIVE); "
        "else empty"
    ),
    ("Listener of a server (with `address`)", "listener_filters"): (
        "`tls_inspector`; servers look at the first byte with and without it"
    ),
    ("HttpConnectionManager", "http_filters"): (
        "the router; local_ratelimit, admission_control, adaptive_concurrency; fault, stateful_session, header_mutation "
        "and on_demand in clients; RBAC in servers, each with its configuration or with "
        "`config_discovery`. Others are refused, or skipped if `is_optional` or `disabled`"
    ),
    ("HttpConnectionManager", "scoped_routes"): "in clients",
    ("HttpConnectionManager", "local_reply_config"): (
        "filters of mappers: all but extension_filter, and traceable_filter beside `tracing`; metadata_filter finds no "
        "key and log_type_filter no log, as nothing here has them; bodies and formats inline"
    ),
    ("RouteConfiguration", "vhds"): "in clients, with servers that speak the incremental variant",
    ("LocalityLbEndpoints", "leds_cluster_locality_config"): (
        "in EDS, with servers that speak the incremental variant; collections are globs"
    ),
    ("LedsClusterLocalityConfig", "leds_config"): "ads or self",
    ("LedsClusterLocalityConfig", "leds_collection_name"): "an `xdstp:` name that ends with `/*`",
    ("ScopedRoutes", "scoped_rds"): "all scopes are subscribed to; `srds_resources_locator` is refused",
    (
        "ExtensionConfigSource",
        "type_urls",
    ): "local_ratelimit, admission_control and adaptive_concurrency; fault and stateful_session in clients, RBAC in servers",
    ("ExtensionConfigSource", "config_source"): "ads or self",
    (
        "TypedExtensionConfig",
        "typed_config",
    ): "fault, stateful_session, RBAC, local_ratelimit, admission_control, adaptive_concurrency",
    (
        "Runtime",
        "layer",
    ): "numbers, booleans and shares; where they count is said [above](#discovery-on-demand-and-in-parts)",
    **{
        (message, "request_mirror_policies"): "for httpx; gRPC calls and functions are not copied"
        for message in ("RouteConfiguration", "VirtualHost", "RouteAction")
    },
    ("RouteAction", "idle_timeout"): "for httpx; of a function only the time before its end counts, gRPC has none",
    ("RouteAction", "max_grpc_timeout"): "if it equals `timeout`, as Istio writes it",
    ("RouteAction", "hedge_policy"): HEDGED,
    ("RouteAction", "internal_redirect_policy"): "for httpx",
    ("RouteAction", "hash_policy"): "header, cookie, query parameter; of gRPC calls the header alone (A42)",
    ("RouteAction", "metadata_match"): "its `envoy.lb` metadata",
    ("WeightedCluster.ClusterWeight", "metadata_match"): "its `envoy.lb` metadata",
    ("VirtualHost", "hedge_policy"): HEDGED,
    ("RetryPolicy", "retry_host_predicate"): "previous_hosts, omit_canary_hosts, omit_host_metadata",
    ("RetryPolicy", "retry_priority"): "previous_priorities",
    ("RBAC", "rules"): "any, and, or, not, header, url_path, requested_server_name, ports, addresses, authenticated",
    ("Cluster", "type"): "EDS, STATIC, STRICT_DNS, LOGICAL_DNS",
    (
        "Cluster",
        "cluster_type",
    ): "aggregate and DNS clusters; without a configuration the names `envoy.cluster.static`, `.strict_dns`, `.logical_dns`",
    ("Cluster", "load_assignment"): "with STATIC and DNS clusters",
    **{
        ("Cluster", name): "with STRICT_DNS and LOGICAL_DNS"
        for name in ("dns_refresh_rate", "dns_failure_refresh_rate", "dns_jitter", "dns_lookup_family")
    },
    ("Cluster", "wait_for_warm_on_init"): "with DNS clusters",
    **{(message, "respect_dns_ttl"): NEEDS_DNS for message in ("Cluster", "DnsCluster")},
    **{
        ("Cluster", name): "with STRICT_DNS and LOGICAL_DNS; needs the extra `meshlib-xds[dns]`, without it refused"
        for name in ("dns_resolvers", "dns_resolution_config", "use_tcp_for_dns_lookups")
    },
    **{
        (message, "typed_dns_resolver_config"): "c-ares and getaddrinfo; c-ares with settings needs the extra "
        "`meshlib-xds[dns]`, without it refused"
        for message in ("Cluster", "DnsCluster")
    },
    ("Cluster", "lb_policy"): "ROUND_ROBIN, LEAST_REQUEST, RANDOM, RING_HASH, MAGLEV",
    ("Cluster", "load_balancing_policy"): (
        "round_robin, least_request, random, ring_hash, maglev, client_side_weighted_round_robin, pick_first, peak_ewma, "
        "wrr_locality, random_subsetting, override_host and subset over these, and what the application registers; the first known one counts"
    ),
    ("OverrideHost", "override_host_sources"): "headers; no filter of a client writes the metadata of the other kind",
    ("Cluster", "round_robin_lb_config"): "with ROUND_ROBIN",
    ("Cluster", "least_request_lb_config"): "with LEAST_REQUEST",
    ("Cluster", "ring_hash_lb_config"): "with RING_HASH; `minimum_ring_size` up to 65536",
    ("Cluster", "maglev_lb_config"): "with MAGLEV; `table_size` up to 131071",
    ("Cluster.CommonLbConfig", "consistent_hashing_lb_config"): ("with RING_HASH and MAGLEV"),
    ("Cluster", "lb_subset_config"): "with selectors; not beside `load_balancing_policy`",
    ("Cluster", "typed_extension_protocol_options"): "HttpProtocolOptions",
    ("Cluster", "upstream_config"): "the HTTP connection pool, Envoy's default",
    (
        "CircuitBreakers.Thresholds",
        "max_connections",
    ): "over HTTP/1.1; with HTTP/2 and gRPC it has no effect (A32)",
    (
        "CircuitBreakers.Thresholds",
        "max_pending_requests",
    ): "over HTTP/1.1; with HTTP/2 and gRPC it has no effect (A32)",
    (
        "Cluster.CommonLbConfig",
        "zone_aware_lb_config",
    ): "`fail_traffic_on_panic`; the rest with a [local cluster](bootstrap.md), as in Envoy",
    **{
        (message, "slow_start_config"): "with a window"
        for message in ("RoundRobin", "LeastRequest", "ClientSideWeightedRoundRobin")
    },
    **{
        (
            message,
            "locality_lb_config",
        ): "`locality_weighted_lb_config`; `zone_aware_lb_config` as in Cluster.CommonLbConfig"
        for message in ("RoundRobin", "LeastRequest")
    },
    ("ClientSideWeightedRoundRobin", "metric_names_for_computing_utilization"): (
        "the utilisations, `named_metrics.<key>`, `utilization.<key>`"
    ),
    ("RingHash", "minimum_ring_size"): "up to 65536",
    ("RingHash", "hash_balance_factor"): "without `consistent_hashing_lb_config`",
    ("RingHash", "use_hostname_for_hashing"): "without `consistent_hashing_lb_config`",
    ("Maglev", "table_size"): "up to 131071",
    ("HttpProtocolOptions of an upstream", "http_filters"): "the upstream codec alone",
    ("HttpProtocolOptions of an upstream", "explicit_http_config"): "HTTP/1.1 and HTTP/2",
    ("HttpProtocolOptions of an upstream", "auto_config"): "HTTP/1.1 is spoken",
    ("LocalityLbEndpoints", "metadata"): "refused with `envoy.transport_socket_match`",
    ("DownstreamTlsContext", "require_sni"): "false",
    ("CertificateValidationContext", "ca_certificate_provider_instance"): "in clusters and listeners, not in secrets",
    ("CertificateValidationContext", "system_root_certs"): "where no other roots are given",
    ("CertificateValidationContext", "verify_certificate_hash"): "in servers beside roots",
    ("CertificateValidationContext", "verify_certificate_spki"): "in servers beside roots",
    ("CertificateValidationContext", "match_typed_subject_alt_names"): "EMAIL, DNS, URI, IP_ADDRESS; not OTHER_NAME",
    ("CertificateValidationContext", "custom_validator_config"): "the SPIFFE validator",
}
