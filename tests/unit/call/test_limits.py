"""Timeouts, and the headers that ask for and tell of them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from meshlib.call import Attempt, Done, Sleep, Step
from meshlib.model.endpoint import Endpoint
from meshlib.model.outcome import Failure, FailureKind, Response
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import HeaderAdd, HeaderMutation, RouteAction, SingleCluster
from meshlib.testing import FixedRng, any_path, service, target

MakeDriver = Callable[..., Any]
TIMEOUT = Failure(FailureKind.TIMEOUT, True)
HALF = FixedRng(0.5)


def retry(*words: str, **changes: Any) -> RetryPolicy:
    return RetryPolicy(frozenset(words), **changes)


def attempt(step: Step) -> Attempt:
    assert isinstance(step, Attempt)
    return step


def sent(step: Step, name: str) -> str | None:
    return attempt(step).head.headers.get(name)


EXPECTED = "x-envoy-expected-rq-timeout-ms"


@pytest.mark.parametrize(
    ("route_s", "application_s", "expected"),
    [(None, None, 15.0), (3.0, None, 3.0), (0.0, None, None), (3.0, 1.0, 1.0), (3.0, 9.0, 3.0), (0.0, 2.0, 2.0)],
)
def test_shorter_of_route_and_application_counts(
    driver: MakeDriver, route_s: float | None, application_s: float | None, expected: float | None
) -> None:
    call = driver(service("a", "h:1", timeout_s=route_s)).call(timeout_s=application_s)

    step = attempt(call.start(1000.0))

    assert step.timeout_s == expected
    assert call.deadline == (None if expected is None else 1000.0 + expected)
    assert sent(step, EXPECTED) == (None if expected is None else str(int(expected * 1000)))


def test_end_of_the_global_timeout_is_final(driver: MakeDriver) -> None:
    call = driver(service("a", "h:1", timeout_s=2.0, retry=retry("5xx", "reset"))).call()
    call.start(1000.0)

    step = call.finished(TIMEOUT, 1002.0)

    assert isinstance(step, Done)
    assert (step.result, step.flag) == (TIMEOUT, "UT")


@pytest.mark.parametrize(
    ("words", "attempts"), [(("reset",), 2), (("5xx",), 2), (("connect-failure", "retriable-4xx"), 1)]
)
def test_end_of_one_try_is_repeated_like_a_reset(driver: MakeDriver, words: tuple[str, ...], attempts: int) -> None:
    policy = retry(*words, per_try_timeout_s=2.0)
    call = driver(service("a", "h:1", timeout_s=10.0, retry=policy)).call()
    assert attempt(call.start(1000.0)).timeout_s == 2.0

    call.finished(TIMEOUT, 1002.0)

    assert call.attempts == attempts
    assert call.flag == ("" if attempts == 2 else "UT")


def test_later_tries_have_what_is_left(driver: MakeDriver) -> None:
    policy = retry("reset", per_try_timeout_s=2.0, num_retries=5)
    call = driver(service("a", "h:1", timeout_s=5.0, retry=policy)).call()
    steps = [attempt(call.start(1000.0))]
    for now in (1002.0, 1004.0):
        steps.append(attempt(call.finished(TIMEOUT, now)))

    assert [step.timeout_s for step in steps] == [2.0, 2.0, 1.0]
    assert [sent(step, EXPECTED) for step in steps] == ["2000", "2000", "1000"]
    last = call.finished(TIMEOUT, 1005.0)
    assert isinstance(last, Done)
    assert last.flag == "UT"


def test_time_that_ends_during_a_wait_ends_the_call(driver: MakeDriver) -> None:
    policy = retry("5xx", base_interval_s=4.0, max_interval_s=4.0)
    call = driver(service("a", "h:1", timeout_s=1.0, retry=policy), HALF).call()
    call.start(1000.0)

    step = call.finished(Response(503), 1000.4)
    assert isinstance(step, Sleep)
    assert step.seconds == pytest.approx(0.6)
    step = call.slept(1001.0)

    assert isinstance(step, Done)
    assert (step.result, step.flag) == (Failure(FailureKind.TIMEOUT, True), "UT")


def test_per_try_timeout_not_below_the_global_one_does_not_count(driver: MakeDriver) -> None:
    policy = retry("reset", per_try_timeout_s=3.0)
    call = driver(service("a", "h:1", timeout_s=2.0, retry=policy)).call()
    assert attempt(call.start(1000.0)).timeout_s == 2.0

    assert isinstance(call.finished(TIMEOUT, 1002.0), Done)


def test_max_stream_duration_takes_the_place_of_the_timeout(driver: MakeDriver) -> None:
    action = RouteAction(SingleCluster("a"), max_stream_duration_s=7.0)
    call = driver(service("a", "h:1", action=action, timeout_s=2.0)).call()
    step = attempt(call.start(1000.0))

    assert (step.timeout_s, sent(step, EXPECTED)) == (7.0, None)
    end = call.finished(TIMEOUT, 1007.0)
    assert isinstance(end, Done)
    assert end.flag == "DT"


def test_listener_can_limit_every_route(driver: MakeDriver) -> None:
    snapshot = service("a", "h:1")
    route = any_path(RouteAction(SingleCluster("a")))
    d = driver(replace(snapshot, targets={"a": target("a", route, max_stream_duration_s=4.0)}))

    assert attempt(d.call().start(1000.0)).timeout_s == 4.0
    assert attempt(d.call(grpc=True).start(1000.0)).timeout_s == 4.0


@pytest.mark.parametrize(
    ("options", "application_s", "expected"),
    [
        ({"timeout_s": 2.0}, None, None),
        ({"timeout_s": 2.0}, 5.0, 5.0),
        ({"max_stream_duration_s": 3.0}, 5.0, 3.0),
        ({"max_stream_duration_s": 3.0}, 1.0, 1.0),
        ({"max_stream_duration_s": 3.0, "grpc_timeout_header_max_s": 4.0}, None, 4.0),
        ({"max_stream_duration_s": 0.0}, None, None),
    ],
)
def test_grpc_knows_stream_durations_only(
    driver: MakeDriver, options: dict[str, float], application_s: float | None, expected: float | None
) -> None:
    action = RouteAction(SingleCluster("a"), **options)  # type: ignore[arg-type]
    call = driver(service("a", "h:1", action=action)).call(grpc=True, timeout_s=application_s)

    step = attempt(call.start(1000.0))

    assert step.timeout_s == expected
    assert sent(step, EXPECTED) is None


def test_grpc_timeout_header_is_the_callers_limit_and_says_what_is_left(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1", retry=retry("unavailable")), HALF)
    call = d.call(headers={"grpc-timeout": "2S"}, grpc=True)

    first = attempt(call.start(1000.0))
    wait = call.finished(Response(200, grpc_status=14), 1000.5)
    second = call.slept(1001.0)

    assert isinstance(wait, Sleep)
    assert (first.timeout_s, sent(first, "grpc-timeout")) == (2.0, "2000m")
    assert sent(second, "grpc-timeout") == "1000m"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"x-envoy-upstream-rq-timeout-ms": "750"}, 0.75),
        ({"x-envoy-upstream-rq-timeout-ms": "0"}, None),
        ({"x-envoy-upstream-rq-timeout-ms": "soon"}, 3.0),
        ({"x-envoy-upstream-rq-per-try-timeout-ms": "200"}, 0.2),
        ({"x-envoy-upstream-rq-timeout-ms": "750", "x-envoy-upstream-rq-per-try-timeout-ms": "900"}, 0.75),
        ({EXPECTED: "5"}, 3.0),
    ],
)
def test_request_can_ask_for_other_timeouts(
    driver: MakeDriver, headers: dict[str, str], expected: float | None
) -> None:
    step = attempt(driver(service("a", "h:1", timeout_s=3.0)).call(headers=headers).start(1000.0))

    assert step.timeout_s == expected
    assert sent(step, EXPECTED) == (None if expected is None else str(round(expected * 1000)))
    assert not {"x-envoy-upstream-rq-timeout-ms", "x-envoy-upstream-rq-per-try-timeout-ms"} & {
        name for name, _ in step.head.headers.items
    }
    assert len(step.head.headers.all(EXPECTED)) == (0 if expected is None else 1)


def test_longer_timeout_asked_for_lets_the_try_count_again(driver: MakeDriver) -> None:
    """A try of 5 s means nothing in 3 s, but it does in the 9 s that the request asks for."""
    d = driver(service("a", "h:1", timeout_s=3.0, retry=retry("reset", per_try_timeout_s=5.0)))

    assert attempt(d.call().start(1000.0)).timeout_s == 3.0
    assert attempt(d.call(headers={"x-envoy-upstream-rq-timeout-ms": "9000"}).start(1000.0)).timeout_s == 5.0


def test_request_can_ask_for_retries_and_the_headers_stay_here(driver: MakeDriver) -> None:
    headers = {"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "2", "x-envoy-other": "stays", "accept": "*/*"}
    call = driver(service("a", "h:1")).call(headers=headers)
    step = call.start(1000.0)

    assert {name for name, _ in attempt(step).head.headers.items} == {"x-envoy-other", "accept", EXPECTED}
    while not isinstance(step, Done):
        step = call.finished(Response(500), 1000.0)
    assert call.attempts == 3


def test_route_can_ask_for_retries_by_a_header_it_adds(driver: MakeDriver) -> None:
    mutation = HeaderMutation(request_add=(HeaderAdd("x-envoy-retry-on", "5xx"),))
    route = replace(any_path(RouteAction(SingleCluster("a"))), mutation=mutation)
    call = driver(replace(service("a", "h:1"), targets={"a": target("a", route)})).call()

    assert sent(call.start(1000.0), "x-envoy-retry-on") is None
    assert attempt(call.finished(Response(500), 1000.0)).number == 2


@pytest.mark.parametrize("grpc", [False, True])
def test_attempts_are_counted_when_asked_for(driver: MakeDriver, grpc: bool) -> None:
    policy = retry("connect-failure", "unavailable")
    call = driver(service("a", "h:1", retry=policy, include_attempt_count=True)).call(
        headers={"x-envoy-attempt-count": "9"}, grpc=grpc
    )

    first = call.start(1000.0)
    second = call.finished(Failure(FailureKind.CONNECT, False), 1000.0)
    if isinstance(second, Sleep):
        second = call.slept(1000.1)

    assert attempt(first).head.headers.all("x-envoy-attempt-count") == ("1",)
    assert attempt(second).head.headers.all("x-envoy-attempt-count") == ("2",)


def test_endpoints_hostname_becomes_the_host(driver: MakeDriver) -> None:
    action = RouteAction(SingleCluster("a"), auto_host_rewrite=True)
    endpoints = (Endpoint("h:1", hostname="one.example"), Endpoint("h:2"))
    d = driver(service("a", *endpoints, action=action))

    assert [attempt(d.call().start(1000.0)).head.authority for _ in range(2)] == ["one.example", "a"]


def test_head_without_anything_to_say_is_sent_as_it_is(driver: MakeDriver) -> None:
    call = driver(service("a", "h:1", timeout_s=0.0)).call(headers={"accept": "*/*"})

    assert attempt(call.start(1000.0)).head is call.head
