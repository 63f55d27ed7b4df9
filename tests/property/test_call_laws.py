"""Whatever happens to calls, in any order: what they hold is given back exactly once, and the machine never gets stuck."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from meshlib.call import Attempt, Call, Done, Sleep, Step
from meshlib.events import CallFinished
from meshlib.model.cluster import CircuitBreakers, Cluster, EdsDiscovery, LeastRequest, OutlierDetection
from meshlib.model.endpoint import DropOverload
from meshlib.model.matcher import Fraction
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import FaultAbort, FaultDelay, FaultPolicy
from meshlib.model.snapshot import ClusterConfig, Snapshot
from meshlib.testing import FakeClock, SeededRng, mesh_source, service
from meshlib.view import ClusterState

WORDS = ["5xx", "reset", "connect-failure", "refused-stream", "unavailable", "retriable-4xx", "reset-before-request"]
outcomes: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(Response, st.sampled_from([200, 409, 500, 503])),
    st.builds(Response, st.just(200), grpc_status=st.sampled_from([None, 0, 4, 14])),
    st.builds(Failure, st.sampled_from(list(FailureKind)), st.booleans()),
)
policies = st.builds(
    RetryPolicy,
    st.frozensets(st.sampled_from(WORDS)),
    num_retries=st.integers(0, 3),
    per_try_timeout_s=st.sampled_from([None, 0.5]),
    avoid_previous_hosts=st.booleans(),
)
share = st.integers(0, 100).map(Fraction)
faults = st.one_of(
    st.none(),
    st.builds(
        FaultPolicy,
        delay=st.one_of(st.none(), st.builds(FaultDelay, st.just(1.0), share)),
        abort=st.one_of(st.none(), st.builds(FaultAbort, share, http_status=st.just(503))),
        max_active=st.sampled_from([None, 1]),
    ),
)


class Calls(RuleBasedStateMachine):
    """Several calls on one cluster with tight limits, while time passes and the configuration changes."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.mesh = mesh_source(self.snapshot(3, None, None), clock=self.clock, rng=SeededRng(5))
        self.clusters: set[ClusterState] = {self.mesh.cluster("a")}
        self.open: dict[Call, Step | None] = {}
        self.closed = 0

    @staticmethod
    def snapshot(count: int, policy: RetryPolicy | None, fault: FaultPolicy | None) -> Snapshot:
        template = Cluster(
            "",
            EdsDiscovery(""),
            LeastRequest(),
            circuit_breakers=CircuitBreakers(max_requests=3, max_retries=1),
            outlier_detection=OutlierDetection(consecutive_5xx=2, max_ejection_percent=60, interval_s=1.0),
        )
        found = service(
            "a", *(f"h:{index}" for index in range(count)), retry=policy, fault=fault, timeout_s=2.0, template=template
        )
        config = found.clusters["a"]
        assert isinstance(config, ClusterConfig)
        assignment = replace(config.assignment, drop_overloads=(DropOverload("lb", 5, 100),))
        return replace(found, clusters={"a": replace(config, assignment=assignment)})

    @rule(
        target=calls,
        method=st.sampled_from(["GET", "POST"]),
        grpc=st.booleans(),
        timeout_s=st.sampled_from([None, 0.7]),
        replayable=st.booleans(),
        guard=st.booleans(),
        asked=st.sampled_from([{}, {"x-envoy-retry-on": "5xx"}, {"x-envoy-upstream-rq-timeout-ms": "300"}]),
    )
    def make(
        self, method: str, grpc: bool, timeout_s: float | None, replayable: bool, guard: bool, asked: dict[str, str]
    ) -> Call:
        call = Call(
            self.mesh.wait_target("a"),
            RequestHead(method, "a", "/", Headers.of(asked), is_grpc=grpc),
            rng=self.mesh.rng,
            now=self.clock(),
            timeout_s=timeout_s,
            replayable=replayable,
            guard_unsafe=guard,
            hook=self.mesh.emit,
        )
        self.open[call] = None
        return call

    @rule(call=calls, outcome=outcomes)
    def go_on(self, call: Call, outcome: Outcome) -> None:
        now = self.clock()
        step = self.open[call]
        match step:
            case None:
                self.open[call] = call.start(now)
            case Attempt():
                self.open[call] = call.finished(outcome, now)
            case Sleep():
                self.open[call] = call.slept(now)
            case Done():
                assert call.result is step.result
        after = self.open[call]
        if isinstance(after, Attempt):
            assert after.timeout_s is None or after.timeout_s > 0
        if isinstance(after, Sleep):
            assert after.seconds >= 0

    @rule(call=calls)
    def commit(self, call: Call) -> None:
        call.commit()

    @rule(call=consumes(calls), status=st.sampled_from([0, 200]), grpc_status=st.sampled_from([None, 0, 14]))
    def close(self, call: Call, status: int, grpc_status: int | None) -> None:
        del self.open[call]
        self.closed += 1
        for _ in range(2):
            call.close(self.clock(), status=status, grpc_status=grpc_status)

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.mesh.sweep()

    @rule(count=st.integers(0, 4), policy=st.one_of(st.none(), policies), fault=faults)
    def update(self, count: int, policy: RetryPolicy | None, fault: FaultPolicy | None) -> None:
        self.mesh.publish(self.snapshot(count, policy, fault))
        self.clusters.add(self.mesh.cluster("a"))

    @invariant()
    def permits_are_those_of_open_calls(self) -> None:
        (cluster,) = self.clusters
        answered = sum(
            isinstance(step, Attempt) or (isinstance(step, Done) and isinstance(step.result, Response))
            for step in self.open.values()
        )
        assert cluster.breaker.active == answered
        assert answered <= 3
        assert 0 <= cluster.breaker.retries <= min(1, len(self.open))
        assert 0 <= self.mesh.wait_target("a").faults.active <= len(self.open)
        assert all(state.active >= 0 for state in cluster.states.values())
        assert sum(state.active for state in cluster.states.values()) <= answered
        assert sum(isinstance(event, CallFinished) for event in self.mesh.events) == self.closed

    def teardown(self) -> None:
        tried = {state for call in self.open for state in call._tried}
        for call in self.open:
            call.close(self.clock())
        (cluster,) = self.clusters
        assert (cluster.breaker.active, cluster.breaker.retries) == (0, 0)
        assert self.mesh.wait_target("a").faults.active == 0
        assert {state.active for state in {*cluster.states.values(), *tried}} <= {0}


TestCalls = Calls.TestCase
TestCalls.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
