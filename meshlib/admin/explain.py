"""Why a request goes where it goes: from what the application wrote to the endpoints, with every decision between."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from meshlib.admin.explain_cluster import ClusterExplanation, cluster_lines, explain_cluster
from meshlib.admin.explain_source import Fact, fact
from meshlib.call.limits import asked_limits, has_control_headers
from meshlib.call.repeat import IDEMPOTENT
from meshlib.errors import ConfigError, MeshError
from meshlib.model.cluster import Cluster
from meshlib.model.outcome import LocalReply
from meshlib.model.profile import HTTP
from meshlib.model.request import Headers, Moment, RequestHead, is_grpc_type
from meshlib.model.retry import HedgePolicy, RetryPolicy
from meshlib.model.route import ClusterHeader, FaultPolicy, Route, RouteAction, RouteConfiguration, VirtualHost
from meshlib.ports import Clock
from meshlib.routing import RouteMatch
from meshlib.routing.trace import RouteStep, RouteTrace, Verdict
from meshlib.view import ClusterState, TargetView, View
from meshlib.xds.resources import LDS, RDS

__all__ = ["AnswerExplanation", "ClusterExplanation", "Explanation", "Fact", "PolicyExplanation", "explain"]


@dataclass(frozen=True, slots=True)
class PolicyExplanation:
    """What a route does to a request on its way. Seconds; None: no limit.

    Attributes:
        timeout_s: From the first attempt on, retries included.
        per_try_timeout_s: Of one attempt, until its response headers.
        stream_s: Of the whole exchange, from the call's beginning on.
        idle_s: How long nothing may happen.
        retry: In words, or empty.
        retries: How often an attempt may be repeated.
        retry_on: For which reasons, sorted.
        repeats: Which failures of this very request are repeated: `all`, or `unprocessed` (what may have been processed
            is not sent twice, because the request does not say that this does no harm).
        hedge: In words, or empty.
        fault: In words, or empty.
        mirrors: Clusters that get a copy, with the share of requests, 0.0-1.0.
        is_high_priority: The limits of high priority hold.
    """

    route: str
    timeout_s: float | None
    retry: str
    fault: str
    per_try_timeout_s: float | None = None
    stream_s: float | None = None
    idle_s: float | None = None
    retries: int = 0
    retry_on: tuple[str, ...] = ()
    repeats: str = "all"
    hedge: str = ""
    mirrors: tuple[tuple[str, float], ...] = ()
    is_high_priority: bool = False


@dataclass(frozen=True, slots=True)
class AnswerExplanation:
    """An answer of the mesh itself, which reaches no endpoint."""

    status: int
    flag: str
    details: str
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """Attributes:
    error: Why the request goes nowhere; empty: it goes somewhere.
    routes: The virtual host and every route with the reason for or against it; None with an error before that.
    policies: Of each route that may take it.
    resources: Versions by `type name`, of the listener and the routes.
    facts: The same, then virtual host and routes, with where they were written.
    sends: The request line as it goes out: method and URL after all rewrites, and which headers the route changes.
    answer: What the mesh answers by itself; None: the request goes to a cluster.
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
    facts: tuple[Fact, ...] = ()
    sends: str = ""
    answer: AnswerExplanation | None = None

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
        resources = ", ".join(str(one) for one in self.facts if one.version or one.type in ("LDS", "RDS"))
        lines.append(f"service {self.authority}, view {self.view}: {resources}")
        if self.routes is not None:
            lines.append(str(self.routes))
        lines += [f"  {one}" for one in self.facts if one.config or one.source]
        if self.answer is not None:
            headers = "".join(f", {name}: {value}" for name, value in self.answer.headers)
            lines.append(
                f"answered by the mesh: {self.answer.status} {self.answer.flag or self.answer.details}{headers}"
            )
        if self.sends:
            lines.append(f"goes out as {self.sends}")
        for policy in self.policies:
            lines.append(f"{policy.route}: {_policy_text(policy)}")
        for cluster in self.clusters:
            lines += cluster_lines(cluster)
        return "\n".join(lines)


