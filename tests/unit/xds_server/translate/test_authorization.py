import pytest

AP = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
ANY = {"any": True}


def policy(name: str, spec: str, namespace: str = "default", annotations: str = "{}") -> str:
    return f"{AP}metadata: {{name: {name}, namespace: {namespace}, annotations: {annotations}}}\nspec: {spec}\n---\n"


@pytest.fixture
def filters(compiled, instance):
    """The RBAC filters in front of `reviews`, by name; without their types."""

    def of(text: str, **options: str) -> dict[str, dict[str, object]]:
        listener = compiled(text, instance(), **options).get("LDS", "xds.istio.io/grpc/lds/inbound/10.0.0.1:9001")
        found = listener["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"][:-1]
        return {
            one["name"]: {key: value for key, value in one["typed_config"].items() if key != "@type"} for one in found
        }

    return of


def test_no_policy_no_filter(filters):
    assert filters("") == {}


@pytest.mark.parametrize("profile", ["grpc", "meshlib"])
@pytest.mark.parametrize("spec", ["{}", "{action: ALLOW, rules: []}"])
def test_allow_nothing_never_matches(filters, spec, profile):
    (found,) = filters(policy("a", spec), profile=profile)["envoy.filters.http.rbac"]["rules"]["policies"].values()
    assert found == {"permissions": [{"not_rule": ANY}], "principals": [{"not_id": ANY}]}


def test_an_empty_rule_matches_everything(filters):
    rules = filters(policy("a", "{rules: [{}]}"))["envoy.filters.http.rbac"]["rules"]
    assert rules["policies"] == {
        "ns[default]-policy[a]-rule[0]": {
            "permissions": [{"and_rules": {"rules": [ANY]}}],
            "principals": [{"and_ids": {"ids": [ANY]}}],
        }
    }


def test_deny_comes_before_allow(filters):
    found = filters(policy("a", "{rules: [{}]}") + policy("b", "{action: DENY, rules: [{}]}"))
    assert list(found) == ["envoy.filters.http.rbac.DENY", "envoy.filters.http.rbac"]
    assert found["envoy.filters.http.rbac.DENY"]["rules"]["action"] == "DENY"


def test_selector_and_namespace_decide_who_is_guarded(filters):
    rules = "rules: [{}]"
    text = (
        policy("mine", f"{{selector: {{matchLabels: {{app: reviews}}}}, {rules}}}")
        + policy("others", f"{{selector: {{matchLabels: {{app: other}}}}, {rules}}}")
        + policy("elsewhere", f"{{{rules}}}", "shop")
        + policy("root", f"{{{rules}}}", "istio-system")
        + policy("root-other", f"{{selector: {{matchLabels: {{app: other}}}}, {rules}}}", "istio-system")
    )
    found = filters(text)["envoy.filters.http.rbac"]["rules"]["policies"]
    assert sorted(found) == ["ns[default]-policy[mine]-rule[0]", "ns[istio-system]-policy[root]-rule[0]"]


def test_dry_run_only_shadows(filters, compiled, instance):
    text = policy("a", "{action: DENY, rules: [{}]}", annotations='{istio.io/dry-run: "true"}')
    found = filters(text)["envoy.filters.http.rbac.DENY"]
    assert "rules" not in found
    assert (found["shadow_rules"]["action"], found["shadow_rules_stat_prefix"]) == ("DENY", "istio_dry_run_deny_")
    assert filters(text, profile="grpc") == {}
    assert compiled(text, instance(), profile="grpc").codes == ["MESH0040"]


def test_names_that_collide_for_stock_grpc_lose_no_rule(filters):
    text = policy("b-c", "{rules: [{}]}", "istio-system") + policy("istio-system-b-c", "{rules: [{}]}")
    text = policy("x", "{rules: [{}]}") + policy("default-x", "{rules: [{}]}") + text
    assert len(filters(text, profile="grpc")["envoy.filters.http.rbac"]["rules"]["policies"]) == 4


def authenticated(matcher: dict[str, object]) -> dict[str, object]:
    return {"authenticated": {"principal_name": matcher}}


def regex(text: str) -> dict[str, object]:
    return {"safe_regex": {"regex": text}}


