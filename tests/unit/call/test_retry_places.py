"""Where retries go, when, and what else of section 3 and 4 a call obeys."""

from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest

from meshlib.call import Attempt, Call, Done, Sleep, Step
from meshlib.model.cluster import AggregateDiscovery, CircuitBreakers, Cluster, EdsDiscovery
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, HealthStatus, Locality, LocalityEndpoints
from meshlib.model.lb_policy import Maglev, Random, RingHash, RoundRobin
from meshlib.model.outcome import Failure, FailureKind, LocalReply, Response
from meshlib.model.request import Headers
from meshlib.model.retry import HedgePolicy, RetryPolicy
from meshlib.model.route import RouteAction, SingleCluster
from meshlib.model.snapshot import ClusterConfig, Snapshot
from meshlib.model.subset import MatchCriteria, SubsetConfig, SubsetFallback
from meshlib.testing import SeededRng, service

MakeDriver = Callable[..., Any]
BUSY, OK = Response(503), Response(200)
LATE = Failure(FailureKind.TIMEOUT, True)


def policy(**changes: Any) -> RetryPolicy:
    return RetryPolicy(frozenset({"5xx"}), **{"num_retries": 4, **changes})


def endpoint(address: str, **labels: Any) -> Endpoint:
    return Endpoint(address, metadata={"envoy.lb": MappingProxyType(labels)})


def places(call: Call, outcome: Any = BUSY) -> list[str]:
    """Return the endpoints of a call whose every attempt ends in the same way."""
    step: Step = call.start(1000.0)
    while not isinstance(step, Done):
        step = call.slept(1000.0) if isinstance(step, Sleep) else call.finished(outcome, 1000.0)
    call.close(1000.0)
    return list(call.endpoints)


def test_retries_leave_canaries_alone(driver: MakeDriver) -> None:
    retry = policy(avoid_canaries=True, host_selection_attempts=20)
    hosts = [endpoint("h:1", canary=True), endpoint("h:2"), endpoint("h:3", canary="yes")]
    found = places(driver(service("a", *hosts, retry=retry), rng=SeededRng(1)).call())
    assert "h:1" not in found[1:]
    assert {"h:2", "h:3"} >= set(found[1:])


def test_first_attempt_may_go_to_a_canary(driver: MakeDriver) -> None:
    retry = policy(avoid_canaries=True, num_retries=1)
    assert places(driver(service("a", endpoint("h:1", canary=True), retry=retry)).call()) == ["h:1", "h:1"]


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        ((("v", "1"),), {"h:2", "h:3"}),
        ((("v", "1"), ("zone", "a")), {"h:2", "h:3"}),
        ((("v", "1"), ("zone", "b")), {"h:1", "h:2", "h:3"}),
        ((("v", "2"),), {"h:1", "h:3"}),
    ],
)
def test_retries_leave_hosts_with_metadata_alone(driver: MakeDriver, wanted: Any, left: set[str]) -> None:
    retry = policy(avoid_metadata=(wanted,), host_selection_attempts=30, num_retries=20)
    hosts = [endpoint("h:1", v="1", zone="a"), endpoint("h:2", v="2"), Endpoint("h:3")]
    assert set(places(driver(service("a", *hosts, retry=retry), rng=SeededRng(2)).call())[1:]) == left


def priorities(*counts: int, retry: RetryPolicy) -> Snapshot:
    """A cluster with so many healthy hosts per priority; the hosts of priority n are `n:1`, `n:2`, ..."""
    groups = tuple(
        LocalityEndpoints(
            Locality(str(number)),
            tuple(Endpoint(f"{number}:{host + 1}") for host in range(count)),
            priority=number,
            weight=1,
        )
        for number, count in enumerate(counts)
    )
    snapshot = service("a", retry=retry)
    config = snapshot.clusters["a"]
    assert isinstance(config, ClusterConfig)
    return replace(snapshot, clusters={"a": replace(config, assignment=ClusterLoadAssignment("a", groups))})


def test_retries_go_to_priorities_that_were_not_tried(driver: MakeDriver) -> None:
    d = driver(priorities(2, 2, 2, retry=policy(priority_update=1)))
    assert [place[0] for place in places(d.call())] == ["0", "1", "2", "0", "1"]


def test_priorities_are_looked_at_now_and_then(driver: MakeDriver) -> None:
    d = driver(priorities(2, 2, retry=policy(priority_update=2)))
    assert [place[0] for place in places(d.call())] == ["0", "0", "1", "1", "0"]


def test_one_priority_alone_is_tried_again(driver: MakeDriver) -> None:
    d = driver(priorities(2, retry=policy(priority_update=1)))
    assert [place[0] for place in places(d.call())] == ["0"] * 5


