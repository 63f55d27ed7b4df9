"""Calls to an aggregate cluster: every attempt is one of a leaf, by the leaf's limits."""

from collections.abc import Callable
from typing import Any

from meshlib.call import Attempt, Done, Sleep
from meshlib.model.cluster import AggregateDiscovery, CircuitBreakers, Cluster, EdsDiscovery, OutlierDetection
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, HealthStatus
from meshlib.model.outcome import LocalReply, Response
from meshlib.model.retry import RetryPolicy
from meshlib.model.snapshot import ClusterConfig, Snapshot
from meshlib.testing import merge, service

MakeDriver = Callable[..., Any]
RETRY = RetryPolicy(frozenset({"5xx"}))
EJECTS = Cluster("", EdsDiscovery(""), outlier_detection=OutlierDetection(consecutive_5xx=1, max_ejection_percent=100))


def world(first: Endpoint | str, *, template: Cluster | None = None, backup: Cluster | None = None) -> Snapshot:
    """The target `all` goes to an aggregate of `near` and `far`."""
    leaves = ("near", "far")
    aggregate = ClusterConfig(Cluster("all", AggregateDiscovery(leaves)), ClusterLoadAssignment("all"), "", leaves)
    return merge(
        service("all", retry=RETRY),
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
    near, far = (world_.mesh.view.clusters[name].breaker for name in ("near", "far"))
    assert (0, 0, 1, 1) == (near.active, near.retries, far.active, far.retries)
    call.finished(Response(200), world_.clock())
    call.close(world_.clock())
    assert (0, 0) == (far.active, far.retries)


def test_the_limit_of_retries_is_that_of_the_leaf_gone_to(driver: MakeDriver) -> None:
    none = Cluster("", EdsDiscovery(""), circuit_breakers=CircuitBreakers(max_retries=0))
    world_ = driver(world("h:1", template=EJECTS, backup=none))
    call = world_.call()
    call.start(world_.clock())
    step = call.finished(Response(503), world_.clock())
    if isinstance(step, Sleep):
        step = call.slept(world_.clock())
    assert isinstance(step, Done)
    assert isinstance(step.result, LocalReply)
    assert "UO" == step.result.flag
    call.close(world_.clock())
    assert 0 == world_.mesh.view.clusters["near"].breaker.retries


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
