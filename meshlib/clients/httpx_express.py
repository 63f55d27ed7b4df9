"""HTTP requests that go well at the first attempt, without a `Call`: what the blocking and the async transport share.

The first request that takes a route has left its way there (`meshlib.call.way`), if nothing more depends on what is in a
request. What is left to do for the next: see that nothing has changed, find its route, choose an endpoint and count it in,
write, read, count it out. Most of a client's requests have the same headers, so what is to be known of them, and how they
are written, is worked out once.

Everything else, above all any other ending than a response that is given to the caller, is the general machine's business,
which takes over what was begun: `Begun.joined`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, Generic, NamedTuple, TypeVar

import httpcore
import httpx
from httpx._content import ByteStream

from meshlib.balancing.endpoint_state import EndpointState
from meshlib.call import Attempt, Call, Step
from meshlib.call.limits import has_control_headers
from meshlib.call.way import Way
from meshlib.clients.http1_request import (
    WrittenRequest,
    encoded,
    host_line,
    is_target,
    is_traced,
    plain_lines,
)
from meshlib.clients.http1_response import RawResponse, ResponseHead
from meshlib.clients.httpx_common import MeshRecord, headers_of, learn_of_trailers, pool_key_of
from meshlib.clients.httpx_requests import Http2Request, http2_request, origin_of
from meshlib.clients.httpx_shapes import known_shapes, make_shape
from meshlib.clients.pools import Lease, PoolKey
from meshlib.clients.source import MeshSource
from meshlib.clients.timeouts import AttemptTimeouts
from meshlib.errors import IdentityError
from meshlib.events import AttemptFinished, CallFinished, Meter
from meshlib.model.endpoint import Endpoint
from meshlib.model.outcome import LocalReply, Response
from meshlib.model.profile import HTTP
from meshlib.model.request import Headers, RequestHead
from meshlib.resilience.health_check import IMMEDIATE_FAILURE
from meshlib.routing.table import RouteMatch
from meshlib.runtime.clock import wall
from meshlib.runtime.context import added_to, peek_request
from meshlib.runtime.tls import validity
from meshlib.view import TargetView, View

__all__ = ["Begun", "Express", "Routed", "Tried", "begin"]

P = TypeVar("P")

Express = Callable[[TargetView], tuple[View, Meter | None] | None]


class Berth(NamedTuple):
    """How requests of one way get to one endpoint.

    Attributes:
        secrets: By which it is reached: other ones may make another context.
        valid: From when to when our certificate is, in seconds since the epoch; None: there is none.
        record: Of those that are answered at the first attempt.
        connect_s: How long connecting may take.
        added: What the mesh adds to the headers, as it is written.
    """

    endpoint: Endpoint
    secrets: object
    valid: tuple[float, float] | None
    key: PoolKey
    origin: httpcore.Origin
    record: MeshRecord
    connect_s: float
    added: bytes


class Tried(NamedTuple, Generic[P]):
    """What came of sending a request that is to go on as all others do.

    Attributes:
        lease: Of the pool that it was sent by; None: there was none to be had.
        result: The response, or what was raised.
    """

    timeouts: AttemptTimeouts
    lease: Lease[P] | None
    result: RawResponse | httpcore.Response | BaseException


class Begun:
    """A request that has begun.

    Attributes:
        way: Its route's.
        state: Where it goes; or why it cannot, of which only a `Call` knows what to make.
        at: When, in monotonic seconds.
        meter: Who counts; None: events are to be made.
        left_s: What the request that is being served had left then, in seconds; None: any time, or none is.
        is_repeated: That one is itself a retry.
        berth: None: how to reach the endpoint is not known, or not allowed any more; the long way says what is wrong.
        sent: What to send, where there is a berth.
    """

    __slots__ = ("at", "berth", "head", "is_repeated", "left_s", "mesh", "meter", "request", "sent", "state", "way")

    sent: WrittenRequest | Http2Request

    def __init__(
        self,
        mesh: MeshSource,
        request: httpx.Request,
        head: RequestHead,
        way: Way,
        state: EndpointState | LocalReply,
        at: float,
        meter: Meter | None,
        left_s: float | None,
        is_repeated: bool,
    ) -> None:
        self.mesh = mesh
        self.request = request
        self.head = head
        self.way = way
        self.state = state
        self.at = at
        self.meter = meter
        self.left_s = left_s
        self.is_repeated = is_repeated
        self.berth: Berth | None = None

    def joined(self) -> tuple[Call, Step]:
        """Have the request go on as all others do; returns its call, and the step at which it is."""
        way, mesh = self.way, self.mesh
        # Nobody takes spans: that is how it began.
        call = Call(
            way.target,
            self.head,
            rng=mesh.rng,
            now=self.at,
            timeout_s=self.left_s,
            is_repeated=self.is_repeated,
            guard_unsafe=mesh.guard_unsafe,
            hook=mesh.emit,
            meter=getattr(mesh, "_meter", None),
        )
        return call, call.join(way, self.state, self.at)

    def is_final(self, head: ResponseHead | httpcore.Response) -> bool:
        """Whether a response goes to the caller, and nobody has to know more of it. If so, it has been counted."""
        way, status = self.way, head.status
        cluster, rules = way.cluster, way.rules
        if not 200 <= status < way.final_below or cluster.learner is not None:
            return False
        if cluster.checks is None and (rules.spares_good if status < 400 else not rules.on):
            outcome = _without_headers(status)
        else:
            outcome = Response(status, headers_of(head))
            if rules.wants_response(outcome) or (cluster.checks is not None and IMMEDIATE_FAILURE in outcome.headers):
                return False
        mesh, state, meter = self.mesh, self.state, self.meter
        assert isinstance(state, EndpointState)
        now = mesh.clock()
        if cluster.outlier is not None:
            changed = cluster.record(state, outcome, now, mesh.rng)
            if changed is not None:
                mesh.emit(changed)
        if meter is not None:
            meter.attempted(way.match.cluster, status, None, "", False)
        else:
            name, cluster_name = way.target.name, way.match.cluster
            mesh.emit(AttemptFinished(name, cluster_name, state.endpoint, 1, now - self.at, status, None, "", False))
        return True

    def answered(self, status: int) -> Call:
        """Return the call of a request whose response was final; it is still to be closed."""
        call, _ = self.joined()
        call.answered(_without_headers(status))
        return call

    def left(self, call: Call | None, status: int, reader: Any) -> None:
        """Count a request out whose response nobody reads any more.

        Args:
            call: Its own, if it has one by now.
            reader: Of the response, with its `trailers`.
        """
        if call is None and self.way.cluster.learner is not None:  # since a moment ago
            call = self.answered(status)
        if call is None:
            self.ended(status)
        else:
            now = self.mesh.clock()
            if call.wants_trailers:
                learn_of_trailers(call, {"trailers": reader.trailers}, now)
            call.close(now, status=status)

    def ended(self, status: int) -> None:
        """Give back and count what a request took whose response was read to its end, or is not wanted."""
        way, mesh, state, meter = self.way, self.mesh, self.state, self.meter
        assert isinstance(state, EndpointState) and self.berth is not None
        way.cluster.release(way.breaker, state)
        match, name = way.match, way.target.name
        is_secure, duration_s = self.berth.key.context is not None, mesh.clock() - self.at
        if meter is not None:
            meter.ended("http", match.cluster, name, status, None, "-", is_secure, duration_s)
        else:
            method, route, cluster, endpoint = self.head.method, match.route_name, match.cluster, state.endpoint
            mesh.emit(
                CallFinished(
                    "http", name, method, route, cluster, endpoint, 1, duration_s, status, None, "-", is_secure
                )
            )

    def body_deadline(self) -> float | None:
        """Return when the response's body must be there, in monotonic seconds; None: no limit."""
        limit_s, left_s = self.way.body_s, self.left_s
        if left_s is not None and (limit_s is None or left_s < limit_s):
            limit_s = left_s
        return None if limit_s is None else self.at + limit_s


