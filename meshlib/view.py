"""The view: one snapshot with all that calls need of it, ready to use.

`build_view` is pure and makes only what changed: route tables and pickers of what stayed the same are taken over. What
must outlast an update lives in `ClusterState`: requests in flight, ejections, breakers. A call reads one view, once;
the cluster states it finds there are shared with the views before and after, so a new picker serves the retries of old
calls too.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from meshlib.balancing.aggregate import LeafTable, leaf_loads
from meshlib.balancing.build import build_picker, cluster_health
from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.picker import Picker
from meshlib.events import Event, HostEjected, HostUnejected
from meshlib.model.cluster import AggregateDiscovery, DnsDiscovery, EdsDiscovery
from meshlib.model.endpoint import Endpoint, Locality
from meshlib.model.outcome import Outcome, Response
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import RouteAction
from meshlib.model.secret import ClientTls, Secret
from meshlib.model.snapshot import ClusterConfig, ConfigFault, InboundConfig, Snapshot, TargetConfig
from meshlib.ports import Lock, Pause, Rng, no_pause
from meshlib.resilience.circuit_breaker import CircuitBreaker
from meshlib.resilience.classify import failure_code, http_code
from meshlib.resilience.deadline import per_try_timeout_s, route_timeout_s, stream_duration_s
from meshlib.resilience.outlier import Ejection, OutlierDetector, Unejection
from meshlib.resilience.retry import RetryRules
from meshlib.routing.table import RouteTable
from meshlib.xds.load_report import ClusterLoad

__all__ = ["ActiveFaults", "AggregateState", "ClusterState", "RoutePlan", "TargetView", "View", "build_view"]


PAUSE_EVERY: Final = 256
"""Endpoints: about 0.2 ms."""


class ClusterState:
    """One cluster, over all its configurations.

    Attributes:
        name: Fixed at creation.
        config: Swapped by updates, one assignment.
        picker: Swapped by updates and ejections, one assignment; never None.
        states: By address; a new mapping with each update that changes endpoints.
        breaker: Limits and counts of requests of the default priority.
        high_breaker: Of routes with high priority.
        outlier: None: the cluster has no outlier detection.
        drops: Shares of requests that EDS asks to drop.
        load: What is counted for the management server; None: it does not want to know.
    """

    __slots__ = (
        "_generation",
        "_lock",
        "_tls",
        "breaker",
        "config",
        "drops",
        "high_breaker",
        "load",
        "name",
        "outlier",
        "picker",
        "states",
    )

    config: ClusterConfig
    picker: Picker
    is_aggregate = False

    def __init__(self, config: ClusterConfig, now: float) -> None:
        self.name = config.cluster.name
        # Guards the counts of both breakers and of the endpoints, the ejection flags, and which picker is the newest.
        self._lock = Lock()
        self._generation = 0
        self.breaker = CircuitBreaker(config.cluster.circuit_breakers, self._lock)
        self.high_breaker = CircuitBreaker(config.cluster.high_priority_circuit_breakers, self._lock)
        self.outlier: OutlierDetector | None = None
        self.load: ClusterLoad | None = None
        self.states: Mapping[str, EndpointState] = {}
        self._configure(config, now)

    def __repr__(self) -> str:
        return f"ClusterState({self.name!r}, {len(self.states)} endpoints)"

    def update(self, config: ClusterConfig, now: float, pause: Pause = no_pause) -> None:
        """Take over a configuration; equal ones change nothing. Endpoints that stay keep their state."""
        if config is not self.config and config != self.config:
            self._configure(config, now, pause)

    def _configure(self, config: ClusterConfig, now: float, pause: Pause = no_pause) -> None:
        cluster, old = config.cluster, self.states
        states: dict[str, EndpointState] = {}
        for locality in config.assignment.localities:
            for index, endpoint in enumerate(locality.endpoints):
                if not index % PAUSE_EVERY:
                    pause()
                address = endpoint.address
                if address in states:
                    continue  # "later duplicates dropped"
                state = old.get(address)
                if state is None:
                    state = EndpointState(endpoint)
                elif state.endpoint is not endpoint:
                    state.endpoint = endpoint
                states[address] = state
        self.breaker.limits = cluster.circuit_breakers
        self.high_breaker.limits = cluster.high_priority_circuit_breakers
        had_outlier = self.outlier is not None
        if cluster.outlier_detection is None:
            self.outlier = None
        elif self.outlier is None:
            self.outlier = OutlierDetector(cluster.outlier_detection, states, now)
        else:
            self.outlier.update(cluster.outlier_detection, states)
        outlier = self.outlier
        load = self._load_of(config, now)
        with self._lock:
            self.load = load
            self._count_load(config, states)
            if outlier is not None or had_outlier:
                for address, state in states.items():
                    state.is_ejected = outlier is not None and outlier.is_ejected(address)
            self.states = states
            self.config = config
            self._generation += 1
        self.drops = tuple(
            (drop.numerator / drop.denominator, drop.category)
            for drop in config.assignment.drop_overloads
            if drop.numerator
        )
        self._tls: dict[str, ClientTls | None] = {}
        pause()
        self._rebuild(pause)

    def _load_of(self, config: ClusterConfig, now: float) -> ClusterLoad | None:
        """Return what counts for a configuration: as before, unless what is reported under has changed."""
        reports, discovery = config.cluster.load_reports, config.cluster.discovery
        if reports is None:
            return None
        service = discovery.service_name if isinstance(discovery, EdsDiscovery) else ""
        service = "" if service == self.name else service
        before = self.load
        if before is not None and (before.service, before.metrics) == (service, reports.metrics):
            return before
        return ClusterLoad(self.name, service, now, lock=self._lock, metrics=reports.metrics)

    def _count_load(self, config: ClusterConfig, states: Mapping[str, EndpointState]) -> None:
        """Have the requests of each endpoint counted with its locality; the lock is held."""
        load, discovery = self.load, config.cluster.discovery
        if load is None:
            for state in states.values():
                state.load = None
            return
        # "Reported under an empty locality for LOGICAL_DNS."
        is_nowhere = isinstance(discovery, DnsDiscovery) and discovery.logical
        groups = config.assignment.localities
        counts = load.use(Locality() if is_nowhere else group.locality for group in groups)
        seen: set[str] = set()
        for group in groups:
            count = counts[Locality() if is_nowhere else group.locality]
            for endpoint in group.endpoints:
                if endpoint.address in seen:
                    continue
                seen.add(endpoint.address)
                state = states[endpoint.address]
                if state.load is not count:
                    # What is under way moves along, so that it ends where it is counted.
                    if state.load is not None:
                        state.load.in_progress -= state.active
                    count.in_progress += state.active
                    state.load = count

    def _rebuild(self, pause: Pause = no_pause) -> None:
        """Make the picker anew, outside the lock; whoever sees the newest state last has its picker stay."""
        while True:
            generation = self._generation
            picker = build_picker(self.config, self.states, pause=pause)
            with self._lock:
                if generation == self._generation:
                    self.picker = picker
                    return

    def tls_for(self, endpoint: Endpoint) -> ClientTls | None:
        """Return how to reach an endpoint; None: plaintext.

        The first `transport_socket_matches` entry that the endpoint's metadata contains, else the cluster's own.
        """
        cluster = self.config.cluster
        if not cluster.socket_matches:
            return cluster.tls
        known = self._tls
        try:
            return known[endpoint.address]
        except KeyError:
            metadata = endpoint.metadata.get("envoy.transport_socket_match", {})
            tls = cluster.tls
            for entry in cluster.socket_matches:
                if all(key in metadata and metadata[key] == value for key, value in entry.match):
                    tls = entry.tls
                    break
            known[endpoint.address] = tls
            return tls

    def choose(self, rng: Rng) -> "ClusterState":
        """Return the cluster whose endpoints the next attempt chooses from: itself, unless it is an aggregate."""
        return self

    def acquire(self, breaker: CircuitBreaker, state: EndpointState) -> bool:
        """Count an attempt in; False: the limit of requests is reached, nothing is counted."""
        with self._lock:
            if breaker.active < breaker.limits.max_requests:
                breaker.active += 1
                state.active += 1
                if state.load is not None:
                    state.load.begin()
                return True
        if self.load is not None:
            self.load.drop()
        return False

    def release(self, breaker: CircuitBreaker, state: EndpointState, *, is_success: bool = True) -> None:
        """Count an attempt out.

        Args:
            is_success: For load reports: the service answered, and with no error of its own.
        """
        with self._lock:
            breaker.active -= 1
            state.active -= 1
            if state.load is not None:
                state.load.end(is_success=is_success)

    def record(self, state: EndpointState, outcome: Outcome, now: float, rng: Rng) -> HostEjected | None:
        """Feed outlier detection with an outcome, and carry out what it decides.

        Returns:
            The event when the endpoint was ejected.
        """
        outlier = self.outlier
        if outlier is None:
            return None
        if isinstance(outcome, Response):
            outlier.record_connected(state.address)
            ejection = outlier.record_code(state.address, http_code(outcome), now, rng)
        else:
            ejection = outlier.record_local_failure(state.address, failure_code(outcome), now, rng)
        return None if ejection is None else self._eject(state, ejection)

    def _eject(self, state: EndpointState, ejection: Ejection) -> HostEjected:
        if self._follow(state):
            self._rebuild()
        return HostEjected(self.name, state.endpoint, ejection.reason.value, ejection.ejection_time_s)

    def _follow(self, state: EndpointState) -> bool:
        """Take over what the detector says of an endpoint; True: that is news.

        The detector is asked again, under the lock: between its decision and this moment another thread may have
        decided otherwise, and the flag must end up as the detector has it.
        """
        with self._lock:
            outlier = self.outlier
            is_ejected = outlier is not None and outlier.is_ejected(state.address)
            if state.is_ejected == is_ejected:
                return False
            state.is_ejected = is_ejected
            self._generation += 1
            return True

    def sweep(self, now: float, rng: Rng) -> tuple[Event, ...]:
        """Do the periodic work of outlier detection when it is due."""
        outlier = self.outlier
        changes = () if outlier is None else outlier.sweep(now, rng)
        if not changes:
            return ()
        changed = [(state, change) for change in changes if (state := self.states.get(change.address)) is not None]
        news = [self._follow(state) for state, _ in changed]
        if any(news):
            self._rebuild()
        return tuple(
            HostUnejected(self.name, state.endpoint)
            if isinstance(change, Unejection)
            else HostEjected(self.name, state.endpoint, change.reason.value, change.ejection_time_s)
            for state, change in changed
        )


class AggregateState(ClusterState):
    """An aggregate cluster: it has no endpoints, and every attempt is one of a leaf, by the leaf's limits.

    Attributes:
        leaves: In the order of preference; swapped by updates, one assignment.
    """

    __slots__ = ("_made", "leaves")

    is_aggregate = True

    def __init__(self, config: ClusterConfig, now: float) -> None:
        self.leaves: tuple[ClusterState, ...] = ()
        # The table, and what it was made of: the leaves' pickers, which are new whenever anything of their hosts is.
        self._made: tuple[tuple[Picker, ...], LeafTable] = ((), LeafTable(()))
        super().__init__(config, now)

    def choose(self, rng: Rng) -> ClusterState:
        """Return the leaf for one attempt; the cluster itself, which has no endpoints, when there is none."""
        leaves = self.leaves
        if len(leaves) < 2:
            return leaves[0] if leaves else self
        pickers = tuple([leaf.picker for leaf in leaves])
        made, table = self._made
        if made != pickers:
            health = [cluster_health(leaf.config, leaf.states) for leaf in leaves]
            threshold = int(self.config.cluster.panic_threshold_percent)
            table = LeafTable(leaf_loads(health, panic_threshold=threshold))
            self._made = (pickers, table)
        return leaves[table.choose(rng)]


class RoutePlan:
    """What a route's options come to for every call, worked out once per route.

    Attributes:
        action: The route's action, and
        retry: the retry policy in force: they are what the plan was made of.
        rules: Compiled retry conditions.
        http: Limits in seconds, None for none: of the call, of one attempt, of the whole exchange.
        grpc: The same for gRPC calls.
    """

    __slots__ = ("action", "grpc", "http", "retry", "rules")

    def __init__(self, action: RouteAction, retry: RetryPolicy | None, max_stream_duration_s: float | None) -> None:
        self.action = action
        self.retry = retry
        self.rules = RetryRules.of_policy(retry)
        per_try_s = None if retry is None else retry.per_try_timeout_s
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
    """

    __slots__ = ("_client_ids", "_plans", "clusters", "config", "faults", "max_stream_duration_s", "name", "routes")

    faults: ActiveFaults
    routes: RouteTable

    def __init__(
        self,
        name: str,
        config: TargetConfig,
        clusters: "Mapping[str, ClusterState | ConfigFault]",
        *,
        previous: "TargetView | None" = None,
    ) -> None:
        """Make the view of a target.

        Args:
            previous: Its route table is taken over when the configuration is the same.

        Raises:
            ValueError: A regex or template of a route or of its retry policy is not valid.
        """
        self.name = name
        self.config = config
        self.clusters = clusters
        self.max_stream_duration_s = config.listener.max_stream_duration_s
        self.faults = ActiveFaults() if previous is None else previous.faults
        self._client_ids: list[int] = [] if previous is None else previous._client_ids
        # Route plans by the identity of what they are made of, which they keep alive. Only ever grows by one entry per
        # route; two threads may make the same one, and either is good.
        self._plans: dict[tuple[int, int], RoutePlan]
        if previous is not None and (previous.config is config or previous.config == config):
            self.config = previous.config
            self.routes = previous.routes
            self._plans = previous._plans
        else:
            self.routes = RouteTable(config.listener, config.routes)
            self._plans = {}
            # Plans are made when a route is first used; what could fail then is to fail now.
            for host in config.routes.virtual_hosts:
                RetryRules.of_policy(host.retry)
                for route in host.routes:
                    if isinstance(route.action, RouteAction) and route.action.retry is not None:
                        RetryRules.of_policy(route.action.retry)

    def __repr__(self) -> str:
        return f"TargetView({self.name!r})"

    def client_id(self, rng: Rng) -> int:
        """Return the 64 bits by which this client is known in the cookies that it makes; the same over all updates."""
        known = self._client_ids
        if not known:
            known.append(rng.getrandbits(64))  # Two threads may both be first: the first entry counts.
        return known[0]

    def plan(self, action: RouteAction, retry: RetryPolicy | None) -> RoutePlan:
        """Return what a matched route's options come to."""
        key = (id(action), id(retry))
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = RoutePlan(action, retry, self.max_stream_duration_s)
        return plan


