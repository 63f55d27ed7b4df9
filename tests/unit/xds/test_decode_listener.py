import pytest

from meshlib.model.authorization import Rbac, RbacAction
from meshlib.model.listener import ClientListener, EscapedSlashes, HeadRules, ServerListener
from meshlib.model.local_reply import AllOf, AnyOf, Comparison, GrpcStatusIs, Sampled, TookMs
from meshlib.model.matcher import Fraction
from meshlib.model.route import FaultAbort, FaultPolicy, RouteConfiguration

HTTP = "envoy.extensions.filters.http."
MANAGER = "api_listener.api_listener"
CHAIN = "filter_chains[0]"
SERVER_MANAGER = f"{CHAIN}.filters[0].typed_config"


def value_of(decoded):
    assert decoded.errors == ()
    return decoded.value


def paths_of(decoded):
    assert decoded.value is None
    return [error.partition(": ")[0] for error in decoded.errors]


@pytest.fixture
def http_filter(packed):
    def make(kind, *, name="", is_optional=False, disabled=False, **fields):
        config = packed(HTTP + kind, **fields)
        return {"name": name or kind, "typed_config": config, "is_optional": is_optional, "disabled": disabled}

    return make


def test_an_api_listener_with_rds(decode_client):
    assert value_of(decode_client()) == ClientListener("checkout", "rc")


def test_an_api_listener_with_inline_routes(decode_client):
    decoded = decode_client(route_config={"name": "x"}, common_http_protocol_options={"max_stream_duration": "3s"})
    assert value_of(decoded) == ClientListener("checkout", RouteConfiguration("x", ()), max_stream_duration_s=3.0)


def test_inline_routes_are_validated_as_part_of_the_listener(decode_client):
    decoded = decode_client(route_config={"virtual_hosts": [{"name": "vh", "domains": []}]})
    assert paths_of(decoded) == [f"{MANAGER}.route_config.virtual_hosts[0].domains"]


METADATA = {"matcher": {"filter": "f", "path": [{"key": "k"}], "value": {"present_match": True}}}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (
            {"duration_filter": {"comparison": {"op": "GE", "value": {"default_value": 5, "runtime_key": "k"}}}},
            TookMs(Comparison.GE, 5, (("value", "k"),)),
        ),
        (
            {"runtime_filter": {"runtime_key": "k", "percent_sampled": {"numerator": 3}}},
            Sampled(Fraction(3, 100, "k")),
        ),
        (
            {"runtime_filter": {"runtime_key": "k", "use_independent_randomness": True}},
            Sampled(Fraction(0, 100, "k"), True),
        ),
        ({"grpc_status_filter": {"statuses": ["UNAVAILABLE"], "exclude": True}}, GrpcStatusIs(frozenset({14}), True)),
        # Nothing sets dynamic metadata here, nothing is logged while an answer is made, and nothing traces.
        ({"metadata_filter": METADATA}, AllOf()),
        ({"metadata_filter": {**METADATA, "match_if_key_not_found": True}}, AllOf()),
        ({"metadata_filter": {**METADATA, "match_if_key_not_found": False}}, AnyOf(())),
        ({"log_type_filter": {"types": ["NotSet"]}}, AllOf()),
        ({"log_type_filter": {"types": ["NotSet"], "exclude": True}}, AnyOf(())),
        ({"log_type_filter": {"types": ["DownstreamEnd"]}}, AnyOf(())),
        ({"log_type_filter": {"types": ["DownstreamEnd"], "exclude": True}}, AllOf()),
        ({"traceable_filter": {}}, AnyOf(())),
    ],
)
def test_conditions_of_mappers(decode_client, condition, expected):
    found = value_of(decode_client(local_reply_config={"mappers": [{"filter": condition}]}))
    test = found.reply_rules.mappers[0].test
    assert (expected, getattr(expected, "runtime_keys", ())) == (test, getattr(test, "runtime_keys", ()))