class Source(Protocol):
    """The part of a mesh that an explanation is made of."""

    @property
    def view(self) -> View: ...

    @property
    def clock(self) -> Clock: ...

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
    # Of scoped routes, those of the request's scope.
    table = next((routes for routes in config.all_routes if routes.name == trace.routes), config.routes)
    if (RDS, table.name) in versions:
        resources[f"RDS {table.name}"] = versions[RDS, table.name]
    facts = [fact(label.partition(" ")[0], label.partition(" ")[2], version) for label, version in resources.items()]
    steps = [step for step in trace.steps if step.verdict in (Verdict.YES, Verdict.MAYBE)]
    host = next((host for host in table.virtual_hosts if host.name == trace.virtual_host), None)
    if host is not None:
        facts.append(fact("virtual host", host.name, metadata=host.metadata))
    policies = []
    shares: dict[str, tuple[float, bool]] = {}
    for step in steps:
        route = None if host is None else host.routes[step.number]
        action = None if route is None else route.action
        is_high = isinstance(action, RouteAction) and action.high_priority
        total = sum(weight for _, weight in step.clusters)
        for name, weight in step.clusters:
            shares.setdefault(name, (weight / total if total else 0.0, is_high))
        if host is None or route is None:
            continue
        facts.append(fact("route", step.name or str(step.number), metadata=route.metadata))
        if isinstance(action, RouteAction):
            policies.append(_policy(step, route, action, host, target, head))
    now = mesh.clock()
    if target.routes.needs_moment:
        head = head.but(moment=Moment(target.hostname, now + target.wall_offset_s, None, target.metadata_of))
    prepare = target.routes.prepare
    prepared = head if prepare is None else prepare(head)
    if isinstance(prepared, RequestHead):
        head = prepared
        found = target.routes.match(head, _NoChance(), is_prepared=True)
    else:
        found = target.routes.local_reply(prepared.reply, prepared.head)
    out = found.rewrite(found.filtered(head)) if isinstance(found, RouteMatch) else head
    if isinstance(found, RouteMatch) and not shares and found.cluster:
        shares[found.cluster] = (1.0, found.action.high_priority)  # a header of the request names it
    return Explanation(
        head.method,
        shown,
        authority,
        view.number,
        resources=resources,
        routes=trace,
        policies=tuple(policies),
        clusters=tuple(
            explain_cluster(name, share, view, now=now, is_high=is_high) for name, (share, is_high) in shares.items()
        ),
        facts=tuple(facts),
        sends=_sent_words(head, out) if isinstance(found, RouteMatch) else "",
        answer=AnswerExplanation(found.status, found.flag, found.details, found.headers)
        if isinstance(found, LocalReply)
        else None,
    )


class _NoChance:
    """Takes the place of chance: where shares of requests decide, the first that has one is shown."""

    def getrandbits(self, bits: int, /) -> int:
        return 0

    def random(self) -> float:
        return 0.0

    def randrange(self, stop: int, /) -> int:
        return 0


def _sent_words(head: RequestHead, out: RequestHead) -> str:
    before, after = dict(head.headers.items), dict(out.headers.items)
    names = [f"+{name}" for name in after if name not in before] + [f"-{name}" for name in before if name not in after]
    names += [f"~{name}" for name, value in after.items() if name in before and before[name] != value]
    changed = f" ({', '.join(sorted(names))})" if names else ""
    return f"{out.method} {out.scheme}://{out.authority}{out.path}{changed}"


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
        is_grpc=is_grpc_type(fields.get("content-type") or ""), profile=HTTP,
    )  # fmt: skip
    return authority, head, f"{parts.scheme}://{authority}{path}"


