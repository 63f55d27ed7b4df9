"""Calls that share a head begin as the first of them did, and come to the same as if each had found its way itself."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from meshlib.admin.metrics import StandardMetrics
from meshlib.call import Attempt, Call, Done, Sleep
from meshlib.events import AttemptFinished, CallFinished, Event
from meshlib.model.matcher import Fraction, HeaderMatcher, PathKind, PathMatcher, StringKind, StringMatcher
from meshlib.model.outcome import GRPC_OK, Failure, FailureKind, Response
from meshlib.model.request import Headers, HeadMemo, RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import (
    FaultAbort,
    FaultPolicy,
    HeaderAdd,
    HeaderMutation,
    Route,
    RouteAction,
    RouteMatcher,
    SingleCluster,
)
from meshlib.model.snapshot import ClusterConfig, Snapshot, TargetConfig
from meshlib.testing import FixedRng, service

MakeDriver = Callable[..., Any]
RETRY = RetryPolicy(frozenset({"unavailable"}), num_retries=2, base_interval_s=0.01)
ADDRESSES = ("10.0.0.1:80", "10.0.0.2:80")
UNAVAILABLE = Response(200, grpc_status=14)
LOST = Failure(FailureKind.CONNECT, False)


def routed(**changes: Any) -> Snapshot:
    """Return a service whose only route has options of its own."""
    return service("checkout", *ADDRESSES, action=RouteAction(SingleCluster("checkout"), **changes))


SNAPSHOTS = {
    "plain": service("checkout", *ADDRESSES),
    "retries": service("checkout", *ADDRESSES, retry=RETRY),
    "counted": service("checkout", *ADDRESSES, retry=RETRY, include_attempt_count=True),
    "per try": service("checkout", *ADDRESSES, retry=replace(RETRY, per_try_timeout_s=0.5)),
    "idle try": service("checkout", *ADDRESSES, retry=replace(RETRY, per_try_idle_timeout_s=0.5)),
    "stream duration": routed(max_stream_duration_s=3.0),
    "high priority": routed(high_priority=True),
    "no endpoint": service("checkout"),
}
OUTCOMES: tuple[tuple[Any, ...], ...] = ((GRPC_OK,), (UNAVAILABLE, GRPC_OK), (LOST, LOST, LOST), (UNAVAILABLE,) * 3)


def head_of(memo: HeadMemo | None) -> RequestHead:
    headers = Headers([("content-type", "application/grpc")])
    head = RequestHead("POST", "checkout", "/pkg.Service/Method", headers, is_grpc=True)
    head.memo = memo
    return head


def run(driver: Any, head: RequestHead, outcomes: tuple[Any, ...], timeout_s: float | None) -> list[Any]:
    """Carry a call to its end; returns all that can be seen of it."""
    call = Call(
        driver.target, head, rng=driver.mesh.rng, now=driver.clock(), timeout_s=timeout_s, hook=driver.mesh.emit
    )
    seen: list[Any] = []
    left = list(outcomes)
    step = call.start(driver.clock())
    while not isinstance(step, Done):
        if isinstance(step, Sleep):
            seen.append(step.seconds)
            step = call.slept(driver.clock())
        else:
            assert isinstance(step, Attempt)
            seen.append((step.number, step.endpoint.address, step.timeout_s, step.tls, step.head.headers.items))
            step = call.finished(left.pop(0) if left else GRPC_OK, driver.clock())
    deadline = None if call.deadline is None else call.deadline - driver.clock()
    seen.append((step.result, step.flag, call.cluster_name, call.endpoints, deadline))
    call.close(driver.clock())
    cluster = driver.mesh.cluster("checkout")
    seen.append((cluster.breaker.active, cluster.breaker.retries, cluster.high_breaker.active))
    return seen


@pytest.mark.parametrize("name", SNAPSHOTS)
@pytest.mark.parametrize("timeout_s", [None, 1.0, 10.0])
@pytest.mark.parametrize("outcomes", OUTCOMES)
def test_calls_along_a_way_come_to_the_same(
    driver: MakeDriver, name: str, outcomes: tuple[Any, ...], timeout_s: float | None
) -> None:
    own, shared = driver(SNAPSHOTS[name]), driver(SNAPSHOTS[name])
    head = head_of(HeadMemo())
    for _ in range(3):
        assert run(own, head_of(None), outcomes, timeout_s) == run(shared, head, outcomes, timeout_s)
    assert own.events == shared.events
    assert head.memo is not None
    assert head.memo.way is not None and head.memo.way.holds(shared.target)


def faulty() -> Snapshot:
    return service("checkout", *ADDRESSES, fault=FaultPolicy(abort=FaultAbort(Fraction(1, 2), http_status=503)))


def mutated() -> Snapshot:
    snapshot = service("checkout", *ADDRESSES)
    config = snapshot.targets["checkout"]
    mutation = HeaderMutation(request_add=(HeaderAdd("x-added", "1"),))
    return replace(snapshot, targets={"checkout": replace(config, routes=replace(config.routes, mutation=mutation))})


@pytest.mark.parametrize("make", [faulty, mutated])
def test_what_chance_or_the_route_has_a_part_in_leaves_no_way(driver: MakeDriver, make: Callable[[], Snapshot]) -> None:
    one = driver(make())
    head = head_of(HeadMemo())
    for _ in range(2):
        run(one, head, (), None)
    assert head.memo is not None and head.memo.way is None


def test_an_update_ends_the_way(driver: MakeDriver) -> None:
    one = driver(service("checkout", *ADDRESSES))
    head = head_of(HeadMemo())
    run(one, head, (), None)
    assert head.memo is not None
    way = head.memo.way
    # Endpoints change in place: the view of the target stays.
    one.mesh.publish(service("checkout", "10.0.0.9:80"))
    one.target = one.mesh.wait_target("checkout")
    assert not way.holds(one.target)
    assert "10.0.0.9:80" == run(one, head, (), None)[0][1]
    assert head.memo.way is not way and head.memo.way.holds(one.target)
    # Other routes make another view.
    one.mesh.publish(service("checkout", "10.0.0.9:80", retry=RETRY))
    one.target = one.mesh.wait_target("checkout")
    assert not head.memo.way.holds(one.target)
    assert [1, 2] == [entry[0] for entry in run(one, head, (UNAVAILABLE,), None) if isinstance(entry, tuple)][:2]


def test_drops_are_looked_at_by_every_call(driver: MakeDriver) -> None:
    one = driver(service("checkout", *ADDRESSES))
    head = head_of(HeadMemo())
    run(one, head, (), None)
    one.mesh.cluster("checkout").drops = ((1.0, "all"),)
    (result, *_), *_ = run(one, head, (), None)
    assert result.details.endswith("drop_overload")


def test_maintenance_is_drawn_by_every_call(driver: MakeDriver) -> None:
    snapshot = service("checkout", *ADDRESSES)
    config = snapshot.clusters["checkout"]
    assert isinstance(config, ClusterConfig)
    kept = replace(config, cluster=replace(config.cluster, maintenance_percent=1))
    one = driver(replace(snapshot, clusters={"checkout": kept}), FixedRng(0.999))
    head = head_of(HeadMemo())
    run(one, head, (), None)
    assert head.memo is not None and head.memo.way is None


def test_a_meter_counts_what_events_would_say(driver: MakeDriver) -> None:
    by_events, by_meter = StandardMetrics(), StandardMetrics()
    made: list[Event] = []

    def rest(event: Event) -> None:
        made.append(event)
        by_meter(event)

    for outcomes in OUTCOMES:
        for options in ({"hook": by_events}, {"hook": rest, "meter": by_meter}):
            one = driver(SNAPSHOTS["retries"])
            call = Call(one.target, head_of(None), rng=one.mesh.rng, now=one.clock(), **options)
            left, step = list(outcomes), call.start(one.clock())
            while not isinstance(step, Done):
                if isinstance(step, Sleep):
                    step = call.slept(one.clock())
                else:
                    step = call.finished(left.pop(0) if left else GRPC_OK, one.clock())
            call.close(one.clock())
    assert by_events.requests() == by_meter.requests() != ()
    assert dict(by_events.attempts()) == dict(by_meter.attempts())
    # Events are made of failures only.
    assert {"connect"} == {event.failure for event in made if isinstance(event, AttemptFinished)}
    assert not any(isinstance(event, CallFinished) for event in made)


def canary() -> Snapshot:
    """A service with a route before the others for calls with `x-canary: yes`."""
    snapshot = service("checkout", *ADDRESSES)
    config = snapshot.targets["checkout"]
    assert isinstance(config, TargetConfig)
    wanted = HeaderMatcher("x-canary", StringMatcher(StringKind.EXACT, "yes"))
    matcher = RouteMatcher(PathMatcher(PathKind.PREFIX, "/"), headers=(wanted,))
    first = Route(matcher, RouteAction(SingleCluster("checkout")), name="canary")
    host = config.routes.virtual_hosts[0]
    routes = replace(config.routes, virtual_hosts=(replace(host, routes=(first, *host.routes)),))
    return replace(snapshot, targets={"checkout": replace(config, routes=routes)})


def kin_of(memo: HeadMemo, *own: tuple[str, str]) -> RequestHead:
    headers = Headers([("content-type", "application/grpc"), *own])
    head = RequestHead("POST", "checkout", "/pkg.Service/Method", headers, is_grpc=True)
    head.kin = memo
    return head


def test_a_call_with_metadata_leaves_a_way_if_no_route_looks_at_them(driver: MakeDriver) -> None:
    one, memo = driver(canary()), HeadMemo()
    for own in (("x-canary", "yes"), ("x-canary", "no"), ("x-envoy-max-retries", "1"), ("te", "trailers")):
        run(one, kin_of(memo, own), (), None)
        assert memo.way is None
    run(one, kin_of(memo, ("key", "value")), (), None)
    assert "default" == memo.way.match.route_name
    kept = memo.way
    run(one, kin_of(memo, ("other", "value")), (), None)
    assert kept is memo.way


@pytest.mark.parametrize(
    ("name", "is_spared"),
    [
        ("key", True),
        ("data-bin", True),
        ("cookie", True),
        ("x-canary", False),
        ("content-type", False),
        ("user-agent", False),
        ("grpc-timeout", False),
        ("grpc-trace-bin", False),
        (":authority", False),
        ("x-envoy-attempt-count", False),
        ("x-meshlib-attempt", False),
        (b"key", False),
        (1, False),
    ],
)
def test_metadata_that_a_way_spares(driver: MakeDriver, name: Any, is_spared: bool) -> None:
    one, head = driver(canary()), head_of(HeadMemo())
    run(one, head, (), None)
    assert head.memo is not None
    for _ in range(2):
        assert is_spared == head.memo.way.spares((("key", "1"), (name, "yes")), one.mesh.rng)


def test_made_up_names_cost_no_memory(driver: MakeDriver) -> None:
    one, head = driver(service("checkout", *ADDRESSES)), head_of(HeadMemo())
    run(one, head, (), None)
    assert head.memo is not None
    way = head.memo.way
    assert all(way.spares(((f"key-{number}", ""),), one.mesh.rng) for number in range(2000))
    assert len(way._spared) <= 256
