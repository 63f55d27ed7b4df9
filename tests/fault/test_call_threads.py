"""Many threads call while hosts fail, come back, and the configuration changes: nothing is lost or counted twice."""

import sys
from collections.abc import Iterator
from random import Random
from threading import Thread

import pytest

from meshlib.call import Attempt, Call, Sleep
from meshlib.model.cluster import CircuitBreakers, Cluster, EdsDiscovery, LeastRequest, OutlierDetection
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.model.snapshot import Snapshot
from meshlib.testing import FakeClock, FakeMesh, mesh_source, service

HEAD = RequestHead("GET", "a", "/", Headers())


def snapshot(count: int) -> Snapshot:
    template = Cluster(
        "",
        EdsDiscovery(""),
        LeastRequest(),
        circuit_breakers=CircuitBreakers(max_requests=3, max_retries=2),
        outlier_detection=OutlierDetection(consecutive_5xx=3, max_ejection_percent=50, interval_s=0.5),
    )
    policy = RetryPolicy(frozenset({"5xx"}), num_retries=2)
    return service("a", *(f"h:{index}" for index in range(count)), retry=policy, template=template)


def outcome(rng: Random) -> Outcome:
    if rng.random() < 0.6:
        return Response(200)
    return Response(503) if rng.random() < 0.5 else Failure(FailureKind.RESET, True)


def work(mesh: FakeMesh, seed: int, errors: list[BaseException]) -> None:
    rng = Random(seed)
    try:
        for _ in range(2000):
            call = Call(mesh.wait_target("a"), HEAD, rng=rng, now=mesh.clock())
            step = call.start(mesh.clock())
            while isinstance(step, Attempt | Sleep) and rng.random() < 0.95:
                step = (
                    call.slept(mesh.clock()) if isinstance(step, Sleep) else call.finished(outcome(rng), mesh.clock())
                )
            call.close(mesh.clock())
    except BaseException as error:
        errors.append(error)


@pytest.fixture
def _switching_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_switching_often")
def test_counts_are_zero_when_all_calls_have_ended() -> None:
    clock = FakeClock()
    mesh = mesh_source(snapshot(4), clock=clock)
    cluster = mesh.cluster("a")
    seen = dict(cluster.states)
    errors: list[BaseException] = []
    threads = [Thread(target=work, args=(mesh, seed, errors)) for seed in range(4)]
    for thread in threads:
        thread.start()
    number = 0
    while any(thread.is_alive() for thread in threads):
        number += 1
        mesh.publish(snapshot(3 + number % 3))
        seen.update(cluster.states)
        clock.advance(0.5)
        mesh.sweep()
    for thread in threads:
        thread.join()

    assert errors == []
    assert (cluster.breaker.active, cluster.breaker.retries) == (0, 0)
    assert {state.active for state in seen.values()} == {0}
    ejected = {address for address, state in cluster.states.items() if state.is_ejected}
    assert cluster.outlier is not None
    assert ejected == {address for address in cluster.states if cluster.outlier.is_ejected(address)}
    assert cluster.outlier.ejections_active == len(ejected)
