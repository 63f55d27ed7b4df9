from dataclasses import replace

import pytest

from meshlib.model.health import HealthCheck, HttpProbe
from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.request import Headers
from meshlib.resilience.health_check import CheckFailure, CheckResult, EndpointCheck, has_parts, judge_http, probe_of
from meshlib.testing import FixedRng

RNG = FixedRng(0.0)
PROBE = HttpProbe("/healthz")
CONFIG = HealthCheck(
    PROBE,
    timeout_s=1.0,
    interval_s=10.0,
    unhealthy_threshold=3,
    healthy_threshold=2,
    unhealthy_interval_s=20.0,
    unhealthy_edge_interval_s=3.0,
    healthy_edge_interval_s=4.0,
    no_traffic_interval_s=60.0,
    no_traffic_healthy_interval_s=90.0,
)
GOOD = CheckResult()
DEGRADED = CheckResult(is_degraded=True)
BAD = CheckResult(CheckFailure.ACTIVE)
RETRIABLE = CheckResult(CheckFailure.ACTIVE, is_retriable=True)
NETWORK = CheckResult(CheckFailure.NETWORK)
LATE = CheckResult(CheckFailure.NETWORK_TIMEOUT)


def fed(*results: CheckResult, check: EndpointCheck | None = None, config: HealthCheck = CONFIG) -> EndpointCheck:
    check = check or EndpointCheck()
    for result in results:
        check.ended(result, config, RNG, has_traffic=True)
    return check


def waits(*results: CheckResult, config: HealthCheck = CONFIG, has_traffic: bool = True) -> list[float]:
    check = EndpointCheck()
    return [check.ended(result, config, RNG, has_traffic=has_traffic).wait_s for result in results]


def test_an_endpoint_is_out_until_its_first_check_which_decides_alone() -> None:
    assert EndpointCheck().is_failed
    assert not fed(GOOD).is_failed
    assert fed(BAD).is_failed


def test_it_takes_successes_in_a_row_to_come_back() -> None:
    check = fed(GOOD, BAD)
    assert check.is_failed
    assert fed(GOOD, check=check).is_failed
    assert fed(BAD, GOOD, check=check).is_failed, "the row was broken"
    assert not fed(GOOD, check=check).is_failed


def test_a_service_that_says_it_is_not_well_is_out_at_once() -> None:
    assert fed(GOOD, BAD).is_failed


@pytest.mark.parametrize("failure", [NETWORK, LATE, RETRIABLE])
def test_other_failures_take_some_in_a_row(failure: CheckResult) -> None:
    check = fed(GOOD, failure, failure)
    assert not check.is_failed
    assert not fed(GOOD, failure, failure, check=check).is_failed, "the row was broken"
    assert fed(failure, check=check).is_failed


def test_degraded_comes_and_goes_with_the_header() -> None:
    check = fed(DEGRADED)
    assert (check.is_failed, check.is_degraded) == (False, True)
    assert not fed(GOOD, check=check).is_degraded


def test_times_between_checks() -> None:
    assert [10.0, 10.0, 3.0, 3.0, 20.0, 20.0, 4.0, 10.0] == waits(
        GOOD, GOOD, NETWORK, NETWORK, NETWORK, BAD, GOOD, GOOD
    )


def test_a_cluster_without_requests_is_checked_leisurely() -> None:
    assert [90.0, 60.0, 60.0, 90.0] == waits(GOOD, BAD, GOOD, GOOD, has_traffic=False)


@pytest.mark.parametrize(
    ("least_s", "most_s", "expected"),
    [(0.0, None, 10.0), (12.0, None, 12.0), (0.0, 7.0, 7.0), (9.0, 7.0, 9.0), (0.0, 0.0, 0.001)],
)
def test_waits_have_bounds_of_which_the_lower_one_wins(least_s: float, most_s: float | None, expected: float) -> None:
    config = replace(CONFIG, min_wait_s=least_s, max_wait_s=most_s)
    assert [expected] == waits(GOOD, config=config)


@pytest.mark.parametrize(("percent", "is_verified"), [(100, True), (31, True), (30, False), (0, False)])
def test_some_checks_do_without_the_name_of_the_service(percent: int, is_verified: bool) -> None:
    class Thirty(FixedRng):
        def getrandbits(self, k: int, /) -> int:
            return 130

    named = replace(PROBE, service_name=StringMatcher(StringKind.EXACT, "local"))
    found = probe_of(replace(CONFIG, probe=named, verify_percent=percent), Thirty(0.0))
    assert (named if is_verified else PROBE) == found