def test_with_an_address_too_it_is_an_api_listener(decode, decode_client, packed):
    manager = packed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        route_config={},
        http_filters=[{"name": "r", "typed_config": packed(f"{HTTP}router.v3.Router")}],
    )
    address = {"socket_address": {"address": "0.0.0.0", "port_value": 80}}
    decoded = decode("LDS", {"name": "a", "address": address, "api_listener": {"api_listener": manager}})
    assert isinstance(value_of(decoded), ClientListener)
    assert decoded.unused == ()


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"rds": {"config_source": {"ads": {}}}}, "rds.route_config_name"),
        ({"rds": {"route_config_name": "x"}}, "rds.config_source"),
        ({"rds": {"route_config_name": "x", "config_source": {"path": "/x"}}}, "rds.config_source.path"),
        ({"scoped_routes": {"name": "x"}}, "scoped_routes.config_specifier"),
        ({"xff_num_trusted_hops": 1}, "xff_num_trusted_hops"),
        ({"path_with_escaped_slashes_action": 9}, "path_with_escaped_slashes_action"),
        ({"path_normalization_options": {}}, "path_normalization_options"),
        (
            {"local_reply_config": {"mappers": [{"filter": {"traceable_filter": {}}}]}, "tracing": {}},
            "local_reply_config.mappers[0].filter.traceable_filter",
        ),
        (
            {"local_reply_config": {"mappers": [{"filter": {"extension_filter": {"name": "x"}}}]}},
            "local_reply_config.mappers[0].filter.extension_filter",
        ),
        ({"local_reply_config": {"mappers": [{}]}}, "local_reply_config.mappers[0].filter"),
        (
            {"local_reply_config": {"body_format": {"text_format": "%NOPE%"}}},
            "local_reply_config.body_format.text_format",
        ),
        (
            {"local_reply_config": {"body_format": {"json_format": {"a": ["%NOPE%"]}}}},
            "local_reply_config.body_format.json_format.a[0]",
        ),
        (
            {"local_reply_config": {"body_format": {"text_format_source": {"filename": "/etc/passwd"}}}},
            "local_reply_config.body_format.text_format_source.filename",
        ),
        ({"strip_matching_host_port": True, "strip_any_host_port": True}, "strip_matching_host_port"),
        (
            {"scheme_header_transformation": {"match_upstream": True}},
            "scheme_header_transformation.match_upstream",
        ),
        ({"http_filters": []}, "http_filters"),
        (
            {"common_http_protocol_options": {"max_stream_duration": "-1s"}},
            "common_http_protocol_options.max_stream_duration",
        ),
        ({"max_request_headers_kb": 9000}, "max_request_headers_kb"),
    ],
)
def test_connection_managers_that_cannot_be_honoured_are_refused(decode_client, fields, path):
    assert f"{MANAGER}.{path}" in paths_of(decode_client(**fields))


def test_what_happens_to_requests_before_routes_see_them(decode_client):
    decoded = decode_client(
        strip_any_host_port=True,
        strip_trailing_host_dot=True,
        merge_slashes=True,
        normalize_path=True,
        path_with_escaped_slashes_action="UNESCAPE_AND_REDIRECT",
        scheme_header_transformation={"scheme_to_overwrite": "https"},
    )
    assert value_of(decoded).head_rules == HeadRules(
        strips_port=True,
        strips_dot=True,
        slashes=EscapedSlashes.REDIRECTED,
        normalizes_path=True,
        merges_slashes=True,
        scheme="https",
    )
    without_port = decode_client(strip_matching_host_port=True)
    assert (value_of(without_port).head_rules, len(without_port.unused)) == (HeadRules(), 1)


def test_harmless_options_of_a_connection_manager(decode_client):
    decoded = decode_client(
        stat_prefix="x",
        codec_type="HTTP2",
        normalize_path=False,
        path_with_escaped_slashes_action="KEEP_UNCHANGED",
        access_log=[{"name": "x"}],
    )
    assert decoded.errors == ()
    assert set(decoded.unused) == {f"{MANAGER}.access_log"}


def test_stream_idle_timeout_of_a_client(decode_client):
    decoded = decode_client(stream_idle_timeout="1s")
    assert (value_of(decoded).stream_idle_timeout_s, decoded.errors, decoded.unused) == (1.0, (), ())


def test_other_things_than_a_connection_manager_are_refused(decode, packed):
    def api(value):
        return decode("LDS", {"name": "a", "api_listener": {"api_listener": value}})

    assert "must be an HttpConnectionManager" in api(packed(f"{HTTP}router.v3.Router")).errors[0]
    assert api({}).errors == (f"{MANAGER}: is an Any without a type_url",)


