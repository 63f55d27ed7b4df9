"""Rich route configurations."""

from xds_corpus_parts import (
    ADDITION,
    ADS,
    FILTER,
    HEADERS,
    MUTATIONS,
    QUERY,
    REGEX,
    RUNTIME_SHARE,
    SHARE,
    TEXT,
    TYPE,
    Json,
    named,
)

HASHES: list[Json] = [
    {"header": {"header_name": "x-h", "regex_rewrite": {"pattern": REGEX, "substitution": "x"}}, "terminal": True},
    {"cookie": {"name": "c", "ttl": "5s", "path": "/", "attributes": [{"name": "Secure", "value": "1"}]}},
    {"connection_properties": {"source_ip": True}},
    {"query_parameter": {"name": "q"}},
    {"filter_state": {"key": "k"}},
]
RETRY: Json = {
    "retry_on": "5xx",
    "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"},
    "rate_limited_retry_back_off": {
        "reset_headers": [{"name": "retry-after", "format": "UNIX_TIMESTAMP"}],
        "max_interval": "9s",
    },
    "retry_host_predicate": [
        named(
            "envoy.extensions.retry.host.omit_host_metadata.v3.OmitHostMetadataConfig",
            metadata_match={"filter_metadata": {"envoy.lb": {"a": "b"}}},
        )
    ],
    "retry_priority": named(
        "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", update_frequency=2
    ),
    "retriable_headers": HEADERS,
}
METADATA_KEY: Json = {"key": "k", "path": [{"key": "p"}]}
DESCRIPTOR_ACTIONS: list[Json] = [
    {"generic_key": {"descriptor_value": "v", "descriptor_key": "k"}},
    {"destination_cluster": {}},
    {"remote_address": {}},
    {"masked_remote_address": {"v4_prefix_mask_len": 8, "v6_prefix_mask_len": 16}},
    {"request_headers": {"header_name": "x-a", "descriptor_key": "k", "skip_if_absent": True}},
    {"query_parameters": {"query_parameter_name": "q", "descriptor_key": "k", "skip_if_absent": True}},
    {"header_value_match": {"descriptor_value": "v", "descriptor_key": "k", "expect_match": False, "headers": HEADERS}},
    {"query_parameter_value_match": {"descriptor_value": "v", "descriptor_key": "k", "expect_match": False, "query_parameters": QUERY}},
    {"metadata": {"descriptor_key": "k", "metadata_key": METADATA_KEY, "default_value": "d", "source": "ROUTE_ENTRY", "skip_if_absent": True}},
    {"dynamic_metadata": {"descriptor_key": "k", "metadata_key": METADATA_KEY, "default_value": "d"}},
]  # fmt: skip
BODY: Json = {"text_format_source": {"inline_string": "%REQ(x)%"}, "content_type": "text/x", "omit_empty_values": True}
ROUTE: Json = {
    "name": "a",
    "match": {
        "prefix": "/",
        "headers": HEADERS,
        "query_parameters": QUERY,
        "runtime_fraction": RUNTIME_SHARE,
        "grpc": {},
        "tls_context": {"presented": False, "validated": False},
        "dynamic_metadata": [
            {"filter": "f", "path": [{"key": "k"}], "value": {"string_match": TEXT}, "invert": True},
        ],
        "filter_state": [{"key": "k", "string_match": TEXT}],
    },
    "route": {
        "cluster": "c",
        "hash_policy": HASHES,
        "retry_policy": RETRY,
        "hedge_policy": {"initial_requests": 2, "additional_request_chance": SHARE, "hedge_on_per_try_timeout": True},
        "internal_redirect_policy": {
            "max_internal_redirects": 3,
            "redirect_response_codes": [303],
            "predicates": [
                named(
                    "envoy.extensions.internal_redirect.allow_listed_routes.v3.AllowListedRoutesConfig",
                    allowed_route_names=["a"],
                )
            ],
            "allow_cross_scheme_redirect": True,
            "response_headers_to_copy": ["x-a"],
        },
        "max_stream_duration": {
            "max_stream_duration": "5s",
            "grpc_timeout_header_max": "4s",
            "grpc_timeout_header_offset": "1s",
        },
        "regex_rewrite": {"pattern": REGEX, "substitution": "x"},
        "metadata_match": {"filter_metadata": {"envoy.lb": {"a": "b"}}},
        "rate_limits": [{"stage": 1, "actions": DESCRIPTOR_ACTIONS}],
        "request_mirror_policies": [{"cluster": "m", "request_headers_mutations": MUTATIONS}],
    },
    "typed_per_filter_config": {
        "fault": {
            "@type": TYPE + "envoy.config.route.v3.FilterConfig",
            "config": {"@type": FILTER + "fault.v3.HTTPFault", "max_active_faults": 3},
            "is_optional": True,
        },
        "mutate": {
            "@type": FILTER + "header_mutation.v3.HeaderMutationPerRoute",
            "mutations": {"request_mutations": MUTATIONS},
        },
        "session": {
            "@type": FILTER + "stateful_session.v3.StatefulSessionPerRoute",
            "stateful_session": {"strict": True},
        },
    },
    "request_headers_to_add": [ADDITION],
}
TEMPLATE: Json = {
    "match": {
        "path_match_policy": named(
            "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig", path_template="/{a}"
        ),
    },
    "route": {
        "weighted_clusters": {"clusters": [{"name": "c", "weight": 1}]},
        "path_rewrite_policy": named(
            "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig", path_template_rewrite="/x/{a}"
        ),
    },
}
REDIRECT: Json = {
    "match": {"safe_regex": REGEX},
    "redirect": {
        "host_redirect": "h",
        "port_redirect": 1,
        "regex_rewrite": {"pattern": REGEX, "substitution": "x"},
        "response_code": "FOUND",
        "strip_query": True,
        "https_redirect": True,
    },
}
ANSWER: Json = {
    "match": {"path": "/"},
    "direct_response": {"status": 200, "body": {"inline_string": "x"}, "body_format": BODY},
}
REFUSAL: Json = {"match": {"connect_matcher": {}}, "non_forwarding_action": {}}
ROUTES: Json = {
    "name": "r",
    "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [ROUTE, TEMPLATE, REDIRECT, ANSWER, REFUSAL]}],
}
HEADER_INPUT: Json = named("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name="x-a")
SINGLE: Json = {"single_predicate": {"input": HEADER_INPUT, "value_match": {"exact": "a", "ignore_case": True}}}
TO_ROUTE: Json = {"action": named("envoy.config.route.v3.Route", match={"prefix": "/"}, route={"cluster": "c"})}
MATCH_LIST: Json = {
    "matcher_list": {
        "matchers": [
            {
                "predicate": {
                    "or_matcher": {
                        "predicate": [
                            SINGLE,
                            {"and_matcher": {"predicate": [SINGLE, {"not_matcher": SINGLE}]}},
                            {"single_predicate": {"input": HEADER_INPUT, "value_match": {"safe_regex": {"regex": "a", "google_re2": {}}}}},
                        ]
                    }
                },
                "on_match": TO_ROUTE,
            }
        ]
    },
    "on_no_match": TO_ROUTE,
}  # fmt: skip
MATCH_TREE: Json = {"matcher_tree": {"input": HEADER_INPUT, "exact_match_map": {"map": {"a": TO_ROUTE}}}}
TREES: Json = {
    "name": "t",
    "virtual_hosts": [
        {"name": "v", "domains": ["a"], "matcher": MATCH_LIST},
        {"name": "w", "domains": ["b"], "matcher": MATCH_TREE},
    ],
}
MORE_HOSTS: Json = {"name": "r", "vhds": {"config_source": ADS}}