@pytest.mark.parametrize(("wanted", "update", "tried"), [("2", 1, "22222"), ("12", 1, "12121"), ("12", 2, "11221")])
def test_with_subsets_it_is_their_own_priorities_that_are_left(
    driver: MakeDriver, wanted: str, update: int, tried: str
) -> None:
    """A subset that has nothing in the priorities which were not tried starts over with all of its own."""
    snapshot = priorities(1, 1, 1, retry=policy(priority_update=update))
    config = snapshot.clusters["a"]
    assert isinstance(config, ClusterConfig)
    groups = tuple(
        replace(group, endpoints=tuple(replace(one, metadata=chosen) for one in group.endpoints))
        for group in config.assignment.localities
        for chosen in ({"envoy.lb": MappingProxyType({"in": str(group.priority) in wanted})},)
    )
    subsets = SubsetConfig((), fallback=SubsetFallback.DEFAULT_SUBSET, default_subset=MatchCriteria.of({"in": True}))
    assignment = replace(config.assignment, localities=groups)
    changed = replace(config, cluster=replace(config.cluster, subsets=subsets), assignment=assignment)
    d = driver(replace(snapshot, clusters={"a": changed}))
    assert "".join(place[0] for place in places(d.call())) == tried


def waits(driver: Any, retry: RetryPolicy, *headers: tuple[str, str]) -> float:
    d = driver(service("a", "h:1", retry=retry))
    d.target.wall_offset_s = 1_700_000_000.0 - 1000.0
    call = d.call()
    call.start(1000.0)
    step = call.finished(Response(503, Headers(headers)), 1000.0)
    return step.seconds if isinstance(step, Sleep) else 0.0


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ([("retry-after", "2")], 2.0),
        ([("retry-after", " 3 ")], 3.0),
        ([("retry-after", "soon"), ("x-reset", "1700000005")], 5.0),
        ([("x-reset", "1699999999")], 0.0),
        ([("retry-after", "11")], 0.0),  # longer than is believed: the least of the exponential wait
        ([("retry-after", "11"), ("x-reset", "1700000004")], 4.0),
        ([("retry-after", "0")], 0.0),
        ([], 0.0),
    ],
)
def test_servers_say_when_to_come_back(driver: MakeDriver, headers: Any, wait_s: float) -> None:
    retry = policy(reset_headers=(("retry-after", False), ("x-reset", True)), max_reset_s=10.0)
    assert waits(driver, retry, *headers) == pytest.approx(wait_s)


def test_wait_that_a_server_asks_for_is_spread(driver: MakeDriver) -> None:
    retry = policy(reset_headers=(("retry-after", False),))
    found = set()
    for seed in range(30):
        d = driver(service("a", "h:1", retry=retry), rng=SeededRng(seed))
        call = d.call()
        call.start(1000.0)
        step = call.finished(Response(503, Headers([("retry-after", "1")])), 1000.0)
        assert isinstance(step, Sleep)
        found.add(step.seconds)
    assert 1.0 <= min(found) < 1.1
    assert 1.4 < max(found) < 1.5


def test_idle_time_of_an_attempt(driver: MakeDriver) -> None:
    retry = policy(per_try_timeout_s=2.0, per_try_idle_timeout_s=0.5)
    call = driver(service("a", "h:1", retry=retry)).call()
    step = call.start(1000.0)
    assert isinstance(step, Attempt)
    assert (step.timeout_s, step.head.headers.get("x-envoy-expected-rq-timeout-ms")) == (0.5, "2000")
    assert isinstance(call.finished(LATE, 1000.5), Attempt | Sleep)


@pytest.mark.parametrize(("per_try_s", "idle_s"), [(1.0, 3.0), (None, 1.0), (3.0, 1.0)])
def test_time_to_hedge_is_the_first_of_an_attempts_times(
    driver: MakeDriver, per_try_s: float | None, idle_s: float | None
) -> None:
    retry = policy(per_try_timeout_s=per_try_s, per_try_idle_timeout_s=idle_s)
    action = RouteAction(SingleCluster(""), retry=retry, hedge=HedgePolicy(True))
    call = driver(service("a", "h:1", action=action)).call(can_hedge=True)
    step = call.start(1000.0)
    assert isinstance(step, Attempt)
    assert (step.is_raced, step.timeout_s) == (True, 15.0)
    assert call.racing(1000.0).seconds == 1.0  # type: ignore[union-attr]


def test_policy_of_the_cluster_comes_before_the_routes(driver: MakeDriver) -> None:
    own = RetryPolicy(frozenset({"retriable-4xx"}), 1)
    snapshot = service("a", "h:1", retry=policy(), template=Cluster("", EdsDiscovery(""), retry=own))
    call = driver(snapshot).call()
    call.start(1000.0)
    assert isinstance(call.finished(BUSY, 1000.0), Done)
    assert len(places(driver(snapshot).call(), Response(409))) == 2


