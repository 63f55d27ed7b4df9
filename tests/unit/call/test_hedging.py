"""Attempts that run beside each other: one machine, any order of ends."""

from collections.abc import Callable
from typing import Any

import pytest

from meshlib.call import Attempt, Call, Done, RaceStep, Step, Wait
from meshlib.events import AttemptFinished, CallFinished, HostEjected
from meshlib.model.cluster import CircuitBreakers, Cluster, EdsDiscovery, OutlierDetection
from meshlib.model.matcher import Fraction
from meshlib.model.outcome import Failure, FailureKind, LocalReply, Response
from meshlib.model.retry import HedgePolicy, RetryPolicy
from meshlib.model.route import RouteAction, SingleCluster
from meshlib.model.snapshot import Snapshot
from meshlib.testing import service

MakeDriver = Callable[..., Any]
OK, BUSY = Response(200), Response(503)
BROKEN = Failure(FailureKind.RESET, True)
LATE = Failure(FailureKind.TIMEOUT, True)
CROWDED = Failure(FailureKind.OVERFLOW, False)
ON = HedgePolicy(on_per_try_timeout=True)


def hedged(*addresses: str, hedge: HedgePolicy | None = ON, retries: int = 2, **options: Any) -> Snapshot:
    policy = RetryPolicy(frozenset({"5xx"}), retries, per_try_timeout_s=1.0, base_interval_s=0.1)
    action = RouteAction(SingleCluster(""), hedge=hedge, retry=options.pop("retry", policy), timeout_s=10.0)
    return service("a", *(addresses or ("h:1", "h:2", "h:3")), action=action, **options)


def attempt(step: Step | RaceStep) -> Attempt:
    assert isinstance(step, Attempt)
    return step


def wait(step: Step | RaceStep) -> float | None:
    assert isinstance(step, Wait)
    return step.seconds


def done(step: Step | RaceStep) -> Done:
    assert isinstance(step, Done)
    return step


def counts(driver: Any) -> tuple[int, int, int]:
    cluster = driver.mesh.cluster("a")
    return cluster.breaker.active, sum(state.active for state in cluster.states.values()), cluster.breaker.retries


def begun(driver: Any, count: int, **options: Any) -> tuple[Call, list[Attempt]]:
    """Start a call, and have its attempts be slow until so many are in flight; one second lies between them."""
    call = driver.call(can_hedge=True, **options)
    attempts = [attempt(call.start(1000.0))]
    assert wait(call.racing(1000.0)) == 1.0
    for number in range(1, count):
        now = 1000.0 + number
        step = call.waited(now)  # the least of a jittered wait is none
        if isinstance(step, Wait):
            assert step.seconds == 0.0
            step = call.waited(now)
        attempts.append(attempt(step))
        assert wait(call.racing(now)) == 1.0
    return call, attempts


def test_slow_attempt_goes_on_beside_the_next(driver: MakeDriver) -> None:
    d = driver(hedged())
    _call, (first, second) = begun(d, 2)

    assert (first.is_raced, first.timeout_s, first.endpoint.address) == (True, 10.0, "h:1")
    assert (second.number, second.timeout_s, second.endpoint.address) == (2, 9.0, "h:2")
    assert counts(d) == (2, 2, 1)


@pytest.mark.parametrize("winner", [0, 1, 2])
def test_first_good_response_wins_and_frees_the_others(driver: MakeDriver, winner: int) -> None:
    d = driver(hedged())
    call, attempts = begun(d, 3)

    end = done(call.ended(attempts[winner], OK, 1002.5))

    assert (end.result, end.flag) == (OK, "")
    assert counts(d) == (1, 1, 0)
    endpoint = call.endpoint
    assert endpoint is not None
    assert endpoint is attempts[winner].endpoint
    assert [event.failure for event in d.events if isinstance(event, AttemptFinished)] == ["", "cancelled", "cancelled"]
    call.close(1003.0)
    assert counts(d) == (0, 0, 0)
    assert d.events[-1] == CallFinished("http", "a", "GET", "default", "a", endpoint, 3, 3.0, 200, None, "-", False)


def test_bad_response_waits_for_the_others(driver: MakeDriver) -> None:
    d = driver(hedged())
    call, attempts = begun(d, 3)

    assert wait(call.ended(attempts[0], BUSY, 1002.1)) == pytest.approx(0.9)
    assert wait(call.ended(attempts[1], BROKEN, 1002.2)) == pytest.approx(0.8)
    assert counts(d) == (1, 1, 1)
    end = done(call.ended(attempts[2], BUSY, 1002.3))

    assert (end.result, end.flag) == (BUSY, "URX")
    call.close(1003.0)
    assert counts(d) == (0, 0, 0)


