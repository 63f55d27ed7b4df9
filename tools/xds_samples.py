"""Small valid resources, one for each message of which docs/reference/xds-features.md has a table."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from meshlib.protos import message_class
from meshlib.xds.resources import CDS, ECDS, EDS, LDS, RDS, RTDS, SDS, SRDS

CORE = "envoy.config.core.v3."
ROUTE = "envoy.config.route.v3."
TLS = "envoy.extensions.transport_sockets.tls.v3."
RBAC = "envoy.extensions.filters.http.rbac.v3.RBAC"
DNS_CLUSTER = "envoy.extensions.clusters.dns.v3.DnsCluster"
UPSTREAM_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
FAULT = "envoy.extensions.filters.http.fault.v3.HTTPFault"
POLICIES = "envoy.extensions.load_balancing_policies."
ADS = {"ads": {}}

Place = Callable[[Any], Any]
"""Finds the message whose fields are tried in a resource, making what leads to it."""


def new(kind: str, /, **fields: Any) -> Any:
    return message_class(kind)(**fields)


def packed(message: Any) -> dict[str, Any]:
    return {"type_url": f"type.googleapis.com/{message.DESCRIPTOR.full_name}", "value": message.SerializeToString()}


def manager(**fields: Any) -> Any:
    router = new("envoy.extensions.filters.http.router.v3.Router")
    return new(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="m",
        http_filters=[{"name": "router", "typed_config": packed(router)}],
        **fields,
    )


def client_listener(with_routes: Any = None) -> Any:
    fields = {"rds": {"config_source": ADS, "route_config_name": "r"}} if with_routes is None else with_routes
    return new("envoy.config.listener.v3.Listener", name="l", api_listener={"api_listener": packed(manager(**fields))})


def address(port: int = 1) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def server_listener() -> Any:
    inner = manager(route_config={"name": "r"})
    return new(
        "envoy.config.listener.v3.Listener",
        name="l",
        address=address(),
        filter_chains=[{"filters": [{"name": "m", "typed_config": packed(inner)}]}],
    )


def routes() -> Any:
    action = {"cluster": "c"}
    route = {"match": {"prefix": "/"}, "route": action}
    return new(
        f"{ROUTE}RouteConfiguration", name="r", virtual_hosts=[{"name": "v", "domains": ["*"], "routes": [route]}]
    )


def weighted() -> Any:
    made = routes()
    action = made.virtual_hosts[0].routes[0].route
    action.weighted_clusters.clusters.add(name="c").weight.value = 1
    return made


def cluster() -> Any:
    made = new("envoy.config.cluster.v3.Cluster", name="c", type=3)
    made.eds_cluster_config.eds_config.ads.SetInParent()
    return made


def assignment() -> Any:
    made = new("envoy.config.endpoint.v3.ClusterLoadAssignment", cluster_name="c")
    locality = made.endpoints.add()
    locality.locality.SetInParent()
    locality.lb_endpoints.add().endpoint.address.CopyFrom(new(f"{CORE}Address", **address()))
    return made


def secret() -> Any:
    return new(f"{TLS}Secret", name="s")


class Inside:
    """A message that a resource holds packed: changed, then packed again."""

    def __init__(self, resource: Any, message: Any, target: Any) -> None:
        self.resource, self.message, self.target = resource, message, target

    def finish(self) -> Any:
        self.target.type_url = f"type.googleapis.com/{self.message.DESCRIPTOR.full_name}"
        self.target.value = self.message.SerializeToString()
        return self.resource


def packed_in(resource: Any, message: Any, find: Place) -> Inside:
    return Inside(resource, message, find(resource))


def upstream_tls(resource: Any) -> Any:
    return resource.transport_socket.typed_config


def downstream_tls(resource: Any) -> Any:
    return resource.filter_chains[0].transport_socket.typed_config


def http_options(resource: Any) -> Any:
    return resource.typed_extension_protocol_options["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]


def dns_cluster() -> Any:
    made = new("envoy.config.cluster.v3.Cluster", name="c", load_assignment=assignment())
    made.cluster_type.name = "envoy.clusters.dns"
    return made


def dns_cluster_place(resource: Any) -> Any:
    return resource.cluster_type.typed_config


def cares() -> Inside:
    resource = dns_cluster()
    outer, message = new(DNS_CLUSTER), new("envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig")
    outer.typed_dns_resolver_config.name = "r"

    class Resolver(Inside):
        def finish(self) -> Any:
            outer.typed_dns_resolver_config.typed_config.CopyFrom(new("google.protobuf.Any", **packed(message)))
            self.target.CopyFrom(new("google.protobuf.Any", **packed(outer)))
            return self.resource

    return Resolver(resource, message, dns_cluster_place(resource))


def own_certificate() -> dict[str, Any]:
    return {"tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": ADS}]}


def trust() -> dict[str, Any]:
    return {"validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": ADS}}


def fault_filter(resource: Any) -> Any:
    return resource.virtual_hosts[0].typed_per_filter_config["envoy.filters.http.fault"]


def with_filter(message: Any) -> Inside:
    """A server's listener with one more filter, in front of the router."""
    inner = manager(route_config={"name": "r"})
    router = new("envoy.extensions.filters.http.router.v3.Router")
    del inner.http_filters[:]
    inner.http_filters.add(name="first").typed_config.CopyFrom(new("google.protobuf.Any", **packed(message)))
    inner.http_filters.add(name="router").typed_config.CopyFrom(new("google.protobuf.Any", **packed(router)))

    class Filter(Inside):
        def finish(self) -> Any:
            inner.http_filters[0].typed_config.value = message.SerializeToString()
            self.target.value = inner.SerializeToString()
            return self.resource

    resource = server_listener()
    return Filter(resource, message, resource.filter_chains[0].filters[0].typed_config)


