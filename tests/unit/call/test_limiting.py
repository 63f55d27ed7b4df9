"""Calls on their way through limiting filters."""

from dataclasses import replace
from typing import Any

import pytest

from meshlib.call import Attempt, Call, Done, Sleep
from meshlib.model.filters import (
    AdaptiveConcurrency,
    AdmissionControl,
    LimitFilter,
    ListedLimit,
    LocalRateLimit,
    TokenBucket,
)
from meshlib.model.matcher import Fraction
from meshlib.model.outcome import Failure, FailureKind, LocalReply, Response
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import FaultAbort, FaultDelay, FaultPolicy
from meshlib.model.snapshot import Snapshot
from meshlib.testing import FixedRng, service

ALL = Fraction(100)
BUCKET = TokenBucket(1, 1, 600.0)
RATE = LocalRateLimit(BUCKET, ALL, ALL)
NARROW = AdaptiveConcurrency(min_limit=1)


def limited(*limits: LimitFilter, after_fault: bool = False, fault: FaultPolicy | None = None) -> Snapshot:
    snapshot = service("checkout", "10.0.0.1:80", fault=fault)
    target = snapshot.targets["checkout"]
    listed = tuple(ListedLimit(f"f{n}", limit, is_after_fault=after_fault) for n, limit in enumerate(limits))
    return replace(snapshot, targets={"checkout": replace(target, listener=replace(target.listener, limits=listed))})


def run(driver: Any, status: int = 200) -> Response | Failure | LocalReply:
    """Carry a call to its end."""
    call: Call = driver.call()
    step = call.start(driver.clock())
    if isinstance(step, Attempt):
        step = call.finished(Response(status), driver.clock())
    call.close(driver.clock())
    assert isinstance(step, Done)
    return step.result


def test_without_a_token_the_mesh_answers(driver):
    d = driver(limited(RATE))
    assert 200 == run(d).status
    call = d.call()
    step = call.start(d.clock())
    assert isinstance(step, Done) and isinstance(step.result, LocalReply)
    assert (429, "RL", b"local_rate_limited") == (step.result.status, call.flag, step.result.body)
    call.close(d.clock())
    assert 0 == d.mesh.cluster("checkout").breaker.active


@pytest.mark.parametrize(("is_exhaustion", "code"), [(False, 14), (True, 8)])
def test_a_grpc_call_gets_a_status(driver, is_exhaustion, code):
    d = driver(limited(replace(RATE, bucket=TokenBucket(0, 1, 1.0), is_exhaustion=is_exhaustion)))
    call = d.call(grpc=True)
    step = call.start(d.clock())
    assert isinstance(step, Done) and isinstance(step.result, LocalReply)
    assert code == step.result.grpc_status


def test_retries_take_no_further_token(driver):
    """The filter stands before the router, which retries."""
    retry = RetryPolicy(frozenset({"5xx"}), num_retries=1)
    snapshot = limited(RATE)
    target = snapshot.targets["checkout"]
    (host,) = target.routes.virtual_hosts
    routes = replace(target.routes, virtual_hosts=(replace(host, retry=retry),))
    d = driver(replace(snapshot, targets={"checkout": replace(target, routes=routes)}))
    call = d.call()
    assert isinstance(call.start(d.clock()), Attempt)
    step = call.finished(Response(503), d.clock())
    step = call.slept(d.clock()) if isinstance(step, Sleep) else step
    assert isinstance(step, Attempt) and step.number == 2
    call.finished(Response(200), d.clock())
    call.close(d.clock())
    assert 429 == run(d).status


def test_counts_go_on_over_an_update_that_leaves_the_filter_alone(driver):
    snapshot = limited(RATE)
    d = driver(snapshot)
    run(d)
    other = service("checkout", "10.0.0.1:80", timeout_s=3.0).targets["checkout"]
    listener = replace(other.listener, limits=snapshot.targets["checkout"].listener.limits)
    d.mesh.publish(replace(snapshot, targets={"checkout": replace(other, listener=listener)}, number=2))
    d.target = d.mesh.wait_target("checkout")
    assert 429 == run(d).status