def test_failure_of_the_newest_is_repeated_while_others_run(driver: MakeDriver) -> None:
    d = driver(hedged())
    call, (first, second) = begun(d, 2)

    third = attempt(call.ended(second, BROKEN, 1001.5))  # the least of a jittered wait is none

    assert (third.number, counts(d)) == (3, (2, 2, 1))
    assert done(call.ended(first, OK, 1001.6)).result == OK
    call.close(1002.0)
    assert counts(d) == (0, 0, 0)


def test_hedges_are_no_more_than_the_retries_of_the_policy(driver: MakeDriver) -> None:
    d = driver(hedged(retries=1))
    call, attempts = begun(d, 2)

    assert wait(call.waited(1002.0)) is None
    assert (call.attempts, call.flag) == (2, "URX")
    assert done(call.ended(attempts[0], OK, 1003.0)).result == OK


def test_hedges_are_no_more_than_the_breaker_allows(driver: MakeDriver) -> None:
    options = Cluster("", EdsDiscovery(""), circuit_breakers=CircuitBreakers(max_retries=0))
    d = driver(hedged(template=options))
    call, _ = begun(d, 1)

    assert wait(call.waited(1001.0)) is None
    assert (call.attempts, call.flag, counts(d)) == (1, "UO", (1, 1, 0))


def test_limit_of_requests_holds_for_each_attempt(driver: MakeDriver) -> None:
    options = Cluster("", EdsDiscovery(""), circuit_breakers=CircuitBreakers(max_requests=1))
    d = driver(hedged(template=options))
    call, (first,) = begun(d, 1)

    step = call.waited(1001.0)
    while isinstance(step, Wait) and step.seconds == 0.0:
        step = call.waited(1001.0)

    assert wait(step) is None
    # As seen in Envoy, a hedge that found no room gives its retry permit back.
    assert (call.attempts, counts(d)) == (1, (1, 1, 0))
    assert done(call.ended(first, OK, 1002.0)).result == OK


def test_attempt_without_a_connection_is_no_end_while_others_run(driver: MakeDriver) -> None:
    d = driver(hedged())
    call, (first, second) = begun(d, 2)

    assert wait(call.ended(second, CROWDED, 1001.1)) is None
    assert done(call.ended(first, OK, 1001.2)).result == OK


def test_last_attempt_without_a_connection_ends_the_call(driver: MakeDriver) -> None:
    d = driver(hedged())
    call, (first,) = begun(d, 1)

    end = done(call.ended(first, CROWDED, 1000.1))

    assert isinstance(end.result, LocalReply)
    assert (end.flag, counts(d)) == ("UO", (0, 0, 0))


def test_deadline_ends_all_attempts(driver: MakeDriver) -> None:
    d = driver(hedged(template=Cluster("", EdsDiscovery(""), outlier_detection=OutlierDetection())))
    call, attempts = begun(d, 3)

    end = done(call.ended(attempts[1], LATE, 1010.0))

    assert (end.result, end.flag, counts(d)) == (LATE, "UT", (0, 0, 0))
    call.close(1010.0)
    assert counts(d) == (0, 0, 0)


def test_no_hedge_after_the_deadline(driver: MakeDriver) -> None:
    d = driver(hedged())
    call, _ = begun(d, 1, timeout_s=1.0)

    step = call.waited(1001.0)
    while isinstance(step, Wait) and step.seconds == 0.0:
        step = call.waited(1001.0)

    assert done(step).flag == "UT"
    assert (call.attempts, counts(d)[:2]) == (1, (0, 0))


def test_slow_attempts_count_once_against_their_endpoints(driver: MakeDriver) -> None:
    options = OutlierDetection(consecutive_5xx=1, max_ejection_percent=100)
    d = driver(hedged(template=Cluster("", EdsDiscovery(""), outlier_detection=options)))
    call, attempts = begun(d, 2)

    assert [event.endpoint.address for event in d.events if isinstance(event, HostEjected)] == ["h:1"]
    done(call.ended(attempts[1], OK, 1001.5))
    call.close(1002.0)
    assert [event.endpoint.address for event in d.events if isinstance(event, HostEjected)] == ["h:1"]


@pytest.mark.parametrize(
    ("method", "headers", "options", "is_hedged"),
    [
        ("GET", {}, {}, True),
        ("POST", {}, {}, False),
        ("POST", {"idempotency-key": "1"}, {}, True),
        ("POST", {}, {"guard_unsafe": False}, True),
        ("GET", {}, {"replayable": False}, False),
    ],
)
def test_only_what_may_be_repeated_is_hedged(
    driver: MakeDriver, method: str, headers: dict[str, str], options: dict[str, Any], is_hedged: bool
) -> None:
    d = driver(hedged())
    call = d.call(method, headers, can_hedge=True, **options)
    call.start(1000.0)
    call.racing(1000.0)

    step = call.waited(1001.0)
    while isinstance(step, Wait) and step.seconds == 0.0:
        step = call.waited(1001.0)

    assert isinstance(step, Attempt) is is_hedged


