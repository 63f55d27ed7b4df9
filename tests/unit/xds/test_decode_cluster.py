import pytest

from meshlib.model.cluster import (
    AggregateDiscovery,
    AuthorityNames,
    CircuitBreakers,
    Cluster,
    DnsDiscovery,
    EdsDiscovery,
    LeastRequest,
    LoadReports,
    OutlierDetection,
    Random,
    RoundRobin,
    StaticDiscovery,
    ZoneAware,
)
from meshlib.model.retry import RetryPolicy

HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
POLICIES = "envoy.extensions.load_balancing_policies."


def value_of(decoded):
    assert decoded.errors == ()
    return decoded.value


def paths_of(decoded):
    assert decoded.value is None
    return [error.partition(": ")[0] for error in decoded.errors]


def hosts(*addresses):
    endpoints = [{"endpoint": {"address": {"socket_address": {"address": a, "port_value": 80}}}} for a in addresses]
    return {"load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": endpoints}]}}


def test_the_least_eds_cluster_has_envoys_defaults(decode_cluster):
    assert value_of(decode_cluster()) == Cluster("c", EdsDiscovery("c"))


def test_an_eds_cluster_with_a_service_name(decode_cluster):
    config = {"eds_config": {"self": {}}, "service_name": "s"}
    assert value_of(decode_cluster(eds_cluster_config=config)).discovery == EdsDiscovery("s")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"eds_cluster_config": {}}, "eds_cluster_config.eds_config"),
        ({"eds_cluster_config": {"eds_config": {"path": "/x"}}}, "eds_cluster_config.eds_config.path"),
        ({"name": "xdstp://a/t/c"}, "eds_cluster_config.service_name"),
        ({"name": ""}, "name"),
        ({"type": "ORIGINAL_DST"}, "type"),
        ({"type": "LOGICAL_DNS"}, "load_assignment"),
        ({"connect_timeout": "0s"}, "connect_timeout"),
        ({"health_checks": [{}]}, "health_checks[0].health_checker"),
        ({"transport_socket_matcher": {}}, "transport_socket_matcher"),
        ({"upstream_bind_config": {}}, "upstream_bind_config"),
        ({"lb_policy": "CLUSTER_PROVIDED"}, "lb_policy"),
        ({"lb_policy": "LOAD_BALANCING_POLICY_CONFIG"}, "load_balancing_policy"),
        (
            {"lb_subset_config": {"subset_selectors": [{"keys": ["a"], "fallback_keys_subset": ["a"]}]}},
            "lb_subset_config.subset_selectors[0].fallback_keys_subset",
        ),
        (
            {
                "round_robin_lb_config": {
                    "slow_start_config": {
                        "slow_start_window": "5s",
                        "min_weight_percent": {"value": 101},
                    }
                }
            },
            "round_robin_lb_config.slow_start_config.min_weight_percent.value",
        ),
        (
            {"lb_policy": "LEAST_REQUEST", "least_request_lb_config": {"choice_count": 1}},
            "least_request_lb_config.choice_count",
        ),
        (
            {"common_lb_config": {"healthy_panic_threshold": {"value": 101}}},
            "common_lb_config.healthy_panic_threshold.value",
        ),
        (
            {"common_lb_config": {"healthy_panic_threshold": {"value": "NaN"}}},
            "common_lb_config.healthy_panic_threshold.value",
        ),
        (
            {"circuit_breakers": {"per_host_thresholds": [{"max_requests": 1}]}},
            "circuit_breakers.per_host_thresholds[0].max_requests",
        ),
        ({"outlier_detection": {"interval": "0s"}}, "outlier_detection.interval"),
        ({"outlier_detection": {"max_ejection_percent": 101}}, "outlier_detection.max_ejection_percent"),
        (
            {"outlier_detection": {"base_ejection_time": "5s", "max_ejection_time": "1s"}},
            "outlier_detection.max_ejection_time",
        ),
        ({"outlier_detection": {"monitors": [{"name": "m"}]}}, "outlier_detection.monitors"),
    ],
)
def test_what_cannot_be_honoured_is_refused(decode_cluster, fields, path):
    assert path in paths_of(decode_cluster(**fields))


