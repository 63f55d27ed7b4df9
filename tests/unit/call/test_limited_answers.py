"""Filters come before routes that answer by themselves, and before the answer that there is no route."""

from dataclasses import replace

import pytest

from meshlib.call import Done, Sleep
from meshlib.model.filters import AdaptiveConcurrency, ListedLimit, LocalRateLimit, TokenBucket
from meshlib.model.matcher import Fraction
from meshlib.model.route import DirectResponse, FaultDelay, FaultPolicy
from meshlib.testing import any_path, service, target

ALWAYS = Fraction(100)
LIMIT = LocalRateLimit(TokenBucket(1, 1, 600.0), ALWAYS, ALWAYS, tells_limits=True)
DELAY = FaultPolicy(delay=FaultDelay(2.0, ALWAYS))


def snapshot(*routes, limits, fault=None):
    made = target("a", *routes)
    listener = replace(made.listener, limits=limits, fault=fault, has_fault_filter=fault is not None)
    return replace(service("a", "h:1"), targets={"a": replace(made, listener=listener)})


def statuses(driver, count=2, **options):
    found = []
    for _ in range(count):
        call = driver.call(**options)
        step = call.start(driver.clock())
        if isinstance(step, Sleep):
            driver.clock.advance(step.seconds)
            step = call.slept(driver.clock())
        assert isinstance(step, Done)
        found.append((step.result.status, step.flag))
        call.close(driver.clock())
    return found


DIRECT = any_path(DirectResponse(200, b"x"))


@pytest.mark.parametrize(("routes", "first"), [((DIRECT,), (200, "")), ((), (404, "NR"))])
def test_limit(driver, routes, first):
    d = driver(snapshot(*routes, limits=(ListedLimit("l", LIMIT),)))
    assert [first, (429, "RL")] == statuses(d)


@pytest.mark.parametrize(("is_after", "expected"), [(False, (429, "RL")), (True, (429, "DI,RL"))])
def test_limit_and_delay_in_their_order(driver, is_after, expected):
    d = driver(snapshot(DIRECT, limits=(ListedLimit("l", LIMIT, is_after_fault=is_after),), fault=DELAY))
    assert [(200, "DI"), expected] == statuses(d)


def secure(found):
    """Make the virtual host one that wants TLS, and has an override of the filter that lets everything pass."""
    made = found.targets["a"]
    unlimited = (("l", LocalRateLimit(TokenBucket(9, 9, 600.0), ALWAYS, ALWAYS)),)
    hosts = tuple(replace(host, requires_tls=True, limits=unlimited) for host in made.routes.virtual_hosts)
    return replace(found, targets={"a": replace(made, routes=replace(made.routes, virtual_hosts=hosts))})


@pytest.mark.parametrize(("fault", "expected"), [(None, [(301, ""), (429, "RL")]), (DELAY, [(301, "DI"), (429, "RL")])])
def test_filters_of_the_listener_come_before_the_redirect_to_https(driver, fault, expected):
    """As seen in Envoy 1.40: no route gives that answer, so nothing below the listener has a say in them."""
    d = driver(secure(snapshot(DIRECT, limits=(ListedLimit("l", LIMIT),), fault=fault)))
    assert expected == statuses(d)


def test_answer_tells_what_is_left(driver):
    d = driver(snapshot(DIRECT, limits=(ListedLimit("l", LIMIT),)))
    assert "0" == dict(d.call().start(1000.0).result.headers)["x-ratelimit-remaining"]


def test_what_a_filter_holds_is_given_back(driver):
    concurrency = AdaptiveConcurrency(max_limit=1, min_limit=1)
    d = driver(snapshot(DIRECT, limits=(ListedLimit("l", concurrency),)))
    assert [(200, "")] * 5 == statuses(d, 5)


def test_grpc_calls_reach_no_filter_there(driver):
    d = driver(snapshot(DIRECT, limits=(ListedLimit("l", LIMIT),)))
    assert [(200, "")] * 3 == statuses(d, 3, grpc=True)
