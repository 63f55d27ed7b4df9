"""The HTTP filter chain of a connection manager: which filters take part, in which order."""

from dataclasses import dataclass
from typing import Any, Final

from meshlib.model.authorization import Rbac
from meshlib.model.discovery import FilterConfig
from meshlib.model.filters import LimitFilter, ListedHeaderFilter, ListedLimit
from meshlib.model.listener import DiscoveredFilter
from meshlib.model.route import FaultPolicy
from meshlib.model.session import SessionPolicy
from meshlib.xds.decode_common import any_type, cover, duration, is_discovered_by_ads, join, unpack
from meshlib.xds.decode_fault import FAULT_TYPE, fault_policy
from meshlib.xds.decode_header_filter import HEADER_FILTER_TYPE, header_filter
from meshlib.xds.decode_limits import LIMIT_TYPES, limit_filter
from meshlib.xds.decode_rbac import RBAC_TYPE, decode_rbac
from meshlib.xds.decode_session import SESSION_TYPE, session_policy
from meshlib.xds.problems import Problems

__all__ = ["FilterChain", "decode_filter_config", "decode_filters"]

ROUTER_TYPE: Final = "envoy.extensions.filters.http.router.v3.Router"

ON_DEMAND_TYPE: Final = "envoy.extensions.filters.http.on_demand.v3.OnDemand"
ON_DEMAND_S: Final = 5.0
"""Envoy's default of `odcds.timeout`."""

_ROUTER_REFUSED: Final = frozenset({"upstream_http_filters", "strict_check_headers", "respect_expected_rq_timeout"})


@dataclass(frozen=True, slots=True)
class FilterChain:
    """Attributes:
    has_fault: A fault filter takes part, with `fault` as its own configuration.
    has_session: A filter for stateful sessions takes part, with `session` as its own configuration.
    limits: In filter order.
    rbac: In filter order.
    discovered: Filters whose configuration comes by ECDS, in filter order.
    on_demand_timeout_s: How long a request may wait for a cluster; None: clusters are not on demand.
    """

    has_fault: bool
    fault: FaultPolicy | None
    limits: tuple[ListedLimit, ...]
    rbac: tuple[Rbac, ...]
    has_session: bool = False
    session: SessionPolicy | None = None
    discovered: tuple[DiscoveredFilter, ...] = ()
    on_demand_timeout_s: float | None = None
    header_filters: tuple[ListedHeaderFilter, ...] = ()


def decode_filters(filters: Any, path: str, problems: Problems, *, is_server: bool) -> FilterChain:
    """Decode `HttpConnectionManager.http_filters`.

    A filter that meshlib does not have is skipped if it is optional, else it is an error. The last filter must be the
    router, and no other one may be (gRFC A39).

    Args:
        filters: The repeated field.
        path: Its path.
        problems: Takes the errors.
        is_server: Filters of requests that come in: authorization, but no faults.
    """
    has_fault, fault = False, None
    rbac: list[Rbac] = []
    discovered: list[DiscoveredFilter] = []
    on_demand_s: float | None = None
    has_session, session = False, None
    limits: list[ListedLimit] = []
    header_filters: list[ListedHeaderFilter] = []
    names: set[str] = set()
    routers = []
    for index, item in enumerate(filters):
        place = f"{path}[{index}]"
        if item.name in names:
            problems.error(join(place, "name"), f"{item.name!r} is the name of an earlier filter")
        names.add(item.name)
        if item.HasField("config_discovery"):
            position = len(limits) + len(rbac)
            found = _discovered(item, place, problems, is_server=is_server, position=position, is_after_fault=has_fault)
            if found is not None and FAULT_TYPE in found.type_names:
                if has_fault:
                    problems.error(place, "is a second fault filter, only one is supported")
                has_fault = True
            if found is not None and SESSION_TYPE in found.type_names:
                if has_session:
                    problems.error(place, "is a second filter for stateful sessions, only one is supported")
                has_session = True
            discovered += [] if found is None else [found]
            continue
        if not item.HasField("typed_config"):
            # Without a configuration there is no type.
            if item.is_optional:
                problems.unused(place, "is not supported and optional")
            else:
                problems.error(join(place, item.WhichOneof("config_type") or "typed_config"), "is not supported")
            continue
        kind = any_type(item.typed_config)
        config_path = join(place, "typed_config")
        if kind == ROUTER_TYPE:
            routers.append(index)
            _check_router(item, config_path, problems)
        elif kind == FAULT_TYPE and not is_server:
            if has_fault:
                problems.error(place, "is a second fault filter, only one is supported")
            has_fault = True
            message = unpack(item.typed_config, config_path, problems)
            # A disabled filter takes part where a route configures it.
            if message is not None:
                decoded = fault_policy(message, config_path, problems)
                fault = None if item.disabled else decoded
        elif kind == SESSION_TYPE and not is_server:
            if has_session:
                problems.error(place, "is a second filter for stateful sessions, only one is supported")
            has_session = True
            message = unpack(item.typed_config, config_path, problems)
            if message is not None:
                policy = session_policy(message, config_path, problems)
                session = None if item.disabled else policy
        elif kind == HEADER_FILTER_TYPE and not is_server:
            header_changes = header_filter(item, config_path, problems, is_after_fault=has_fault)
            header_filters += [] if header_changes is None else [header_changes]
        elif kind in LIMIT_TYPES:
            limit = limit_filter(kind, item.typed_config, config_path, problems, is_server=is_server)
            if limit is not None:
                listed = None if item.disabled else limit
                limits.append(ListedLimit(item.name, listed, is_after_fault=has_fault, position=len(rbac)))
        elif kind == RBAC_TYPE and is_server:
            message = unpack(item.typed_config, config_path, problems)
            decoded_rbac = None if message is None else decode_rbac(message, item.name, config_path, problems)
            if item.disabled:
                problems.unused(place, "is disabled")
            elif decoded_rbac is not None:
                rbac.append(decoded_rbac)
        elif kind == ON_DEMAND_TYPE and not is_server and not item.disabled:
            on_demand_s = _on_demand(item, config_path, problems)
        elif item.is_optional or item.disabled:
            problems.unused(place, f"{kind} is not supported and {'optional' if item.is_optional else 'disabled'}")
        else:
            problems.error(place, f"filter {kind or item.name!r} is not supported")
    if routers != [len(filters) - 1]:
        problems.error(path, _router_fault(routers, len(filters)))
    return FilterChain(
        has_fault,
        fault,
        tuple(limits),
        tuple(rbac),
        has_session,
        session,
        tuple(discovered),
        on_demand_s,
        tuple(header_filters),
    )


