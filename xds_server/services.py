"""The gRPC services of discovery: one that carries all types, and one for each type (STR-1)."""

from dataclasses import dataclass

from xds_server.ordering import CDS, ECDS, EDS, LDS, LEDS, RDS, RTDS, SDS, SRDS, VHDS


@dataclass(frozen=True, slots=True)
class DiscoveryService:
    """One service and its streams.

    Attributes:
        type_url: The only type on its streams; None: any.
        sotw: Name of the method for the state of the world; None: there is none.
        delta: Name of the incremental method.
    """

    name: str
    sotw: str | None
    delta: str
    type_url: str | None = None


AGGREGATED = DiscoveryService(
    "envoy.service.discovery.v3.AggregatedDiscoveryService", "StreamAggregatedResources", "DeltaAggregatedResources"
)


def _for_type(name: str, what: str, type_url: str) -> DiscoveryService:
    return DiscoveryService(f"envoy.service.{name}", f"Stream{what}", f"Delta{what}", type_url)


DISCOVERY_SERVICES = (
    AGGREGATED,
    _for_type("cluster.v3.ClusterDiscoveryService", "Clusters", CDS),
    _for_type("endpoint.v3.EndpointDiscoveryService", "Endpoints", EDS),
    _for_type("listener.v3.ListenerDiscoveryService", "Listeners", LDS),
    _for_type("route.v3.RouteDiscoveryService", "Routes", RDS),
    _for_type("route.v3.ScopedRoutesDiscoveryService", "ScopedRoutes", SRDS),
    _for_type("secret.v3.SecretDiscoveryService", "Secrets", SDS),
    _for_type("extension.v3.ExtensionConfigDiscoveryService", "ExtensionConfigs", ECDS),
    _for_type("runtime.v3.RuntimeDiscoveryService", "Runtime", RTDS),
    DiscoveryService("envoy.service.route.v3.VirtualHostDiscoveryService", None, "DeltaVirtualHosts", VHDS),
    DiscoveryService(
        "envoy.service.endpoint.v3.LocalityEndpointDiscoveryService", None, "DeltaLocalityEndpoints", LEDS
    ),
)
