"""One target: its routes, and what the options of each come to."""

from collections.abc import Mapping
from typing import Any, Final

from meshlib.model.discovery import ScopedRoutes
from meshlib.model.endpoint import NO_METADATA
from meshlib.model.filters import LimitFilter
from meshlib.model.request import RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import RouteAction, RouteConfiguration
from meshlib.model.snapshot import ConfigFault, Demand, TargetConfig
from meshlib.ports import Lock, Rng
from meshlib.resilience.deadline import per_try_timeout_s, route_timeout_s, stream_duration_s
from meshlib.resilience.limiters import Limiter, make_limiter
from meshlib.resilience.retry import RetryRules
from meshlib.routing.limits import RouteLimit
from meshlib.routing.scopes import ScopeTable
from meshlib.routing.table import RouteMatch, RouteTable
from meshlib.view.cluster_state import ClusterState

__all__ = ["ActiveFaults", "RoutePlan", "TargetView"]


MAX_PLANS: Final = 16384
"""Of one target; more than it has routes only when policies of clusters have changed many times."""


class RoutePlan:
    """What a route's options come to for every call, worked out once per route.

    Attributes:
        action: The route's action, and
        retry: the retry policy in force: they are what the plan was made of.
        rules: Compiled retry conditions.
        per_try_s: What the route's policy allows one attempt, whatever the limit of the call; None: no limit.
        idle_s: How long nothing may come of the exchange; None: no limit. Not for gRPC.
        idle_try_s: The same of one attempt.
        http: Limits in seconds, None for none: of the call, of one attempt, of the whole exchange.
        grpc: The same for gRPC calls.
    """

    __slots__ = ("action", "grpc", "http", "idle_s", "idle_try_s", "per_try_s", "retry", "rules")

    def __init__(
        self,
        action: RouteAction,
        retry: RetryPolicy | None,
        max_stream_duration_s: float | None,
        stream_idle_s: float | None = None,
        of_cluster: RetryPolicy | None = None,
    ) -> None:
        """Make a plan.

        Args:
            retry: Of the route, or of its virtual host.
            max_stream_duration_s: The listener's default, and so is `stream_idle_s`.
            of_cluster: Takes the place of `retry`, but for the times of attempts: these are the route's in Envoy 1.40.
        """
        self.action = action
        self.retry = retry if of_cluster is None else of_cluster
        self.rules = RetryRules.of_policy(self.retry)
        per_try_s = self.per_try_s = None if retry is None else retry.per_try_timeout_s
        self.idle_s = (stream_idle_s if action.idle_timeout_s is None else action.idle_timeout_s) or None
        self.idle_try_s = None if retry is None else retry.per_try_idle_timeout_s
        timeout_s = route_timeout_s(action)
        self.http = (
            timeout_s,
            per_try_timeout_s(per_try_s, timeout_s),
            stream_duration_s(action, max_stream_duration_s, None, is_grpc=False),
        )
        # gRPC knows no time of one attempt; it is honoured here as in a proxy.
        self.grpc = (
            None,
            per_try_timeout_s(per_try_s, None),
            stream_duration_s(action, max_stream_duration_s, None, is_grpc=True),
        )


class ActiveFaults:
    """Counts injected faults in progress, for `max_active_faults`; one per target, over its configurations."""

    __slots__ = ("_lock", "active")

    def __init__(self) -> None:
        self.active = 0
        self._lock = Lock()

    def try_acquire(self, limit: int | None) -> bool:
        """Count a fault in; False: the limit is reached, nothing is counted."""
        with self._lock:
            if limit is not None and self.active >= limit:
                return False
            self.active += 1
            return True

    def release(self) -> None:
        """Count a fault out."""
        with self._lock:
            self.active -= 1


