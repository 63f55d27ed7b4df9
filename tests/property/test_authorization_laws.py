"""RBAC, compiled, says what the tree of conditions says."""

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from meshlib.identity.authorization import AuthzRequest, compile_rbac
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
from meshlib.model.request import Headers, RequestHead

WORDS = st.sampled_from(["", "a", "ab", "b", "/a", "/a/b"])
STRINGS = st.builds(
    StringMatcher,
    st.sampled_from([StringKind.EXACT, StringKind.PREFIX, StringKind.SUFFIX, StringKind.CONTAINS]),
    WORDS,
)
LEAVES: st.SearchStrategy[Condition] = st.one_of(
    st.just(All()),
    st.builds(Header, st.builds(HeaderMatcher, st.just("x-a"), st.one_of(STRINGS, st.booleans()), st.booleans())),
    st.builds(UrlPath, STRINGS),
    st.builds(Principal, st.one_of(st.none(), STRINGS)),
    st.builds(Ip, st.sampled_from(list(IpKind)), st.sampled_from(["10.0.0.0/8", "0.0.0.0/0", "::/0", "10.0.0.1/32"])),
    st.builds(DestinationPort, st.sampled_from([80, 443])),
    st.builds(DestinationPortRange, st.sampled_from([0, 80]), st.sampled_from([80, 444])),
    st.builds(ServerName, STRINGS),
)
CONDITIONS = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.builds(And, st.lists(parts, max_size=3).map(tuple)),
        st.builds(Or, st.lists(parts, max_size=3).map(tuple)),
        st.builds(Not, parts),
    ),
    max_leaves=12,
)
ADDRESSES = st.sampled_from(["", "10.0.0.1", "192.0.2.1", "::1"])
REQUESTS = st.builds(
    AuthzRequest,
    st.builds(
        lambda path, values: RequestHead("GET", "svc", path, Headers(("x-a", value) for value in values)),
        st.sampled_from(["/", "/a", "/a/b?c", "/ab#x"]),
        st.lists(WORDS, max_size=2),
    ),
    st.lists(WORDS, max_size=2).map(tuple),
    st.booleans(),
    ADDRESSES,
    ADDRESSES,
    st.sampled_from([0, 80, 443]),
    WORDS,
    ADDRESSES,
)


def fits(matcher: StringMatcher, text: str) -> bool:
    return {
        StringKind.EXACT: text == matcher.value,
        StringKind.PREFIX: text.startswith(matcher.value),
        StringKind.SUFFIX: text.endswith(matcher.value),
        StringKind.CONTAINS: matcher.value in text,
    }[matcher.kind]


def naive(condition: Condition, request: AuthzRequest) -> bool:
    """Evaluate the tree as it is written."""
    match condition:
        case All():
            return True
        case And(parts):
            return all(naive(part, request) for part in parts)
        case Or(parts):
            return any(naive(part, request) for part in parts)
        case Not(part):
            return not naive(part, request)
        case Header(matcher):
            values = request.head.headers.all("x-a")
            if isinstance(matcher.test, bool):
                return (bool(values) == matcher.test) != matcher.invert
            assert isinstance(matcher.test, StringMatcher)
            return bool(values) and any(fits(matcher.test, value) for value in values) != matcher.invert
        case UrlPath(string):
            return fits(string, request.head.path.split("?")[0].split("#")[0])
        case Principal(string):
            if not request.is_authenticated:
                return False
            return string is None or any(name != "" and fits(string, name) for name in request.principals)
        case Ip(kind, cidr):
            text = {
                IpKind.DESTINATION: request.destination_ip,
                IpKind.REMOTE: request.remote_ip or request.source_ip,
            }.get(kind, request.source_ip)
            return text != "" and ip_address(text) in ip_network(cidr)
        case DestinationPort(port):
            return request.destination_port == port
        case DestinationPortRange(start, end):
            return request.destination_port in range(start, end)
        case ServerName(string):
            return fits(string, request.server_name)


POLICIES = st.lists(st.builds(Policy, st.sampled_from(["p", "q", "r"]), CONDITIONS, CONDITIONS), max_size=3).map(tuple)


@given(st.sampled_from(list(RbacAction)), POLICIES, REQUESTS)
def test_compiled_rules_say_what_the_tree_says(
    action: RbacAction, policies: tuple[Policy, ...], request: AuthzRequest
) -> None:
    held = [
        policy.name for policy in policies if naive(policy.permission, request) and naive(policy.principal, request)
    ]
    expected = {RbacAction.ALLOW: bool(held), RbacAction.DENY: not held, RbacAction.LOG: True}[action]
    result = compile_rbac(Rbac("rbac", action, policies)).check(request)
    assert result.allowed == expected
    assert result.policy == min(held, default="")
    assert (result.reply is None) == expected


@given(CONDITIONS, REQUESTS)
def test_an_allow_and_a_deny_of_the_same_rule_are_opposites(condition: Condition, request: AuthzRequest) -> None:
    policies = (Policy("p", condition, All()),)
    allow = compile_rbac(Rbac("rbac", RbacAction.ALLOW, policies)).check(request)
    deny = compile_rbac(Rbac("rbac", RbacAction.DENY, policies)).check(request)
    assert allow.allowed != deny.allowed


@given(st.one_of(st.none(), STRINGS), REQUESTS)
def test_nobody_is_no_principal(matcher: StringMatcher | None, request: AuthzRequest) -> None:
    anonymous = AuthzRequest(request.head, request.principals, False, request.source_ip)
    rules = compile_rbac(Rbac("rbac", RbacAction.ALLOW, (Policy("p", All(), Principal(matcher)),)))
    assert rules.check(anonymous).allowed is False