class Routed:
    """A request whose route is known, and that is to begin as all others do. It is not to be looked for again: where chance
    decides, those that begin here would have had theirs, and only the others a second one."""

    __slots__ = ("at", "found", "head", "is_repeated", "left_s", "mesh", "target")

    berth: Final = None

    def __init__(
        self,
        mesh: MeshSource,
        target: TargetView,
        head: RequestHead,
        found: RouteMatch | LocalReply,
        at: float,
        left_s: float | None,
        is_repeated: bool,
    ) -> None:
        self.mesh = mesh
        self.target = target
        self.head = head
        self.found = found
        self.at = at
        self.left_s = left_s
        self.is_repeated = is_repeated

    def joined(self) -> tuple[Call, Step]:
        """As of one that has begun."""
        mesh = self.mesh
        call = Call(
            self.target,
            self.head,
            rng=mesh.rng,
            now=self.at,
            timeout_s=self.left_s,
            can_hedge=True,
            is_repeated=self.is_repeated,
            guard_unsafe=mesh.guard_unsafe,
            hook=mesh.emit,
            meter=getattr(mesh, "_meter", None),
        )
        return call, call.start(self.at, self.found)


def begin(
    mesh: MeshSource, express: Express | None, request: httpx.Request, authority: str, target: TargetView
) -> Begun | Routed | None:
    """Begin a request that needs nothing special.

    Args:
        express: Says to which targets requests may do without a `Call`, and who counts them; None: nobody says so.
        authority: As in the URL.

    Returns:
        None: it has to be begun the long way; nothing was done. `Routed`: so it has, but its route was found.
    """
    if express is None or not target.is_plain:
        return None
    extensions, stream = request.extensions, request.stream
    if not isinstance(stream, ByteStream) or is_traced(extensions):
        return None
    raw = tuple(request.headers.raw)
    shape = known_shapes.get(raw)
    if shape is None:
        shape = make_shape(raw)
        if shape is None:
            return None
    method, wire = request.method, extensions.get("target") or request.url.raw_path
    body = b"".join(stream)
    if len(body) != shape.length or not is_target(method, wire):
        return None
    headers, lines = shape.headers, shape.lines
    inbound, left_s, is_repeated = peek_request(), None, False
    if inbound is not None:
        is_repeated = inbound.attempt > 1
        handed = added_to(headers.items, inbound.handed_on)
        if handed:
            headers = Headers((*headers.items, *handed))
            found = plain_lines(handed)
            if found is None or has_control_headers(headers):
                return None
            lines += found[0]
    told = express(target)
    if told is None or not mesh.tracing.is_idle():
        return None  # somebody takes spans
    now = mesh.clock()
    if inbound is not None and inbound.deadline is not None:
        left_s = inbound.deadline - now
        if left_s <= 0.0:
            return None
    head = RequestHead(method, shape.authority, wire.decode("ascii"), headers, scheme=request.url.scheme, profile=HTTP)
    match = target.routes.match(head, mesh.rng, is_prepared=True)
    way: Way | None = target.ways.get(match) if type(match) is RouteMatch else None
    if way is None or not way.is_express:
        return Routed(mesh, target, head, match, now, left_s, is_repeated)
    if way.rewrites:
        changed = _rewritten(way, head, shape.length)
        if changed is None:
            return Routed(mesh, target, head, match, now, left_s, is_repeated)
        wire, lines = changed
    state = way.begin(now, mesh.rng)
    if state is None:
        return Routed(mesh, target, head, match, now, left_s, is_repeated)
    begun = Begun(mesh, request, head, way, state, now, told[1], left_s, is_repeated)
    berth: Berth | None = way.known.get(state)
    if (
        berth is None
        or berth.endpoint is not state.endpoint  # type: ignore[union-attr]  # there is none of a reply
        or berth.secrets is not told[0].secrets
        or (berth.valid is not None and not berth.valid[0] <= wall() <= berth.valid[1])
    ):
        if type(state) is not EndpointState:
            return begun
        try:
            berth = _berth(mesh, request, head, way, state, told[0])
        except BaseException:
            way.cluster.release(way.breaker, state, is_success=False)
            raise
        if berth is None:
            return begun
    if berth.key.context is None and head.scheme == "https":
        return begun  # which is refused
    begun.berth = berth
    limit_s, added = way.limit_s, berth.added
    if left_s is not None:
        if limit_s is None or left_s < limit_s:
            limit_s = left_s
        if way.expected_s is None or left_s < way.expected_s:
            written = plain_lines(way.added_within(left_s))
            assert written is not None  # it is ours
            added = written[0]
    timeouts = AttemptTimeouts(
        extensions.get("timeout", {}),
        timeout_s=limit_s,
        connect_timeout_s=berth.connect_s,
        clock=mesh.clock,
        now=now,
    )
    if berth.key.http2:
        begun.sent = http2_request(_shared(way, head, left_s), request, timeouts, berth.origin)
        return begun
    line = b"%s %s HTTP/1.1\r\n%s%s\r\n" % (method.encode("ascii"), wire, lines, added)
    begun.sent = WrittenRequest(method, line, body, berth.origin, extensions, timeouts)
    return begun


