"""gRPC calls that go well without a `Call` come to the same as with one, whatever the configuration and the other calls."""

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.admin.metrics import StandardMetrics
from meshlib.balancing.endpoint_state import EndpointState
from meshlib.call import Attempt, Call
from meshlib.call.way import Way
from meshlib.clients.grpc_common import HeadMaker
from meshlib.events import Event
from meshlib.model.endpoint import DropOverload
from meshlib.model.matcher import HeaderMatcher, PathKind, PathMatcher, StringKind, StringMatcher
from meshlib.model.outcome import GRPC_OK, Failure, FailureKind, Outcome, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import Route, RouteAction, RouteMatcher, SingleCluster
from meshlib.model.snapshot import ClusterConfig, ConfigFault, Snapshot, TargetConfig
from meshlib.runtime.context import InboundContext, added_to, with_handed_on
from meshlib.testing import FakeClock, SeededRng, mesh_source, service
from tests.property.express_worlds import ExpressWorld, Ongoing, clusters_with, come_to_the_same

HEADERS = Headers([("content-type", "application/grpc")])
retries = st.none() | st.builds(
    RetryPolicy,
    st.frozensets(st.sampled_from(["unavailable", "connect-failure", "reset", "cancelled", "5xx"])),
    num_retries=st.integers(0, 2),
    per_try_timeout_s=st.sampled_from([None, 0.5]),
    per_try_idle_timeout_s=st.sampled_from([None, 0.25]),
)
clusters = clusters_with(3, retry=retries)
actions = st.builds(
    RouteAction,
    st.just(SingleCluster("a")),
    max_stream_duration_s=st.sampled_from([None, 0.0, 3.0]),
    high_priority=st.booleans(),
    auto_host_rewrite=st.sampled_from([False] * 5 + [True]),
)


names = st.sampled_from(["a", "b", "c", "x-request-id", "x-envoy-max-retries", "cookie"])
values = st.sampled_from(["1", "2"])
metadata = st.lists(st.tuples(names, values), max_size=3).map(tuple)
# Routes that come first, with a cluster that does not exist: which calls meet them is easy to tell.
conditions = st.sampled_from([()] * 2 + [("a",), ("a", "b"), ("b",), ("content-type",)])
inbounds = st.none() | st.builds(
    InboundContext,
    deadline=st.sampled_from([None, 5.0, 1000.0]),
    attempt=st.integers(1, 2),
    handed_on=metadata.map(lambda pairs: tuple(dict(pairs).items())),
)


def with_conditions(target: TargetConfig | ConfigFault, headers: tuple[str, ...]) -> TargetConfig:
    """Put a route before the others that takes calls with all of some headers."""
    assert isinstance(target, TargetConfig)
    if not headers:
        return target
    wanted = tuple(HeaderMatcher(name, StringMatcher(StringKind.EXACT, "1")) for name in headers)
    route = Route(RouteMatcher(PathMatcher(PathKind.PREFIX, "/"), headers=wanted), RouteAction(SingleCluster("gone")))
    host = target.routes.virtual_hosts[0]
    routes = replace(target.routes, virtual_hosts=(replace(host, routes=(route, *host.routes)),))
    return replace(target, routes=routes, listener=replace(target.listener, routes=routes))


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """A service with up to four endpoints, some of whose calls may be dropped."""
    addresses = [f"h:{number}" for number in range(draw(st.sampled_from([3, 2, 1, 4, 0])))]
    found = service(
        "a",
        *addresses,
        action=draw(actions),
        retry=draw(retries),
        template=draw(clusters),
        include_attempt_count=draw(st.booleans()),
    )
    found = replace(found, targets={"a": with_conditions(found.targets["a"], draw(conditions))})
    config = found.clusters["a"]
    assert isinstance(config, ClusterConfig)
    drops = draw(st.sampled_from([()] * 5 + [(DropOverload("lb", 20, 100),)]))
    return replace(found, clusters={"a": replace(config, assignment=replace(config.assignment, drop_overloads=drops))})


outcomes = st.one_of(
    st.just(GRPC_OK),
    st.just(GRPC_OK),
    st.builds(Response, st.just(200), grpc_status=st.sampled_from([0, 1, 4, 14])),
    st.builds(Failure, st.sampled_from(list(FailureKind)), st.booleans()),
    st.none(),  # given up by the caller
)
actions_on_calls = st.one_of(
    st.tuples(st.just("begin"), st.sampled_from([None, 0.25, 10.0]), st.just(()), st.none()),
    st.tuples(st.just("begin"), st.sampled_from([None, 0.25, 10.0]), metadata, inbounds),
    st.tuples(st.just("begin"), st.sampled_from([None, 0.25, 10.0]), metadata, inbounds),
    st.tuples(st.just("end"), st.integers(0, 5), outcomes),
    st.tuples(st.just("end"), st.integers(0, 5), outcomes),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.3, 2.0])),
    st.tuples(st.just("update"), snapshots()),
)


