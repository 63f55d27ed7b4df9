"""Builds what a route says, together with the levels above it.

Everything is built ahead of any request: header mutations, filters, limits, sessions, rewrites.
"""

from dataclasses import replace

from meshlib.model.filters import HeaderFilter
from meshlib.model.listener import ClientListener
from meshlib.model.route import (
    ClusterWeight,
    FaultPolicy,
    HeaderMutation,
    Route,
    RouteAction,
    RouteConfiguration,
    VirtualHost,
)
from meshlib.model.session import SessionPolicy
from meshlib.model.subset import MatchCriteria
from meshlib.routing.changes import Changes, Responder
from meshlib.routing.format import Facts
from meshlib.routing.hash_policy import compile_hash
from meshlib.routing.header_filters import filter_changes
from meshlib.routing.headers import order_levels, request_mutator, response_mutator
from meshlib.routing.limits import RouteLimit, RouteRules, limits_of
from meshlib.routing.local_reply import ReplyRewriter
from meshlib.routing.rewrite import compile_rewrite
from meshlib.routing.route_match import RouteMatch
from meshlib.routing.session import Session, as_session

__all__ = ["RouteBuilder"]

NO_CHANGES = HeaderFilter()


class RouteBuilder:
    """Builds the answers of one route; knows the levels above it."""

    def __init__(
        self,
        route: Route,
        host: VirtualHost,
        routes: RouteConfiguration,
        listener: ClientListener,
        met: set[str] | None = None,
    ) -> None:
        """Begin; `met` takes the commands that formats speak of."""
        self.route, self.host, self.routes, self.listener = route, host, routes, listener
        self.limits: set[RouteLimit] = set()
        self._met = set() if met is None else met

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
        listener = self.listener
        return Facts(
            self.route.name,
            cluster,
            header,
            self.route.metadata,
            self.host.metadata,
            self._met,
            listener.name,
            listener.metadata,
        )

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
        for mirror in action.mirrors:  # copies of a request have the moment of the request
            Changes(mirror.changes, is_response=False, facts=facts)
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
