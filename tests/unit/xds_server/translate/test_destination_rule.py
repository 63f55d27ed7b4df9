import pytest

from xds_server.model import Instance, Severity

HEAD = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\n"


def rule(name: str, spec: str, namespace: str = "default") -> str:
    return f"{HEAD}metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"


def test_a_subset_replaces_blocks_and_keeps_the_others(compiled, destination_rule):
    result = compiled(
        destination_rule(
            "{loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 7}}}",
            "{connectionPool: {http: {maxRetries: 2}}}",
        )
    )
    limits = result.cluster("v1")["circuit_breakers"]["thresholds"][0]
    assert result.cluster("v1")["lb_policy"] == "RANDOM"
    assert (limits["max_connections"], limits["max_retries"]) == (4294967295, 2)
    assert result.cluster("v2")["circuit_breakers"]["thresholds"][0]["max_connections"] == 7


def test_a_port_replaces_the_whole_policy_of_its_level(compiled, destination_rule, instance):
    policy = (
        "{loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 7}}, "
        "portLevelSettings: [{port: {number: 81}, connectionPool: {tcp: {maxConnections: 9}}}]}"
    )
    result = compiled(destination_rule(policy), instance(), instance(9002, service_port=81))
    port80, port81 = result.cluster(), result.cluster(port=81)
    assert (port80["lb_policy"], port81["lb_policy"]) == ("RANDOM", "LEAST_REQUEST")
    assert port81["circuit_breakers"]["thresholds"][0]["max_connections"] == 9


def test_a_port_of_a_subset_comes_last(compiled, destination_rule):
    subset = "{loadBalancer: {simple: RANDOM}, portLevelSettings: [{port: {number: 80}, tls: {mode: DISABLE}}]}"
    result = compiled(destination_rule("{outlierDetection: {interval: 1s}}", subset))
    assert result.cluster("v1")["lb_policy"] == "LEAST_REQUEST"
    assert "outlier_detection" not in result.cluster("v1")
    assert result.cluster("v2")["outlier_detection"]["interval"] == "1s"


def test_rules_of_one_host_are_merged_and_the_first_policy_wins(compiled):
    result = compiled(
        rule("b", "{host: reviews, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}, subsets: [{name: v2}]}")
        + rule(
            "a",
            "{host: reviews.default.svc.cluster.local, trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v1}]}",
        )
    )
    assert [result.cluster(subset)["lb_policy"] for subset in ("", "v1", "v2")] == ["RANDOM"] * 3


def test_the_exact_host_beats_a_wildcard_and_the_own_namespace_the_root(compiled, instance):
    result = compiled(
        rule("wild", "{host: '*.default.svc.cluster.local', trafficPolicy: {loadBalancer: {simple: RANDOM}}}")
        + rule("root", "{host: '*.local', trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}}}", "istio-system"),
        instance(),
        instance(9002, namespace="shop"),
    )
    assert result.cluster()["lb_policy"] == "RANDOM"
    assert result.get("CDS", "outbound|80||reviews.shop.svc.cluster.local")["lb_policy"] == "LEAST_REQUEST"


def test_a_rule_in_another_namespace_has_no_effect(compiled, instance):
    text = rule(
        "a", "{host: reviews.default.svc.cluster.local, trafficPolicy: {loadBalancer: {simple: RANDOM}}}", "shop"
    )
    assert compiled(text, instance()).cluster()["lb_policy"] == "LEAST_REQUEST"


def test_subsets_hold_the_endpoints_with_their_labels(compiled, destination_rule, instance):
    result = compiled(destination_rule(), instance(9001, "v1"), instance(9002, "v2"), instance(9003, "v1"))

    def ports(subset: str) -> list[int]:
        (locality,) = result.get("EDS", f"outbound|80|{subset}|reviews.default.svc.cluster.local")["endpoints"]
        return [one["endpoint"]["address"]["socket_address"]["port_value"] for one in locality["lb_endpoints"]]

    assert (ports(""), ports("v1"), ports("v2")) == ([9001, 9002, 9003], [9001, 9003], [9002])