@pytest.mark.parametrize("times", [{"per_try_timeout_s": 0.7}, {"per_try_idle_timeout_s": 0.7}])
@pytest.mark.parametrize("headers", [{}, {"x-envoy-max-retries": "1"}])
@pytest.mark.parametrize("is_of_route", [True, False])
def test_times_of_attempts_are_those_of_the_routes_policy(
    driver: MakeDriver, times: dict[str, float], headers: dict[str, str], is_of_route: bool
) -> None:
    """As seen in Envoy 1.40: also where the cluster's policy takes its place in all else."""
    of_route, own = policy(**times if is_of_route else {}), policy(**{} if is_of_route else times)
    snapshot = service("a", "h:1", retry=of_route, template=Cluster("", EdsDiscovery(""), retry=own))
    step = driver(snapshot).call(headers=headers).start(1000.0)
    assert isinstance(step, Attempt)
    assert (0.7 if is_of_route else 15.0) == step.timeout_s


def limited(**changes: Any) -> Cluster:
    return Cluster("", EdsDiscovery(""), **changes)


def test_stream_duration_of_the_cluster_ends_an_attempt(driver: MakeDriver) -> None:
    snapshot = service("a", "h:1", retry=policy(num_retries=1), template=limited(max_stream_duration_s=0.5))
    call = driver(snapshot).call()
    step = call.start(1000.0)
    assert isinstance(step, Attempt)
    assert step.timeout_s == 0.5
    step = call.finished(LATE, 1000.5)
    while isinstance(step, Sleep):
        step = call.slept(1000.5)
    assert isinstance(step, Attempt)
    end = call.finished(LATE, 1001.0)
    assert isinstance(end, Done)
    assert end.flag == "URX,UMSDR"


def test_stream_duration_ends_the_body_too(driver: MakeDriver) -> None:
    call = driver(service("a", "h:1", template=limited(max_stream_duration_s=0.5))).call()
    call.start(1000.0)
    call.finished(OK, 1000.1)
    assert call.body_deadline == 1000.5
    call.cut_off(LATE, 1000.5)
    assert call.flag == "UMSDR"


@pytest.mark.parametrize(("text", "timeout_s"), [("250", 0.25), ("0", 15.0), ("x", 0.5)])
def test_request_says_how_long_its_stream_may_last(driver: MakeDriver, text: str, timeout_s: float) -> None:
    headers = {"x-envoy-upstream-stream-duration-ms": text}
    call = driver(service("a", "h:1", template=limited(max_stream_duration_s=0.5))).call(headers=headers)
    step = call.start(1000.0)
    assert isinstance(step, Attempt)
    assert step.timeout_s == timeout_s
    assert "x-envoy-upstream-stream-duration-ms" not in step.head.headers


def test_request_says_what_a_timeout_looks_like(driver: MakeDriver) -> None:
    headers = {"x-envoy-upstream-rq-timeout-alt-response": "1"}
    call = driver(service("a", "h:1", timeout_s=1.0)).call(headers=headers)
    call.start(1000.0)
    end = call.finished(LATE, 1001.0)
    assert isinstance(end, Done)
    assert isinstance(end.result, LocalReply)
    assert (end.result.status, end.result.body, end.flag) == (204, b"", "UT")


def test_other_failures_look_as_ever(driver: MakeDriver) -> None:
    headers = {"x-envoy-upstream-rq-timeout-alt-response": "1"}
    call = driver(service("a", "h:1", timeout_s=1.0)).call(headers=headers)
    call.start(1000.0)
    end = call.finished(Failure(FailureKind.RESET, True), 1000.5)
    assert isinstance(end, Done)
    assert isinstance(end.result, Failure)


@pytest.mark.parametrize(("length", "attempts"), [("100", 5), ("101", 1), (None, 5)])
def test_long_bodies_are_not_repeated(driver: MakeDriver, length: str | None, attempts: int) -> None:
    snapshot = service("a", "h:1", retry=policy())
    config = snapshot.targets["a"]
    host = config.routes.virtual_hosts[0]  # type: ignore[union-attr]
    routes = replace(
        config.routes,  # type: ignore[union-attr]
        virtual_hosts=(replace(host, routes=(replace(host.routes[0], body_limit=100),)),),
    )
    d = driver(replace(snapshot, targets={"a": replace(config, routes=routes)}))  # type: ignore[type-var]
    headers = {} if length is None else {"content-length": length}
    assert len(places(d.call("PUT", headers))) == attempts


