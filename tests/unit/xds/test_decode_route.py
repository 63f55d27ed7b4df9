import pytest

from meshlib.model.local_reply import BodyFormat, JsonObject
from meshlib.model.match_tree import Field, MatchList, Single, ToRoutes
from meshlib.model.matcher import (
    Fraction,
    HeaderMatcher,
    PathKind,
    PathMatcher,
    QueryMatcher,
    RangeMatcher,
    StringKind,
    StringMatcher,
)
from meshlib.model.route import (
    AppendAction,
    DirectResponse,
    HeaderAdd,
    HeaderMutation,
    MirrorPolicy,
    NonForwarding,
    Redirect,
    RegexRewrite,
    SingleCluster,
)

ROUTE = "virtual_hosts[0].routes[0]"


def route_of(decoded):
    assert decoded.errors == ()
    return decoded.value.virtual_hosts[0].routes[0]


def errors_of(decoded):
    assert decoded.value is None
    return decoded.errors


def test_a_route_to_a_cluster(decode_route):
    route = route_of(decode_route(name="r"))
    assert (route.name, route.action.cluster) == ("r", SingleCluster("c"))
    assert route.match.path == PathMatcher(PathKind.PREFIX, "/")


def test_domains_are_lower_case(decode_host):
    assert decode_host(domains=["A.Example.COM", "*.B"]).value.virtual_hosts[0].domains == ("a.example.com", "*.b")


def test_a_domain_may_stand_once_in_any_case(decode):
    hosts = [{"name": "a", "domains": ["x", "*"]}, {"name": "b", "domains": ["X", "*", "y", "y"]}]
    assert errors_of(decode("RDS", {"name": "rc", "virtual_hosts": hosts})) == (
        "virtual_hosts[1].domains[0]: 'x' is a domain of virtual_hosts[0] already",
        "virtual_hosts[1].domains[1]: '*' is a domain of virtual_hosts[0] already",
        "virtual_hosts[1].domains[3]: 'y' is a domain of virtual_hosts[1] already",
    )


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({"prefix": "/A", "case_sensitive": False}, PathMatcher(PathKind.PREFIX, "/A", False)),
        ({"path": "/a"}, PathMatcher(PathKind.PATH, "/a")),
        ({"path_separated_prefix": "/a/b"}, PathMatcher(PathKind.SEPARATED_PREFIX, "/a/b")),
        ({"safe_regex": {"regex": "/a.*"}, "case_sensitive": False}, PathMatcher(PathKind.REGEX, "/a.*")),
        ({"connect_matcher": {}}, PathMatcher(PathKind.CONNECT, "")),
    ],
)
def test_path_conditions(decode_route, match, expected):
    assert route_of(decode_route(match=match)).match.path == expected


def test_path_templates(decode_route, packed):
    def decode(template):
        config = packed("envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig", path_template=template)
        return decode_route(match={"path_match_policy": {"name": "t", "typed_config": config}})

    assert route_of(decode("/v1/{id}/**")).match.path == PathMatcher(PathKind.TEMPLATE, "/v1/{id}/**")
    for template in ("v1", "/{a}/{a}", "/{", "/}", "/**/*", "/{a=}", "/{1a}", "/{a=***}", "/{a=**}/{b}"):
        path = f"{ROUTE}.match.path_match_policy.typed_config.path_template: "
        assert [error[: len(path)] for error in errors_of(decode(template))] == [path], template


