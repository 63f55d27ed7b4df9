"""A cluster in an explanation: who is chosen and how, how every endpoint is, and how full the limits are."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from meshlib.admin.explain_source import Fact, fact
from meshlib.admin.status import CheckStatus, ClusterStatus, check_status, cluster_status
from meshlib.balancing.build import cluster_health
from meshlib.balancing.endpoint_state import EndpointState
from meshlib.balancing.host_sets import host_sets
from meshlib.balancing.priority import priority_load
from meshlib.balancing.zone_aware import zone_hosts, zone_split
from meshlib.model.cluster import UNLIMITED, CircuitBreakers, Cluster, EdsDiscovery, OutlierDetection, Probation
from meshlib.model.lb_policy import LbPolicy, LeastRequest, Maglev, PeakEwma, PickFirst, RingHash
from meshlib.model.secret import ClientTls
from meshlib.resilience.budget import retry_limit
from meshlib.resilience.circuit_breaker import CircuitBreaker
from meshlib.view import ClusterState, View
from meshlib.xds.resources import CDS, EDS

__all__ = ["ClusterExplanation", "EndpointExplanation", "PriorityExplanation", "cluster_lines", "explain_cluster"]


@dataclass(frozen=True, slots=True)
class EndpointExplanation:
    """Attributes:
    state: As EDS says (`unknown` is used like `healthy`), `ejected` by outlier detection, `on probation` after that, or
        `failing` its health checks.
    score: What the policy compares: the latency times the load in ms, requests in flight by weight, or the weight.
    meaning: What the score is; whether more is better is said with it.
    check: How its health checks go; None: it has none.
    """

    address: str
    locality: str
    priority: int
    state: str
    active: int
    score: float
    meaning: str
    check: CheckStatus | None = None


@dataclass(frozen=True, slots=True)
class PriorityExplanation:
    """Attributes:
    load_percent: Of the cluster's requests, 0-100.
    is_panicking: Too few are healthy, so that all are used.
    localities: Name and weight (0: none) of those with endpoints.
    """

    priority: int
    load_percent: int
    healthy: int
    degraded: int
    hosts: int
    is_panicking: bool
    localities: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterExplanation:
    """One cluster that the request may go to.

    Attributes:
        share: 0.0-1.0 of the requests that take the route.
        policy: How an endpoint is chosen.
        settings: Of that policy, by name.
        priorities: What stands between the cluster and its endpoints, in order; the policy chooses within.
        limits: Circuit breakers by name, of the priority that the route asks for; None: no limit.
        used: How much of each is in use.
        retries_left: By the limits in force and the process's own budget; None: nothing is known of it.
        outlier: When endpoints are taken out, or empty.
        tls: How the peer is verified, per kind of endpoint; empty: plaintext.
        leaves: Of an aggregate cluster: the clusters that it stands for.
        zones: How many requests stay in our own zone, or empty.
        resources: Versions of the resources behind it, by `type name`.
        facts: The same with where they were written.
    """

    name: str
    share: float
    status: ClusterStatus
    policy: str = ""
    settings: Mapping[str, object] | None = None
    priorities: tuple[PriorityExplanation, ...] = ()
    endpoints: tuple[EndpointExplanation, ...] = ()
    limits: Mapping[str, int | None] | None = None
    used: Mapping[str, int] | None = None
    retries_left: int | None = None
    outlier: str = ""
    tls: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    zones: str = ""
    resources: Mapping[str, str] | None = None
    facts: tuple[Fact, ...] = ()


def explain_cluster(name: str, share: float, view: View, *, now: float, is_high: bool = False) -> ClusterExplanation:
    """Say all about a cluster.

    Args:
        name: Its name.
        share: As in the result.
        view: Where it is.
        now: Monotonic seconds.
        is_high: The route asks for the limits of high priority.
    """
    found = view.clusters.get(name)
    if not isinstance(found, ClusterState):
        if found is None:
            return ClusterExplanation(name, share, ClusterStatus(name, "failed", "not in the configuration"))
        return ClusterExplanation(name, share, cluster_status(name, found))
    cluster = found.config.cluster
    versions = view.snapshot.versions
    facts = [fact("CDS", name, versions.get((CDS, name), ""), cluster.metadata)]
    if isinstance(cluster.discovery, EdsDiscovery):
        service = cluster.discovery.service_name or name
        facts.append(fact("EDS", service, versions.get((EDS, service), "")))
    breaker = found.high_breaker if is_high else found.breaker
    limits = breaker.limits
    return ClusterExplanation(
        name,
        share,
        cluster_status(name, found),
        _policy_words(cluster.lb_policy),
        _settings(cluster.lb_policy),
        _priorities(found),
        _endpoints(found, now),
        _limits(limits),
        _used(breaker),
        max(0, retry_limit(limits, breaker.active) - breaker.retries),
        _outlier_words(cluster),
        _tls_words(cluster),
        found.config.leaves,
        _zone_words(found),
        {one.label: one.version for one in facts},
        tuple(facts),
    )


def _settings(policy: LbPolicy) -> Mapping[str, object]:
    return {field.name: _plain(getattr(policy, field.name)) for field in dataclasses.fields(policy)}


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _priorities(found: ClusterState) -> tuple[PriorityExplanation, ...]:
    config = found.config
    health = cluster_health(config, found.states, found.memory.seed)
    if not health:
        return ()
    load = priority_load(
        health,
        overprovisioning_factor=config.assignment.overprovisioning_factor,
        panic_threshold=int(config.cluster.panic_threshold_percent),
    )
    localities: dict[int, list[tuple[str, int]]] = {}
    for group in config.assignment.localities:
        if group.endpoints:
            localities.setdefault(group.priority, []).append((str(group.locality), group.weight or 0))
    return tuple(
        PriorityExplanation(
            number,
            load.healthy[number] + load.degraded[number],
            one.healthy,
            one.degraded,
            one.hosts,
            load.is_panicking[number],
            tuple(localities.get(number, ())),
        )
        for number, one in enumerate(health)
    )


def _endpoints(found: ClusterState, now: float) -> tuple[EndpointExplanation, ...]:
    policy, result, seen = found.config.cluster.lb_policy, [], set()
    for group in found.config.assignment.localities:
        for endpoint in group.endpoints:
            state = found.states.get(endpoint.address)
            if state is None or endpoint.address in seen:
                continue
            seen.add(endpoint.address)
            score, meaning = _score(policy, state, now)
            result.append(
                EndpointExplanation(
                    endpoint.address,
                    str(group.locality),
                    group.priority,
                    _state_word(state),
                    state.active,
                    round(score, 3),
                    meaning,
                    check_status(found, state),
                )
            )
    return tuple(result)


def _state_word(state: EndpointState) -> str:
    if state.is_on_probation:
        return "on probation"
    if state.is_ejected:
        return "ejected"
    if state.is_failed:
        return "failing"
    return state.endpoint.health.name.lower()


def _score(policy: LbPolicy, state: EndpointState, now: float) -> tuple[float, str]:
    weight = float(state.endpoint.weight)
    match policy:
        case PeakEwma():
            known = state.latency
            seconds = known.seconds if known is not None else policy.default_rtt_s
            return seconds * 1000 * (state.active + 1), "latency in ms times load; the lower is better"
        case LeastRequest():
            return (state.active + 1) / weight, "load by weight; the lower is better"
        case _ if state.reported is not None:
            return state.reported.weight, "weight out of its own load reports"
        case _:
            return weight, "weight"


def _limits(limits: CircuitBreakers) -> Mapping[str, int | None]:
    given = {
        "max_requests": limits.max_requests,
        "max_retries": limits.max_retries,
        "max_connections": limits.max_connections,
        "max_pending_requests": limits.max_pending_requests,
    }
    return {name: None if value >= UNLIMITED else value for name, value in given.items()}


def _used(breaker: CircuitBreaker) -> Mapping[str, int]:
    return {
        "max_requests": breaker.active,
        "max_retries": breaker.retries,
        "max_connections": breaker.connections,
        "max_pending_requests": breaker.pending,
    }


def _policy_words(policy: LbPolicy) -> str:
    name = type(policy).__name__
    match policy:
        case RingHash():
            return f"{name}, {policy.min_size} points or more by {policy.function.value}"
        case Maglev():
            return f"{name}, {policy.table_size} slots"
        case _:
            return name


def _outlier_words(cluster: Cluster) -> str:
    rules = cluster.outlier_detection
    if rules is None:
        return ""
    return (
        f"out after {rules.consecutive_5xx} consecutive 5xx for {rules.base_ejection_time_s:g} s, "
        f"at most {rules.max_ejection_percent} %{_probation_words(rules.probation)}; {_grpc_outlier_words(rules)}"
    )


def _grpc_outlier_words(rules: OutlierDetection) -> str:
    """Say what takes an endpoint out by the results of gRPC calls."""
    found = []
    if rules.enforcing_success_rate:
        found.append(
            f"a success rate below that of the others ({rules.success_rate_minimum_hosts} endpoints with "
            f"{rules.success_rate_request_volume} calls)"
        )
    if rules.enforcing_failure_percentage:
        found.append(
            f"more than {rules.failure_percentage_threshold} % failures ({rules.failure_percentage_minimum_hosts} "
            f"endpoints with {rules.failure_percentage_request_volume} calls)"
        )
    return f"gRPC calls: every {rules.interval_s:g} s by {' or '.join(found)}" if found else "gRPC calls: never"


def _probation_words(rules: Probation | None) -> str:
    if rules is None:
        return ""
    return (
        f"; then on probation: back after {rules.successes} successes, {rules.max_requests} at a time and one in "
        f"{rules.interval_s:g} s"
    )


def _zone_words(found: ClusterState) -> str:
    """Say where requests of our zone go; empty: zones do not matter."""
    home, cluster = found.memory.home, found.config.cluster
    known = None if home is None else home.zones()
    priorities = host_sets(found.config, found.states, found.memory.seed)
    if known is None or not priorities or isinstance(cluster.lb_policy, RingHash | Maglev | PickFirst):
        return ""
    if cluster.locality_weighted and any(group.weight for group in priorities[0].localities):
        return ""
    split = zone_split(cluster.zone_aware, zone_hosts(priorities[0], known.own), known)
    if split is None or not cluster.zone_aware.enabled_percent:
        return f"zones do not matter (we are in {known.own})"
    return f"zone aware: {split.own / 100:g} % stay in {known.own}"


def _tls_words(cluster: Cluster) -> tuple[str, ...]:
    if cluster.socket_matches:
        return tuple(f"{match.name}: {_context_words(match.tls)}" for match in cluster.socket_matches)
    return (_context_words(cluster.tls),) if cluster.tls is not None else ()


def _context_words(tls: ClientTls | None) -> str:
    if tls is None:
        return "plaintext"
    names = " or ".join(f"{san.san_type.value} {san.matcher.kind.value} {san.matcher.value}" for san in tls.sans)
    kind = "mTLS" if tls.certificate is not None else "TLS"
    verified = "peer not verified" if tls.trust is None else f"peer is {names or 'any name of a trusted certificate'}"
    return f"{kind}, {verified}{f', SNI {tls.sni}' if tls.sni else ''}"


def cluster_lines(cluster: ClusterExplanation) -> list[str]:
    """Write a cluster for people."""
    status = cluster.status
    sources = ", ".join(str(one) for one in cluster.facts)
    lines = [f"cluster {cluster.name} ({100 * cluster.share:.4g} %): {status.state}{f', {sources}' if sources else ''}"]
    if status.note:
        lines.append(f"  {status.note}")
    if cluster.leaves:
        lines.append(f"  stands for, in this order: {', '.join(cluster.leaves)}")
    if cluster.policy:
        lines.append(f"  {cluster.policy}; {status.active} in flight; {_limit_words(cluster)}")
    if cluster.outlier:
        lines.append(f"  outlier detection: {cluster.outlier}")
    if cluster.zones:
        lines.append(f"  {cluster.zones}")
    lines += [f"  {words}" for words in cluster.tls]
    lines += _priority_lines(cluster.priorities)
    for endpoint in cluster.endpoints:
        place = f" in {endpoint.locality}" if endpoint.locality else ""
        lines.append(
            f"  {endpoint.address}{place}: {endpoint.state}, {endpoint.active} in flight, "
            f"{endpoint.meaning.partition(';')[0]} {endpoint.score:g}"
            f"{'' if endpoint.check is None else f'; {endpoint.check}'}"
        )
    return lines


def _limit_words(cluster: ClusterExplanation) -> str:
    used = cluster.used or {}
    return ", ".join(
        f"{name} {used.get(name, 0)} of {'unlimited' if limit is None else limit}"
        for name, limit in (cluster.limits or {}).items()
    )


def _priority_lines(priorities: Sequence[PriorityExplanation]) -> list[str]:
    if len(priorities) < 2 and not any(one.is_panicking or len(one.localities) > 1 for one in priorities):
        return []
    lines = []
    for one in priorities:
        panic = ", in panic: all are used" if one.is_panicking else ""
        degraded = f", {one.degraded} degraded" if one.degraded else ""
        weights = ", ".join(f"{name or '(none)'} {weight}" for name, weight in one.localities)
        lines.append(
            f"  priority {one.priority}: {one.load_percent} % of the load, {one.healthy} of {one.hosts} healthy"
            f"{degraded}{panic}; localities by weight: {weights}"
        )
    return lines
