"""Laws of the policies that move with time, load or reports."""

from collections import Counter
from random import Random

from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshlib.balancing import EndpointState, build_picker
from meshlib.balancing.bounded_load import BoundedLoadPicker
from meshlib.balancing.client_side_weights import ClientSideWeightedPicker
from meshlib.balancing.hash_weights import flat_shares
from meshlib.balancing.maglev import MaglevPicker
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.peak_ewma import after_attempt
from meshlib.balancing.reported_weight import ReportedWeight, next_weight, usable_weight
from meshlib.balancing.slow_start import slow_start_factor
from meshlib.balancing.static_stride import FULL, StaticStride
from meshlib.balancing.subsetting import random_subset
from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, HealthStatus, Locality, LocalityEndpoints
from meshlib.model.lb_policy import (
    ClientSideWeightedRoundRobin,
    LbPolicy,
    LeastRequest,
    Maglev,
    PeakEwma,
    PickFirst,
    RandomSubsetting,
    RoundRobin,
    SlowStart,
)
from meshlib.model.load_report import LoadReport
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.model.request import Headers
from meshlib.model.snapshot import ClusterConfig

sizes = st.integers(1, 12)
slow_starts = st.builds(SlowStart, st.floats(0.01, 1000), st.floats(0.1, 10), st.floats(0, 1))


def hosts(count: int) -> list[EndpointState]:
    return [EndpointState(Endpoint(f"h{number}:1")) for number in range(count)]


@given(slow_starts, st.floats(0, 2000), st.floats(0, 2000))
def test_a_slow_start_never_goes_back(config: SlowStart, one: float, other: float) -> None:
    (host,) = hosts(1)
    host.healthy_since = 0.0
    early, late = sorted((one, other))

    before, after = (slow_start_factor(config, host, age) for age in (early, late))

    assert config.min_weight <= before <= after <= 1.0
    assert late < config.window_s or after == 1.0


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=8).filter(any), st.booleans())
@example([0.0, 5e-324], False)
@settings(max_examples=25, deadline=None)
def test_strides_meet_their_weights_exactly(weights: list[float], is_clamped: bool) -> None:
    left = iter(range(FULL * len(weights)))
    counted: Counter[int] = Counter()

    scheduler = StaticStride(weights, lambda: next(left), is_clamped=is_clamped)
    try:
        while True:
            counted[scheduler.next()] += 1
    except StopIteration:
        pass

    assert [counted[index] for index in range(len(weights))] == list(scheduler.weights)
    assert max(scheduler.weights) == FULL


reports = st.builds(
    LoadReport,
    cpu_utilization=st.floats(0, 10),
    application_utilization=st.floats(0, 10),
    qps=st.floats(0, 1e6),
    eps=st.floats(0, 1e6),
)


@given(st.lists(st.tuples(st.floats(0, 300), reports), max_size=8), st.booleans(), st.floats(0, 600))
def test_a_weight_is_used_only_while_it_is_fresh_and_after_the_blackout(
    found: list[tuple[float, LoadReport]], is_grpc: bool, later: float
) -> None:
    config, known, now = ClientSideWeightedRoundRobin(), None, 0.0
    for wait_s, report in found:
        now += wait_s
        known = next_weight(known, report, config, now, is_grpc=is_grpc)
        assert known is None or 0 < known.weight < 2**32
    weight = usable_weight(known, config, now + later)

    if weight:
        assert known is not None
        assert now + later - known.last_at < config.expiration_s
        assert now + later - known.since >= config.blackout_s


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=8), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_reported_weights_are_met(weights: list[float], seed: int) -> None:
    states, memory, rng = hosts(len(weights)), PolicyMemory(20.0), Random(seed)
    for state, weight in zip(states, weights, strict=True):
        state.reported = ReportedWeight(weight, 10.0, 0.0)
    picker, total = ClientSideWeightedPicker(states, ClientSideWeightedRoundRobin(), memory), sum(weights)

    counted = Counter(picker.choose(rng).address for _ in range(4000))

    for state, weight in zip(states, weights, strict=True):
        assert abs(counted[state.address] / 4000 - weight / total) < 0.02


