"""Calls with the mark of a stateful session go to its endpoint, for the first attempt."""

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from meshlib.call import Attempt, Done
from meshlib.model.cluster import Cluster, EdsDiscovery, OutlierDetection
from meshlib.model.endpoint import Endpoint, HealthStatus
from meshlib.model.outcome import Failure, FailureKind, LocalReply, Response
from meshlib.model.request import Headers
from meshlib.model.retry import RetryPolicy
from meshlib.model.session import MadeCookie, SessionCookie, SessionHeader, SessionPolicy
from meshlib.model.snapshot import Snapshot, TargetConfig
from meshlib.testing import service, split

MakeDriver = Callable[..., Any]
REFUSED = Failure(FailureKind.CONNECT, False)
HOSTS = tuple(f"h:{number}" for number in range(1, 9))
HEADER = SessionPolicy(SessionHeader("x-session"))
COOKIE = SessionPolicy(SessionCookie("s", MadeCookie(60)))


def with_sessions(snapshot: Snapshot, policy: SessionPolicy, **options: Any) -> Snapshot:
    """Have the filter in the listener, with a policy of its own."""
    ((name, config),) = snapshot.targets.items()
    assert isinstance(config, TargetConfig)
    listener = replace(config.listener, has_session_filter=True, session=policy)
    return replace(snapshot, targets={name: replace(config, listener=listener, **options)})


def at(address: str) -> dict[str, str]:
    return {"x-session": base64.b64encode(address.encode()).decode()}


def first(call: Any) -> Any:
    step = call.start(1000.0)
    return step.endpoint.address if isinstance(step, Attempt) else step


def test_a_mark_leads_to_its_endpoint_and_without_one_the_balancer_chooses(driver: MakeDriver) -> None:
    d = driver(with_sessions(service("a", *HOSTS), HEADER))
    assert ["h:7", "h:2"] == [first(d.call(headers=at(address))) for address in ("h:7", "h:2")]
    assert 8 == len({first(d.call()) for _ in range(8)})


def test_the_response_says_where_it_came_from_unless_that_is_known(driver: MakeDriver) -> None:
    d = driver(with_sessions(service("a", *HOSTS), HEADER))
    call = d.call()
    address = first(call)
    call.finished(Response(200), 1000.0)
    made = call.response_headers(Headers([("a", "1")]))
    assert at(address)["x-session"] == made.get("x-session")

    again = d.call(headers={"x-session": made.get("x-session") or ""})
    assert address == first(again)
    again.finished(Response(200), 1000.0)
    assert "x-session" not in again.response_headers(Headers([("a", "1")]))


def test_a_retry_is_free_to_go_elsewhere_and_takes_the_session_along(driver: MakeDriver) -> None:
    retry = RetryPolicy(frozenset({"connect-failure"}), num_retries=1, avoid_previous_hosts=True)
    call = driver(with_sessions(service("a", "h:1", "h:2", retry=retry), HEADER)).call(headers=at("h:2"))
    assert "h:2" == first(call)
    step = call.finished(REFUSED, 1000.0)
    step = step if isinstance(step, Attempt) else call.slept(1001.0)
    assert "h:1" == step.endpoint.address
    call.finished(Response(200), 1001.0)
    assert at("h:1")["x-session"] == call.response_headers(Headers()).get("x-session")


@pytest.mark.parametrize("address", ["h:99", "nonsense", ""])
def test_who_asks_for_an_unknown_endpoint_gets_another_or_none_if_that_is_strict(
    driver: MakeDriver, address: str
) -> None:
    assert first(driver(with_sessions(service("a", *HOSTS), HEADER)).call(headers=at(address))) in HOSTS
    strict = driver(with_sessions(service("a", *HOSTS), replace(HEADER, is_strict=True)))
    step = first(strict.call(headers=at(address)))
    if address:
        assert isinstance(step, Done)
        assert isinstance(step.result, LocalReply)
        assert ("UH", 503) == (step.flag, step.result.status)
    else:
        assert step in HOSTS, "no mark is no demand"


def test_a_strict_request_without_its_endpoint_counts_as_an_attempt(driver: MakeDriver) -> None:
    """As any request that finds no endpoint, in Envoy too."""
    snapshot = with_sessions(service("a", *HOSTS, include_attempt_count=True), replace(HEADER, is_strict=True))
    ((name, config),) = snapshot.targets.items()
    assert isinstance(config, TargetConfig)
    (host,) = config.routes.virtual_hosts
    routes = replace(config.routes, virtual_hosts=(replace(host, include_attempt_count_in_response=True),))
    step = first(driver(replace(snapshot, targets={name: replace(config, routes=routes)})).call(headers=at("h:99")))
    assert isinstance(step, Done)
    assert isinstance(step.result, LocalReply)
    assert ("x-envoy-attempt-count", "1") in step.result.headers


