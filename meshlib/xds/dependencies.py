"""From resources to one complete configuration: what a set of targets needs, and whether all of it is there.

A target is a listener name. It leads to a route configuration (inline or RDS), that to clusters, those to endpoints
(EDS, the cluster itself, or DNS) and to secrets. Everything is followed from the cache each time anew, so the answer
depends on what is known and on nothing else.

Make before break:

- A target moves to new routes when every cluster that they can choose is warm or has a final error; until then it keeps
  its routes, and the clusters of those stay subscribed and in the snapshot, even when the server has removed them.
- A cluster keeps its endpoints and settings until its new form is warm.
- One target that waits does not hold up another.

Errors follow gRFC A74: those of a listener or its routes fail the target, those of a cluster fail the calls that choose
it, those of endpoints are a note on the cluster. Parts that did not change stay the same objects, and a snapshot equal
to the one before is that one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from types import MappingProxyType
from typing import Final, TypeVar

from meshlib.model.cluster import AggregateDiscovery, Cluster, DnsDiscovery, EdsDiscovery, StaticDiscovery
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint
from meshlib.model.listener import ClientListener, ServerListener
from meshlib.model.route import ClusterHeader, RouteAction, RouteConfiguration, SingleCluster, WeightedClusters
from meshlib.model.secret import ClientTls, Secret, SecretRef, ServerTls
from meshlib.model.snapshot import ClusterConfig, ConfigFault, InboundConfig, Snapshot, TargetConfig
from meshlib.xds.cache import Entry, Key, ResourceCache, ResourceState
from meshlib.xds.names import normal
from meshlib.xds.resources import CDS, EDS, LDS, RDS, SDS, short_name

__all__ = ["DnsAnswer", "Facts", "Resolution", "provider_secret_names", "resolve"]

PROVIDER_PREFIX: Final = "provider:"
MAX_AGGREGATE_DEPTH: Final = 16
"""How deep aggregate clusters may be nested (A37, A74)."""

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class DnsAnswer:
    """What a name resolves to now.

    Attributes:
        addresses: IP addresses, sorted; the last good ones when a later look-up fails.
        error: Of the last look-up, or empty.
    """

    addresses: tuple[str, ...]
    error: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a configuration is made of.

    Attributes:
        targets: Names of client listeners wanted.
        inbound: Names of server listeners wanted.
        dns: By host name; absent: not resolved yet.
        provider_secrets: Of certificate providers, by `provider:<instance>:certificate` or `...:ca`.
        node_id: Ends every error text, so that a user can name the client to whoever runs the server.
    """

    cache: ResourceCache
    targets: frozenset[str]
    inbound: frozenset[str] = frozenset()
    dns: Mapping[str, DnsAnswer] = field(default_factory=dict)
    provider_secrets: Mapping[str, Secret] = field(default_factory=dict)
    node_id: str = ""


@dataclass(frozen=True, slots=True)
class Resolution:
    """Attributes:
    wanted: Names to subscribe to, by type URL.
    dns_names: Host names to keep resolved, and the seconds between look-ups.
    snapshot: The previous one itself when nothing changed.
    waiting: What each target or inbound listener that is not ready, or holds on to an older form, waits for.
    """

    wanted: Mapping[str, frozenset[str]]
    dns_names: Mapping[str, float]
    snapshot: Snapshot
    waiting: Mapping[str, tuple[str, ...]]


def provider_secret_names(instance: str) -> tuple[str, str]:
    """Return the names under which a certificate provider's certificate and roots stand in a snapshot."""
    return f"{PROVIDER_PREFIX}{instance}:certificate", f"{PROVIDER_PREFIX}{instance}:ca"


def clusters_of(routes: RouteConfiguration) -> frozenset[str]:
    """Return the names of all clusters that a route configuration can choose (not those that a header names)."""
    names: set[str] = set()
    for host in routes.virtual_hosts:
        for route in host.routes:
            action = route.action
            if not isinstance(action, RouteAction):
                continue
            match action.cluster:
                case SingleCluster(name=name):
                    names.add(name)
                case WeightedClusters(clusters=clusters):
                    names.update(cluster.name for cluster in clusters)
                case ClusterHeader():
                    pass
            names.update(mirror.cluster for mirror in action.mirrors)
    return frozenset(names)