def test_static_clusters_keep_duplicates(decode):
    found = value_of(decode("CDS", {"name": "c", "type": "STATIC", **hosts("10.0.0.1", "10.0.0.1")}))
    assert isinstance(found.discovery, StaticDiscovery)
    assert [one.address for one in found.discovery.assignment.localities[0].endpoints] == ["10.0.0.1:80"] * 2
    assert value_of(decode("CDS", {"name": "c"})).discovery.assignment.localities == ()


def test_names_are_for_dns_clusters(decode):
    names = decode("CDS", {"name": "c", "type": "STATIC", **hosts("a.example")})
    assert paths_of(names) == ["load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address"]


def test_aggregate_clusters(decode, packed):
    def aggregate(**fields):
        config = packed("envoy.extensions.clusters.aggregate.v3.ClusterConfig", **fields)
        kind = {"name": "envoy.clusters.aggregate", "typed_config": config}
        return decode("CDS", {"name": "c", "cluster_type": kind, "lb_policy": "CLUSTER_PROVIDED"})

    assert value_of(aggregate(clusters=["a", "b"])).discovery == AggregateDiscovery(("a", "b"))
    assert paths_of(aggregate()) == ["cluster_type.typed_config.clusters"]


@pytest.mark.parametrize(
    ("name", "host", "expected"),
    [
        ("envoy.cluster.static", "127.0.0.1", StaticDiscovery),
        ("envoy.cluster.strict_dns", "a.example", DnsDiscovery),
        ("envoy.cluster.logical_dns", "a.example", DnsDiscovery),
    ],
)
def test_a_cluster_type_without_a_configuration_goes_by_its_name(decode, name, host, expected):
    address = {"socket_address": {"address": host, "port_value": 80}}
    assignment = {"cluster_name": "c", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}
    found = decode("CDS", {"name": "c", "cluster_type": {"name": name}, "load_assignment": assignment})
    assert () == found.errors
    assert isinstance(found.value.discovery, expected)
    assert getattr(found.value.discovery, "logical", False) is (name == "envoy.cluster.logical_dns")


@pytest.mark.parametrize("name", ["envoy.cluster.eds", "envoy.clusters.dns", "nope"])
def test_other_names_of_cluster_types_lead_nowhere(decode, name):
    assert (f"cluster_type: {name} is not supported",) == decode(
        "CDS", {"name": "c", "cluster_type": {"name": name}}
    ).errors


def test_other_cluster_types_are_refused(decode, packed):
    kind = {"name": "redis", "typed_config": packed("envoy.extensions.clusters.redis.v3.RedisClusterConfig")}
    decoded = decode("CDS", {"name": "c", "cluster_type": kind})
    assert decoded.errors == ("cluster_type: envoy.extensions.clusters.redis.v3.RedisClusterConfig is not supported",)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, RoundRobin()),
        ({"lb_policy": "RANDOM"}, Random()),
        ({"lb_policy": "LEAST_REQUEST"}, LeastRequest()),
        (
            {
                "lb_policy": "LEAST_REQUEST",
                "least_request_lb_config": {
                    "choice_count": 5,
                    "active_request_bias": {"default_value": 0, "runtime_key": "k"},
                },
            },
            LeastRequest(5, 0.0),
        ),
    ],
)
def test_policies_of_the_enum(decode_cluster, fields, expected):
    assert value_of(decode_cluster(**fields)).lb_policy == expected


def test_common_balancing_options(decode_cluster):
    common = {"healthy_panic_threshold": {"value": 0}, "locality_weighted_lb_config": {}, "update_merge_window": "1s"}
    decoded = decode_cluster(common_lb_config=common)
    found = value_of(decoded)
    assert (found.panic_threshold_percent, found.locality_weighted) == (0.0, True)
    assert decoded.unused == ("common_lb_config.update_merge_window",)


@pytest.fixture
def policies(packed):
    def make(*entries):
        listed = [
            {"typed_extension_config": {"name": "p", "typed_config": packed(f"{POLICIES}{name}", **fields)}}
            for name, fields in entries
        ]
        return {"policies": listed}

    return make


LOCALITY = {"locality_lb_config": {"locality_weighted_lb_config": {}}}


