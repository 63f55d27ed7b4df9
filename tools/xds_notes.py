"""What docs/reference/xds-features.md says of fields which the decoders alone would not say rightly."""

from collections.abc import Mapping

CORE = "envoy.config.core.v3."
ROUTE = "envoy.config.route.v3."
CLUSTER = "envoy.config.cluster.v3."
MATCHER = "envoy.type.matcher.v3."
ACCESS_LOG = "envoy.config.accesslog.v3."
MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3."
UPSTREAM = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions."
_LABELS = {
    (message, "name"): "a label"
    for message in (
        f"{ROUTE}RetryPolicy.RetryPriority",
        "xds.core.v3.TypedExtensionConfig",
        "envoy.config.listener.v3.Filter",
        "envoy.config.listener.v3.ListenerFilter",
    )
}
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
    **{
        ("HttpConnectionManager", name): "in clients"
        for name in (
            *("scoped_routes", "strip_matching_host_port", "strip_any_host_port", "strip_trailing_host_dot"),
            *("merge_slashes", "normalize_path", "path_with_escaped_slashes_action", "scheme_header_transformation"),
        )
    },
    (
        "HttpConnectionManager",
        "stream_idle_timeout",
    ): "in clients, for routes without an `idle_timeout`; none unless it is set",
    ("HttpConnectionManager", "local_reply_config"): (
        "in clients; filters of mappers: all but extension_filter, and traceable_filter beside `tracing`; metadata_filter finds no "
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
    ("VirtualHost", "require_tls"): "ALL; EXTERNAL_ONLY is about requests from outside",
    ("RequestMirrorPolicy", "cluster_header"): "of routes and above them; refused at a cluster",
    ("RetryPolicy", "retry_host_predicate"): "previous_hosts, omit_canary_hosts, omit_host_metadata",
    ("RetryPolicy", "retry_priority"): "previous_priorities",
    ("RBAC", "rules"): "any, and, or, not, header, url_path, requested_server_name, ports, addresses, authenticated",
    ("Cluster", "type"): "EDS, STATIC, STRICT_DNS, LOGICAL_DNS",
    (
        "Cluster",
        "cluster_type",
    ): "aggregate and DNS clusters; without a configuration, or with a Struct, by the names `envoy.cluster.static`, `.strict_dns`, `.logical_dns`, `.dns`, `envoy.clusters.aggregate`",
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
    ("Cluster", "upstream_config"): "the HTTP and the generic connection pool, Envoy's usual ones",
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
    ("HttpProtocolOptions of an upstream", "request_mirror_policies"): "clusters by name; for httpx",
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
    # Small messages, by their full names.
    **_LABELS,
    (f"{MATCHER}RegexMatcher", "google_re2"): "its `max_program_size`",
    ("xds.type.matcher.v3.RegexMatcher", "google_re2"): "the only kind that there is",
    (f"{MATCHER}MetadataMatcher", "value"): "checked; what is absent fits no value",
    (f"{MATCHER}MetadataMatcher", "invert"): "of routes",
    (f"{MATCHER}FilterStateMatcher", "string_match"): "checked; nothing sets a state",
    (f"{MATCHER}FilterStateMatcher", "address_match"): "nothing sets a state",
    (f"{ACCESS_LOG}MetadataFilter", "matcher"): "never found",
    (f"{ACCESS_LOG}AccessLogFilter", "traceable_filter"): "not beside `tracing`",
    (f"{ROUTE}RetryPolicy.RetryPriority", "typed_config"): "PreviousPrioritiesConfig",
    (f"{ROUTE}RetryPolicy.RetryHostPredicate", "name"): "says which one without `typed_config`",
    (f"{ROUTE}RetryPolicy.RetryHostPredicate", "typed_config"): (
        "PreviousHostsPredicate, OmitCanaryHostsPredicate, OmitHostMetadataConfig"
    ),
    (f"{ROUTE}FilterConfig", "is_optional"): "a filter that is not known is passed over",
    (f"{ROUTE}RateLimit", "stage"): "of routes and virtual hosts; refused in filters",
    (f"{ROUTE}RateLimit", "disable_key"): "of routes and virtual hosts; refused in filters",
    (f"{ROUTE}RateLimit", "hits_addend"): "in filters; no effect in routes and virtual hosts",
    (f"{ROUTE}RateLimit", "apply_on_stream_done"): "in filters, as no rule at all; no effect in routes",
    (f"{ROUTE}RateLimit", "limit"): "no effect in routes and virtual hosts; refused in filters",
    (f"{ROUTE}RateLimit.Action", "extension"): "no descriptor, in routes and virtual hosts; refused in filters",
    (f"{ROUTE}RateLimit.Action", "source_cluster"): "no descriptor, in routes and virtual hosts; refused in filters",
    (
        "xds.core.v3.TypedExtensionConfig",
        "typed_config",
    ): "Route, RouteList; inputs HttpRequestHeaderMatchInput, FilterStateInput",
    (f"{CORE}HttpProtocolOptions", "idle_timeout"): "in clusters; no effect in connection managers",
    (f"{CORE}HttpProtocolOptions", "max_requests_per_connection"): "in clusters; no effect in connection managers",
    (f"{CORE}HttpProtocolOptions", "max_stream_duration"): "in clusters and connection managers of clients",
    (f"{CORE}ConfigSource", "ads"): "the stream that the resource itself came by",
    (f"{CORE}ConfigSource", "self"): "the same",
    (f"{CORE}TransportSocket", "name"): "without a configuration: `envoy.transport_sockets.raw_buffer`",
    (
        f"{CORE}TransportSocket",
        "typed_config",
    ): "UpstreamTlsContext in clusters, DownstreamTlsContext in listeners, RawBuffer",
    (f"{CORE}SocketAddress", "protocol"): "TCP",
    (f"{CORE}KeyValuePair", "value"): "a string",
    ("envoy.config.listener.v3.ApiListener", "api_listener"): "an HttpConnectionManager",
    ("envoy.config.listener.v3.Filter", "typed_config"): "an HttpConnectionManager",
    ("envoy.config.listener.v3.ListenerFilter", "typed_config"): "TlsInspector",
    ("envoy.config.listener.v3.FilterChainMatch", "transport_protocol"): "`tls`, `raw_buffer`",
    (f"{MANAGER}HttpFilter", "is_optional"): "a filter that is not there is passed over",
    (f"{MANAGER}HttpFilter", "typed_config"): "see `http_filters` of HttpConnectionManager and HttpProtocolOptions",
    (f"{CLUSTER}Cluster.CustomClusterType", "name"): "without a configuration, or with a Struct, as in Envoy",
    (f"{CLUSTER}Cluster.CustomClusterType", "typed_config"): "DnsCluster, ClusterConfig of aggregates",
    (f"{CLUSTER}Cluster.LbSubsetConfig", "locality_weight_aware"): "with `locality_weighted_lb_config`",
    (
        f"{UPSTREAM}UseDownstreamHttpConfig",
        "http2_protocol_options",
    ): "clusters may be checked by gRPC; callers choose the version",
    (f"{UPSTREAM}UseDownstreamHttpConfig", "http_protocol_options"): "callers choose the version",
    (f"{UPSTREAM}AutoHttpConfig", "http_protocol_options"): "HTTP/1.1 is spoken",
}

