"""A VirtualService's rules as routes."""

import pytest

V1 = "{destination: {host: reviews, subset: v1}}"
V2 = "{destination: {host: reviews, subset: v2}}"


@pytest.fixture
def routes(compiled, virtual_service, destination_rule):
    def of(rules: str, **options: str) -> list[dict[str, object]]:
        return compiled(virtual_service(rules) + "---\n" + destination_rule(), **options).routes()

    return of


MATCHES = {
    "{uri: {exact: /a}}": {"path": "/a", "case_sensitive": True},
    "{uri: {prefix: /a}, ignoreUriCase: true}": {"prefix": "/a", "case_sensitive": False},
    "{uri: {regex: '/a.*'}}": {"safe_regex": {"regex": "/a.*"}, "case_sensitive": True},
    "{method: {exact: GET}, authority: {prefix: a}, scheme: {exact: https}}": {
        "prefix": "/",
        "case_sensitive": True,
        "headers": [
            {"name": ":method", "string_match": {"exact": "GET"}},
            {"name": ":authority", "string_match": {"prefix": "a"}},
            {"name": ":scheme", "string_match": {"exact": "https"}},
        ],
    },
    "{headers: {Z: {exact: a}, a: {}, b: {regex: '*'}, c: {prefix: ''}, d: {regex: 'x|y'}}}": {
        "prefix": "/",
        "case_sensitive": True,
        "headers": [
            {"name": "a", "present_match": True},
            {"name": "b", "present_match": True},
            {"name": "c", "present_match": True},
            {"name": "d", "string_match": {"safe_regex": {"regex": "x|y"}}},
            {"name": "z", "string_match": {"exact": "a"}},
        ],
    },
    "{withoutHeaders: {a: {exact: b}, c: {}}}": {
        "prefix": "/",
        "case_sensitive": True,
        "headers": [
            {
                "name": "a",
                "string_match": {"exact": "b"},
                "invert_match": True,
                "treat_missing_header_as_empty": True,
            },
            {"name": "c", "present_match": True, "invert_match": True},
        ],
    },
    "{queryParams: {b: {exact: '1'}, a: {}}}": {
        "prefix": "/",
        "case_sensitive": True,
        "query_parameters": [
            {"name": "a", "present_match": True},
            {"name": "b", "string_match": {"exact": "1"}},
        ],
    },
}


@pytest.mark.parametrize(("match", "expected"), MATCHES.items(), ids=MATCHES)
def test_match(routes, match, expected):
    (route,) = routes(f"- {{match: [{match}], route: [{V1}]}}")
    assert route["match"] == expected


def test_stock_grpc_needs_two_routes_where_a_header_may_be_missing(routes):
    found = routes(f"- {{match: [{{withoutHeaders: {{a: {{exact: b}}}}}}], route: [{V1}]}}", profile="grpc")
    assert [route["match"]["headers"] for route in found] == [
        [{"name": "a", "present_match": True, "invert_match": True}],
        [{"name": "a", "string_match": {"exact": "b"}, "invert_match": True}],
    ]


def test_stock_grpc_always_keeps_a_route(routes):
    (route,) = routes(f"- {{match: [{{queryParams: {{a: {{}}}}}}], route: [{V1}]}}", profile="grpc")
    assert route == {
        "name": "no-supported-route",
        "match": {"prefix": ""},
        "direct_response": {"status": 404},
    }


def test_each_match_is_a_route_and_names_are_joined(routes):
    found = routes(f"- {{name: r, match: [{{name: m, uri: {{exact: /a}}}}, {{uri: {{exact: /b}}}}], route: [{V1}]}}")
    assert [(route["name"], route["match"]["path"]) for route in found] == [("r.m", "/a"), ("r", "/b")]


def test_nothing_follows_a_catch_all(routes):
    found = routes(
        f"- {{match: [{{uri: {{exact: /a}}}}], route: [{V1}]}}\n- route: [{V1}]\n- {{match: [{{uri: {{exact: /b}}}}], route: [{V2}]}}"
    )
    assert [route["match"].get("path", "catch-all") for route in found] == ["/a", "catch-all"]


def test_a_match_for_another_port_does_not_apply(compiled, virtual_service, instance):
    rules = f"- {{match: [{{port: 81}}], redirect: {{uri: /81}}}}\n- route: [{V1}]"
    result = compiled(virtual_service(rules), instance(), instance(9002, service_port=81))
    assert [len(result.routes(port=port)) for port in (80, 81)] == [1, 1]
    assert result.routes(port=81)[0]["redirect"] == {"path_redirect": "/81"}
    assert "route" in result.routes(port=80)[0]