class Open(Ongoing):
    """A call under way: a `Call`, or what an express one has begun."""

    def __init__(
        self, began_at: float, timeout_s: float | None, head: RequestHead, inbound: InboundContext | None
    ) -> None:
        super().__init__()
        self.began_at, self.timeout_s, self.head = began_at, timeout_s, head
        self.is_repeated = inbound is not None and inbound.attempt > 1
        self.way: Way | None = None
        self.state: EndpointState | None = None


class World(ExpressWorld[Open]):
    """A mesh whose calls go the long way, or the short one where they can."""

    def __init__(self, snapshot: Snapshot, *, is_express: bool) -> None:
        mesh = mesh_source(snapshot, clock=FakeClock(), rng=SeededRng(3))
        super().__init__(mesh, ("a",), [], is_express=is_express)
        self.metrics = StandardMetrics()
        self.heads = HeadMaker("a", "/pkg.Service/Method")

    def hook(self, happened: Event) -> None:
        self.seen.append(happened)
        self.metrics(happened)

    def _call(self, one: Open) -> Call:
        target = self.mesh.target("a") if one.way is None else one.way.target
        assert target is not None
        return Call(
            target,
            one.head,
            rng=self.mesh.rng,
            now=one.began_at,
            timeout_s=one.timeout_s,
            is_repeated=one.is_repeated,
            hook=self.hook,
            meter=self.metrics,
        )

    def begin(self, timeout_s: float | None, own: tuple[tuple[str, str], ...], inbound: InboundContext | None) -> None:
        now, way, head, handed = self.clock(), self.heads.memo.way, self.heads(own), ()
        if inbound is not None:
            if inbound.deadline is not None:
                left_s = max(inbound.deadline - now, 0.0)
                timeout_s = left_s if timeout_s is None else min(left_s, timeout_s)
            handed = inbound.handed_on
            if handed:
                head = with_handed_on(head, handed)
        one = Open(now, timeout_s, head, inbound)
        self.open.append(one)
        if (
            self.is_express
            and way is not None
            and way.is_express
            and way.target is self.mesh.target("a")
            and way.spares(own, self.mesh.rng)
            and way.spares(handed, self.mesh.rng)
            and (timeout_s is None or timeout_s > 0)
        ):
            begun = way.begin(now, self.mesh.rng)
            if begun is not None:
                self.taken += 1
                one.way = way
                if not isinstance(begun, EndpointState):
                    one.call = self._call(one)
                    self.follow(one, one.call.join(way, begun, now))
                    return
                one.state = begun
                left_s = min((limit for limit in (timeout_s, way.limit_s) if limit is not None), default=None)
                counted = (("x-envoy-attempt-count", "1"),) if way.match.include_attempt_count else ()
                self.note(1, begun.address, left_s, (*HEADERS.items, *own, *added_to(own, handed), *counted))
                return
        one.call = self._call(one)
        self.follow(one, one.call.start(now))

    def note(self, number: int, address: str, left_s: float | None, items: object) -> None:
        self.seen.append((number, address, None if left_s is None else round(left_s, 6), items))

    def attempted(self, one: Open, step: Attempt) -> None:
        self.note(step.number, step.endpoint.address, step.timeout_s, step.head.headers.items)

    def end(self, number: int, outcome: Outcome | None) -> None:
        if not self.open:
            return
        one, now = self.open[number % len(self.open)], self.clock()
        way, state = one.way, one.state
        if one.call is None:
            assert way is not None and state is not None
            if outcome is GRPC_OK and way.cluster.learner is None:
                changed = way.cluster.succeeded(way.breaker, state, now, self.mesh.rng)
                self.metrics.succeeded(way.match.cluster, way.target.name, False, now - one.began_at)
                if changed is not None:
                    self.hook(changed)
                self.seen.append((GRPC_OK, "", way.match.cluster, (state.address,)))
                self.open.remove(one)
                return
            one.call = self._call(one)
            one.step = one.call.join(way, state, one.began_at)
            assert isinstance(one.step, Attempt)
        self.ended(one, outcome)

    def counts(self) -> list[Any]:
        return [self.mesh.cluster("a").attempts, *self.held(), *self.states_of("a")]

    def sweep(self) -> None:
        for happened in self.mesh.cluster("a").sweep(self.clock(), self.mesh.rng):
            self.hook(happened)

    def finish(self) -> list[Any]:
        while self.open:
            self.end(0, GRPC_OK)
        return [self.metrics.requests(), self.metrics.attempts(), self.metrics.ejections(), self.loads()]


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_express_calls_come_to_the_same(data: st.DataObject) -> None:
    # Drawn here, as the text of a snapshot is long.
    snapshot = data.draw(snapshots())
    first = [("begin", None, data.draw(metadata), None), ("end", 0, GRPC_OK)]
    actions = [*first, *data.draw(st.lists(actions_on_calls, min_size=3, max_size=30))]
    long, short = World(snapshot, is_express=False), World(snapshot, is_express=True)
    come_to_the_same(long, short, actions)