def client_manager() -> Inside:
    resource = client_listener()
    inner = manager(rds={"config_source": ADS, "route_config_name": "r"})
    return packed_in(resource, inner, lambda made: made.api_listener.api_listener)


class InManager(Inside):
    """A message that a client's connection manager holds, itself or packed in a filter."""

    def __init__(self, inner: Any, message: Any, pack: Callable[[], None] = lambda: None) -> None:
        resource = client_listener()
        super().__init__(resource, message, resource.api_listener.api_listener)
        self.inner, self.pack = inner, pack

    def finish(self) -> Any:
        self.pack()
        self.target.value = self.inner.SerializeToString()
        return self.resource


def with_limit(kind: str, **fields: Any) -> InManager:
    """A client's listener with one more filter, in front of the router."""
    inner = manager(rds={"config_source": ADS, "route_config_name": "r"})
    message = new(f"envoy.extensions.filters.http.{kind}", **fields)
    router = inner.http_filters[0].typed_config
    inner.http_filters.add(name="last").typed_config.CopyFrom(router)
    router.CopyFrom(new("google.protobuf.Any", **packed(message)))

    def pack() -> None:
        router.value = message.SerializeToString()

    return InManager(inner, message, pack)


def scoped_manager() -> InManager:
    extractor = {"header_value_extractor": {"name": "x-scope", "index": 0}}
    scoped = {
        "name": "s",
        "scope_key_builder": {"fragments": [extractor]},
        "scoped_rds": {"scoped_rds_config_source": ADS},
    }
    inner = manager(scoped_routes=scoped)
    return InManager(inner, inner.scoped_routes)


def scope() -> Any:
    key = {"fragments": [{"string_key": "k"}]}
    return new(f"{ROUTE}ScopedRouteConfiguration", name="s", route_configuration_name="r", key=key)


def leds() -> Any:
    made = assignment()
    made.endpoints[0].ClearField("lb_endpoints")
    config = made.endpoints[0].leds_cluster_locality_config
    config.leds_config.ads.SetInParent()
    config.leds_collection_name = "xdstp://a/envoy.config.endpoint.v3.LbEndpoint/c/*"
    return made


def with_first_filter(**fields: Any) -> Any:
    inner = manager(rds={"config_source": ADS, "route_config_name": "r"})
    router = new("google.protobuf.Any")
    router.CopyFrom(inner.http_filters[0].typed_config)
    del inner.http_filters[:]
    inner.http_filters.add(name="first", **fields)
    inner.http_filters.add(name="router").typed_config.CopyFrom(router)
    return inner


