"""Where a target or an inbound listener leads to: its filters, its routes or scopes, and what requests asked for.

Beside what a configuration names there is what a request needs and nobody could know before: the cluster that a header
names, the virtual host of an authority, the routes of a scope on demand. Such demands are followed like everything else,
but nothing waits for them: a target goes on without, and says in `answered` which ones it has an answer for.
"""

from dataclasses import replace
from typing import TypeVar

from meshlib.model.authorization import Rbac
from meshlib.model.discovery import Collection, FilterConfig, ScopedRoute, ScopedRoutes
from meshlib.model.filters import AdaptiveConcurrency, AdmissionControl, ListedLimit, LocalRateLimit
from meshlib.model.listener import ClientListener, DiscoveredFilter, ServerListener
from meshlib.model.route import FaultPolicy, RouteConfiguration, VirtualHost
from meshlib.model.session import SessionPolicy
from meshlib.model.snapshot import (
    ClusterConfig,
    ConfigFault,
    Demand,
    DemandKind,
    InboundConfig,
    ScopeConfig,
    TargetConfig,
)
from meshlib.xds.decode_limits import server_fault
from meshlib.xds.follow import ClusterFollower, clusters_of
from meshlib.xds.names import WILDCARD, virtual_host_name
from meshlib.xds.resources import ECDS, LDS, RDS, SRDS, VHDS
from meshlib.xds.runtime import RETRY_SHARE_KEY, with_runtime
from meshlib.xds.runtime_numbers import number
from meshlib.xds.server_routes import unusable_in_server

__all__ = ["Follower", "clusters_of_target"]

F = TypeVar("F")
Missing = list[str]
"""What somebody waits for, each as `LDS resource name`."""


def clusters_of_target(config: TargetConfig) -> frozenset[str]:
    """Return the names of all clusters that a target uses: those of its routes, unless they are on demand, and those
    that requests asked for."""
    asked = {name for kind, name in config.answered if kind is DemandKind.CLUSTER}
    if config.listener.on_demand_timeout_s is not None:
        return frozenset(asked)
    return frozenset(asked).union(*(clusters_of(routes) for routes in config.all_routes))


def _insert(filters: list[tuple[int, F]], position: int, found: F) -> None:
    """Put a discovered filter before the one that has this number by itself, after the discovered ones before it."""
    place = next((i for i, (number, _) in enumerate(filters) if number >= position), len(filters))
    filters.insert(place, (position - 1, found))


def _in_order(listener: ServerListener) -> list[Rbac | ListedLimit]:
    """Return the filters that a server's listener configures itself, as they stand in its chain."""
    found: list[Rbac | ListedLimit] = []
    for position, rbac in enumerate((*listener.rbac, None)):
        found += [limit for limit in listener.limits if limit.position == position]
        found += [] if rbac is None else [rbac]
    return found


