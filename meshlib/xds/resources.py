"""The resource types that meshlib subscribes to, by their type URLs."""

from typing import Final

__all__ = [
    "CDS",
    "EDS",
    "LDS",
    "RDS",
    "RESOURCE_WRAPPER",
    "SDS",
    "SHORT_NAMES",
    "TYPE_URLS",
    "is_full_state",
    "short_name",
]

LDS: Final = "type.googleapis.com/envoy.config.listener.v3.Listener"
RDS: Final = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
CDS: Final = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
EDS: Final = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
SDS: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

RESOURCE_WRAPPER: Final = "type.googleapis.com/envoy.service.discovery.v3.Resource"

TYPE_URLS: Final = (LDS, RDS, CDS, EDS, SDS)
"""In the order in which one leads to the next."""

SHORT_NAMES: Final = {LDS: "LDS", RDS: "RDS", CDS: "CDS", EDS: "EDS", SDS: "SDS"}


def is_full_state(type_url: str) -> bool:
    """Whether a response of this type lists every resource subscribed to, so that absence means deletion."""
    return type_url in (LDS, CDS)


def short_name(type_url: str) -> str:
    """Return `LDS` and so on for people; the message name for types that meshlib does not know."""
    return SHORT_NAMES.get(type_url) or type_url.rpartition("/")[2]
