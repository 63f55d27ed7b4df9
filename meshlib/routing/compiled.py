"""One route, compiled: its conditions as functions, and what it answers, built ahead of any request."""

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import accumulate
from typing import assert_never

from meshlib.matching import HeadTest, compile_header, describe_header, parse_int
from meshlib.model.endpoint import NO_METADATA, Endpoint
from meshlib.model.filters import HeaderFilter
from meshlib.model.listener import ClientListener
from meshlib.model.matcher import Fraction, PathKind
from meshlib.model.outcome import LocalReply
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import HedgePolicy, RetryPolicy
from meshlib.model.route import (
    ClusterHeader,
    ClusterWeight,
    DirectResponse,
    FaultPolicy,
    HeaderMutation,
    MirrorPolicy,
    NonForwarding,
    Redirect,
    Route,
    RouteAction,
    RouteConfiguration,
    SingleCluster,
    VirtualHost,
    WeightedClusters,
)
from meshlib.model.session import SessionPolicy
from meshlib.model.subset import MatchCriteria
from meshlib.routing.changes import Changes, Responder
from meshlib.routing.format import Facts, Scene
from meshlib.routing.hash_policy import CookieMaker, Hash, compile_hash
from meshlib.routing.header_filters import filter_changes
from meshlib.routing.headers import order_levels, request_mutator, response_mutator
from meshlib.routing.limits import RouteLimit, RouteRules, limits_of
from meshlib.routing.local_reply import ReplyRewriter
from meshlib.routing.matchers import (
    compile_path,
    compile_query,
    describe_path,
    describe_query,
    in_fraction,
    is_grpc_request,
    path_of,
)
from meshlib.routing.mirror import pick_mirrors
from meshlib.routing.redirect import compile_direct_response, compile_redirect
from meshlib.routing.replies import cluster_not_found, unusable_action
from meshlib.routing.rewrite import compile_rewrite, rewrite_host
from meshlib.routing.session import Session, as_session

__all__ = [
    "CompiledRoute",
    "Condition",
    "FaultedReply",
    "RouteMatch",
    "cluster_headers",
    "compile_route",
    "named_clusters",
]

Answer = Callable[[RequestHead, int], "RouteMatch | LocalReply"]
UINT64 = 2**64 - 1
NO_CHANGES = HeaderFilter()


