"""Why a request goes where it goes: every route with the first condition that it failed, in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from meshlib.model.request import RequestHead
from meshlib.model.route import ClusterHeader, DirectResponse, NonForwarding, Redirect, RouteAction
from meshlib.routing.compiled import CompiledRoute
from meshlib.routing.matchers import describe_path

__all__ = ["RouteStep", "RouteTrace", "Verdict", "trace_routes"]

# Their values are credentials; an explanation ends up in tickets and chats.
SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "x-api-key"})
SHOWN_DOMAINS = 20


class Verdict(Enum):
    """What became of a route."""

    NO = "no"
    MAYBE = "maybe"
    """All conditions hold; a share of requests takes it, by chance."""
    YES = "yes"
    NOT_REACHED = "not reached"


@dataclass(frozen=True, slots=True)
class RouteStep:
    """Attributes:
    number: Position in the virtual host, from 0.
    name: May be empty.
    path: What the route asks of the path.
    reason: Why not; or which other conditions hold.
    leads_to: The action in words.
    clusters: Name and weight of the clusters it can choose.
    """

    number: int
    name: str
    path: str
    verdict: Verdict
    reason: str
    leads_to: str
    clusters: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class RouteTrace:
    """Attributes:
    routes: Name of the route configuration.
    virtual_host: None: no domain fits.
    domain: The pattern that the authority matched, or empty.
    reason: Why this virtual host, or why none.
    steps: Every route, in order.
    """

    routes: str
    virtual_host: str | None
    domain: str
    reason: str
    steps: tuple[RouteStep, ...] = ()

    @property
    def chosen(self) -> RouteStep | None:
        """The route that surely takes what the shares before it leave over; None: no route does."""
        return next((step for step in self.steps if step.verdict is Verdict.YES), None)

    def __str__(self) -> str:
        lines = [f"route configuration {self.routes}: {self.reason}"]
        for step in self.steps:
            mark = {Verdict.YES: "=>", Verdict.MAYBE: "?>"}.get(step.verdict, "  ")
            name = f" {step.name}" if step.name else ""
            lines.append(f"{mark} route {step.number}{name} [{step.path}]: {step.reason}; {step.leads_to}")
        if self.virtual_host is not None and self.chosen is None:
            lines.append("no route takes the request for certain: 404 NR for what is left")
        return "\n".join(lines)


def _leads_to(route: CompiledRoute) -> str:
    action = route.route.action
    match action:
        case RouteAction(cluster=ClusterHeader(header=header)):
            return f"to the cluster that header {header} names"
        case RouteAction():
            total = sum(weight for _, weight in route.clusters)
            if len(route.clusters) == 1:
                return f"to cluster {route.clusters[0][0]}"
            shares = ", ".join(f"{name} {100 * weight / total:.4g} %" for name, weight in route.clusters)
            return f"to clusters {shares}"
        case Redirect(status=status):
            return f"redirect {status}"
        case DirectResponse(status=status):
            return f"direct response {status}"
        case NonForwarding():
            return "not forwarded"


def _seen(head: RequestHead, header: str) -> str:
    if not header:
        return ""
    values = head.values(header)
    if not values:
        return " (it is absent)"
    if header in SECRET_HEADERS:
        return " (it is there; its value is not shown)"
    return " (it is " + ", ".join(f'"{value}"' for value in values) + ")"


def _step(route: CompiledRoute, number: int, head: RequestHead, path: str, *, reached: bool) -> RouteStep:
    def step(verdict: Verdict, reason: str) -> RouteStep:
        spec = route.route
        return RouteStep(
            number, spec.name, describe_path(spec.match.path), verdict, reason, _leads_to(route), route.clusters
        )

    if not reached:
        return step(Verdict.NOT_REACHED, "not reached")
    if not route.path(path):
        return step(Verdict.NO, f'not taken: the path is "{path}"')
    for condition in route.details:
        if not condition.test(head):
            return step(Verdict.NO, f"not taken: wants {condition.text}{_seen(head, condition.header)}")
    share = route.fraction
    if share is not None and share.numerator <= 0:
        return step(Verdict.NO, f"not taken: its share is {share.numerator} of {share.denominator}")
    holds = ", ".join(condition.text for condition in route.details) or "no other condition"
    if share is not None and share.numerator < share.denominator:
        return step(Verdict.MAYBE, f"taken by {share.numerator} of {share.denominator} requests, by chance ({holds})")
    return step(Verdict.YES, f"taken ({holds})")


def _passed_by(route: CompiledRoute, number: int) -> RouteStep:
    spec = route.route
    return RouteStep(
        number,
        spec.name,
        describe_path(spec.match.path),
        Verdict.NO,
        "not taken: the matcher tree leads elsewhere",
        _leads_to(route),
        route.clusters,
    )


def trace_routes(
    head: RequestHead,
    path: str,
    name: str,
    virtual_host: str | None,
    routes: Sequence[CompiledRoute],
    *,
    domain: str = "",
    domain_kind: str = "",
    domains: Sequence[str] = (),
    chosen: Sequence[int] | None = None,
) -> RouteTrace:
    """Walk the routes as a request would, and keep the reasons.

    Args:
        path: What path conditions look at.
        virtual_host: None: no domain fits.
        domain_kind: As `DomainMatch.kind`.
        domains: What there would have been, for the case that none fits.
        chosen: Numbers of the routes that a matcher tree leads to; None: there is no tree, all are tried.
    """
    if virtual_host is None:
        known = ", ".join(domains[:SHOWN_DOMAINS]) + (", ..." if len(domains) > SHOWN_DOMAINS else "")
        reason = f'no virtual host has a domain for "{head.authority}" (domains: {known or "none"})'
        return RouteTrace(name, None, "", reason)
    how = {"exact": "exactly", "suffix": "as a suffix wildcard", "prefix": "as a prefix wildcard", "any": "as any host"}
    reason = f'virtual host {virtual_host}: its domain "{domain}" matches "{head.authority}" {how[domain_kind]}'
    steps: list[RouteStep] = []
    reached = True
    for number, route in enumerate(routes):
        if chosen is not None and number not in chosen:
            steps.append(_passed_by(route, number))
            continue
        step = _step(route, number, head, path, reached=reached)
        steps.append(step)
        reached = reached and step.verdict is not Verdict.YES
    return RouteTrace(name, virtual_host, domain, reason, tuple(steps))
