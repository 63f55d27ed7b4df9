"""What gRPC's clients refuse in route configurations; see `grpc_rules.py`."""

from typing import Any, Final

from meshlib.xds.decode_common import FILTER_CONFIG_TYPE, any_type, join, unpack
from meshlib.xds.decode_fault import FAULT_TYPE
from meshlib.xds.decode_rbac import RBAC_TYPE
from meshlib.xds.decode_session import SESSION_TYPE
from meshlib.xds.problems import Problems

__all__ = ["check_header", "check_routes", "check_virtual_host"]

# A type of the other side than the one that the route is used on is fine, so both are here.
_OVERRIDES: Final = frozenset({FAULT_TYPE, f"{SESSION_TYPE}PerRoute", f"{RBAC_TYPE}PerRoute"})
_PATHS: Final = frozenset({"prefix", "path", "safe_regex"})


def check_routes(message: Any, path: str, problems: Problems) -> None:
    """Check a RouteConfiguration."""
    for index, host in enumerate(message.virtual_hosts):
        check_virtual_host(host, f"{join(path, 'virtual_hosts')}[{index}]", problems)


def check_virtual_host(message: Any, path: str, problems: Problems) -> None:
    """Check a VirtualHost."""
    for index, domain in enumerate(message.domains):
        if not domain or ("*" in domain[1:-1] and domain[0] != "*" and domain[-1] != "*"):
            reason = "may have * only as its first or last character for gRPC" if domain else "must not be empty"
            problems.error(f"{join(path, 'domains')}[{index}]", reason)
    if message.HasField("retry_policy"):
        _check_retry(message.retry_policy, join(path, "retry_policy"), problems)
    _check_overrides(message, path, problems)
    for index, route in enumerate(message.routes):
        _check_route(route, f"{join(path, 'routes')}[{index}]", problems)


def _check_route(message: Any, path: str, problems: Problems) -> None:
    if message.match.query_parameters:
        return  # gRPC passes such a route over without looking at the rest of it
    place = join(path, "match")
    kind = message.match.WhichOneof("path_specifier")
    if kind is not None and kind not in _PATHS:
        problems.error(join(place, kind), "is not a path specifier of gRPC (only prefix, path and safe_regex)")
    for index, header in enumerate(message.match.headers):
        check_header(header, f"{join(place, 'headers')}[{index}]", problems)
    _check_overrides(message, path, problems)
    if not message.HasField("route"):
        return
    action, place = message.route, join(path, "route")
    if action.HasField("retry_policy"):
        _check_retry(action.retry_policy, join(place, "retry_policy"), problems)
    if action.HasField("weighted_clusters"):
        for index, entry in enumerate(action.weighted_clusters.clusters):
            here = f"{join(place, 'weighted_clusters.clusters')}[{index}]"
            if not entry.name:
                problems.error(join(here, "name"), "must not be empty for gRPC")
            _check_overrides(entry, here, problems)


def _check_retry(message: Any, path: str, problems: Problems) -> None:
    if message.HasField("num_retries") and not message.num_retries.value:
        problems.error(join(path, "num_retries"), "must be at least 1 for gRPC")


def _check_overrides(message: Any, path: str, problems: Problems) -> None:
    for name, packed in sorted(message.typed_per_filter_config.items()):
        place = f'{join(path, "typed_per_filter_config")}["{name}"]'
        kind = any_type(packed)
        if kind == FILTER_CONFIG_TYPE:
            wrapper = unpack(packed, place, Problems())
            if wrapper is None or wrapper.is_optional:
                continue
            place, kind = join(place, "config"), any_type(wrapper.config)
        if kind not in _OVERRIDES:
            problems.error(place, f"{kind or 'an empty Any'} is not a filter's override in gRPC, nor optional")


def check_header(message: Any, path: str, problems: Problems) -> None:
    """Check a HeaderMatcher."""
    kind = message.WhichOneof("header_match_specifier")
    if kind is None:
        problems.error(path, "has no test, which gRPC requires")
    elif kind == "range_match" and message.range_match.end < message.range_match.start:
        problems.error(join(path, "range_match"), "its end is less than its start")
