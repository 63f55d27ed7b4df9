"""Routes, picks, breakers, retries: which step follows which."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from meshlib.call import Attempt, Call, Done, Sleep, Step
from meshlib.errors import DeadlineExceeded, IdentityError, RoutingError, UnavailableError
from meshlib.events import AttemptFinished, CallFinished, HostEjected
from meshlib.model.cluster import CircuitBreakers, Cluster, EdsDiscovery, OutlierDetection, Random
from meshlib.model.endpoint import DropOverload
from meshlib.model.outcome import Failure, FailureKind, LocalReply, Response
from meshlib.model.request import Headers
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import HeaderAdd, HeaderMutation, RouteAction, SingleCluster
from meshlib.model.snapshot import ConfigFault, Snapshot, TargetConfig
from meshlib.testing import FixedRng, any_path, merge, service, target

MakeDriver = Callable[..., Any]
OK, BUSY = Response(200), Response(503)
REFUSED = Failure(FailureKind.CONNECT, False, OSError("connection refused"))
BROKEN = Failure(FailureKind.RESET, True)
HALF = FixedRng(0.5)


def options(**changes: Any) -> Cluster:
    return Cluster("", EdsDiscovery(""), **changes)


def retry(*words: str, **changes: Any) -> RetryPolicy:
    return RetryPolicy(frozenset(words), **changes)


def attempt(step: Step) -> Attempt:
    assert isinstance(step, Attempt)
    return step


def done(step: Step) -> Done:
    assert isinstance(step, Done)
    return step


def reply(step: Step) -> LocalReply:
    result = done(step).result
    assert isinstance(result, LocalReply)
    return result


def counts(driver: Any, name: str = "a") -> tuple[int, int, int]:
    cluster = driver.mesh.cluster(name)
    active = sum(state.active for state in cluster.states.values())
    return cluster.breaker.active, active, cluster.breaker.retries


def again(call: Call, step: Step, now: float = 1000.0) -> Attempt:
    """Follow a step to the next attempt, through the wait before it."""
    return attempt(call.slept(now) if isinstance(step, Sleep) else step)


def test_response_ends_the_call_and_the_permit_lasts_until_close(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1", "h:2"))
    call = d.call()

    step = attempt(call.start(1000.0))
    assert (step.number, step.endpoint.address, step.tls, step.timeout_s) == (1, "h:1", None, 15.0)
    end = done(call.finished(OK, 1000.5))
    assert (end.result, end.flag) == (OK, "")
    assert counts(d) == (1, 1, 0)

    call.close(1001.0, status=200)
    call.close(1002.0, status=500)

    assert counts(d) == (0, 0, 0)
    assert (call.attempts, call.endpoints, call.cluster_name) == (1, ("h:1",), "a")
    endpoint = step.endpoint
    assert d.events == [
        AttemptFinished("a", "a", endpoint, 1, 0.5, 200, None, "", False),
        CallFinished("http", "a", "GET", "default", "a", endpoint, 1, 1.0, 200, None, "-", False),
    ]


def test_failure_gives_the_permit_back_at_once(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1"))
    call = d.call()
    call.start(1000.0)

    end = done(call.finished(REFUSED, 1000.1))

    assert (end.result, end.flag, counts(d)) == (REFUSED, "UF", (0, 0, 0))
    error = call.error()
    assert isinstance(error, UnavailableError)
    assert error.__cause__ is REFUSED.error
    assert "connection refused" in str(error)
    assert (error.cluster, error.endpoints, error.attempts, error.flag) == ("a", ("h:1",), 1, "UF")


@pytest.mark.parametrize(
    ("kind", "flag", "expected"),
    [
        (FailureKind.CONNECT, "UF", UnavailableError),
        (FailureKind.IDENTITY, "UF", IdentityError),
        (FailureKind.RESET, "UC", UnavailableError),
        (FailureKind.STREAM_RESET, "UR", UnavailableError),
        (FailureKind.REFUSED_STREAM, "UR", UnavailableError),
        (FailureKind.TIMEOUT, "UT", DeadlineExceeded),
    ],
)
def test_failures_become_errors_of_their_kind(
    driver: MakeDriver, kind: FailureKind, flag: str, expected: type[Exception]
) -> None:
    call = driver(service("a", "h:1")).call()
    call.start(1000.0)

    assert done(call.finished(Failure(kind, True), 1000.1)).flag == flag
    assert isinstance(call.error(), expected)


def test_no_route_is_a_local_reply(driver: MakeDriver) -> None:
    snapshot = service("a", "h:1")
    route = any_path(RouteAction(SingleCluster("a")), prefix="/only")
    d = driver(replace(snapshot, targets={"a": target("a", route)}))
    call = d.call()

    answer = reply(call.start(1000.0))
    call.close(1000.0)

    assert (answer.status, answer.flag, call.match) == (404, "NR", None)
    assert isinstance(call.error(), RoutingError)
    assert d.events == [CallFinished("http", "a", "GET", "", "", None, 0, 0.0, 404, None, "NR", False)]


def test_unknown_cluster_answers_with_the_routes_status(driver: MakeDriver) -> None:
    snapshot = service("a", action=RouteAction(SingleCluster("a"), cluster_not_found_status=404))
    call = driver(replace(snapshot, clusters={})).call()

    answer = reply(call.start(1000.0))

    assert (answer.status, answer.flag, answer.body) == (404, "NC", b"")
    assert "'a'" in str(call.error())


def test_cluster_that_cannot_be_used_says_why(driver: MakeDriver) -> None:
    fault = ConfigFault("Cluster: a", "cluster 'a' was refused: no such policy")
    call = driver(merge(service("a"), Snapshot(clusters={"a": fault}))).call()

    answer = reply(call.start(1000.0))
    error = call.error()

    assert (answer.status, answer.flag, answer.body) == (503, "NC", fault.message.encode())
    assert isinstance(error, RoutingError)
    assert error.resource == "Cluster: a"
    assert fault.message in str(error)


def test_no_endpoint_is_uh(driver: MakeDriver) -> None:
    d = driver(service("a"))
    call = d.call()

    answer = reply(call.start(1000.0))

    assert (answer.status, answer.flag, answer.body, answer.grpc_status) == (503, "UH", b"no healthy upstream", 14)
    assert "among 0" in str(call.error())
    assert counts(d) == (0, 0, 0)


def test_full_breaker_is_uo_and_is_never_retried(driver: MakeDriver) -> None:
    template = options(circuit_breakers=CircuitBreakers(max_requests=1))
    d = driver(service("a", "h:1", retry=retry("5xx", num_retries=5), template=template))
    first, second = d.call(), d.call()
    first.start(1000.0)

    answer = reply(second.start(1000.0))

    assert (answer.status, answer.flag, ("x-envoy-overloaded", "true") in answer.headers) == (503, "UO", True)
    second.close(1000.0)
    assert counts(d) == (1, 1, 0)
    first.close(1000.0)
    attempt(d.call().start(1000.0))


def test_high_priority_has_a_breaker_of_its_own(driver: MakeDriver) -> None:
    template = options(circuit_breakers=CircuitBreakers(max_requests=0))
    d = driver(service("a", "h:1", action=RouteAction(SingleCluster("a"), high_priority=True), template=template))
    call = d.call()

    attempt(call.start(1000.0))

    assert d.mesh.cluster("a").high_breaker.active == 1
    call.close(1000.0)
    assert d.mesh.cluster("a").high_breaker.active == 0


@pytest.mark.parametrize(("numerator", "flag"), [(60, "DO"), (100, "UDO")])
def test_eds_drops_are_answered_before_any_pick(driver: MakeDriver, numerator: int, flag: str) -> None:
    snapshot = service("a", "h:1", retry=retry("5xx"))
    config = snapshot.clusters["a"]
    assert not isinstance(config, ConfigFault)
    dropping = replace(config.assignment, drop_overloads=(DropOverload("lb", numerator, 100),))
    d = driver(replace(snapshot, clusters={"a": replace(config, assignment=dropping)}), HALF)

    assert (reply(d.call().start(1000.0)).flag, counts(d)) == (flag, (0, 0, 0))
    assert reply(d.call(grpc=True).start(1000.0)).body == b"EDS-configured drop: lb"


@pytest.mark.parametrize(("percent", "is_answered"), [(9, True), (8, False), (0, False)])
def test_maintenance_is_answered_before_any_pick(driver: MakeDriver, percent: int, is_answered: bool) -> None:
    snapshot = service("a", "h:1", template=Cluster("a", EdsDiscovery("a"), maintenance_percent=percent))
    d = driver(snapshot, HALF)  # whose 64 bits leave 8 of a hundred
    step = d.call().start(1000.0)
    assert isinstance(step, Done) is is_answered
    if is_answered:
        found = reply(step)
        assert (503, "UO", "maintenance_mode", b"maintenance mode") == (
            found.status,
            found.flag,
            found.details,
            found.body,
        )
        assert ("x-envoy-overloaded", "true") in found.headers


@pytest.mark.parametrize(("percent", "is_repeated"), [(9, True), (8, False), (0, False)])
def test_a_share_of_retries_is_made(driver: MakeDriver, percent: int, is_repeated: bool) -> None:
    snapshot = service("a", "h:1", retry=retry("connect-failure"))
    config = snapshot.targets["a"]
    assert isinstance(config, TargetConfig)
    fewer = replace(config, listener=replace(config.listener, retry_percent=percent))
    d = driver(replace(snapshot, targets={"a": fewer}), HALF)
    call = d.call()
    attempt(call.start(1000.0))
    assert isinstance(call.finished(REFUSED, 1000.0), Sleep) is is_repeated
    assert (0, 0, int(is_repeated)) == counts(d)
    call.close(1000.0)


def test_retry_waits_and_tries_again(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1", "h:2", retry=retry("connect-failure", num_retries=2)), HALF)
    call = d.call()
    first = attempt(call.start(1000.0))

    step = call.finished(REFUSED, 1000.0)
    assert isinstance(step, Sleep)
    assert (step.seconds, counts(d)) == (0.012, (0, 0, 1))
    second = attempt(call.slept(1000.012))
    assert (second.number, counts(d)) == (2, (1, 1, 1))
    assert done(call.finished(OK, 1000.1)).flag == ""
    assert counts(d) == (1, 1, 0), "the retry's permit ends with the next decision"
    call.close(1000.2)

    assert counts(d) == (0, 0, 0)
    assert first.endpoint != second.endpoint
    assert [event.will_retry for event in d.events if isinstance(event, AttemptFinished)] == [True, False]


def test_wait_of_nothing_goes_straight_on(driver: MakeDriver) -> None:
    call = driver(service("a", "h:1", retry=retry("connect-failure")), FixedRng(0.0)).call()
    call.start(1000.0)

    assert attempt(call.finished(REFUSED, 1000.0)).number == 2


def test_limit_of_retries_is_flagged(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1", retry=retry("connect-failure", num_retries=2)))
    call = d.call()
    step = call.start(1000.0)
    for _ in range(2):
        attempt(step)
        step = call.finished(REFUSED, 1000.0)
    end = done(call.finished(REFUSED, 1000.0))

    assert (end.flag, call.attempts, counts(d)) == ("URX,UF", 3, (0, 0, 0))


def test_last_response_is_given_to_the_caller(driver: MakeDriver) -> None:
    call = driver(service("a", "h:1", retry=retry("5xx"))).call()
    again(call, call.start(1000.0))
    again(call, call.finished(BUSY, 1000.0))

    end = done(call.finished(Response(502), 1000.0))

    assert (end.result, end.flag) == (Response(502), "URX")


def test_policy_without_retries_is_flagged_at_the_first_failure(driver: MakeDriver) -> None:
    call = driver(service("a", "h:1", retry=retry("5xx", num_retries=0))).call()
    call.start(1000.0)

    assert done(call.finished(BUSY, 1000.0)).flag == "URX"


def test_outcome_that_no_word_names_is_not_retried(driver: MakeDriver) -> None:
    call = driver(service("a", "h:1", retry=retry("connect-failure"))).call()
    call.start(1000.0)

    assert done(call.finished(BROKEN, 1000.0)).flag == "UC"


def test_full_retry_breaker_is_uo_and_uses_up_the_count(driver: MakeDriver) -> None:
    template = options(circuit_breakers=CircuitBreakers(max_retries=1))
    d = driver(service("a", "h:1", retry=retry("5xx", num_retries=1), template=template), HALF)
    first, second = d.call(), d.call()
    first.start(1000.0)
    assert isinstance(first.finished(BUSY, 1000.0), Sleep)

    second.start(1000.0)
    end = done(second.finished(BUSY, 1000.0))

    assert (end.result, end.flag) == (BUSY, "UO")
    first.close(1000.0)
    second.close(1000.0)
    assert counts(d) == (0, 0, 0)


@pytest.mark.parametrize("outcome", [BUSY, BROKEN, REFUSED, Failure(FailureKind.TIMEOUT, True)])
@pytest.mark.parametrize(("percent", "is_repeated"), [(100.0, True), (99.0, False)])
def test_failed_attempt_is_one_of_the_requests_that_a_retry_budget_is_a_share_of(
    driver: MakeDriver, outcome: Response | Failure, percent: float, is_repeated: bool
) -> None:
    limits = CircuitBreakers(retry_budget_percent=percent, min_retry_concurrency=0)
    policy = retry("5xx", per_try_timeout_s=1.0)
    d = driver(service("a", "h:1", retry=policy, template=options(circuit_breakers=limits)), HALF)
    call = d.call()
    call.start(1000.0)

    step = call.finished(outcome, 1000.0)

    assert is_repeated is isinstance(step, Sleep)
    assert is_repeated is ("UO" not in call.flag)
    call.close(1000.0)
    assert counts(d) == (0, 0, 0)


@pytest.mark.parametrize(("avoid", "expected"), [(True, "h:2"), (False, "h:1")])
def test_previous_hosts_are_avoided(driver: MakeDriver, avoid: bool, expected: str) -> None:
    """Draws: the first host, no wait, the first host again, and then, if that is to be avoided, the second."""
    policy = retry("connect-failure", avoid_previous_hosts=avoid, host_selection_attempts=3)
    snapshot = service("a", "h:1", "h:2", retry=policy, template=options(lb_policy=Random()))
    call = driver(snapshot, FixedRng(0.0, 0.0, 0.0, 0.5)).call()
    call.start(1000.0)

    assert attempt(call.finished(REFUSED, 1000.0)).endpoint.address == expected


@pytest.mark.parametrize(
    ("method", "headers", "outcome", "expected"),
    [
        ("POST", {}, BUSY, 1),
        ("POST", {}, BROKEN, 1),
        ("PATCH", {}, BUSY, 1),
        ("POST", {}, REFUSED, 2),
        ("POST", {}, Failure(FailureKind.REFUSED_STREAM, True), 2),
        ("POST", {}, Failure(FailureKind.RESET, False), 2),
        ("POST", {"Idempotency-Key": "1"}, BUSY, 2),
        ("PUT", {}, BUSY, 2),
        ("DELETE", {}, BROKEN, 2),
        ("GET", {}, BROKEN, 2),
    ],
)
def test_what_may_have_been_processed_is_repeated_only_when_that_is_safe(
    driver: MakeDriver, method: str, headers: dict[str, str], outcome: Response | Failure, expected: int
) -> None:
    d = driver(service("a", "h:1", retry=retry("5xx", "refused-stream")))
    guarded, unguarded = d.call(method, headers), d.call(method, headers, guard_unsafe=False)
    for call in (guarded, unguarded):
        call.start(1000.0)
        call.finished(outcome, 1000.0)

    assert (guarded.attempts, unguarded.attempts) == (expected, 2)


@pytest.mark.parametrize(("value", "expected"), [(True, 2), (False, 1), ("true", 1)])
def test_route_metadata_can_allow_repeating(driver: MakeDriver, value: object, expected: int) -> None:
    snapshot = service("a", "h:1")
    route = any_path(RouteAction(SingleCluster("a"), retry=retry("5xx")))
    marked = replace(route, metadata={"meshlib": {"retry_non_idempotent": value}})
    call = driver(replace(snapshot, targets={"a": target("a", marked)})).call("POST")
    call.start(1000.0)
    call.finished(BUSY, 1000.0)

    assert call.attempts == expected


def test_body_that_cannot_be_sent_again_is_repeated_only_if_nothing_was_sent(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1", retry=retry("5xx", num_retries=3)))
    call = d.call(replayable=False)
    call.start(1000.0)

    attempt(call.finished(REFUSED, 1000.0))
    assert done(call.finished(BUSY, 1000.0)).result is BUSY
    assert call.flag == "", "not for the limit's sake"


def test_committed_call_is_not_repeated(driver: MakeDriver) -> None:
    call = driver(service("a", "h:1", retry=retry("5xx"))).call()
    call.start(1000.0)
    call.commit()

    assert done(call.finished(REFUSED, 1000.0)).flag == "UF"


def test_grpc_repeats_by_its_codes_whatever_the_method(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1", retry=retry("unavailable", "5xx", num_retries=9)))
    lost, failed = d.call(grpc=True), d.call(grpc=True)
    lost.start(1000.0)
    failed.start(1000.0)

    assert isinstance(lost.finished(BROKEN, 1000.0), Sleep)
    assert done(failed.finished(Failure(FailureKind.TIMEOUT, True), 1000.0)).flag == "UT", "5xx is not gRPC's word"


def test_grpc_makes_five_attempts_at_most_and_says_which(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1", retry=retry("unavailable", num_retries=9)))
    call = d.call(grpc=True)
    step: Step = call.start(1000.0)
    previous = []
    while not isinstance(step, Done):
        previous.append(again(call, step).head.headers.get("grpc-previous-rpc-attempts"))
        step = call.finished(Response(200, grpc_status=14), 1000.0)

    assert previous == [None, "1", "2", "3", "4"]
    assert step.flag == "URX"


@pytest.mark.parametrize(("text", "expected"), [("700", 0.7), ("0", 0.0), ("-1", None), ("soon", None)])
def test_grpc_server_can_push_back(driver: MakeDriver, text: str, expected: float | None) -> None:
    call = driver(service("a", "h:1", retry=retry("unavailable"))).call(grpc=True)
    call.start(1000.0)

    step = call.finished(Response(200, Headers([("grpc-retry-pushback-ms", text)]), grpc_status=14), 1000.0)

    if expected is None:
        assert done(step).flag == ""
    elif expected == 0:
        attempt(step)
    else:
        assert isinstance(step, Sleep)
        assert step.seconds == expected


def test_attempt_reports_the_ejection_it_caused(driver: MakeDriver) -> None:
    template = options(outlier_detection=OutlierDetection(consecutive_5xx=2, max_ejection_percent=100))
    d = driver(service("a", "h:1", template=template))
    for outcome in (BUSY, REFUSED):
        call = d.call()
        call.start(1000.0)
        call.finished(outcome, 1000.0)
        call.close(1000.0)

    (ejected,) = [event for event in d.events if isinstance(event, HostEjected)]
    assert (ejected.cluster, ejected.reason) == ("a", "consecutive_5xx")
    attempt(d.call().start(1000.0))  # the only host: panic takes it all the same


@pytest.mark.parametrize(("grpc_status", "expected"), [(14, 1), (0, 0), (None, 1), (1, 1)])
def test_grpc_stream_is_counted_when_it_ends(driver: MakeDriver, grpc_status: int | None, expected: int) -> None:
    """A50: what did not end with OK failed; None is a caller that left."""
    detection = OutlierDetection(
        consecutive_5xx=1,
        enforcing_failure_percentage=100,
        failure_percentage_minimum_hosts=1,
        failure_percentage_request_volume=1,
        max_ejection_percent=100,
    )
    d = driver(service("a", "h:1", template=options(outlier_detection=detection)))
    call = d.call(grpc=True)
    call.start(1000.0)
    call.finished(Response(200), 1000.0)

    call.close(1005.0, grpc_status=grpc_status)

    assert d.events[-1].grpc_status == grpc_status
    cluster = d.mesh.cluster("a")
    assert len(cluster.sweep(1010.0, d.mesh.rng)) == expected
    assert cluster.outlier.ejections_active == 0


def test_mutations_concern_responses_and_the_meshs_own_answers(driver: MakeDriver) -> None:
    mutation = HeaderMutation(response_add=(HeaderAdd("x-route", "1"),))
    route = replace(any_path(RouteAction(SingleCluster("a"))), mutation=mutation)
    d = driver(replace(service("a", "h:1"), targets={"a": target("a", route)}))
    call = d.call()
    call.start(1000.0)
    assert call.response_headers(Headers([("b", "2")])).get("x-route") == "1"
    call.close(1000.0)

    d.mesh.publish(replace(service("a"), targets={"a": target("a", route)}))
    assert ("x-route", "1") in reply(d.call().start(1000.0)).headers


def test_update_between_attempts_is_seen(driver: MakeDriver) -> None:
    policy = retry("5xx", num_retries=1)
    d = driver(service("a", "h:1", retry=policy), HALF)
    call = d.call()
    call.start(1000.0)
    call.finished(BUSY, 1000.0)
    d.mesh.publish(service("a", "h:2", retry=policy))

    assert attempt(call.slept(1000.1)).endpoint.address == "h:2"


def test_steps_out_of_order_are_refused(driver: MakeDriver) -> None:
    call = driver(service("a", "h:1")).call()
    with pytest.raises(RuntimeError, match="new"):
        call.finished(OK, 1000.0)
    call.start(1000.0)
    with pytest.raises(RuntimeError, match="attempt running"):
        call.start(1000.0)
    with pytest.raises(RuntimeError, match="attempt running"):
        call.slept(1000.0)
    call.close(1000.0)
    with pytest.raises(RuntimeError, match="closed"):
        call.finished(OK, 1000.0)


def test_without_a_hook_nothing_is_reported(driver: MakeDriver) -> None:
    d = driver(service("a", "h:1"))
    call = Call(d.target, d.call().head, rng=HALF, now=1000.0)
    call.start(1000.0)
    call.finished(OK, 1000.0)
    call.close(1000.0)

    assert d.events == []