@pytest.mark.parametrize(
    ("match", "path"),
    [
        ({}, "path_specifier"),
        ({"safe_regex": {"regex": "(?=a)"}}, "safe_regex.regex"),
        ({"safe_regex": {"regex": "a" * 70_000}}, "safe_regex.regex"),
        ({"safe_regex": {"regex": "((a{100}){100}){10}"}}, "safe_regex.regex"),
        ({"path_separated_prefix": "/a/"}, "path_separated_prefix"),
        (
            {"prefix": "/", "dynamic_metadata": [{"filter": "f", "path": [{"key": "k"}]}]},
            "dynamic_metadata[0].value",
        ),
        ({"prefix": "/", "filter_state": [{"key": "", "string_match": {"exact": "v"}}]}, "filter_state[0].key"),
        ({"prefix": "/", "runtime_fraction": {}}, "runtime_fraction.default_value"),
        ({"prefix": "/", "headers": [{"name": ""}]}, "headers[0].name"),
        ({"prefix": "/", "headers": [{"name": "a", "string_match": {}}]}, "headers[0].string_match.match_pattern"),
        (
            {
                "prefix": "/",
                "headers": [{"name": "a", "string_match": {"safe_regex": {"regex": "a"}, "ignore_case": True}}],
            },
            "headers[0].string_match.ignore_case",
        ),
        ({"prefix": "/", "headers": [{"name": "a", "prefix_match": ""}]}, "headers[0].prefix_match"),
        (
            {"prefix": "/", "query_parameters": [{"name": "a", "string_match": {"safe_regex": {"regex": "["}}}]},
            "query_parameters[0].string_match.safe_regex.regex",
        ),
    ],
)
def test_conditions_that_cannot_be_honoured_are_refused(decode_route, match, path):
    errors = errors_of(decode_route(match=match))
    assert [f"{ROUTE}.match.{path}"] == [error.partition(": ")[0] for error in errors]


def test_a_condition_of_a_newer_protocol_is_refused(decode):
    """Envoy 1.40 has `cookies` (field 17); a route that ignores it would match everything."""
    from meshlib.xds.decode import decode_resource
    from meshlib.xds.resources import RDS

    # RouteMatch{prefix: "/", 17: {}} inside Route inside VirtualHost inside RouteConfiguration.
    match = b"\x0a\x01/" + b"\x8a\x01\x00"
    route = b"\x0a" + bytes([len(match)]) + match + b"\x12\x03\x0a\x01c"
    host = b"\x0a\x02vh\x12\x01*\x1a" + bytes([len(route)]) + route
    decoded = decode_resource(RDS, b"\x0a\x02rc\x12" + bytes([len(host)]) + host)
    assert decoded.errors == (f"{ROUTE}.match.<field 17>: is not known to this version",)


def test_header_conditions(decode_route):
    headers = [
        {"name": "X-A", "string_match": {"exact": "V", "ignore_case": True}},
        {"name": "b", "exact_match": ""},
        {"name": "c", "exact_match": "v"},
        {"name": "d", "safe_regex_match": {"regex": "v+"}, "invert_match": True},
        {"name": "e", "range_match": {"start": "-1", "end": "5"}},
        {"name": "f", "present_match": False},
        {"name": "g"},
        {"name": "h", "suffix_match": "x", "treat_missing_header_as_empty": True},
        {"name": ":method", "string_match": {"contains": "E"}},
    ]
    assert route_of(decode_route(match={"prefix": "/", "headers": headers})).match.headers == (
        HeaderMatcher("x-a", StringMatcher(StringKind.EXACT, "V", True)),
        HeaderMatcher("b", StringMatcher(StringKind.EXACT, ""), exact_empty_matches_any=True),
        HeaderMatcher("c", StringMatcher(StringKind.EXACT, "v")),
        HeaderMatcher("d", StringMatcher(StringKind.REGEX, "v+"), invert=True),
        HeaderMatcher("e", RangeMatcher(-1, 5)),
        HeaderMatcher("f", False),
        HeaderMatcher("g", True),
        HeaderMatcher("h", StringMatcher(StringKind.SUFFIX, "x"), treat_missing_as_empty=True),
        HeaderMatcher(":method", StringMatcher(StringKind.CONTAINS, "E")),
    )


def test_other_conditions(decode_route):
    match = {
        "prefix": "/",
        "grpc": {},
        "runtime_fraction": {"default_value": {"numerator": 5, "denominator": "TEN_THOUSAND"}, "runtime_key": "k"},
        "query_parameters": [
            {"name": "a", "string_match": {"exact": "1"}},
            {"name": "b", "present_match": False},
            {"name": "c"},
        ],
    }
    decoded = decode_route(match=match)
    found = route_of(decoded).match
    assert (found.grpc, found.fraction) == (True, Fraction(5, 10_000, "k"))
    expected = (
        QueryMatcher("a", StringMatcher(StringKind.EXACT, "1")),
        QueryMatcher("b", False),
        QueryMatcher("c", True),
    )
    assert found.query == expected
    assert decoded.unused == ()