def test_neither_api_listener_nor_address(decode):
    assert decode("LDS", {"name": "a"}).errors == ("neither api_listener nor address is given",)
    assert "name: must not be empty" in decode("LDS", {}).errors


def test_the_fault_filter(decode_client, http_filter):
    assert value_of(decode_client(http_filter("fault.v3.HTTPFault"))) == ClientListener(
        "checkout", "rc", True, FaultPolicy()
    )
    fault = http_filter("fault.v3.HTTPFault", abort={"http_status": 500, "percentage": {"numerator": 5}})
    assert value_of(decode_client(fault)).fault == FaultPolicy(abort=FaultAbort(Fraction(5), 500))


def test_a_disabled_fault_filter_waits_for_a_route_to_configure_it(decode_client, http_filter):
    found = value_of(decode_client(http_filter("fault.v3.HTTPFault", disabled=True, abort={"http_status": 500})))
    assert (found.has_fault_filter, found.fault) == (True, None)


@pytest.mark.parametrize("option", ["is_optional", "disabled"])
def test_filters_that_we_do_not_have_are_skipped_when_they_may_be(decode_client, http_filter, option):
    decoded = decode_client(http_filter("cors.v3.Cors", **{option: True}))
    assert value_of(decoded) == ClientListener("checkout", "rc")
    assert decoded.unused[0].startswith(f"{MANAGER}.http_filters[0]: ")


def test_filters_that_we_do_not_have_are_refused_otherwise(decode_client, decode_server, http_filter):
    assert paths_of(decode_client(http_filter("cors.v3.Cors"))) == [f"{MANAGER}.http_filters[0]"]
    # Each side has its own.
    assert paths_of(decode_client(http_filter("rbac.v3.RBAC"))) == [f"{MANAGER}.http_filters[0]"]
    assert paths_of(decode_server(http_filter("fault.v3.HTTPFault"))) == [f"{SERVER_MANAGER}.http_filters[0]"]


def test_a_filter_that_has_to_be_discovered(decode_client):
    discovery = {"name": "x", "config_discovery": {"config_source": {"ads": {}}, "type_urls": ["a/b"]}}
    assert paths_of(decode_client(discovery)) == [f"{MANAGER}.http_filters[0].config_discovery.type_urls"]
    assert value_of(decode_client({**discovery, "is_optional": True}))


def test_names_of_filters_are_unique(decode_client, http_filter):
    twice = (
        http_filter("cors.v3.Cors", name="a", is_optional=True),
        http_filter("cors.v3.Cors", name="a", is_optional=True),
    )
    assert paths_of(decode_client(*twice)) == [f"{MANAGER}.http_filters[1].name"]


def test_the_router_is_last_and_alone(decode_client, http_filter):
    router = http_filter("router.v3.Router")
    assert paths_of(decode_client(router)) == [f"{MANAGER}.http_filters"]
    fault = http_filter("fault.v3.HTTPFault")
    assert paths_of(decode_client(http_filters=[router, fault])) == [f"{MANAGER}.http_filters"]
    assert paths_of(decode_client(http_filters=[fault])) == [f"{MANAGER}.http_filters"]


def test_options_of_the_router(decode_client, http_filter):
    decoded = decode_client(http_filters=[http_filter("router.v3.Router", suppress_envoy_headers=True)])
    assert decoded.unused == (f"{MANAGER}.http_filters[0].typed_config.suppress_envoy_headers",)
    strict = decode_client(http_filters=[http_filter("router.v3.Router", strict_check_headers=["x-envoy-retry-on"])])
    assert paths_of(strict) == [f"{MANAGER}.http_filters[0].typed_config.strict_check_headers"]


def test_two_fault_filters_are_refused(decode_client, http_filter):
    twice = (http_filter("fault.v3.HTTPFault", name="a"), http_filter("fault.v3.HTTPFault", name="b"))
    assert paths_of(decode_client(*twice)) == [f"{MANAGER}.http_filters[1]"]