class TargetView:
    """One target: its routes and the clusters they lead to.

    Attributes:
        name: Listener resource name.
        config: What the target was made of.
        max_stream_duration_s: The listener's default for its routes; None: absent.
        clusters: All clusters of the view.
        faults: Injected faults in progress.
        hostname: Of this machine; empty: not known.
        wall_offset_s: Added to monotonic seconds it gives those since the epoch, in which marks of sessions end. Kept up to date from outside.
        has_demands: A request may need what is only subscribed to when one does: see `unmet`.
        is_plain: Requests are routed as they come: no clock, nothing to prepare, nothing to be waited for.
        ways: Of HTTP calls, by route; None: that route has none. See `meshlib.call.way`.
    """

    __slots__ = (
        "_client_ids",
        "_limiters",
        "_plans",
        "clusters",
        "config",
        "faults",
        "has_demands",
        "hostname",
        "is_plain",
        "max_stream_duration_s",
        "name",
        "routes",
        "wall_offset_s",
        "warming",
        "ways",
    )

    faults: ActiveFaults
    routes: RouteTable | ScopeTable

    def __init__(
        self,
        name: str,
        config: TargetConfig,
        clusters: Mapping[str, ClusterState | ConfigFault],
        *,
        warming: "tuple[ClusterState, ...]" = (),
        previous: "TargetView | None" = None,
        wall_offset_s: float = 0.0,
        hostname: str = "",
    ) -> None:
        """Make the view of a target.

        Args:
            warming: Clusters to wait for, as `is_warming` says.
            previous: Its route table is taken over when the configuration is the same.
            wall_offset_s: As for `build_view`, and so is `hostname`.

        Raises:
            ValueError: A regex or template of a route or of its retry policy is not valid.
        """
        self.name = name
        self.config = config
        self.clusters = clusters
        self.warming = warming
        self.wall_offset_s = wall_offset_s
        self.hostname = hostname
        self.max_stream_duration_s = config.listener.max_stream_duration_s
        self.faults = ActiveFaults() if previous is None else previous.faults
        self._client_ids: list[int] = [] if previous is None else previous._client_ids
        # Route plans by the identity of what they are made of, which they keep alive. Only ever grows by one entry per
        # route; two threads may make the same one, and either is good.
        self._plans: dict[tuple[int, int, int], RoutePlan]
        if previous is not None and _are_routes_same(previous.config, config):
            self.routes = previous.routes
            self._plans = previous._plans
        else:
            self.routes = _route_table(config, previous)
            self._plans = {}
            # Plans are made when a route is first used; what could fail then is to fail now.
            for routes in config.all_routes:
                _check_retries(routes)
        self.has_demands = self.routes.has_demands
        table = self.routes
        self.is_plain = not (self.has_demands or table.needs_moment or table.prepare is not None)
        self.ways: dict[RouteMatch, Any] = {}

        # By scope and configuration; what has been counted goes on as long as neither changes.
        self._limiters: dict[tuple[str, LimitFilter], Limiter] = {}
        limits = self.routes.limits if config.listener.limits else ()
        if previous is not None and limits:
            wanted = {(limit.scope, limit.config) for limit in limits}
            self._limiters.update(item for item in tuple(previous._limiters.items()) if item[0] in wanted)

    def __repr__(self) -> str:
        return f"TargetView({self.name!r})"

    def unmet(self, head: RequestHead) -> frozenset[Demand]:
        """Return what a request needs and the configuration has no answer for yet."""
        return frozenset(self.routes.demands(head)) - self.config.answered

    def wished(self, head: RequestHead) -> frozenset[Demand]:
        """Return what copies of a request need likewise, which nobody waits for."""
        return frozenset(self.routes.wishes(head)) - self.config.answered

    def metadata_of(self, cluster: str) -> Mapping[str, Mapping[str, object]]:
        """Return the filter_metadata of a cluster; empty: there is none, or no such cluster."""
        found = self.clusters.get(cluster)
        return found.config.cluster.metadata if isinstance(found, ClusterState) else NO_METADATA

    def limiter(self, limit: RouteLimit, now: float) -> Limiter:
        """Return what counts for a limiting filter."""
        key = (limit.scope, limit.config)
        found = self._limiters.get(key)
        # Two threads may both be first: the first entry counts.
        return self._limiters.setdefault(key, make_limiter(limit.config, now)) if found is None else found

    @property
    def is_warming(self) -> bool:
        """The target is new, and not all endpoints of its clusters have had their first health check."""
        if self.warming:
            self.warming = tuple(
                [state for state in self.warming if state.checks is not None and state.checks.is_warming]
            )
        return bool(self.warming)

    def client_id(self, rng: Rng) -> int:
        """Return the 64 bits by which this client is known in the cookies that it makes; the same over all updates."""
        known = self._client_ids
        if not known:
            known.append(rng.getrandbits(64))  # Two threads may both be first: the first entry counts.
        return known[0]

    def plan(self, action: RouteAction, retry: RetryPolicy | None, of_cluster: RetryPolicy | None = None) -> RoutePlan:
        """Return what a matched route's options come to; the policies are those of `RoutePlan`."""
        key = (id(action), id(retry), id(of_cluster))
        plan = self._plans.get(key)
        if plan is None:
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()  # clusters with policies of their own, which have changed many times
            idle_s = self.config.listener.stream_idle_timeout_s
            plan = self._plans[key] = RoutePlan(action, retry, self.max_stream_duration_s, idle_s, of_cluster)
        return plan


def _are_routes_same(before: TargetConfig, now: TargetConfig) -> bool:
    """Whether everything that tables are made of is the same; what was asked for on demand may differ."""
    if before is now:
        return True
    return (before.listener, before.routes, before.scopes) == (now.listener, now.routes, now.scopes)


def _route_table(config: TargetConfig, previous: TargetView | None) -> RouteTable | ScopeTable:
    scoped = config.listener.routes
    if config.scopes is None or not isinstance(scoped, ScopedRoutes):
        return RouteTable(config.listener, config.routes)
    made: dict[int, RouteTable] = {}
    before = None if previous is None or previous.config.listener != config.listener else previous
    if before is not None and isinstance(before.routes, ScopeTable):
        for scope in before.config.scopes or ():
            table = before.routes.tables.get(scope.key)
            if isinstance(table, RouteTable):
                made[id(scope.routes)] = table
    return ScopeTable(scoped, config.listener, config.scopes, lambda routes: made.get(id(routes)))


def _check_retries(routes: RouteConfiguration) -> None:
    for host in routes.virtual_hosts:
        RetryRules.of_policy(host.retry)
        for route in host.routes:
            if isinstance(route.action, RouteAction) and route.action.retry is not None:
                RetryRules.of_policy(route.action.retry)
