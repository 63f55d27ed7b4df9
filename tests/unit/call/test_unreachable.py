"""gRPC calls whose endpoint cannot be connected to: another takes them, uncounted; HTTP requests fail as in Envoy."""

from collections.abc import Callable
from typing import Any

from meshlib.call import Attempt, Done, Sleep
from meshlib.model.cluster import AggregateDiscovery, Cluster
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, Locality, LocalityEndpoints
from meshlib.model.outcome import Failure, FailureKind, Response
from meshlib.model.snapshot import ClusterConfig, Snapshot
from meshlib.testing import merge, service

MakeDriver = Callable[..., Any]
REFUSED = Failure(FailureKind.CONNECT, request_sent=False)


def play(world: Any, outcomes: dict[str, Any], **request: Any) -> tuple[list[str], Any]:
    """Make a call; returns where its attempts went, and how it ended."""
    call = world.call(**request)
    step = call.start(world.clock())
    places = []
    while not isinstance(step, Done):
        if isinstance(step, Attempt):
            places.append(step.endpoint.address)
            step = call.finished(outcomes.get(step.endpoint.address, Response(200, grpc_status=0)), world.clock())
        else:
            assert isinstance(step, Sleep)
            step = call.slept(world.clock())
    call.close(world.clock())
    return places, step.result


def test_another_endpoint_takes_the_call(driver: MakeDriver) -> None:
    world = driver(service("svc", "h:1", "h:2", "h:3"))
    outcomes = {"h:1": REFUSED, "h:2": REFUSED}
    ends = [play(world, outcomes, grpc=True) for _ in range(6)]
    assert {"h:3"} == {places[-1] for places, _ in ends}
    assert all(len(set(places)) == len(places) for places, _ in ends)
    assert 3 == max(len(places) for places, _ in ends)
    assert all(isinstance(result, Response) for _, result in ends)


def test_it_fails_when_all_are_unreachable(driver: MakeDriver) -> None:
    world = driver(service("svc", "h:1", "h:2"))
    places, result = play(world, {"h:1": REFUSED, "h:2": REFUSED}, grpc=True)
    assert (["h:1", "h:2"], REFUSED) == (sorted(places), result)
    assert 0 == world.mesh.view.clusters["svc"].breaker.active


def test_what_has_left_the_client_stays(driver: MakeDriver) -> None:
    world = driver(service("svc", "h:1", "h:2"))
    sent = Failure(FailureKind.RESET, request_sent=True)
    assert 1 == len(play(world, {"h:1": sent, "h:2": sent}, grpc=True)[0])


def test_an_http_request_fails(driver: MakeDriver) -> None:
    world = driver(service("svc", "h:1", "h:2"))
    assert 1 == len(play(world, {"h:1": REFUSED, "h:2": REFUSED})[0])


def test_lower_priorities_and_leaves_of_an_aggregate_are_next(driver: MakeDriver) -> None:
    def config(name: str, *addresses: str, leaves: tuple[str, ...] = ()) -> ClusterConfig:
        groups = [
            LocalityEndpoints(Locality(zone=str(number)), (Endpoint(address),), None, number)
            for number, address in enumerate(addresses)
        ]
        made = service(name, "x:1").clusters[name]
        assert isinstance(made, ClusterConfig)
        assignment = ClusterLoadAssignment(name, tuple(groups))
        if leaves:
            return ClusterConfig(Cluster(name, AggregateDiscovery(leaves)), assignment, "", leaves)
        return ClusterConfig(made.cluster, assignment)

    snapshot = merge(
        service("all", "x:1"),
        Snapshot(
            clusters={
                "near": config("near", "h:1", "h:2"),
                "far": config("far", "h:3", "h:4"),
                "all": config("all", leaves=("near", "far")),
            }
        ),
    )
    world = driver(snapshot)
    refused = {"h:1": REFUSED, "h:2": REFUSED, "h:3": REFUSED}
    assert ["h:1", "h:2", "h:3", "h:4"] == play(world, refused, grpc=True)[0]
    assert ["h:1", "h:2"] == play(world, {"h:1": REFUSED}, grpc=True)[0]