def test_a_server_listener(decode_server, http_filter):
    deny = http_filter("rbac.v3.RBAC", name="deny", rules={"action": "DENY"})
    allow = http_filter("rbac.v3.RBAC", name="allow", rules={})
    off = http_filter("rbac.v3.RBAC", name="off", disabled=True, rules={})
    decoded = decode_server(deny, off, allow)
    assert value_of(decoded) == ServerListener(
        "inbound",
        "10.0.0.1:8080",
        None,
        (Rbac("deny", RbacAction.DENY, ()), Rbac("allow", RbacAction.ALLOW, ())),
        RouteConfiguration("inbound", ()),
    )
    assert decoded.unused == (f"{SERVER_MANAGER}.http_filters[1]: is disabled",)


def test_filters_of_a_server_that_limit_stand_among_those_for_authorization(decode_server, http_filter):
    bucket = {"max_tokens": 1, "fill_interval": "1s"}
    limit = http_filter("local_ratelimit.v3.LocalRateLimit", name="limit", stat_prefix="s", token_bucket=bucket)
    allow = http_filter("rbac.v3.RBAC", name="allow", rules={})
    late = {**limit, "name": "late", "disabled": True}
    found = value_of(decode_server(limit, allow, late)).limits
    assert [("limit", 0, False), ("late", 1, True)] == [(one.name, one.position, one.config is None) for one in found]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_headers_to_add_when_not_enforced", [{"header": {"key": "x", "value": "1"}}]),
        ("local_rate_limit_per_downstream_connection", True),
    ],
)
def test_what_a_server_cannot_do_for_a_limit_is_refused(decode_server, http_filter, field, value):
    limit = http_filter("local_ratelimit.v3.LocalRateLimit", name="limit", stat_prefix="s", **{field: value})
    assert paths_of(decode_server(limit)) == [f"{SERVER_MANAGER}.http_filters[0].typed_config.{field}"]


def test_what_a_server_cannot_do_for_a_limit_of_a_route_is_refused(decode_server, http_filter, packed):
    limit = http_filter("local_ratelimit.v3.LocalRateLimit", name="limit", stat_prefix="s")
    override = packed(
        "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
        stat_prefix="s",
        token_bucket={"max_tokens": 1, "fill_interval": "1s"},
        request_headers_to_add_when_not_enforced=[{"header": {"key": "x", "value": "1"}}],
    )
    route = {"match": {"prefix": "/"}, "non_forwarding_action": {}, "typed_per_filter_config": {"limit": override}}
    config = {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]}
    decoded = decode_server(limit, route_config=config)
    assert [f"{SERVER_MANAGER}.route_config"] == paths_of(decoded)
    assert "request_headers_to_add_when_not_enforced is not supported in a server" in str(decoded.errors)


def test_a_server_listener_with_rds(decode_server):
    decoded = decode_server(rds={"route_config_name": "x", "config_source": {"self": {}}})
    assert value_of(decoded).routes == "x"


def test_the_default_filter_chain_alone_is_enough(decode, decode_server, packed):
    manager = packed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        route_config={},
        http_filters=[{"name": "r", "typed_config": packed(f"{HTTP}router.v3.Router")}],
    )
    chain = {"filters": [{"name": "hcm", "typed_config": manager}]}
    only_default = decode_server(listener={"filter_chains": [], "default_filter_chain": chain})
    assert isinstance(value_of(only_default), ServerListener)
    assert paths_of(decode_server(listener={"default_filter_chain": chain})) == ["filter_chains"]
    assert paths_of(decode_server(listener={"filter_chains": []})) == ["filter_chains"]


