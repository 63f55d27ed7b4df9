"""The resource types that meshlib subscribes to, by their type URLs."""

from typing import Final

__all__ = [
    "CDS",
    "DELTA_ONLY",
    "ECDS",
    "EDS",
    "LDS",
    "LEDS",
    "RDS",
    "RESOURCE_WRAPPER",
    "RTDS",
    "SDS",
    "SHORT_NAMES",
    "SRDS",
    "TYPE_URLS",
    "VHDS",
    "is_full_state",
    "short_name",
]

LDS: Final = "type.googleapis.com/envoy.config.listener.v3.Listener"
RDS: Final = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
SRDS: Final = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration"
VHDS: Final = "type.googleapis.com/envoy.config.route.v3.VirtualHost"
CDS: Final = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
EDS: Final = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
LEDS: Final = "type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint"
SDS: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
ECDS: Final = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
RTDS: Final = "type.googleapis.com/envoy.service.runtime.v3.Runtime"

RESOURCE_WRAPPER: Final = "type.googleapis.com/envoy.service.discovery.v3.Resource"

SHORT_NAMES: Final = {
    RTDS: "RTDS",
    LDS: "LDS",
    ECDS: "ECDS",
    SRDS: "SRDS",
    RDS: "RDS",
    VHDS: "VHDS",
    CDS: "CDS",
    EDS: "EDS",
    LEDS: "LEDS",
    SDS: "SDS",
}

TYPE_URLS: Final = tuple(SHORT_NAMES)
"""In the order in which one leads to the next."""

DELTA_ONLY: Final = frozenset({VHDS, LEDS})
"""Types that only the incremental variant carries."""


def is_full_state(type_url: str) -> bool:
    """Whether a response of this type lists every resource subscribed to, so that absence means deletion.

    Scoped routes are subscribed to as a whole, and Envoy reads their responses so too.
    """
    return type_url in (LDS, CDS, SRDS)


def short_name(type_url: str) -> str:
    """Return `LDS` and so on for people; the message name for types that meshlib does not know."""
    return SHORT_NAMES.get(type_url) or type_url.rpartition("/")[2]
