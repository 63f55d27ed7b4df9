"""What a process does beyond the policies: its budget of retries, and one layer of them in a chain of calls."""

from collections.abc import Callable
from typing import Any

import pytest

from meshlib.call import Attempt, Call, Done, Sleep, Step
from meshlib.model.outcome import Failure, FailureKind, Response
from meshlib.model.retry import RetryBudget, RetryPolicy, Safety
from meshlib.testing import service
from meshlib.view import build_view

MakeDriver = Callable[..., Any]
RETRY = RetryPolicy(frozenset({"5xx"}), 3)
BUSY = Response(503)
REFUSED = Failure(FailureKind.CONNECT, False)


def finish(call: Call, outcome: Any, now: float = 1000.0) -> Done:
    """Have every attempt of a call end in the same way."""
    step: Step = call.start(now)
    while not isinstance(step, Done):
        step = call.slept(now) if isinstance(step, Sleep) else call.finished(outcome, now)
    call.close(now)
    return step


def with_safety(driver: Any, safety: Safety) -> Any:
    driver.mesh._view = build_view(driver.mesh.view.snapshot, None, now=1000.0, safety=safety)
    driver.target = driver.mesh.wait_target("a")
    return driver


def test_budget_is_shared_by_the_calls_to_a_cluster(driver: MakeDriver) -> None:
    d = with_safety(driver(service("a", "h:1", retry=RETRY)), Safety(RetryBudget(0, 1, 4)))

    ends = [finish(call := d.call(), BUSY) and (call.attempts, call.flag) for _ in range(3)]

    assert ends == [(4, "URX"), (2, "UO"), (1, "UO")]
    assert d.mesh.cluster("a").breaker.retries == 0


def test_budget_grows_with_time_and_calls(driver: MakeDriver) -> None:
    d = with_safety(driver(service("a", "h:1", retry=RETRY)), Safety(RetryBudget(100, 0, 10)))

    calls = [d.call() for _ in range(3)]
    for call in calls:
        finish(call, BUSY)

    assert [call.attempts for call in calls] == [2, 2, 2]


def test_without_a_budget_the_policy_decides(driver: MakeDriver) -> None:
    d = with_safety(driver(service("a", "h:1", retry=RETRY)), Safety(None))
    calls = [d.call() for _ in range(200)]
    assert {finish(call, BUSY).flag for call in calls} == {"URX"}
    assert {call.attempts for call in calls} == {4}


def test_default_budget_lets_a_burst_through(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1", retry=RETRY))
    calls = [d.call() for _ in range(50)]
    for call in calls:
        finish(call, BUSY)
    # 10 a second for 10 s, and 20 % of the calls.
    assert 100 < sum(call.attempts - 1 for call in calls) <= 110


@pytest.mark.parametrize(("outcome", "attempts"), [(BUSY, 1), (Failure(FailureKind.RESET, True), 1), (REFUSED, 4)])
def test_call_for_a_retry_repeats_what_reached_nobody(driver: MakeDriver, outcome: Any, attempts: int) -> None:
    call = driver(service("a", "h:1", retry=RETRY)).call(is_repeated=True)
    assert finish(call, outcome).result == outcome
    assert call.attempts == attempts


def test_one_layer_can_be_switched_off(driver: MakeDriver) -> None:
    d = with_safety(driver(service("a", "h:1", retry=RETRY)), Safety(one_layer=False))
    call = d.call(is_repeated=True)
    step = call.start(1000.0)
    assert isinstance(step, Attempt)
    step = call.finished(BUSY, 1000.0)
    while isinstance(step, Sleep):
        step = call.slept(1000.0)
    assert isinstance(step, Attempt)
    assert "x-meshlib-attempt" not in step.head.headers


def numbers(driver: Any, **options: Any) -> list[tuple[str | None, str | None]]:
    call = driver.call(**options)
    seen = []
    step = call.start(1000.0)
    while not isinstance(step, Done):
        if isinstance(step, Sleep):
            step = call.slept(1000.0)
            continue
        headers = step.head.headers
        seen.append((headers.get("x-meshlib-attempt"), headers.get("x-envoy-attempt-count")))
        step = call.finished(BUSY if not options.get("grpc") else Response(200, grpc_status=14), 1000.0)
    return seen


def test_retries_are_marked(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1", retry=RetryPolicy(frozenset({"5xx", "unavailable"}), 2)))
    assert numbers(d) == [(None, None), ("2", None), ("3", None)]
    assert numbers(d, grpc=True) == [(None, None), ("2", None), ("3", None)]


def test_mark_of_another_request_is_not_sent_on(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1", retry=RetryPolicy(frozenset({"5xx"}), 1)))
    assert numbers(d, headers={"x-meshlib-attempt": "7"}) == [(None, None), ("2", None)]


def test_number_that_is_sent_anyway_is_the_mark(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1", retry=RetryPolicy(frozenset({"5xx"}), 1), include_attempt_count=True))
    assert numbers(d) == [(None, "1"), (None, "2")]
