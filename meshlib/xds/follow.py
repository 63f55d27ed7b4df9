"""Where a cluster leads to: its leaves if it is an aggregate, its endpoints, its secrets, and what runtime values change."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from meshlib.model.cluster import AggregateDiscovery, Cluster, DnsDiscovery, EdsDiscovery, StaticDiscovery
from meshlib.model.discovery import Collection, RuntimeLayer, RuntimeValue
from meshlib.model.dns import DnsAnswer, DnsQuestion
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint
from meshlib.model.route import ClusterHeader, RouteAction, RouteConfiguration, SingleCluster, WeightedClusters
from meshlib.model.snapshot import ClusterConfig, ConfigFault, Snapshot
from meshlib.xds.dns import DnsWish, dns_hosts, spare_addresses, with_addresses
from meshlib.xds.follow_resources import DNS, Facts, ResourceFollower, Scope
from meshlib.xds.names import normal
from meshlib.xds.resources import CDS, EDS, LEDS, RTDS
from meshlib.xds.runtime import merge_layers
from meshlib.xds.runtime_cluster import cluster_with_runtime

__all__ = ["ClusterFollower", "clusters_of"]

MAX_AGGREGATE_DEPTH: Final = 16
"""How deep aggregate clusters may be nested (A37, A74)."""


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
    names.discard("")  # where a header names the cluster
    return frozenset(names)


class ClusterFollower(ResourceFollower):
    """The clusters' part of a pass over the cache; what several starting points share is followed once."""

    def __init__(self, facts: Facts, previous: Snapshot) -> None:
        super().__init__(facts)
        self._previous = previous
        self.found: dict[str, tuple[ClusterConfig | ConfigFault | tuple[str, ...], Scope]] = {}
        """What came out so far, by cluster, and what was met on the way there."""
        self._merged: Mapping[str, RuntimeValue] | None = None

    # Runtime.

    def _runtime(self, missing: list[str]) -> Mapping[str, RuntimeValue]:
        """Return the runtime values that are there; a layer that cannot be had is empty."""
        layers = []
        for layer in self._facts.runtime:
            found: object = layer
            if isinstance(layer, str):
                found = self._need(RTDS, layer)
                if found is None:
                    missing.append(f"RTDS resource {layer}")
            if isinstance(found, RuntimeLayer):
                layers.append(found.values)
        if self._merged is None:
            self._merged = merge_layers(layers)
        return self._merged

    # Clusters.

    def _cluster(self, name: str) -> ClusterConfig | ConfigFault | tuple[str, ...]:
        """Return a cluster, the reason why there is none, or what it still waits for."""
        state, scope = self.look(name)
        self.scope.add(scope)
        return state

    def look(self, name: str) -> tuple[ClusterConfig | ConfigFault | tuple[str, ...], Scope]:
        """Follow a cluster by itself: what comes out, and what was met on the way."""
        found = self.found.get(name)
        if found is None:
            outer, self.scope = self.scope, Scope()
            state = self._find_cluster(name)
            if isinstance(state, tuple):
                self.scope.is_volatile = True
            found = self.found[name] = (state, self.scope)
            self.scope = outer
        return found

    def _find_cluster(self, name: str) -> ClusterConfig | ConfigFault | tuple[str, ...]:
        cluster = self._need(CDS, name)
        if cluster is None:
            return (f"CDS resource {name}",)
        if isinstance(cluster, ConfigFault):
            return cluster
        assert isinstance(cluster, Cluster)
        before = self._previous.clusters.get(name)
        if self._facts.runtime:
            # A layer that has not come holds the targets up, so nobody uses the cluster without it.
            changed = cluster_with_runtime(cluster, self._runtime([]))
            # It is made anew each time, and an equal one must not look like a change.
            is_known = changed is not cluster and isinstance(before, ClusterConfig) and before.cluster == changed
            cluster = before.cluster if is_known and isinstance(before, ClusterConfig) else changed
        for mirror in cluster.mirrors:  # followed by who uses the cluster: they may go round in circles
            self._need(CDS, mirror.cluster)
        if isinstance(cluster.discovery, AggregateDiscovery):
            return self._aggregate(name, cluster)
        missing = self._secrets(cluster.tls, *(match.tls for match in cluster.socket_matches))
        note = ""
        spares: tuple[Endpoint, ...] = ()
        match cluster.discovery:
            case StaticDiscovery(assignment=assignment):
                found: ClusterLoadAssignment | None = assignment
            case EdsDiscovery(service_name=service_name):
                found, note = self._endpoints(service_name or name)
                if found is None:
                    missing = (*missing, note or f"EDS resource {service_name or name}")
            case DnsDiscovery() as dns:
                found, note, spares = self._resolved(dns)
                if found is None:
                    missing = (*missing, "DNS: " + ", ".join(sorted(dns_hosts(dns.assignment))))
        if missing or found is None:
            return missing
        if isinstance(before, ClusterConfig) and before.cluster is cluster and before.note == note:
            # Made anew each time: what DNS resolves to, what collections hold, and the empty list in place of an error.
            is_derived = not isinstance(cluster.discovery, EdsDiscovery | StaticDiscovery)
            if isinstance(cluster.discovery, EdsDiscovery):
                entry = self._facts.cache.peek(EDS, normal(cluster.discovery.service_name or name))
                is_derived = entry is None or found is not entry.value
            if before.assignment is found or (is_derived and before.assignment == found and before.spares == spares):
                return before
        return ClusterConfig(cluster, found, note, spares=spares)

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

    def with_mirrors(self, names: Iterable[str]) -> frozenset[str]:
        """Return clusters and those that get copies of their requests."""
        found: set[str] = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name in found:
                continue
            found.add(name)
            state = self._cluster(name)
            if not isinstance(state, ClusterConfig):
                # While it warms, it goes on in its older form.
                before = self._previous.clusters.get(name)
                if not isinstance(before, ClusterConfig):
                    continue
                state = before
            waiting += [mirror.cluster for mirror in state.cluster.mirrors]
        return frozenset(found)

    def awaited(self, name: str) -> tuple[str, ...]:
        """Return what a cluster still waits for."""
        found = self._cluster(name)
        return found if isinstance(found, tuple) else ()

    def usable(self, name: str, *, is_held: bool) -> ClusterConfig | ConfigFault:
        """Return the form of a cluster that calls use now, and keep what that needs.

        Args:
            name: Of the cluster.
            is_held: A target that waits for new routes still goes there.
        """
        state = self._cluster(name)
        before = self._previous.clusters.get(name)
        if isinstance(state, ClusterConfig):
            return state
        if isinstance(state, ConfigFault):
            found = before if is_held and isinstance(before, ClusterConfig) else state
        else:
            found = before if before is not None else self._fault(CDS, name, f"not there yet: {', '.join(state)}")
        if isinstance(found, ClusterConfig):
            # An older form that is still in use keeps its secrets.
            self._secrets(found.cluster.tls, *(match.tls for match in found.cluster.socket_matches))
        return found

    def _endpoints(self, name: str) -> tuple[ClusterLoadAssignment | None, str]:
        found = self._need(EDS, name)
        if found is None:
            return None, ""
        if isinstance(found, ConfigFault):
            # Final, so the cluster is warm: with no endpoints, and this as the reason.
            return ClusterLoadAssignment(name), found.message
        assert isinstance(found, ClusterLoadAssignment)
        if any(locality.collections for locality in found.localities):
            return self._with_members(name, found)
        if not found.localities:
            return found, self._text(EDS, name, "contains no localities")
        has_endpoints = any(locality.endpoints for locality in found.localities)
        return found, "" if has_endpoints else self._text(EDS, name, "contains only empty localities")

    def _with_members(self, name: str, assignment: ClusterLoadAssignment) -> tuple[ClusterLoadAssignment | None, str]:
        """Put the members of collections (LEDS) into the localities that name them; None: one has not come."""
        notes: list[str] = []
        localities = []
        absent = ""
        for locality in assignment.localities:
            endpoints = {endpoint.address: endpoint for endpoint in locality.endpoints}
            for collection in locality.collections:
                found = self._need(LEDS, collection)
                if found is None:
                    absent = f"LEDS resource {collection}"
                elif isinstance(found, ConfigFault):
                    notes.append(found.message)
                elif isinstance(found, Collection):
                    for member in found.members.values():
                        if isinstance(member, Endpoint):
                            endpoints.setdefault(member.address, member)
            localities.append(replace(locality, endpoints=tuple(endpoints.values()), collections=()))
        if absent:
            return None, absent
        whole = replace(assignment, localities=tuple(localities))
        if not notes and not any(locality.endpoints for locality in whole.localities):
            notes.append(self._text(EDS, name, "contains only empty localities"))
        return whole, "; ".join(notes)

    def _resolved(self, dns: DnsDiscovery) -> tuple[ClusterLoadAssignment | None, str, tuple[Endpoint, ...]]:
        """Put what names resolve to in the place of the endpoints that have them.

        A cluster is ready when one of its names has addresses, or all have been looked up: a name whose servers do not
        answer holds up nothing but itself.
        """
        answers: dict[str, DnsAnswer] = {}
        hosts = dns_hosts(dns.assignment)
        for host in hosts:
            question = DnsQuestion(host, dns.lookup)
            self.scope.needs.add((DNS, question.label))
            self.scope.wish(question.label, DnsWish(question, dns.pace))
            answer = self._facts.dns.get(question.label)
            if answer is not None:
                answers[host] = answer
        if dns.waits and len(answers) < len(hosts) and not any(answer.addresses for answer in answers.values()):
            return None, "", ()
        notes = [
            f"DNS resolution failed for {host}: {answer.error}{self._node()}"
            for host, answer in sorted(answers.items())
            if answer.error
        ]
        notes += [f"DNS: {host} has not been looked up yet" for host in sorted(hosts - answers.keys())]
        return with_addresses(dns, answers), "; ".join(notes), spare_addresses(dns, answers)
