"""Responses that stop coming: before their headers, and after."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from meshlib.call import Attempt, Done
from meshlib.events import CallFinished, HostEjected
from meshlib.model.cluster import Cluster, EdsDiscovery, OutlierDetection
from meshlib.model.outcome import Failure, FailureKind, Response
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import RouteAction, SingleCluster
from meshlib.testing import service

MakeDriver = Callable[..., Any]
TWO_STRIKES = Cluster(
    "a", EdsDiscovery("a"), outlier_detection=OutlierDetection(consecutive_5xx=2, max_ejection_percent=100)
)
LOST = Failure(FailureKind.RESET, True)
OK = Response(200)
OVER = Failure(FailureKind.TIMEOUT, True)


def idle(seconds: float) -> RouteAction:
    return RouteAction(SingleCluster("a"), idle_timeout_s=seconds)


def answered(d: Any, response: Response = OK) -> Any:
    """Make a call whose response headers are there."""
    call = d.call()
    assert isinstance(call.start(d.clock()), Attempt)
    assert isinstance(call.finished(response, d.clock()), Done)
    return call


def last_flag(d: Any) -> str:
    event = d.events[-1]
    assert isinstance(event, CallFinished)
    return event.flag


def test_connection_lost_in_the_body_counts_against_the_endpoint(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1", template=TWO_STRIKES))
    state = d.mesh.cluster("a").states["h:1"]
    for _ in range(2):
        call = answered(d)
        call.cut_off(LOST, d.clock())
        call.close(d.clock())
        assert last_flag(d) == "UC"
    assert not state.is_ejected, "the headers of the second response were a success"
    answered(d)

    call = answered(d, Response(500))
    call.cut_off(LOST, d.clock())
    assert state.is_ejected
    assert isinstance(d.events[-1], HostEjected)


def test_cut_off_after_the_end_or_before_an_answer_means_nothing(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1", template=TWO_STRIKES))
    call = answered(d)
    call.close(d.clock())
    call.cut_off(LOST, d.clock())
    running = d.call()
    running.start(d.clock())
    running.cut_off(LOST, d.clock())

    assert (call.flag, running.flag) == ("", "")


@pytest.mark.parametrize(
    ("after_s", "is_idle", "flag"), [(3.0, False, "UT"), (3.0, True, "UT"), (1.0, True, "SI"), (1.0, False, "-")]
)
def test_time_that_is_over_in_the_body_says_whose_it_was(
    driver: MakeDriver, after_s: float, is_idle: bool, flag: str
) -> None:
    d = driver(service("a", "h:1", timeout_s=3.0, template=TWO_STRIKES))
    call = answered(d)
    d.clock.advance(after_s)
    call.cut_off(OVER, d.clock(), is_idle=is_idle)
    call.close(d.clock())

    assert last_flag(d) == flag
    assert d.mesh.cluster("a").outlier.ejections_detected == 0


def test_idle_timeout_ends_the_wait_for_headers(driver: MakeDriver) -> None:
    d = driver(
        service(
            "a", "h:1", action=idle(2.0), retry=RetryPolicy(frozenset({"5xx"}), num_retries=3), template=TWO_STRIKES
        )
    )
    for _ in range(3):
        call = d.call()
        step = call.start(d.clock())
        assert isinstance(step, Attempt)
        assert step.timeout_s == 2.0
        assert call.deadline == d.clock() + 15.0, "the body has the route's time"

        done = call.finished(OVER, d.clock() + 2.0)
        assert isinstance(done, Done), "it is the request's time, not the attempt's"
        assert done.flag == "SI"
        call.close(d.clock())

    assert not d.mesh.cluster("a").states["h:1"].is_ejected, "that says nothing of the endpoint"


def test_idle_timeout_runs_through_retries(driver: MakeDriver) -> None:
    policy = RetryPolicy(frozenset({"5xx"}), num_retries=3, base_interval_s=0.001)
    d = driver(service("a", "h:1", action=idle(2.0), retry=policy))
    call = d.call()
    call.start(d.clock())

    step = call.finished(Response(503), d.clock() + 1.5)

    assert isinstance(step, Attempt)
    assert step.timeout_s == 0.5


@pytest.mark.parametrize(("route_s", "expected"), [(None, 5.0), (2.0, 2.0), (0.0, None)])
def test_idle_timeout_of_the_listener_is_for_routes_without_one(
    driver: MakeDriver, route_s: float | None, expected: float | None
) -> None:
    action = RouteAction(SingleCluster("a"), timeout_s=0.0, idle_timeout_s=route_s)
    snapshot = service("a", "h:1", action=action)
    config = snapshot.targets["a"]
    listener = replace(config.listener, stream_idle_timeout_s=5.0)
    d = driver(replace(snapshot, targets={"a": replace(config, listener=listener)}))
    call = d.call()
    step = call.start(d.clock())
    assert isinstance(step, Attempt)
    assert (step.timeout_s, call.idle_s) == (expected, expected)


@pytest.mark.parametrize("is_of_cluster", [False, True])
def test_end_of_a_stream_duration_says_nothing_of_the_endpoint(driver: MakeDriver, is_of_cluster: bool) -> None:
    """As in Envoy; gRPC counts it."""
    limit = 2.0 if is_of_cluster else None
    action = RouteAction(SingleCluster("a"), max_stream_duration_s=None if is_of_cluster else 2.0)
    template = replace(TWO_STRIKES, max_stream_duration_s=limit)
    d = driver(service("a", "h:1", action=action, template=template))
    for grpc in (False, False, *((True,) * 2 if not is_of_cluster else ())):
        assert d.mesh.cluster("a").outlier.ejections_detected == 0
        call = d.call(grpc=grpc)
        assert isinstance(call.start(d.clock()), Attempt)
        d.clock.advance(2.0)
        done = call.finished(OVER, d.clock())
        assert isinstance(done, Done)
        assert done.flag == ("UMSDR" if is_of_cluster else "DT")
        call.close(d.clock())
    detectors = d.mesh.cluster("a")
    assert not detectors.states["h:1"].is_ejected


def test_retry_after_a_stream_duration_is_no_timeout_retry(driver: MakeDriver) -> None:
    """As in Envoy, where it is a local reset."""
    retry = RetryPolicy(frozenset({"reset"}), per_try_timeout_s=3.0, base_interval_s=0.001)
    limited = replace(TWO_STRIKES, max_stream_duration_s=2.0)
    for template, word in ((limited, "false"), (TWO_STRIKES, "true")):
        snapshot = service("a", "h:1", retry=retry, template=template)
        config = snapshot.targets["a"]
        routes = replace(
            config.routes, virtual_hosts=(replace(config.routes.virtual_hosts[0], include_timeout_retry=True),)
        )
        listener = replace(config.listener, routes=routes)
        d = driver(replace(snapshot, targets={"a": replace(config, listener=listener, routes=routes)}))
        call = d.call()
        assert isinstance(call.start(d.clock()), Attempt)
        step = call.finished(OVER, d.clock() + 3.0)
        assert isinstance(step, Attempt)
        assert step.head.headers.get("x-envoy-is-timeout-retry") == word


def test_idle_timeout_of_an_attempt_holds_for_the_body_and_counts(driver: MakeDriver) -> None:
    retry = RetryPolicy(frozenset({"connect-failure"}), per_try_idle_timeout_s=1.0)
    d = driver(service("a", "h:1", action=idle(2.0), retry=retry, template=TWO_STRIKES))
    state = d.mesh.cluster("a").states["h:1"]
    call = answered(d, Response(500))
    assert call.idle_s == 1.0
    call.cut_off(OVER, d.clock(), is_idle=True)
    assert state.is_ejected, "that and the status are two"
    call.close(d.clock())
    assert last_flag(d) == "UT"


@pytest.mark.parametrize(
    ("fields", "stream_s", "expected"),
    [
        # The route's time-out begins when the request is whole, durations of streams with the request.
        ({"timeout_s": 3.0}, None, (None, 103.0)),
        ({"timeout_s": 3.0}, 50.0, (50.0, 50.0)),
        ({"max_stream_duration_s": 7.0}, None, (7.0, 7.0)),
        ({"max_stream_duration_s": 7.0}, 5.0, (5.0, 5.0)),
    ],
)
def test_request_that_is_still_being_made_has_the_times_of_streams(
    driver: MakeDriver, fields: dict[str, float], stream_s: float | None, expected: tuple[float | None, float]
) -> None:
    template = replace(TWO_STRIKES, max_stream_duration_s=stream_s)
    d = driver(service("a", "h:1", action=RouteAction(SingleCluster("a"), **fields), template=template))
    began = d.clock()
    call = d.call(replayable=False)
    assert isinstance(call.start(began), Attempt)

    found = (call.upload_deadline, call.body_deadline_after(began + 100.0))
    assert tuple(None if one is None else one - began for one in found) == expected

    if expected[0] is not None:
        done = call.finished(OVER, began + expected[0])
        assert isinstance(done, Done)
        assert done.flag == ("UMSDR" if stream_s is not None else "DT")


@pytest.mark.parametrize(("grpc", "expected"), [(False, None), (True, 14)])
def test_answers_of_the_mesh_have_a_grpc_status_for_grpc_alone(
    driver: MakeDriver, grpc: bool, expected: int | None
) -> None:
    """Access logs wrote `status=14` of an HTTP request that no endpoint could take."""
    d = driver(service("a"))
    call = d.call(grpc=grpc)

    call.start(d.clock())
    call.close(d.clock())

    event = d.events[-1]
    assert isinstance(event, CallFinished)
    assert (503, expected, "UH") == (event.status, event.grpc_status, event.flag)


@pytest.mark.parametrize(("idle_s", "grpc"), [(0.0, False), (2.0, True)])
def test_idle_timeout_of_zero_is_none_and_grpc_has_none(driver: MakeDriver, idle_s: float, grpc: bool) -> None:
    d = driver(service("a", "h:1", action=idle(idle_s)))

    step = d.call(grpc=grpc).start(d.clock())

    assert isinstance(step, Attempt)
    assert step.timeout_s == (None if grpc else 15.0)


def test_call_that_times_out_before_the_idle_timeout_says_so(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1", action=idle(20.0), timeout_s=1.0))
    call = d.call()
    call.start(d.clock())

    done = call.finished(OVER, d.clock() + 1.0)

    assert isinstance(done, Done)
    assert done.flag == "UT"
