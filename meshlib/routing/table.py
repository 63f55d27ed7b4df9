"""The route table: which cluster takes a request, decided in a few microseconds.

Everything is compiled when a configuration arrives; a request costs one dictionary look-up for its authority and one
function call per route until the first that matches. A route without conditions on headers or queries is decided by its
path alone, and what it answers exists already.

Source: Envoy `RouteMatcher`, `VirtualHostImpl::getRouteFromEntries`; for gRPC calls gRFC A28.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from meshlib.model.filters import ListedLimit
from meshlib.model.listener import ClientListener
from meshlib.model.outcome import LocalReply
from meshlib.model.request import RequestHead
from meshlib.model.route import NonForwarding, RouteAction, RouteConfiguration, SingleCluster, VirtualHost
from meshlib.model.snapshot import Demand, DemandKind
from meshlib.ports import Rng
from meshlib.routing.compiled import CompiledRoute, compile_route
from meshlib.routing.format import Facts
from meshlib.routing.limits import RouteLimit, limits_of
from meshlib.routing.match_tree import Finder, compile_tree
from meshlib.routing.matchers import path_of, without_parameters
from meshlib.routing.named_clusters import cluster_headers, named_clusters
from meshlib.routing.prepare import EarlyAnswer, compile_prepare
from meshlib.routing.redirect import https_redirect
from meshlib.routing.replies import no_route, no_virtual_host
from meshlib.routing.route_match import RouteMatch
from meshlib.routing.segments import SegmentIndex, first_segment, index_routes
from meshlib.routing.trace import RouteTrace, trace_routes
from meshlib.routing.unrouted import compile_unrouted
from meshlib.routing.virtual_host import DomainIndex

__all__ = ["InboundMatch", "InboundTable", "RouteMatch", "RouteTable", "RouteTrace"]

NO_CLUSTER = SingleCluster("")


@dataclass(frozen=True, slots=True)
class _Host:
    """Attributes:
    needs_random: One of the routes reads the request's random bits.
    finder: Of a virtual host with a matcher tree; None: all routes are tried in order.
    segments: Of one with many routes: which of them a path can meet.
    """

    host: VirtualHost
    routes: tuple[CompiledRoute, ...]
    needs_random: bool
    requires_tls: bool
    finder: Finder | None = None
    segments: SegmentIndex | None = None

    def routes_for(self, head: RequestHead) -> tuple[CompiledRoute, ...]:
        """Return the routes to try, in order."""
        if self.finder is None:
            return self.routes
        return tuple(self.routes[number] for number in self.finder(head) or ())

    def needs_https(self, head: RequestHead) -> bool:
        """Whether the request has to come again over TLS; gRPC knows no such answer."""
        return self.requires_tls and head.scheme != "https" and head.profile.has_manager


class RouteTable:
    """The routes of one target. Not changed after creation.

    Attributes:
        name: Of the route configuration.
        has_chance: Chance has a part in what some requests get.
        has_demands: `demands` may return something.
        needs_moment: Formats speak of the clock or of this machine: heads are to have their `moment`.
        limits: What limits the requests of any route, or of none.
        unrouted_limits: What limits those that no route takes.
        prepare: What the listener makes of a request first; None: nothing.
    """

    __slots__ = (
        "_are_clusters_lazy",
        "_exact",
        "_has_more_hosts",
        "_host_header",
        "_index",
        "_strips_parameters",
        "_unrouted",
        "has_chance",
        "has_demands",
        "limits",
        "name",
        "needs_moment",
        "prepare",
        "unrouted_limits",
    )

    def __init__(self, listener: ClientListener, routes: RouteConfiguration) -> None:
        """Compile a route configuration.

        Args:
            listener: Says whether faults are injected at all, and which by default.

        Raises:
            ValueError: A regex, template, format or substitution that is not valid; names the route.
        """
        self.name = routes.name
        hosts = []
        met: set[str] = set()
        for host in routes.virtual_hosts:
            compiled = []
            for number, route in enumerate(host.routes):
                try:
                    compiled.append(compile_route(route, host, routes, listener, met))
                except ValueError as error:
                    where = f"virtual host {host.name!r}, route {number}" + (f" {route.name!r}" if route.name else "")
                    raise ValueError(f"{routes.name}: {where}: {error}") from error
            is_random = any(route.needs_random for route in compiled)
            finder = compile_tree(host.tree) if host.has_tree else None
            segments = None if host.has_tree else index_routes(compiled)
            entry = _Host(host, tuple(compiled), is_random, host.requires_tls, finder, segments)
            hosts.append((host.domains, entry))
        self.has_chance = any(entry.needs_random for _, entry in hosts)
        facts = Facts(met=met, listener=listener.name, listener_metadata=listener.metadata)
        self.unrouted_limits = limits_of(listener.limits, (), facts)
        self.limits = frozenset(limit for _, entry in hosts for route in entry.routes for limit in route.limits).union(
            self.unrouted_limits
        )
        self._index = DomainIndex(hosts, ignore_port=routes.ignore_port_in_host)
        self.prepare = compile_prepare(listener.head_rules)
        self._unrouted = compile_unrouted(listener, facts)
        self.needs_moment = facts.needs_moment
        self._host_header = routes.host_header
        self._strips_parameters = routes.ignores_path_parameters
        # Requests whose host is found elsewhere than in their authority find nothing here, and then look further.
        self._exact = {} if routes.host_header else self._index.exact
        self._has_more_hosts = routes.has_more_hosts
        self._are_clusters_lazy = listener.on_demand_timeout_s is not None
        self.has_demands = self._has_more_hosts or any(
            self._are_clusters_lazy or cluster_headers(route.action)
            for host in routes.virtual_hosts
            for route in host.routes
            if isinstance(route.action, RouteAction)
        )

    @property
    def domains(self) -> tuple[str, ...]:
        """All domains of all virtual hosts, as configured."""
        return self._index.domains

    def match(self, head: RequestHead, rng: Rng, *, is_prepared: bool = False) -> RouteMatch | LocalReply:
        """Find the first route of the request's virtual host whose conditions all hold.

        Never raises, whatever the request is.

        Args:
            is_prepared: The head is what `prepare` made of it.

        Returns:
            Where the request goes; or the answer to it: a redirect, a direct response, no route (`NR`), or a route that
            names no cluster (`NC`). Whether the cluster exists is not decided here.
        """
        if self.prepare is not None and not is_prepared:
            prepared = self.prepare(head)
            if isinstance(prepared, EarlyAnswer):
                return self.local_reply(prepared.reply, prepared.head)
            head = prepared
        host = self._exact.get(head.authority)
        if host is None:
            host = self._host_of(head)
            if host is None:
                return self.local_reply(no_virtual_host(head, self.name), head)
        if host.requires_tls and host.needs_https(head):
            return self.local_reply(https_redirect(head), head)
        # One number per request: shares of routes, weights and mirrors all read it (as Envoy's stream id).
        stream_id = rng.getrandbits(64) if host.needs_random else 0
        path = self._path_of(head) if self._strips_parameters else path_of(head.path)
        routes = host.routes
        if host.segments is not None:
            routes = host.segments[0].get(first_segment(path), host.segments[1])
        elif host.finder is not None:
            routes = host.routes_for(head)
        for route in routes:
            if route.path(path) and (route.conditions is None or route.holds(head, stream_id)):
                fixed = route.fixed
                return fixed if fixed is not None else route.answer(head, stream_id)
        return self.local_reply(no_route(head), head)

    def local_reply(self, reply: LocalReply, head: RequestHead) -> LocalReply:
        """Return an answer that no route has made, as the caller gets it."""
        return reply if self._unrouted is None else self._unrouted(reply, head)

    def demands(self, head: RequestHead) -> tuple[Demand, ...]:
        """Return what this request needs that is only subscribed to when one does.

        Where shares of requests decide, it is what any of the routes and clusters would need.
        """
        head = self._prepared(head)
        name = self._name_of(head)
        host = None if name is None else self._index.find(name)
        if host is None:
            return ((DemandKind.VIRTUAL_HOST, name.lower()),) if name and self._has_more_hosts else ()
        actions = (replace(action, mirrors=()) if action.mirrors else action for action in self._actions(host, head))
        return self._clusters(actions, head)

    def wishes(self, head: RequestHead) -> tuple[Demand, ...]:
        """Return what copies of this request would need of the same kind; nobody waits for that."""
        head = self._prepared(head)
        host = self._host_of(head)
        if host is None:
            return ()
        actions = [replace(action, cluster=NO_CLUSTER) for action in self._actions(host, head) if action.mirrors]
        return self._clusters(actions, head)

    def _actions(self, host: _Host, head: RequestHead) -> Iterator[RouteAction]:
        """Yield what routes that may take a request do with it, as far as shares of requests leave it open."""
        path = self._path_of(head)
        for route in host.routes_for(head):
            if not route.path(path) or not all(test(head) for test in route.conditions or ()):
                continue
            if isinstance(route.route.action, RouteAction):
                yield route.route.action
            if route.fraction is None:
                return

    def _clusters(self, actions: Iterable[RouteAction], head: RequestHead) -> tuple[Demand, ...]:
        found: dict[Demand, None] = {}
        for action in actions:
            for header in cluster_headers(action):
                names = head.values(header)[:1]
                found.update(((DemandKind.CLUSTER, name), None) for name in names if name)
            if self._are_clusters_lazy:
                found.update(((DemandKind.CLUSTER, name), None) for name in named_clusters(action))
        return tuple(found)

    def _path_of(self, head: RequestHead) -> str:
        """Return what path conditions look at."""
        path = path_of(head.path)
        return without_parameters(path) if self._strips_parameters else path

    def _prepared(self, head: RequestHead) -> RequestHead:
        """Return the head as routes see it; one that is answered at once stays as it is."""
        found = head if self.prepare is None else self.prepare(head)
        return head if isinstance(found, EarlyAnswer) else found

    def _host_of(self, head: RequestHead) -> _Host | None:
        name = self._name_of(head)
        return None if name is None else self._index.find(name)

    def _name_of(self, head: RequestHead) -> str | None:
        """Return what is looked for among the domains; None: the header that stands for the authority is missing.

        gRPC has no such header: its calls are known by their authority.
        """
        if not self._host_header or not head.profile.has_manager:
            return head.authority
        values = head.values(self._host_header)
        if values:
            return values[0]
        return None if self._index.only_any is None else ""

    def trace(self, head: RequestHead) -> RouteTrace:
        """Say which virtual host and route a request meets, and why not the others; for people, not for requests."""
        head = self._prepared(head)
        name = self._name_of(head)
        found = None if name is None else self._index.explain(name)
        if found is None:
            return trace_routes(head, "", self.name, None, (), domains=self._index.domains)
        entry = found.value
        routes = () if entry.needs_https(head) else entry.routes
        trace = trace_routes(
            head,
            self._path_of(head),
            self.name,
            entry.host.name,
            routes,
            domain=found.domain,
            domain_kind=found.kind,
            chosen=None if entry.finder is None else entry.finder(head) or (),
        )
        return trace if routes else replace(trace, reason=f"{trace.reason}; it sends plain http to https")


@dataclass(frozen=True, slots=True)
class InboundMatch:
    """What the routes say of a request that came in.

    Attributes:
        reply: The answer that refuses it; None: it may come in.
        limits: Filters to pass first, in their order.
    """

    reply: LocalReply | None
    limits: tuple[RouteLimit, ...] = ()


class InboundTable:
    """The routes of one inbound port: they let requests in, or not. Not changed after creation.

    Attributes:
        limits: Filters of any route.
    """

    __slots__ = ("_table", "_unrouted", "limits")

    def __init__(self, routes: RouteConfiguration, limits: tuple[ListedLimit, ...] = ()) -> None:
        """Compile a route configuration.

        Args:
            limits: Filters of the listener.

        Raises:
            ValueError: As for `RouteTable`.
        """
        self._table = RouteTable(ClientListener(routes.name, routes, limits=limits), routes)
        self._unrouted = self._table.unrouted_limits
        self.limits = self._table.limits

    def match(self, head: RequestHead, rng: Rng) -> InboundMatch:
        """Let the request in when it matches a `non_forwarding_action`, else say what refuses it.

        Source: gRFC A36: only `non_forwarding_action` is of use in a server.
        """
        table = self._table
        entry = table._host_of(head)
        if entry is None:
            return InboundMatch(no_virtual_host(head, table.name), self._unrouted)
        if entry.needs_https(head):
            return InboundMatch(https_redirect(head), self._unrouted)
        stream_id = rng.getrandbits(64) if entry.needs_random else 0
        path = table._path_of(head)
        for route in entry.routes_for(head):
            if route.path(path) and (route.conditions is None or route.holds(head, stream_id)):
                if isinstance(route.route.action, NonForwarding):
                    return InboundMatch(None, route.passed) if route.passed else _LET_IN
                answer = route.answer(head, stream_id)
                reply = answer if isinstance(answer, LocalReply) else no_route(head)
                return InboundMatch(reply, route.passed)
        return InboundMatch(no_route(head), self._unrouted)

    def check(self, head: RequestHead, rng: Rng) -> LocalReply | None:
        """As `match`, without a word of filters."""
        return self.match(head, rng).reply


_LET_IN = InboundMatch(None)