SOURCES = {
    "principals: [td/ns/a/sa/b]": authenticated({"exact": "spiffe://td/ns/a/sa/b"}),
    "principals: ['td/ns/*']": authenticated({"prefix": "spiffe://td/ns/"}),
    "principals: ['*/sa/b']": authenticated(regex("spiffe://.*/sa/b")),
    "principals: ['*']": authenticated(regex(".+")),
    "namespaces: [a]": authenticated(regex(".*/ns/a/.*")),
    "namespaces: ['a*']": authenticated(regex(".*/ns/a.*/.*")),
    "serviceAccounts: [b]": authenticated(regex("spiffe://.+/ns/default/(.+/|)sa/b(/.+)?")),
    "serviceAccounts: [a/b]": authenticated(regex("spiffe://.+/ns/a/(.+/|)sa/b(/.+)?")),
    "trustDomains: [td]": authenticated({"prefix": "spiffe://td/"}),
    "trustDomains: ['td*']": authenticated(regex("spiffe://td[^/]*/.*")),
    "ipBlocks: [10.1.2.3/8]": {"direct_remote_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}},
    "remoteIpBlocks: ['::1']": {"remote_ip": {"address_prefix": "::1", "prefix_len": 128}},
}


@pytest.mark.parametrize(("source", "expected"), SOURCES.items(), ids=SOURCES)
def test_source(filters, source, expected):
    rules = filters(policy("a", f"{{rules: [{{from: [{{source: {{{source}}}}}]}}]}}"))["envoy.filters.http.rbac"][
        "rules"
    ]
    (found,) = rules["policies"].values()
    assert found["principals"] == [{"and_ids": {"ids": [{"or_ids": {"ids": [expected]}}]}}]


def header(name: str, **matcher: object) -> dict[str, object]:
    return {"header": {"name": name, "string_match": matcher}}


OPERATIONS = {
    "methods: [GET]": header(":method", exact="GET"),
    "methods: ['*']": {"header": {"name": ":method", "present_match": True}},
    "paths: [/a]": {"url_path": {"path": {"exact": "/a"}}},
    "paths: ['/a/*']": {"url_path": {"path": {"prefix": "/a/"}}},
    "paths: ['*/a']": {"url_path": {"path": {"suffix": "/a"}}},
    "paths: ['*']": {"url_path": {"path": regex(".+")}},
    "paths: ['/a.b/{*}/c/{**}']": {"url_path": {"path": regex(r"/a\.b/[^/]+/c/.*")}},
    "hosts: [A.example.com]": header(":authority", exact="A.example.com", ignore_case=True),
    "hosts: ['*.example.com']": header(":authority", suffix=".example.com", ignore_case=True),
    "ports: ['80']": {"destination_port": 80},
}


@pytest.mark.parametrize(("operation", "expected"), OPERATIONS.items(), ids=OPERATIONS)
def test_operation(filters, operation, expected):
    rules = filters(policy("a", f"{{rules: [{{to: [{{operation: {{{operation}}}}}]}}]}}"))["envoy.filters.http.rbac"][
        "rules"
    ]
    (found,) = rules["policies"].values()
    assert found["permissions"] == [{"and_rules": {"rules": [{"or_rules": {"rules": [expected]}}]}}]


def test_not_fields_negate_all_their_values(filters):
    text = policy("a", "{rules: [{to: [{operation: {methods: [GET], notPaths: [/a, /b]}}]}]}")
    (found,) = filters(text)["envoy.filters.http.rbac"]["rules"]["policies"].values()
    paths = [{"url_path": {"path": {"exact": path}}} for path in ("/a", "/b")]
    assert found["permissions"][0]["and_rules"]["rules"] == [
        {"or_rules": {"rules": [header(":method", exact="GET")]}},
        {"not_rule": {"or_rules": {"rules": paths}}},
    ]


def test_conditions_are_added_to_every_group(filters):
    text = policy(
        "a",
        "{rules: [{from: [{source: {namespaces: [a]}}, {source: {namespaces: [b]}}], when: ["
        "{key: 'request.headers[X-A]', values: [b]}, {key: destination.port, notValues: ['1']}, {key: connection.sni, values: ['a*']}]}]}",
    )
    (found,) = filters(text)["envoy.filters.http.rbac"]["rules"]["policies"].values()
    condition = {"or_ids": {"ids": [header("x-a", exact="b")]}}
    assert [group["and_ids"]["ids"][1:] for group in found["principals"]] == [[condition], [condition]]
    assert found["permissions"] == [
        {
            "and_rules": {
                "rules": [
                    {"not_rule": {"or_rules": {"rules": [{"destination_port": 1}]}}},
                    {"or_rules": {"rules": [{"requested_server_name": {"prefix": "a"}}]}},
                ]
            }
        }
    ]
