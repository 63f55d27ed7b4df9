"""Matcher trees of virtual hosts: `xds.type.matcher.v3.Matcher`, as far as Envoy lets routes have them.

Envoy refuses there what would need more than a request's headers: other inputs and `keep_matching`.
"""

from collections.abc import Callable
from typing import Any, Final

from meshlib.model.match_tree import And, Field, MatchList, MatchMap, MatchTree, Not, Or, Predicate, Single, ToRoutes
from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.xds.decode_common import cover, join, unpack_extension
from meshlib.xds.decode_matcher import string_matcher
from meshlib.xds.problems import Problems

__all__ = ["match_tree"]

AddRoute = Callable[[Any, str], int]
"""Decodes a Route (at a path) and returns its number."""

_NOTHING: Final = Single("", StringMatcher(StringKind.PREFIX, ""))


def match_tree(message: Any, path: str, problems: Problems, add_route: AddRoute) -> MatchTree | None:
    """Decode a Matcher; None: it is empty, so that nothing ever fits."""
    otherwise = None
    if message.HasField("on_no_match"):
        otherwise = _on_match(message.on_no_match, join(path, "on_no_match"), problems, add_route)
    kind = message.WhichOneof("matcher_type")
    place = join(path, str(kind))
    match kind:
        case "matcher_list":
            fields = tuple(
                _field(item, f"{place}.matchers[{index}]", problems, add_route)
                for index, item in enumerate(message.matcher_list.matchers)
            )
            return MatchList(fields, otherwise)
        case "matcher_tree":
            return _map(message.matcher_tree, place, problems, add_route, otherwise)
        case _:
            return otherwise


def _field(message: Any, path: str, problems: Problems, add_route: AddRoute) -> Field:
    predicate = _predicate(message.predicate, join(path, "predicate"), problems)
    return Field(predicate, _on_match(message.on_match, join(path, "on_match"), problems, add_route))


def _map(
    message: Any, path: str, problems: Problems, add_route: AddRoute, otherwise: MatchTree | None
) -> MatchTree | None:
    kind = message.WhichOneof("tree_type")
    if kind not in ("exact_match_map", "prefix_match_map"):
        problems.error(join(path, str(kind)), "is not supported")
        return otherwise
    entries = getattr(message, kind).map
    place = join(path, f"{kind}.map")
    if not entries:
        problems.error(place, "needs at least 1 element")
    decoded = tuple((key, _on_match(entries[key], f'{place}["{key}"]', problems, add_route)) for key in sorted(entries))
    header = _input(message.input, join(path, "input"), problems)
    return MatchMap(header, decoded, kind == "prefix_match_map", otherwise)


def _on_match(message: Any, path: str, problems: Problems, add_route: AddRoute) -> MatchTree:
    used = frozenset({"matcher", "action", "keep_matching"})
    cover(message, path, problems, used=used, harmless=frozenset(), strict=True)
    if message.keep_matching:
        problems.error(join(path, "keep_matching"), "is not supported, as in Envoy's routes")
    if message.HasField("matcher"):
        return match_tree(message.matcher, join(path, "matcher"), problems, add_route) or MatchList(())
    place = join(path, "action")
    action = unpack_extension(message.action, place, problems)
    if action is None:
        return ToRoutes(())
    place = join(place, "typed_config")
    match action.DESCRIPTOR.full_name:
        case "envoy.config.route.v3.Route":
            return ToRoutes((add_route(action, place),))
        case "envoy.config.route.v3.RouteList":
            return ToRoutes(tuple(add_route(route, f"{place}.routes[{i}]") for i, route in enumerate(action.routes)))
        case other:
            problems.error(place, f"must be a Route or a RouteList, is {other}")
            return ToRoutes(())


def _predicate(message: Any, path: str, problems: Problems) -> Predicate:
    kind = message.WhichOneof("match_type")
    place = join(path, str(kind))
    match kind:
        case "single_predicate":
            return _single(message.single_predicate, place, problems)
        case "and_matcher":
            return And(_predicates(message.and_matcher, place, problems))
        case "or_matcher":
            return Or(_predicates(message.or_matcher, place, problems))
        case "not_matcher":
            return Not(_predicate(message.not_matcher, place, problems))
        case _:
            return _NOTHING


def _predicates(message: Any, path: str, problems: Problems) -> tuple[Predicate, ...]:
    return tuple(
        _predicate(item, f"{path}.predicate[{index}]", problems) for index, item in enumerate(message.predicate)
    )


def _single(message: Any, path: str, problems: Problems) -> Predicate:
    header = _input(message.input, join(path, "input"), problems)
    if message.WhichOneof("matcher") != "value_match":
        problems.error(join(path, "custom_match"), "is not supported")
        return _NOTHING
    return Single(header, string_matcher(message.value_match, join(path, "value_match"), problems))


def _input(message: Any, path: str, problems: Problems) -> str:
    """Return the name of the header, empty for filter state: there is none in a client."""
    config = unpack_extension(message, path, problems)
    if config is None:
        return ""
    match config.DESCRIPTOR.full_name:
        case "envoy.type.matcher.v3.HttpRequestHeaderMatchInput":
            return str(config.header_name).lower()
        case "envoy.extensions.matching.common_inputs.network.v3.FilterStateInput":
            return ""
        case other:
            problems.error(path, f"routes can be matched by request headers only, not by {other}")
            return ""