@pytest.mark.parametrize("is_grpc", [False, True])
@pytest.mark.parametrize("given", [None, frozenset(), frozenset({HealthStatus.DRAINING, HealthStatus.DEGRADED})])
@pytest.mark.parametrize("health", HealthStatus)
def test_an_endpoint_keeps_its_sessions_while_its_health_allows(
    driver: MakeDriver, health: HealthStatus, given: frozenset[HealthStatus] | None, is_grpc: bool
) -> None:
    template = Cluster("", EdsDiscovery(""), override_statuses=given)
    snapshot = service("a", "h:1", "h:3", "h:4", Endpoint("h:2", health=health), template=template)
    mark = {"cookie": "s=" + base64.b64encode(b"h:2").decode()}
    strict = replace(COOKIE, is_strict=True)
    step = first(driver(with_sessions(snapshot, strict)).call(headers=mark, grpc=is_grpc))
    usual = {HealthStatus.UNKNOWN, HealthStatus.HEALTHY}
    allowed: set[HealthStatus] | frozenset[HealthStatus]
    if is_grpc:
        allowed = usual if given is None else given & (usual | {HealthStatus.DRAINING})
    else:
        allowed = usual | {HealthStatus.DEGRADED} if given is None else given
    assert (step == "h:2") is (health in allowed)


def test_an_ejected_endpoint_loses_its_sessions(driver: MakeDriver) -> None:
    outlier = OutlierDetection(consecutive_5xx=1, max_ejection_percent=100)
    template = Cluster("", EdsDiscovery(""), outlier_detection=outlier)
    d = driver(with_sessions(service("a", "h:1", "h:2", template=template), HEADER))
    call = d.call(headers=at("h:2"))
    assert "h:2" == first(call)
    call.finished(Response(500), 1000.0)
    assert "h:1" == first(d.call(headers=at("h:2")))


def test_a_route_can_switch_sessions_off(driver: MakeDriver) -> None:
    snapshot = with_sessions(service("a", *HOSTS), replace(HEADER, is_strict=True))
    ((name, config),) = snapshot.targets.items()
    assert isinstance(config, TargetConfig)
    (host,) = config.routes.virtual_hosts
    for level in (
        replace(config.routes, session=SessionPolicy()),
        replace(config.routes, virtual_hosts=(replace(host, session=SessionPolicy()),)),
        replace(
            config.routes,
            virtual_hosts=(replace(host, routes=(replace(host.routes[0], session=SessionPolicy()),)),),
        ),
    ):
        off = replace(snapshot, targets={name: replace(config, routes=level)})
        assert first(driver(off).call(headers=at("h:99"))) in HOSTS


def test_without_the_filter_policies_of_routes_mean_nothing(driver: MakeDriver) -> None:
    snapshot = service("a", *HOSTS)
    ((name, config),) = snapshot.targets.items()
    assert isinstance(config, TargetConfig)
    routes = replace(config.routes, session=replace(HEADER, is_strict=True))
    d = driver(replace(snapshot, targets={name: replace(config, routes=routes)}))
    assert first(d.call(headers=at("h:99"))) in HOSTS


def grpc_mark(text: str) -> dict[str, str]:
    return {"cookie": "s=" + base64.b64encode(text.encode()).decode()}


def test_a_grpc_mark_also_chooses_among_the_clusters_of_its_route(driver: MakeDriver) -> None:
    snapshot = split("a", {"v1": (99, ["h:1"]), "v2": (1, ["h:2", "h:3"])})
    d = driver(with_sessions(snapshot, COOKIE))
    call = d.call(headers=grpc_mark("h:3;a|v2"), grpc=True)
    assert "h:3" == first(call)
    assert "a|v2" == call.cluster_name
    call.finished(Response(200, grpc_status=0), 1000.0)
    assert "set-cookie" not in call.session_headers(Headers())

    other = d.call(headers=grpc_mark("h:3;elsewhere"), grpc=True)
    assert "h:1" == first(other)
    other.finished(Response(200, grpc_status=0), 1000.0)
    line = other.session_headers(Headers()).get("set-cookie") or ""
    assert base64.b64encode(b"h:1;a|v1").decode() in line


def test_the_end_of_a_cookie_is_that_of_the_wall_clock(driver: MakeDriver) -> None:
    d = driver(with_sessions(service("a", *HOSTS), COOKIE))
    d.target.wall_offset_s = 1_795_000_000.0 - 1000.0
    call = d.call()
    address = first(call)
    call.finished(Response(200), 1001.0)
    line = call.response_headers(Headers()).get("set-cookie") or ""
    mark = {"cookie": line.partition(";")[0]}
    assert address == first(d.call(headers=mark))
    d.target.wall_offset_s += 3600
    assert {address} < {first(d.call(headers=mark)) for _ in range(8)}
