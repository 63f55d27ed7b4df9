"""Listeners (LDS): API listeners, which clients ask for, and socket listeners, which servers ask for."""

import ipaddress
from dataclasses import replace
from typing import Any, Final

from meshlib.model.discovery import ScopedRoutes
from meshlib.model.listener import ClientListener, EscapedSlashes, HeadRules, Listener, ServerListener
from meshlib.model.route import RouteConfiguration
from meshlib.xds.decode_common import (
    any_type,
    cover,
    duration,
    is_discovered_by_ads,
    join,
    pass_over,
    read_metadata,
    unpack,
)
from meshlib.xds.decode_endpoint import socket_address
from meshlib.xds.decode_filters import decode_filters
from meshlib.xds.decode_local_reply import reply_rules
from meshlib.xds.decode_matcher import check_upgrades
from meshlib.xds.decode_route import decode_route_configuration
from meshlib.xds.decode_scopes import scoped_routes
from meshlib.xds.decode_tls import server_socket
from meshlib.xds.problems import Problems
from meshlib.xds.server_routes import unusable_in_server

__all__ = ["decode_listener"]

INSPECTOR_TYPE: Final = "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
HCM_TYPE: Final = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"

_MANAGER_USED: Final = frozenset(
    {
        "rds",
        "route_config",
        "scoped_routes",
        "http_filters",
        "common_http_protocol_options",
        "stat_prefix",
        "codec_type",
    }
)
# What changes paths and hosts before they are matched, or answers that routes give.
_MANAGER_REFUSED: Final = frozenset(
    {
        "xff_num_trusted_hops",
        "original_ip_detection_extensions",
        "early_header_mutation_extensions",
        "path_normalization_options",
        "forward_client_cert_matcher",
    }
)
_MANAGER_OF_CLIENTS: Final = frozenset(
    {
        "strip_matching_host_port",
        "strip_any_host_port",
        "strip_trailing_host_dot",
        "local_reply_config",
        "merge_slashes",
        "normalize_path",
        "path_with_escaped_slashes_action",
        "scheme_header_transformation",
    }
)
_HTTP3: Final = 3
_OF_CLUSTERS: Final = frozenset({"max_response_headers_kb"})
_IPV4_COMPATIBLE: Final = ("[::]:", "[::ffff:")
_OFF: Final = frozenset({"normalize_path"})
"""Wrapped booleans that may be given with the value false."""

# Metadata describes; it decides nothing, but formats may speak of it.
_CLIENT_USED: Final = frozenset({"name", "address", "api_listener", "metadata"})
_SERVER_USED: Final = frozenset(
    {"name", "address", "filter_chains", "default_filter_chain", "listener_filters", "metadata"}
)
_SERVER_REFUSED: Final = frozenset(
    {
        "additional_addresses",
        "fcds_config",
        "filter_chain_matcher",
        "udp_listener_config",
        "internal_listener",
    }
)
_LISTENER_FILTER_REFUSED: Final = frozenset({"config_discovery", "filter_disabled"})
_FILTER_USED: Final = frozenset({"name", "typed_config"})
_CHAIN_USED: Final = frozenset({"filter_chain_match", "filters", "transport_socket", "name", "metadata"})


def decode_listener(message: Any, path: str, problems: Problems) -> Listener:
    """Decode a Listener. With both an API listener and an address it is an API listener, as istiod means it."""
    if not message.name:
        problems.error(join(path, "name"), "must not be empty")
    if message.HasField("api_listener"):
        cover(message, path, problems, used=_CLIENT_USED, refused=frozenset())
        return _client_listener(message, path, problems)
    if not message.HasField("address"):
        problems.error(path, "neither api_listener nor address is given")
        return ClientListener(message.name, "")
    refused = _SERVER_REFUSED | ({"use_original_dst"} if message.use_original_dst.value else set())
    cover(message, path, problems, used=_SERVER_USED, refused=refused)
    return _server_listener(message, path, problems)


def _client_listener(message: Any, path: str, problems: Problems) -> ClientListener:
    place = join(path, "api_listener.api_listener")
    packed = message.api_listener.api_listener
    manager = _manager(packed, place, problems, is_client=True)
    if manager is None:
        return ClientListener(message.name, "")
    filters = decode_filters(manager.http_filters, join(place, "http_filters"), problems, is_server=False)
    return ClientListener(
        name=message.name,
        routes=_routes(manager, place, problems),
        has_fault_filter=filters.has_fault,
        fault=filters.fault,
        has_session_filter=filters.has_session,
        session=filters.session,
        limits=filters.limits,
        header_filters=filters.header_filters,
        head_rules=_head_rules(manager, message, place, problems),
        reply_rules=reply_rules(
            manager.local_reply_config,
            join(place, "local_reply_config"),
            problems,
            is_traced=manager.HasField("tracing"),
        )
        if manager.HasField("local_reply_config")
        else None,
        stream_idle_timeout_s=duration(manager, "stream_idle_timeout", place, problems),
        max_stream_duration_s=duration(
            manager.common_http_protocol_options,
            "max_stream_duration",
            join(place, "common_http_protocol_options"),
            problems,
        ),
        discovered=filters.discovered,
        on_demand_timeout_s=filters.on_demand_timeout_s,
        metadata=read_metadata(message.metadata, join(path, "metadata"), problems),
    )