def test_a_fraction_is_at_most_the_whole(decode_route):
    match = {"prefix": "/", "runtime_fraction": {"default_value": {"numerator": 250}}}
    assert route_of(decode_route(match=match)).match.fraction == Fraction(100, 100)


def test_redirects(decode_route):
    found = route_of(
        decode_route(
            redirect={
                "response_code": "PERMANENT_REDIRECT",
                "host_redirect": "h",
                "port_redirect": 8443,
                "https_redirect": True,
                "prefix_rewrite": "/n",
                "strip_query": True,
            }
        )
    )
    assert found.action == Redirect(308, https=True, host="h", port=8443, prefix_rewrite="/n", strip_query=True)
    assert route_of(decode_route(redirect={})).action == Redirect()
    rewrite = {"pattern": {"regex": "^/a/(.*)"}, "substitution": "/\\1"}
    assert route_of(decode_route(redirect={"regex_rewrite": rewrite})).action.regex_rewrite == RegexRewrite(
        "^/a/(.*)", "/\\1"
    )


def test_direct_responses(decode_route):
    found = route_of(decode_route(direct_response={"status": 201, "body": {"inline_string": "é"}}))
    assert found.action == DirectResponse(201, "é".encode())
    assert route_of(decode_route(direct_response={"status": 404})).action == DirectResponse(404)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({"text_format": "%PATH%"}, DirectResponse(200, b"", BodyFormat("%PATH%"))),
        (
            {"text_format_source": {"inline_string": "x"}, "content_type": "text/plain"},
            DirectResponse(200, b"", BodyFormat("x"), "text/plain"),
        ),
        (
            {"json_format": {"a": "%PATH%"}},
            DirectResponse(
                200, b"", BodyFormat(None, JsonObject((("a", "%PATH%"),)), "application/json"), "application/json"
            ),
        ),
    ],
)
def test_bodies_of_direct_responses_that_are_made(decode_route, form, expected):
    assert route_of(decode_route(direct_response={"status": 200, "body_format": form})).action == expected


def test_the_body_of_a_direct_response_is_limited(decode_host):
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "x" * 4097}}}
    assert errors_of(decode_host(routes=[route])) == (
        f"{ROUTE}.direct_response.body: has 4097 bytes, at most 4096 are allowed",
    )
    assert decode_host({"max_direct_response_body_size_bytes": 5000}, routes=[route]).errors == ()


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"filter_action": {}}, "filter_action"),
        (
            {"redirect": {"regex_rewrite": {"pattern": {"regex": "a"}, "substitution": "\\1"}}},
            "redirect.regex_rewrite.substitution",
        ),
        ({"direct_response": {"status": 600}}, "direct_response.status"),
        ({"direct_response": {"status": 200, "body": {"filename": "/etc/passwd"}}}, "direct_response.body.filename"),
        (
            {"direct_response": {"status": 200, "body_format": {"text_format": "%NOPE%"}}},
            "direct_response.body_format.text_format",
        ),
        ({"direct_response": {"status": 200, "body_format": {}}}, "direct_response.body_format.format"),
        (
            {"request_headers_to_add": [{"header": {"key": ":path", "value": "x"}}]},
            "request_headers_to_add[0].header.key",
        ),
        (
            {"request_headers_to_add": [{"header": {"key": "a", "value": "%NOPE%"}}]},
            "request_headers_to_add[0].header.value",
        ),
        (
            {"request_headers_to_add": [{"header": {"key": "a", "value": "50%"}}]},
            "request_headers_to_add[0].header.value",
        ),
        (
            {"request_headers_to_add": [{"header": {"key": "a"}, "append": True, "append_action": "ADD_IF_ABSENT"}]},
            "request_headers_to_add[0].append",
        ),
        ({"response_headers_to_remove": ["Host"]}, "response_headers_to_remove[0]"),
    ],
)
def test_actions_that_cannot_be_honoured_are_refused(decode_route, fields, path):
    errors = errors_of(decode_route(**fields))
    assert [f"{ROUTE}.{path}"] == [error.partition(": ")[0] for error in errors]


def test_server_routes(decode_route):
    assert route_of(decode_route(non_forwarding_action={})).action == NonForwarding()


