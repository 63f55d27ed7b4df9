"""Authorization filters. What a rule says is honoured to the letter or the listener is refused."""

import ipaddress
from typing import Any, Final

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
from meshlib.xds.decode_common import cover, join
from meshlib.xds.decode_matcher import header_matcher, string_matcher
from meshlib.xds.problems import Problems

__all__ = ["RBAC_TYPE", "decode_rbac"]

RBAC_TYPE: Final = "envoy.extensions.filters.http.rbac.v3.RBAC"

_ACTIONS: Final = {0: RbacAction.ALLOW, 1: RbacAction.DENY, 2: RbacAction.LOG}
_FILTER_HARMLESS: Final = frozenset(
    {
        # How evaluations are reported; `shadow_matcher` decides nothing.
        "rules_stat_prefix",
        "shadow_rules_stat_prefix",
        "track_per_rule_stats",
        "shadow_matcher",
    }
)
_IP_KINDS: Final = {
    "source_ip": IpKind.SOURCE,
    "direct_remote_ip": IpKind.DIRECT_REMOTE,
    "remote_ip": IpKind.REMOTE,
    "destination_ip": IpKind.DESTINATION,
}
_NEVER: Final = Or(())
"""Stands where a condition could not be decoded; the listener is refused then."""


def decode_rbac(message: Any, name: str, path: str, problems: Problems) -> Rbac | None:
    """Decode an RBAC filter.

    Args:
        message: The filter's configuration.
        name: The filter's name in the chain.
        path: Field path of the configuration.
        problems: Takes the errors.

    Returns:
        None if it lets every request pass. Shadow rules without rules are an Rbac that only logs.
    """
    used = frozenset({"rules", "shadow_rules"})
    cover(message, path, problems, used=used, harmless=_FILTER_HARMLESS)
    shadow = None
    if message.HasField("shadow_rules"):
        shadow = _rules(message.shadow_rules, name, join(path, "shadow_rules"), problems, None)
    if message.HasField("rules"):
        return _rules(message.rules, name, join(path, "rules"), problems, shadow)
    return None if shadow is None else Rbac(name, RbacAction.LOG, (), shadow)


def _rules(message: Any, name: str, path: str, problems: Problems, shadow: Rbac | None) -> Rbac:
    used = frozenset({"action", "policies"})
    cover(message, path, problems, used=used, harmless=frozenset({"audit_logging_options"}))
    # Envoy evaluates the policies in the order of their names, and the first that matches gives the reason.
    policies = tuple(
        _policy(policy, f'{join(path, "policies")}["{policy_name}"]', policy_name, problems)
        for policy_name, policy in sorted(message.policies.items())
    )
    return Rbac(name, _ACTIONS.get(message.action, RbacAction.DENY), policies, shadow)


def _policy(message: Any, path: str, name: str, problems: Problems) -> Policy:
    used = frozenset({"permissions", "principals"})
    cover(message, path, problems, used=used, harmless=frozenset({"cel_config"}))
    permissions = _conditions(message.permissions, join(path, "permissions"), problems)
    principals = _conditions(message.principals, join(path, "principals"), problems)
    return Policy(name, _any_of(permissions), _any_of(principals))


def _any_of(parts: tuple[Condition, ...]) -> Condition:
    return parts[0] if len(parts) == 1 else Or(parts)


def _conditions(messages: Any, path: str, problems: Problems) -> tuple[Condition, ...]:
    return tuple(_condition(message, f"{path}[{index}]", problems) for index, message in enumerate(messages))


def _condition(message: Any, path: str, problems: Problems) -> Condition:
    """Decode a Permission or a Principal; their fields of the same name mean the same."""
    oneof = "rule" if "rule" in message.DESCRIPTOR.oneofs_by_name else "identifier"
    kind = message.WhichOneof(oneof)
    place = join(path, str(kind))
    value: Any = getattr(message, kind) if kind else None
    match kind:
        case "any":
            return All()
        case "and_rules":
            return And(_conditions(value.rules, join(place, "rules"), problems))
        case "and_ids":
            return And(_conditions(value.ids, join(place, "ids"), problems))
        case "or_rules":
            return Or(_conditions(value.rules, join(place, "rules"), problems))
        case "or_ids":
            return Or(_conditions(value.ids, join(place, "ids"), problems))
        case "not_rule" | "not_id":
            return Not(_condition(value, place, problems))
        case "header":
            return Header(header_matcher(value, place, problems))
        case "url_path":
            return UrlPath(string_matcher(value.path, join(place, "path"), problems))
        case "requested_server_name":
            return ServerName(string_matcher(value, place, problems))
        case "destination_port":
            return DestinationPort(value)
        case "destination_port_range":
            if not 0 <= value.start < value.end <= 65536:
                problems.error(place, "must have 0 <= start < end <= 65536")
            return DestinationPortRange(value.start, value.end)
        case "authenticated":
            return _authenticated(value, place, problems)
        case "source_ip" | "direct_remote_ip" | "remote_ip" | "destination_ip":
            return _ip(_IP_KINDS[kind], value, place, problems)
        case None:
            problems.error(join(path, oneof), "is empty or of a kind that is not known to this version")
        case _:
            problems.error(place, "is not supported")
    return _NEVER


def _authenticated(message: Any, path: str, problems: Problems) -> Principal:
    cover(message, path, problems, used=frozenset({"principal_name"}), harmless=frozenset(), strict=True)
    if not message.HasField("principal_name"):
        return Principal(None)
    return Principal(string_matcher(message.principal_name, join(path, "principal_name"), problems))


def _ip(kind: IpKind, message: Any, path: str, problems: Problems) -> Condition:
    """Decode a CidrRange. A missing length is 0, a length beyond the address is the whole address."""
    try:
        address = ipaddress.ip_address(message.address_prefix)
    except ValueError:
        problems.error(join(path, "address_prefix"), f"{message.address_prefix!r} is not an IP address")
        return _NEVER
    length = min(message.prefix_len.value, address.max_prefixlen)
    return Ip(kind, str(ipaddress.ip_network(f"{address}/{length}", strict=False)))