def _server_listener(message: Any, path: str, problems: Problems) -> ServerListener:
    """Decode a server's listener: one chain for all connections, or one for TLS and one for plaintext.

    The two must ask the same of requests: rules tell them apart by the caller's identity.
    """
    address = socket_address(message.address, join(path, "address"), problems)
    _listener_filters(message, path, problems)
    if message.address.socket_address.ipv4_compat and not address.startswith(_IPV4_COMPATIBLE):
        problems.error(join(path, "address.socket_address.ipv4_compat"), "needs the address :: or one mapped from IPv4")
    chains = [(chain, f"{join(path, 'filter_chains')}[{i}]") for i, chain in enumerate(message.filter_chains)]
    if message.HasField("default_filter_chain"):
        chains.append((message.default_filter_chain, join(path, "default_filter_chain")))
    nothing = ServerListener(message.name, address, None, (), "")
    if not 1 <= len(chains) <= 2:
        reason = f"one filter chain is supported, or one for TLS and one for plaintext; there are {len(chains)}"
        problems.error(join(path, "filter_chains"), reason if chains else "a filter chain is required")
        return nothing
    decoded = [_chain(message.name, address, *one, problems) for one in chains]
    found = [one for one in decoded if one is not None]
    if len(found) < len(chains):
        return nothing
    if len(found) == 1:
        return found[0]
    secure = [one for one in found if one.tls is not None]
    plain = [one for one in found if one.tls is None]
    place = join(path, "filter_chains")
    if len(secure) != 1:
        problems.error(place, "of two filter chains one must have a TLS transport_socket, and the other none")
        return nothing
    protocols = [chain.filter_chain_match.transport_protocol for chain, _ in chains]
    if protocols.count("") == 2 or protocols[0] == protocols[1]:
        problems.error(place, "two filter chains must differ in filter_chain_match.transport_protocol")
        return nothing
    if replace(secure[0], tls=None) != plain[0]:
        problems.error(place, "the filters and routes for TLS and for plaintext must be the same")
        return nothing
    return replace(secure[0], takes_plaintext=True)


def _listener_filters(message: Any, path: str, problems: Problems) -> None:
    """Accept the filter that makes Envoy look whether a connection begins with TLS; servers here always look."""
    place = join(path, "listener_filters")
    for index, item in enumerate(message.listener_filters):
        used = frozenset({"name", "typed_config"})
        cover(item, f"{place}[{index}]", problems, used=used, refused=_LISTENER_FILTER_REFUSED)
        if (kind := any_type(item.typed_config)) != INSPECTOR_TYPE:
            problems.error(place, f"only {INSPECTOR_TYPE} is supported, [{index}] is {kind or 'without typed_config'}")
            continue
        here = f"{place}[{index}].typed_config"
        inspector = unpack(item.typed_config, here, problems)
        if inspector is not None:
            pass_over(inspector, here, problems)


def _chain(name: str, address: str, chain: Any, place: str, problems: Problems) -> ServerListener | None:
    """Return the listener that has this chain alone."""
    proxy = {"use_proxy_proto"} if chain.use_proxy_proto.value else set()
    cover(chain, place, problems, used=_CHAIN_USED, refused=frozenset(proxy))
    tls = None
    if chain.HasField("transport_socket"):
        tls = server_socket(chain.transport_socket, join(place, "transport_socket"), problems)
    _chain_match(chain.filter_chain_match, join(place, "filter_chain_match"), problems, has_tls=tls is not None)
    if len(chain.filters) != 1:
        problems.error(join(place, "filters"), "must be exactly one HttpConnectionManager")
        return None
    cover(chain.filters[0], f"{place}.filters[0]", problems, used=_FILTER_USED, harmless=frozenset())
    if chain.filters[0].HasField("config_discovery"):
        return None
    place = f"{place}.filters[0].typed_config"
    manager = _manager(chain.filters[0].typed_config, place, problems)
    if manager is None:
        return None
    filters = decode_filters(manager.http_filters, join(place, "http_filters"), problems, is_server=True)
    routes = _routes(manager, place, problems)
    if isinstance(routes, ScopedRoutes):
        problems.error(join(place, "scoped_routes"), "is not supported in a server")
        routes = ""
    elif isinstance(routes, RouteConfiguration) and routes.has_more_hosts:
        problems.error(join(place, "route_config.vhds"), "is not supported in a server")
    # Their own configurations have been looked at.
    limits = [replace(limit, config=None) for limit in filters.limits]
    if isinstance(routes, RouteConfiguration) and (reason := unusable_in_server(routes, limits)):
        problems.error(join(place, "route_config"), reason)
    return ServerListener(name, address, tls, filters.rbac, routes, filters.discovered, filters.limits)


