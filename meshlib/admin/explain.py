"""Why a request goes where it goes: from what the application wrote to the endpoints, with every decision between."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from meshlib.admin.explain_cluster import ClusterExplanation, cluster_lines, explain_cluster
from meshlib.admin.explain_policy import PolicyExplanation, explain_policies, policy_text
from meshlib.admin.explain_source import Fact, fact
from meshlib.errors import ConfigError, MeshError
from meshlib.model.outcome import LocalReply
from meshlib.model.profile import HTTP
from meshlib.model.request import Headers, Moment, RequestHead, is_grpc_type
from meshlib.model.route import (
    RouteAction,
)
from meshlib.ports import Clock
from meshlib.routing import RouteMatch
from meshlib.routing.trace import RouteTrace, Verdict
from meshlib.view import TargetView, View
from meshlib.xds.resources import LDS, RDS

__all__ = ["AnswerExplanation", "ClusterExplanation", "Explanation", "Fact", "PolicyExplanation", "explain"]


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
    policies: Of each route that may take it; of each cluster where a route's clusters differ.
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
            where = f" to {policy.cluster}" if policy.cluster else ""
            lines.append(f"{policy.route}{where}: {policy_text(policy)}")
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
            policies += explain_policies(step, route, action, host, target, head)
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