def test_a_changed_filter_counts_anew(driver):
    d = driver(limited(RATE))
    run(d)
    d.mesh.publish(limited(replace(RATE, status=503)))
    d.target = d.mesh.wait_target("checkout")
    assert [200, 503] == [run(d).status for _ in range(2)]


def test_filters_before_a_delay_are_passed_before_it_and_others_after(driver):
    fault = FaultPolicy(delay=FaultDelay(1.0, ALL))
    for after_fault, taken in ((False, 429), (True, 200)):
        d = driver(limited(RATE, after_fault=after_fault, fault=fault))
        delayed = d.call()
        assert isinstance(delayed.start(d.clock()), Sleep)
        other = d.call()
        step = other.start(d.clock())
        assert (taken == 429) == isinstance(step, Done)
        delayed.close(d.clock())
        other.close(d.clock())


def test_what_a_fault_aborts_has_not_come_to_filters_behind_it(driver):
    d = driver(limited(RATE, after_fault=True, fault=FaultPolicy(abort=FaultAbort(ALL, http_status=418))))
    assert [418, 418] == [run(d).status for _ in range(2)]


def test_a_place_under_the_concurrency_limit_is_given_back_whatever_happens(driver):
    d = driver(limited(NARROW))
    first, second = d.call(), d.call()
    step = first.start(d.clock())
    assert isinstance(step, Attempt)
    refused = second.start(d.clock())
    assert isinstance(refused, Done) and isinstance(refused.result, LocalReply)
    assert (503, b"reached concurrency limit") == (refused.result.status, refused.result.body)
    second.close(d.clock())
    first.close(d.clock())  # cancelled while its attempt runs
    first.close(d.clock())
    third = d.call()
    step = third.start(d.clock())
    third.finished(Failure(FailureKind.RESET, True), d.clock())
    third.close(d.clock())
    assert 200 == run(d).status
    (limiter,) = d.target._limiters.values()
    assert 0 == limiter.active


def test_only_calls_that_were_answered_tell_a_latency(driver):
    d = driver(limited(replace(NARROW, min_rtt_requests=2)))
    (call,) = [d.call()]
    call.start(d.clock())
    d.clock.advance(5.0)
    call.close(d.clock())
    limiter = next(iter(d.target._limiters.values()))
    assert [] == limiter._samples
    run(d)
    assert [0.0] == limiter._samples


def test_admission_counts_answers_failures_and_those_that_left(driver):
    d = driver(limited(AdmissionControl()), FixedRng(0.9))
    run(d)
    run(d, 500)
    call = d.call()
    call.start(d.clock())
    call.finished(Failure(FailureKind.CONNECT, False), d.clock())
    call.close(d.clock())
    left = d.call()
    left.start(d.clock())
    left.close(d.clock())
    (controller,) = d.target._limiters.values()
    assert (4, 1) == (controller._requests, controller._successes)


def test_a_failing_service_is_spared(driver):
    d = driver(limited(AdmissionControl(max_rejection=1.0)), FixedRng(0.5))
    assert [500, 500, 503, 503] == [run(d, 500).status for _ in range(4)]
    (controller,) = d.target._limiters.values()
    assert 2 == controller._requests, "what is refused does not count"


def test_what_one_filter_refuses_the_ones_before_it_have_let_in(driver):
    d = driver(limited(AdmissionControl(), NARROW, replace(RATE, bucket=TokenBucket(0, 1, 1.0))))
    assert 429 == run(d).status
    controller, limiter, _ = d.target._limiters.values()
    assert (1, 1, 0) == (controller._requests, controller._successes, limiter.active)


def test_limits_are_told_on_every_answer(driver):
    d = driver(limited(replace(RATE, bucket=TokenBucket(2, 1, 600.0), tells_limits=True)))
    call = d.call()
    call.start(d.clock())
    response = Response(200)
    call.finished(response, d.clock())
    headers = call.response_headers(response.headers)
    assert ("2", "1", "0") == tuple(headers.get(f"x-ratelimit-{name}") for name in ("limit", "remaining", "reset"))
    call.close(d.clock())
    run(d)
    refused = run(d)
    assert isinstance(refused, LocalReply)
    assert {("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "600")} <= set(refused.headers)