NOT_LOOKED_INTO = frozenset(
    {
        f"{MATCHER}RegexMatcher.google_re2",
        "xds.type.matcher.v3.RegexMatcher.google_re2",
        f"{MATCHER}MetadataMatcher.value",
        f"{MATCHER}FilterStateMatcher.string_match",
        f"{MATCHER}FilterStateMatcher.address_match",
        f"{ACCESS_LOG}MetadataFilter.matcher",
        f"{CORE}Http2ProtocolOptions.connection_keepalive",
        f"{ROUTE}RateLimit.Action.source_cluster",
        f"{ROUTE}RateLimit.limit",
    }
)
"""Fields whose message says nothing that counts: what is said above of the field is all."""

_TLS = "envoy.extensions.transport_sockets.tls.v3."
_PROXY_CONDITION = "servers are not told of it"
WHY: Mapping[str, str] = {
    f"{ACCESS_LOG}AccessLogFilter": "an extension of a proxy",
    f"{CLUSTER}UpstreamConnectionOptions": "the transport's own affair",
    f"{CORE}Address": "a listener inside of a proxy",
    f"{CORE}ConfigSource": "how long is waited is one time for all (A57); there is only V3; authorities are the bootstrap's; other streams and files are not read",
    f"{CORE}DataSource": "files and variables of this machine are not read for others",
    f"{CORE}HeaderValue": "as in Envoy",
    f"{CORE}HealthCheck": "each check has a connection of its own; events go to the hooks; there are no other checkers",
    f"{CORE}HealthCheck.TcpHealthCheck": "the PROXY protocol is not spoken",
    f"{CORE}Http1ProtocolOptions": "how a proxy reads and writes HTTP/1.1",
    f"{CORE}Http2ProtocolOptions": "how a connection is set up and guarded; that HTTP/2 is named counts",
    f"{CORE}HttpProtocolOptions": "how long a connection is kept, and what a proxy lets through",
    f"{CORE}Metadata": "extensions of a proxy read it",
    f"{CORE}Pipe": "who listens there has made it",
    f"{CORE}SchemeHeaderTransformation": "the scheme is known before the endpoint is",
    f"{CORE}SelfConfigSource": "there is only V3",
    f"{CORE}SocketAddress": "a machine's own settings; ports and resolvers that only a proxy's machine knows",
    f"{CORE}SubstitutionFormatString": "extensions of a proxy; the order of keys is fixed",
    "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy": "endpoints do not grow stale while the server is gone",
    "envoy.config.listener.v3.Filter": "there is one network filter",
    "envoy.config.listener.v3.FilterChainMatch": "a server has one chain, or one for TLS and one for plaintext",
    "envoy.config.listener.v3.ListenerFilter": "connections are always looked at",
    "envoy.config.rbac.v3.Permission": _PROXY_CONDITION,
    "envoy.config.rbac.v3.Principal": _PROXY_CONDITION,
    "envoy.config.rbac.v3.Policy": "conditions in CEL are not evaluated",
    "envoy.config.rbac.v3.RBAC": "the hooks tell of every decision",
    f"{ROUTE}RouteAction.HashPolicy.ConnectionProperties": "a client has no caller's address",
    "envoy.extensions.filters.http.header_mutation.v3.Mutations": "requests have no trailers here, and those of responses are not shown",
    "envoy.extensions.filters.http.stateful_session.v3.StatefulSession": "a name in a proxy's statistics",
    "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector": "the first byte is enough",
    f"{MANAGER}ScopedRds": "all scopes are subscribed to",
    f"{_TLS}CertificateProviderPluginInstance": "an instance has one certificate and its roots",
    f"{_TLS}CommonTlsContext": "extensions of a proxy; keys are not logged",
    f"{_TLS}CommonTlsContext.CertificateProviderInstance": "an instance has one certificate and its roots",
    f"{_TLS}CommonTlsContext.CombinedCertificateValidationContext": "an extension of a proxy",
    f"{_TLS}SubjectAltNameMatcher": "for OTHER_NAME, which is refused",
    f"{_TLS}TlsCertificate": "keys that Python's `ssl` cannot read; it staples nothing; what is inline does not change",
    f"{_TLS}TlsParameters": "Python's `ssl` has no setting for them",
    f"{UPSTREAM}AutoHttpConfig": "HTTP/1.1 is spoken, HTTP/3 never",
    f"{UPSTREAM}ExplicitHttpConfig": "HTTP/3 is not spoken",
    f"{UPSTREAM}UseDownstreamHttpConfig": "HTTP/3 is not spoken",
    f"{MATCHER}StringMatcher": "extensions of a proxy",
    "xds.type.matcher.v3.Matcher.MatcherList.Predicate.SinglePredicate": "extensions of a proxy",
    "xds.type.matcher.v3.Matcher.MatcherTree": "extensions of a proxy",
    "xds.type.matcher.v3.Matcher.OnMatch": "as in Envoy's routes",
    "xds.type.matcher.v3.StringMatcher": "extensions of a proxy",
}
"""Of small messages: why fields have no effect, or are refused."""
