import pytest

from meshlib.model.matcher import Fraction, HeaderMatcher
from meshlib.model.retry import HedgePolicy, RetryPolicy
from meshlib.model.route import (
    ClusterHeader,
    ClusterWeight,
    FaultAbort,
    FaultDelay,
    FaultPolicy,
    FaultRateLimit,
    HashPolicy,
    InternalRedirectPolicy,
    MadeCookie,
    MirrorPolicy,
    RegexRewrite,
    WeightedClusters,
)

ACTION = "virtual_hosts[0].routes[0].route"
STRUCT = "type.googleapis.com/google.protobuf.Struct"
HTTP_FAULT = "envoy.extensions.filters.http.fault.v3.HTTPFault"
FILTER_CONFIG = "envoy.config.route.v3.FilterConfig"


def action_of(decoded):
    assert decoded.errors == ()
    return decoded.value.virtual_hosts[0].routes[0].action


def paths_of(decoded):
    assert decoded.value is None
    return [error.partition(": ")[0].removeprefix(f"{ACTION}.") for error in decoded.errors]


def weighted(*entries, **fields):
    return {"weighted_clusters": {"clusters": list(entries), **fields}}


def test_weights_are_kept_and_zero_weights_dropped(decode_route):
    entries = ({"name": "a", "weight": 90}, {"name": "b", "weight": 0}, {"name": "c", "weight": 10})
    decoded = decode_route(weighted(*entries, header_name="X-Pick", total_weight=5))
    expected = WeightedClusters((ClusterWeight("a", 90), ClusterWeight("c", 10)), header_name="x-pick")
    assert action_of(decoded).cluster == expected
    assert decoded.unused == (f"{ACTION}.weighted_clusters.total_weight",)


@pytest.mark.parametrize(
    ("entries", "path"),
    [
        ([], "weighted_clusters.clusters"),
        ([{"name": "a"}], "weighted_clusters.clusters[0].weight"),
        ([{"name": "", "weight": 1}], "weighted_clusters.clusters[0].name"),
        ([{"name": "a", "weight": 0}], "weighted_clusters.clusters"),
        ([{"name": "a", "weight": 2**31}, {"name": "b", "weight": 2**31}], "weighted_clusters.clusters"),
        ([{"name": "a", "cluster_header": "x", "weight": 1}], "weighted_clusters.clusters[0].name"),
    ],
)
def test_weights_that_cannot_be_used(decode_route, entries, path):
    assert path in paths_of(decode_route(weighted(*entries)))


def test_the_largest_sum_of_weights(decode_route):
    entries = ({"name": "a", "weight": 2**31}, {"name": "b", "weight": 2**31 - 1})
    assert sum(entry.weight for entry in action_of(decode_route(weighted(*entries))).cluster.clusters) == 2**32 - 1


def test_a_cluster_named_by_a_header(decode_route):
    assert action_of(decode_route({"cluster_header": "X-Cluster"})).cluster == ClusterHeader("x-cluster")


def test_everything_else_of_an_action(decode_route):
    decoded = decode_route(
        {
            "timeout": "0s",
            "idle_timeout": "1.5s",
            "regex_rewrite": {"pattern": {"regex": "^/(a)"}, "substitution": "/\\1\\\\\\0"},
            "host_rewrite_literal": "h",
            "append_x_forwarded_host": True,
            "cluster_not_found_response_code": "NOT_FOUND",
            "priority": "HIGH",
            "max_stream_duration": {
                "max_stream_duration": "7s",
                "grpc_timeout_header_max": "3s",
                "grpc_timeout_header_offset": "1s",
            },
            "request_mirror_policies": [
                {"cluster": "m"},
                {"cluster": "n", "disable_shadow_host_suffix_append": True},
            ],
        }
    )
    action = action_of(decoded)
    assert (action.timeout_s, action.idle_timeout_s) == (0.0, 1.5)
    assert action.regex_rewrite == RegexRewrite("^/(a)", "/\\1\\\\\\0")
    assert (action.host_rewrite_literal, action.append_x_forwarded_host) == ("h", True)
    assert (action.cluster_not_found_status, action.high_priority) == (404, True)
    limits = (action.max_stream_duration_s, action.grpc_timeout_header_max_s, action.grpc_timeout_header_offset_s)
    assert limits == (7.0, 3.0, 1.0)
    assert action.mirrors == (
        MirrorPolicy("m", Fraction(100)),
        MirrorPolicy("n", Fraction(100), keeps_host=True),
    )


