"""HTTP requests and gRPC calls of one cluster: each has its detector, and an endpoint that either took out is out."""

import random

import pytest

from meshlib.model.cluster import Cluster, EdsDiscovery, OutlierDetection
from meshlib.model.outcome import GRPC_OK, Failure, FailureKind, Response
from meshlib.testing import FakeClock, FixedRng, mesh_source, service

BUSY, UNAVAILABLE = Response(503), Response(200, grpc_status=14)
CONFIG = OutlierDetection(
    consecutive_5xx=3,
    enforcing_success_rate=0,
    enforcing_failure_percentage=100,
    failure_percentage_minimum_hosts=1,
    failure_percentage_request_volume=3,
    max_ejection_percent=50,
)


@pytest.fixture
def cluster():
    template = Cluster("", EdsDiscovery(""), outlier_detection=CONFIG)
    source = mesh_source(service("a", "h:1", "h:2", template=template), clock=FakeClock(), rng=FixedRng(0.0))
    source.wait_target("a")
    return source.cluster("a")


def record(cluster, outcome, *, is_grpc, times=3):
    events = [
        cluster.record(cluster.states["h:1"], outcome, 1001.0, FixedRng(0.0), is_grpc=is_grpc) for _ in range(times)
    ]
    return [event for event in events if event is not None]


def picked(cluster):
    rng = random.Random(1)
    return {cluster.picker.pick(None, rng).address for _ in range(20)}


def test_run_of_errors_counts_for_http_alone(cluster):
    assert [] == record(cluster, UNAVAILABLE, is_grpc=True, times=9)
    assert not cluster.states["h:1"].is_ejected
    assert ["consecutive_5xx"] == [event.reason for event in record(cluster, BUSY, is_grpc=False)]
    assert {"h:2"} == picked(cluster)


def test_interval_counts_for_grpc_alone(cluster):
    record(cluster, BUSY, is_grpc=False, times=2)
    record(cluster, UNAVAILABLE, is_grpc=True)
    (event,) = cluster.sweep(1010.0, FixedRng(0.0))
    assert ("failure_percentage", "h:1") == (event.reason, event.endpoint.address)
    assert {"h:2"} == picked(cluster)


def test_endpoint_is_back_when_both_say_so(cluster):
    record(cluster, UNAVAILABLE, is_grpc=True)
    cluster.sweep(1010.0, FixedRng(0.0))
    for _ in range(3):
        cluster.record(cluster.states["h:1"], BUSY, 1025.0, FixedRng(0.0))
    cluster.sweep(1041.0, FixedRng(0.0))
    assert not cluster.grpc_outlier.is_ejected("h:1")
    assert cluster.states["h:1"].is_ejected
    cluster.sweep(1056.0, FixedRng(0.0))
    assert not cluster.states["h:1"].is_ejected


def test_what_never_had_a_connection_is_not_counted(cluster):
    record(cluster, Failure(FailureKind.CONNECT, False), is_grpc=True, times=9)
    assert () == cluster.sweep(1010.0, FixedRng(0.0))
    record(cluster, Failure(FailureKind.TIMEOUT, True), is_grpc=True)
    assert 1 == len(cluster.sweep(1020.0, FixedRng(0.0)))


def test_successes_are_counted(cluster):
    record(cluster, UNAVAILABLE, is_grpc=True)
    record(cluster, GRPC_OK, is_grpc=True, times=1)
    assert () == cluster.sweep(1010.0, FixedRng(0.0))  # 75 % of 85
