"""Descriptors of a request: what local rate limits count it by.

Source: Envoy `RateLimitPolicy::populateDescriptors`, `RateLimitPolicyEntryImpl`, and the actions in
`router_ratelimit.cc`.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from typing import Final, assert_never
from urllib.parse import unquote

from meshlib.matching import compile_header, compile_string
from meshlib.model.descriptors import (
    DescriptorAction,
    DestinationCluster,
    GenericKey,
    HeaderMatch,
    HeaderValue,
    LimitRule,
    QueryMatch,
    QueryValue,
    RemoteAddress,
    RouteMetadata,
)
from meshlib.model.matcher import QueryMatcher
from meshlib.model.request import RequestHead
from meshlib.routing.format import Facts, Scene, compile_value

__all__ = ["Describe", "Descriptor", "Entries", "compile_rules"]

Entries = tuple[tuple[str, str], ...]
Descriptor = tuple[Entries, int]
"""Keys and values in order, and what the request takes from a bucket with them."""
Describe = Callable[[RequestHead, str], tuple[Descriptor, ...]]
"""Makes the descriptors of a request with the address that it comes from; empty: there is none."""

_Entry = tuple[str, str] | None | bool
"""A part of a descriptor; None: it is left out; False: there is no descriptor."""
_Action = Callable[[RequestHead, str], _Entry]
MAX_HITS: Final = 1_000_000_000
_NUMBER: Final = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")


def compile_rules(rules: Sequence[LimitRule], facts: Facts) -> Describe | None:
    """Compile rules; None: there are none.

    Raises:
        ValueError: A regex or a format that is not valid.
    """
    if not rules:
        return None
    compiled = tuple(_compile_rule(rule, facts) for rule in rules)

    def describe(head: RequestHead, remote: str) -> tuple[Descriptor, ...]:
        return tuple(found for rule in compiled if (found := rule(head, remote)) is not None)

    return describe


def _compile_rule(rule: LimitRule, facts: Facts) -> Callable[[RequestHead, str], Descriptor | None]:
    actions = tuple(_compile_action(action, facts) for action in rule.actions)
    read_hits = compile_value(rule.hits_format, facts, absent="") if rule.hits_format else None

    def describe(head: RequestHead, remote: str) -> Descriptor | None:
        entries: list[tuple[str, str]] = []
        for action in actions:
            entry = action(head, remote)
            if isinstance(entry, bool):
                return None
            if entry is not None:
                entries.append(entry)
        hits: int | None = rule.hits
        if read_hits is not None:
            hits = _hits(read_hits(Scene(head)))
        return None if hits is None else (tuple(entries), hits)

    return describe


def _hits(value: object) -> int | None:
    if isinstance(value, str):
        value = float(value) if _NUMBER.fullmatch(value) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_HITS:
        return None
    return int(value)


def _compile_action(action: DescriptorAction, facts: Facts) -> _Action:
    match action:
        case GenericKey(key, value):
            fixed = (key, value)
            return lambda head, remote: fixed
        case DestinationCluster():
            header, cluster = facts.cluster_header, facts.cluster
            if cluster is not None:
                to = ("destination_cluster", cluster)
                return lambda head, remote: to
            return lambda head, remote: ("destination_cluster", next(iter(head.values(header)), ""))
        case RemoteAddress():
            return _remote(action)
        case HeaderValue(name, key, may_be_absent):
            return _value(key, lambda head: next(iter(head.values(name)), None), may_be_absent=may_be_absent)
        case QueryValue(name, key, may_be_absent):
            return _value(key, lambda head: _parameters(head).get(name), may_be_absent=may_be_absent)
        case HeaderMatch(key, value, headers, is_expected):
            tests = tuple(map(compile_header, headers))
            found = (key, value)
            return lambda head, remote: all(test(head) for test in tests) is is_expected and found
        case QueryMatch(key, value, parameters, is_expected):
            holds = tuple(map(_compile_parameter, parameters))
            entry = (key, value)

            def match_query(head: RequestHead, remote: str) -> _Entry:
                given = _parameters(head)
                return all(hold(given) for hold in holds) is is_expected and entry

            return match_query
        case RouteMetadata():
            return _metadata(action, facts)
        case _:
            assert_never(action)


def _value(key: str, read: Callable[[RequestHead], str | None], *, may_be_absent: bool) -> _Action:
    def action(head: RequestHead, remote: str) -> _Entry:
        value = read(head)
        if value is None:
            return None if may_be_absent else False
        return key, value

    return action


def _remote(action: RemoteAddress) -> _Action:
    def read(head: RequestHead, remote: str) -> _Entry:
        try:
            address = ipaddress.ip_address(remote)
        except ValueError:
            return False
        if action.prefix_v4 is None:
            return "remote_address", str(address)
        length = action.prefix_v4 if address.version == 4 else action.prefix_v6
        network = ipaddress.ip_network((address, length), strict=False)
        return "masked_remote_address", str(network)

    return read


def _metadata(action: RouteMetadata, facts: Facts) -> _Action:
    found: object = facts.metadata if action.path else None
    for key in action.path:
        found = found.get(key) if hasattr(found, "get") else None
    value = found if isinstance(found, str) and found else action.default
    entry: _Entry = (action.key, value) if value else None if action.may_be_absent else False
    return lambda head, remote: entry


def _parameters(head: RequestHead) -> dict[str, str]:
    """Return the first value of each query parameter, decoded."""
    found: dict[str, str] = {}
    for pair in head.path.partition("?")[2].split("&"):
        key, _, value = pair.partition("=")
        found.setdefault(unquote(key, "latin-1"), unquote(value, "latin-1"))
    return found


def _compile_parameter(matcher: QueryMatcher) -> Callable[[dict[str, str]], bool]:
    name, test = matcher.name, matcher.test
    if isinstance(test, bool):
        return lambda given: (name in given) is test
    fits = compile_string(test)
    return lambda given: name in given and fits(given[name])