def _chain_match(match: Any, path: str, problems: Problems, *, has_tls: bool) -> None:
    for field, value in match.ListFields():
        if field.name != "transport_protocol":
            problems.error(join(path, field.name), "is not supported")
        elif value not in ("tls", "raw_buffer"):
            problems.error(join(path, field.name), f"must be tls or raw_buffer, is {value!r}")
        elif (value == "tls") is not has_tls:
            socket = "a TLS transport_socket" if value == "tls" else "no TLS transport_socket"
            problems.error(join(path, field.name), f"{value} needs {socket}")


def _head_rules(manager: Any, listener: Any, path: str, problems: Problems) -> HeadRules:
    if manager.strip_matching_host_port and manager.strip_any_host_port:
        problems.error(join(path, "strip_matching_host_port"), "cannot be given together with strip_any_host_port")
    port = listener.address.socket_address.port_value
    if manager.strip_matching_host_port and not port:
        problems.unused(join(path, "strip_matching_host_port"), "the listener has no port")
    # 0 leaves it to the implementation, and Envoy's keeps them.
    action, slashes = manager.path_with_escaped_slashes_action or EscapedSlashes.KEPT.value, EscapedSlashes.KEPT
    try:
        slashes = EscapedSlashes(action)
    except ValueError:
        problems.error(join(path, "path_with_escaped_slashes_action"), f"unknown value {action}")
    scheme = manager.scheme_header_transformation
    if scheme.match_upstream:
        problems.error(join(path, "scheme_header_transformation.match_upstream"), "is not supported")
    return HeadRules(
        strips_port=manager.strip_any_host_port,
        strips_this_port=port if manager.strip_matching_host_port else 0,
        strips_dot=manager.strip_trailing_host_dot,
        slashes=slashes,
        normalizes_path=manager.normalize_path.value,
        merges_slashes=manager.merge_slashes,
        scheme=scheme.scheme_to_overwrite,
    )


def _manager(packed: Any, path: str, problems: Problems, *, is_client: bool = False) -> Any:
    """Return the HttpConnectionManager, its own fields accounted for, or None after an error."""
    kind = any_type(packed)
    if kind and kind != HCM_TYPE:
        problems.error(path, f"must be an HttpConnectionManager, is {kind}")
        return None
    manager = unpack(packed, path, problems)
    if manager is None:
        return None
    used = _MANAGER_USED | {name for name in _OFF if manager.HasField(name) and not getattr(manager, name).value}
    # 1 is KEEP_UNCHANGED.
    if manager.path_with_escaped_slashes_action == 1:
        used |= {"path_with_escaped_slashes_action"}
    used |= _MANAGER_OF_CLIENTS | {"stream_idle_timeout"} if is_client else frozenset()
    cover(manager, path, problems, used=used, refused=_MANAGER_REFUSED | _MANAGER_OF_CLIENTS)
    kinds = [item.upgrade_type.lower() for item in manager.upgrade_configs]
    if len(set(kinds)) < len(kinds):
        problems.error(join(path, "upgrade_configs"), "has a type twice")
    for index, item in enumerate(manager.internal_address_config.cidr_ranges):
        if not _is_address(item.address_prefix):
            place = f"{join(path, 'internal_address_config.cidr_ranges')}[{index}].address_prefix"
            problems.error(place, f"{item.address_prefix[:100]!r} is not an IP address")
    if manager.codec_type == _HTTP3:
        problems.error(join(path, "codec_type"), "HTTP3 needs a listener for QUIC")
    check_upgrades(manager.http_protocol_options, join(path, "http_protocol_options"), problems)
    common = join(path, "common_http_protocol_options")
    read = frozenset({"max_stream_duration", "max_response_headers_kb"}) if is_client else _OF_CLUSTERS
    cover(manager.common_http_protocol_options, common, problems, used=read, refused=frozenset())
    if manager.common_http_protocol_options.HasField("max_response_headers_kb"):
        problems.error(join(common, "max_response_headers_kb"), "is only for clusters")
    return manager


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _routes(manager: Any, path: str, problems: Problems) -> RouteConfiguration | str | ScopedRoutes:
    kind = manager.WhichOneof("route_specifier")
    place = join(path, kind or "route_specifier")
    match kind:
        case "route_config":
            return decode_route_configuration(manager.route_config, place, problems)
        case "rds":
            is_discovered_by_ads(manager.rds.config_source, join(place, "config_source"), problems)
            if not manager.rds.route_config_name:
                problems.error(join(place, "route_config_name"), "must not be empty")
            return str(manager.rds.route_config_name)
        case "scoped_routes":
            return scoped_routes(manager.scoped_routes, place, problems)
        case None:
            problems.error(place, "one of rds, route_config, scoped_routes is required")
    return ""
