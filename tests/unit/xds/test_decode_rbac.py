import pytest

from meshlib.model.authorization import (
    All,
    And,
    DestinationPort,
    DestinationPortRange,
    Header,
    Ip,
    IpKind,
    Not,
    Or,
    Policy,
    Principal,
    Rbac,
    RbacAction,
    ServerName,
    UrlPath,
)
from meshlib.model.matcher import HeaderMatcher, StringKind, StringMatcher

RBAC = "envoy.extensions.filters.http.rbac.v3.RBAC"
CONFIG = "filter_chains[0].filters[0].typed_config.http_filters[0].typed_config"
ANY = {"any": True}


@pytest.fixture
def rbac(decode_server, packed):
    def run(**fields):
        return decode_server({"name": "rbac", "typed_config": packed(RBAC, **fields)})

    return run


def filters_of(decoded):
    assert decoded.errors == ()
    return decoded.value.rbac


def policy(permission=ANY, principal=ANY):
    return {"permissions": [permission], "principals": [principal]}


def permission_of(rbac, permission):
    return filters_of(rbac(rules={"policies": {"p": policy(permission)}}))[0].policies[0].permission


def principal_of(rbac, principal):
    return filters_of(rbac(rules={"policies": {"p": policy(ANY, principal)}}))[0].policies[0].principal


def exact(value):
    return StringMatcher(StringKind.EXACT, value)


def test_policies_are_ordered_by_name(rbac):
    rules = {"action": "DENY", "policies": {"b": policy(), "a": policy()}}
    expected = Rbac("rbac", RbacAction.DENY, (Policy("a", All(), All()), Policy("b", All(), All())))
    assert filters_of(rbac(rules=rules)) == (expected,)


def test_a_filter_without_rules_lets_everything_pass(rbac):
    assert filters_of(rbac()) == ()


def test_rules_without_policies_allow_nothing(rbac):
    assert filters_of(rbac(rules={})) == (Rbac("rbac", RbacAction.ALLOW, ()),)


def test_shadow_rules(rbac):
    shadow = Rbac("rbac", RbacAction.DENY, (Policy("p", All(), All()),))
    rules = {"action": "DENY", "policies": {"p": policy()}}
    assert filters_of(rbac(rules={}, shadow_rules=rules)) == (Rbac("rbac", RbacAction.ALLOW, (), shadow),)
    assert filters_of(rbac(shadow_rules=rules)) == (Rbac("rbac", RbacAction.LOG, (), shadow),)


@pytest.mark.parametrize(
    ("permission", "expected"),
    [
        (ANY, All()),
        ({"and_rules": {"rules": [ANY, {"not_rule": ANY}]}}, And((All(), Not(All())))),
        ({"or_rules": {"rules": [ANY]}}, Or((All(),))),
        (
            {"header": {"name": ":Method", "string_match": {"exact": "GET"}}},
            Header(HeaderMatcher(":method", exact("GET"))),
        ),
        ({"url_path": {"path": {"prefix": "/a"}}}, UrlPath(StringMatcher(StringKind.PREFIX, "/a"))),
        ({"destination_ip": {"address_prefix": "10.1.2.3", "prefix_len": 8}}, Ip(IpKind.DESTINATION, "10.0.0.0/8")),
        ({"destination_port": 80}, DestinationPort(80)),
        ({"destination_port_range": {"start": 1, "end": 5}}, DestinationPortRange(1, 5)),
        ({"requested_server_name": {"exact": ""}}, ServerName(exact(""))),
    ],
)
def test_permissions(rbac, permission, expected):
    assert permission_of(rbac, permission) == expected


