"""One route, compiled: its conditions as functions, and what it answers, built ahead of any request."""

from dataclasses import dataclass
from typing import assert_never

from meshlib.matching import HeadTest, compile_header, describe_header
from meshlib.model.listener import ClientListener
from meshlib.model.matcher import Fraction, PathKind
from meshlib.model.request import RequestHead
from meshlib.model.route import (
    ClusterHeader,
    ClusterWeight,
    Route,
    RouteAction,
    RouteConfiguration,
    SingleCluster,
    VirtualHost,
    WeightedClusters,
)
from meshlib.routing.answers import Answer, header_answer, local_answer, weighted_answer, with_filters, with_mirrors
from meshlib.routing.limits import RouteLimit
from meshlib.routing.matchers import (
    compile_path,
    compile_query,
    describe_path,
    describe_query,
    in_fraction,
    is_grpc_request,
    path_of,
)
from meshlib.routing.route_builder import RouteBuilder
from meshlib.routing.route_match import RouteMatch

__all__ = ["CompiledRoute", "Condition", "compile_route"]


@dataclass(frozen=True, slots=True)
class Condition:
    """Attributes:
    text: What it asks for.
    header: Whose value says why it fails; empty: none.
    is_path: It is the route's condition on the path.
    """

    test: HeadTest
    text: str
    header: str = ""
    is_path: bool = False


class CompiledRoute:
    """A route with its conditions. Not changed after creation.

    Attributes:
        path: The path condition, on the path without query.
        conditions: The others; None: there are none.
        fixed: The answer, when it is the same for every request; else None.
        answer: Makes the answer of one request from its 64 random bits.
        needs_random: A decision of this route reads the random bits.
        clusters: Name and weight of every cluster that the route can lead to; a header's cluster is not among them.
        limits: What limits the requests that take the route.
        passed: The filters that a request passes which the route answers by itself, or lets in.
    """

    __slots__ = (
        "answer",
        "clusters",
        "conditions",
        "details",
        "fixed",
        "fraction",
        "limits",
        "needs_random",
        "passed",
        "path",
        "route",
    )

    def __init__(
        self,
        route: Route,
        details: tuple[Condition, ...],
        answer: Answer,
        fixed: RouteMatch | None,
        clusters: tuple[tuple[str, int], ...],
        *,
        is_random: bool,
        limits: frozenset[RouteLimit] = frozenset(),
        passed: tuple[RouteLimit, ...] = (),
    ) -> None:
        self.route = route
        self.limits = limits
        self.passed = passed
        # A condition in `details` stands for a path that has to be looked at with its parameters.
        self.path = always_on if details and details[0].is_path else compile_path(route.match.path)
        self.details = details
        self.fraction: Fraction | None = route.match.fraction
        has_conditions = bool(details) or self.fraction is not None
        self.conditions: tuple[HeadTest, ...] | None = (
            tuple(condition.test for condition in details) if has_conditions else None
        )
        self.answer = answer
        self.fixed = fixed
        self.clusters = clusters
        self.needs_random = is_random or self.fraction is not None

    def holds(self, head: RequestHead, stream_id: int) -> bool:
        """Whether the conditions other than the path hold."""
        for test in self.conditions or ():
            if not test(head):
                return False
        return self.fraction is None or in_fraction(self.fraction, stream_id)


def always(head: RequestHead) -> bool:
    """Hold for every request."""
    return True


def never(head: RequestHead) -> bool:
    """Hold for no request."""
    return False


def always_on(path: str) -> bool:
    """Hold for every path."""
    return True


def _conditions(route: Route, *, strips_parameters: bool) -> tuple[Condition, ...]:
    match = route.match
    found: list[Condition] = []
    if strips_parameters and match.path.kind is PathKind.TEMPLATE:
        fits = compile_path(match.path)  # Templates see the parameters all the same, as in Envoy.
        found.append(Condition(lambda head: fits(path_of(head.path)), describe_path(match.path), ":path", is_path=True))
    if match.path.kind is PathKind.CONNECT:
        found.append(Condition(lambda head: head.method == "CONNECT", describe_path(match.path)))
    for header in match.headers:
        found.append(Condition(compile_header(header), describe_header(header), header.name))
    for query in match.query:
        found.append(Condition(compile_query(query), describe_query(query)))
    if match.grpc:
        found.append(Condition(is_grpc_request, "a gRPC request", "content-type"))
    for condition in match.proxy:
        found.append(Condition(always if condition.holds else never, condition.text))
    return tuple(found)


def _label(entry: ClusterWeight) -> str:
    return entry.name or f"(header {entry.cluster_header})"


def compile_route(
    route: Route,
    host: VirtualHost,
    routes: RouteConfiguration,
    listener: ClientListener,
    met: set[str] | None = None,
) -> CompiledRoute:
    """Compile a route together with what the levels above it add.

    Args:
        met: Takes the commands that formats speak of.

    Raises:
        ValueError: A regex, template, format or substitution that is not valid; the decoder should have refused it.
    """
    build = RouteBuilder(route, host, routes, listener, met)
    action = route.action
    fixed: RouteMatch | None = None
    clusters: tuple[tuple[str, int], ...] = ()
    is_random = False
    passed: tuple[RouteLimit, ...] = ()
    answer: Answer
    if not isinstance(action, RouteAction):
        answer = local_answer(build, action)
        passed = build.limited(None, build.facts())
        fault = build.fault(None)
        if fault is not None or passed:
            answer = with_filters(fault, passed, build.unmutated(), answer)
    else:
        target = action.cluster
        match target:
            case SingleCluster(name=name):
                only = build.forward(action, name, build.facts(name))
                fixed = None if action.mirrors else only
                answer = lambda head, stream_id: only  # noqa: E731 - the others are functions made elsewhere
                clusters = ((name, 1),)
            case ClusterHeader(header=header):
                answer = header_answer(build, action, header.lower())
            case WeightedClusters():
                answer = weighted_answer(build, action, target)
                clusters = tuple((_label(entry), entry.weight) for entry in target.clusters if entry.weight > 0)
                is_random = True
            case _:
                assert_never(target)
        if action.mirrors:
            answer = with_mirrors(action, answer)
            is_random = True
    conditions = _conditions(route, strips_parameters=routes.ignores_path_parameters)
    limits = frozenset(build.limits)
    return CompiledRoute(route, conditions, answer, fixed, clusters, is_random=is_random, limits=limits, passed=passed)
