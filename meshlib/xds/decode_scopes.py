"""Scoped routes: how a listener chooses a route configuration for each request, and the scopes themselves (SRDS)."""

from collections.abc import Callable
from typing import Any, Final

from meshlib.model.discovery import KeyFragment, ScopedRoute, ScopedRoutes
from meshlib.model.route import RouteConfiguration
from meshlib.xds.decode_common import cover, is_discovered_by_ads, join
from meshlib.xds.decode_route import decode_route_configuration
from meshlib.xds.problems import Problems

__all__ = ["decode_scope", "scoped_routes"]

_ROUTES_USED: Final = frozenset(
    {"name", "scope_key_builder", "rds_config_source", "scoped_route_configurations_list", "scoped_rds"}
)
_SCOPE_USED: Final = frozenset({"on_demand", "name", "route_configuration_name", "route_configuration", "key"})
_EXTRACTOR_USED: Final = frozenset({"name", "element_separator", "index", "element"})


def scoped_routes(message: Any, path: str, problems: Problems) -> ScopedRoutes:
    """Decode `HttpConnectionManager.scoped_routes`."""
    cover(message, path, problems, used=_ROUTES_USED, harmless=frozenset())
    place = join(path, "scope_key_builder.fragments")
    fragments = tuple(
        _fragment(fragment, f"{place}[{index}]", problems)
        for index, fragment in enumerate(message.scope_key_builder.fragments)
    )
    if message.WhichOneof("config_specifier") == "scoped_rds":
        source = join(path, "scoped_rds")
        is_discovered_by_ads(
            message.scoped_rds.scoped_rds_config_source, join(source, "scoped_rds_config_source"), problems
        )
        if message.scoped_rds.srds_resources_locator:
            problems.error(join(source, "srds_resources_locator"), "is not supported: all scopes are subscribed to")
        if message.HasField("rds_config_source"):
            is_discovered_by_ads(message.rds_config_source, join(path, "rds_config_source"), problems)
        return ScopedRoutes(message.name, fragments)
    place = join(path, "scoped_route_configurations_list.scoped_route_configurations")
    scopes = tuple(
        decode_scope(scope, f"{place}[{index}]", problems)
        for index, scope in enumerate(message.scoped_route_configurations_list.scoped_route_configurations)
    )
    if any(isinstance(scope.routes, str) for scope in scopes):
        is_discovered_by_ads(message.rds_config_source, join(path, "rds_config_source"), problems)
    _check_unique(scopes, place, problems)
    return ScopedRoutes(message.name, fragments, scopes)


def decode_scope(message: Any, path: str, problems: Problems) -> ScopedRoute:
    """Decode a ScopedRouteConfiguration."""
    cover(message, path, problems, used=_SCOPE_USED, harmless=frozenset())
    routes: RouteConfiguration | str = message.route_configuration_name
    if message.HasField("route_configuration"):
        if routes:
            problems.error(join(path, "route_configuration"), "cannot be given together with route_configuration_name")
        routes = decode_route_configuration(message.route_configuration, join(path, "route_configuration"), problems)
    elif not routes:
        problems.error(path, "one of route_configuration, route_configuration_name is required")
    # Constraints have been checked: a fragment has the one kind that there is.
    return ScopedRoute(
        message.name, tuple(fragment.string_key for fragment in message.key.fragments), routes, message.on_demand
    )


def _fragment(message: Any, path: str, problems: Problems) -> KeyFragment:
    place = join(path, "header_value_extractor")
    extractor = message.header_value_extractor
    cover(extractor, place, problems, used=_EXTRACTOR_USED, harmless=frozenset())
    header, separator = extractor.name.lower(), extractor.element_separator
    match extractor.WhichOneof("extract_type"):
        case "index":
            if extractor.index and not separator:
                problems.error(join(place, "index"), "must be 0 without an element_separator")
            return KeyFragment(header, separator, extractor.index)
        case "element":
            return KeyFragment(header, separator, None, extractor.element.key, extractor.element.separator)
        case _:
            problems.error(place, "one of index, element is required")
            return KeyFragment(header)


def _check_unique(scopes: tuple[ScopedRoute, ...], path: str, problems: Problems) -> None:
    kinds: tuple[tuple[str, Callable[[ScopedRoute], object]], ...] = (
        ("name", lambda scope: scope.name),
        ("key", lambda scope: scope.key),
    )
    for kind, of in kinds:
        seen: dict[object, int] = {}
        for index, scope in enumerate(scopes):
            first = seen.setdefault(of(scope), index)
            if first != index:
                problems.error(f"{path}[{index}].{kind}", f"is that of [{first}] already")