@pytest.fixture
def two_chains(decode_server, packed, issued):
    """Decode a server's listener with two chains; arguments change the chains, `tls` is a TLS transport socket."""

    def run(first, second, *, listener=None):
        manager = packed(
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            route_config={"name": "inbound"},
            http_filters=[{"name": "r", "typed_config": packed(f"{HTTP}router.v3.Router")}],
        )
        chains = []
        for changes in (first, second):
            chain = {"filters": [{"name": "hcm", "typed_config": manager}]}
            if isinstance(protocol := changes.get("protocol"), str):
                chain["filter_chain_match"] = {"transport_protocol": protocol}
            if changes.get("tls"):
                sds = {"ads": {}, "resource_api_version": "V3"}
                common = {
                    "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": sds}],
                    "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": sds},
                }
                context = packed(
                    "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    require_client_certificate=True,
                    common_tls_context=common,
                )
                chain["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}
            chains.append(chain | changes.get("chain", {}))
        return decode_server(listener={"filter_chains": chains, **(listener or {})})

    return run


SECURE, PLAIN = {"protocol": "tls", "tls": True}, {"protocol": "raw_buffer"}


@pytest.mark.parametrize(
    ("first", "second"),
    [(SECURE, PLAIN), (PLAIN, SECURE), (SECURE, {}), ({"tls": True}, PLAIN)],
)
def test_a_chain_for_tls_and_one_for_plaintext(two_chains, packed, first, second):
    inspector = packed("envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector")
    decoded = two_chains(first, second, listener={"listener_filters": [{"name": "x", "typed_config": inspector}]})
    found = value_of(decoded)
    assert found.takes_plaintext
    assert found.tls.require_client_certificate
    assert decoded.unused == ()


@pytest.mark.parametrize(
    ("first", "second", "path"),
    [
        (SECURE, SECURE, "filter_chains"),
        (PLAIN, PLAIN, "filter_chains"),
        ({"tls": True}, {}, "filter_chains"),
        ({"protocol": "tls"}, PLAIN, f"{CHAIN}.filter_chain_match.transport_protocol"),
        ({"protocol": "raw_buffer", "tls": True}, PLAIN, f"{CHAIN}.filter_chain_match.transport_protocol"),
        ({"protocol": "quic", "tls": True}, PLAIN, f"{CHAIN}.filter_chain_match.transport_protocol"),
        (SECURE, PLAIN | {"chain": {"filters": []}}, "filter_chains[1].filters"),
    ],
)
def test_two_chains_that_cannot_be_told_apart_are_refused(two_chains, first, second, path):
    assert path in paths_of(two_chains(first, second))


def test_two_chains_with_other_rules_are_refused(two_chains, packed, http_filter):
    manager = packed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        route_config={"name": "inbound"},
        http_filters=[
            http_filter("rbac.v3.RBAC", name="deny", rules={"action": "DENY"}),
            {"name": "r", "typed_config": packed(f"{HTTP}router.v3.Router")},
        ],
    )
    other = PLAIN | {"chain": {"filters": [{"name": "hcm", "typed_config": manager}]}}
    assert paths_of(two_chains(SECURE, other)) == ["filter_chains"]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"listener": {"use_original_dst": True}}, "use_original_dst"),
        ({"listener": {"listener_filters": [{"name": "x"}]}}, "listener_filters"),
        ({"listener": {"filter_chain_matcher": {}}}, "filter_chain_matcher"),
        (
            {"listener": {"address": {"socket_address": {"address": "x", "port_value": 1}}}},
            "address.socket_address.address",
        ),
        ({"chain": {"filter_chain_match": {"destination_port": 80}}}, f"{CHAIN}.filter_chain_match.destination_port"),
        ({"chain": {"use_proxy_proto": True}}, f"{CHAIN}.use_proxy_proto"),
        ({"chain": {"filters": []}}, f"{CHAIN}.filters"),
        ({"chain": {"filters": [{"name": "hcm"}]}}, SERVER_MANAGER),
    ],
)
def test_server_listeners_that_cannot_be_honoured_are_refused(decode_server, change, path):
    assert path in paths_of(decode_server(**change))


def test_harmless_options_of_a_server_listener(decode_server):
    decoded = decode_server(
        listener={"traffic_direction": "INBOUND", "use_original_dst": False},
        chain={"name": "x", "filter_chain_match": {}},
    )
    assert decoded.errors == ()
    assert set(decoded.unused) == {"traffic_direction", "use_original_dst"}


def test_the_header_mutation_filter(decode_client, http_filter):
    append = {"append": {"header": {"key": "X-A", "value": "1"}}}
    config = {"mutations": {"request_mutations": [append, {"remove": "X-B"}]}}
    listener = value_of(decode_client(http_filter("header_mutation.v3.HeaderMutation", **config)))
    (listed,) = listener.header_filters
    assert [(change.remove, change.add and change.add.name) for change in listed.own.request] == [
        ("", "x-a"),
        ("x-b", None),
    ]
    trailers = {"mutations": {"response_trailers_mutations": [append]}}
    decoded = decode_client(http_filter("header_mutation.v3.HeaderMutation", **trailers))
    assert "response_trailers_mutations: is not supported" in decoded.errors[0]