def test_zero_weights_are_dropped(routes):
    (route,) = routes(
        f"- route: [{V1[:-1]}, weight: 0}}, {V2[:-1]}, weight: 3}}, {{destination: {{host: reviews}}, weight: 1}}]"
    )
    assert route["route"]["weighted_clusters"] == {
        "clusters": [
            {"name": "outbound|80|v2|reviews.default.svc.cluster.local", "weight": 3},
            {"name": "outbound|80||reviews.default.svc.cluster.local", "weight": 1},
        ]
    }


ACTIONS = {
    "timeout: 1.5s": {"timeout": "1.500s"},
    "rewrite: {uri: /b, authority: c}": {"prefix_rewrite": "/b", "host_rewrite_literal": "c"},
    "rewrite: {uriRegexRewrite: {match: '/(.*)', rewrite: '\\1'}}": {
        "regex_rewrite": {"pattern": {"regex": "/(.*)"}, "substitution": "\\1"}
    },
    "headers: {request: {set: {Host: c}}}": {"host_rewrite_literal": "c"},
    "mirror: {host: reviews, subset: v2}, mirrorPercentage: {value: 12.5}": {
        "request_mirror_policies": [
            {
                "cluster": "outbound|80|v2|reviews.default.svc.cluster.local",
                "runtime_fraction": {"default_value": {"numerator": 125000, "denominator": "MILLION"}},
                "disable_shadow_host_suffix_append": True,
            }
        ]
    },
    "mirror: {host: reviews}, mirrorPercentage: {value: 0}": {},
}


@pytest.mark.parametrize(("fields", "expected"), ACTIONS.items(), ids=ACTIONS)
def test_action(routes, fields, expected):
    (route,) = routes(f"- {{route: [{V1}], {fields}}}")
    usual = {"cluster", "retry_policy"} | ({"timeout"} - expected.keys())
    assert {key: value for key, value in route["route"].items() if key not in usual} == expected


RETRIES = {
    "{attempts: 0}": None,
    "{}": None,
    "{attempts: 2, retryOn: '5xx,503,429', perTryTimeout: 100ms, backoff: 10ms}": {
        "retry_on": "5xx,retriable-status-codes",
        "retriable_status_codes": [503, 429],
        "num_retries": 2,
        "per_try_timeout": "0.100s",
        "retry_back_off": {"base_interval": "0.010s"},
    },
}


@pytest.mark.parametrize(("retries", "expected"), RETRIES.items(), ids=RETRIES)
def test_retries(routes, retries, expected):
    (route,) = routes(f"- {{route: [{V1}], retries: {retries}}}")
    policy = route["route"].get("retry_policy")
    if policy is not None:
        assert policy.pop("host_selection_retry_max_attempts") == "5"
        assert policy.pop("retry_host_predicate")[0]["name"] == "envoy.retry_host_predicates.previous_hosts"
    assert policy == expected


GRPC_RETRIES = {
    "{attempts: 3, perTryTimeout: 2s}": {"retry_on": "unavailable,cancelled", "num_retries": 3},
    "{attempts: 3, retryOn: 5xx}": {"retry_on": "unavailable", "num_retries": 3},
    "{attempts: 3, retryOn: 'internal,503'}": {"retry_on": "internal", "num_retries": 3},
    "{attempts: 3, retryOn: '503'}": None,
}


@pytest.mark.parametrize(("retries", "expected"), GRPC_RETRIES.items(), ids=GRPC_RETRIES)
def test_retries_of_stock_grpc(routes, retries, expected):
    (route,) = routes(f"- {{route: [{V1}], retries: {retries}}}", profile="grpc")
    assert route["route"].get("retry_policy") == expected


def test_a_timeout_of_stock_grpc_is_a_stream_duration(routes):
    (route,) = routes(f"- {{route: [{V1}], timeout: 2s}}", profile="grpc")
    assert route["route"]["max_stream_duration"] == {"max_stream_duration": "2s"}
    assert "max_grpc_timeout" not in route["route"]


FAULTS = {
    "{delay: {fixedDelay: 1s}}": {"delay": {"fixed_delay": "1s", "percentage": {"denominator": "MILLION"}}},
    "{delay: {fixedDelay: 1s, percent: 5}}": {
        "delay": {"fixed_delay": "1s", "percentage": {"numerator": 50000, "denominator": "MILLION"}}
    },
    "{abort: {httpStatus: 503, percentage: {value: 0.5}}}": {
        "abort": {"http_status": 503, "percentage": {"numerator": 5000, "denominator": "MILLION"}}
    },
    "{abort: {grpcStatus: UNAVAILABLE, percentage: {value: 100}}}": {
        "abort": {"grpc_status": 14, "percentage": {"numerator": 1000000, "denominator": "MILLION"}}
    },
}