def test_deprecated_consecutive_errors_count_as_consecutive_5xx(compiled, destination_rule):
    result = compiled(destination_rule("{outlierDetection: {consecutiveErrors: 4}}"))
    assert result.cluster()["outlier_detection"] == {
        "consecutive_5xx": 4,
        "enforcing_consecutive_5xx": 100,
        "enforcing_success_rate": 0,
    }


def test_zero_consecutive_errors_turn_the_check_off(compiled, destination_rule):
    result = compiled(destination_rule("{outlierDetection: {consecutive5xxErrors: 0, minHealthPercent: 30}}"))
    assert result.cluster()["outlier_detection"] == {"enforcing_consecutive_5xx": 0, "enforcing_success_rate": 0}
    assert result.cluster()["common_lb_config"] == {"healthy_panic_threshold": {"value": 30.0}}


@pytest.mark.parametrize("profile", ["meshlib", "envoy", "grpc"])
def test_a_limit_of_zero_is_none_as_in_istio(compiled, destination_rule, profile):
    """Handed on, it would let no request through."""
    pools = "tcp: {maxConnections: 0}, http: {http1MaxPendingRequests: 0, http2MaxRequests: 0, maxRetries: 0}"
    policy = f"connectionPool: {{{pools}}}, retryBudget: {{minRetryConcurrency: 0}}"
    zeros = compiled(destination_rule(f"{{{policy}}}"), profile=profile).cluster()
    unset = compiled(destination_rule("{retryBudget: {}}"), profile=profile).cluster()
    assert zeros.get("circuit_breakers") == unset.get("circuit_breakers")


def test_errors_of_the_callers_own_side_eject_by_runs_alone(compiled, destination_rule):
    policy = "splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: %s, maxEjectionPercent: 0"
    expected = {
        "split_external_local_origin_errors": True,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
    }
    unset = compiled(destination_rule(f"{{outlierDetection: {{{policy % 0}}}}}"))
    assert unset.cluster()["outlier_detection"] == expected
    three = compiled(destination_rule(f"{{outlierDetection: {{{policy % 3}}}}}"))
    runs = {"consecutive_local_origin_failure": 3, "enforcing_consecutive_local_origin_failure": 100}
    assert three.cluster()["outlier_detection"] == expected | runs
    whole = compiled(destination_rule("{outlierDetection: {consecutiveLocalOriginFailures: 3}}"))
    assert whole.cluster()["outlier_detection"] == {"enforcing_success_rate": 0}


def test_limits_that_nobody_set_are_the_largest_number(compiled, instance):
    assert compiled("", instance()).cluster()["circuit_breakers"] == {
        "thresholds": [
            {
                "max_connections": 4294967295,
                "max_pending_requests": 4294967295,
                "max_requests": 4294967295,
                "max_retries": 4294967295,
            }
        ]
    }


def test_stock_grpc_gets_only_max_requests(compiled, destination_rule):
    policy = "{connectionPool: {http: {http2MaxRequests: 5}}, outlierDetection: {consecutive5xxErrors: 1}}"
    result = compiled(destination_rule(policy), profile="grpc")
    cluster = result.cluster()
    assert cluster["circuit_breakers"] == {"thresholds": [{"max_requests": 5}]}
    assert not {"outlier_detection", "connect_timeout", "metadata"} & cluster.keys()
    assert [finding.message.split(":")[1].strip() for finding in result.findings] == ["outlierDetection"]


def test_protocol_and_connection_limits_are_http_options(compiled, destination_rule):
    grpc = Instance("i", "reviews", "default", "10.0.0.1", 9001, protocol="grpc")
    policy = "{connectionPool: {http: {maxRequestsPerConnection: 10, idleTimeout: 1h30m}}}"
    (options,) = compiled(destination_rule(policy), grpc).cluster()["typed_extension_protocol_options"].values()
    assert options == {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": {"idle_timeout": "5400s", "max_requests_per_connection": 10},
        "explicit_http_config": {"http2_protocol_options": {}},
    }


