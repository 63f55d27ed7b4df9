"""What is predicted of a call is what the call then does."""

from collections.abc import Callable
from typing import Any

import pytest

from meshlib.call import Attempt, Done, Sleep, Step
from meshlib.call.plan import plan_call
from meshlib.model.cluster import CircuitBreakers, Cluster, EdsDiscovery
from meshlib.model.outcome import Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import HedgePolicy, RetryPolicy
from meshlib.model.route import RouteAction, SingleCluster
from meshlib.routing.table import RouteMatch
from meshlib.testing import service

MakeDriver = Callable[..., Any]
RETRY = RetryPolicy(frozenset({"5xx", "reset"}), 3, per_try_timeout_s=0.5, base_interval_s=0.1)


def planned(driver: Any, method: str = "GET", **headers: str) -> Any:
    items = Headers((name.replace("_", "-"), value) for name, value in headers.items())
    head = RequestHead(method, "a", "/", items)
    match = driver.target.routes.match(head, driver.mesh.rng)
    assert isinstance(match, RouteMatch)
    return plan_call(driver.target, match, head)


def test_plan_of_a_route(driver: MakeDriver) -> None:
    limits = CircuitBreakers(max_retries=2)
    template = Cluster("", EdsDiscovery(""), circuit_breakers=limits)
    found = planned(driver(service("a", "h:1", retry=RETRY, timeout_s=2.0, template=template)))
    assert (found.timeout_s, found.per_try_s, found.stream_s, found.hedge_after_s) == (2.0, 0.5, None, None)
    assert (found.retries, found.retry_on, found.source, found.room) == (3, ("SERVER_ERROR", "RESET"), "route", 2)
    assert found.waits_s == pytest.approx((0.1, 0.2, 0.4))
    assert found.repeats_processed


def test_plan_of_a_request_that_must_not_be_repeated(driver: MakeDriver) -> None:
    assert not planned(driver(service("a", "h:1", retry=RETRY)), "POST").repeats_processed


def test_plan_of_hedging(driver: MakeDriver) -> None:
    action = RouteAction(SingleCluster(""), retry=RETRY, hedge=HedgePolicy(True))
    d = driver(service("a", "h:1", action=action))
    assert (planned(d).per_try_s, planned(d).hedge_after_s) == (None, 0.5)
    assert planned(d, "POST").hedge_after_s is None
    assert planned(d, x_envoy_hedge_on_per_try_timeout="false").per_try_s == 0.5


@pytest.mark.parametrize(
    ("headers", "policy"),
    [
        ({}, RETRY),
        ({}, None),
        ({"x_envoy_retry_on": "5xx"}, None),
        ({"x_envoy_max_retries": "1"}, RETRY),
        ({"x_envoy_upstream_rq_timeout_ms": "300"}, RETRY),
    ],
)
def test_plan_is_what_happens(driver: MakeDriver, headers: dict[str, str], policy: RetryPolicy | None) -> None:
    d = driver(service("a", "h:1", retry=policy))
    found = planned(d, **headers)
    call = d.call(headers={name.replace("_", "-"): value for name, value in headers.items()})
    step: Step = call.start(1000.0)
    assert isinstance(step, Attempt)
    limits = [seconds for seconds in (found.timeout_s, found.per_try_s) if seconds is not None]
    assert step.timeout_s == pytest.approx(min(limits))
    while not isinstance(step, Done):
        step = call.slept(1000.0) if isinstance(step, Sleep) else call.finished(Response(503), 1000.0)
    assert call.attempts == found.retries + 1