@pytest.mark.parametrize(
    ("entries", "policy", "weighted"),
    [
        ([("round_robin.v3.RoundRobin", {})], RoundRobin(), False),
        ([("round_robin.v3.RoundRobin", LOCALITY)], RoundRobin(), True),
        ([("random.v3.Random", {})], Random(), False),
        ([("least_request.v3.LeastRequest", {"choice_count": 3})], LeastRequest(3), False),
        ([("cluster_provided.v3.ClusterProvided", {}), ("random.v3.Random", LOCALITY)], Random(), True),
    ],
)
def test_the_first_policy_that_we_have_is_taken(decode_cluster, policies, entries, policy, weighted):
    found = value_of(decode_cluster(load_balancing_policy=policies(*entries), lb_policy="MAGLEV"))
    assert (found.lb_policy, found.locality_weighted) == (policy, weighted)


def test_wrr_locality_weighs_localities_and_takes_its_inner_policy(decode_cluster, policies):
    inner = policies(("cluster_provided.v3.ClusterProvided", {}), ("round_robin.v3.RoundRobin", {}))
    outer = policies(("wrr_locality.v3.WrrLocality", {"endpoint_picking_policy": inner}))
    found = value_of(decode_cluster(load_balancing_policy=outer))
    assert (found.lb_policy, found.locality_weighted) == (RoundRobin(), True)


def test_override_host_names_its_headers_and_takes_its_inner_policy(decode_cluster, policies):
    sources = [{"header": "X-Pick"}, {"metadata": {"key": "envoy.lb", "path": [{"key": "h"}]}}, {"header": "x-too"}]
    inner = policies(("random.v3.Random", LOCALITY))
    outer = policies(
        ("override_host.v3.OverrideHost", {"override_host_sources": sources, "fallback_policy": inner}),
        ("round_robin.v3.RoundRobin", {}),
    )
    decoded = decode_cluster(load_balancing_policy=outer)
    found = value_of(decoded)
    assert (found.lb_policy, found.locality_weighted, found.named_by) == (Random(), True, ("x-pick", "x-too"))
    assert ["metadata: no filter of a client writes dynamic metadata"] == [
        text.rpartition("[1].")[2] for text in decoded.unused
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"override_host_sources": [{"header": "x"}]},
        {"fallback_policy": True},
        {"override_host_sources": [{}], "fallback_policy": True},
        {
            "override_host_sources": [{"header": "x", "metadata": {"key": "k", "path": [{"key": "h"}]}}],
            "fallback_policy": True,
        },
    ],
    ids=["without an inner policy", "without a source", "with an empty source", "with a source that says both"],
)
def test_override_host_that_envoy_refuses_is_refused(decode_cluster, policies, fields):
    if "fallback_policy" in fields:
        fields = {**fields, "fallback_policy": policies(("random.v3.Random", {}))}
    assert decode_cluster(load_balancing_policy=policies(("override_host.v3.OverrideHost", fields))).errors


def test_a_list_without_a_policy_that_we_have_is_refused(decode_cluster, policies):
    decoded = decode_cluster(
        load_balancing_policy=policies(
            ("cluster_provided.v3.ClusterProvided", {}), ("cluster_provided.v3.ClusterProvided", {})
        )
    )
    kind = f"{POLICIES}cluster_provided.v3.ClusterProvided"
    expected = f"load_balancing_policy: no supported policy among: {kind}, {kind}"
    assert decoded.errors == (expected,)
    assert paths_of(decode_cluster(load_balancing_policy={})) == ["load_balancing_policy"]


@pytest.mark.parametrize(
    "entry",
    [
        ("least_request.v3.LeastRequest", {"active_request_bias": {"default_value": -1, "runtime_key": "k"}}),
        ("round_robin.v3.RoundRobin", {"slow_start_config": {"slow_start_window": "-1s"}}),
        ("round_robin.v3.RoundRobin", {"slow_start_config": {"min_weight_percent": {"value": 101}}}),
        ("random_subsetting.v3.RandomSubsetting", {"subset_size": 0, "child_policy": {}}),
    ],
)
def test_policies_that_cannot_be_honoured_are_refused(decode_cluster, policies, entry):
    assert decode_cluster(load_balancing_policy=policies(entry)).value is None