def decode_filter_config(message: Any, path: str, problems: Problems) -> FilterConfig:
    """Decode a TypedExtensionConfig as the configuration of an HTTP filter (ECDS)."""
    cover(message, path, problems, used=frozenset({"name", "typed_config"}), harmless=frozenset())
    return _filter_config(message.name, message.typed_config, join(path, "typed_config"), problems)


def _filter_config(name: str, packed: Any, path: str, problems: Problems, *, is_server: bool = False) -> FilterConfig:
    kind = any_type(packed)
    message = None if kind in LIMIT_TYPES else unpack(packed, path, problems)
    config: FaultPolicy | SessionPolicy | Rbac | LimitFilter | None = None
    if message is not None and kind == FAULT_TYPE:
        config = fault_policy(message, path, problems)
    elif message is not None and kind == SESSION_TYPE:
        config = session_policy(message, path, problems)
    elif message is not None and kind == RBAC_TYPE:
        config = decode_rbac(message, name, path, problems)
    elif kind in LIMIT_TYPES:
        config = limit_filter(kind, packed, path, problems, is_server=is_server)
    elif message is not None:
        problems.error(path, f"filter {kind} is not supported")
    return FilterConfig(name, kind, config)


def _discovered(
    item: Any, path: str, problems: Problems, *, is_server: bool, position: int, is_after_fault: bool
) -> DiscoveredFilter | None:
    """Decode `config_discovery`; None: it has no effect, or an error was found."""
    place = join(path, "config_discovery")
    source = item.config_discovery
    kinds = frozenset(url.rpartition("/")[2] for url in source.type_urls)
    unknown = sorted(kinds - LIMIT_TYPES - ({RBAC_TYPE} if is_server else {FAULT_TYPE, SESSION_TYPE}))
    if not kinds or unknown:
        reason = f"filter {unknown[0]} is not supported" if unknown else "at least one is required"
        if item.is_optional or item.disabled:
            problems.unused(path, f"{reason}, and {'optional' if item.is_optional else 'disabled'}")
        else:
            problems.error(join(place, "type_urls"), reason)
        return None
    is_discovered_by_ads(source.config_source, join(place, "config_source"), problems)
    default = None
    if source.HasField("default_config"):
        default_path = join(place, "default_config")
        default = _filter_config(item.name, source.default_config, default_path, problems, is_server=is_server)
        if default.type_name not in kinds:
            problems.error(join(place, "default_config"), f"is a {default.type_name}, which is not among type_urls")
    elif source.apply_default_config_without_warming:
        problems.error(join(place, "apply_default_config_without_warming"), "needs a default_config")
    if is_server and item.disabled and RBAC_TYPE in kinds:
        problems.unused(path, "is disabled")  # no route switches it on
        return None
    return DiscoveredFilter(
        item.name, kinds, default, source.apply_default_config_without_warming, item.disabled, position, is_after_fault
    )


def _on_demand(item: Any, path: str, problems: Problems) -> float | None:
    """Decode the filter that has clusters subscribed to when requests need them; virtual hosts and scopes always are."""
    message = unpack(item.typed_config, path, problems)
    if message is None or not message.HasField("odcds"):
        return None
    place = join(path, "odcds")
    used = frozenset({"source", "timeout"})
    cover(message.odcds, place, problems, used=used, harmless=frozenset())
    is_discovered_by_ads(message.odcds.source, join(place, "source"), problems)
    seconds = duration(message.odcds, "timeout", place, problems)
    return ON_DEMAND_S if seconds is None else seconds


def _router_fault(routers: list[int], count: int) -> str:
    if not count:
        return "is empty; the router filter is required"
    if not routers:
        return "the last filter must be the router"
    return f"the router must be the last filter and the only one, is at {routers}"


def _check_router(item: Any, path: str, problems: Problems) -> None:
    message = unpack(item.typed_config, path, problems)
    if message is not None:
        cover(message, path, problems, used=frozenset(), refused=_ROUTER_REFUSED)
    if item.disabled:
        problems.error(path, "the router cannot be disabled")