@pytest.mark.parametrize(
    ("principal", "expected"),
    [
        (ANY, All()),
        ({"and_ids": {"ids": [ANY, {"not_id": ANY}]}}, And((All(), Not(All())))),
        ({"or_ids": {"ids": [ANY, ANY]}}, Or((All(), All()))),
        ({"authenticated": {}}, Principal(None)),
        ({"authenticated": {"principal_name": {"exact": "spiffe://x"}}}, Principal(exact("spiffe://x"))),
        ({"source_ip": {"address_prefix": "::1", "prefix_len": 128}}, Ip(IpKind.SOURCE, "::1/128")),
        (
            {"direct_remote_ip": {"address_prefix": "10.0.0.1", "prefix_len": 99}},
            Ip(IpKind.DIRECT_REMOTE, "10.0.0.1/32"),
        ),
        ({"remote_ip": {"address_prefix": "10.0.0.1"}}, Ip(IpKind.REMOTE, "0.0.0.0/0")),
        ({"header": {"name": "A"}}, Header(HeaderMatcher("a", True))),
        ({"url_path": {"path": {"safe_regex": {"regex": "/a.*"}}}}, UrlPath(StringMatcher(StringKind.REGEX, "/a.*"))),
    ],
)
def test_principals(rbac, principal, expected):
    assert principal_of(rbac, principal) == expected


def test_one_permission_and_one_principal_of_several_must_match(rbac):
    several = {"permissions": [ANY, {"destination_port": 1}], "principals": [ANY, {"not_id": ANY}]}
    found = filters_of(rbac(rules={"policies": {"p": several}}))[0].policies[0]
    assert found == Policy("p", Or((All(), DestinationPort(1))), Or((All(), Not(All()))))


METADATA = {"filter": "f", "path": [{"key": "k"}], "value": {"null_match": {}}}
P = f'{CONFIG}.rules.policies["p"]'


@pytest.mark.parametrize(
    ("bad", "path"),
    [
        ({"permissions": [], "principals": [ANY]}, "permissions"),
        ({"permissions": [ANY], "principals": []}, "principals"),
        ({**policy(), "condition": {}}, "condition"),
        (policy({"metadata": METADATA}), "permissions[0].metadata"),
        (policy({"uri_template": {"name": "t"}}), "permissions[0].uri_template"),
        (policy({"matcher": {"name": "t"}}), "permissions[0].matcher"),
        (policy({}), "permissions[0].rule"),
        (policy({"any": False}), "permissions[0].any"),
        (policy({"and_rules": {}}), "permissions[0].and_rules.rules"),
        (policy({"not_rule": {}}), "permissions[0].not_rule.rule"),
        (policy({"destination_port": 65536}), "permissions[0].destination_port"),
        (policy({"destination_port_range": {"start": 5, "end": 5}}), "permissions[0].destination_port_range"),
        (policy({"destination_ip": {"address_prefix": "x"}}), "permissions[0].destination_ip.address_prefix"),
        (
            policy({"header": {"name": "a", "safe_regex_match": {"regex": "("}}}),
            "permissions[0].header.safe_regex_match.regex",
        ),
        (policy(ANY, {"metadata": METADATA}), "principals[0].metadata"),
        (policy(ANY, {"filter_state": {"key": "k", "string_match": {"exact": "v"}}}), "principals[0].filter_state"),
        (policy(ANY, {"custom": {"name": "x"}}), "principals[0].custom"),
        (
            policy(ANY, {"authenticated": {"principal_name": {}}}),
            "principals[0].authenticated.principal_name.match_pattern",
        ),
    ],
)
def test_rules_that_cannot_be_honoured_refuse_the_listener(rbac, bad, path):
    decoded = rbac(rules={"policies": {"p": bad}})
    assert decoded.value is None
    assert f"{P}.{path}" in [error.partition(": ")[0] for error in decoded.errors]


def test_a_matcher_in_the_place_of_rules_is_refused(rbac):
    assert rbac(matcher={}).errors == (f"{CONFIG}.matcher: is not supported",)


def test_how_evaluations_are_reported_is_harmless(rbac):
    decoded = rbac(rules={"audit_logging_options": {}}, rules_stat_prefix="x", shadow_matcher={})
    assert decoded.errors == ()
    assert set(decoded.unused) == {
        f"{CONFIG}.rules.audit_logging_options",
        f"{CONFIG}.rules_stat_prefix",
        f"{CONFIG}.shadow_matcher",
    }
