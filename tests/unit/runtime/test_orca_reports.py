"""Whom the mesh listens to for load reports out of band, on a clock moved by hand and with streams that are none."""

from collections.abc import Callable
from typing import Any

import pytest

from meshlib.errors import IdentityError
from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.lb_policy import ClientSideWeightedRoundRobin, RoundRobin
from meshlib.model.secret import ClientTls
from meshlib.protos import from_dict, message_class
from meshlib.runtime import orca_reports
from meshlib.runtime.orca_reports import OrcaListener
from meshlib.runtime.relay import TlsRelay
from meshlib.runtime.scheduler import Scheduler
from meshlib.testing import FakeClock, FixedRng, merge, service
from meshlib.view import ClusterState, View, build_view

OUT_OF_BAND = ClientSideWeightedRoundRobin(out_of_band=True, reporting_period_s=2.5, blackout_s=0.0)
REPORT = from_dict("xds.data.orca.v3.OrcaLoadReport", {"cpu_utilization": 0.5, "rps_fractional": 10})
REQUEST = message_class("xds.service.orca.v3.OrcaLoadReportRequest")


class FakeStream:
    def __init__(self, address: str, request: bytes, received: Callable[[bytes], None], ended: Callable[[bool], None]):
        self.address = address
        self.request = REQUEST.FromString(request)
        self.received = received
        self.ended = ended
        self.is_open = True
        self.has_old_certificate = False

    def is_outdated(self, view: View) -> bool:
        return self.has_old_certificate

    def close(self) -> None:
        self.is_open = False

    def join(self) -> None:
        assert not self.is_open


class World:
    """A listener, whose streams are in `streams`, in the order of their opening."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.scheduler = Scheduler(self.clock)
        self.streams: list[FakeStream] = []
        self.refuses = False
        self.view = build_view(merge(), None, now=self.clock())
        self.listener = OrcaListener(
            lambda: self.view,
            scheduler=self.scheduler,
            clock=self.clock,
            rng=FixedRng(0.5),
            open_stream=self._open,
        )

    def _open(
        self,
        view: View,
        cluster: ClusterState,
        address: str,
        tls: ClientTls | None,
        request: bytes,
        relay: TlsRelay,
        *,
        received: Callable[[bytes], None],
        ended: Callable[[bool], None],
    ) -> FakeStream:
        if self.refuses:
            raise IdentityError("no certificate yet")
        stream = FakeStream(address, request, received, ended)
        self.streams.append(stream)
        return stream

    def publish(self, *endpoints: str, policy: Any = OUT_OF_BAND) -> None:
        template = Cluster("", EdsDiscovery(""), policy)
        self.view = build_view(service("s", *endpoints, template=template), self.view, now=self.clock())
        self.listener.step()

    def run(self, seconds: float = 0.0) -> None:
        self.scheduler.run(block=False)
        if seconds:
            self.clock.advance(seconds)
            self.scheduler.run(block=False)

    @property
    def open(self) -> list[str]:
        return [stream.address for stream in self.streams if stream.is_open]


@pytest.fixture
def world() -> World:
    return World()


def test_each_endpoint_of_such_a_cluster_has_a_stream(world: World) -> None:
    world.publish("a:1", "b:1")
    world.listener.step()

    assert world.open == ["a:1", "b:1"]
    assert world.streams[0].request.report_interval.ToMilliseconds() == 2500


def test_other_clusters_have_none(world: World) -> None:
    world.publish("a:1", policy=RoundRobin())
    world.publish("a:1", policy=ClientSideWeightedRoundRobin())

    assert world.streams == []


def test_a_report_is_taken_to_its_endpoint(world: World) -> None:
    world.publish("a:1", "b:1")
    world.streams[1].received(REPORT.SerializeToString())
    world.streams[0].received(b"\xff")
    world.run()
    cluster = world.view.clusters["s"]
    assert isinstance(cluster, ClusterState)

    reported = {address: state.reported for address, state in cluster.states.items()}
    assert reported["a:1"] is None
    assert reported["b:1"] is not None
    assert reported["b:1"].weight == 20.0


def test_of_many_reports_at_once_the_last_counts_and_one_waits(world: World) -> None:
    world.publish("a:1")
    for used in (0.1, 0.2, 0.5):
        fields = {"cpu_utilization": used, "rps_fractional": 10}
        world.streams[0].received(from_dict("xds.data.orca.v3.OrcaLoadReport", fields).SerializeToString())
    assert world.scheduler.run(block=False) == 1
    cluster = world.view.clusters["s"]
    assert isinstance(cluster, ClusterState)

    reported = cluster.states["a:1"].reported
    assert reported is not None
    assert reported.weight == 20.0


def test_streams_follow_the_configuration(world: World) -> None:
    world.publish("a:1", "b:1")
    world.publish("b:1", "c:1")
    assert world.open == ["b:1", "c:1"]
    world.publish("b:1", policy=RoundRobin())

    assert world.open == []
    world.listener.step()
    assert len(world.streams) == 3


def test_a_stream_that_ends_is_opened_again_after_a_while(world: World) -> None:
    world.publish("a:1")
    for wait_s in (1.0, 1.6, 2.56):
        world.streams[-1].ended(False)
        before = len(world.streams)
        world.run()
        world.run(wait_s - 0.01)
        assert len(world.streams) == before
        world.run(0.02)
        assert len(world.streams) == before + 1

    world.streams[-1].received(REPORT.SerializeToString())
    world.run(5.0)
    world.streams[-1].ended(False)
    before = len(world.streams)
    world.run(0.01)
    assert len(world.streams) == before + 1, "a report resets the wait"


def test_an_endpoint_without_the_service_is_not_asked_again(world: World) -> None:
    world.publish("a:1")
    world.streams[0].ended(True)
    world.run(500.0)
    world.listener.step()
    assert len(world.streams) == 1

    world.publish("b:1")
    world.publish("a:1", "b:1")
    assert [stream.address for stream in world.streams] == ["a:1", "b:1", "a:1"]


def test_what_tls_needs_may_come_later(world: World) -> None:
    world.refuses = True
    world.publish("a:1")
    assert world.streams == []
    world.refuses = False
    world.run(1.1)

    assert world.open == ["a:1"]


def test_a_stream_with_an_old_certificate_is_opened_anew(world: World) -> None:
    world.publish("a:1", "b:1")
    world.streams[0].has_old_certificate = True
    world.listener.step()
    assert len(world.streams) == 2, "only a new configuration can bring a new certificate"
    world.publish("a:1", "b:1")

    assert world.open == ["b:1", "a:1"]


def test_after_close_nothing_is_open_and_late_reports_are_dropped(world: World) -> None:
    world.publish("a:1")
    (stream,) = world.streams
    world.listener.close()
    stream.received(REPORT.SerializeToString())
    stream.ended(False)
    world.run(500.0)
    assert (world.open, world.listener.streams) == ([], 0)

    world.listener.step()
    assert world.open == ["a:1"]


def test_streams_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orca_reports, "MAX_STREAMS", 3)
    world.publish(*[f"h{number}:1" for number in range(5)])

    assert world.open == ["h0:1", "h1:1", "h2:1"]