class View:
    """One complete configuration in its working form.

    Attributes:
        number: The snapshot's.
        targets: By listener resource name.
        clusters: By cluster name.
        inbound: By listener resource name.
        secrets: By SDS name.
        snapshot: What the view was made of.
    """

    __slots__ = ("clusters", "inbound", "number", "secrets", "snapshot", "targets")

    def __init__(
        self,
        snapshot: Snapshot,
        targets: Mapping[str, TargetView | ConfigFault],
        clusters: Mapping[str, ClusterState | ConfigFault],
    ) -> None:
        self.number = snapshot.number
        self.snapshot = snapshot
        self.targets = targets
        self.clusters = clusters
        self.inbound: Mapping[str, InboundConfig | ConfigFault] = snapshot.inbound
        self.secrets: Mapping[str, Secret] = snapshot.secrets

    def __repr__(self) -> str:
        return f"View({self.number}, {len(self.targets)} targets, {len(self.clusters)} clusters)"

    @property
    def loads(self) -> tuple[ClusterLoad, ...]:
        """What is counted for load reports."""
        states = self.clusters.values()
        return tuple(state.load for state in states if isinstance(state, ClusterState) and state.load is not None)

    def sweep(self, now: float, rng: Rng) -> tuple[Event, ...]:
        """Do the periodic work that is due. Cheap; ask about once a second.

        Returns:
            What changed, for the hooks.
        """
        return tuple(
            event
            for cluster in self.clusters.values()
            if isinstance(cluster, ClusterState)
            for event in cluster.sweep(now, rng)
        )