@dataclass(frozen=True, slots=True, eq=False)
class RouteMatch:
    """Where a request goes and under which policies. Made per update, shared by the requests that match alike.

    Attributes:
        retry: The route's policy, else the virtual host's; so with `hedge`.
        fault: The most specific one; None when nothing is to be injected or the listener has no fault filter.
        limits: Filters that limit what goes out, in their order.
        body_limit: Bytes of a request's body up to which it is repeated; None: no limit.
        metadata: filter_metadata of the route.
        mirrors: Which clusters get a copy of this request.
        is_fault_first: Faults see the request as it is before filters change its headers.
        makes_cookies: Working out the hash may make a cookie for the caller.
        criteria: Which endpoints, in clusters with subsets; None: the route does not say.
        session: Reads and writes the marks of stateful sessions; None: there are none.
        siblings: By cluster: the other matches of the same weighted clusters.
    """

    cluster: str
    virtual_host: str
    route_name: str
    action: RouteAction
    retry: RetryPolicy | None = None
    hedge: HedgePolicy | None = None
    fault: FaultPolicy | None = None
    limits: tuple[RouteLimit, ...] = ()
    metadata: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: NO_METADATA, repr=False)
    include_attempt_count: bool = False
    include_attempt_count_in_response: bool = False
    include_timeout_retry: bool = False
    body_limit: int | None = None
    mirrors: tuple[MirrorPolicy, ...] = ()
    makes_cookies: bool = False
    criteria: MatchCriteria | None = None
    session: Session | None = None
    siblings: Mapping[str, "RouteMatch"] = field(default_factory=dict, repr=False)
    _levels: tuple[HeaderMutation, ...] = field(default=(), repr=False)
    _rewrite: Callable[[RequestHead], RequestHead] | None = field(default=None, repr=False)
    _response: Responder | None = field(default=None, repr=False)
    _unnamed: Responder | None = field(default=None, repr=False)
    _filter: Changes | None = field(default=None, repr=False)
    is_fault_first: bool = False
    _hash: Hash | None = field(default=None, repr=False)

    def filtered(self, head: RequestHead) -> RequestHead:
        """Return the head after the filters that change headers; `head` itself if there are none.

        They come before all that reads headers except the routes: times, retries, mutations of the route.
        """
        return head if self._filter is None else self._filter.apply_to(head)

    def rewrite(self, head: RequestHead) -> RequestHead:
        """Return the head as it goes out: header mutations, host and path rewrite. `head` itself if nothing changes."""
        return head if self._rewrite is None else self._rewrite(head)

    def rewrite_for(self, head: RequestHead, endpoint: Endpoint) -> RequestHead:
        """Apply `auto_host_rewrite`: the endpoint's hostname, if it has one, becomes the host.

        Args:
            head: What `rewrite` returned.
        """
        if not (self.action.auto_host_rewrite and endpoint.hostname):
            return head
        return rewrite_host(head, endpoint.hostname, append_forwarded=self.action.append_x_forwarded_host)

    @property
    def changes_responses(self) -> bool:
        """The route changes response headers, so that it is worth working out what the values may speak of."""
        return self._response is not None and bool(self._response)

    @property
    def changes_replies(self) -> bool:
        """As `changes_responses`, of answers of the mesh itself."""
        return self._response is not None

    def response_headers(
        self, headers: Headers, head: RequestHead | None = None, about: Scene | None = None
    ) -> Headers:
        """Return response headers after the route's mutations; they concern local replies as well.

        Args:
            head: The request as sent, which `%REQ(...)%` in a value reads; None: it renders as nothing.
            about: What else values may speak of.
        """
        return headers if self._response is None else self._response.apply(headers, head, about)

    def local_reply(
        self, reply: LocalReply, head: RequestHead, about: Scene | None = None, *, has_cluster: bool = True
    ) -> LocalReply:
        """Return a local reply with the route's response header mutations; Envoy applies them to those too.

        Args:
            head: The request as sent, or as it would have been.
            about: What else values may speak of; None: what the reply says.
            has_cluster: The route's cluster exists; else it has no name in `%UPSTREAM_CLUSTER%` either.
        """
        responder = self._response if has_cluster else self._unnamed or self._response
        return reply if responder is None else responder.local(reply, head, about)

    def cluster_not_found(self, head: RequestHead) -> LocalReply:
        """Return the answer for the case that the cluster does not exist: flag `NC`."""
        reply = cluster_not_found(head, self.cluster, self.action.cluster_not_found_status)
        return reply if self._response is None else self.local_reply(reply, head, has_cluster=False)

    def hash(self, head: RequestHead, maker: CookieMaker | None = None) -> int | None:
        """Return the request's hash by the route's hash policies, or None.

        Args:
            head: What `rewrite` returned: a header that the route adds can steer the hash.
            maker: Makes cookies that the caller lacks; None: none are made.
        """
        return None if self._hash is None else self._hash(head, maker)


@dataclass(frozen=True, slots=True)
class FaultedReply(LocalReply):
    """The answer of a route that answers by itself, which the fault filter comes before. The route's header mutations
    do not concern the fault (as seen in Envoy 1.40), filters do.

    Attributes:
        fault: To be injected, or not.
        responder: What becomes of the answer of a fault.
    """

    fault: FaultPolicy | None = None
    responder: Responder | None = field(default=None, compare=False, repr=False)

    def aborted(self, reply: LocalReply, head: RequestHead) -> LocalReply:
        """Return the answer of a fault as the caller gets it."""
        return reply if self.responder is None else self.responder.local(reply, head)


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