def discovered_filter() -> InManager:
    inner = with_first_filter(
        config_discovery={
            "config_source": ADS,
            "type_urls": [f"type.googleapis.com/{FAULT}"],
            "default_config": packed(new(FAULT)),
        }
    )
    return InManager(inner, inner.http_filters[0].config_discovery)


def on_demand_filter() -> InManager:
    message = new("envoy.extensions.filters.http.on_demand.v3.OnDemand", odcds={"source": ADS})
    inner = with_first_filter(typed_config=packed(message))

    def pack() -> None:
        inner.http_filters[0].typed_config.value = message.SerializeToString()

    return InManager(inner, message.odcds, pack)


def extension() -> Any:
    return new(f"{CORE}TypedExtensionConfig", name="first", typed_config=packed(new(FAULT)))


def a_policy() -> dict[str, Any]:
    """A LoadBalancingPolicy of the simplest kind."""
    entry = {"name": "p", "typed_config": packed(new(f"{POLICIES}pick_first.v3.PickFirst"))}
    return {"policies": [{"typed_extension_config": entry}]}


def with_policy(name: str, **fields: Any) -> Inside:
    """A cluster whose list of policies has this one."""
    resource = cluster()
    resource.load_balancing_policy.policies.add().typed_extension_config.name = "p"
    return packed_in(resource, new(f"{POLICIES}{name}", **fields), policy_place)


def policy_place(resource: Any) -> Any:
    return resource.load_balancing_policy.policies[0].typed_extension_config.typed_config


def with_router() -> Inside:
    inner = manager(rds={"config_source": ADS, "route_config_name": "r"})
    router = new("envoy.extensions.filters.http.router.v3.Router")
    resource = client_listener()

    class Router(Inside):
        def finish(self) -> Any:
            inner.http_filters[0].typed_config.value = router.SerializeToString()
            self.target.value = inner.SerializeToString()
            return self.resource

    return Router(resource, router, resource.api_listener.api_listener)