def _build_cluster(
    config: ClusterConfig | ConfigFault, previous: ClusterState | ConfigFault | None, now: float, pause: Pause
) -> ClusterState | ConfigFault:
    if isinstance(config, ConfigFault):
        return config
    is_aggregate = isinstance(config.cluster.discovery, AggregateDiscovery)
    if isinstance(previous, ClusterState) and previous.is_aggregate is is_aggregate:
        previous.update(config, now, pause)
        return previous
    return AggregateState(config, now) if is_aggregate else ClusterState(config, now)


def _build_clusters(
    snapshot: Snapshot, previous: View, now: float, pause: Pause
) -> Mapping[str, ClusterState | ConfigFault]:
    """Make or bring up to date the states of all clusters; the same mapping when it holds the same objects."""
    before, states = previous.snapshot.clusters, previous.clusters
    if snapshot.clusters is before:
        return states
    clusters: dict[str, ClusterState | ConfigFault] = {}
    for name, config in snapshot.clusters.items():
        state = states.get(name)
        if state is None or before.get(name) is not config:
            pause()
            state = _build_cluster(config, state, now, pause)
        clusters[name] = state
    _link_leaves(clusters)
    # The same objects: targets that have not changed can stay as they are.
    return states if clusters == states else MappingProxyType(clusters)