class _Builder:
    """Builds the answers of one route; knows the levels above it."""

    def __init__(self, route: Route, host: VirtualHost, routes: RouteConfiguration, listener: ClientListener) -> None:
        self.route, self.host, self.routes, self.listener = route, host, routes, listener
        self.limits: set[RouteLimit] = set()

    def _levels(self, weight: HeaderMutation | None) -> tuple[HeaderMutation, ...]:
        return order_levels(
            weight,
            self.route.mutation,
            self.host.mutation,
            self.routes.mutation,
            most_specific_wins=self.routes.most_specific_mutations_win,
        )

    def fault(self, weight: FaultPolicy | None) -> FaultPolicy | None:
        """Return the most specific fault; one that injects nothing switches the more general ones off."""
        if not self.listener.has_fault_filter:
            return None
        levels = (weight, self.route.fault, self.host.fault, self.routes.fault, self.listener.fault)
        found = next((fault for fault in levels if fault is not None), None)
        return found or None

    def session(self, weight: SessionPolicy | None) -> Session | None:
        """Return what the most specific level says of stateful sessions."""
        if not self.listener.has_session_filter:
            return None
        levels = (weight, self.route.session, self.host.session, self.routes.session, self.listener.session)
        return as_session(next((policy for policy in levels if policy is not None), None))

    def facts(self, cluster: str | None = "", header: str = "") -> Facts:
        """Return what formats may speak of.

        Args:
            cluster: None: `header` names it.
        """
        return Facts(self.route.name, cluster, header, self.route.metadata)

    def limited(self, weight: ClusterWeight | None, facts: Facts) -> tuple[RouteLimit, ...]:
        """Return the limiting filters that hold."""
        if not self.listener.limits:
            return ()
        route, host, routes = self.route, self.host, self.routes
        # A route without a name is known by its conditions: its place may change with any update.
        host_place = f"{routes.name}/{host.name}"
        place = f"{host_place}/{route.name or route.match}"
        levels = [(place, route.limits), (host_place, host.limits), (routes.name, routes.limits)]
        if weight is not None:
            levels.insert(0, (f"{place}/{weight.name}", weight.limits))
        action = route.action
        rules = RouteRules()
        if isinstance(action, RouteAction):
            rules = RouteRules(action.limit_rules, host.limit_rules, action.includes_host_limits)
        found = limits_of(self.listener.limits, levels, facts, rules)
        self.limits.update(found)
        return found

    def filters(self, weight: ClusterWeight | None) -> HeaderFilter:
        """Return what header mutation filters do at the route."""
        if not self.listener.header_filters:
            return NO_CHANGES
        levels = [self.route.header_filters, self.host.header_filters, self.routes.header_filters]
        if weight is not None:
            levels.insert(0, weight.header_filters)
        return filter_changes(self.listener.header_filters, levels)

    def response(
        self, facts: Facts, mutation: HeaderMutation | None = None, weight: ClusterWeight | None = None
    ) -> Responder:
        return self._responder(self._levels(mutation), facts, weight)

    def unmutated(self) -> Responder:
        """Return what becomes of answers that the mutations of the route do not concern."""
        return self._responder((), self.facts(), None)

    def _responder(self, levels: tuple[HeaderMutation, ...], facts: Facts, weight: ClusterWeight | None) -> Responder:
        rules = self.listener.reply_rules
        return Responder(
            response_mutator(levels, facts),
            Changes(self.filters(weight).response, is_response=True, facts=facts),
            None if rules is None else ReplyRewriter(rules, facts),
        )

    def forward(
        self, action: RouteAction, cluster: str, facts: Facts, weight: ClusterWeight | None = None
    ) -> RouteMatch:
        mutation = None if weight is None else weight.mutation
        request = request_mutator(self._levels(None), facts)
        first = None if mutation is None else request_mutator([mutation], facts)
        weight_host = "" if weight is None else weight.host_rewrite
        rewrite = compile_rewrite(action, self.route.match.path, request, first, weight_host, facts)
        response = self.response(facts, mutation, weight)
        first_changes = Changes(self.filters(weight).request, is_response=False, facts=facts)
        return RouteMatch(
            cluster=cluster,
            virtual_host=self.host.name,
            route_name=self.route.name,
            action=action,
            retry=action.retry if action.retry is not None else self.host.retry,
            hedge=action.hedge if action.hedge is not None else self.host.hedge,
            fault=self.fault(None if weight is None else weight.fault),
            limits=self.limited(weight, facts),
            metadata=self.route.metadata,
            include_attempt_count=self.host.include_attempt_count,
            include_attempt_count_in_response=self.host.include_attempt_count_in_response,
            include_timeout_retry=self.host.include_timeout_retry,
            body_limit=self.route.body_limit,
            makes_cookies=any(policy.made is not None for policy in action.hash_policies),
            session=self.session(None if weight is None else weight.session),
            criteria=_criteria(action.metadata_match, None if weight is None else weight.metadata_match),
            _levels=self._levels(mutation),
            _rewrite=rewrite,
            _response=response if response.changes_replies else None,
            _unnamed=self.response(replace(facts, cluster=""), mutation, weight),
            _filter=first_changes or None,
            is_fault_first=any(item.is_after_fault for item in self.listener.header_filters),
            _hash=compile_hash(action.hash_policies) if action.hash_policies else None,
        )