def test_shell_that_cannot_hedge_has_its_attempt_go_on(driver: MakeDriver) -> None:
    call = driver(hedged()).call()

    step = attempt(call.start(1000.0))

    assert (step.is_raced, step.timeout_s) == (False, 10.0)


@pytest.mark.parametrize(
    ("hedge", "asked", "is_raced", "timeout_s"),
    [(None, "true", True, 10.0), (ON, "false", False, 1.0), (ON, "maybe", True, 10.0), (None, "yes", False, 1.0)],
)
def test_request_header_decides(
    driver: MakeDriver, hedge: HedgePolicy | None, asked: str, is_raced: bool, timeout_s: float
) -> None:
    call = driver(hedged(hedge=hedge)).call(headers={"x-envoy-hedge-on-per-try-timeout": asked}, can_hedge=True)

    step = attempt(call.start(1000.0))

    assert (step.is_raced, step.timeout_s) == (is_raced, timeout_s)
    assert "x-envoy-hedge-on-per-try-timeout" not in step.head.headers


def test_expected_time_is_that_of_the_whole_call(driver: MakeDriver) -> None:
    d = driver(hedged())
    _, (first, second) = begun(d, 2)

    assert [step.head.headers.get("x-envoy-expected-rq-timeout-ms") for step in (first, second)] == ["10000", "9000"]


def test_initial_requests_need_the_word_of_the_route(driver: MakeDriver) -> None:
    policy = HedgePolicy(initial_requests=3, additional_chance=Fraction(100))
    call = driver(hedged(hedge=policy)).call(can_hedge=True)

    assert attempt(call.start(1000.0)).is_raced is False


def with_metadata(snapshot: Snapshot) -> Snapshot:
    from dataclasses import replace

    config = snapshot.targets["a"]
    host = config.routes.virtual_hosts[0]  # type: ignore[union-attr]
    route = replace(host.routes[0], metadata={"meshlib": {"hedge_initial_requests": True}})
    routes = replace(config.routes, virtual_hosts=(replace(host, routes=(route,)),))  # type: ignore[union-attr]
    return replace(snapshot, targets={"a": replace(config, routes=routes)})  # type: ignore[type-var]


def test_initial_requests_begin_together(driver: MakeDriver) -> None:
    policy = HedgePolicy(initial_requests=2, additional_chance=Fraction(100))
    d = driver(with_metadata(hedged(hedge=policy)))
    call = d.call(can_hedge=True)

    attempts = [attempt(call.start(1000.0)), attempt(call.racing(1000.0)), attempt(call.racing(1000.0))]

    assert wait(call.racing(1000.0)) is None
    assert (counts(d), len({step.endpoint.address for step in attempts})) == ((3, 3, 1), 3)
    assert wait(call.ended(attempts[0], BUSY, 1000.1)) is None
    assert done(call.ended(attempts[1], OK, 1000.2)).result == OK
    call.close(1000.3)
    assert counts(d) == (0, 0, 0)


def test_grpc_calls_are_hedged_by_the_policy_alone(driver: MakeDriver) -> None:
    d = driver(hedged(retry=RetryPolicy(frozenset({"unavailable"}), 2, per_try_timeout_s=1.0, base_interval_s=0.1)))
    call = d.call(grpc=True, can_hedge=True)
    first = attempt(call.start(1000.0))
    call.racing(1000.0)
    assert (wait(call.waited(1001.0)) or 0.0) == pytest.approx(0.08)
    second = attempt(call.waited(1001.1))

    assert second.head.headers.get("grpc-previous-rpc-attempts") == "1"
    assert wait(call.ended(first, Response(200, grpc_status=14), 1001.2)) == pytest.approx(0.9)
    assert done(call.ended(second, Response(200, grpc_status=0), 1001.3)).result == Response(200, grpc_status=0)


def test_closing_in_flight_gives_everything_back(driver: MakeDriver) -> None:
    d = driver(hedged())
    call, _ = begun(d, 3)

    call.close(1002.5)

    assert counts(d) == (0, 0, 0)
    assert sum(isinstance(event, AttemptFinished) and event.failure == "cancelled" for event in d.events) == 3
    with pytest.raises(RuntimeError, match="not in flight"):
        call.ended(attempt(begun(d, 1)[1][0]), OK, 1003.0)