class Follower(ClusterFollower):
    """One pass over the cache; what several starting points share is followed once."""

    def target(self, name: str) -> tuple[TargetConfig | ConfigFault | None, tuple[str, ...]]:
        """Return what the target is now (None: nothing yet) and what it waits for before it can move on."""
        before = self._previous.targets.get(name)
        listener = self._need(LDS, name)
        if listener is None:
            return self._hold(name, before, (f"LDS resource {name}",))
        if isinstance(listener, ConfigFault):
            return listener, ()
        if not isinstance(listener, ClientListener):
            return self._fault(LDS, name, "not an API listener"), ()
        missing: Missing = []
        found = self._client_filters(listener, missing)
        config = found if isinstance(found, ConfigFault) else self._config(name, found, before, missing)
        if missing:
            return self._hold(name, before, tuple(missing))
        assert config is not None
        if isinstance(config, ConfigFault):
            # The target itself is there: calls to it fail, and are not taken for calls to an unknown host.
            return replace(config, is_absent=False), ()
        for cluster in sorted(self.used_by(config)):
            state = self._cluster(cluster)
            # A cluster in use goes on in its older form while the new one warms, so nobody waits for it.
            if isinstance(state, tuple) and not isinstance(self._previous.clusters.get(cluster), ClusterConfig):
                missing += state
        if missing:
            return self._hold(name, before, tuple(missing))
        return (before if isinstance(before, TargetConfig) and before == config else config), ()

    def used_by(self, config: TargetConfig) -> frozenset[str]:
        """Return the names of all clusters that a target uses, and follow them."""
        return self.with_mirrors(clusters_of_target(config))

    def _hold(
        self, name: str, before: TargetConfig | ConfigFault | None, missing: tuple[str, ...]
    ) -> tuple[TargetConfig | None, tuple[str, ...]]:
        """Stay with the routes in use, and with what they need; a target that had failed is on its way again."""
        if not isinstance(before, TargetConfig):
            return None, missing
        self.used_by(before)
        asked = [demand for demand in self._facts.demands.get(name, ()) if demand[0] is DemandKind.CLUSTER]
        answered = before.answered.union(demand for demand in asked if self._has_answer(demand[1]))
        return (replace(before, answered=answered) if answered != before.answered else before), missing

    def _config(
        self, name: str, listener: ClientListener, before: object, missing: Missing
    ) -> TargetConfig | ConfigFault | None:
        """Return the target with the routes that it is to have; None: something is missing."""
        known = before if isinstance(before, TargetConfig) else None
        demands = self._facts.demands.get(name, frozenset())
        answered = {demand for demand in demands if demand[0] is DemandKind.CLUSTER and self._has_answer(demand[1])}
        runtime = self._runtime(missing)
        fault, limits = with_runtime(listener.fault, runtime), with_runtime(listener.limits, runtime)
        replies = with_runtime(listener.reply_rules, runtime)
        if fault is not listener.fault or limits is not listener.limits or replies is not listener.reply_rules:
            listener = replace(listener, fault=fault, limits=limits, reply_rules=replies)
        retried = number(runtime, RETRY_SHARE_KEY)
        if retried is not None and retried < 100:
            listener = replace(listener, retry_percent=int(retried))
        if not isinstance(listener.routes, ScopedRoutes):
            routes = self._routes(listener.routes)
            if routes is None:
                missing.append(f"RDS resource {listener.routes}")
            if routes is None or isinstance(routes, ConfigFault):
                return routes
            routes = with_runtime(self._with_hosts(routes, demands, answered), runtime)
            if known is not None and known.scopes is None and known.routes == routes:
                routes = known.routes
            return TargetConfig(listener, routes, None, frozenset(answered))
        scoped = listener.routes
        found = self._scopes(scoped, missing)
        if isinstance(found, ConfigFault):
            return found
        olds = {scope.name: scope.routes for scope in known.scopes or ()} if known is not None else {}
        scopes: list[ScopeConfig] = []
        keys: set[tuple[str, ...]] = set()
        for scope in found:
            # Of two scopes with one key the first by name counts: which of them a request meets must not be chance.
            if scope.key in keys:
                continue
            keys.add(scope.key)
            demand = (DemandKind.SCOPE, scope.name)
            routes = None
            if not scope.on_demand or isinstance(scope.routes, RouteConfiguration) or demand in demands:
                routes = self._routes(scope.routes)
                if routes is not None:
                    answered.add(demand)
                elif not scope.on_demand:
                    missing.append(f"RDS resource {scope.routes}")
                elif isinstance(olds.get(scope.name), RouteConfiguration):
                    routes = olds[scope.name]
            if isinstance(routes, RouteConfiguration):
                routes = with_runtime(self._with_hosts(routes, demands, answered), runtime)
                if olds.get(scope.name) == routes:
                    routes = olds[scope.name]
            scopes.append(ScopeConfig(scope.name, scope.key, routes))
        none = RouteConfiguration(scoped.name, ())
        return TargetConfig(listener, none, tuple(scopes), frozenset(answered & demands))

    def _scopes(self, scoped: ScopedRoutes, missing: Missing) -> tuple[ScopedRoute, ...] | ConfigFault:
        if scoped.scopes is not None:
            return scoped.scopes
        found = self._need(SRDS, WILDCARD)
        if isinstance(found, ConfigFault):
            return found
        if not isinstance(found, Collection):
            missing.append("SRDS resources")
            return ()
        return tuple(scope for scope in found.members.values() if isinstance(scope, ScopedRoute))

    def _routes(self, routes: RouteConfiguration | str) -> RouteConfiguration | ConfigFault | None:
        if isinstance(routes, RouteConfiguration):
            return routes
        found = self._need(RDS, routes)
        return found if found is None or isinstance(found, RouteConfiguration | ConfigFault) else None

    # What requests asked for.

    def _has_answer(self, cluster: str) -> bool:
        """Follow a cluster that a request named; whether there is something to say of it."""
        state = self._cluster(cluster)
        return not isinstance(state, tuple) or isinstance(self._previous.clusters.get(cluster), ClusterConfig)

    def _with_hosts(
        self, routes: RouteConfiguration, demands: frozenset[Demand], answered: set[Demand]
    ) -> RouteConfiguration:
        """Return the routes with the virtual hosts that requests asked for."""
        if not routes.has_more_hosts:
            return routes
        hosts: list[VirtualHost] = []
        for demand in sorted((one for one in demands if one[0] is DemandKind.VIRTUAL_HOST), key=lambda one: one[1]):
            found = self._need(VHDS, virtual_host_name(routes.name, demand[1]))
            if found is None:
                continue
            answered.add(demand)
            # One host may have been asked for by several names.
            if isinstance(found, VirtualHost) and not any(found is host for host in hosts):
                hosts.append(found)
        return replace(routes, virtual_hosts=(*routes.virtual_hosts, *hosts)) if hosts else routes

    # Filters.

    def _client_filters(self, listener: ClientListener, missing: Missing) -> ClientListener | ConfigFault:
        """Return the listener with the configuration of its filters that comes by ECDS."""
        limits = list(enumerate(listener.limits))
        for filter_ in listener.discovered:
            found = self._filter(filter_, missing)
            if isinstance(found, ConfigFault):
                return found
            config = None if found is None else found.config
            if isinstance(config, FaultPolicy):
                fault = None if filter_.is_disabled else config
                listener = replace(listener, has_fault_filter=True, fault=fault)
            elif isinstance(config, SessionPolicy):
                session = None if filter_.is_disabled else config
                listener = replace(listener, has_session_filter=True, session=session)
            elif isinstance(config, LocalRateLimit | AdmissionControl | AdaptiveConcurrency):
                limit = ListedLimit(filter_.name, None if filter_.is_disabled else config, filter_.is_after_fault)
                _insert(limits, filter_.position, limit)
        if len(limits) > len(listener.limits):
            listener = replace(listener, limits=tuple(limit for _, limit in limits))
        return listener

    def _server_filters(self, listener: ServerListener, missing: Missing) -> ServerListener | ConfigFault:
        """As `_client_filters`; filters for authorization and those that limit keep their order among each other."""
        chain: list[tuple[int, Rbac | ListedLimit]] = list(enumerate(_in_order(listener)))
        for filter_ in listener.discovered:
            found = self._filter(filter_, missing)
            if isinstance(found, ConfigFault):
                return found
            config = None if found is None else found.config
            if isinstance(config, Rbac):
                _insert(chain, filter_.position, config)
            elif isinstance(config, LocalRateLimit | AdmissionControl | AdaptiveConcurrency):
                if fault := server_fault(config):
                    # It may be good for a client. As without it, a listener must not go on.
                    return replace(self._fault(ECDS, filter_.name, fault), is_absent=False)
                _insert(chain, filter_.position, ListedLimit(filter_.name, None if filter_.is_disabled else config))
        if not listener.discovered:
            return listener
        rbac: list[Rbac] = []
        limits: list[ListedLimit] = []
        for _, item in chain:
            if isinstance(item, Rbac):
                rbac.append(item)
            else:
                limits.append(replace(item, position=len(rbac)))
        return replace(listener, rbac=tuple(rbac), limits=tuple(limits))

    def _filter(self, filter_: DiscoveredFilter, missing: Missing) -> FilterConfig | ConfigFault | None:
        """Return the configuration of a filter; None: it is missing."""
        found = self._need(ECDS, filter_.name)
        if isinstance(found, FilterConfig) and found.type_name not in filter_.type_names:
            found = self._fault(ECDS, filter_.name, f"is a {found.type_name}, which the listener does not allow")
        if isinstance(found, FilterConfig):
            return found
        if filter_.default is not None and (found is not None or filter_.skips_warming):
            return filter_.default
        if found is None:
            missing.append(f"ECDS resource {filter_.name}")
            return None
        assert isinstance(found, ConfigFault)
        # Without its filter a listener must not go on: it may be the one that refuses.
        return replace(found, is_absent=False)

    # Servers.

    def inbound(self, name: str) -> tuple[InboundConfig | ConfigFault | None, tuple[str, ...]]:
        before = self._previous.inbound.get(name)
        listener = self._need(LDS, name)
        if listener is None:
            return before, (f"LDS resource {name}",)
        if isinstance(listener, ConfigFault):
            return listener, ()
        if not isinstance(listener, ServerListener):
            return self._fault(LDS, name, "not a server listener (it has no address)"), ()
        missing = list(self._secrets(listener.tls))
        found = self._server_filters(listener, missing)
        routes = self._routes(listener.routes)
        if routes is None:
            missing.append(f"RDS resource {listener.routes}")
        runtime = self._runtime(missing)
        if missing or routes is None:
            return before, tuple(missing)
        if isinstance(found, ConfigFault):
            return found, ()
        if isinstance(routes, ConfigFault):
            return routes, ()
        limits = with_runtime(found.limits, runtime)
        if limits is not found.limits:
            found = replace(found, limits=limits)
        if reason := unusable_in_server(routes, found.limits):
            # As a listener that has its routes inside is refused; these are a resource of their own, of use to others.
            return self._fault(RDS if isinstance(listener.routes, str) else LDS, routes.name or name, reason), ()
        config = InboundConfig(found, with_runtime(routes, runtime))
        return (before if isinstance(before, InboundConfig) and before == config else config), ()
