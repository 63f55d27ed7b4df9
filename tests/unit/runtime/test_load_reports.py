"""The reporter of loads on a clock moved by hand: when streams are opened, what they carry, what outlives them."""

import threading
from typing import Any

from meshlib.model.endpoint import Locality
from meshlib.protos import message_class
from meshlib.runtime.ads import Stream, StreamEvents
from meshlib.runtime.load_reports import LoadReporter
from meshlib.runtime.scheduler import Scheduler
from meshlib.runtime.server_link import ConnectionStatus
from meshlib.testing import FakeClock, FixedRng
from meshlib.xds.bootstrap import InsecureCreds, NodeConfig, ServerConfig
from meshlib.xds.load_report import ClusterLoad

REQUEST = message_class("envoy.service.load_stats.v3.LoadStatsRequest")
RESPONSE = message_class("envoy.service.load_stats.v3.LoadStatsResponse")
A, B = (ServerConfig(name, InsecureCreds()) for name in "ab")
HERE = Locality("here")


class FakeStream:
    def __init__(self, events: StreamEvents | None = None) -> None:
        self.events = events
        self.sent: list[Any] = []
        self.is_open = True

    def send(self, data: bytes) -> None:
        self.sent.append(REQUEST.FromString(data))

    def close(self) -> None:
        self.is_open = False


class FakeLink:
    def __init__(self) -> None:
        self.stream = FakeStream()
        self.status = ConnectionStatus("x", "connected")


class FakeLinks:
    """Attributes:
    home: Where every cluster comes from.
    """

    def __init__(self) -> None:
        self.home = A
        self.links = {A: FakeLink(), B: FakeLink()}

    def server_of(self, name: str) -> ServerConfig:
        return self.home


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.scheduler = Scheduler(self.clock)
        self.links = FakeLinks()
        self.loads: list[ClusterLoad] = []
        self.streams: list[tuple[str, FakeStream]] = []
        self.reporter = LoadReporter(
            NodeConfig("n"),
            self.links,  # type: ignore[arg-type]
            scheduler=self.scheduler,
            clock=self.clock,
            rng=FixedRng(0.5),
            loads=lambda: self.loads,
            open_stream=self.open,
        )

    def open(self, server: ServerConfig, beside: Stream, events: StreamEvents) -> FakeStream:
        self.streams.append((server.uri, FakeStream(events)))
        return self.streams[-1][1]

    def add(self, cluster: str = "c") -> Any:
        load = ClusterLoad(cluster, "", self.clock(), lock=threading.Lock())
        self.loads.append(load)
        self.reporter.step()
        return load.use((HERE,))[HERE]

    @property
    def stream(self) -> FakeStream:
        return self.streams[-1][1]

    def answer(self, interval_s: float = 2.0, *clusters: str) -> None:
        response = RESPONSE(send_all_clusters=not clusters, clusters=clusters)
        response.load_reporting_interval.FromNanoseconds(round(interval_s * 1e9))
        assert self.stream.events is not None
        self.stream.events.received(response.SerializeToString(), lambda: None)
        self.run()

    def taken(self) -> None:
        assert self.stream.events is not None
        self.stream.events.sent()
        self.run()

    def end(self) -> None:
        assert self.stream.events is not None
        self.stream.events.ended("gone")
        self.run()

    def run(self) -> None:
        self.scheduler.run(block=False)

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            self.run()

    def issued(self) -> list[int]:
        """Of each report on the newest stream."""
        return [
            sum(row.total_issued_requests for stats in message.cluster_stats for row in stats.upstream_locality_stats)
            for message in self.stream.sent[1:]
        ]


def test_nothing_to_report_needs_no_stream() -> None:
    world = World()
    world.reporter.step()
    assert not world.streams


def test_a_stream_waits_for_that_of_discovery() -> None:
    world = World()
    link = world.links.links[A]
    link.status = ConnectionStatus("x", "connecting")
    world.add()
    assert not world.streams
    link.status = ConnectionStatus("x", "connected")
    world.reporter.step()
    assert "a" == world.streams[0][0]


def test_the_next_report_waits_until_the_one_before_was_taken() -> None:
    world = World()
    count = world.add()
    world.answer(2.0)
    count.begin()
    world.pass_time(2.1)
    assert [1] == world.issued()
    count.begin()
    world.pass_time(10.0)
    assert [1] == world.issued()
    world.taken()
    world.pass_time(1.8)
    assert [1] == world.issued()
    world.pass_time(0.3)
    assert [1, 1] == world.issued()


def test_what_nobody_asked_for_does_not_pile_up() -> None:
    world = World()
    told, other = world.add("told"), world.add("other")
    world.answer(2.0, "told")
    for _ in range(3):
        told.begin()
        other.begin()
        world.pass_time(2.1)
        world.taken()
    assert [1, 1, 1] == world.issued()
    assert {"told"} == {stats.cluster_name for message in world.stream.sent for stats in message.cluster_stats}
    assert 0 == world.loads[1].take(0.0).localities[0].issued


def test_a_stream_that_fails_is_opened_again_later_and_later_and_nothing_is_lost() -> None:
    world = World()
    count = world.add()
    waits = []
    for _ in range(3):
        before, opened = world.clock(), len(world.streams)
        world.end()
        while len(world.streams) == opened:
            world.pass_time(0.1)
        waits.append(round(world.clock() - before, 1))
        count.begin()
    assert [1.0, 1.6, 2.6] == waits
    world.answer(2.0)
    world.pass_time(2.1)
    assert [3] == world.issued()


def test_a_cluster_that_left_is_told_of_until_it_is_idle() -> None:
    world = World()
    count = world.add()
    world.answer(2.0)
    count.begin()
    world.loads.clear()
    world.reporter.step()
    world.pass_time(2.1)
    world.taken()
    assert [1] == world.issued()
    assert world.stream.is_open
    count.end(is_success=True)
    world.pass_time(2.1)
    assert not world.stream.is_open


def test_reports_follow_the_cluster_to_another_server() -> None:
    world = World()
    world.add()
    world.links.home = B
    world.reporter.step()
    assert ["a", "b"] == [server for server, _ in world.streams]
    assert [False, True] == [stream.is_open for _, stream in world.streams]


def test_closing_ends_the_streams_and_keeps_the_counts() -> None:
    world = World()
    count = world.add()
    count.begin()
    world.reporter.close()
    assert not world.stream.is_open
    assert 1 == world.loads[0].take(0.0).localities[0].issued
