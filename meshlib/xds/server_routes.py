"""What of a route configuration a server cannot do. The same resource may serve clients, so its decoder cannot tell."""

from collections.abc import Iterable, Iterator

from meshlib.model.filters import ListedLimit, LocalRateLimit
from meshlib.model.route import RouteConfiguration

__all__ = ["unusable_in_server"]

_ADDS = "request_headers_to_add_when_not_enforced is not supported in a server"


def unusable_in_server(routes: RouteConfiguration, limits: Iterable[ListedLimit]) -> str:
    """Return the first thing that a server cannot do, with its place; empty: there is none.

    A request is handed to the application as it came, and what is known of its connection is not asked by routes.

    Args:
        limits: Filters of the listener.
    """
    for place, name, config in _filters(routes, limits):
        if isinstance(config, LocalRateLimit) and config.unenforced_headers:
            return f"{place}filter {name}: {_ADDS}"
    for host in routes.virtual_hosts:
        for route in host.routes:
            if route.match.proxy:
                texts = ", ".join(condition.text for condition in route.match.proxy)
                return f"virtual host {host.name!r}: a server cannot tell: {texts}"
    return ""


def _filters(routes: RouteConfiguration, limits: Iterable[ListedLimit]) -> Iterator[tuple[str, str, object]]:
    """Return the configurations of the listener's filters, where they are, and the filters' names."""
    names = set()
    for limit in limits:
        names.add(limit.name)
        yield "", limit.name, limit.config
    for place, name, config in _overrides(routes):
        if name in names:
            yield place, name, config


def _overrides(routes: RouteConfiguration) -> Iterator[tuple[str, str, object]]:
    for name, config in routes.limits:
        yield "", name, config
    for host in routes.virtual_hosts:
        place = f"virtual host {host.name!r}: "
        for name, config in (*host.limits, *(item for route in host.routes for item in route.limits)):
            yield place, name, config
