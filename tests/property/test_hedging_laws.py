"""Whatever happens to attempts that run beside each other: nothing leaks, and no limit is passed."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshlib.call import Attempt, Call, Done, RaceStep, Sleep, Step, Wait
from meshlib.events import AttemptFinished, CallFinished
from meshlib.model.cluster import CircuitBreakers, Cluster, EdsDiscovery, LeastRequest, OutlierDetection
from meshlib.model.matcher import PathKind, PathMatcher
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import HedgePolicy, RetryPolicy
from meshlib.model.route import Route, RouteAction, RouteMatcher, SingleCluster
from meshlib.model.snapshot import Snapshot
from meshlib.testing import FakeClock, SeededRng, mesh_source
from meshlib.testing.builders import cluster, target

MAX_REQUESTS, MAX_RETRIES, DEADLINE_S = 4, 2, 3.0
outcomes: st.SearchStrategy[Outcome] = st.one_of(
    st.builds(Response, st.sampled_from([200, 409, 500, 503])),
    st.builds(Response, st.just(200), grpc_status=st.sampled_from([None, 0, 14])),
    st.builds(Failure, st.sampled_from(list(FailureKind)), st.booleans()),
)
hedges = st.builds(HedgePolicy, st.booleans(), st.integers(1, 4))
policies = st.builds(
    RetryPolicy,
    st.frozensets(st.sampled_from(["5xx", "reset", "unavailable", "retriable-4xx"])),
    num_retries=st.integers(0, 4),
    per_try_timeout_s=st.sampled_from([None, 0.5]),
    per_try_idle_timeout_s=st.sampled_from([None, 0.8]),
)


class _Run:
    """A call with what its shell knows."""

    def __init__(self, call: Call, began_at: float, most: int) -> None:
        self.call = call
        self.began_at = began_at
        self.most = most
        self.step: Step | RaceStep | None = None
        self.flying: list[Attempt] = []
        self.is_raced = False


class Hedges(RuleBasedStateMachine):
    """
    Attributes:
        LIMITS: Of the cluster.
        MOST: Retries and hedges that those allow at the same time, whatever happens.
    """

    LIMITS = CircuitBreakers(max_requests=MAX_REQUESTS, max_retries=MAX_RETRIES)
    MOST = MAX_RETRIES

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.mesh = mesh_source(self.snapshot(3, RetryPolicy(frozenset()), HedgePolicy()), clock=self.clock)
        self.mesh.rng = SeededRng(3)
        self.runs: list[_Run] = []
        self.closed = 0
        self.policy, self.hedge = RetryPolicy(frozenset()), HedgePolicy()

    @classmethod
    def snapshot(cls, count: int, policy: RetryPolicy, hedge: HedgePolicy) -> Snapshot:
        template = Cluster(
            "",
            EdsDiscovery(""),
            LeastRequest(),
            circuit_breakers=cls.LIMITS,
            outlier_detection=OutlierDetection(consecutive_5xx=2, max_ejection_percent=60, interval_s=1.0),
        )
        action = RouteAction(SingleCluster("a"), retry=policy, hedge=hedge, timeout_s=DEADLINE_S)
        everything = RouteMatcher(PathMatcher(PathKind.PREFIX, "/"))
        route = Route(everything, action, metadata={"meshlib": {"hedge_initial_requests": True}})
        endpoints = [f"h:{index}" for index in range(count)]
        return Snapshot(
            targets={"a": target("a", route)}, clusters={"a": cluster("a", *endpoints, template=template)}, number=1
        )

    @rule(
        method=st.sampled_from(["GET", "POST"]),
        grpc=st.booleans(),
        replayable=st.booleans(),
        guard=st.booleans(),
        asked=st.sampled_from([{}, {"x-envoy-hedge-on-per-try-timeout": "true"}]),
    )
    def start(self, method: str, grpc: bool, replayable: bool, guard: bool, asked: dict[str, str]) -> None:
        call = Call(
            self.mesh.wait_target("a"),
            RequestHead(method, "a", "/", Headers.of(asked), is_grpc=grpc),
            rng=self.mesh.rng,
            now=self.clock(),
            timeout_s=DEADLINE_S,
            replayable=replayable,
            guard_unsafe=guard,
            can_hedge=True,
            hook=self.mesh.emit,
        )
        retries = min(self.policy.num_retries, 4) if grpc else self.policy.num_retries
        run = _Run(call, self.clock(), 1 + retries + self.hedge.initial_requests - 1)
        self.runs.append(run)
        self._follow(run, call.start(self.clock()))

    def _follow(self, run: _Run, step: Step | RaceStep) -> None:
        now = self.clock()
        while isinstance(step, Attempt):
            assert now < run.began_at + DEADLINE_S
            assert step.timeout_s is None or 0 < step.timeout_s <= DEADLINE_S
            run.flying.append(step)
            run.is_raced = run.is_raced or step.is_raced
            assert step.is_raced is run.is_raced
            if not step.is_raced:
                break
            step = run.call.racing(now)
        if isinstance(step, Wait):
            assert step.seconds is None or step.seconds >= 0
        if isinstance(step, Done):
            run.flying = []
        run.step = step

    @precondition(lambda self: any(run.flying for run in self.runs))
    @rule(data=st.data(), outcome=outcomes)
    def end_attempt(self, data: st.DataObject, outcome: Outcome) -> None:
        run = data.draw(st.sampled_from([run for run in self.runs if run.flying]))
        attempt = data.draw(st.sampled_from(run.flying))
        run.flying.remove(attempt)
        now = self.clock()
        self._follow(run, run.call.ended(attempt, outcome, now) if run.is_raced else run.call.finished(outcome, now))

    @precondition(lambda self: any(isinstance(run.step, Wait | Sleep) for run in self.runs))
    @rule(data=st.data())
    def time_is_over(self, data: st.DataObject) -> None:
        waiting = [run for run in self.runs if isinstance(run.step, Wait | Sleep) and run.step.seconds is not None]
        if not waiting:
            return
        run = data.draw(st.sampled_from(waiting))
        assert isinstance(run.step, Wait | Sleep)
        self.clock.advance(run.step.seconds or 0.0)
        now = self.clock()
        self._follow(run, run.call.waited(now) if isinstance(run.step, Wait) else run.call.slept(now))

    @precondition(lambda self: self.runs)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.runs))
        self.runs.remove(run)
        self.closed += 1
        for _ in range(2):
            run.call.close(self.clock())

    @rule(count=st.integers(0, 4), policy=policies, hedge=hedges)
    def update(self, count: int, policy: RetryPolicy, hedge: HedgePolicy) -> None:
        self.policy, self.hedge = policy, hedge
        self.mesh.publish(self.snapshot(count, policy, hedge))

    @rule(seconds=st.sampled_from([0.2, 1.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.mesh.sweep()

    @invariant()
    def permits_are_those_of_attempts_in_flight(self) -> None:
        breaker = self.mesh.cluster("a").breaker
        answered = sum(isinstance(run.step, Done) and isinstance(run.step.result, Response) for run in self.runs)
        assert breaker.active == sum(len(run.flying) for run in self.runs) + answered
        assert breaker.active <= MAX_REQUESTS
        assert 0 <= breaker.retries <= self.MOST
        assert self.MOST or all(len(run.flying) <= 1 for run in self.runs), "a budget of nothing allows no hedge"
        assert all(run.call.attempts <= run.most for run in self.runs)

    def teardown(self) -> None:
        tried = {state for run in self.runs for state in run.call._tried}
        begun = sum(run.call.attempts for run in self.runs)
        for run in self.runs:
            run.call.close(self.clock())
        found = self.mesh.cluster("a")
        assert (found.breaker.active, found.breaker.retries) == (0, 0)
        assert {state.active for state in {*found.states.values(), *tried}} <= {0}
        assert sum(isinstance(event, CallFinished) for event in self.mesh.events) == self.closed + len(self.runs)
        assert sum(isinstance(event, AttemptFinished) for event in self.mesh.events) >= begun - len(self.runs)


TestHedges = Hedges.TestCase
TestHedges.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class TinyShare(Hedges):
    """A tenth of four requests is none, and no minimum makes it more."""

    LIMITS = CircuitBreakers(max_requests=MAX_REQUESTS, retry_budget_percent=10.0, min_retry_concurrency=0)
    MOST = 0


class OneAlways(Hedges):
    """The minimum alone."""

    LIMITS = CircuitBreakers(max_requests=MAX_REQUESTS, retry_budget_percent=0.0, min_retry_concurrency=1)
    MOST = 1


TestTinyShare = TinyShare.TestCase
TestOneAlways = OneAlways.TestCase
for _case in (TestTinyShare, TestOneAlways):
    _case.settings = settings(max_examples=10, stateful_step_count=30, deadline=None)