outcomes: st.SearchStrategy[Outcome] = st.one_of(
    st.just(Failure(FailureKind.RESET, True)),
    st.builds(Response, st.sampled_from([200, 429, 500, 503])),
    st.builds(lambda seconds: Response(429, Headers((("retry-after", str(seconds)),))), st.integers(0, 10**6)),
)


@given(st.lists(st.tuples(outcomes, st.floats(0, 60), st.floats(0, 100)), max_size=12))
def test_the_latency_of_a_host_stays_within_what_was_seen(
    found: list[tuple[Outcome, float, float]],
) -> None:
    config, known, now, most = PeakEwma(), None, 0.0, 0.0
    for outcome, latency_s, wait_s in found:
        now += wait_s
        most = max(most, latency_s, config.penalty_s)
        known = after_attempt(known, outcome, latency_s, config, now)
        assert 0.0 <= known.seconds <= most
        assert known.at <= now + config.max_penalty_s


@given(sizes, st.integers(1, 12), st.integers(0, 2**64 - 1))
def test_a_subset_is_some_of_the_endpoints_each_once(count: int, size: int, seed: int) -> None:
    states = hosts(count)
    chosen = random_subset(states, size, seed)

    assert len(set(chosen)) == len(chosen) == min(count, size)
    assert set(chosen) <= set(states)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(100, 300), st.integers(0, 2**64 - 1))
def test_nobody_gets_more_than_its_bound_while_another_has_room(active: list[int], factor: int, hash_: int) -> None:
    states = hosts(len(active))
    for state, count in zip(states, active, strict=True):
        state.active = count
    shares, in_flight = flat_shares(states), sum(active)
    picker = BoundedLoadPicker(
        MaglevPicker(shares, Maglev(11)), shares, factor, PolicyMemory(in_flight=lambda: in_flight)
    )
    chosen = picker.pick(hash_, Random(0))
    slots = ((in_flight + 1) * factor + 99) // 100

    has_room = [state for state in states if state.active <= max(1, -(-slots // len(states)))]
    assert chosen in has_room or not has_room


policies: st.SearchStrategy[LbPolicy] = st.sampled_from(
    [
        RoundRobin(SlowStart(10.0)),
        LeastRequest(slow_start=SlowStart(10.0)),
        LeastRequest(full_scan=True),
        ClientSideWeightedRoundRobin(slow_start=SlowStart(10.0)),
        PickFirst(),
        PickFirst(shuffle=True),
        PeakEwma(),
        Maglev(11, balance_factor=120),
        RandomSubsetting(2, RoundRobin()),
        RandomSubsetting(2, PickFirst(), per_locality=True),
    ]
)
healths = st.sampled_from([HealthStatus.HEALTHY, HealthStatus.UNHEALTHY, HealthStatus.DRAINING])


@given(
    st.lists(st.tuples(healths, st.integers(1, 5), st.integers(0, 1), st.integers(0, 9)), min_size=1, max_size=10),
    policies,
    st.booleans(),
    st.integers(0, 2**32),
)
def test_who_is_out_is_never_picked_without_panic(
    found: list[tuple[HealthStatus, int, int, int]], policy: LbPolicy, locality_weighted: bool, seed: int
) -> None:
    endpoints = [Endpoint(f"h{n}:1", weight=weight, health=health) for n, (health, weight, _, _) in enumerate(found)]
    groups = tuple(
        LocalityEndpoints(
            Locality(str(number)),
            tuple(one for one, (_, _, place, _) in zip(endpoints, found, strict=True) if place == number),
            number + 1,
        )
        for number in (0, 1)
    )
    cluster = Cluster("c", EdsDiscovery("c"), policy, panic_threshold_percent=0.0, locality_weighted=locality_weighted)
    states = {endpoint.address: EndpointState(endpoint) for endpoint in endpoints}
    for state, (_, _, _, age_s) in zip(states.values(), found, strict=True):
        state.healthy_since = 100.0 - age_s
    config = ClusterConfig(cluster, ClusterLoadAssignment("c", groups))
    picker, rng = build_picker(config, states, memory=PolicyMemory(100.0, seed)), Random(seed)

    picked = [picker.pick(None, rng) for _ in range(20)]

    if any(endpoint.health is HealthStatus.HEALTHY for endpoint in endpoints):
        assert all(state is not None and state.is_healthy for state in picked)
    else:
        assert picked == [None] * 20