def test_header_mutations_of_every_level(decode):
    def level(name):
        return {
            "request_headers_to_add": [{"header": {"key": f"X-{name}", "value": "%REQ(a?b):3%%%"}}],
            "request_headers_to_remove": [f"R-{name}"],
            "response_headers_to_add": [
                {"header": {"key": name, "value": "v"}, "append": False, "keep_empty_value": True}
            ],
            "response_headers_to_remove": ["S"],
        }

    def expected(name):
        return HeaderMutation(
            request_remove=(f"r-{name}",),
            request_add=(HeaderAdd(f"x-{name}", "%REQ(a?b):3%%%"),),
            response_remove=("s",),
            response_add=(HeaderAdd(name, "v", AppendAction.OVERWRITE_IF_EXISTS_OR_ADD, True),),
        )

    route = {"match": {"prefix": "/"}, "route": {"cluster": "c"}, **level("route")}
    host = {"name": "vh", "domains": ["*"], "routes": [route], **level("vh")}
    decoded = decode(
        "RDS", {"name": "rc", "virtual_hosts": [host], "most_specific_header_mutations_wins": True, **level("config")}
    )
    assert decoded.errors == ()
    assert decoded.value.most_specific_mutations_win
    assert decoded.value.mutation == expected("config")
    assert decoded.value.virtual_hosts[0].mutation == expected("vh")
    assert decoded.value.virtual_hosts[0].routes[0].mutation == expected("route")


def test_raw_header_values_are_not_looked_at(decode_route):
    """Envoy 1.40 takes them and adds `value` alone."""
    option = {"header": {"key": "a", "value": "b", "raw_value": "4pyT"}}
    decoded = decode_route(request_headers_to_add=[option])
    assert route_of(decoded).mutation.request_add[0].value == "b"
    assert "raw_value" in decoded.unused[0]


def test_mirror_policies_come_from_the_nearest_level(decode):
    def mirror(name):
        return {"request_mirror_policies": [{"cluster": name, "runtime_fraction": {"default_value": {"numerator": 5}}}]}

    plain = {"match": {"prefix": "/"}, "route": {"cluster": "c"}}
    own = {"match": {"prefix": "/"}, "route": {"cluster": "c", **mirror("route")}}
    hosts = [
        {"name": "a", "domains": ["a"], "routes": [plain, own], **mirror("host")},
        {"name": "b", "domains": ["b"], "routes": [plain]},
    ]
    value = decode("RDS", {"name": "rc", "virtual_hosts": hosts, **mirror("config")}).value
    found = [[route.action.mirrors for route in host.routes] for host in value.virtual_hosts]

    def expected(name):
        return (MirrorPolicy(name, Fraction(5)),)

    assert found == [[expected("host"), expected("route")], [expected("config")]]


@pytest.mark.parametrize(
    "fields",
    [
        {"retry_policy_typed_config": {"@type": "type.googleapis.com/google.protobuf.Struct", "value": {}}},
    ],
)
def test_virtual_hosts_that_cannot_be_honoured_are_refused(decode_host, fields):
    assert errors_of(decode_host(**fields)) == (f"virtual_hosts[0].{next(iter(fields))}: is not supported",)


def test_harmless_fields_are_reported(decode_host):
    decoded = decode_host(
        {"validate_clusters": True, "internal_only_headers": ["x"], "metadata": {}},
        cors={},
        virtual_clusters=[],
        include_attempt_count_in_response=True,
        hedge_policy={"initial_requests": 1},
        include_request_attempt_count=True,
    )
    assert decoded.errors == ()
    assert decoded.value.virtual_hosts[0].include_attempt_count
    assert set(decoded.unused) == {
        "validate_clusters",
        "internal_only_headers",
        "virtual_hosts[0].cors",
        "virtual_hosts[0].hedge_policy.initial_requests: "
        "counts only with route metadata meshlib: {hedge_initial_requests: true}",
    }


def test_metadata_is_kept_and_frozen(decode_route):
    fields = {"filter_metadata": {"meshlib": {"origin": "a.yaml:3", "list": [1, {"x": None}]}}}
    found = route_of(decode_route(metadata=fields)).metadata
    assert found == {"meshlib": {"origin": "a.yaml:3", "list": (1.0, {"x": None})}}
    with pytest.raises(TypeError):
        found["meshlib"]["origin"] = "b"


