"""Rules that make descriptors of requests: `rate_limits` of routes, virtual hosts and local rate limits.

What routes and virtual hosts say may be meant for a rate limit service, which a client does not have. So what cannot be
honoured there makes no descriptor, and is reported as without effect; in the filter's own rules it is an error.
"""

from typing import Any, Final

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
from meshlib.substitution import check_format, parse_format
from meshlib.xds.decode_common import cover, join, wrapped
from meshlib.xds.decode_matcher import header_matchers, query_matcher
from meshlib.xds.problems import Problems

__all__ = ["filter_rules", "route_rules"]

_ROUTE_RULE: Final = frozenset({"stage", "disable_key", "actions"})
_FILTER_RULE: Final = frozenset({"actions", "hits_addend", "apply_on_stream_done"})
_ROUTE_ENTRY: Final = 1


def route_rules(messages: Any, path: str, problems: Problems) -> tuple[LimitRule, ...]:
    """Decode `rate_limits` of a route or virtual host."""
    found = []
    for number, message in enumerate(messages):
        place = f"{path}[{number}]"
        # `limit` is for a rate limit service, `hits_addend` for rules of filters, as in Envoy.
        cover(message, place, problems, used=_ROUTE_RULE, refused=frozenset())
        own = Problems()
        actions = _actions(message.actions, join(place, "actions"), own)
        for fault in own.errors:
            where, _, reason = fault.partition(": ")
            if reason == "is not supported":
                problems.unused(where, "is not supported, so there is no such descriptor")
            else:
                problems.error(where, reason)
        # A rule with a key is switched off by a runtime that nobody here has; Envoy's local limit passes over it too.
        stage = wrapped(message, "stage")
        is_off = bool(own.errors or message.disable_key)
        found.append(LimitRule(() if is_off else actions, 0 if stage is None else stage, is_off=is_off))
    return tuple(found)


def filter_rules(messages: Any, path: str, problems: Problems) -> tuple[LimitRule, ...]:
    """Decode `rate_limits` of a local rate limit."""
    found = []
    for number, message in enumerate(messages):
        place = f"{path}[{number}]"
        cover(message, place, problems, used=_FILTER_RULE, harmless=frozenset())
        actions = _actions(message.actions, join(place, "actions"), problems)
        hits, hits_format = _hits(message, place, problems)
        if message.apply_on_stream_done:
            problems.unused(
                join(place, "apply_on_stream_done"), "a local rate limit asks before, so there is no such rule"
            )
            continue
        found.append(LimitRule(actions, 0, hits, hits_format))
    return tuple(found)


def _hits(message: Any, path: str, problems: Problems) -> tuple[int, str]:
    if not message.HasField("hits_addend"):
        return 1, ""
    addend, place = message.hits_addend, join(path, "hits_addend")
    if bool(addend.format) == addend.HasField("number"):
        problems.error(place, "must have either a number or a format")
        return 1, ""
    if addend.format:
        if fault := check_format(addend.format):
            problems.error(join(place, "format"), fault)
            return 1, ""
        if len(parse_format(addend.format)) != 1:
            problems.error(join(place, "format"), "must be exactly one substitution")
        return 1, addend.format
    return addend.number.value, ""


def _actions(messages: Any, path: str, problems: Problems) -> tuple[DescriptorAction, ...]:
    found = (_action(message, f"{path}[{number}]", problems) for number, message in enumerate(messages))
    return tuple(action for action in found if action is not None)


def _action(message: Any, path: str, problems: Problems) -> DescriptorAction | None:
    kind = message.WhichOneof("action_specifier")
    place = join(path, str(kind or "action_specifier"))
    inner: Any = getattr(message, kind) if kind else None
    match kind:
        case "generic_key":
            return GenericKey(inner.descriptor_key or "generic_key", inner.descriptor_value)
        case "destination_cluster":
            return DestinationCluster()
        case "remote_address":
            return RemoteAddress()
        case "masked_remote_address":
            v4, v6 = wrapped(inner, "v4_prefix_mask_len"), wrapped(inner, "v6_prefix_mask_len")
            return RemoteAddress(32 if v4 is None else v4, 128 if v6 is None else v6)
        case "request_headers":
            return HeaderValue(inner.header_name.lower(), inner.descriptor_key, inner.skip_if_absent)
        case "query_parameters":
            return QueryValue(inner.query_parameter_name, inner.descriptor_key, inner.skip_if_absent)
        case "header_value_match":
            headers = header_matchers(inner.headers, join(place, "headers"), problems)
            return HeaderMatch(
                inner.descriptor_key or "header_match", inner.descriptor_value, headers, _is_expected(inner)
            )
        case "query_parameter_value_match":
            parameters = tuple(
                query_matcher(one, f"{join(place, 'query_parameters')}[{number}]", problems)
                for number, one in enumerate(inner.query_parameters)
            )
            return QueryMatch(
                inner.descriptor_key or "query_match", inner.descriptor_value, parameters, _is_expected(inner)
            )
        case "metadata":
            key = inner.metadata_key
            steps = (key.key, *(segment.key for segment in key.path)) if inner.source == _ROUTE_ENTRY else ()
            return RouteMetadata(inner.descriptor_key, steps, inner.default_value, inner.skip_if_absent)
        case "dynamic_metadata":
            return RouteMetadata(inner.descriptor_key, (), inner.default_value)
    problems.error(place, "is not supported" if kind else "is required")
    return None


def _is_expected(message: Any) -> bool:
    expected = wrapped(message, "expect_match")
    return True if expected is None else bool(expected)
