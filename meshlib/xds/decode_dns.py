"""DNS clusters: STRICT_DNS and LOGICAL_DNS by the fields of the cluster, and `DnsCluster` by its own.

A machine without a resolver library (the extra `meshlib-xds[dns]`) has the system's resolver alone. That tells no times
to live and asks no servers but its own: the first is passed over and reported, as `dns_refresh_rate` serves instead and
Istio sets `respect_dns_ttl` everywhere; servers, TCP and the like are refused.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any, Final

from meshlib.model.cluster import DnsDiscovery
from meshlib.model.dns import DnsLookup, DnsPace, DnsServers, LookupFamily
from meshlib.model.endpoint import ClusterLoadAssignment
from meshlib.xds.decode_common import any_type, cover, duration, join, unpack, wrapped
from meshlib.xds.decode_endpoint import decode_assignment, socket_address
from meshlib.xds.problems import Problems

__all__ = ["CLUSTER_FIELDS", "RESOLVER_FIELDS", "decode_dns_cluster", "dns_by_type"]

CARES_TYPE: Final = "envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig"
SYSTEM_TYPE: Final = "envoy.extensions.network.dns_resolver.getaddrinfo.v3.GetAddrInfoDnsResolverConfig"
NEEDS_EXTRA: Final = "needs a resolver library: pip install 'meshlib-xds[dns]'"

RESOLVER_FIELDS: Final = frozenset(
    {"dns_resolvers", "dns_resolution_config", "typed_dns_resolver_config", "use_tcp_for_dns_lookups"}
)
_OPTIONS: Final = frozenset(
    {"dns_refresh_rate", "dns_failure_refresh_rate", "respect_dns_ttl", "dns_jitter", "dns_lookup_family"}
)
CLUSTER_FIELDS: Final = _OPTIONS | RESOLVER_FIELDS | {"wait_for_warm_on_init"}
"""Of a Cluster, that DNS clusters read; others have no use for them."""
_DNS_CLUSTER_FIELDS: Final = _OPTIONS | {"typed_dns_resolver_config", "all_addresses_in_single_endpoint"}
_CARES_USED: Final = frozenset(
    {
        "resolvers",
        "use_resolvers_as_fallback",
        "filter_unroutable_families",
        "dns_resolver_options",
        "query_timeout_seconds",
        "query_tries",
        "rotate_nameservers",
        "edns0_max_payload_size",
    }
)
# How the sockets of queries are kept; ours live as long as a look-up.
_CARES_HARMLESS: Final = frozenset({"udp_max_queries", "max_udp_channel_duration", "reinit_channel_on_timeout"})
_DNS_OPTIONS: Final = frozenset({"use_tcp_for_dns_lookups", "no_default_search_domain"})
# A look-up that fails is made again at the pace of failures, and threads are ours to count.
_SYSTEM_HARMLESS: Final = frozenset({"num_retries", "num_resolver_threads"})


@dataclass(frozen=True, slots=True)
class _Resolver:
    """Attributes:
    is_system: The configuration says that it is getaddrinfo.
    """

    servers: DnsServers | None = None
    is_routable: bool = False
    is_system: bool = False


@cache
def has_resolver_library() -> bool:
    """Whether dnspython is installed; another package of the name `dns` does not count."""
    return find_spec("dns") is not None and find_spec("dns.resolver") is not None


def decode_dns_cluster(message: Any, path: str, problems: Problems, *, is_logical: bool) -> DnsDiscovery:
    """Decode what a Cluster of type STRICT_DNS or LOGICAL_DNS says of its names."""
    lookup = _lookup(message, path, problems, _resolver_of_cluster(message, path, problems), first_family=0)
    return _discovery(message, message, path, path, problems, lookup, is_logical=is_logical)


def dns_by_type(cluster: Any, config: Any, cluster_path: str, path: str, problems: Problems) -> DnsDiscovery:
    """Decode a Cluster whose `cluster_type` is a DnsCluster.

    Args:
        config: That.
        path: Of that.
    """
    cover(config, path, problems, used=_DNS_CLUSTER_FIELDS, harmless=frozenset())
    resolver = _Resolver()
    if config.HasField("typed_dns_resolver_config"):
        resolver = _typed(config.typed_dns_resolver_config, join(path, "typed_dns_resolver_config"), problems)
    lookup = _lookup(config, path, problems, resolver, first_family=1)
    is_logical = config.all_addresses_in_single_endpoint
    return _discovery(cluster, config, cluster_path, path, problems, lookup, is_logical=is_logical)


def _discovery(
    cluster: Any,
    options: Any,
    cluster_path: str,
    path: str,
    problems: Problems,
    lookup: DnsLookup,
    *,
    is_logical: bool,
) -> DnsDiscovery:
    place = join(cluster_path, "load_assignment")
    assignment = cluster.load_assignment
    found = ClusterLoadAssignment(cluster.name)
    if is_logical:
        if [len(entry.lb_endpoints) for entry in assignment.endpoints] != [1]:
            problems.error(place, "LOGICAL_DNS must have exactly one locality with exactly one endpoint")
        # As Envoy does: where there is one endpoint there is one priority.
        assignment = type(assignment).FromString(assignment.SerializeToString())
        for entry in assignment.endpoints:
            entry.priority = 0
    if cluster.HasField("load_assignment"):
        found = decode_assignment(assignment, place, problems, allow_names=True)
    return DnsDiscovery(
        found,
        logical=is_logical,
        lookup=lookup,
        pace=_pace(options, path, problems, is_logical=is_logical),
        waits=wrapped(cluster, "wait_for_warm_on_init") is not False,
    )


def _pace(options: Any, path: str, problems: Problems, *, is_logical: bool) -> DnsPace:
    base_s = max_s = None
    if options.HasField("dns_failure_refresh_rate"):
        place = join(path, "dns_failure_refresh_rate")
        base_s = duration(options.dns_failure_refresh_rate, "base_interval", place, problems)
        max_s = duration(options.dns_failure_refresh_rate, "max_interval", place, problems)
        if base_s is not None and max_s is not None and max_s < base_s:
            problems.error(join(place, "max_interval"), "must be at least base_interval")
    return DnsPace(
        refresh_s=duration(options, "dns_refresh_rate", path, problems) or 5.0,
        jitter_s=duration(options, "dns_jitter", path, problems) or 0.0,
        failure_base_s=base_s,
        failure_max_s=max_s,
        needs_addresses=is_logical,
    )


def _lookup(options: Any, path: str, problems: Problems, resolver: _Resolver, *, first_family: int) -> DnsLookup:
    """Put the options together.

    Args:
        resolver: What its own configuration says.
        first_family: The number of AUTO, after which the others come in the same order in both messages.
    """
    family = tuple(LookupFamily)[max(0, min(options.dns_lookup_family - first_family, len(LookupFamily) - 1))]
    needs_ttl = options.respect_dns_ttl
    if needs_ttl and resolver.is_system:
        problems.unused(join(path, "respect_dns_ttl"), "getaddrinfo tells no time to live")
        needs_ttl = False
    elif needs_ttl and not has_resolver_library():
        problems.unused(join(path, "respect_dns_ttl"), f"dns_refresh_rate serves instead; it {NEEDS_EXTRA}")
        needs_ttl = False
    return DnsLookup(family, needs_ttl, resolver.is_routable, resolver.servers)


def _resolver_of_cluster(message: Any, path: str, problems: Problems) -> _Resolver:
    """Return the resolver of a Cluster: of three ways to name it the newest that is there counts, as in Envoy."""
    ways = ("typed_dns_resolver_config", "dns_resolution_config")
    chosen = next((way for way in ways if message.HasField(way)), "")
    for way in RESOLVER_FIELDS - {chosen} if chosen else ():
        if message.HasField(way) if way in ways else getattr(message, way):
            problems.unused(join(path, way), f"{chosen} counts")
    if chosen == "typed_dns_resolver_config":
        return _typed(message.typed_dns_resolver_config, join(path, chosen), problems)
    if chosen:
        config, place = message.dns_resolution_config, join(path, chosen)
        servers = _addresses(config.resolvers, join(place, "resolvers"), problems)
        tcp, searches = _options(config.dns_resolver_options, join(place, "dns_resolver_options"), problems)
        return _Resolver(_checked(DnsServers(servers, over_tcp=tcp, searches=searches), place, problems))
    servers = _addresses(message.dns_resolvers, join(path, "dns_resolvers"), problems)
    first = join(path, "dns_resolvers" if servers else "use_tcp_for_dns_lookups")
    return _Resolver(_checked(DnsServers(servers, over_tcp=message.use_tcp_for_dns_lookups), first, problems))


def _typed(extension: Any, path: str, problems: Problems) -> _Resolver:
    kind, place = any_type(extension.typed_config), join(path, "typed_config")
    if kind not in (CARES_TYPE, SYSTEM_TYPE):
        name = kind or extension.name or "an empty resolver"
        problems.error(place, f"{name} is not supported (only c-ares and getaddrinfo)")
        return _Resolver()
    config = unpack(extension.typed_config, place, problems)
    if config is None:
        return _Resolver()
    if kind == SYSTEM_TYPE:
        cover(config, place, problems, used=frozenset(), harmless=_SYSTEM_HARMLESS)
        return _Resolver(is_system=True)
    cover(config, place, problems, used=_CARES_USED, harmless=_CARES_HARMLESS)
    tcp, searches = _options(config.dns_resolver_options, join(place, "dns_resolver_options"), problems)
    timeout_s = wrapped(config, "query_timeout_seconds")
    servers = DnsServers(
        _addresses(config.resolvers, join(place, "resolvers"), problems),
        are_spare=config.use_resolvers_as_fallback,
        over_tcp=tcp,
        searches=searches,
        query_timeout_s=float(timeout_s) if timeout_s else None,
        tries=wrapped(config, "query_tries") or None,
        rotates=config.rotate_nameservers,
        payload_size=wrapped(config, "edns0_max_payload_size"),
    )
    return _Resolver(_checked(servers, place, problems), config.filter_unroutable_families)


def _options(message: Any, path: str, problems: Problems) -> tuple[bool, bool]:
    """Return whether TCP is spoken, and whether short names are searched for."""
    cover(message, path, problems, used=_DNS_OPTIONS, harmless=frozenset())
    return message.use_tcp_for_dns_lookups, not message.no_default_search_domain


def _addresses(messages: Any, path: str, problems: Problems) -> tuple[str, ...]:
    found = []
    for index, message in enumerate(messages):
        place = f"{path}[{index}]"
        if message.WhichOneof("address") == "pipe":
            problems.error(join(place, "pipe"), "is not the address of a name server")
            continue
        address = socket_address(message, place, problems)
        # Port 0 stands for the usual one.
        found.append(f"{address.removesuffix(':0')}:53" if address.endswith(":0") else address)
    return tuple(found)


def _checked(servers: DnsServers, path: str, problems: Problems) -> DnsServers | None:
    """Return what is asked; None: the system's resolver, for which nothing is said."""
    if servers == DnsServers():
        return None
    if not has_resolver_library():
        problems.error(path, NEEDS_EXTRA)
    return servers