def _criteria(route: MatchCriteria | None, weight: MatchCriteria | None) -> MatchCriteria | None:
    if route is None or weight is None:
        return route if weight is None else weight
    return route.merged(weight)


def _with_fault(fault: FaultPolicy, responder: Responder, answer: Answer) -> Answer:
    """Let a fault come before the answer; a gRPC call never gets as far as a filter there (A28)."""

    def faulted(head: RequestHead, stream_id: int) -> RouteMatch | LocalReply:
        found = answer(head, stream_id)
        if head.is_grpc or not isinstance(found, LocalReply):
            return found
        known = {item.name: getattr(found, item.name) for item in fields(LocalReply)}
        return FaultedReply(**known, fault=fault, responder=responder)

    return faulted


def _with_mirrors(action: RouteAction, answer: Answer) -> Answer:
    """Let each request's random bits decide which mirrors it gets."""

    def mirrored(head: RequestHead, stream_id: int) -> RouteMatch | LocalReply:
        found = answer(head, stream_id)
        mirrors = pick_mirrors(action.mirrors, stream_id, head)
        return replace(found, mirrors=mirrors) if mirrors and isinstance(found, RouteMatch) else found

    return mirrored


def _by_header(build: _Builder, action: RouteAction, header: str, weight: ClusterWeight | None = None) -> Answer:
    """The cluster is named by a request header; without one the route still counts as matched."""
    template = build.forward(action, "", build.facts(None, header), weight)

    def answer(head: RequestHead, stream_id: int) -> RouteMatch | LocalReply:
        values = head.values(header)
        # Without a name there is no such cluster, which is found out when all that comes before has been done.
        return replace(template, cluster=values[0]) if values and values[0] else template

    return answer


def _weighted_entry(
    build: _Builder, action: RouteAction, entry: ClusterWeight, siblings: dict[str, RouteMatch]
) -> RouteMatch | Answer:
    if entry.cluster_header:
        return _by_header(build, action, entry.cluster_header, entry)
    match = build.forward(action, entry.name, build.facts(entry.name), entry)
    if match.session is not None:
        match = replace(match, siblings=siblings)
    siblings.setdefault(entry.name, match)
    return match


def _weighted(build: _Builder, action: RouteAction, weighted: WeightedClusters) -> Answer:
    """Choose by a number modulo the sum of the weights: a header's, the request's hash, or the random bits."""
    entries = [entry for entry in weighted.clusters if entry.weight > 0]
    if not entries:
        raise ValueError("the weights of weighted_clusters add up to 0")
    siblings: dict[str, RouteMatch] = {}
    answers = [_weighted_entry(build, action, entry, siblings) for entry in entries]
    ends = list(accumulate(entry.weight for entry in entries))
    total = ends[-1]
    header = weighted.header_name.lower()
    hash_ = compile_hash(action.hash_policies) if weighted.use_hash_policy else None

    def by_chance(head: RequestHead, stream_id: int) -> RouteMatch | LocalReply:
        chosen = answers[bisect_right(ends, stream_id % total)]
        return chosen if isinstance(chosen, RouteMatch) else chosen(head, stream_id)

    def by_request(head: RequestHead, stream_id: int) -> RouteMatch | LocalReply:
        number: int | None = None
        if header:
            values = head.values(header)
            if len(values) == 1:
                number = parse_int(values[0], low=0, high=UINT64)
        if number is None and hash_ is not None:
            number = hash_(head, None)
        return by_chance(head, stream_id if number is None else number)

    return by_request if header or hash_ is not None else by_chance


