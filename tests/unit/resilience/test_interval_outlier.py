"""gRFC A50, step by step; chance draws 0.0 unless another number is given."""

import pytest

from meshlib.model.cluster import OutlierDetection, Probation
from meshlib.resilience.interval_outlier import IntervalDetector, compares_grpc_calls
from meshlib.resilience.outlier import Ejection, EjectionReason, Trial, Unejection
from meshlib.testing import FixedRng

LOW = FixedRng(0.0)
FIVE = tuple("abcde")
FAILING = OutlierDetection(
    enforcing_success_rate=0,
    enforcing_failure_percentage=100,
    failure_percentage_minimum_hosts=5,
    failure_percentage_request_volume=10,
    failure_percentage_threshold=50,
    max_ejection_percent=100,
)
RATE = OutlierDetection(success_rate_request_volume=10, max_ejection_percent=100)


def fed(config, results, hosts=FIVE):
    """Make a detector whose hosts have had ten calls each, of which so many failed."""
    detector = IntervalDetector(config, hosts, 0.0)
    feed(detector, results)
    return detector


def feed(detector, results, calls=10):
    for address, failed in results.items():
        for number in range(calls):
            assert detector.record(address, 1.0, is_success=number >= failed) is None


def out(detector):
    return {address for address in FIVE if detector.is_ejected(address)}


def test_nothing_happens_before_the_interval_is_over():
    detector = fed(FAILING, dict.fromkeys(FIVE, 10))
    assert () == detector.sweep(9.9, LOW)
    assert set() == out(detector)


def test_more_than_the_threshold_is_out():
    """At the threshold itself a host stays in; Envoy takes it out then."""
    detector = fed(FAILING, {"a": 5, "b": 6, "c": 0, "d": 0, "e": 0})
    assert (Ejection("b", EjectionReason.FAILURE_PERCENTAGE, 30.0),) == detector.sweep(10.0, LOW)
    assert {"b"} == out(detector)


def test_runs_of_errors_do_nothing():
    detector = fed(OutlierDetection(consecutive_5xx=1, max_ejection_percent=100), {"a": 10})
    assert set() == out(detector)
    assert () == detector.sweep(10.0, LOW)


@pytest.mark.parametrize("results", [{"a": 10, "b": 0, "c": 0, "d": 0}, {}])
def test_too_few_hosts_with_calls_are_not_compared(results):
    assert () == fed(FAILING, results).sweep(10.0, LOW)


def test_too_few_calls_are_not_judged_and_not_kept():
    detector = fed(FAILING, dict.fromkeys("bcde", 0))
    feed(detector, {"a": 9}, calls=9)
    assert () == detector.sweep(10.0, LOW)
    feed(detector, {"a": 1}, calls=1)
    feed(detector, dict.fromkeys("bcde", 0))
    assert () == detector.sweep(20.0, LOW)


def test_success_rate():
    """Means and deviations of A50's kind: one host of five at 0 % is two deviations below."""
    (ejection,) = fed(RATE, {"a": 10, "b": 0, "c": 0, "d": 0, "e": 0}).sweep(10.0, LOW)
    assert ("a", EjectionReason.SUCCESS_RATE) == (ejection.address, ejection.reason)
    assert () == fed(RATE, dict.fromkeys(FIVE, 10)).sweep(10.0, LOW)


@pytest.mark.parametrize(("percent", "expected"), [(0, 0), (1, 1), (20, 1), (21, 2), (40, 2), (41, 3), (100, 4)])
def test_ceiling_is_looked_at_before_each_ejection(percent, expected):
    config = OutlierDetection(
        enforcing_success_rate=0,
        enforcing_failure_percentage=100,
        failure_percentage_request_volume=10,
        max_ejection_percent=percent,
    )
    detector = fed(config, {"a": 10, "b": 10, "c": 10, "d": 10, "e": 0})
    assert expected == len(detector.sweep(10.0, LOW))
    assert expected == detector.ejections_active


