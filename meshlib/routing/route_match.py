"""What a route says of a request: where it goes and what is changed on the way, or the answer instead."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from meshlib.model.endpoint import NO_METADATA, Endpoint
from meshlib.model.outcome import LocalReply
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import HedgePolicy, RetryPolicy
from meshlib.model.route import (
    FaultPolicy,
    HeaderMutation,
    MirrorPolicy,
    RouteAction,
)
from meshlib.model.subset import MatchCriteria
from meshlib.routing.changes import Changes, Responder
from meshlib.routing.format import Scene
from meshlib.routing.hash_policy import CookieMaker, Hash
from meshlib.routing.limits import RouteLimit
from meshlib.routing.replies import cluster_not_found
from meshlib.routing.rewrite import rewrite_host
from meshlib.routing.session import Session

__all__ = ["FaultedReply", "RouteMatch"]


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
        if not self.action.auto_host_rewrite:
            return head
        if head.profile.asks_for_trust:
            name = (endpoint.logical_host or endpoint.hostname) if self.action.is_trusted else ""
            return head.but(authority=name) if name else head
        return rewrite_host(head, endpoint.hostname, append_forwarded=self.action.append_x_forwarded_host)

    @property
    def filters_requests(self) -> bool:
        """A filter on the way to the route changes the heads of some requests."""
        return self._filter is not None

    @property
    def changes_requests(self) -> bool:
        """The route, or a filter on the way to it, changes the heads of some requests."""
        return self._filter is not None or self._rewrite is not None

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
        responder = self._response if has_cluster or self._unnamed is None else self._unnamed
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
    """The answer of a route that answers by itself, which filters come before. The route's header mutations
    do not concern what they answer (as seen in Envoy 1.40), header filters do.

    Attributes:
        fault: To be injected, or not.
        limits: Filters that limit, in their order.
        responder: What becomes of the answer of a filter.
    """

    fault: FaultPolicy | None = None
    limits: tuple[RouteLimit, ...] = field(default=(), compare=False, repr=False)
    responder: Responder | None = field(default=None, compare=False, repr=False)

    def aborted(self, reply: LocalReply, head: RequestHead) -> LocalReply:
        """Return the answer of a filter as the caller gets it."""
        return reply if self.responder is None else self.responder.local(reply, head)