def _rewritten(way: Way, head: RequestHead, length: int) -> tuple[bytes, bytes] | None:
    """Return what a route makes of a request's target and headers, as they are written; None: they need a closer look."""
    out = way.rewritten(head)
    if out is None:
        return None
    wire, host, found = encoded(out.path), host_line(out.authority), plain_lines(out.headers.items)
    if host is None or found is None or found[1] != length or not is_target(out.method, wire):
        return None
    return wire, host + found[0]


def _shared(way: Way, head: RequestHead, left_s: float | None) -> RequestHead:
    """Return the head of a request as it goes out over HTTP/2."""
    out = way.rewritten(head) if way.rewrites else head
    assert out is not None
    added = way.added
    if left_s is not None and (way.expected_s is None or left_s < way.expected_s):
        added = way.added_within(left_s)
    return out.but(headers=Headers((*out.headers.items, *added)))


def _berth(
    mesh: MeshSource, request: httpx.Request, head: RequestHead, way: Way, state: EndpointState, view: View
) -> Berth | None:
    """Find out how to reach an endpoint, and note it for later requests; None: that cannot be said here."""
    cluster, endpoint = way.cluster, state.endpoint
    tls = cluster.tls_for(endpoint)
    added = plain_lines(way.added)
    try:
        key = pool_key_of(Attempt(1, cluster, endpoint, tls, None, head), mesh, request, way.breaker)
        valid = None if tls is None else validity(tls, view.secrets)
    except (IdentityError, httpx.TransportError):
        return None
    if added is None:
        way.is_express = False
        return None
    name, address = way.match.cluster, endpoint.address
    berth = Berth(
        endpoint,
        view.secrets,
        valid,
        key,
        origin_of(address, key.context is not None),
        MeshRecord(name, address, 1, "-", (address,)),
        cluster.config.cluster.connect_timeout_s,
        added[0],
    )
    way.known[state] = berth
    return berth


@lru_cache(maxsize=512)
def _without_headers(status: int) -> Response:
    """The outcome of an attempt whose headers nobody looks at."""
    return Response(status)