def _link_leaves(clusters: Mapping[str, ClusterState | ConfigFault]) -> None:
    """Have each aggregate cluster know the states of its leaves."""
    for state in clusters.values():
        if isinstance(state, AggregateState):
            leaves = [clusters.get(name) for name in state.config.leaves]
            found = tuple([leaf for leaf in leaves if isinstance(leaf, ClusterState) and not leaf.is_aggregate])
            if found != state.leaves:
                state.leaves = found


def _build_target(
    name: str,
    config: TargetConfig | ConfigFault,
    previous: TargetView | ConfigFault | None,
    clusters: Mapping[str, ClusterState | ConfigFault],
) -> TargetView | ConfigFault:
    if isinstance(config, ConfigFault):
        return config
    old = previous if isinstance(previous, TargetView) else None
    if old is not None and old.clusters is clusters and (old.config is config or old.config == config):
        return old
    try:
        return TargetView(name, config, clusters, previous=old)
    except ValueError as error:
        # The decoders refuse what cannot be compiled; a snapshot from elsewhere must not take the other targets down.
        return ConfigFault(f"RouteConfiguration: {config.routes.name}", f"target {name!r} cannot be used: {error}")


def build_view(snapshot: Snapshot, previous: View | None, *, now: float, pause: Pause = no_pause) -> View:
    """Make the view of a snapshot, taking over from the view before what has not changed.

    Args:
        previous: The view in use, or None for the first.
        now: Monotonic seconds.
        pause: Called now and then while there is much to do.
    """
    if previous is None:
        previous = View(Snapshot(), {}, {})
    clusters = _build_clusters(snapshot, previous, now, pause)
    if clusters is previous.clusters and snapshot.targets is previous.snapshot.targets:
        return View(snapshot, previous.targets, clusters)
    targets: Mapping[str, TargetView | ConfigFault] = MappingProxyType(
        {
            name: _build_target(name, config, previous.targets.get(name), clusters)
            for name, config in snapshot.targets.items()
        }
    )
    return View(snapshot, targets, clusters)
