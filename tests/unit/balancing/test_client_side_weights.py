"""Client-side weighted round robin: weights out of load reports, and the static stride scheduler."""

from collections import Counter
from collections.abc import Callable
from itertools import count
from types import MappingProxyType

import pytest

from meshlib.balancing import EndpointState
from meshlib.balancing.client_side_weights import ClientSideWeightedPicker
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.reported_weight import ReportedWeight, fill_weights, next_weight, usable_weight, utilization
from meshlib.balancing.static_stride import FULL, StaticStride
from meshlib.model.lb_policy import ClientSideWeightedRoundRobin, SlowStart
from meshlib.model.load_report import LoadReport
from meshlib.testing import SeededRng

MakeStates = Callable[..., list[EndpointState]]
CONFIG = ClientSideWeightedRoundRobin()


class _Over(Exception):
    """The sequence has come to its end."""


def drawn(weights: list[float], numbers: range, *, is_clamped: bool = False) -> list[int]:
    """All indices that a range of sequence numbers gives."""
    left = iter(numbers)

    def following() -> int:
        for number in left:
            return number
        raise _Over

    scheduler, found = StaticStride(weights, following, is_clamped=is_clamped), []
    try:
        while True:
            found.append(scheduler.next())
    except _Over:
        return found


def test_equal_weights_alternate() -> None:
    assert drawn([1, 1], range(6)) == [0, 1, 0, 1, 0, 1]


def test_over_a_whole_round_each_has_exactly_its_scaled_weight() -> None:
    weights = [1.0, 3.0, 2.0]

    assert Counter(drawn(weights, range(FULL * 3))) == {0: 21845, 1: 65535, 2: 43690}


def test_numbers_wrap_at_32_bits() -> None:
    assert drawn([1, 1], range(2**32, 2**32 + 4)) == [0, 1, 0, 1]


def test_a_weight_that_is_not_known_is_the_mean() -> None:
    assert StaticStride([0, 2, 4], count().__next__).weights == (49151, 32768, FULL)


def test_grpc_keeps_weights_near_the_mean() -> None:
    free = StaticStride([1] * 20 + [1000], count().__next__).weights
    near = StaticStride([1] * 20 + [1000], count().__next__, is_clamped=True).weights

    assert (free[0], free[-1]) == (66, FULL)
    # The greatest may be ten times the mean of 48.57; the least a hundredth of it at least.
    assert (near[0], near[-1]) == (135, FULL)
    assert StaticStride([1e-9, 1], count().__next__, is_clamped=True).weights[0] == 328


@pytest.mark.parametrize(
    ("report", "metrics", "expected"),
    [
        (LoadReport(cpu_utilization=0.5), (), 0.5),
        (LoadReport(cpu_utilization=0.5, application_utilization=0.9), (), 0.9),
        (LoadReport(application_utilization=0.9, mem_utilization=0.2), ("mem_utilization",), 0.2),
        (
            LoadReport(named_metrics=MappingProxyType({"q": 0.3}), utilization=MappingProxyType({"gpu": 0.7})),
            ("named_metrics.q", "utilization.gpu", "cpu_utilization"),
            0.7,
        ),
        (
            LoadReport(cpu_utilization=0.1, named_metrics=MappingProxyType({"q": float("nan")})),
            ("named_metrics.q",),
            0.1,
        ),
        (LoadReport(cpu_utilization=0.1), ("named_metrics.q",), 0.1),
    ],
)
def test_utilisation_is_the_greatest_named_metric_else_the_applications_else_the_cpus(
    report: LoadReport, metrics: tuple[str, ...], expected: float
) -> None:
    assert utilization(report, metrics) == expected


def weight(report: LoadReport, config: ClientSideWeightedRoundRobin = CONFIG, *, is_grpc: bool = True) -> float | None:
    found = next_weight(None, report, config, 0.0, is_grpc=is_grpc)
    return None if found is None else found.weight


def test_a_weight_is_requests_by_utilisation() -> None:
    assert weight(LoadReport(cpu_utilization=0.5, qps=100.0)) == 200.0


@pytest.mark.parametrize("report", [LoadReport(qps=100.0), LoadReport(cpu_utilization=0.5), LoadReport()])
def test_a_report_without_a_weight_changes_nothing(report: LoadReport) -> None:
    before = ReportedWeight(7.0, 1.0, 0.0)

    assert next_weight(before, report, CONFIG, 2.0, is_grpc=True) is before


