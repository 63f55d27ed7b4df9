"""Why a request goes where it goes: from what the application wrote to the endpoints, with every decision between."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from meshlib.admin.status import ClusterStatus, cluster_status
from meshlib.errors import ConfigError, MeshError
from meshlib.model.cluster import UNLIMITED, Cluster, EdsDiscovery
from meshlib.model.lb_policy import (
    ClientSideWeightedRoundRobin,
    CustomPolicy,
    LbPolicy,
    LeastRequest,
    Maglev,
    PickFirst,
    RandomSubsetting,
    RingHash,
    RoundRobin,
)
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import FaultPolicy, Route, RouteAction, RouteConfiguration, VirtualHost
from meshlib.model.secret import ClientTls
from meshlib.model.snapshot import DemandKind
from meshlib.resilience.deadline import route_timeout_s
from meshlib.routing.trace import RouteStep, RouteTrace, Verdict
from meshlib.view import ClusterState, TargetView, View
from meshlib.xds.resources import CDS, EDS, LDS, RDS

__all__ = ["ClusterExplanation", "Explanation", "PolicyExplanation", "explain"]


@dataclass(frozen=True, slots=True)
class ClusterExplanation:
    """One cluster that the request may go to.

    Attributes:
        share: 0.0-1.0 of the requests that take the route.
        policy: How an endpoint is chosen.
        limits: Circuit breakers by name.
        outlier: When endpoints are taken out, or empty.
        tls: How the peer is verified, per kind of endpoint; empty: plaintext.
        resources: Versions of the resources behind it, by `type name`.
    """

    name: str
    share: float
    status: ClusterStatus
    policy: str = ""
    limits: Mapping[str, int] | None = None
    outlier: str = ""
    tls: tuple[str, ...] = ()
    resources: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class PolicyExplanation:
    """What a route does to a request on its way.

    Attributes:
        timeout_s: Of the whole call; None: no limit.
        retry: In words, or empty.
        fault: In words, or empty.
    """

    route: str
    timeout_s: float | None
    retry: str
    fault: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Attributes:
    error: Why the request goes nowhere; empty: it goes somewhere.
    routes: The virtual host and every route with the reason for or against it; None with an error before that.
    policies: Of each route that may take it.
    resources: Versions by `type name`, of the listener and the routes.
    """

    method: str
    url: str
    authority: str
    view: int
    error: str = ""
    resources: Mapping[str, str] | None = None
    routes: RouteTrace | None = None
    policies: tuple[PolicyExplanation, ...] = ()
    clusters: tuple[ClusterExplanation, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        result = asdict(self)
        if self.routes is not None:
            for step in result["routes"]["steps"]:
                step["verdict"] = step["verdict"].value
        result["clusters"] = [asdict(cluster) for cluster in self.clusters]
        return result

    def __str__(self) -> str:
        lines = [f"{self.method} {self.url}"]
        if self.error:
            return "\n".join([*lines, f"service {self.authority}: {self.error}"])
        sources = ", ".join(f"{name} version {version}" for name, version in (self.resources or {}).items())
        lines.append(f"service {self.authority}, view {self.view}: {sources}")
        if self.routes is not None:
            lines.append(str(self.routes))
        for policy in self.policies:
            timeout = "no timeout" if policy.timeout_s is None else f"timeout {policy.timeout_s:g} s"
            facts = "; ".join(part for part in (timeout, policy.retry or "no retries", policy.fault) if part)
            lines.append(f"{policy.route}: {facts}")
        for cluster in self.clusters:
            lines += _cluster_lines(cluster)
        return "\n".join(lines)


class Source(Protocol):
    """The part of a mesh that an explanation is made of."""

    @property
    def view(self) -> View: ...

    def wait_target(self, authority: str, timeout_s: float | None = None) -> TargetView: ...

    def meet(self, target: TargetView, head: RequestHead, timeout_s: float | None = None) -> TargetView: ...


def explain(
    mesh: Source,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> Explanation:
    """Say where a request would go. Sends nothing; waits for a service that was not used before.

    Args:
        method: HTTP method.
        url: `http://service/path`, or `xds:///service/package.Service/Method` for gRPC.
        headers: Those that routes may look at.
        timeout_s: How long to wait for the service; None: the mesh's default.

    Raises:
        ConfigError: The URL is of no kind that goes through the mesh.
    """
    authority, head, shown = _request(method, url, headers)
    try:
        target = mesh.wait_target(authority, timeout_s)
        if target.has_demands:
            target = mesh.meet(target, head, timeout_s)
    except MeshError as error:
        return Explanation(head.method, shown, authority, mesh.view.number, error=str(error))
    view = mesh.view
    versions = view.snapshot.versions
    config = target.config
    resources = {f"LDS {target.name}": versions.get((LDS, target.name), "")}
    if isinstance(config.listener.routes, str):
        resources[f"RDS {config.listener.routes}"] = versions.get((RDS, config.listener.routes), "")
    trace = target.routes.trace(head)
    table = next((routes for routes in config.all_routes if routes.name == trace.routes), config.routes)
    if (RDS, table.name) in versions:
        resources[f"RDS {table.name}"] = versions[RDS, table.name]
    steps = [step for step in trace.steps if step.verdict in (Verdict.YES, Verdict.MAYBE)]
    host = next((host for host in table.virtual_hosts if host.name == trace.virtual_host), None)
    policies = []
    shares: dict[str, float] = {}
    for step in steps:
        total = sum(weight for _, weight in step.clusters)
        for name, weight in step.clusters:
            shares.setdefault(name, weight / total if total else 0.0)
        policy = _policy(step, host, table, target)
        if policy is not None:
            policies.append(policy)
    if steps and not shares:
        # The cluster that a header of this request names.
        shares = {name: 1.0 for kind, name in target.routes.demands(head) if kind is DemandKind.CLUSTER}
    return Explanation(
        head.method,
        shown,
        authority,
        view.number,
        resources=resources,
        routes=trace,
        policies=tuple(policies),
        clusters=tuple(_cluster(name, share, view) for name, share in shares.items()),
    )


def _request(method: str, url: str, headers: Mapping[str, str] | None) -> tuple[str, RequestHead, str]:
    """Return the authority to ask for, the request, and the URL without what may be a password."""
    parts = urlsplit(url)
    fields = Headers.of(headers)
    if parts.scheme == "xds":
        service, _, path = parts.path.lstrip("/").partition("/")
        name = f"xds://{parts.netloc}/{service}" if parts.netloc else service
        return name, RequestHead("POST", service, f"/{path}", fields, is_grpc=True), url
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{url!r} is neither an http:// or https:// URL nor an xds: target")
    authority = parts.netloc.rpartition("@")[2]
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    host = fields.get("host") or authority
    head = RequestHead(
        method.upper(), host, path, fields, scheme=parts.scheme,
        is_grpc=(fields.get("content-type") or "").startswith("application/grpc"),
    )  # fmt: skip
    return authority, head, f"{parts.scheme}://{authority}{path}"


def _policy(
    step: RouteStep, host: VirtualHost | None, routes: RouteConfiguration, target: TargetView
) -> PolicyExplanation | None:
    if host is None:
        return None
    route = host.routes[step.number]
    if not isinstance(route.action, RouteAction):
        return None
    retry = route.action.retry or host.retry
    label = f"route {step.number}{f' {step.name}' if step.name else ''}"
    return PolicyExplanation(
        label, route_timeout_s(route.action), _retry_words(retry), _fault_words(_fault(route, host, routes, target))
    )


def _fault(route: Route, host: VirtualHost, routes: RouteConfiguration, target: TargetView) -> FaultPolicy | None:
    listener = target.config.listener
    if not listener.has_fault_filter:
        return None
    return route.fault or host.fault or routes.fault or listener.fault


def _retry_words(retry: RetryPolicy | None) -> str:
    if retry is None or retry.num_retries == 0 or not retry.retry_on:
        return ""
    words = f"up to {retry.num_retries} retries on {','.join(sorted(retry.retry_on))}"
    return words + (f", {retry.per_try_timeout_s:g} s per try" if retry.per_try_timeout_s is not None else "")


def _fault_words(fault: FaultPolicy | None) -> str:
    if fault is None:
        return ""
    kinds = [kind for kind, part in (("delay", fault.delay), ("abort", fault.abort)) if part is not None]
    return f"injects faults: {', '.join(kinds)}" if kinds else ""


def _cluster(name: str, share: float, view: View) -> ClusterExplanation:
    found = view.clusters.get(name)
    if not isinstance(found, ClusterState):
        if found is None:
            return ClusterExplanation(name, share, ClusterStatus(name, "failed", "not in the configuration"))
        return ClusterExplanation(name, share, cluster_status(name, found))
    cluster = found.config.cluster
    versions = view.snapshot.versions
    resources = {f"CDS {name}": versions.get((CDS, name), "")}
    if isinstance(cluster.discovery, EdsDiscovery):
        service = cluster.discovery.service_name or name
        resources[f"EDS {service}"] = versions.get((EDS, service), "")
    limits = cluster.circuit_breakers
    return ClusterExplanation(
        name,
        share,
        cluster_status(name, found),
        _policy_words(cluster.lb_policy),
        {
            "max_requests": limits.max_requests,
            "max_retries": limits.max_retries,
            "max_connections": limits.max_connections,
            "max_pending_requests": limits.max_pending_requests,
        },
        _outlier_words(cluster),
        _tls_words(cluster),
        resources,
    )


def _policy_words(policy: LbPolicy) -> str:
    name = type(policy).__name__
    match policy:
        case RingHash():
            found = f"{name}, {policy.min_size} points or more by {policy.function.value}"
        case Maglev():
            found = f"{name}, {policy.table_size} slots"
        case LeastRequest():
            found = f"{name}, {'all' if policy.full_scan else policy.choice_count} looked at"
        case ClientSideWeightedRoundRobin():
            found = f"{name}, load reports {'out of band' if policy.out_of_band else 'with answers'}"
        case PickFirst(shuffle=True):
            found = f"{name}, shuffled"
        case CustomPolicy():
            found = f"{name} {policy.name}"
        case RandomSubsetting():
            found = f"{name}, {policy.size} of each {'locality' if policy.per_locality else 'priority'}"
            return f"{found}: {_policy_words(policy.child)}"
        case _:
            found = name
    if isinstance(policy, RingHash | Maglev) and policy.balance_factor is not None:
        found += f", loads bounded at {policy.balance_factor} %"
    if isinstance(policy, RoundRobin | LeastRequest | ClientSideWeightedRoundRobin) and policy.slow_start is not None:
        found += f", slow start over {policy.slow_start.window_s:g} s"
    return found


def _outlier_words(cluster: Cluster) -> str:
    rules = cluster.outlier_detection
    if rules is None:
        return ""
    return (
        f"out after {rules.consecutive_5xx} consecutive 5xx for {rules.base_ejection_time_s:g} s, "
        f"at most {rules.max_ejection_percent} %"
    )


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


def _limit(value: int) -> str:
    return "unlimited" if value >= UNLIMITED else str(value)


def _cluster_lines(cluster: ClusterExplanation) -> list[str]:
    status = cluster.status
    sources = ", ".join(f"{name} version {version}" for name, version in (cluster.resources or {}).items())
    lines = [f"cluster {cluster.name} ({100 * cluster.share:.4g} %): {status.state}{f', {sources}' if sources else ''}"]
    if status.note:
        lines.append(f"  {status.note}")
    if cluster.policy:
        limits = ", ".join(f"{name} {_limit(value)}" for name, value in (cluster.limits or {}).items())
        lines.append(f"  {cluster.policy}; {status.active} in flight; {limits}")
    if cluster.outlier:
        lines.append(f"  outlier detection: {cluster.outlier}")
    lines += [f"  {words}" for words in cluster.tls]
    for endpoint in status.endpoints:
        ejected = ", ejected" if endpoint.is_ejected else ""
        place = f" in {endpoint.locality}" if endpoint.locality else ""
        score = f", {endpoint.score}" if endpoint.score else ""
        state = f"{endpoint.health.lower()}{ejected}, {endpoint.active} in flight{score}"
        lines.append(f"  {endpoint.address}{place}: {state}")
    return lines