def resolve(facts: Facts, previous: Snapshot) -> Resolution:
    """Follow all targets and inbound listeners through the cache."""
    return _Resolver(facts, previous).run()


class _Resolver:
    """One pass. Collects what is wanted on the way, whether it is there or not."""

    def __init__(self, facts: Facts, previous: Snapshot) -> None:
        self._facts = facts
        self._previous = previous
        self._wanted: dict[str, set[str]] = {LDS: set(), RDS: set(), CDS: set(), EDS: set(), SDS: set()}
        self._dns_names: dict[str, float] = {}
        self._versions: dict[Key, str] = {}
        self._clusters: dict[str, ClusterConfig | ConfigFault | tuple[str, ...]] = {}
        self._waiting: dict[str, tuple[str, ...]] = {}
        self._secret_names: set[str] = set()

    def run(self) -> Resolution:
        targets: dict[str, TargetConfig | ConfigFault] = {}
        used: set[str] = set()
        held: set[str] = set()
        for name in sorted(self._facts.targets):
            config, missing = self._target(name)
            if missing:
                self._waiting[name] = missing
            if config is None:
                continue
            targets[name] = config
            if isinstance(config, TargetConfig):
                names = clusters_of(config.routes)
                used |= names
                if missing:
                    held |= names
        inbound: dict[str, InboundConfig | ConfigFault] = {}
        for name in sorted(self._facts.inbound):
            server, missing = self._inbound(name)
            if missing:
                self._waiting[name] = missing
            if server is not None:
                inbound[name] = server
        clusters = {name: self._usable_cluster(name, name in held) for name in sorted(used)}
        for name, cluster in tuple(clusters.items()):
            for leaf in cluster.leaves if isinstance(cluster, ClusterConfig) else ():
                if leaf not in clusters:
                    clusters[leaf] = self._usable_cluster(leaf, name in held)
        self._need_secrets_in_use(clusters.values(), inbound.values())
        return Resolution(
            {type_url: frozenset(names) for type_url, names in self._wanted.items()},
            self._dns_names,
            self._snapshot(targets, inbound, clusters),
            self._waiting,
        )

    # Targets.

    def _target(self, name: str) -> tuple[TargetConfig | ConfigFault | None, tuple[str, ...]]:
        """Return what the target is now (None: nothing yet) and what it waits for before it can move on."""
        before = self._previous.targets.get(name)
        listener = self._need(LDS, name)
        if listener is None:
            return self._hold(before, (f"LDS resource {name}",))
        if isinstance(listener, ConfigFault):
            return listener, ()
        if not isinstance(listener, ClientListener):
            return self._fault(LDS, name, "not an API listener"), ()
        routes = self._routes(listener.routes)
        if routes is None:
            return self._hold(before, (f"RDS resource {listener.routes}",))
        if isinstance(routes, ConfigFault):
            # The target itself is there: calls to it fail, and are not taken for calls to an unknown host.
            return replace(routes, is_absent=False), ()
        missing: list[str] = []
        for cluster in sorted(clusters_of(routes)):
            state = self._cluster(cluster)
            # A cluster in use goes on in its older form while the new one warms, so nobody waits for it.
            if isinstance(state, tuple) and not isinstance(self._previous.clusters.get(cluster), ClusterConfig):
                missing += state
        if missing:
            return self._hold(before, tuple(missing))
        if isinstance(before, TargetConfig) and before.listener is listener and before.routes is routes:
            return before, ()
        return TargetConfig(listener, routes), ()

    def _hold(
        self, before: TargetConfig | ConfigFault | None, missing: tuple[str, ...]
    ) -> tuple[TargetConfig | None, tuple[str, ...]]:
        """Stay with the routes in use, and with what they need; a target that had failed is on its way again."""
        if not isinstance(before, TargetConfig):
            return None, missing
        for cluster in clusters_of(before.routes):
            self._cluster(cluster)
        return before, missing

    def _routes(self, routes: RouteConfiguration | str) -> RouteConfiguration | ConfigFault | None:
        if isinstance(routes, RouteConfiguration):
            return routes
        found = self._need(RDS, routes)
        return found if found is None or isinstance(found, RouteConfiguration | ConfigFault) else None

    def _inbound(self, name: str) -> tuple[InboundConfig | ConfigFault | None, tuple[str, ...]]:
        before = self._previous.inbound.get(name)
        listener = self._need(LDS, name)
        if listener is None:
            return before, (f"LDS resource {name}",)
        if isinstance(listener, ConfigFault):
            return listener, ()
        if not isinstance(listener, ServerListener):
            return self._fault(LDS, name, "not a server listener (it has no address)"), ()
        missing = list(self._secrets(listener.tls))
        routes = self._routes(listener.routes)
        if routes is None:
            missing.append(f"RDS resource {listener.routes}")
        if missing or routes is None:
            return before, tuple(missing)
        if isinstance(routes, ConfigFault):
            return routes, ()
        if isinstance(before, InboundConfig) and before.listener is listener and before.routes is routes:
            return before, ()
        return InboundConfig(listener, routes), ()

    # Clusters.

    def _cluster(self, name: str) -> ClusterConfig | ConfigFault | tuple[str, ...]:
        """Return a cluster, the reason why there is none, or what it still waits for."""
        if name not in self._clusters:
            self._clusters[name] = self._find_cluster(name)
        return self._clusters[name]

    def _find_cluster(self, name: str) -> ClusterConfig | ConfigFault | tuple[str, ...]:
        cluster = self._need(CDS, name)
        if cluster is None:
            return (f"CDS resource {name}",)
        if isinstance(cluster, ConfigFault):
            return cluster
        assert isinstance(cluster, Cluster)
        if isinstance(cluster.discovery, AggregateDiscovery):
            return self._aggregate(name, cluster)
        missing = self._secrets(cluster.tls, *(match.tls for match in cluster.socket_matches))
        note = ""
        match cluster.discovery:
            case StaticDiscovery(assignment=assignment):
                found: ClusterLoadAssignment | None = assignment
            case EdsDiscovery(service_name=service_name):
                found, note = self._endpoints(service_name or name)
                if found is None:
                    missing = (*missing, f"EDS resource {service_name or name}")
            case DnsDiscovery() as dns:
                found, note = self._resolved(dns)
                if found is None:
                    missing = (*missing, "DNS: " + ", ".join(sorted(_dns_hosts(dns.assignment))))
        if missing or found is None:
            return missing
        before = self._previous.clusters.get(name)
        if isinstance(before, ClusterConfig) and before.cluster is cluster and before.note == note:
            # Made anew each time: what DNS resolves to, and the empty list that stands for an error.
            is_derived = isinstance(cluster.discovery, DnsDiscovery) or not found.localities
            if before.assignment is found or (is_derived and before.assignment == found):
                return before
        return ClusterConfig(cluster, found, note)

    def _aggregate(self, name: str, cluster: Cluster) -> ClusterConfig | ConfigFault | tuple[str, ...]:
        """Follow an aggregate cluster to its leaves: depth first, each at its first place, cycles cut."""
        leaves: list[str] = []
        faults: list[str] = []
        missing: list[str] = []
        seen = {name}

        def follow(aggregate: AggregateDiscovery, depth: int) -> bool:
            for child in aggregate.clusters:
                if child in seen:
                    continue
                if depth >= MAX_AGGREGATE_DEPTH:
                    return False
                seen.add(child)
                found = self._need(CDS, child)
                if isinstance(found, Cluster) and isinstance(found.discovery, AggregateDiscovery):
                    if not follow(found.discovery, depth + 1):
                        return False
                    continue
                state = self._cluster(child)
                if isinstance(state, ClusterConfig):
                    leaves.append(child)
                elif isinstance(state, ConfigFault):
                    faults.append(state.message)
                elif isinstance(self._previous.clusters.get(child), ClusterConfig):
                    leaves.append(child)  # Goes on in its older form while the new one warms.
                else:
                    missing.extend(state)
            return True

        assert isinstance(cluster.discovery, AggregateDiscovery)
        if not follow(cluster.discovery, 1):
            return self._fault(CDS, name, f"aggregate cluster graph exceeds max depth ({MAX_AGGREGATE_DEPTH})")
        if missing:
            return tuple(missing)
        if not leaves:
            reason = f": {'; '.join(faults)}" if faults else ""
            return self._fault(CDS, name, f"aggregate cluster dependency graph for {name} has no leaf clusters{reason}")
        config = ClusterConfig(cluster, ClusterLoadAssignment(name), "; ".join(faults), tuple(leaves))
        before = self._previous.clusters.get(name)
        if isinstance(before, ClusterConfig) and before.cluster is cluster and before == config:
            return before
        return config

    def _usable_cluster(self, name: str, is_held: bool) -> ClusterConfig | ConfigFault:
        """Return the form of a cluster that calls use now.

        Args:
            name: Of the cluster.
            is_held: A target that waits for new routes still goes there.
        """
        state = self._cluster(name)
        before = self._previous.clusters.get(name)
        if isinstance(state, ClusterConfig):
            return state
        if isinstance(state, ConfigFault):
            return before if is_held and isinstance(before, ClusterConfig) else state
        return before if before is not None else self._fault(CDS, name, f"not there yet: {', '.join(state)}")

    def _endpoints(self, name: str) -> tuple[ClusterLoadAssignment | None, str]:
        found = self._need(EDS, name)
        if found is None:
            return None, ""
        if isinstance(found, ConfigFault):
            # Final, so the cluster is warm: with no endpoints, and this as the reason.
            return ClusterLoadAssignment(name), found.message
        assert isinstance(found, ClusterLoadAssignment)
        if not found.localities:
            return found, self._text(EDS, name, "contains no localities")
        has_endpoints = any(locality.endpoints for locality in found.localities)
        return found, "" if has_endpoints else self._text(EDS, name, "contains only empty localities")

    def _resolved(self, dns: DnsDiscovery) -> tuple[ClusterLoadAssignment | None, str]:
        hosts = _dns_hosts(dns.assignment)
        for host in hosts:
            self._dns_names[host] = min(dns.refresh_s, self._dns_names.get(host, dns.refresh_s))
        if any(host not in self._facts.dns for host in hosts):
            return None, ""
        notes = [
            f"DNS resolution failed for {host}: {self._facts.dns[host].error}{self._node()}"
            for host in sorted(hosts)
            if self._facts.dns[host].error
        ]
        localities = tuple(
            replace(
                locality,
                endpoints=tuple(
                    found for endpoint in locality.endpoints for found in self._addresses(endpoint, dns.logical)
                ),
            )
            for locality in dns.assignment.localities
        )
        return replace(dns.assignment, localities=localities), "; ".join(notes)

    def _addresses(self, endpoint: Endpoint, logical: bool) -> Iterable[Endpoint]:
        if not _is_dns(endpoint):
            yield endpoint
            return
        addresses = self._facts.dns[endpoint.host].addresses
        for address in addresses[:1] if logical else addresses:
            text = f"[{address}]" if ":" in address else address
            yield replace(endpoint, address=f"{text}:{endpoint.port}", hostname=endpoint.hostname or endpoint.host)

    # Secrets.

    def _secrets(self, *contexts: ClientTls | ServerTls | None) -> tuple[str, ...]:
        """Ask for the secrets of TLS contexts; return those which nothing is known of yet.

        A secret that cannot be had does not hold anything up: handshakes that need it fail and say so.
        """
        missing: list[str] = []
        for context in contexts:
            if context is None:
                continue
            for reference in (context.certificate, context.trust):
                missing += self._secret(reference)
        return tuple(missing)

    def _need_secrets_in_use(
        self, clusters: Iterable[ClusterConfig | ConfigFault], inbound: Iterable[InboundConfig | ConfigFault]
    ) -> None:
        """Keep the secrets of older forms that are still in use."""
        for config in clusters:
            if isinstance(config, ClusterConfig):
                self._secrets(config.cluster.tls, *(match.tls for match in config.cluster.socket_matches))
        for server in inbound:
            if isinstance(server, InboundConfig):
                self._secrets(server.listener.tls)

    def _secret(self, reference: SecretRef | None) -> Iterable[str]:
        if reference is None:
            return
        if reference.provider:
            self._secret_names.update(provider_secret_names(reference.provider))
        if reference.sds_name:
            self._secret_names.add(reference.sds_name)
            if self._need(SDS, reference.sds_name) is None:
                yield f"SDS resource {reference.sds_name}"

    def _known_secret(self, name: str) -> Secret | None:
        if name.startswith(PROVIDER_PREFIX):
            return self._facts.provider_secrets.get(name)
        entry = self._facts.cache.get(SDS, name)
        if entry is None or not entry.is_answered:
            # Asked for and not answered: whatever uses it goes on with what it had.
            return self._previous.secrets.get(name)
        return entry.value if isinstance(entry.value, Secret) else None

    # Resources.

    def _need(self, type_url: str, name: str) -> object | ConfigFault | None:
        """Subscribe to a resource; return its value, its fault, or None while nothing is known."""
        name = normal(name)
        self._wanted[type_url].add(name)
        entry = self._facts.cache.get(type_url, name)
        if entry is None:
            return None
        if entry.value is not None:
            self._versions[type_url, name] = entry.version
            return entry.value
        if entry.state is ResourceState.REQUESTED:
            return None
        return self._fault(type_url, name, _reason(entry), is_absent=entry.is_absent)

    def _fault(self, type_url: str, name: str, reason: str, *, is_absent: bool = False) -> ConfigFault:
        return ConfigFault(f"{short_name(type_url)}: {name}", self._text(type_url, name, reason), is_absent)

    def _text(self, type_url: str, name: str, reason: str) -> str:
        return f"{short_name(type_url)} resource {name}: {reason}{self._node()}"

    def _node(self) -> str:
        return f" (xDS node ID:{self._facts.node_id})" if self._facts.node_id else ""

    def _snapshot(
        self,
        targets: Mapping[str, TargetConfig | ConfigFault],
        inbound: Mapping[str, InboundConfig | ConfigFault],
        clusters: Mapping[str, ClusterConfig | ConfigFault],
    ) -> Snapshot:
        previous = self._previous
        secrets: dict[str, Secret] = {}
        for name in sorted(self._secret_names):
            secret = self._known_secret(name)
            if secret is not None:
                secrets[name] = secret
        if (
            _same(targets, previous.targets)
            and _same(inbound, previous.inbound)
            and _same(clusters, previous.clusters)
            and _same(secrets, previous.secrets)
            and self._versions == previous.versions
        ):
            return previous
        return Snapshot(
            targets=_kept(targets, previous.targets),
            inbound=_kept(inbound, previous.inbound),
            clusters=_kept(clusters, previous.clusters),
            secrets=_kept(secrets, previous.secrets),
            number=previous.number + 1,
            versions=MappingProxyType(self._versions),
        )


def _reason(entry: Entry) -> str:
    return f"invalid resource: {entry.error}" if entry.state is ResourceState.NACKED else entry.error


def _same(new: Mapping[str, object], old: Mapping[str, object]) -> bool:
    """Whether two mappings hold the same objects; faults are made anew each time and compare by value."""
    if len(new) != len(old):
        return False
    return all(
        value is old.get(name) or (isinstance(value, ConfigFault) and value == old.get(name))
        for name, value in new.items()
    )


def _kept(new: Mapping[str, V], old: Mapping[str, V]) -> Mapping[str, V]:
    return old if _same(new, old) else MappingProxyType(dict(new))


def _is_dns(endpoint: Endpoint) -> bool:
    if endpoint.address.startswith("unix:"):
        return False
    try:
        ip_address(endpoint.host)
    except ValueError:
        return True
    return False


def _dns_hosts(assignment: ClusterLoadAssignment) -> frozenset[str]:
    return frozenset(
        endpoint.host for locality in assignment.localities for endpoint in locality.endpoints if _is_dns(endpoint)
    )
