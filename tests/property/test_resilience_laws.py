"""Laws of resilience: waits have bounds, retries a budget, ejections a ceiling."""

from itertools import pairwise
from random import Random
from threading import Lock

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshlib.model.cluster import CircuitBreakers, OutlierDetection, Probation
from meshlib.model.retry import RetryBudget
from meshlib.resilience.backoff import full_jitter_s, grpc_jitter_s
from meshlib.resilience.budget import RetryAccount
from meshlib.resilience.circuit_breaker import CircuitBreaker
from meshlib.resilience.deadline import format_grpc_timeout, parse_grpc_timeout_s
from meshlib.resilience.outlier import Ejection, EjectionReason, OutlierDetector, Trial, Unejection
from meshlib.resilience.success_rate import (
    Tally,
    below_success_rate,
    over_failure_percentage,
    success_rate_threshold,
)
from meshlib.view.trials import Gate

intervals = st.floats(0.0001, 100.0)


@given(st.integers(1, 60), intervals, st.one_of(st.none(), intervals), st.integers(0, 2**32))
def test_wait_is_below_its_window_and_below_the_ceiling(
    retry: int, base: float, ceiling: float | None, seed: int
) -> None:
    base_used = max(base, 0.001)
    highest = 10 * base_used if ceiling is None else max(ceiling, base_used)
    window = min(base_used * 2 ** (retry - 1), highest)

    wait = full_jitter_s(retry, base, ceiling, Random(seed))
    wait_grpc = grpc_jitter_s(retry, base, ceiling, Random(seed))

    assert 0 <= wait <= window
    assert abs(wait * 1000 - round(wait * 1000)) < 1e-6, "whole milliseconds"
    assert 0.8 * window <= wait_grpc <= 1.2 * window


@given(st.floats(0.0, 1e8))
def test_grpc_timeout_survives_the_wire_within_its_unit(seconds: float) -> None:
    text = format_grpc_timeout(seconds)
    found = parse_grpc_timeout_s(text)

    assert len(text) <= 9
    assert found is not None
    unit = {"m": 0.001, "S": 1.0, "M": 60.0, "H": 3600.0}[text[-1]]
    assert abs(found - seconds) <= unit