def test_hashing_is_ring_hash_or_maglev_and_a_hash_policy_on_routes(compiled, destination_rule):
    policy = "{loadBalancer: {consistentHash: {httpHeaderName: X-User, maglev: {tableSize: 101}}}}"
    result = compiled(destination_rule(policy), profile="envoy")
    assert (result.cluster()["lb_policy"], result.cluster()["maglev_lb_config"]) == ("MAGLEV", {"table_size": "101"})
    (route,) = result.get("RDS", "outbound")["virtual_hosts"][0]["routes"]
    assert route["route"]["hash_policy"] == [{"header": {"header_name": "x-user"}}]
    assert "retry_host_predicate" not in route["route"]["retry_policy"]
    grpc = compiled(destination_rule(policy), profile="grpc").cluster()
    assert (grpc["lb_policy"], grpc["ring_hash_lb_config"]) == ("RING_HASH", {"minimum_ring_size": "1024"})


@pytest.mark.parametrize("profile", ["envoy", "meshlib"])
@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (
            "httpCookie: {name: s, ttl: 60s, path: /a}",
            {"cookie": {"name": "s", "ttl": "60s", "path": "/a"}},
        ),
        ("httpQueryParameterName: user", {"query_parameter": {"name": "user"}}),
        ("useSourceIp: true, ringHash: {minimumRingSize: 9}", {"connection_properties": {"source_ip": True}}),
    ],
)
def test_envoy_and_meshlib_hash_alike(compiled, destination_rule, profile, source, expected):
    text = destination_rule(f"{{loadBalancer: {{consistentHash: {{{source}}}}}}}")
    result = compiled(text, profile=profile)
    size = "9" if "ringHash" in source else "1024"
    assert (result.cluster()["lb_policy"], result.cluster()["ring_hash_lb_config"]) == (
        "RING_HASH",
        {"minimum_ring_size": size},
    )
    routes = result.routes() if profile == "meshlib" else result.get("RDS", "outbound")["virtual_hosts"][0]["routes"]
    assert routes[0]["route"]["hash_policy"] == [expected]


def test_source_address_that_meshlib_lacks_is_said(compiled, destination_rule):
    text = destination_rule("{loadBalancer: {consistentHash: {useSourceIp: true}}}")
    assert compiled(text).codes == ["MESH0040"]
    assert compiled(text, profile="envoy").codes == []


@pytest.mark.parametrize(
    ("block", "policy", "expected"),
    [
        (
            "{warmup: {duration: 30s}}",
            "least_request",
            {"slow_start_window": "30s", "min_weight_percent": {"value": 10}},
        ),
        (
            "{simple: ROUND_ROBIN, warmup: {duration: 1m, aggression: 2, minimumPercent: 25}}",
            "round_robin",
            {
                "slow_start_window": "60s",
                "min_weight_percent": {"value": 25},
                "aggression": {"default_value": 2, "runtime_key": "xds_server.warmup.aggression"},
            },
        ),
        (
            "{simple: LEAST_CONN, warmupDurationSecs: 5s}",
            "least_request",
            {"slow_start_window": "5s", "min_weight_percent": {"value": 10}},
        ),
    ],
)
def test_warm_up_is_slow_start(compiled, destination_rule, block, policy, expected):
    cluster = compiled(destination_rule(f"{{loadBalancer: {block}}}")).cluster()
    assert cluster.get("lb_policy", "ROUND_ROBIN") == policy.upper()
    assert cluster[f"{policy}_lb_config"] == {"slow_start_config": expected}


@pytest.mark.parametrize(
    "block",
    ["{simple: RANDOM, warmup: {duration: 30s}}", "{consistentHash: {useSourceIp: true}, warmup: {duration: 30s}}"],
)
def test_warm_up_without_an_effect_is_told(compiled, destination_rule, block):
    result = compiled(destination_rule(f"{{loadBalancer: {block}}}"))
    assert "slow_start" not in str(result.cluster())
    assert any("loadBalancer.warmup" in finding.message for finding in result.findings)


@pytest.mark.parametrize(
    "block",
    [
        "{warmup: {aggression: 2}}",
        "{warmup: {duration: 1s, aggression: 0.5}}",
        "{warmup: {duration: 1s, minimumPercent: 101}}",
    ],
)
def test_warm_up_that_istio_refuses_is_refused(compiled, destination_rule, block):
    result = compiled(destination_rule(f"{{loadBalancer: {block}}}"))
    assert [Severity.ERROR] == [finding.severity for finding in result.findings if "warmup" in finding.message]
