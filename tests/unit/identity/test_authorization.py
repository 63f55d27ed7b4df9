import pytest

from meshlib.identity.authorization import AuthzRequest, ShadowResult, compile_rbac
from meshlib.model.authorization import (
    All,
    And,
    Condition,
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
from meshlib.model.outcome import LocalReply
from meshlib.model.request import Headers, RequestHead

ALLOW, DENY, LOG = RbacAction.ALLOW, RbacAction.DENY, RbacAction.LOG
CHECKOUT = "spiffe://cluster.local/ns/default/sa/checkout"
HEAD = RequestHead("GET", "orders:80", "/v1/orders?x=1", Headers((("x-a", "f"), ("x-a", "e"))))
REQUEST = AuthzRequest(HEAD, (CHECKOUT,), True, "10.1.2.3", "10.9.9.9", 8080, "sni.example", "192.0.2.1")
ANONYMOUS = AuthzRequest(HEAD, source_ip="10.1.2.3")


def text(value: str, kind: StringKind = StringKind.EXACT) -> StringMatcher:
    return StringMatcher(kind, value)


def policy(name: str, permission: Condition, principal: Condition | None = None) -> Policy:
    return Policy(name, permission, All() if principal is None else principal)


def holds(condition: Condition, request: AuthzRequest = REQUEST) -> bool:
    return compile_rbac(Rbac("rbac", ALLOW, (policy("p", condition),))).check(request).allowed


NONE = Or(())
IP = IpKind


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (All(), True),
        (Not(All()), False),
        (And(()), True),
        (Or(()), False),
        (And((All(), NONE)), False),
        (Or((NONE, All())), True),
        (Not(Or((NONE, NONE))), True),
        (Header(HeaderMatcher(":method", text("GET"))), True),
        (Header(HeaderMatcher(":authority", text("orders:80"))), True),
        (Header(HeaderMatcher("x-a", text("e"))), True),  # entries one by one
        (Header(HeaderMatcher("x-a", text("f,e"))), False),
        (UrlPath(text("/v1/orders")), True),  # without the query
        (UrlPath(text("/v1/", StringKind.PREFIX)), True),
        (UrlPath(text("/v1/orders?x=1")), False),
        (Principal(None), True),
        (Principal(text(CHECKOUT)), True),
        (Principal(text("spiffe://cluster.local/ns/default/sa/other")), False),
        (Principal(text(".*/ns/default/.*", StringKind.REGEX)), True),
        (Ip(IP.SOURCE, "10.1.0.0/16"), True),
        (Ip(IP.DIRECT_REMOTE, "10.1.2.3/32"), True),
        (Ip(IP.DIRECT_REMOTE, "10.2.0.0/16"), False),
        (Ip(IP.REMOTE, "192.0.2.0/24"), True),
        (Ip(IP.REMOTE, "10.0.0.0/8"), False),
        (Ip(IP.DESTINATION, "10.9.9.9/32"), True),
        (Ip(IP.DESTINATION, "10.9.9.77/24"), True),  # host bits do not matter
        (Ip(IP.SOURCE, "::/0"), False),
        (Ip(IP.SOURCE, "::ffff:10.1.0.0/112"), True),
        (DestinationPort(8080), True),
        (DestinationPort(80), False),
        (DestinationPortRange(8080, 8081), True),
        (DestinationPortRange(8000, 8080), False),
        (ServerName(text("sni.example")), True),
    ],
)
def test_condition(condition: Condition, expected: bool) -> None:
    assert holds(condition) == expected
    assert holds(Not(condition)) == (not expected)


@pytest.mark.parametrize("kind", list(IpKind))
def test_unknown_addresses_satisfy_no_condition(kind: IpKind) -> None:
    request = AuthzRequest(HEAD)
    assert holds(Ip(kind, "0.0.0.0/0"), request) is False


def test_mapped_and_scoped_addresses() -> None:
    assert holds(Ip(IP.SOURCE, "10.0.0.0/8"), AuthzRequest(HEAD, source_ip="::ffff:10.0.0.1")) is True
    assert holds(Ip(IP.SOURCE, "fe80::/10"), AuthzRequest(HEAD, source_ip="fe80::1%eth0")) is True


def test_remote_ip_is_the_peer_unless_a_proxy_told() -> None:
    assert holds(Ip(IP.REMOTE, "10.1.2.3/32"), ANONYMOUS) is True


@pytest.mark.parametrize("matcher", [None, text(""), text(".*", StringKind.REGEX), text("", StringKind.PREFIX)])
def test_missing_identity_satisfies_no_principal(matcher: StringMatcher | None) -> None:
    assert holds(Principal(matcher), ANONYMOUS) is False
    named_but_not_verified = AuthzRequest(HEAD, (CHECKOUT,), is_authenticated=False)
    assert holds(Principal(matcher), named_but_not_verified) is False