def test_the_stream_duration_message_alone_switches_the_route_timeout_off(decode_route):
    assert action_of(decode_route({"max_stream_duration": {}})).max_stream_duration_s == 0.0
    assert action_of(decode_route()).max_stream_duration_s is None


@pytest.mark.parametrize(
    "fields",
    [
        {"timeout": "5s", "max_grpc_timeout": "5s"},
        {"timeout": "0s", "max_grpc_timeout": "0s"},
        {"max_grpc_timeout": "15s"},
        {"max_grpc_timeout": "1s", "max_stream_duration": {}},
        {"grpc_timeout_offset": "1s"},
    ],
)
def test_legacy_grpc_timeouts_that_change_nothing_are_accepted(decode_route, fields):
    decoded = decode_route(fields)
    assert decoded.errors == ()
    assert len(decoded.unused) == 1


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"max_grpc_timeout": "5s"}, "max_grpc_timeout"),
        ({"timeout": "5s", "max_grpc_timeout": "0s"}, "max_grpc_timeout"),
        ({"timeout": "5s", "max_grpc_timeout": "5s", "grpc_timeout_offset": "1s"}, "grpc_timeout_offset"),
        ({"cluster_specifier_plugin": "p"}, "cluster_specifier_plugin"),
        ({"prefix_rewrite": "/a", "regex_rewrite": {"pattern": {"regex": "a"}}}, "regex_rewrite"),
        ({"regex_rewrite": {"pattern": {"regex": "a"}, "substitution": "\\x"}}, "regex_rewrite.substitution"),
        ({"regex_rewrite": {"pattern": {"regex": "a"}, "substitution": "a\\"}}, "regex_rewrite.substitution"),
        ({"regex_rewrite": {"pattern": {"regex": "("}}}, "regex_rewrite.pattern.regex"),
        ({"path_rewrite": "%REQ(a%"}, "path_rewrite"),
        ({"prefix_rewrite": "/a", "path_rewrite": "/b"}, "path_rewrite"),
        ({"host_rewrite": "%NOPE%"}, "host_rewrite"),
        (
            {"host_rewrite_path_regex": {"pattern": {"regex": "("}}},
            "host_rewrite_path_regex.pattern.regex",
        ),
        (
            {
                "internal_redirect_policy": {
                    "predicates": [{"name": "p", "typed_config": {"@type": STRUCT, "value": {}}}]
                }
            },
            "internal_redirect_policy.predicates[0]",
        ),
        ({"internal_redirect_action": "HANDLE_INTERNAL_REDIRECT"}, "internal_redirect_action"),
        ({"timeout": "-1s"}, "timeout"),
        ({"request_mirror_policies": [{"cluster": ""}]}, "request_mirror_policies[0].cluster"),
        (
            {"request_mirror_policies": [{"cluster": "m", "cluster_header": "h"}]},
            "request_mirror_policies[0].cluster",
        ),
        ({"retry_policy": {"retry_priority": {"name": "p"}}}, "retry_policy.retry_priority"),
        (
            {"retry_policy": {"retry_host_predicate": [{"name": "envoy.retry_host_predicates.made_up"}]}},
            "retry_policy.retry_host_predicate[0]",
        ),
        ({"retry_policy": {"retry_back_off": {}}}, "retry_policy.retry_back_off.base_interval"),
        ({"retry_policy": {"retry_back_off": {"base_interval": "0s"}}}, "retry_policy.retry_back_off.base_interval"),
        (
            {"retry_policy": {"retry_back_off": {"base_interval": "2s", "max_interval": "1s"}}},
            "retry_policy.retry_back_off.max_interval",
        ),
        (
            {"retry_policy": {"rate_limited_retry_back_off": {"reset_headers": []}}},
            "retry_policy.rate_limited_retry_back_off.reset_headers",
        ),
        (
            {"retry_policy": {"retriable_headers": [{"name": "a", "safe_regex_match": {"regex": "("}}]}},
            "retry_policy.retriable_headers[0].safe_regex_match.regex",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(decode_route, fields, path):
    assert paths_of(decode_route(fields)) == [path]


def test_harmless_fields_are_reported(decode_route):
    decoded = decode_route(
        {
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "metadata_match": {},
            "cors": {},
            "max_internal_redirects": 3,
            "hedge_policy": {},
        }
    )
    assert decoded.errors == ()
    names = {path.removeprefix(f"{ACTION}.") for path in decoded.unused}
    assert names == {"upgrade_configs", "metadata_match", "cors", "max_internal_redirects"}


def test_hash_policies(decode_route):
    policies = [
        {"header": {"header_name": "X-U", "regex_rewrite": {"pattern": {"regex": "(a)"}, "substitution": "\\1"}}},
        {"cookie": {"name": "C", "ttl": "1.9s", "path": "/", "attributes": [{"name": "Secure"}]}, "terminal": True},
        {"cookie": {"name": "D", "path": "/"}},
        {"connection_properties": {"source_ip": True}},
        {"query_parameter": {"name": "q"}},
        {"filter_state": {"key": "io.grpc.channel_id"}},
    ]
    decoded = decode_route({"hash_policy": policies})
    assert action_of(decoded).hash_policies == (
        HashPolicy("header", "x-u", regex=RegexRewrite("(a)", "\\1")),
        HashPolicy("cookie", "C", terminal=True, made=MadeCookie(1, "/", (("Secure", ""),))),
        HashPolicy("cookie", "D"),
        HashPolicy("source_ip"),
        HashPolicy("query_parameter", "q"),
        HashPolicy("filter_state", "io.grpc.channel_id"),
    )
    assert [entry.partition(":")[0] for entry in decoded.unused] == [
        f"{ACTION}.hash_policy[2].cookie.path",
        f"{ACTION}.hash_policy[3].connection_properties.source_ip",
        f"{ACTION}.hash_policy[5].filter_state",
    ]


def test_a_cookie_that_is_made_up_cannot_choose_the_cluster(decode_route):
    fields = weighted({"name": "a", "weight": 1}, use_hash_policy=True)
    with_ttl = {**fields, "hash_policy": [{"cookie": {"name": "C", "ttl": "0s"}}]}
    assert paths_of(decode_route(with_ttl)) == ["weighted_clusters.use_hash_policy"]
    assert action_of(decode_route({**fields, "hash_policy": [{"cookie": {"name": "C"}}]})).cluster.use_hash_policy


def test_retry_policies(decode_route, packed):
    predicate = packed("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate")
    policy = {
        "retry_on": " 5xx, cancelled,,made-up ",
        "num_retries": 0,
        "per_try_timeout": "0.25s",
        "retriable_status_codes": [404],
        "retriable_headers": [{"name": "X-R"}],
        "retriable_request_headers": [{"name": "X-Q", "present_match": True}],
        "retry_back_off": {"base_interval": "0.0001s", "max_interval": "2s"},
        "retry_host_predicate": [{"name": "p", "typed_config": predicate}],
        "host_selection_retry_max_attempts": 5,
    }
    assert action_of(decode_route({"retry_policy": policy})).retry == RetryPolicy(
        retry_on=frozenset({"5xx", "cancelled", "made-up"}),
        num_retries=0,
        per_try_timeout_s=0.25,
        retriable_status_codes=(404,),
        retriable_headers=(HeaderMatcher("x-r", True),),
        retriable_request_headers=(HeaderMatcher("x-q", True),),
        base_interval_s=0.001,
        max_interval_s=2.0,
        avoid_previous_hosts=True,
        host_selection_attempts=5,
    )


def test_where_and_when_retries_go(decode_route, packed):
    canaries = packed("envoy.extensions.retry.host.omit_canary_hosts.v3.OmitCanaryHostsPredicate")
    labels = {"filter_metadata": {"envoy.lb": {"v": "1", "zone": "a"}}}
    metadata = packed("envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig", metadata_match=labels)
    priorities = packed(
        "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", update_frequency=2
    )
    resets = [{"name": "Retry-After", "format": "SECONDS"}, {"name": "x-reset", "format": "UNIX_TIMESTAMP"}]
    policy = {
        "per_try_idle_timeout": "0.5s",
        "rate_limited_retry_back_off": {"reset_headers": resets, "max_interval": "20s"},
        "retry_host_predicate": [{"name": "c", "typed_config": canaries}, {"name": "m", "typed_config": metadata}],
        "retry_priority": {"name": "p", "typed_config": priorities},
    }
    assert action_of(decode_route({"retry_policy": policy})).retry == RetryPolicy(
        frozenset(),
        per_try_idle_timeout_s=0.5,
        reset_headers=(("retry-after", False), ("x-reset", True)),
        max_reset_s=20.0,
        avoid_canaries=True,
        avoid_metadata=((("v", "1"), ("zone", "a")),),
        priority_update=2,
    )


def test_internal_redirects(decode_route, packed):
    prefix = "envoy.extensions.internal_redirect"
    predicates = [
        {"name": "p", "typed_config": packed(f"{prefix}.previous_routes.v3.PreviousRoutesConfig")},
        {
            "name": "a",
            "typed_config": packed(
                f"{prefix}.allow_listed_routes.v3.AllowListedRoutesConfig", allowed_route_names=["r", "s"]
            ),
        },
        {"name": "s", "typed_config": packed(f"{prefix}.safe_cross_scheme.v3.SafeCrossSchemeConfig")},
    ]
    policy = {
        "max_internal_redirects": 3,
        "redirect_response_codes": [301, 303, 200],
        "predicates": predicates,
        "allow_cross_scheme_redirect": True,
        "response_headers_to_copy": ["X-A", "x-b"],
    }
    assert action_of(decode_route({"internal_redirect_policy": policy})).internal_redirect == InternalRedirectPolicy(
        3, frozenset({301, 303}), True, ("x-a", "x-b"), True, frozenset({"r", "s"}), True
    )
    assert action_of(decode_route({"internal_redirect_policy": {}})).internal_redirect == InternalRedirectPolicy()


def test_hedge_policies(decode_route):
    policy = {
        "hedge_on_per_try_timeout": True,
        "initial_requests": 2,
        "additional_request_chance": {"numerator": 5, "denominator": "TEN_THOUSAND"},
    }
    decoded = decode_route({"hedge_policy": policy})
    assert action_of(decoded).hedge == HedgePolicy(True, 2, Fraction(5, 10_000))
    assert [path.rpartition(".")[2] for path in (text.partition(":")[0] for text in decoded.unused)] == [
        "initial_requests",
        "additional_request_chance",
    ]


def test_an_empty_retry_policy_has_envoys_defaults_and_hides_nothing(decode_route):
    assert action_of(decode_route({"retry_policy": {}})).retry == RetryPolicy(frozenset())


def test_the_retry_policy_of_a_virtual_host(decode_host):
    assert decode_host(retry_policy={"retry_on": "reset"}).value.virtual_hosts[0].retry == RetryPolicy(
        frozenset({"reset"})
    )


ABORT = {"abort": {"http_status": 503, "percentage": {"numerator": 100}}}
POLICY = FaultPolicy(abort=FaultAbort(Fraction(100), 503))


def test_fault_overrides_of_every_level(decode, packed):
    config = {"typed_per_filter_config": {"fault": packed(HTTP_FAULT, **ABORT)}}
    action = {"weighted_clusters": {"clusters": [{"name": "a", "weight": 1, **config}]}}
    route = {"match": {"prefix": "/"}, "route": action, **config}
    value = decode(
        "RDS",
        {"name": "rc", "virtual_hosts": [{"name": "vh", "domains": ["*"], "routes": [route], **config}], **config},
    ).value
    host = value.virtual_hosts[0]
    found = (value.fault, host.fault, host.routes[0].fault, host.routes[0].action.cluster.clusters[0].fault)
    assert found == (POLICY, POLICY, POLICY, POLICY)


def test_faults_in_full(decode_host, packed):
    fault = packed(
        HTTP_FAULT,
        delay={"fixed_delay": "0.5s", "percentage": {"numerator": 1, "denominator": "MILLION"}},
        abort={"grpc_status": 14},
        headers=[{"name": "X-F"}],
        max_active_faults=3,
        delay_percent_runtime="r",
    )
    decoded = decode_host(typed_per_filter_config={"f": fault})
    assert decoded.value.virtual_hosts[0].fault == FaultPolicy(
        delay=FaultDelay(0.5, Fraction(1, 1_000_000, "r")),
        abort=FaultAbort(Fraction(0), grpc_status=14),
        headers=(HeaderMatcher("x-f", True),),
        max_active=3,
    )
    assert decoded.unused == ()


def test_a_wrapped_override_and_a_disabled_filter(decode_host, packed):
    wrapped = packed(FILTER_CONFIG, config=packed(HTTP_FAULT, **ABORT))
    assert decode_host(typed_per_filter_config={"f": wrapped}).value.virtual_hosts[0].fault == POLICY
    for off in (
        packed(FILTER_CONFIG, disabled=True, config=packed(HTTP_FAULT, **ABORT)),
        packed(FILTER_CONFIG, disabled=True),
    ):
        found = decode_host(typed_per_filter_config={"envoy.filters.http.fault": off})
        assert found.value.virtual_hosts[0].fault == FaultPolicy()


def test_faults_that_requests_ask_for(decode_host, packed):
    half = {"percentage": {"numerator": 50}}
    fault = packed(
        HTTP_FAULT,
        delay={"header_delay": {}, **half},
        abort={"header_abort": {}, **half},
        response_rate_limit={"header_limit": {}, **half},
        upstream_cluster="c",
        downstream_nodes=["n", "m"],
    )
    decoded = decode_host(typed_per_filter_config={"f": fault})
    assert decoded.value.virtual_hosts[0].fault == FaultPolicy(
        delay=FaultDelay(0.0, Fraction(50), by_header=True),
        abort=FaultAbort(Fraction(50), by_header=True),
        rate_limit=FaultRateLimit(0, Fraction(50), by_header=True),
        upstream_cluster="c",
        downstream_nodes=("n", "m"),
    )


def test_a_limit_of_the_response(decode_host, packed):
    limit = {"fixed_limit": {"limit_kbps": 7}, "percentage": {"numerator": 100}}
    decoded = decode_host(typed_per_filter_config={"f": packed(HTTP_FAULT, response_rate_limit=limit)})
    assert decoded.value.virtual_hosts[0].fault == FaultPolicy(rate_limit=FaultRateLimit(7, Fraction(100)))


def test_overrides_of_filters_that_we_do_not_have_are_reported(decode_host, packed):
    cors = packed("envoy.extensions.filters.http.cors.v3.CorsPolicy")
    optional = {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {}}
    configs = {"cors": cors, "later": packed(FILTER_CONFIG, is_optional=True, config=optional)}
    decoded = decode_host(typed_per_filter_config=configs)
    assert decoded.errors == ()
    assert decoded.unused == (
        'virtual_hosts[0].typed_per_filter_config["cors"]',
        'virtual_hosts[0].typed_per_filter_config["later"].config',
    )


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        (HTTP_FAULT, {"delay": {"fixed_delay": "0s"}}),
        (HTTP_FAULT, {"delay": {}}),
        (HTTP_FAULT, {"abort": {"http_status": 199}}),
        (HTTP_FAULT, {"abort": {"grpc_status": 17}}),
        (HTTP_FAULT, {"response_rate_limit": {"fixed_limit": {"limit_kbps": 0}}}),
        (FILTER_CONFIG, {}),
        ("envoy.extensions.filters.http.rbac.v3.RBACPerRoute", {}),
    ],
)
def test_overrides_that_cannot_be_honoured_are_refused(decode_host, packed, name, fields):
    decoded = decode_host(typed_per_filter_config={"f": packed(name, **fields)})
    assert decoded.value is None
    assert all(error.startswith('virtual_hosts[0].typed_per_filter_config["f"]') for error in decoded.errors)


def test_a_second_fault_filter_is_refused(decode_host, packed):
    configs = {"f": packed(HTTP_FAULT), "g": packed(HTTP_FAULT)}
    assert "second fault filter" in decode_host(typed_per_filter_config=configs).errors[0]


def test_an_override_given_as_a_typed_struct(decode_host, packed):
    struct = packed("xds.type.v3.TypedStruct", type_url=f"type.googleapis.com/{HTTP_FAULT}", value=ABORT)
    assert decode_host(typed_per_filter_config={"f": struct}).value.virtual_hosts[0].fault == POLICY
    bad = packed("xds.type.v3.TypedStruct", type_url=f"type.googleapis.com/{HTTP_FAULT}", value={"nope": 1})
    assert "HTTPFault" in decode_host(typed_per_filter_config={"f": bad}).errors[0]