@pytest.mark.parametrize("profile", ["envoy", "grpc", "meshlib"])
@pytest.mark.parametrize(("fault", "expected"), FAULTS.items(), ids=FAULTS)
def test_fault(compiled, virtual_service, fault, expected, profile):
    result = compiled(virtual_service(f"- {{route: [{V1}], fault: {fault}}}"), profile=profile)
    name = "outbound" if profile == "envoy" else "outbound|80||reviews.default.svc.cluster.local"
    (route,) = result.get("RDS", name)["virtual_hosts"][0]["routes"]
    config = route["typed_per_filter_config"]["envoy.filters.http.fault"]
    assert {key: value for key, value in config.items() if key != "@type"} == expected


def test_headers_are_set_then_added_then_removed_in_lower_case(routes):
    (route,) = routes(
        f"- {{route: [{V1[:-1]}, headers: {{response: {{remove: [Server]}}}}}}], "
        "headers: {request: {add: {A: '1'}, set: {B: '2'}, remove: [C, Host]}}}"
    )

    def option(name: str, value: str, action: str) -> dict[str, object]:
        result = {"header": {"key": name, "value": value}, "keep_empty_value": True}
        return result | ({"append_action": action} if action else {})

    assert route["request_headers_to_add"] == [option("b", "2", "OVERWRITE_IF_EXISTS_OR_ADD"), option("a", "1", "")]
    assert (route["request_headers_to_remove"], route["response_headers_to_remove"]) == (["c"], ["server"])


@pytest.mark.parametrize(
    ("redirect", "expected"),
    {
        "{uri: /b}": {"path_redirect": "/b"},
        "{prefixRewrite: /b, redirectCode: 308}": {"prefix_rewrite": "/b", "response_code": "PERMANENT_REDIRECT"},
        "{authority: b, scheme: https, derivePort: FROM_PROTOCOL_DEFAULT}": {
            "host_redirect": "b",
            "scheme_redirect": "https",
            "port_redirect": 443,
        },
    }.items(),
)
def test_redirect(routes, redirect, expected):
    (route,) = routes(f"- redirect: {redirect}")
    assert route["redirect"] == expected


def test_direct_response(compiled, virtual_service):
    result = compiled(virtual_service("- directResponse: {status: 418, body: {string: tea}}"))
    assert result.routes()[0]["direct_response"] == {"status": 418, "body": {"inline_string": "tea"}}
    configuration = result.get("RDS", "outbound|80||reviews.default.svc.cluster.local")
    assert configuration["max_direct_response_body_size_bytes"] == 1048576


def test_what_stock_grpc_cannot_do_is_said_once_each(compiled, virtual_service):
    rules = "\n".join(
        f"- {{match: [{{uri: {{exact: /{name}}}}}], route: [{{destination: {{host: reviews}}}}], rewrite: {{uri: /}}, "
        "mirror: {host: reviews}, headers: {request: {set: {a: b}}}}"
        for name in "ab"
    )
    result = compiled(virtual_service(rules), profile="grpc")
    assert sorted(finding.message.split(":")[1].strip() for finding in result.findings) == [
        "headers",
        "mirror",
        "rewrite",
    ]
    assert result.routes()[0]["route"].keys() == {"cluster", "timeout", "retry_policy"}


def envoy_action(compiled, virtual_service, fields: str) -> dict[str, object]:
    result = compiled(virtual_service(f"- {{route: [{{destination: {{host: reviews}}}}], {fields}}}"), profile="envoy")
    return result.get("RDS", "outbound")["virtual_hosts"][0]["routes"][0]["route"]


def test_envoy_caps_the_deadlines_of_grpc_callers(compiled, virtual_service):
    assert envoy_action(compiled, virtual_service, "timeout: 2s")["max_grpc_timeout"] == "2s"


def test_envoy_retries_in_other_localities(compiled, virtual_service):
    policy = envoy_action(compiled, virtual_service, "retries: {attempts: 1, retryRemoteLocalities: true}")[
        "retry_policy"
    ]
    assert policy["retry_priority"] == {
        "name": "envoy.retry_priorities.previous_priorities",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            "update_frequency": 2,
        },
    }


def test_envoy_mirrors_with_the_host_as_it_was(compiled, virtual_service):
    (mirror,) = envoy_action(compiled, virtual_service, "mirror: {host: reviews}")["request_mirror_policies"]
    assert (mirror["trace_sampled"], mirror["disable_shadow_host_suffix_append"]) == (False, True)


def test_what_meshlib_cannot_do_yet_is_said(compiled, virtual_service):
    rules = "- {route: [{destination: {host: reviews}}], retries: {attempts: 1, retryRemoteLocalities: true}}"
    result = compiled(virtual_service(rules))
    assert [finding.message.split(":")[1].strip() for finding in result.findings] == [
        "retries.retryRemoteLocalities",
    ]
