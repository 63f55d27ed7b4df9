"""What request and response say about attempts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from meshlib.call import Attempt, Done, Sleep, Step
from meshlib.model.outcome import Failure, FailureKind, LocalReply, Response
from meshlib.model.request import Headers
from meshlib.model.retry import RetryPolicy
from meshlib.model.snapshot import Snapshot, TargetConfig
from meshlib.testing import service

MakeDriver = Callable[..., Any]
LATE = Failure(FailureKind.TIMEOUT, True)


def with_host(snapshot: Snapshot, **changes: Any) -> Snapshot:
    config = snapshot.targets["a"]
    assert isinstance(config, TargetConfig)
    host = replace(config.routes.virtual_hosts[0], **changes)
    return replace(snapshot, targets={"a": replace(config, routes=replace(config.routes, virtual_hosts=(host,)))})


def attempts_of(driver: Any, *outcomes: Any) -> list[Attempt]:
    call = driver.call()
    step: Step = call.start(1000.0)
    found = []
    for outcome in outcomes:
        while isinstance(step, Sleep):
            step = call.slept(1000.0)
        assert isinstance(step, Attempt)
        found.append(step)
        step = call.finished(outcome, 1000.0)
    return found


def test_retries_say_whether_a_timeout_was_the_reason(driver: MakeDriver) -> None:
    retry = RetryPolicy(frozenset({"5xx"}), 3, per_try_timeout_s=1.0)
    d = driver(with_host(service("a", "h:1", retry=retry), include_timeout_retry=True))
    found = attempts_of(d, LATE, Response(503), LATE, Response(200))
    assert [step.head.headers.get("x-envoy-is-timeout-retry") for step in found] == [None, "true", "false", "true"]


def test_responses_say_how_many_attempts_there_were(driver: MakeDriver) -> None:
    retry = RetryPolicy(frozenset({"5xx"}), 3)
    d = driver(with_host(service("a", "h:1", retry=retry), include_attempt_count_in_response=True))
    call = d.call()
    step = call.start(1000.0)
    step = call.finished(Response(503), 1000.0)
    while isinstance(step, Sleep):
        step = call.slept(1000.0)
    response = Response(200, Headers([("x-envoy-attempt-count", "9"), ("a", "b")]))
    call.finished(response, 1000.0)
    assert call.response_headers(response.headers).items == (("a", "b"), ("x-envoy-attempt-count", "2"))


def test_attempt_that_finds_no_host_counts(driver: MakeDriver) -> None:
    d = driver(with_host(service("a"), include_attempt_count_in_response=True))
    step = d.call().start(1000.0)
    assert isinstance(step, Done)
    assert isinstance(step.result, LocalReply)
    assert ("x-envoy-attempt-count", "1") in step.result.headers
