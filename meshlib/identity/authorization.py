"""Authorization: whether an inbound request may pass the RBAC filters of its listener.

Istio's order (DENY before ALLOW) is simply the order of the filters; each must let the request pass. A filter's
policies are tried in the order of their names, and the first that holds is the one that answers name.

Two rules are stricter than Envoy's on purpose. Who has shown no certificate satisfies no condition on principals, not
even one that would match an empty name. And a condition on an address that is not known (a unix socket) does not hold.
Under a `not` both of course do: a DENY rule for everyone but X stops the anonymous.

Source: Envoy `RoleBasedAccessControlEngineImpl`; gRFC A41.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import assert_never

from meshlib.matching import compile_header, compile_string
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
    Principal,
    Rbac,
    RbacAction,
    ServerName,
    UrlPath,
)
from meshlib.model.outcome import LocalReply
from meshlib.model.request import RequestHead

__all__ = ["Authorizer", "AuthzRequest", "AuthzResult", "ShadowResult", "compile_rbac"]

BODY = b"RBAC: access denied"
PERMISSION_DENIED = 7


@dataclass(frozen=True, slots=True)
class AuthzRequest:
    """What rules may ask about.

    Attributes:
        principals: Names of the caller from its verified certificate: URI names, DNS names, subject; any may satisfy a
            condition. Empty ones do not count.
        is_authenticated: The caller has shown a certificate that was verified.
        source_ip: The connection's other end; empty: not an IP connection.
        destination_ip: Where the connection came in; may be empty.
        server_name: SNI of the connection.
        remote_ip: The original client, where a trusted proxy told; empty: `source_ip`.
    """

    head: RequestHead
    principals: tuple[str, ...] = ()
    is_authenticated: bool = False
    source_ip: str = ""
    destination_ip: str = ""
    destination_port: int = 0
    server_name: str = ""
    remote_ip: str = ""


@dataclass(frozen=True, slots=True)
class ShadowResult:
    """What shadow rules would have said; nothing follows from it.

    Attributes:
        policy: Name of the policy that held, or empty.
    """

    allowed: bool
    policy: str


@dataclass(frozen=True, slots=True)
class AuthzResult:
    """Attributes:
    filter: Name of the RBAC filter.
    policy: Name of the policy that held, or empty: with ALLOW and a refusal none did.
    reply: What a refused caller gets; None if allowed.
    """

    allowed: bool
    filter: str
    policy: str
    reply: LocalReply | None = None
    shadow: ShadowResult | None = None


Test = Callable[[AuthzRequest], bool]


@lru_cache(4096)
def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A dual-stack socket shows IPv4 peers as ::ffff:a.b.c.d; rules are about the IPv4 address.
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _ip(condition: Ip) -> Test:
    network = ip_network(condition.cidr, strict=False)
    if isinstance(network, IPv6Network) and network.prefixlen >= 96 and network.network_address.ipv4_mapped:
        network = ip_network((network.network_address.ipv4_mapped, network.prefixlen - 96), strict=False)

    def holds(text: str) -> bool:
        address = _address(text)
        return address is not None and address in network

    match condition.kind:
        case IpKind.SOURCE | IpKind.DIRECT_REMOTE:
            return lambda request: holds(request.source_ip)
        case IpKind.REMOTE:
            return lambda request: holds(request.remote_ip or request.source_ip)
        case IpKind.DESTINATION:
            return lambda request: holds(request.destination_ip)
        case _:
            assert_never(condition.kind)


def _principal(condition: Principal) -> Test:
    if condition.matcher is None:
        return lambda request: request.is_authenticated
    fits = compile_string(condition.matcher)

    def holds(request: AuthzRequest) -> bool:
        return request.is_authenticated and any(map(fits, filter(None, request.principals)))

    return holds


def _url_path(condition: UrlPath) -> Test:
    fits = compile_string(condition.matcher)

    def holds(request: AuthzRequest) -> bool:
        path = request.head.path
        if "?" in path or "#" in path:
            path = path.partition("?")[0].partition("#")[0]
        return fits(path)

    return holds


def _server_name(condition: ServerName) -> Test:
    fits = compile_string(condition.matcher)
    return lambda request: fits("" if request.head.profile.grpc_conditions else request.server_name)


def _all(parts: Sequence[Condition]) -> Test:
    tests = tuple(_compile(part) for part in parts)
    if len(tests) == 1:
        return tests[0]
    if len(tests) == 2:  # permission and principal, and most groups: a third of the time of the general form
        first, second = tests
        return lambda request: first(request) and second(request)
    return lambda request: all(test(request) for test in tests)


def _any(parts: Sequence[Condition]) -> Test:
    tests = tuple(_compile(part) for part in parts)
    if len(tests) == 1:
        return tests[0]
    if len(tests) == 2:
        first, second = tests
        return lambda request: first(request) or second(request)
    return lambda request: any(test(request) for test in tests)


def _compile(condition: Condition) -> Test:
    match condition:
        case All():
            return lambda request: True
        case And(parts=parts):
            return _all(parts)
        case Or(parts=parts):
            return _any(parts)
        case Not(part=part):
            inner = _compile(part)
            return lambda request: not inner(request)
        case Header(matcher=matcher):
            test = compile_header(matcher, server=True)
            return lambda request: test(request.head)
        case UrlPath():
            return _url_path(condition)
        case Principal():
            return _principal(condition)
        case Ip():
            return _ip(condition)
        case DestinationPort(port=port):
            return lambda request: request.destination_port == port
        case DestinationPortRange(start=start, end=end):
            return lambda request: start <= request.destination_port < end
        case ServerName():
            return _server_name(condition)
        case _:
            assert_never(condition)


def _refusal(policy: str) -> LocalReply:
    name = "".join("_" if character.isspace() else character for character in policy or "none")
    details = f"rbac_access_denied_matched_policy[{name}]"
    return LocalReply(403, "", details, BODY, (("content-type", "text/plain"),), grpc_status=PERMISSION_DENIED)


@dataclass(frozen=True, slots=True)
class Authorizer:
    """One RBAC filter, compiled. Not changed after creation; made by `compile_rbac`.

    Attributes:
        name: Of the filter.
    """

    name: str
    action: RbacAction
    _policies: tuple[tuple[Test, AuthzResult], ...] = field(repr=False)
    _otherwise: AuthzResult = field(repr=False)
    _shadow: "Authorizer | None" = field(repr=False, default=None)

    def check(self, request: AuthzRequest) -> AuthzResult:
        """Decide about one request."""
        result = self._otherwise
        for holds, if_held in self._policies:
            if holds(request):
                result = if_held
                break
        if self._shadow is None:
            return result
        shadow = self._shadow.check(request)
        return replace(result, shadow=ShadowResult(shadow.allowed, shadow.policy))


def compile_rbac(rbac: Rbac) -> Authorizer:
    """Compile one RBAC filter.

    Returns:
        For ALLOW one that lets pass what a policy covers (no policies: nothing), for DENY one that lets pass what none
        covers, for LOG one that lets everything pass.

    Raises:
        ValueError: A regex or CIDR that is not valid; names the policy. The decoder should have refused it.
    """
    policies: list[tuple[Test, AuthzResult]] = []
    for policy in sorted(rbac.policies, key=lambda policy: policy.name):
        try:
            test = _all((policy.permission, policy.principal))
        except ValueError as error:
            raise ValueError(f"RBAC filter {rbac.name!r}, policy {policy.name!r}: {error}") from error
        refused = _refusal(policy.name) if rbac.action is RbacAction.DENY else None
        policies.append((test, AuthzResult(refused is None, rbac.name, policy.name, refused)))
    refused = _refusal("") if rbac.action is RbacAction.ALLOW else None
    otherwise = AuthzResult(refused is None, rbac.name, "", refused)
    shadow = None if rbac.shadow is None else compile_rbac(rbac.shadow)
    return Authorizer(rbac.name, rbac.action, tuple(policies), otherwise, shadow)
