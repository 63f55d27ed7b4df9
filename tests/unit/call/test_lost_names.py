"""gRPC calls that find nobody behind a DNS name have it looked up again; HTTP requests do not, as in Envoy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from meshlib.call import Attempt, Done
from meshlib.model.cluster import DnsDiscovery
from meshlib.model.dns import DnsLookup, LookupFamily
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import HedgePolicy, RouteAction, SingleCluster
from meshlib.model.snapshot import ClusterConfig, Snapshot
from meshlib.testing import service
from meshlib.testing.builders import assignment
from meshlib.view.lost_names import lost_names

MakeDriver = Callable[..., Any]
REFUSED = Failure(FailureKind.CONNECT, request_sent=False)


def named(**action: Any) -> Snapshot:
    """`svc`, whose endpoint was found by the names `a` and `b`."""
    made = service("svc", "10.0.0.1:80", action=RouteAction(SingleCluster("svc"), **action))
    config = made.clusters["svc"]
    assert isinstance(config, ClusterConfig)
    names = assignment("svc", ["a:80", "b:80", "10.0.0.9:80"])
    discovery = DnsDiscovery(names, lookup=DnsLookup(family=LookupFamily.V4_ONLY))
    return replace(made, clusters={"svc": replace(config, cluster=replace(config.cluster, discovery=discovery))})


def end(world: Any, outcome: Outcome, **request: Any) -> None:
    call = world.call(**request)
    step = call.start(world.clock())
    while isinstance(step, Attempt):
        step = call.finished(outcome, world.clock())
    assert isinstance(step, Done)
    call.close(world.clock())


@pytest.mark.parametrize(
    ("outcome", "is_grpc", "is_lost"),
    [
        (REFUSED, True, True),
        (Failure(FailureKind.IDENTITY, request_sent=False), True, True),
        (Failure(FailureKind.RESET, request_sent=True), True, False),
        (Response(200, grpc_status=14), True, False),
        (REFUSED, False, False),
    ],
)
def test_only_a_grpc_call_without_a_connection_asks(
    driver: MakeDriver, outcome: Outcome, is_grpc: bool, is_lost: bool
) -> None:
    world = driver(named())
    end(world, outcome, grpc=is_grpc)
    found = lost_names(world.mesh.view.clusters.values())
    assert (["a", "b"] if is_lost else []) == sorted(label.split()[0] for label in found)
    assert frozenset() == lost_names(world.mesh.view.clusters.values()), "once"


def test_so_does_an_attempt_beside_others(driver: MakeDriver) -> None:
    retry = RetryPolicy(frozenset({"unavailable"}), 2, per_try_timeout_s=1.0, base_interval_s=0.1)
    world = driver(named(hedge=HedgePolicy(on_per_try_timeout=True), retry=retry))
    call = world.call(grpc=True, can_hedge=True)
    first = call.start(1000.0)
    assert isinstance(first, Attempt)
    call.racing(1000.0)
    call.ended(first, REFUSED, 1000.1)
    assert lost_names(world.mesh.view.clusters.values())
    call.close(1000.1)


def test_endpoints_of_eds_have_no_names(driver: MakeDriver) -> None:
    world = driver(service("svc", "10.0.0.1:80"))
    end(world, REFUSED, grpc=True)
    assert frozenset() == lost_names(world.mesh.view.clusters.values())
