"""Probation after an ejection: a trickle of requests decides whether an endpoint comes back."""

from collections import Counter
from typing import Any

import pytest

from meshlib.admin.explain_cluster import cluster_lines, explain_cluster
from meshlib.admin.status import cluster_status
from meshlib.call import Attempt, Call, Done
from meshlib.events import HostEjected, HostUnejected
from meshlib.model.cluster import Cluster, EdsDiscovery, LbPolicy, LeastRequest, OutlierDetection, Probation, RingHash
from meshlib.model.lb_policy import RoundRobin
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.protos import from_dict
from meshlib.testing import FakeClock, SeededRng, mesh_source, service
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import CDS

HEAD = RequestHead("GET", "a", "/", Headers())
BAD, GOOD = Response(503), Response(200)
HOSTS = ("h:1", "h:2", "h:3")


class World:
    """A cluster of three, of which the first has been ejected for 10 s and is on probation now."""

    def __init__(self, policy: LbPolicy | None = None, **rules: Any) -> None:
        outlier = OutlierDetection(
            consecutive_5xx=1, max_ejection_percent=100, interval_s=1.0, base_ejection_time_s=10.0,
            probation=Probation(**{"successes": 2, "interval_s": 0.1, **rules}),
        )  # fmt: skip
        template = Cluster("", EdsDiscovery(""), policy or RoundRobin(), outlier_detection=outlier)
        self.clock = FakeClock()
        self.mesh = mesh_source(service("a", *HOSTS, template=template), clock=self.clock, rng=SeededRng(2))
        self.cluster = self.mesh.cluster("a")
        event = self.cluster.record(self.cluster.states["h:1"], BAD, self.clock(), self.mesh.rng)
        assert isinstance(event, HostEjected)
        assert "h:1" not in Counter(self.start()[1] for _ in range(30))
        self.pass_time(11.0)

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.mesh.sweep()

    def start(self) -> tuple[Call, str]:
        call = Call(self.mesh.wait_target("a"), HEAD, rng=self.mesh.rng, now=self.clock(), hook=self.mesh.emit)
        step = call.start(self.clock())
        assert isinstance(step, Attempt)
        return call, step.endpoint.address

    def end(self, call: Call, outcome: Outcome) -> None:
        assert isinstance(call.finished(outcome, self.clock()), Done)
        call.close(self.clock())

    def call(self, outcome: Outcome = GOOD, others: Outcome = GOOD) -> str:
        call, address = self.start()
        self.end(call, outcome if address == "h:1" else others)
        return address

    def until_tried(self) -> Call:
        for _ in range(50):
            call, address = self.start()
            if address == "h:1":
                return call
            self.end(call, GOOD)
        raise AssertionError("nobody tries it")

    @property
    def words(self) -> tuple[bool, bool]:
        state = self.cluster.states["h:1"]
        return state.is_ejected, state.is_on_probation


@pytest.mark.parametrize("policy", [RoundRobin(), LeastRequest(), RingHash()])
def test_a_trickle_reaches_it_and_so_many_successes_bring_it_back(policy: LbPolicy) -> None:
    w = World(policy)
    assert (True, True) == w.words
    first = Counter(w.call() for _ in range(100))
    assert 1 == first["h:1"], "the gate opens once in 0.1 s"
    w.pass_time(0.11)
    w.end(w.until_tried(), GOOD)
    assert (False, False) == w.words
    assert 1 == sum(isinstance(event, HostUnejected) for event in w.mesh.events)
    assert Counter(w.call() for _ in range(90))["h:1"] > 15
    assert 0 == w.cluster.outlier.ejections_active  # type: ignore[union-attr]


def test_a_failure_takes_it_out_again_at_once_and_for_longer() -> None:
    w = World()
    w.end(w.until_tried(), BAD)
    assert (True, False) == w.words
    (again,) = [event for event in w.mesh.events if isinstance(event, HostEjected)]
    assert ("probation", 20.0) == (again.reason, again.ejection_time_s)
    w.pass_time(19.0)
    assert "h:1" not in Counter(w.call() for _ in range(60))
    w.pass_time(2.0)
    assert (True, True) == w.words


def test_explain_and_status_show_it() -> None:
    w = World()
    (endpoint, *_) = cluster_status("a", w.cluster).endpoints
    assert (True, True) == (endpoint.is_ejected, endpoint.is_on_probation)
    lines = "\n".join(cluster_lines(explain_cluster("a", 1.0, w.mesh.view, now=w.clock())))
    assert "h:1: on probation" in lines
    assert "then on probation: back after 2 successes, 1 at a time and one in 0.1 s" in lines


def test_no_more_are_under_way_than_the_rules_allow() -> None:
    w = World(max_requests=2, interval_s=0.001)
    held = []
    for _ in range(60):
        call, address = w.start()
        if address == "h:1":
            held.append(call)
        else:
            w.end(call, GOOD)
        w.clock.advance(0.01)
    assert 2 == len(held)
    w.end(held.pop(), GOOD)
    assert w.until_tried()


def test_a_failure_to_connect_counts_too() -> None:
    w = World()
    w.end(w.until_tried(), Failure(FailureKind.CONNECT, request_sent=False))
    assert (True, False) == w.words


def test_without_probation_it_comes_back_with_its_whole_share() -> None:
    w = World()
    config = w.cluster.config.cluster.outlier_detection
    assert config is not None
    plain = Cluster("", EdsDiscovery(""), outlier_detection=OutlierDetection(consecutive_5xx=1, interval_s=1.0))
    w.mesh.publish(service("a", *HOSTS, template=plain))
    w.pass_time(60.0)
    assert (False, False) == w.words
    assert w.cluster.trials is None
    assert 10 == Counter(w.call() for _ in range(30))["h:1"]


def test_an_endpoint_that_leaves_on_probation_takes_it_along() -> None:
    w = World()
    w.mesh.publish(service("a", "h:2", "h:3", template=w.cluster.config.cluster))
    assert w.cluster.trials is None
    assert "h:1" not in Counter(w.call() for _ in range(20))


def decoded(probation: Any, **fields: Any) -> Any:
    cluster = {
        "name": "c",
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"ads": {}}},
        "outlier_detection": {},
        "metadata": {"filter_metadata": {"meshlib": {"probation": probation, "source": "a.yaml:1"}}},
        **fields,
    }
    made = from_dict("envoy.config.cluster.v3.Cluster", {k: v for k, v in cluster.items() if v is not None})
    return decode_resource(CDS, made.SerializeToString())


def test_rules_are_read_from_the_clusters_metadata() -> None:
    assert Probation(3, 1, 0.1) == decoded({}).value.outlier_detection.probation
    given = {"successes": 5, "max_requests": 2, "interval": "0.5s"}
    assert Probation(5, 2, 0.5) == decoded(given).value.outlier_detection.probation


@pytest.mark.parametrize(
    ("given", "fields", "problem"),
    [
        ({"successes": 0}, {}, "probation.successes: must be a whole number from 1 on"),
        ({"max_requests": 1.5}, {}, "probation.max_requests: must be a whole number"),
        ({"interval": "0s"}, {}, "probation.interval: must be a duration of more than 0"),
        ({"share": 5}, {}, "probation.share: is not supported"),
        ("yes", {}, "probation: must be an object"),
        ({}, {"outlier_detection": None}, "probation: needs outlier_detection"),
    ],
)
def test_rules_that_cannot_be_honoured_are_refused(given: Any, fields: dict[str, Any], problem: str) -> None:
    (error,) = decoded(given, **fields).errors
    assert problem in error