def test_circuit_breakers_of_both_priorities(decode_cluster):
    thresholds = [
        {"priority": "HIGH", "max_requests": 7},
        {"max_connections": 1, "max_pending_requests": 2, "max_requests": 3, "max_retries": 0, "track_remaining": True},
        {"priority": "HIGH", "max_requests": 8},
    ]
    decoded = decode_cluster(circuit_breakers={"thresholds": thresholds})
    found = value_of(decoded)
    assert found.circuit_breakers == CircuitBreakers(1, 2, 3, 0)
    assert found.high_priority_circuit_breakers == CircuitBreakers(max_requests=7)
    assert "circuit_breakers.thresholds[2]: is not the first of its priority" in decoded.unused


def test_limits_on_connections_are_reported_where_http2_is_spoken(decode_cluster):
    thresholds = [{"max_connections": 7, "max_pending_requests": 1024}, {"priority": "HIGH", "max_pending_requests": 1}]
    limits = {"circuit_breakers": {"thresholds": thresholds}}

    assert decode_cluster(**limits).unused == ()
    assert [entry.partition(":")[0] for entry in decode_cluster(http2_protocol_options={}, **limits).unused] == [
        "circuit_breakers.thresholds[0].max_connections",
        "circuit_breakers.thresholds[1].max_pending_requests",
    ]


@pytest.mark.parametrize(
    ("budget", "expected"),
    [({}, (20.0, 3)), ({"budget_percent": {"value": 12.5}, "min_retry_concurrency": 9}, (12.5, 9))],
)
def test_retry_budgets(decode_cluster, budget, expected):
    found = value_of(decode_cluster(circuit_breakers={"thresholds": [{"retry_budget": budget}]})).circuit_breakers
    assert (found.retry_budget_percent, found.min_retry_concurrency) == expected


def test_outlier_detection(decode_cluster):
    empty = decode_cluster(outlier_detection={})
    assert value_of(empty).outlier_detection == OutlierDetection()
    assert empty.unused == ()
    full = {
        "consecutive_5xx": 1,
        "enforcing_consecutive_5xx": 2,
        "consecutive_gateway_failure": 3,
        "enforcing_consecutive_gateway_failure": 4,
        "consecutive_local_origin_failure": 5,
        "enforcing_consecutive_local_origin_failure": 6,
        "split_external_local_origin_errors": True,
        "interval": "1s",
        "base_ejection_time": "400s",
        "max_ejection_time_jitter": "0.5s",
        "max_ejection_percent": 100,
        "always_eject_one_host": True,
        "success_rate_minimum_hosts": 7,
        "success_rate_request_volume": 8,
        "success_rate_stdev_factor": 9,
        "enforcing_success_rate": 10,
        "enforcing_local_origin_success_rate": 11,
        "failure_percentage_threshold": 12,
        "failure_percentage_minimum_hosts": 13,
        "failure_percentage_request_volume": 14,
        "enforcing_failure_percentage": 15,
        "enforcing_failure_percentage_local_origin": 16,
    }
    decoded = decode_cluster(outlier_detection=full)
    limits = (1, 2, 3, 4, 5, 6, True, 1.0, 400.0, 400.0, 0.5, 100, True)
    expected = OutlierDetection(*limits, *range(7, 17))
    assert value_of(decoded).outlier_detection == expected
    assert decoded.unused == ()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"explicit_http_config": {"http2_protocol_options": {}}}, (True, None, None)),
        ({"explicit_http_config": {"http_protocol_options": {}}}, (False, None, None)),
        ({"use_downstream_protocol_config": {}}, (False, None, None)),
        (
            {
                "explicit_http_config": {"http2_protocol_options": {}},
                "common_http_protocol_options": {"idle_timeout": "0s", "max_requests_per_connection": 5},
            },
            (True, 5, 0.0),
        ),
    ],
)
def test_protocol_options(decode_cluster, packed, options, expected):
    found = value_of(decode_cluster(typed_extension_protocol_options={HTTP_OPTIONS: packed(HTTP_OPTIONS, **options)}))
    assert (found.http2, found.max_requests_per_connection, found.idle_timeout_s) == expected