def by_status(*groups: str) -> ClusterLoadAssignment:
    """Priorities by the first letters of their hosts' status: `h`, `d` or `u`."""
    kinds = {"h": HealthStatus.HEALTHY, "d": HealthStatus.DEGRADED, "u": HealthStatus.UNHEALTHY}
    return ClusterLoadAssignment(
        "a",
        tuple(
            LocalityEndpoints(
                Locality(str(number)),
                tuple(Endpoint(f"{number}:{host + 1}", health=kinds[kind]) for host, kind in enumerate(group)),
                priority=number,
                weight=1,
            )
            for number, group in enumerate(groups)
        ),
    )


@pytest.mark.parametrize(
    ("policy_", "tried"),
    [(RoundRobin(), "01201"), (RingHash(), "00000"), (Maglev(251), "00000"), (Random(), "01201")],
)
def test_degraded_priorities_are_tried_too_but_hashes_decide_alone(
    driver: MakeDriver, policy_: Any, tried: str
) -> None:
    template = Cluster("a", EdsDiscovery("a"), policy_)
    snapshot = service("a", retry=policy(priority_update=1))
    clusters = {"a": ClusterConfig(template, by_status("h", "d", "d"))}
    found = places(driver(replace(snapshot, clusters=clusters)).call())
    assert [place[0] for place in found] == list(tried)


def aggregate(*leaves: ClusterConfig, retry: RetryPolicy) -> Snapshot:
    names = tuple(leaf.cluster.name for leaf in leaves)
    whole = ClusterConfig(Cluster("a", AggregateDiscovery(names)), ClusterLoadAssignment("a"), "", names)
    clusters = {"a": whole, **{leaf.cluster.name: leaf for leaf in leaves}}
    return replace(service("a", retry=retry), clusters=clusters)


@pytest.mark.parametrize(("update", "tried"), [(1, "0120120"), (2, "0011220")])
def test_retries_go_through_the_priorities_of_all_leaves(driver: MakeDriver, update: int, tried: str) -> None:
    first, second = by_status("h", "h"), by_status("h")
    leaves = (
        ClusterConfig(Cluster("one", EdsDiscovery("one")), replace(first, name="one")),
        ClusterConfig(
            Cluster("two", EdsDiscovery("two")),
            replace(second, name="two", localities=(replace(second.localities[0], endpoints=(Endpoint("2:1"),)),)),
        ),
    )
    d = driver(aggregate(*leaves, retry=policy(priority_update=update, num_retries=6)))
    assert [place[0] for place in places(d.call())] == list(tried)


@pytest.mark.parametrize(("outcome", "host"), [(BUSY, "one.host"), (Failure(FailureKind.CONNECT, False), "a")])
def test_the_hostname_of_an_endpoint_stays_with_the_request(driver: MakeDriver, outcome: Any, host: str) -> None:
    action = RouteAction(SingleCluster("a"), auto_host_rewrite=True)
    hosts = Endpoint("h:1", hostname="one.host"), Endpoint("h:2")
    d = driver(service("a", *hosts, retry=policy(avoid_previous_hosts=True), action=action), rng=SeededRng(3))
    call = d.call()
    step = call.start(1000.0)
    while isinstance(step, Attempt) and step.endpoint.address != "h:1":
        call = d.call()
        step = call.start(1000.0)
    assert isinstance(step, Attempt) and step.head.authority == "one.host"
    assert call.sent_head.authority == "a"
    step = call.finished(outcome, 1000.0)
    while isinstance(step, Sleep):
        step = call.slept(1000.0)
    assert isinstance(step, Attempt)
    assert call.sent_head.authority == host


def test_the_limit_that_stops_a_retry_says_so(driver: MakeDriver) -> None:
    template = Cluster("a", EdsDiscovery("a"), circuit_breakers=CircuitBreakers(max_requests=1))
    retry = policy(reset_headers=(("retry-after", False),))  # so that there is a wait before the retry
    d = driver(service("a", "h:1", template=template, retry=retry))
    call, other = d.call(), d.call()
    assert isinstance(call.start(1000.0), Attempt)
    step = call.finished(Response(503, Headers([("retry-after", "2")])), 1000.0)
    assert isinstance(other.start(1000.0), Attempt)
    while isinstance(step, Sleep):
        step = call.slept(1000.0)
    assert isinstance(step, Done) and isinstance(step.result, LocalReply)
    assert step.result.body.endswith(b"before headers. retried and the latest reset reason: overflow")
    step = d.call().start(1000.0)
    assert isinstance(step, Done) and isinstance(step.result, LocalReply)
    assert step.result.body.endswith(b"before headers. reset reason: overflow")
