"""Calls to an aggregate cluster: every attempt is one of a leaf, by the leaf's limits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from meshlib.call import Attempt, Done, Sleep
from meshlib.model.cluster import AggregateDiscovery, CircuitBreakers, Cluster, EdsDiscovery, OutlierDetection
from meshlib.model.endpoint import (
    ClusterLoadAssignment,
    DropOverload,
    Endpoint,
    HealthStatus,
    Locality,
    LocalityEndpoints,
)
from meshlib.model.matcher import Fraction
from meshlib.model.outcome import LocalReply, Response
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import MirrorPolicy
from meshlib.model.snapshot import ClusterConfig, Snapshot
from meshlib.testing import SeededRng, merge, service

MakeDriver = Callable[..., Any]
RETRY = RetryPolicy(frozenset({"5xx"}))
EJECTS = Cluster("", EdsDiscovery(""), outlier_detection=OutlierDetection(consecutive_5xx=1, max_ejection_percent=100))


def world(
    first: Endpoint | str,
    *,
    template: Cluster | None = None,
    backup: Cluster | None = None,
    above: RetryPolicy = RETRY,
    **options: Any,
) -> Snapshot:
    """The target `all` goes to an aggregate of `near` and `far`.

    Args:
        above: Policy of the route.
        options: Of the aggregate.
    """
    leaves = ("near", "far")
    cluster = Cluster("all", AggregateDiscovery(leaves), **options)
    aggregate = ClusterConfig(cluster, ClusterLoadAssignment("all"), "", leaves)
    return merge(
        service("all", retry=above),
        service("near", first, template=template),
        service("far", "h:2", template=backup),
        Snapshot(clusters={"all": aggregate}),
    )


def test_a_call_goes_to_the_first_leaf_and_counts_there(driver: MakeDriver) -> None:
    world_ = driver(world("h:1"))
    call = world_.call()
    step = call.start(world_.clock())
    assert isinstance(step, Attempt)
    assert ("h:1", "near") == (step.endpoint.address, step.cluster.name)
    assert (1, 0) == tuple(world_.mesh.view.clusters[name].breaker.active for name in ("near", "far"))
    call.finished(Response(200), world_.clock())
    call.close(world_.clock())
    assert 0 == world_.mesh.view.clusters["near"].breaker.active
    assert "all" == call.cluster_name


def test_a_retry_goes_to_the_next_leaf_when_the_first_is_ejected(driver: MakeDriver) -> None:
    world_ = driver(world("h:1", template=EJECTS))
    call = world_.call()
    call.start(world_.clock())
    step = call.finished(Response(503), world_.clock())
    if isinstance(step, Sleep):
        step = call.slept(world_.clock())
    assert isinstance(step, Attempt)
    assert ("h:2", "far") == (step.endpoint.address, step.cluster.name)
    near, far, whole = (world_.mesh.view.clusters[name].breaker for name in ("near", "far", "all"))
    assert (0, 0, 1, 0) == (near.active, near.retries, far.active, far.retries)
    assert 1 == whole.retries
    call.finished(Response(200), world_.clock())
    call.close(world_.clock())
    assert (0, 0, 0) == (far.active, far.retries, whole.retries)


@pytest.mark.parametrize("limited", ["all", "far"])
def test_the_limit_of_retries_is_that_of_the_aggregate(driver: MakeDriver, limited: str) -> None:
    none = CircuitBreakers(max_retries=0)
    world_ = driver(
        world(
            "h:1",
            template=EJECTS,
            backup=Cluster("", EdsDiscovery(""), circuit_breakers=none) if limited == "far" else None,
            circuit_breakers=none if limited == "all" else CircuitBreakers(),
        )
    )
    call = world_.call()
    call.start(world_.clock())
    step = call.finished(Response(503), world_.clock())
    assert isinstance(step, Done) is (limited == "all")
    assert call.flag == ("UO" if limited == "all" else "")
    call.close(world_.clock())
    assert 0 == world_.mesh.view.clusters["all"].breaker.retries


@pytest.mark.parametrize(("owner", "retries"), [("all", 1), ("near", 0)])
def test_policies_are_those_of_the_aggregate(driver: MakeDriver, owner: str, retries: int) -> None:
    none = RetryPolicy(frozenset({"5xx"}), num_retries=0)
    own: dict[str, Any] = {"retry": RETRY, "mirrors": (MirrorPolicy("copies", Fraction(100)),)}
    template = Cluster("", EdsDiscovery(""), **own) if owner == "near" else None
    world_ = driver(world("h:1", template=template, above=none, **(own if owner == "all" else {})))
    call = world_.call()
    call.start(world_.clock())
    call.finished(Response(503), world_.clock())
    assert retries == world_.mesh.view.clusters["all"].breaker.retries
    assert call.match is not None
    assert tuple(mirror.cluster for mirror in call.match.mirrors) == ("copies",) * retries
    call.close(world_.clock())


@pytest.mark.parametrize(("is_grpc", "flag"), [(False, ""), (True, "UDO")])
def test_drops_of_a_leaf_are_grpcs_alone(driver: MakeDriver, is_grpc: bool, flag: str) -> None:
    snapshot = world("h:1")
    near = snapshot.clusters["near"]
    assert isinstance(near, ClusterConfig)
    dropping = replace(near, assignment=replace(near.assignment, drop_overloads=(DropOverload("all", 1, 1),)))
    world_ = driver(replace(snapshot, clusters={**snapshot.clusters, "near": dropping}))
    call = world_.call(grpc=is_grpc)
    call.start(world_.clock())
    assert flag == call.flag
    call.close(world_.clock())


def test_no_usable_leaf_is_no_healthy_upstream(driver: MakeDriver) -> None:
    down = Endpoint("h:1", health=HealthStatus.UNHEALTHY)
    leaves = ("near",)
    calm = Cluster("", EdsDiscovery(""), panic_threshold_percent=0.0)
    aggregate = ClusterConfig(Cluster("all", AggregateDiscovery(leaves)), ClusterLoadAssignment("all"), "", leaves)
    world_ = driver(merge(service("all"), service("near", down, template=calm), Snapshot(clusters={"all": aggregate})))
    step = world_.call().start(world_.clock())
    assert isinstance(step, Done)
    assert isinstance(step.result, LocalReply)
    assert "UH" == step.result.flag


def places(driver: MakeDriver, near: LocalityEndpoints | tuple[LocalityEndpoints, ...], *leaves: str) -> set[str]:
    """Return where calls to an aggregate may go, by chance; "" for nowhere. The leaf `near` never panics by itself."""
    groups = near if isinstance(near, tuple) else (near,)
    calm = Cluster("", EdsDiscovery(""), panic_threshold_percent=0.0)
    snapshot = merge(service("all"), service("near", template=calm), service("far", "h:9"))
    config = snapshot.clusters["near"]
    assert isinstance(config, ClusterConfig)
    near_ = replace(config, assignment=ClusterLoadAssignment("near", groups))
    aggregate = ClusterConfig(Cluster("all", AggregateDiscovery(leaves)), ClusterLoadAssignment("all"), "", leaves)
    d = driver(replace(snapshot, clusters={**snapshot.clusters, "near": near_, "all": aggregate}), rng=SeededRng(1))
    found = set()
    for _ in range(100):
        call = d.call()
        step = call.start(d.clock())
        found.add(step.endpoint.address if isinstance(step, Attempt) else "")
        call.close(d.clock())
    return found


def group(priority: int, *healths: HealthStatus) -> LocalityEndpoints:
    """Endpoints `PRIORITY:NUMBER` of some health."""
    endpoints = tuple(Endpoint(f"{priority}:{number}", health=health) for number, health in enumerate(healths))
    return LocalityEndpoints(Locality(str(priority)), endpoints, priority=priority, weight=1)


UP, WEAK, DOWN = HealthStatus.HEALTHY, HealthStatus.DEGRADED, HealthStatus.UNHEALTHY


def test_the_aggregate_says_whether_degraded_endpoints_take_part(driver: MakeDriver) -> None:
    # The leaf alone would share 35 to 35; in the row the healthy endpoint of the other leaf comes before the degraded.
    near = group(0, UP, WEAK, DOWN, DOWN)
    assert {"0:0", "h:9"} == places(driver, near, "near", "far")
    assert {"0:0", "0:1"} == places(driver, near, "near")


def test_the_aggregates_panic_may_lead_to_a_priority_without_healthy_endpoints(driver: MakeDriver) -> None:
    # By itself the leaf would send all to the one healthy endpoint; the aggregate panics, and goes by numbers.
    near = (group(0, DOWN), group(1, UP, DOWN, DOWN, DOWN))
    assert {"", "1:0"} == places(driver, near, "near")