def test_jitter_is_added() -> None:
    config = replace(CONFIG, interval_jitter_s=2.0, interval_jitter_percent=50)
    check = EndpointCheck()
    turn = check.ended(GOOD, config, FixedRng(0.5), has_traffic=True)
    assert 10.0 + 2.5 + 1.0 == turn.wait_s


def test_there_is_always_some_time_between_checks() -> None:
    assert 0 < waits(GOOD, config=replace(CONFIG, interval_s=0.0))[0]


def events(*results: CheckResult, config: HealthCheck = CONFIG) -> list[tuple[str, ...]]:
    check = EndpointCheck()
    return [check.ended(result, config, RNG, has_traffic=True).events for result in results]


def test_events_tell_changes_and_the_first_failure() -> None:
    assert [("health_check_failure",), (), ("add_healthy",), ("eject_unhealthy",), ()] == events(
        BAD, GOOD, GOOD, BAD, BAD
    )
    assert [("add_healthy", "degraded_healthy_host"), (), ("no_longer_degraded_host",)] == events(
        DEGRADED, DEGRADED, GOOD
    )


def test_all_events_when_that_is_asked_for() -> None:
    config = replace(CONFIG, always_log_failures=True, always_log_success=True)
    expected = [
        ("add_healthy",),
        ("successful_health_check",),
        ("eject_unhealthy", "health_check_failure"),
        ("health_check_failure",),
        ("successful_health_check",),
        ("add_healthy",),
    ]
    assert expected == events(GOOD, GOOD, BAD, BAD, GOOD, GOOD, config=config)


def test_an_endpoint_that_waits_for_its_first_check_is_not_counted_until_then() -> None:
    for result in (GOOD, BAD):
        check = EndpointCheck(waits=True)
        assert check.is_excluded
        assert not fed(result, check=check).is_excluded


def test_an_endpoint_may_ask_not_to_be_counted_until_it_is_well() -> None:
    check = fed(GOOD, CheckResult(CheckFailure.ACTIVE, is_immediate=True))
    assert (check.is_failed, check.is_excluded) == (True, True)
    assert fed(BAD, GOOD, check=check).is_excluded
    assert not fed(GOOD, check=check).is_excluded


def test_an_answer_to_a_request_may_take_the_endpoint_out_at_once() -> None:
    check = fed(GOOD)
    assert check.fail_at_once()
    assert (check.is_failed, check.is_excluded) == (True, True)
    assert not check.fail_at_once(), "no news"


@pytest.mark.parametrize(
    ("probe", "status", "headers", "body", "expected"),
    [
        (PROBE, 200, {}, b"", GOOD),
        (PROBE, 204, {}, b"", "fails"),
        (replace(PROBE, expected=((204, 206),)), 204, {}, b"", GOOD),
        (replace(PROBE, expected=((204, 206),)), 206, {}, b"", "fails"),
        (replace(PROBE, retriable=((500, 504),)), 503, {}, b"", "retriable"),
        (replace(PROBE, retriable=((500, 504),)), 504, {}, b"", "fails"),
        (PROBE, 200, {"x-envoy-degraded": ""}, b"", DEGRADED),
        (PROBE, 500, {"x-envoy-immediate-health-check-fail": "true"}, b"", "immediate"),
        (PROBE, 200, {"x-envoy-immediate-health-check-fail": "true"}, b"", GOOD),
        (replace(PROBE, receive=(b"al", b"ive")), 200, {}, b"I am alive", GOOD),
        (replace(PROBE, receive=(b"ive", b"al")), 200, {}, b"I am alive", "fails"),
    ],
)
def test_what_answers_mean(
    probe: HttpProbe, status: int, headers: dict[str, str], body: bytes, expected: CheckResult | str
) -> None:
    found = judge_http(probe, status, Headers.of(headers), body)
    if isinstance(expected, CheckResult):
        assert expected == found
    else:
        assert CheckFailure.ACTIVE is found.failure
        assert found.is_retriable is (expected == "retriable")
        assert found.is_immediate is (expected == "immediate")


def test_the_service_must_be_the_right_one() -> None:
    probe = replace(PROBE, service_name=StringMatcher(StringKind.PREFIX, "loc"))
    name = "x-envoy-upstream-healthchecked-cluster"
    assert judge_http(probe, 200, Headers([(name, "locations-v2")]), b"").failure is None
    assert judge_http(probe, 200, Headers([(name, "orders")]), b"").failure is CheckFailure.ACTIVE
    assert judge_http(probe, 200, Headers(), b"").failure is CheckFailure.ACTIVE


def test_parts_do_not_overlap() -> None:
    assert has_parts((), b"")
    assert has_parts((b"aa", b"a"), b"aaa")
    assert not has_parts((b"aa", b"aa"), b"aaa")
