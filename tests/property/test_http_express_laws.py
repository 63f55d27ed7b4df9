"""HTTP requests that go well without a `Call` come to the same as with one, whatever the configuration and the others."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.admin.metrics import StandardMetrics
from meshlib.balancing.endpoint_state import EndpointState
from meshlib.call import Attempt, Call, Done
from meshlib.clients.http1_request import Http1Request
from meshlib.clients.http1_response import ResponseHead
from meshlib.clients.httpx_common import call_for, head_of, pool_key_of, record_of, timeouts_for
from meshlib.clients.httpx_express import Begun, begin
from meshlib.clients.httpx_requests import Http2Request, http1_request_for, http2_request_for
from meshlib.clients.pools import PoolKey
from meshlib.events import Event
from meshlib.model.endpoint import DropOverload
from meshlib.model.headers import NO_MUTATION, AppendAction, HeaderAdd, HeaderMutation
from meshlib.model.health import HealthCheck, TcpProbe
from meshlib.model.matcher import (
    Fraction,
    HeaderMatcher,
    PathKind,
    PathMatcher,
    QueryMatcher,
    StringKind,
    StringMatcher,
)
from meshlib.model.outcome import Failure, FailureKind, Response
from meshlib.model.request import Headers
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import (
    ClusterWeight,
    HashPolicy,
    InternalRedirectPolicy,
    MirrorPolicy,
    Route,
    RouteAction,
    RouteMatcher,
    SingleCluster,
    WeightedClusters,
)
from meshlib.model.snapshot import Snapshot
from meshlib.runtime.context import InboundContext, entered
from meshlib.testing import FakeClock, SeededRng, any_path, cluster, target
from meshlib.testing.source import FakeMesh
from meshlib.view import TargetView, View
from tests.property.express_worlds import ExpressWorld, Ongoing, clusters_with, come_to_the_same

words = ["5xx", "gateway-error", "connect-failure", "reset", "unavailable", "cancelled", "retriable-4xx"]
words += ["retriable-status-codes", "retriable-headers", "envoy-ratelimited"]
seconds = st.sampled_from([None, None, 0.5, 3.0])
retries = st.none() | st.builds(
    RetryPolicy,
    st.frozensets(st.sampled_from(words), max_size=4),
    num_retries=st.integers(0, 2),
    per_try_timeout_s=st.sampled_from([None, 0.5]),
    per_try_idle_timeout_s=st.sampled_from([None, 0.25]),
    retriable_status_codes=st.sampled_from([(503,), (200,), ()]),
    retriable_headers=st.sampled_from([(), (HeaderMatcher("x-again", True),)]),
    retriable_request_headers=st.sampled_from([()] * 15 + [(HeaderMatcher("x-user", True),)]),
)
clusters = clusters_with(
    6,
    health_check=st.sampled_from([None] * 9 + [HealthCheck(TcpProbe(), 1.0, 1.0, 1, 1)]),
    max_stream_duration_s=seconds,
    http2=st.sampled_from([False] * 3 + [True]),
    retry=retries,
)
actions = st.builds(
    RouteAction,
    st.just(SingleCluster("a")),
    timeout_s=st.sampled_from([None, 0.0, 0.5, 3.0]),
    idle_timeout_s=seconds,
    max_stream_duration_s=st.sampled_from([None, None, 0.0, 3.0]),
    high_priority=st.booleans(),
    auto_host_rewrite=st.sampled_from([False] * 15 + [True]),
    prefix_rewrite=st.sampled_from([""] * 3 + ["/new"]),
    host_rewrite_literal=st.sampled_from([""] * 3 + ["other", "b\u00f6se"]),
    internal_redirect=st.sampled_from([None] * 7 + [InternalRedirectPolicy()]),
    mirrors=st.sampled_from([()] * 7 + [(MirrorPolicy("b", Fraction(50)),)]),
    hash_policies=st.just((HashPolicy("header", "x-user"),)),
)


# What is written, what a format makes of the request, and what has a say in retries, times and lengths.
added = st.builds(
    HeaderAdd,
    st.sampled_from(
        ["x-new", "x-new", "x-user", "x-envoy-max-retries", "x-envoy-upstream-rq-timeout-ms", "connection"]
    ),
    st.sampled_from(["1", "1", "%REQ(x-user)%", "\u00e4", "%REQ(:path)%"]),
    st.sampled_from(list(AppendAction)),
)
mutations = st.just(NO_MUTATION) | st.builds(
    HeaderMutation,
    request_remove=st.sampled_from([(), ("x-user",), ("x-number", "content-length")]),
    request_add=st.lists(added, max_size=2).map(tuple),
    response_remove=st.sampled_from([(), (), (), ("x-again",)]),
    response_add=st.sampled_from([(), (), (), (HeaderAdd("x-seen", "%RESPONSE_CODE%"),)]),
)

# Mostly a canary. The third cluster does not exist.
shares = st.lists(
    st.builds(
        ClusterWeight,
        st.sampled_from(["a", "b", "b", "c"]),
        st.integers(1, 5),
        mutation=mutations,
        host_rewrite=st.sampled_from(["", "canary"]),
    ),
    min_size=1,
    max_size=3,
)
usual: list[SingleCluster | WeightedClusters] = [
    SingleCluster("a"),
    WeightedClusters((ClusterWeight("a", 80), ClusterWeight("b", 20))),
]
destinations = st.sampled_from(usual) | st.builds(
    WeightedClusters,
    st.tuples(st.just(ClusterWeight("a", 3)), st.just(ClusterWeight("b", 1))) | shares.map(tuple),
    header_name=st.sampled_from(["", "", "", "x-number"]),
    use_hash_policy=st.sampled_from([False] * 7 + [True]),
)
# What else there is to a route that comes first.
matchers = st.builds(
    RouteMatcher,
    st.sampled_from([PathMatcher(PathKind.PREFIX, "/"), PathMatcher(PathKind.PREFIX, "/orders")]),
    headers=st.sampled_from([(), (HeaderMatcher("x-user", True),)]),
    query=st.sampled_from([(), (QueryMatcher("page", StringMatcher(StringKind.EXACT, "2")),)]),
    fraction=st.sampled_from([None, Fraction(40)]),
)


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """A service of two clusters with up to four endpoints each, some of whose calls may be dropped."""
    made = {}
    for name, host in (("a", "h"), ("b", "g")):
        addresses = [f"{host}:{number}" for number in range(draw(st.sampled_from([3, 2, 1, 4, 0])))]
        config = cluster(name, *addresses, template=draw(clusters))
        drops = draw(st.sampled_from([()] * 15 + [(DropOverload("lb", 20, 100),)]))
        made[name] = replace(config, assignment=replace(config.assignment, drop_overloads=drops))
    action = replace(draw(actions), cluster=draw(destinations), retry=draw(retries))
    routes = [replace(any_path(action, name="default"), mutation=draw(mutations))]
    if draw(st.booleans()):
        other = draw(st.sampled_from([action.cluster, SingleCluster("b")]))
        routes.insert(0, Route(draw(matchers), replace(action, cluster=other, mirrors=()), name="first"))
    return Snapshot(
        targets={"a": target("a", *routes, include_attempt_count=draw(st.booleans()))}, clusters=made, number=1
    )


Pairs = tuple[tuple[str, str], ...]
requests = st.tuples(
    st.sampled_from(["GET", "GET", "GET", "POST", "HEAD", "DELETE"]),
    st.sampled_from(["/", "/orders/1?page=2", "/a%20b"]),
    st.sampled_from(
        [()] * 16
        + [
            (("X-User", "ann"),),
            (("x-number", "4"),),
            (("cookie", "a=b"), ("x-long", "l" * 200)),
            (("host", "other"),),
            (("content-type", "application/grpc"),),
            (("x-envoy-max-retries", "1"),),
            (("x-envoy-upstream-rq-timeout-ms", "100"),),
            (("connection", "close"),),
            (("content-length", "7"),),
        ]
    ),
    st.sampled_from([b"", b"", b"body"]),
)
# Of a request that is being served: the time that it has left, its attempt, and what goes on.
served = st.none() | st.tuples(
    st.sampled_from([None, 0.0, 0.25, 2.0, 60.0]),
    st.sampled_from([1, 1, 2]),
    st.sampled_from([(), (("x-request-id", "7"),), (("x-user", "bob"), ("b3", "0"))]),
)
answers = st.one_of(
    st.sampled_from([(200, ()), (200, ()), (204, ()), (302, (("location", "/x"),)), (404, ()), (500, ()), (503, ())]),
    st.tuples(
        st.sampled_from([101, 200, 409, 429, 503]),
        st.sampled_from(
            [
                (("x-again", "1"),),
                (("grpc-status", "14"),),
                (("x-envoy-ratelimited", "true"),),
                (("x-envoy-immediate-health-check-fail", "true"),),
            ]
        ),
    ),
)
failures = st.builds(Failure, st.sampled_from(list(FailureKind)), st.booleans()) | st.none()  # given up by the caller
numbers = st.integers(0, 5)
actions_on_requests = st.one_of(
    st.tuples(st.just("begin"), requests, served),
    st.tuples(st.just("begin"), requests, served),
    st.tuples(st.just("answer"), numbers, answers),
    st.tuples(st.just("answer"), numbers, answers),
    st.tuples(st.just("fail"), numbers, failures),
    st.tuples(st.just("close"), numbers),
    st.tuples(st.just("close"), numbers),
    st.tuples(st.just("cut"), numbers, st.sampled_from([FailureKind.RESET, FailureKind.TIMEOUT]), st.booleans()),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.3, 2.0])),
    st.tuples(st.just("update"), snapshots()),
)


CLUSTERS = ("a", "b")


class ExpressMesh(FakeMesh):
    """A mesh whose calls a meter counts, or that tells of them in events."""

    def __init__(self, snapshot: Snapshot, seen: list[Any], *, has_meter: bool) -> None:
        super().__init__(snapshot, clock=FakeClock(), rng=SeededRng(3), guard_unsafe=True, is_disabled=False)
        self.seen = seen
        self.metrics = StandardMetrics()
        self._meter = self.metrics if has_meter else None

    def _express(self, target: TargetView) -> tuple[View, StandardMetrics | None] | None:
        return (self.view, self._meter) if self.view.targets.get(target.name) is target else None

    def emit(self, event: Event) -> None:
        self.seen.append(event)
        self.metrics(event)


class Open(Ongoing):
    """A request under way: a `Call`, or what an express one has begun."""

    def __init__(self, request: httpx.Request) -> None:
        super().__init__()
        self.request = request
        self.begun: Begun | None = None
        self.status = 0  # once it was answered


class World(ExpressWorld[Open]):
    """A mesh whose requests go the long way, or the short one where they can."""

    def __init__(self, snapshot: Snapshot, *, is_express: bool, has_meter: bool) -> None:
        seen: list[Any] = []
        self.mesh = ExpressMesh(snapshot, seen, has_meter=has_meter)
        super().__init__(self.mesh, CLUSTERS, seen, is_express=is_express)

    def begin(
        self, parts: tuple[str, str, Pairs, bytes], served: tuple[float | None, int, Pairs] | None = None
    ) -> None:
        if served is None:
            self.begin_here(parts)
            return
        left_s, attempt, handed = served
        deadline = None if left_s is None else self.clock() + left_s
        with entered(InboundContext(deadline, attempt=attempt, handed_on=handed)):
            self.begin_here(parts)

    def begin_here(self, parts: tuple[str, str, Pairs, bytes]) -> None:
        method, path, headers, content = parts
        made = httpx.Request(method, f"http://a{path}", headers=list(headers), content=content or None)
        made.extensions["timeout"] = {"read": 2.0}
        target = self.mesh.target("a")
        assert target is not None
        one = Open(made)
        self.open.append(one)
        begun = begin(self.mesh, self.mesh._express, made, "a", target) if self.is_express else None
        if begun is None:
            call = one.call = call_for(self.mesh, target, head_of(made, "a"), made, replayable=True)
            self.follow(one, call.start(self.clock()))
            return
        self.taken += 1
        if begun.berth is None:
            one.call, step = begun.joined()
            self.follow(one, step)
            return
        one.begun = begun
        assert isinstance(begun.state, EndpointState)
        self.note(1, begun.state.address, begun.sent, begun.berth.key)

    def note(self, number: int, address: str, sent: Http1Request | Http2Request, key: PoolKey) -> None:
        limit = sent.timeouts.step_s("read")
        self.seen.append((number, address, None if limit is None else round(limit, 6), key[:5], key.dials))
        if isinstance(sent, Http2Request):
            body = b"".join(cast(Iterable[bytes], sent.stream))
            self.seen.append((sent.method, sent.url.scheme, sent.url.target, sent.headers, body))
        else:
            self.seen.append((sent.head, sent.body))

    def attempted(self, one: Open, step: Attempt) -> None:
        call = one.call
        assert call is not None
        key = pool_key_of(step, self.mesh, one.request, call.breaker)
        timeouts = timeouts_for(step, one.request, self.clock, call, replayable=True)
        made = http2_request_for if key.http2 else http1_request_for
        try:
            sent = made(step, one.request, timeouts, key)
        except Exception as error:  # it cannot be sent like that
            self.seen.append(type(error))
            call.close(self.clock())
            self.open.remove(one)
            return
        self.note(step.number, step.endpoint.address, sent, key)
        assert call.match is not None
        if call.match.mirrors:
            self.seen.append(call.match.mirrors)

    def done(self, one: Open, step: Done) -> None:
        if isinstance(step.result, Response):
            call = one.call
            assert call is not None
            self.answered(one, step.result.status, call.body_deadline, call.idle_s, record_of(call, step))
            self.seen.append(call.response_headers(step.result.headers).items)
        else:
            super().done(one, step)

    def answered(self, one: Open, status: int, ends_at: float | None, idle_s: float | None, record: Any) -> None:
        one.status = status
        self.seen.append((status, None if ends_at is None else round(ends_at, 6), idle_s, record))

    def joined(self, one: Open) -> Call:
        """Have a call, whose attempt is under way."""
        if one.call is None:
            assert one.begun is not None
            one.call, one.step = one.begun.joined()
            assert isinstance(one.step, Attempt)
        return one.call

    def chosen(self, number: int, *, is_answered: bool) -> Open | None:
        found = [one for one in self.open if bool(one.status) is is_answered]
        return found[number % len(found)] if found else None

    def answer(self, number: int, answer: tuple[int, Pairs]) -> None:
        one = self.chosen(number, is_answered=False)
        if one is None:
            return
        status, headers = answer
        if one.call is None:
            begun = one.begun
            assert begun is not None and begun.berth is not None
            raw = [(name.encode(), value.encode()) for name, value in headers]
            if begun.is_final(ResponseHead(b"HTTP/1.1", status, b"OK", raw)):
                self.answered(one, status, begun.body_deadline(), begun.way.idle_s, begun.berth.record)
                self.seen.append(headers)
                return
        call = self.joined(one)
        self.follow(one, call.finished(Response(status, Headers(headers)), self.clock()))

    def fail(self, number: int, failure: Failure | None) -> None:
        one = self.chosen(number, is_answered=False)
        if one is None:
            return
        self.joined(one)
        self.ended(one, failure)

    def close(self, number: int) -> None:
        one = self.chosen(number, is_answered=True)
        if one is None:
            return
        self.open.remove(one)
        if one.call is None:
            assert one.begun is not None
            one.begun.ended(one.status)
        else:
            one.call.close(self.clock(), status=one.status)

    def cut(self, number: int, kind: FailureKind, is_idle: bool) -> None:
        """A response breaks off."""
        one = self.chosen(number, is_answered=True)
        if one is None:
            return
        if one.call is None:
            assert one.begun is not None
            one.call = one.begun.answered(one.status)
        one.call.cut_off(Failure(kind, True), self.clock(), is_idle=is_idle)
        self.seen.append((one.call.flag, str(one.call.error())))
        one.call.close(self.clock(), status=one.status)
        self.open.remove(one)

    def counts(self) -> list[Any]:
        attempts = [self.mesh.cluster(name).attempts for name in CLUSTERS]
        states = [self.states_of(name) for name in CLUSTERS]
        return [attempts, states, self.held(), self.mesh.metrics.attempts()]

    def sweep(self) -> None:
        self.mesh.sweep()

    def finish(self) -> list[Any]:
        while self.open:
            self.answer(0, (200, ()))
            self.close(0)
        metrics = self.mesh.metrics
        samples = [replace(sample, sum_ms=round(sample.sum_ms, 3)) for sample in metrics.requests()]
        return [samples, metrics.attempts(), metrics.ejections(), self.loads()]


GET = ("GET", "/", (), b"")


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_express_requests_come_to_the_same(data: st.DataObject) -> None:
    # Drawn here, as the text of a snapshot is long.
    snapshot = data.draw(snapshots())
    actions = data.draw(st.lists(actions_on_requests, min_size=3, max_size=30))
    has_meter = data.draw(st.booleans())
    long, short = (World(snapshot, is_express=is_express, has_meter=has_meter) for is_express in (False, True))
    come_to_the_same(long, short, [("begin", GET), ("answer", 0, (200, ())), ("close", 0), *actions])
