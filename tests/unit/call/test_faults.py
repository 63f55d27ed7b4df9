"""Injected faults: once per call, before anything else, never retried."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from meshlib.call import Attempt, Done, Sleep, Step
from meshlib.errors import UnavailableError
from meshlib.model.matcher import Fraction
from meshlib.model.outcome import Failure, FailureKind, LocalReply, Response
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import (
    DirectResponse,
    FaultAbort,
    FaultDelay,
    FaultPolicy,
    FaultRateLimit,
    Route,
    RouteAction,
    SingleCluster,
)
from meshlib.testing import any_path, service

MakeDriver = Callable[..., Any]
ALWAYS, NEVER = Fraction(100), Fraction(0)
ABORT = FaultAbort(ALWAYS, http_status=503)
DELAY = FaultDelay(2.0, ALWAYS)


def reply(step: Step) -> LocalReply:
    assert isinstance(step, Done)
    assert isinstance(step.result, LocalReply)
    return step.result


def test_abort_answers_at_once_and_is_never_retried(driver: MakeDriver) -> None:
    policy = RetryPolicy(frozenset({"5xx"}), num_retries=3)
    d = driver(service("a", "h:1", fault=FaultPolicy(abort=ABORT), retry=policy))
    call = d.call()

    answer = reply(call.start(1000.0))

    assert (answer.status, answer.flag, answer.body, call.attempts) == (503, "FI", b"fault filter abort", 0)
    assert isinstance(call.error(), UnavailableError)


def test_abort_comes_before_a_missing_cluster(driver: MakeDriver) -> None:
    d = driver(replace(service("a", fault=FaultPolicy(abort=ABORT)), clusters={}))

    assert reply(d.call().start(1000.0)).flag == "FI"


def test_delay_then_the_call(driver: MakeDriver) -> None:
    call = driver(service("a", "h:1", fault=FaultPolicy(delay=DELAY), timeout_s=1.0)).call()

    step = call.start(1000.0)
    assert isinstance(step, Sleep)
    assert step.seconds == 2.0
    step = call.slept(1002.0)
    assert isinstance(step, Attempt)
    assert step.timeout_s == 1.0, "the route's timeout begins after the delay"
    step = call.finished(Response(200), 1002.1)

    assert isinstance(step, Done)
    assert step.flag == "DI"


def test_delay_then_abort(driver: MakeDriver) -> None:
    call = driver(service("a", "h:1", fault=FaultPolicy(delay=DELAY, abort=ABORT))).call()
    assert isinstance(call.start(1000.0), Sleep)

    step = call.slept(1002.0)

    assert isinstance(step, Done)
    assert (reply(step).flag, step.flag, call.attempts) == ("FI", "DI,FI", 0)


def test_share_of_nothing_injects_nothing(driver: MakeDriver) -> None:
    fault = FaultPolicy(delay=FaultDelay(2.0, NEVER), abort=FaultAbort(NEVER, http_status=500))

    assert isinstance(driver(service("a", "h:1", fault=fault)).call().start(1000.0), Attempt)


def test_delay_is_cut_by_the_applications_time(driver: MakeDriver) -> None:
    call = driver(service("a", "h:1", fault=FaultPolicy(delay=DELAY))).call(timeout_s=0.5)
    step = call.start(1000.0)
    assert isinstance(step, Sleep)
    assert step.seconds == 0.5

    step = call.slept(1000.5)

    assert isinstance(step, Done)
    assert step.result == Failure(FailureKind.TIMEOUT, False)
    assert step.flag == "DI,UT"


def test_delay_is_cut_by_the_stream_duration(driver: MakeDriver) -> None:
    action = RouteAction(SingleCluster("a"), max_stream_duration_s=1.5)
    call = driver(service("a", "h:1", fault=FaultPolicy(delay=DELAY), action=action)).call()
    step = call.start(1000.0)
    assert isinstance(step, Sleep)
    assert step.seconds == 1.5

    step = call.slept(1001.5)

    assert isinstance(step, Done)
    assert step.flag == "DI,DT"


def test_grpc_abort_has_its_status(driver: MakeDriver) -> None:
    fault = FaultPolicy(abort=FaultAbort(ALWAYS, grpc_status=7))

    assert reply(driver(service("a", "h:1", fault=fault)).call(grpc=True).start(1000.0)).grpc_status == 7


@pytest.mark.parametrize("ends", ["abort", "attempt"])
def test_at_most_so_many_faults_at_a_time(driver: MakeDriver, ends: str) -> None:
    fault = FaultPolicy(delay=DELAY, abort=ABORT if ends == "abort" else None, max_active=1)
    d = driver(service("a", "h:1", fault=fault))
    first = d.call()
    assert isinstance(first.start(1000.0), Sleep)

    assert isinstance(d.call().start(1000.0), Attempt)
    first.slept(1002.0)
    assert isinstance(d.call().start(1000.0), Attempt), "the fault lasts as long as its call"
    first.close(1002.0)
    assert d.target.faults.active == 0
    assert isinstance(d.call().start(1000.0), Sleep)


def test_closing_during_the_delay_ends_the_fault(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1", fault=FaultPolicy(delay=DELAY)))
    call = d.call()
    call.start(1000.0)
    call.close(1000.5)

    assert d.target.faults.active == 0


def with_listener_fault(snapshot: Any, fault: FaultPolicy | None, route: Route | None = None) -> Any:
    config = snapshot.targets["a"]
    host = config.routes.virtual_hosts[0]
    routes = replace(config.routes, virtual_hosts=(replace(host, routes=(host.routes if route is None else (route,))),))
    listener = replace(config.listener, fault=fault, routes=routes)
    return replace(snapshot, targets={"a": replace(config, listener=listener, routes=routes)})


TEAPOT = any_path(DirectResponse(418, b"teapot"), fault=FaultPolicy(DELAY, ABORT))


def test_fault_comes_before_the_answer_of_a_route(driver: MakeDriver) -> None:
    d = driver(with_listener_fault(service("a", "h:1"), None, TEAPOT))
    call = d.call()
    step = call.start(1000.0)
    assert isinstance(step, Sleep)
    assert (step.seconds, d.target.faults.active) == (2.0, 1)
    assert reply(call.slept(1002.0)).status == 503
    assert call.flag == "DI,FI"
    call.close(1002.0)
    assert d.target.faults.active == 0


def test_answer_of_a_route_comes_after_a_delay(driver: MakeDriver) -> None:
    route = replace(TEAPOT, fault=FaultPolicy(DELAY))
    call = driver(with_listener_fault(service("a", "h:1"), None, route)).call()
    call.start(1000.0)
    assert reply(call.slept(1002.0)).status == 418
    assert call.flag == "DI"


def test_grpc_call_that_a_route_answers_has_no_fault(driver: MakeDriver) -> None:
    call = driver(with_listener_fault(service("a", "h:1"), None, TEAPOT)).call(grpc=True)
    assert reply(call.start(1000.0)).flag != "FI"


@pytest.mark.parametrize(("grpc", "flag"), [(False, "FI"), (True, "NR")])
def test_request_without_a_route_meets_the_filters_own_fault(driver: MakeDriver, grpc: bool, flag: str) -> None:
    nowhere = any_path(RouteAction(SingleCluster("a")), prefix="/other")
    d = driver(with_listener_fault(service("a", "h:1"), FaultPolicy(abort=ABORT), nowhere))
    assert reply(d.call(grpc=grpc).start(1000.0)).flag == flag


def test_limit_of_the_body_is_for_the_shell_and_counts_as_a_fault(driver: MakeDriver) -> None:
    fault = FaultPolicy(rate_limit=FaultRateLimit(2, ALWAYS), max_active=1)
    d = driver(service("a", "h:1", fault=fault))
    call, other = d.call(), d.call()
    assert isinstance(call.start(1000.0), Attempt)
    assert isinstance(other.start(1000.0), Attempt)
    assert (call.body_rate, other.body_rate, d.target.faults.active) == (2048, 0, 1)
    call.close(1000.0)
    assert d.target.faults.active == 0
