"""What a call counts for load reports."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from meshlib.call import Attempt, Sleep
from meshlib.model.cluster import CircuitBreakers, Cluster, EdsDiscovery, LoadReports
from meshlib.model.endpoint import DropOverload
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.model.retry import RetryPolicy
from meshlib.model.snapshot import ClusterConfig, Snapshot
from meshlib.testing import FixedRng, merge, service
from meshlib.view import build_view
from meshlib.xds.load_report import ClusterReport

MakeDriver = Callable[..., Any]
TOLD = Cluster("", EdsDiscovery("eds"), load_reports=LoadReports())
BROKEN = Failure(FailureKind.RESET, True)


def taken(world: Any) -> ClusterReport:
    load = world.mesh.view.clusters["s"].load
    assert load is not None
    report: ClusterReport = load.take(world.clock())
    return report


def counts(world: Any) -> tuple[int, int, int, int]:
    (locality,) = taken(world).localities
    return locality.issued, locality.succeeded, locality.failed, locality.in_progress


@pytest.mark.parametrize(
    ("outcome", "grpc", "grpc_status", "expected"),
    [
        (Response(200), False, None, (1, 1, 0, 0)),
        (Response(404), False, None, (1, 1, 0, 0)),
        (Response(503), False, None, (1, 0, 1, 0)),
        (BROKEN, False, None, (1, 0, 1, 0)),
        (Response(200), True, 0, (1, 1, 0, 0)),
        (Response(200), True, 14, (1, 0, 1, 0)),
        (Response(200), True, None, (1, 0, 1, 0)),
        (Response(200, grpc_status=0), True, None, (1, 1, 0, 0)),
    ],
)
def test_an_attempt_is_a_success_or_an_error(
    driver: MakeDriver,
    outcome: Outcome,
    grpc: bool,
    grpc_status: int | None,
    expected: tuple[int, int, int, int],
) -> None:
    world = driver(service("s", "h:1", template=TOLD))
    call = world.call(grpc=grpc)
    call.start(world.clock())
    call.finished(outcome, world.clock())
    call.close(world.clock(), grpc_status=grpc_status)
    assert expected == counts(world)


def test_a_call_is_in_progress_until_it_is_closed(driver: MakeDriver) -> None:
    world = driver(service("s", "h:1", template=TOLD))
    call = world.call()
    call.start(world.clock())
    assert (1, 0, 0, 1) == counts(world)
    call.finished(Response(200), world.clock())
    assert (0, 0, 0, 1) == counts(world)
    call.close(world.clock())
    assert (0, 1, 0, 0) == counts(world)


def test_a_call_that_is_cancelled_is_an_error(driver: MakeDriver) -> None:
    world = driver(service("s", "h:1", template=TOLD))
    call = world.call()
    call.start(world.clock())
    call.close(world.clock())
    assert (1, 0, 1, 0) == counts(world)


def test_a_response_that_breaks_off_is_an_error(driver: MakeDriver) -> None:
    world = driver(service("s", "h:1", template=TOLD))
    call = world.call()
    call.start(world.clock())
    call.finished(Response(200), world.clock())
    call.cut_off(BROKEN, world.clock())
    call.close(world.clock())
    assert (1, 0, 1, 0) == counts(world)


def test_every_attempt_counts(driver: MakeDriver) -> None:
    world = driver(service("s", "h:1", template=TOLD, retry=RetryPolicy(frozenset({"5xx"}))))
    call = world.call()
    call.start(world.clock())
    step = call.finished(Response(503), world.clock())
    if isinstance(step, Sleep):
        step = call.slept(world.clock())
    assert isinstance(step, Attempt)
    call.finished(Response(200), world.clock())
    call.close(world.clock())
    assert (2, 1, 1, 0) == counts(world)


def test_drops_count_by_category_and_the_breaker_without_one(driver: MakeDriver) -> None:
    snapshot = service(
        "s",
        "h:1",
        template=Cluster(
            "", EdsDiscovery("eds"), load_reports=LoadReports(), circuit_breakers=CircuitBreakers(max_requests=0)
        ),
    )
    world = driver(snapshot)
    world.call().start(world.clock())
    report = taken(world)
    assert ((), 1, "eds") == (report.dropped, report.total_dropped, report.service)

    config = snapshot.clusters["s"]
    assert isinstance(config, ClusterConfig)
    dropping = replace(config, assignment=replace(config.assignment, drop_overloads=(DropOverload("lb", 1, 1),)))
    world = driver(merge(snapshot, Snapshot(clusters={"s": dropping})), FixedRng(0.0))
    world.call().start(world.clock())
    report = taken(world)
    assert ((("lb", 1),), 1) == (report.dropped, report.total_dropped)


def test_what_is_under_way_moves_with_its_endpoint_to_another_locality_or_service(driver: MakeDriver) -> None:
    world = driver(service("s", "h:1", template=TOLD))
    call = world.call()
    call.start(world.clock())
    before = world.mesh.view.clusters["s"].load
    other = Cluster("", EdsDiscovery("other"), load_reports=LoadReports())
    build_view(service("s", "h:1", template=other), world.mesh.view, now=world.clock())
    (old,) = before.take(0.0).localities
    assert (1, 0) == (old.issued, old.in_progress)
    call.finished(Response(200), world.clock())
    call.close(world.clock())
    assert (0, 1, 0, 0) == counts(world)


def test_without_a_wish_for_reports_nothing_is_counted(driver: MakeDriver) -> None:
    world = driver(service("s", "h:1"))
    call = world.call()
    call.start(world.clock())
    state = world.mesh.view.clusters["s"]
    assert state.load is None
    assert all(one.load is None for one in state.states.values())