class BreakerMachine(RuleBasedStateMachine):
    """Whatever the order of events, there are never more retries than the budget allowed when each was taken."""

    def __init__(self) -> None:
        super().__init__()
        self.limits = CircuitBreakers(max_requests=20, retry_budget_percent=25.0, min_retry_concurrency=2)
        self.breaker = CircuitBreaker(self.limits, Lock())
        self.active = self.retries = 0

    @rule()
    def request(self) -> None:
        taken = self.breaker.try_acquire()
        assert taken == (self.active < 20)
        self.active += taken

    @precondition(lambda self: self.active > 0)
    @rule()
    def request_ends(self) -> None:
        self.breaker.release()
        self.active -= 1

    @rule()
    def retry(self) -> None:
        taken = self.breaker.try_acquire_retry()
        assert taken == (self.retries < max(self.active * 25 // 100, 2))
        self.retries += taken

    @precondition(lambda self: self.retries > 0)
    @rule()
    def retry_ends(self) -> None:
        self.breaker.release_retry()
        self.retries -= 1

    @invariant()
    def counts_agree(self) -> None:
        assert (self.breaker.active, self.breaker.retries) == (self.active, self.retries)
        assert self.retries <= 5, "a quarter of the most requests there can be"


class OutlierMachine(RuleBasedStateMachine):
    """Whatever the order of results, sweeps and updates, no more hosts are out than the ceiling allows."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.rng = Random(1)
        self.hosts = [f"h{index}" for index in range(6)]
        self.config = OutlierDetection(
            consecutive_5xx=2,
            consecutive_gateway_failure=1,
            enforcing_consecutive_gateway_failure=50,
            consecutive_local_origin_failure=2,
            split_external_local_origin_errors=True,
            success_rate_request_volume=3,
            success_rate_stdev_factor=500,
            enforcing_success_rate=70,
            failure_percentage_request_volume=2,
            failure_percentage_threshold=60,
            enforcing_failure_percentage=50,
            enforcing_failure_percentage_local_origin=50,
            max_ejection_percent=50,
            max_ejection_time_s=100.0,
            max_ejection_time_jitter_s=3.0,
        )
        self.detector = OutlierDetector(self.config, self.hosts, self.now)
        self.out: dict[str, float] = {}

    def note(self, ejection: Ejection | Unejection | None) -> None:
        if ejection is not None:
            assert isinstance(ejection, Ejection), "nobody is on probation"
            assert ejection.address not in self.out
            assert 100 * (len(self.out) + 1) / len(self.hosts) <= 50, "at the moment of the ejection"
            assert 30.0 <= ejection.ejection_time_s <= 103.0
            self.out[ejection.address] = self.now + ejection.ejection_time_s

    @rule(index=st.integers(0, 7), code=st.sampled_from([200, 404, 500, 503, 504]))
    def result(self, index: int, code: int) -> None:
        self.note(self.detector.record_code(f"h{index}", code, self.now, self.rng))

    @rule(index=st.integers(0, 7))
    def local_failure(self, index: int) -> None:
        self.note(self.detector.record_local_failure(f"h{index}", 503, self.now, self.rng))

    @rule(index=st.integers(0, 7))
    def connected(self, index: int) -> None:
        self.detector.record_connected(f"h{index}")

    @rule(seconds=st.floats(0.0, 60.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        for change in self.detector.sweep(self.now, self.rng):
            assert not isinstance(change, Trial)
            if isinstance(change, Unejection):
                assert self.now >= self.out.pop(change.address) - 1e-9, "never before its time"
            else:
                self.note(change)

    @rule(count=st.integers(4, 8))
    def update(self, count: int) -> None:
        self.hosts = [f"h{index}" for index in range(count)]
        self.detector.update(self.config, self.hosts)
        self.out = {address: until for address, until in self.out.items() if address in self.hosts}

    @invariant()
    def who_is_out_is_known(self) -> None:
        assert {address for address in self.hosts if self.detector.is_ejected(address)} == set(self.out)
        assert self.detector.ejections_active == len(self.out)


tallies = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)).map(sorted), max_size=12).map(
    lambda pairs: [(f"h{index}", Tally(total, good)) for index, (good, total) in enumerate(pairs)]
)


@given(tallies, st.integers(0, 400), st.integers(0, 3000), st.integers(0, 8))
def test_whoever_stands_out_is_worse_than_everybody_who_does_not(
    found: list[tuple[str, Tally]], volume: int, factor: int, hosts: int
) -> None:
    config = OutlierDetection(
        success_rate_request_volume=volume,
        success_rate_stdev_factor=factor,
        success_rate_minimum_hosts=hosts,
        failure_percentage_request_volume=volume,
        failure_percentage_minimum_hosts=hosts,
    )
    rates = {address: tally.rate for address, tally in found if tally.total >= max(volume, 1)}

    for outliers in (below_success_rate(found, config), over_failure_percentage(found, config)):
        assert set(outliers) <= set(rates), "a rate of few requests says nothing"
        assert not outliers or len(rates) >= hosts
        others = [rate for address, rate in rates.items() if address not in outliers]
        assert all(rates[address] < rate for address in outliers for rate in others)


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=30), st.integers(0, 5000))
def test_best_host_never_stands_out(rates: list[float], factor: int) -> None:
    assert max(rates) >= success_rate_threshold(rates, factor) - 1e-9


class ProbationMachine(RuleBasedStateMachine):
    """Whatever the order of results, sweeps and updates: a host on probation counts as out, and its own results decide.

    It is tried only when its time is over, so many successes without a failure between bring it back, and a failure takes
    it out at once whatever the ceiling says: it was out before.
    """

    SUCCESSES = 3

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.rng = Random(1)
        self.hosts = [f"h{index}" for index in range(6)]
        self.config = OutlierDetection(
            consecutive_5xx=2,
            max_ejection_percent=50,
            success_rate_minimum_hosts=100,
            failure_percentage_minimum_hosts=100,
            probation=Probation(self.SUCCESSES),
        )
        self.detector = OutlierDetector(self.config, self.hosts, self.now)
        self.out: dict[str, float] = {}
        self.proved: dict[str, int] = {}

    @rule(index=st.integers(0, 7), code=st.sampled_from([200, 404, 500, 503]))
    def result(self, index: int, code: int) -> None:
        address = f"h{index}"
        was_tried, out = address in self.proved, len(self.out)
        found = self.detector.record_code(address, code, self.now, self.rng)
        if was_tried:
            self.proved[address] += 1
            if code >= 500:
                assert isinstance(found, Ejection) and found.reason is EjectionReason.PROBATION
                del self.proved[address]
                self.out[address] = self.now + found.ejection_time_s
            elif self.proved[address] == self.SUCCESSES:
                assert isinstance(found, Unejection)
                del self.proved[address], self.out[address]
            else:
                assert found is None
        elif found is not None:
            assert isinstance(found, Ejection) and address not in self.out
            assert 100 * (out + 1) / len(self.hosts) <= 50
            self.out[address] = self.now + found.ejection_time_s

    @rule(seconds=st.floats(0.0, 60.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for change in self.detector.sweep(self.now, self.rng):
            assert isinstance(change, Trial), "nobody comes back untried"
            assert self.now >= self.out[change.address] - 1e-9, "never before its time"
            assert change.address not in self.proved
            self.proved[change.address] = 0

    @rule(count=st.integers(4, 8))
    def update(self, count: int) -> None:
        self.hosts = [f"h{index}" for index in range(count)]
        self.detector.update(self.config, self.hosts)
        self.out = {address: until for address, until in self.out.items() if address in self.hosts}
        self.proved = {address: number for address, number in self.proved.items() if address in self.hosts}

    @invariant()
    def who_is_out_is_known(self) -> None:
        assert {address for address in self.hosts if self.detector.is_ejected(address)} == set(self.out)
        assert {address for address in self.hosts if self.detector.is_on_probation(address)} == set(self.proved)
        assert self.detector.ejections_active == len(self.out)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.floats(0.0, 30.0), st.integers(0, 4)), max_size=40),
    st.floats(0.0, 100.0),
    st.floats(0.0, 2.0),
)
def test_extra_attempts_never_exceed_what_calls_and_time_have_earned(
    steps: list[tuple[int, float, int]], percent: float, min_per_s: float
) -> None:
    """Retries and hedges alike take from it, also when it is next to nothing."""
    budget = RetryBudget(percent=percent, min_per_s=min_per_s, window_s=10.0)
    account, now, calls, taken = RetryAccount(budget, 0.0), 0.0, 0, 0
    for more, wait_s, tries in steps:
        now += wait_s
        calls += more
        for _ in range(tries):
            taken += account.try_take(calls + taken, now)
        assert taken <= percent / 100 * calls + min_per_s * (10.0 + now) + 1e-6


@given(
    st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), max_size=60),
    st.integers(1, 3),
    st.floats(0.01, 0.5),
)
def test_gate_lets_through_no_more_than_its_rules(
    steps: list[tuple[float, bool]], most: int, interval_s: float
) -> None:
    gate, rules, now, active, passed = Gate(), Probation(3, most, interval_s), 0.0, 0, []
    for wait_s, ends in steps:
        now += wait_s
        active -= ends and active > 0
        if gate.passes(rules, active, now):
            active += 1
            passed.append(now)
        assert active <= most
    assert all(later - one >= interval_s - 1e-9 for one, later in pairwise(passed))


TestRetryBudget = BreakerMachine.TestCase
TestRetryBudget.settings = settings(max_examples=50, deadline=None)
TestOutlier = OutlierMachine.TestCase
TestProbation = ProbationMachine.TestCase
TestProbation.settings = settings(max_examples=80, deadline=None)
TestOutlier.settings = settings(max_examples=80, deadline=None)