@pytest.mark.parametrize("limit", [0, 3])
def test_a_limit_of_requests_stands_in_one_place(decode_cluster, packed, limit):
    """As in Envoy, even where one of the two says that there is no limit."""
    common = {"common_http_protocol_options": {"max_requests_per_connection": 3 - limit}}
    options = {HTTP_OPTIONS: packed(HTTP_OPTIONS, explicit_http_config={"http_protocol_options": {}}, **common)}
    refused = ("max_requests_per_connection: cannot be given together with that of the HTTP protocol options",)
    assert refused == decode_cluster(max_requests_per_connection=limit, typed_extension_protocol_options=options).errors
    assert refused == decode_cluster(max_requests_per_connection=limit, **common).errors
    silent = {HTTP_OPTIONS: packed(HTTP_OPTIONS, explicit_http_config={"http_protocol_options": {}})}
    found = decode_cluster(max_requests_per_connection=3, typed_extension_protocol_options=silent, **common)
    assert 3 == value_of(found).max_requests_per_connection


def test_deprecated_protocol_options(decode_cluster):
    found = value_of(
        decode_cluster(
            http2_protocol_options={},
            max_requests_per_connection=3,
            common_http_protocol_options={"idle_timeout": "2s"},
        )
    )
    assert (found.http2, found.max_requests_per_connection, found.idle_timeout_s) == (True, 3, 2.0)


def test_policies_of_its_own(decode_cluster, packed):
    options = packed(
        HTTP_OPTIONS,
        explicit_http_config={"http_protocol_options": {}},
        hash_policy=[{"header": {"header_name": "A"}, "terminal": True}],
        request_mirror_policies=[{"cluster": "m"}],
    )
    found = value_of(decode_cluster(typed_extension_protocol_options={HTTP_OPTIONS: options}))
    assert [(policy.kind, policy.name, policy.terminal) for policy in found.hash_policies] == [("header", "a", True)]
    assert [mirror.cluster for mirror in found.mirrors] == ["m"]


@pytest.mark.parametrize(
    "options",
    [
        {"explicit_http_config": {"http3_protocol_options": {}}},
        {
            "explicit_http_config": {"http_protocol_options": {}},
            "request_mirror_policies": [{"cluster_header": "a"}],
        },
        {"explicit_http_config": {"http_protocol_options": {}}, "request_mirror_policies": [{"cluster": ""}]},
        {"explicit_http_config": {"http_protocol_options": {}}, "hash_policy": [{"header": {"header_name": ""}}]},
        {"explicit_http_config": {"http_protocol_options": {}}, "retry_policy": {"retry_back_off": {}}},
        {"explicit_http_config": {"http_protocol_options": {}}, "http_filters": [{"name": "x"}]},
        {},
    ],
)
def test_protocol_options_that_cannot_be_honoured_are_refused(decode_cluster, packed, options):
    decoded = decode_cluster(typed_extension_protocol_options={HTTP_OPTIONS: packed(HTTP_OPTIONS, **options)})
    assert decoded.value is None


def test_retries_and_stream_duration_of_a_cluster(decode_cluster, packed):
    options = packed(
        HTTP_OPTIONS,
        explicit_http_config={"http_protocol_options": {}},
        retry_policy={"retry_on": "5xx", "num_retries": 3},
        common_http_protocol_options={"max_stream_duration": "1.5s"},
    )
    found = value_of(decode_cluster(typed_extension_protocol_options={HTTP_OPTIONS: options}))
    assert found.retry == RetryPolicy(frozenset({"5xx"}), 3)
    assert found.max_stream_duration_s == 1.5


def test_names_from_the_request_matter_only_with_tls(decode_cluster, packed):
    options = packed(
        HTTP_OPTIONS,
        explicit_http_config={"http_protocol_options": {}},
        upstream_http_protocol_options={"auto_sni": True},
    )
    fields = {"typed_extension_protocol_options": {HTTP_OPTIONS: options}}
    place = f'typed_extension_protocol_options["{HTTP_OPTIONS}"].upstream_http_protocol_options.auto_sni'
    assert decode_cluster(**fields).unused == (place,)
    tls = packed("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext")
    decoded = decode_cluster(**fields, transport_socket={"name": "tls", "typed_config": tls})
    assert decoded.errors == ()
    assert AuthorityNames(is_sni=True) == decoded.value.authority_names