# Section: type URL, a resource with the message, where it is in it; or a resource in which it is packed.
SECTIONS: Mapping[str, tuple[str, Callable[[], Any], Place | None]] = {
    "Listener of a client (with `api_listener`)": (LDS, client_listener, lambda made: made),
    "Listener of a server (with `address`)": (LDS, server_listener, lambda made: made),
    "FilterChain": (LDS, server_listener, lambda made: made.filter_chains[0]),
    "HttpConnectionManager": (LDS, client_manager, None),
    "Router": (LDS, with_router, None),
    "RouteConfiguration": (RDS, routes, lambda made: made),
    "VirtualHost": (RDS, routes, lambda made: made.virtual_hosts[0]),
    "Route": (RDS, routes, lambda made: made.virtual_hosts[0].routes[0]),
    "RouteMatch": (RDS, routes, lambda made: made.virtual_hosts[0].routes[0].match),
    "HeaderMatcher": (RDS, routes, lambda made: made.virtual_hosts[0].routes[0].match.headers.add(name="h")),
    "RouteAction": (RDS, routes, lambda made: made.virtual_hosts[0].routes[0].route),
    "WeightedCluster": (RDS, weighted, lambda made: made.virtual_hosts[0].routes[0].route.weighted_clusters),
    "WeightedCluster.ClusterWeight": (
        RDS,
        weighted,
        lambda made: made.virtual_hosts[0].routes[0].route.weighted_clusters.clusters[0],
    ),
    "RetryPolicy": (RDS, routes, lambda made: made.virtual_hosts[0].routes[0].route.retry_policy),
    "RequestMirrorPolicy": (
        RDS,
        routes,
        lambda made: made.virtual_hosts[0].routes[0].route.request_mirror_policies.add(cluster="c"),
    ),
    "HTTPFault": (RDS, lambda: packed_in(routes(), new(FAULT), fault_filter), None),
    "LocalRateLimit": (LDS, lambda: with_limit("local_ratelimit.v3.LocalRateLimit", stat_prefix="s"), None),
    "AdmissionControl": (
        LDS,
        lambda: with_limit(
            "admission_control.v3.AdmissionControl",
            success_criteria={"grpc_criteria": {"grpc_success_status": [0]}},
        ),
        None,
    ),
    "AdaptiveConcurrency": (
        LDS,
        lambda: with_limit(
            "adaptive_concurrency.v3.AdaptiveConcurrency",
            gradient_controller_config={
                "concurrency_limit_params": {"concurrency_update_interval": timedelta(seconds=0.1)},
                "min_rtt_calc_params": {"interval": timedelta(seconds=60)},
            },
        ),
        None,
    ),
    "RBAC": (LDS, lambda: with_filter(new(RBAC)), None),
    "Cluster": (CDS, cluster, lambda made: made),
    "DnsCluster": (CDS, lambda: packed_in(dns_cluster(), new(DNS_CLUSTER), dns_cluster_place), None),
    "CaresDnsResolverConfig": (CDS, cares, None),
    "Cluster.CommonLbConfig": (CDS, cluster, lambda made: made.common_lb_config),
    "CircuitBreakers.Thresholds": (CDS, cluster, lambda made: made.circuit_breakers.thresholds.add()),
    "RoundRobin": (CDS, lambda: with_policy("round_robin.v3.RoundRobin"), None),
    "LeastRequest": (CDS, lambda: with_policy("least_request.v3.LeastRequest"), None),
    "ClientSideWeightedRoundRobin": (
        CDS,
        lambda: with_policy("client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin"),
        None,
    ),
    "PickFirst": (CDS, lambda: with_policy("pick_first.v3.PickFirst"), None),
    "RandomSubsetting": (
        CDS,
        lambda: with_policy("random_subsetting.v3.RandomSubsetting", subset_size=1, child_policy=a_policy()),
        None,
    ),
    "OverrideHost": (
        CDS,
        lambda: with_policy(
            "override_host.v3.OverrideHost", override_host_sources=[{"header": "h"}], fallback_policy=a_policy()
        ),
        None,
    ),
    "PeakEwma": (CDS, lambda: with_policy("peak_ewma.v3alpha.PeakEwma"), None),
    "RingHash": (CDS, lambda: with_policy("ring_hash.v3.RingHash"), None),
    "Maglev": (CDS, lambda: with_policy("maglev.v3.Maglev", table_size={"value": 11}), None),
    "OutlierDetection": (CDS, cluster, lambda made: made.outlier_detection),
    "HttpProtocolOptions of an upstream": (
        CDS,
        lambda: packed_in(cluster(), new(UPSTREAM_OPTIONS, explicit_http_config={}), http_options),
        None,
    ),
    "ClusterLoadAssignment": (EDS, assignment, lambda made: made),
    "LocalityLbEndpoints": (EDS, assignment, lambda made: made.endpoints[0]),
    "LbEndpoint": (EDS, assignment, lambda made: made.endpoints[0].lb_endpoints[0]),
    "Endpoint": (EDS, assignment, lambda made: made.endpoints[0].lb_endpoints[0].endpoint),
    "UpstreamTlsContext": (
        CDS,
        lambda: packed_in(cluster(), new(f"{TLS}UpstreamTlsContext", common_tls_context=trust()), upstream_tls),
        None,
    ),
    "DownstreamTlsContext": (
        LDS,
        lambda: packed_in(
            server_listener(),
            new(f"{TLS}DownstreamTlsContext", common_tls_context=own_certificate() | trust()),
            downstream_tls,
        ),
        None,
    ),
    "Secret": (SDS, secret, lambda made: made),
    "CertificateValidationContext": (SDS, secret, lambda made: made.validation_context),
    "ScopedRoutes": (LDS, scoped_manager, None),
    "ScopedRouteConfiguration": (SRDS, scope, lambda made: made),
    "LedsClusterLocalityConfig": (EDS, leds, lambda made: made.endpoints[0].leds_cluster_locality_config),
    "ExtensionConfigSource": (LDS, discovered_filter, None),
    "OnDemandCds": (LDS, on_demand_filter, None),
    "TypedExtensionConfig": (ECDS, extension, lambda made: made),
    "Runtime": (RTDS, lambda: new("envoy.service.runtime.v3.Runtime", name="r"), lambda made: made),
}