def _policy(
    step: RouteStep, route: Route, action: RouteAction, host: VirtualHost, target: TargetView, head: RequestHead
) -> PolicyExplanation:
    # What a cluster says itself takes the place of what routes say.
    owners = _clusters_of(step, action, target, head)
    above = action.retry if action.retry is not None else host.retry
    own = next((owner.retry for owner in owners if owner.retry is not None), None)
    mirrors = next((owner.mirrors for owner in owners if owner.mirrors), action.mirrors)
    plan = target.plan(action, above, own)
    retry = plan.retry
    timeout_s, per_try_s, stream_s = plan.grpc if head.profile.grpc_times else plan.http
    if has_control_headers(head.headers):
        asked = asked_limits(head, plan, target.max_stream_duration_s)
        timeout_s, per_try_s, stream_s = asked.timeout_s, asked.per_try_s, asked.stream_s
    rules = plan.rules.for_request(head)
    retries = rules.num_retries if rules.on else 0
    hedge = action.hedge if action.hedge is not None else host.hedge
    return PolicyExplanation(
        f"route {step.number}{f' {step.name}' if step.name else ''}",
        timeout_s,
        _retry_words(retry, plan.per_try_s),
        _fault_words(_fault(route, host, target.config.routes, target)),
        per_try_timeout_s=per_try_s,
        stream_s=stream_s,
        idle_s=plan.idle_s,
        retries=retries,
        retry_on=() if retry is None else tuple(sorted(retry.retry_on)),
        repeats="all" if _may_repeat(head, route) else "unprocessed",
        hedge=_hedge_words(hedge),
        mirrors=tuple(
            (mirror.cluster or f"(header {mirror.cluster_header})", mirror.share.numerator / mirror.share.denominator)
            for mirror in mirrors
        ),
        is_high_priority=action.high_priority,
    )


def _clusters_of(step: RouteStep, action: RouteAction, target: TargetView, head: RequestHead) -> list[Cluster]:
    """Return what a route's clusters say, as far as they are there; one of them may be named by the request."""
    names = [name for name, _ in step.clusters]
    if isinstance(action.cluster, ClusterHeader):
        names += head.values(action.cluster.header.lower())[:1]
    states = map(target.clusters.get, names)
    return [state.config.cluster for state in states if isinstance(state, ClusterState)]


def _may_repeat(head: RequestHead, route: Route) -> bool:
    """Whether what may have been processed can be sent again; see `meshlib.call.repeat`."""
    if head.profile.grpc_retries or head.method in IDEMPOTENT or "idempotency-key" in head.headers:
        return True
    return route.metadata.get("meshlib", {}).get("retry_non_idempotent") is True


def _policy_text(policy: PolicyExplanation) -> str:
    facts = ["no timeout" if policy.timeout_s is None else f"timeout {policy.timeout_s:g} s"]
    for value, words in ((policy.per_try_timeout_s, "per try"), (policy.stream_s, "in all"), (policy.idle_s, "idle")):
        if value is not None:
            facts.append(f"{value:g} s {words}")
    facts.append(policy.retry or "no retries")
    if policy.retries and policy.repeats != "all":
        facts.append("what may have been processed is not repeated")
    facts += [policy.hedge, policy.fault]
    facts += [f"{100 * share:g} % copied to {name}" for name, share in policy.mirrors]
    if policy.is_high_priority:
        facts.append("high priority")
    return "; ".join(part for part in facts if part)


def _fault(route: Route, host: VirtualHost, routes: RouteConfiguration, target: TargetView) -> FaultPolicy | None:
    listener = target.config.listener
    if not listener.has_fault_filter:
        return None
    return route.fault or host.fault or routes.fault or listener.fault


def _retry_words(retry: RetryPolicy | None, per_try_s: float | None) -> str:
    if retry is None or retry.num_retries == 0 or not retry.retry_on:
        return ""
    words = f"up to {retry.num_retries} retries on {','.join(sorted(retry.retry_on))}"
    if per_try_s is not None:
        words += f", {per_try_s:g} s per try"
    most_s = retry.base_interval_s * 10 if retry.max_interval_s is None else retry.max_interval_s
    return words + f", waits of up to {retry.base_interval_s:g} s, doubling to {most_s:g} s"


def _hedge_words(hedge: HedgePolicy | None) -> str:
    return "a second attempt beside one that is slow" if hedge is not None and hedge.on_per_try_timeout else ""


def _fault_words(fault: FaultPolicy | None) -> str:
    if fault is None:
        return ""
    kinds = [kind for kind, part in (("delay", fault.delay), ("abort", fault.abort)) if part is not None]
    return f"injects faults: {', '.join(kinds)}" if kinds else ""