def test_errors_weigh_as_the_penalty_says() -> None:
    report = LoadReport(cpu_utilization=0.5, qps=100.0, eps=50.0)
    doubled = ClientSideWeightedRoundRobin(error_penalty=2.0)

    assert weight(report) == 100.0  # 0.5 + 50 / 100 * 1.0
    assert weight(report, is_grpc=False) == 200.0  # Envoy's penalty that is not set is 0
    assert weight(report, doubled, is_grpc=False) == 66.0  # whole numbers in Envoy
    assert weight(report, doubled) == pytest.approx(66.67, abs=0.01)
    assert weight(LoadReport(cpu_utilization=1.0, qps=0.5), is_grpc=False) == 1.0
    assert weight(LoadReport(cpu_utilization=1.0, qps=0.5)) == 0.5


def test_errors_alone_are_a_utilisation_in_envoy_only() -> None:
    report, config = LoadReport(qps=100.0, eps=50.0), ClientSideWeightedRoundRobin(error_penalty=1.0)

    assert weight(report, config) is None
    assert weight(report, config, is_grpc=False) == 200.0


def reports(*times: float) -> ReportedWeight | None:
    known = None
    for now in times:
        known = next_weight(known, LoadReport(cpu_utilization=1.0, qps=5.0), CONFIG, now, is_grpc=True)
    return known


def test_a_weight_is_used_after_the_blackout_and_until_it_expires() -> None:
    known = reports(100.0, 105.0)

    assert [usable_weight(known, CONFIG, now) for now in (109.9, 110.0, 284.9, 285.0)] == [0.0, 5.0, 5.0, 0.0]
    assert usable_weight(None, CONFIG, 0.0) == 0.0


def test_after_it_has_expired_the_blackout_begins_anew() -> None:
    known = reports(0.0, 200.0)

    assert [usable_weight(known, CONFIG, now) for now in (209.0, 210.0)] == [0.0, 5.0]


def test_without_a_blackout_the_first_report_counts() -> None:
    assert usable_weight(reports(1.0), ClientSideWeightedRoundRobin(blackout_s=0.0), 1.0) == 5.0


def test_hosts_without_a_weight_get_the_mean_or_the_median() -> None:
    assert fill_weights([0, 1, 2, 6], is_grpc=True) == [3, 1, 2, 6]
    assert fill_weights([0, 1, 2, 6], is_grpc=False) == [2, 1, 2, 6]
    assert fill_weights([1, 0, 2], is_grpc=False) == [1, 1.5, 2]
    assert fill_weights([0, 0], is_grpc=True) is None


def counts(picker: ClientSideWeightedPicker, picks: int) -> list[int]:
    rng = SeededRng()
    counted = Counter(picker.choose(rng).address for _ in range(picks))
    return [counted[address] for address in sorted(counted)]


def test_it_is_round_robin_until_there_are_weights(states: MakeStates) -> None:
    hosts, memory = states(1, 1, 1), PolicyMemory(0.0)
    picker = ClientSideWeightedPicker(hosts, CONFIG, memory)

    assert counts(picker, 300) == [100, 100, 100]


def test_weights_are_looked_at_once_a_period(states: MakeStates) -> None:
    hosts, memory = states(1, 1), PolicyMemory(0.0)
    picker = ClientSideWeightedPicker(hosts, ClientSideWeightedRoundRobin(blackout_s=0.0), memory)
    counts(picker, 2)
    hosts[0].reported, hosts[1].reported = ReportedWeight(1.0, 0.5, 0.5), ReportedWeight(3.0, 0.5, 0.5)

    memory.now = 0.9
    assert counts(picker, 400) == [200, 200]
    memory.now = 1.0
    assert counts(picker, 400) == pytest.approx([100, 300], abs=2)
    memory.now = 181.0
    assert counts(picker, 400) == [200, 200], "expired"


def test_slow_start_holds_new_hosts_back(states: MakeStates) -> None:
    hosts, memory = states(1, 1), PolicyMemory(100.0)
    hosts[0].healthy_since, hosts[1].healthy_since = 0.0, 100.0
    config = ClientSideWeightedRoundRobin(slow_start=SlowStart(10.0, min_weight=0.25))
    picker = ClientSideWeightedPicker(hosts, config, memory)

    assert counts(picker, 500) == pytest.approx([400, 100], abs=2)
    memory.now = 110.0
    assert counts(picker, 500) == [250, 250]
