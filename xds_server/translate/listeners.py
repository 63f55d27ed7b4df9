"""Listeners (LDS) and route configurations (RDS) for outgoing requests.

meshlib and stock gRPC ask for a listener by the name that the application uses, so each name of a service has one. Envoy
gets one listener with every virtual host.
"""

from collections.abc import Sequence

from google.protobuf.message import Message

from xds_server.model import Profile
from xds_server.translate.messages import (
    LISTENER,
    ROUTE_CONFIGURATION,
    Json,
    ads,
    build,
    connection_manager,
    fault_filter,
    origin,
    router,
)
from xds_server.translate.virtual_hosts import VirtualHost

ENVOY_OUTBOUND = "outbound"


def route_configurations(hosts: Sequence[VirtualHost], profile: Profile) -> dict[str, Message]:
    """Return a route configuration for each virtual host; for Envoy one with all."""
    if profile is Profile.ENVOY:
        value = {"name": ENVOY_OUTBOUND, "virtual_hosts": [_virtual_host(host) for host in hosts], **_body_limit(hosts)}
        return {ENVOY_OUTBOUND: build(ROUTE_CONFIGURATION, value)}
    return {
        host.route_configuration: build(
            ROUTE_CONFIGURATION,
            {"name": host.route_configuration, "virtual_hosts": [_virtual_host(host)], **_body_limit([host])},
        )
        for host in hosts
    }


def listeners(hosts: Sequence[VirtualHost], profile: Profile, outbound_listen: str) -> dict[str, Message]:
    """Return the listeners of clients.

    Args:
        outbound_listen: Where Envoy listens, as host:port.
    """
    if profile is Profile.ENVOY:
        address, _, port = outbound_listen.rpartition(":")
        value = {
            "name": ENVOY_OUTBOUND,
            "address": {"socket_address": {"address": address.strip("[]"), "port_value": int(port)}},
            "filter_chains": [
                {
                    "filters": [
                        {
                            "name": "envoy.filters.network.http_connection_manager",
                            "typed_config": _connection_manager(ENVOY_OUTBOUND),
                        }
                    ]
                }
            ],
        }
        return {ENVOY_OUTBOUND: build(LISTENER, value)}
    result: dict[str, Message] = {}
    for host in hosts:
        first: Message | None = None
        for name in host.domains:
            if name.startswith("*"):
                continue  # a pattern; nobody can ask for it
            if first is None:
                value = {
                    "name": name,
                    "api_listener": {"api_listener": _connection_manager(host.route_configuration)},
                    **origin(profile, host.place, host.resource),
                }
                result[name] = first = build(LISTENER, value)
            else:
                # The names of a service differ in nothing else; copying is much cheaper than parsing.
                result[name] = copy = type(first)()
                copy.CopyFrom(first)
                copy.name = name  # type: ignore[attr-defined]  # of Listener
    return result


def _connection_manager(route_configuration: str) -> Json:
    return connection_manager(
        {
            "stat_prefix": "outbound",
            "rds": {"config_source": ads(), "route_config_name": route_configuration},
            "http_filters": [fault_filter(), router()],
        }
    )


def _virtual_host(host: VirtualHost) -> Json:
    return {
        "name": host.name,
        "domains": list(host.domains),
        "routes": list(host.routes),
        "include_request_attempt_count": True,  # as istiod does; gRPC ignores it
    }


def _body_limit(hosts: Sequence[VirtualHost]) -> Json:
    """Raise Envoy's limit of 4 KiB for direct responses to Istio's 1 MiB where there is one."""
    has_body = any("body" in route.get("direct_response", {}) for host in hosts for route in host.routes)
    return {"max_direct_response_body_size_bytes": 1024 * 1024} if has_body else {}