def test_a_fault_on_a_route_that_answers_by_itself(decode):
    fault = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
        "abort": {"http_status": 503, "percentage": {"numerator": 100}},
    }
    route = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200},
        "typed_per_filter_config": {"envoy.filters.http.fault": fault},
    }
    decoded = decode("RDS", {"name": "rc", "virtual_hosts": [{"name": "vh", "domains": ["*"], "routes": [route]}]})
    assert decoded.errors == ()
    assert decoded.unused == ()
    assert decoded.value.virtual_hosts[0].routes[0].fault.abort.http_status == 503


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tls_context": {"presented": True}}, [False]),
        ({"tls_context": {"presented": False, "validated": False}}, [True, True]),
        ({"tls_context": {}}, []),
        ({"dynamic_metadata": [{"filter": "f", "path": [{"key": "k"}], "value": {"null_match": {}}}]}, [False]),
        (
            {
                "dynamic_metadata": [
                    {"filter": "f", "path": [{"key": "k"}], "value": {"present_match": True}, "invert": True}
                ]
            },
            [True],
        ),
        ({"filter_state": [{"key": "k", "string_match": {"exact": "v"}}]}, [False]),
    ],
)
def test_conditions_on_what_only_a_proxy_has(decode_route, fields, expected):
    """Envoy 1.40 answers so when there is no certificate, metadata or state."""
    conditions = route_of(decode_route(match={"prefix": "/", **fields})).match.proxy
    assert [condition.holds for condition in conditions] == expected


def test_what_configurations_and_hosts_say_about_matching(decode_host):
    config = {"vhost_header": "X-Host", "ignore_path_parameters_in_path_matching": True}
    decoded = decode_host(config, require_tls="ALL")
    assert decoded.errors == ()
    assert (decoded.value.host_header, decoded.value.ignores_path_parameters) == ("x-host", True)
    assert decoded.value.virtual_hosts[0].requires_tls
    external = decode_host(require_tls="EXTERNAL_ONLY")
    assert (external.errors, external.value.virtual_hosts[0].requires_tls) == ((), False)
    assert external.unused[0].startswith("virtual_hosts[0].require_tls")


def test_plugins_that_choose_clusters_are_refused_by_name_and_type(decode_host):
    def plugins(**fields):
        kind = "type.googleapis.com/grpc.lookup.v1.RouteLookupClusterSpecifier"
        config = {"@type": "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": kind}
        return {"cluster_specifier_plugins": [{"extension": {"name": "rls", "typed_config": config}, **fields}]}

    (error,) = errors_of(decode_host(plugins()))
    assert "'rls' (grpc.lookup.v1.RouteLookupClusterSpecifier) is not supported" in error
    assert decode_host(plugins(is_optional=True)).errors == ()


def test_rewrites_by_template_need_a_template(decode_route, packed):
    kind = "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig"

    def decode(rewrite, match):
        config = packed(kind, path_template_rewrite=rewrite)
        action = {"cluster": "c", "path_rewrite_policy": {"name": "t", "typed_config": config}}
        return decode_route(action, match=match)

    config = packed("envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig", path_template="/v/{x}")
    template = {"path_match_policy": {"name": "t", "typed_config": config}}
    assert route_of(decode("/n/{x}", template)).action.template_rewrite == "/n/{x}"
    path = f"{ROUTE}.route.path_rewrite_policy"
    for rewrite, match in (("/n/{y}", template), ("n", template), ("/n", {"prefix": "/"})):
        assert [error.partition(": ")[0] for error in errors_of(decode(rewrite, match))] == [path]


def tree_route(name, prefix="/"):
    kind = "type.googleapis.com/envoy.config.route.v3.Route"
    config = {"@type": kind, "name": name, "match": {"prefix": prefix}, "route": {"cluster": "c"}}
    return {"action": {"name": "a", "typed_config": config}}


def tree_list(kind, **on_match):
    config = {"@type": f"type.googleapis.com/{kind}", **on_match.pop("config", {})}
    predicate = {"single_predicate": {"input": {"name": "i", "typed_config": config}, "value_match": {"exact": "a"}}}
    return {"matcher_list": {"matchers": [{"predicate": predicate, "on_match": on_match}]}}