@pytest.mark.parametrize(("draw", "expected"), [(0.29, 1), (0.30, 0)])
def test_enforcement_is_a_share(draw, expected):
    config = OutlierDetection(
        enforcing_success_rate=0,
        enforcing_failure_percentage=30,
        failure_percentage_request_volume=10,
        max_ejection_percent=100,
    )
    assert expected == len(fed(config, {"a": 10, "b": 0, "c": 0, "d": 0, "e": 0}).sweep(10.0, FixedRng(draw)))


def test_time_grows_and_is_forgiven():
    detector = IntervalDetector(FAILING, FIVE, 0.0)
    bad = {"a": 10, "b": 0, "c": 0, "d": 0, "e": 0}
    feed(detector, bad)
    assert 30.0 == detector.sweep(10.0, LOW)[0].ejection_time_s
    assert () == detector.sweep(40.0, LOW)  # "greater than"
    assert (Unejection("a"),) == detector.sweep(50.0, LOW)
    feed(detector, bad)
    assert 60.0 == detector.sweep(60.0, LOW)[0].ejection_time_s
    assert () == detector.sweep(120.0, LOW)
    assert (Unejection("a"),) == detector.sweep(130.0, LOW)
    for now in (140.0, 150.0):
        assert () == detector.sweep(now, LOW)  # forgiven a step each
    feed(detector, bad)
    assert 30.0 == detector.sweep(160.0, LOW)[0].ejection_time_s


def test_time_is_limited():
    config = OutlierDetection(
        enforcing_success_rate=0,
        enforcing_failure_percentage=100,
        failure_percentage_request_volume=10,
        base_ejection_time_s=30.0,
        max_ejection_time_s=20.0,
        max_ejection_percent=100,
    )
    assert 30.0 == fed(config, {"a": 10, "b": 0, "c": 0, "d": 0, "e": 0}).sweep(10.0, LOW)[0].ejection_time_s


def test_probation():
    config = OutlierDetection(
        enforcing_success_rate=0,
        enforcing_failure_percentage=100,
        failure_percentage_request_volume=10,
        max_ejection_percent=100,
        probation=Probation(successes=2),
    )
    detector = fed(config, {"a": 10, "b": 0, "c": 0, "d": 0, "e": 0})
    detector.sweep(10.0, LOW)
    assert (Trial("a"),) == detector.sweep(50.0, LOW)
    assert detector.is_on_probation("a") and detector.is_ejected("a")
    assert Ejection("a", EjectionReason.PROBATION, 60.0) == detector.record("a", 51.0, is_success=False)
    assert (Trial("a"),) == detector.sweep(120.0, LOW)
    assert detector.record("a", 121.0, is_success=True) is None
    assert Unejection("a") == detector.record("a", 121.0, is_success=True)
    assert 0 == detector.ejections_active


def test_hosts_that_go_are_forgotten():
    detector = fed(FAILING, {"a": 10, "b": 0, "c": 0, "d": 0, "e": 0})
    detector.sweep(10.0, LOW)
    detector.update(FAILING, "bcdef")
    assert (0, False) == (detector.ejections_active, detector.is_ejected("a"))
    assert detector.record("a", 11.0, is_success=False) is None


def test_passing_check_brings_back():
    detector = fed(FAILING, {"a": 10, "b": 0, "c": 0, "d": 0, "e": 0})
    detector.sweep(10.0, LOW)
    assert detector.uneject("a", 11.0)
    assert not detector.uneject("a", 11.0)
    assert set() == out(detector)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, False),
        (OutlierDetection(), True),
        (OutlierDetection(enforcing_success_rate=0), False),
        (OutlierDetection(enforcing_success_rate=0, enforcing_failure_percentage=1), True),
    ],
)
def test_rules_that_are_on(config, expected):
    assert expected is compares_grpc_calls(config)