def _local(build: _Builder, action: Redirect | DirectResponse | NonForwarding) -> Answer:
    """The route answers by itself; its answer can speak of a request as filters have left it."""
    answer = _answering(build, action)
    changes = Changes(build.filters(None).request, is_response=False, facts=build.facts())
    if not changes:
        return answer

    def filtered(head: RequestHead, stream_id: int) -> RouteMatch | LocalReply:
        return answer(head if head.is_grpc else changes.apply_to(head), stream_id)

    return filtered


def _answering(build: _Builder, action: Redirect | DirectResponse | NonForwarding) -> Answer:
    mutator = build.response(build.facts())
    match action:
        case Redirect():
            redirect = compile_redirect(action, build.route.match.path, mutator)
            return lambda head, stream_id: redirect(head)
        case DirectResponse():
            direct = compile_direct_response(action, mutator)
            return lambda head, stream_id: direct(head)
        case NonForwarding():

            def nowhere(head: RequestHead, stream_id: int) -> LocalReply:
                reply = unusable_action(head, flag="NC", status=503, details="cluster_not_found")
                return mutator.local(reply, head)

            return nowhere
        case _:
            assert_never(action)


def cluster_headers(action: RouteAction) -> tuple[str, ...]:
    """Return the request headers that name clusters to which a route can lead, mirrors included; in lower case."""
    found = [mirror.cluster_header for mirror in action.mirrors]
    match action.cluster:
        case ClusterHeader(header=header):
            found.append(header)
        case WeightedClusters(clusters=clusters):
            found += [entry.cluster_header for entry in clusters if entry.weight > 0]
        case SingleCluster():
            pass
    return tuple(name.lower() for name in found if name)


def named_clusters(action: RouteAction) -> tuple[str, ...]:
    """Return the clusters that a route itself names, mirrors last."""
    found: list[str] = []
    match action.cluster:
        case SingleCluster(name=name):
            found.append(name)
        case WeightedClusters(clusters=clusters):
            found += [entry.name for entry in clusters if entry.weight > 0]
        case ClusterHeader():
            pass
    found += [mirror.cluster for mirror in action.mirrors]
    return tuple(name for name in found if name)


def _label(entry: ClusterWeight) -> str:
    return entry.name or f"(header {entry.cluster_header})"


def compile_route(
    route: Route, host: VirtualHost, routes: RouteConfiguration, listener: ClientListener
) -> CompiledRoute:
    """Compile a route together with what the levels above it add.

    Raises:
        ValueError: A regex, template, format or substitution that is not valid; the decoder should have refused it.
    """
    build = _Builder(route, host, routes, listener)
    action = route.action
    fixed: RouteMatch | None = None
    clusters: tuple[tuple[str, int], ...] = ()
    is_random = False
    passed: tuple[RouteLimit, ...] = ()
    answer: Answer
    if not isinstance(action, RouteAction):
        answer = _local(build, action)
        passed = build.limited(None, build.facts())
        if (fault := build.fault(None)) is not None:
            answer = _with_fault(fault, build.unmutated(), answer)
    else:
        target = action.cluster
        match target:
            case SingleCluster(name=name):
                only = build.forward(action, name, build.facts(name))
                fixed = None if action.mirrors else only
                answer = lambda head, stream_id: only  # noqa: E731 - the others are functions made elsewhere
                clusters = ((name, 1),)
            case ClusterHeader(header=header):
                answer = _by_header(build, action, header.lower())
            case WeightedClusters():
                answer = _weighted(build, action, target)
                clusters = tuple((_label(entry), entry.weight) for entry in target.clusters if entry.weight > 0)
                is_random = True
            case _:
                assert_never(target)
        if action.mirrors:
            answer = _with_mirrors(action, answer)
            is_random = True
    conditions = _conditions(route, strips_parameters=routes.ignores_path_parameters)
    limits = frozenset(build.limits)
    return CompiledRoute(route, conditions, answer, fixed, clusters, is_random=is_random, limits=limits, passed=passed)