def test_matcher_trees_keep_their_routes_in_one_list(decode_host):
    header = "envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
    matcher = tree_list(header, config={"header_name": "X-1"}, **tree_route("r1"))
    matcher["on_no_match"] = tree_route("r2")
    host = decode_host(matcher=matcher, routes=[]).value.virtual_hosts[0]
    single = Single("x-1", StringMatcher(StringKind.EXACT, "a"))
    assert host.tree == MatchList((Field(single, ToRoutes((1,))),), ToRoutes((0,)))
    assert [route.name for route in host.routes] == ["r2", "r1"]


def test_an_empty_matcher_tree_leads_nowhere(decode_host):
    host = decode_host(matcher={}, routes=[]).value.virtual_hosts[0]
    assert (host.has_tree, host.tree, host.routes) == (True, None, ())


def test_matcher_trees_that_envoy_refuses(decode_host):
    header, place = "envoy.type.matcher.v3.HttpRequestHeaderMatchInput", "virtual_hosts[0].matcher"
    query = tree_list(
        "envoy.type.matcher.v3.HttpRequestQueryParamMatchInput", **tree_route("r"), config={"query_param": "q"}
    )
    keeping = tree_list(header, **tree_route("r"), keep_matching=True, config={"header_name": "a"})
    given = [{"match": {"prefix": "/"}, "route": {"cluster": "c"}}]
    with_routes = decode_host(matcher=tree_list(header, **tree_route("r"), config={"header_name": "a"}), routes=given)
    assert errors_of(with_routes) == (f"{place}: cannot be given together with routes",)
    assert "by request headers only" in errors_of(decode_host(matcher=query, routes=[]))[0]
    assert "keep_matching" in errors_of(decode_host(matcher=keeping, routes=[]))[0]
    bad = {"matcher_tree": {"exact_match_map": {}, "input": {"name": "i"}}}
    assert any(".map: needs at least 1" in error for error in errors_of(decode_host(matcher=bad, routes=[])))


def test_a_limit_of_nothing_is_no_limit_for_bodies(decode_host):
    route = {"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": "x" * 5000}}}
    assert decode_host({"max_direct_response_body_size_bytes": 0}, routes=[route]).errors == ()


def test_virtual_clusters_need_conditions(decode_host):
    assert errors_of(decode_host(virtual_clusters=[{"name": "v"}])) == (
        "virtual_hosts[0].virtual_clusters[0].headers: is required",
    )


def test_a_regex_may_have_a_limit_of_its_own(decode_route):
    match = {"safe_regex": {"regex": "/a+b", "google_re2": {"max_program_size": 3}}}
    assert "program size" in errors_of(decode_route(match=match))[0]


@pytest.mark.parametrize(
    ("host", "route", "expected"),
    [
        ({}, {}, None),
        ({"request_body_buffer_limit": 5}, {}, 5),
        ({"request_body_buffer_limit": 5}, {"request_body_buffer_limit": 0}, 0),
        ({"request_body_buffer_limit": 5}, {"per_request_buffer_limit_bytes": 3}, 5),
        ({"per_request_buffer_limit_bytes": 4}, {"per_request_buffer_limit_bytes": 3}, 3),
        ({"per_request_buffer_limit_bytes": 4}, {}, 4),
    ],
)
def test_how_much_of_a_body_is_kept(decode, host, route, expected):
    made = {"match": {"prefix": "/"}, "route": {"cluster": "c"}, **route}
    hosts = [{"name": "vh", "domains": ["*"], "routes": [made], **host}]
    decoded = decode("RDS", {"name": "rc", "virtual_hosts": hosts})
    assert decoded.value.virtual_hosts[0].routes[0].body_limit == expected
    assert decoded.unused == ()


def test_rules_of_fields_that_envoy_checks_itself(decode_host, decode_route):
    assert errors_of(decode_host({"vhost_header": "a\n"})) == ("vhost_header: has a NUL, CR or LF",)
    errors = errors_of(decode_route({"cluster": "c", "flush_timeout": "-1s"}))
    assert [error.partition(": ")[0] for error in errors] == [f"{ROUTE}.route.flush_timeout"]
