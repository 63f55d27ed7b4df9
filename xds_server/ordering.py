"""Resource types, and the order in which changes of several types reach a stream (make before break)."""

from collections.abc import Iterable

CDS = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
EDS = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
LDS = "type.googleapis.com/envoy.config.listener.v3.Listener"
RDS = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
SRDS = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration"
VHDS = "type.googleapis.com/envoy.config.route.v3.VirtualHost"
LEDS = "type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint"
SDS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
ECDS = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
RTDS = "type.googleapis.com/envoy.service.runtime.v3.Runtime"

# Clusters and their endpoints before what routes to them (xDS protocol, "Eventual consistency considerations").
PUSH_ORDER = (CDS, EDS, LEDS, LDS, RDS, SRDS, VHDS, SDS, ECDS, RTDS)

# Responses of these types are the whole state: a name that is missing is deleted. They also know the wildcard.
# (Of scopes Envoy subscribes to all, and takes what a response lacks for removed.)
FULL_STATE_TYPES = frozenset({CDS, LDS, SRDS})

# Types that only the incremental variant carries.
DELTA_TYPES = frozenset({VHDS, LEDS})

# Types that send traffic to clusters, so they wait for clusters and clusters leave after them.
ROUTING_TYPES = (LDS, RDS, SRDS, VHDS)

# A changed parent makes Envoy wait for these children again, changed or not.
CHILD_TYPES = {CDS: frozenset({EDS, SDS}), LDS: frozenset({RDS, SDS})}

_RANK = {type_url: rank for rank, type_url in enumerate(PUSH_ORDER)}


def in_push_order(type_urls: Iterable[str]) -> list[str]:
    """Return the types in the order in which their changes must be sent; unknown types come last, by name."""
    return sorted(type_urls, key=lambda type_url: (_RANK.get(type_url, len(_RANK)), type_url))


def short_name(type_url: str) -> str:
    """Return the last part of a type URL (`Cluster`), for people."""
    return type_url.rpartition(".")[2] or type_url