def test_names_that_certificates_must_have_need_roots(decode_cluster, packed):
    names = {"auto_san_validation": True, "override_auto_sni_header": "X-Name"}
    fields = {"upstream_http_protocol_options": names}

    def decoded(**context):
        tls = packed("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", **context)
        return decode_cluster(**fields, transport_socket={"name": "tls", "typed_config": tls})

    assert paths_of(decoded()) == ["upstream_http_protocol_options"]
    roots = {"ca_certificate_provider_instance": {"instance_name": "p"}}
    found = decoded(common_tls_context={"validation_context": roots}).value.authority_names
    assert AuthorityNames(is_san=True, header="x-name") == found


def test_zone_aware_routing_of_a_cluster_and_of_its_policies(decode_cluster, policies):
    assert value_of(decode_cluster()).zone_aware == ZoneAware(100, 6)
    given = {"routing_enabled": {"value": 49.5}, "min_cluster_size": 0}
    decoded = decode_cluster(common_lb_config={"zone_aware_lb_config": given})
    assert (value_of(decoded).zone_aware, decoded.unused) == (ZoneAware(50, 0), ())
    for more, expected in (
        ({}, ZoneAware(50, 0)),
        ({"force_local_zone": {}}, ZoneAware(50, 0, 1)),
        ({"force_local_zone": {"min_size": 3}, "force_locality_direct_routing": True}, ZoneAware(50, 0, 3)),
        ({"force_locality_direct_routing": True}, ZoneAware(50, 0, 1)),
        ({"locality_basis": "HEALTHY_HOSTS_WEIGHT"}, ZoneAware(50, 0, by_weight=True)),
    ):
        for kind in ("round_robin.v3.RoundRobin", "least_request.v3.LeastRequest", "random.v3.Random"):
            listed = policies((kind, {"locality_lb_config": {"zone_aware_lb_config": {**given, **more}}}))
            found = decode_cluster(load_balancing_policy=listed)
            assert (value_of(found).zone_aware, found.unused) == (expected, ())


def test_harmless_fields_are_reported(decode_cluster):
    decoded = decode_cluster(
        alt_stat_name="x",
        dns_lookup_family="V4_ONLY",
        lb_subset_config={},
        cleanup_interval="1s",
    )
    assert decoded.errors == ()
    assert set(decoded.unused) == {
        "alt_stat_name",
        "dns_lookup_family",
        "lb_subset_config",
        "cleanup_interval",
    }


def test_load_reports_go_to_the_same_server_or_not_at_all(decode_cluster):
    assert decode_cluster().value.load_reports is None
    found = decode_cluster(lrs_server={"self": {}}, lrs_report_endpoint_metrics=["cpu_utilization"])
    assert ((), LoadReports(("cpu_utilization",))) == (found.errors, found.value.load_reports)
    refused = decode_cluster(lrs_server={"ads": {}})
    assert ("lrs_server: only `self` is supported",) == refused.errors


def test_connections_to_one_endpoint_can_be_limited(decode_cluster):
    limits = [{"max_connections": 3}, {"priority": "HIGH", "max_connections": 7}, {"max_connections": 9}]
    decoded = decode_cluster(circuit_breakers={"per_host_thresholds": limits, "thresholds": [{"max_requests": 5}]})
    found = value_of(decoded)
    assert (3, 7) == (
        found.circuit_breakers.max_connections_per_host,
        found.high_priority_circuit_breakers.max_connections_per_host,
    )
    assert 5 == found.circuit_breakers.max_requests
    assert "circuit_breakers.per_host_thresholds[2]: is not the first of its priority" in decoded.unused


def test_panic_can_mean_failure(decode_cluster, policies):
    zone_aware = {"zone_aware_lb_config": {"fail_traffic_on_panic": True}}
    assert value_of(decode_cluster(common_lb_config=zone_aware)).fails_on_panic
    for kind in ("round_robin.v3.RoundRobin", "least_request.v3.LeastRequest", "random.v3.Random"):
        listed = policies((kind, {"locality_lb_config": zone_aware}))
        assert value_of(decode_cluster(load_balancing_policy=listed)).fails_on_panic
    assert not value_of(decode_cluster()).fails_on_panic