def test_certificate_without_names_is_authenticated_and_nobody() -> None:
    nameless = AuthzRequest(HEAD, ("",), is_authenticated=True)
    assert holds(Principal(None), nameless) is True
    assert holds(Principal(text(".*", StringKind.REGEX)), nameless) is False


def test_deny_everyone_but_one_stops_the_anonymous() -> None:
    rules = compile_rbac(Rbac("rbac", DENY, (policy("p", All(), Not(Principal(text(CHECKOUT)))),)))
    assert rules.check(ANONYMOUS).allowed is False
    assert rules.check(REQUEST).allowed is True


def test_any_name_of_the_peer_counts() -> None:
    request = AuthzRequest(HEAD, (CHECKOUT, "checkout.example"), True)
    assert holds(Principal(text("checkout.example")), request) is True


def test_policy_needs_permission_and_principal() -> None:
    rules = compile_rbac(Rbac("rbac", ALLOW, (Policy("p", UrlPath(text("/v1/orders")), Principal(text(CHECKOUT))),)))
    assert rules.check(REQUEST).allowed is True
    assert rules.check(ANONYMOUS).allowed is False


def refusal(policy_name: str) -> LocalReply:
    return LocalReply(
        403,
        "",
        f"rbac_access_denied_matched_policy[{policy_name}]",
        b"RBAC: access denied",
        (("content-type", "text/plain"),),
        grpc_status=7,
    )


def test_allow_names_the_policy_that_let_the_request_in() -> None:
    result = compile_rbac(Rbac("filter", ALLOW, (policy("p", All()),))).check(REQUEST)
    assert (result.allowed, result.filter, result.policy, result.reply) == (True, "filter", "p", None)


@pytest.mark.parametrize("policies", [(), (policy("p", NONE),)])
def test_allow_without_a_match_refuses(policies: tuple[Policy, ...]) -> None:
    result = compile_rbac(Rbac("rbac", ALLOW, policies)).check(REQUEST)
    assert (result.allowed, result.policy, result.reply) == (False, "", refusal("none"))


def test_deny_names_the_policy_in_the_details() -> None:
    result = compile_rbac(Rbac("rbac", DENY, (policy("a\tb  c", All()),))).check(REQUEST)
    assert (result.allowed, result.policy, result.reply) == (False, "a\tb  c", refusal("a_b__c"))


def test_deny_without_a_match_allows() -> None:
    result = compile_rbac(Rbac("rbac", DENY, (policy("p", NONE),))).check(REQUEST)
    assert (result.allowed, result.policy, result.reply) == (True, "", None)


def test_policies_are_tried_in_the_order_of_their_names() -> None:
    rules = Rbac("rbac", DENY, (policy("z", All()), policy("b", All()), policy("a", NONE)))
    assert compile_rbac(rules).check(REQUEST).policy == "b"


@pytest.mark.parametrize(("condition", "expected"), [(All(), "p"), (NONE, "")])
def test_log_lets_everything_pass(condition: Condition, expected: str) -> None:
    result = compile_rbac(Rbac("rbac", LOG, (policy("p", condition),))).check(REQUEST)
    assert (result.allowed, result.policy, result.reply) == (True, expected, None)


def test_shadow_rules_are_reported_and_change_nothing() -> None:
    shadow = Rbac("shadow", DENY, (policy("would-deny", All()),))
    result = compile_rbac(Rbac("rbac", ALLOW, (policy("p", All()),), shadow)).check(REQUEST)
    assert (result.allowed, result.shadow) == (True, ShadowResult(False, "would-deny"))
    refused = compile_rbac(Rbac("rbac", ALLOW, (), shadow)).check(REQUEST)
    assert (refused.allowed, refused.shadow) == (False, ShadowResult(False, "would-deny"))


def test_grpc_calls_have_no_server_name_and_see_their_path() -> None:
    head = RequestHead("POST", "orders", "/shop.Orders/Get", Headers(), is_grpc=True)
    request = AuthzRequest(head, server_name="sni.example")
    assert holds(ServerName(text("")), request) is True
    assert holds(UrlPath(text("/shop.Orders/Get")), request) is True
    assert holds(Header(HeaderMatcher(":path", text("/shop.Orders/Get"))), request) is True


def test_bad_rule_names_its_policy() -> None:
    with pytest.raises(ValueError, match=r"RBAC filter 'rbac', policy 'p': .*missing \)"):
        compile_rbac(Rbac("rbac", ALLOW, (policy("p", UrlPath(text("(", StringKind.REGEX))),)))
    with pytest.raises(ValueError, match=r"RBAC filter 'rbac', policy 'p'"):
        compile_rbac(Rbac("rbac", ALLOW, (policy("p", Ip(IP.SOURCE, "not an address")),)))
