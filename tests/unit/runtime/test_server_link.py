"""One server's stream on a clock moved by hand: when it is opened again, what is believed meanwhile."""

from collections.abc import Callable

import pytest

from meshlib.events import ControlPlaneConnected, ControlPlaneLost, Event
from meshlib.model.endpoint import ClusterLoadAssignment
from meshlib.protos import message_class
from meshlib.runtime.ads import AdsEvents
from meshlib.runtime.scheduler import Scheduler
from meshlib.runtime.server_link import ConnectionStatus, ServerLink
from meshlib.testing import FakeClock, FixedRng
from meshlib.xds.bootstrap import InsecureCreds, NodeConfig, ServerConfig
from meshlib.xds.cache import ResourceCache, ResourceState
from meshlib.xds.decode import Decoded
from meshlib.xds.delta import DeltaMachine
from meshlib.xds.resources import CDS
from meshlib.xds.sotw import SotwMachine

RESPONSE = message_class("envoy.service.discovery.v3.DiscoveryResponse")
REQUEST = message_class("envoy.service.discovery.v3.DiscoveryRequest")
DELTA_RESPONSE = message_class("envoy.service.discovery.v3.DeltaDiscoveryResponse")
DELTA_REQUEST = message_class("envoy.service.discovery.v3.DeltaDiscoveryRequest")
WRAPPER = message_class("envoy.service.discovery.v3.Resource")
EMPTY = RESPONSE(type_url=CDS, version_info="1", nonce="n1").SerializeToString()


class FakeStream:
    def __init__(self, events: AdsEvents) -> None:
        self.events = events
        self.sent: list[bytes] = []
        self.is_closed = False
        self.is_delta = False

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def close(self) -> None:
        self.is_closed = True


class World:
    """A link that wants the cluster `a`, with what it did."""

    def __init__(self, *, delta: bool = False, features: tuple[str, ...] = ()) -> None:
        self.clock = FakeClock()
        self.scheduler = Scheduler(self.clock)
        self.cache = ResourceCache()
        self.streams: list[FakeStream] = []
        self.events: list[Event] = []
        self.changes: list[Callable[[], None] | None] = []
        self.link = ServerLink(
            ServerConfig("server:1", InsecureCreds(), features=frozenset(("meshlib.delta",) if delta else ())),
            NodeConfig("n"),
            (DeltaMachine if delta else SotwMachine)(
                self.cache,
                features=frozenset(features),
                decode=lambda _, body: Decoded("a", ClusterLoadAssignment(body.decode())),
            ),
            scheduler=self.scheduler,
            clock=self.clock,
            rng=FixedRng(0.5),
            emit=self.events.append,
            changed=self.changes.append,
            open_stream=self.open,
        )
        self.link.want({CDS: frozenset("a")})

    def open(self, server: ServerConfig, events: AdsEvents) -> FakeStream:
        self.streams.append(FakeStream(events))
        self.streams[-1].is_delta = server.is_delta
        return self.streams[-1]

    def pass_time(self, seconds: float) -> None:
        """Let time pass in small steps, so that each timer runs at its time."""
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)
            self.scheduler.run(block=False)

    def run(self) -> None:
        self.scheduler.run(block=False)

    def end(self, reason: str = "refused") -> None:
        self.streams[-1].events.ended(reason)
        self.run()


def test_a_server_that_refuses_is_tried_again_later_and_later() -> None:
    world = World()
    world.link.connect()
    opened = []
    for _ in range(4):
        world.end()
        start, count = world.clock(), len(world.streams)
        while len(world.streams) == count:
            world.pass_time(0.1)
        opened.append(round(world.clock() - start, 1))
    assert opened == [1.0, 1.6, 2.6, 4.1]
    assert [event for event in world.events if isinstance(event, ControlPlaneLost)] == [
        ControlPlaneLost("server:1", "refused")
    ]
    assert world.link.status.failures == 4


def test_an_answer_starts_the_waits_over_and_is_told() -> None:
    world = World()
    world.link.connect()
    world.end()
    world.pass_time(1.1)
    world.streams[-1].events.received(EMPTY, lambda: None)
    world.run()
    assert world.events[-1] == ControlPlaneConnected("server:1")
    assert world.link.status.state == "connected"
    world.pass_time(5.0)
    world.end("server went away")
    assert world.link.status.failures == 0
    world.pass_time(0.1)
    assert len(world.streams) == 3


def test_a_server_that_answers_and_hangs_up_waits_out_its_second() -> None:
    world = World()
    world.link.connect()
    world.streams[-1].events.received(EMPTY, lambda: None)
    world.end()
    world.pass_time(0.9)
    assert len(world.streams) == 1
    world.pass_time(0.2)
    assert len(world.streams) == 2


def test_the_next_response_waits_until_this_one_was_dealt_with() -> None:
    world = World()
    world.link.connect()
    done: list[int] = []
    world.streams[0].events.received(EMPTY, lambda: done.append(1))
    world.run()
    assert done == []
    release = world.changes[-1]
    assert release is not None
    release()
    assert done == [1]


def test_a_response_that_cannot_be_read_holds_nothing_up() -> None:
    world = World()
    world.link.connect()
    done: list[int] = []
    world.streams[0].events.received(b"\xff", lambda: done.append(1))
    world.run()
    assert done == [1]


def test_what_a_given_up_stream_says_is_dropped() -> None:
    world = World()
    world.link.connect()
    old = world.streams[0]
    world.link.disconnect()
    old.events.received(EMPTY, lambda: None)
    old.events.sent()
    old.events.ended("late")
    world.run()
    assert (world.link.status.state, world.events, old.is_closed) == ("idle", [], True)


def test_time_to_exist_runs_from_when_the_transport_took_the_request() -> None:
    world = World()
    world.link.connect()
    world.pass_time(20.0)
    entry = world.cache.get(CDS, "a")
    assert entry is not None
    assert entry.state is ResourceState.REQUESTED
    world.streams[0].events.sent()
    world.pass_time(14.8)
    assert entry.state is ResourceState.REQUESTED
    world.pass_time(0.4)
    assert entry.state is ResourceState.DOES_NOT_EXIST


def test_the_copy_on_disk_serves_when_the_server_refuses_or_is_silent_for_two_seconds() -> None:
    world = World()
    world.link.connect()
    world.pass_time(1.8)
    assert not world.link.may_use_spares
    world.pass_time(0.4)
    assert world.link.may_use_spares
    world.streams[0].events.received(EMPTY, lambda: None)
    world.run()
    assert not world.link.may_use_spares
    refused = World()
    refused.link.connect()
    refused.end()
    assert refused.link.may_use_spares


def test_requests_go_out_one_at_a_time() -> None:
    world = World()
    world.link.connect()
    world.link.want({CDS: frozenset("ab")})
    assert len(world.streams[0].sent) == 1
    world.streams[0].events.sent()
    world.run()
    assert [list(REQUEST.FromString(data).resource_names) for data in world.streams[0].sent] == [["a"], ["a", "b"]]


def test_the_connection_in_words() -> None:
    uri = "server:1"
    words = [
        ConnectionStatus(uri).describe(5.0),
        ConnectionStatus(uri, "connecting", since=3.0).describe(5.0),
        ConnectionStatus(uri, "connected", since=3.0).describe(5.0),
        ConnectionStatus(uri, "lost", "UNAVAILABLE: refused", 3.0, 2).describe(5.0),
        ConnectionStatus(uri, "lost", "the server ended the stream", 3.0).describe(5.0),
    ]
    assert words == [
        "not connected to management server server:1",
        "connecting to management server server:1 for 2.0 s, no answer yet",
        "connected to management server server:1 for 2.0 s",
        "management server server:1 does not answer (2 attempts failed, the last one: UNAVAILABLE: refused)",
        "the stream to management server server:1 ended (the server ended the stream), connecting again",
    ]


def delta(nonce: str, *, ttl_s: int | None = None) -> bytes:
    """A response that holds the cluster `a`."""
    wrapper = WRAPPER(name="a", version="v1")
    wrapper.resource.type_url, wrapper.resource.value = CDS, b"first"
    if ttl_s is not None:
        wrapper.ttl.seconds = ttl_s
    return bytes(DELTA_RESPONSE(type_url=CDS, nonce=nonce, resources=[wrapper]).SerializeToString())


def deltas(stream: FakeStream) -> list[object]:
    messages = [DELTA_REQUEST.FromString(data) for data in stream.sent]
    return [(list(m.resource_names_subscribe), dict(m.initial_resource_versions), m.response_nonce) for m in messages]


def test_an_incremental_stream_goes_on_where_the_one_before_ended() -> None:
    world = World(delta=True)
    world.link.connect()
    world.streams[0].events.sent()
    world.streams[0].events.received(delta("n1"), lambda: None)
    world.run()
    world.end("server went away")
    world.pass_time(1.1)
    assert world.streams[0].is_delta
    assert deltas(world.streams[0]) == [(["a"], {}, ""), ([], {}, "n1")]
    assert deltas(world.streams[1]) == [(["a"], {"a": "v1"}, "")]


def test_a_server_that_does_not_know_the_incremental_variant_is_spoken_to_in_the_other_at_once_and_for_good() -> None:
    world = World(delta=True)
    world.link.connect()
    world.streams[0].events.ended("UNIMPLEMENTED: no such method", is_unimplemented=True)
    world.run()
    assert [stream.is_delta for stream in world.streams] == [True, False]
    assert REQUEST.FromString(world.streams[1].sent[0]).resource_names == ["a"]
    world.end()
    world.pass_time(1.1)
    assert [stream.is_delta for stream in world.streams] == [True, False, False]
    assert world.link.status.failures == 1


def test_a_stream_of_the_world_that_is_unimplemented_is_a_failure_like_others() -> None:
    world = World()
    world.link.connect()
    world.streams[0].events.ended("UNIMPLEMENTED: no such method", is_unimplemented=True)
    world.run()
    assert (len(world.streams), world.link.status.failures) == (1, 1)


def test_a_server_that_has_nothing_to_add_after_a_reconnect_is_connected() -> None:
    world = World(delta=True)
    world.link.connect()
    world.streams[0].events.sent()
    world.streams[0].events.received(delta("n1"), lambda: None)
    world.run()
    world.end("server went away")
    world.pass_time(1.1)
    world.pass_time(3.0)
    assert world.link.status.state == "connecting"
    world.streams[1].events.sent()
    world.run()
    assert world.link.status.state == "connected"
    world.end("server went away again")
    world.pass_time(0.1)
    assert (len(world.streams), world.link.status.failures) == (3, 0)


def test_a_time_to_live_passes_whether_the_stream_is_up_or_not() -> None:
    world = World(delta=True)
    world.link.connect()
    world.streams[0].events.sent()
    world.streams[0].events.received(delta("n1", ttl_s=10), lambda: None)
    world.run()
    world.pass_time(5.0)
    world.end()
    world.pass_time(4.9)
    entry = world.cache.get(CDS, "a")
    assert entry is not None
    assert entry.value is not None
    world.pass_time(0.2)
    assert (entry.value, entry.state) == (None, ResourceState.DOES_NOT_EXIST)


@pytest.mark.parametrize("delta", [False, True])
def test_a_server_that_answers_refusals_with_the_same_again_is_not_raced_with(delta: bool) -> None:
    """As go-control-plane's cache does. The first few are read at once, then they are waited for; a good one ends that."""
    world = World(delta=delta)
    world.link.connect()
    stream = world.streams[0]
    reads: list[float] = []
    is_bad = True

    def answer() -> None:
        nonlocal count
        count += 1
        body = b"\xff" if is_bad else b"good"
        if delta:
            response = DELTA_RESPONSE(type_url=CDS, nonce=f"n{count}")
            found = WRAPPER(name="a", version=str(count))
            found.resource.type_url, found.resource.value = CDS, body
            response.resources.append(found)
        else:
            response = RESPONSE(type_url=CDS, version_info=str(count), nonce=f"n{count}")
            response.resources.add(type_url=CDS, value=body)
        stream.events.sent()
        stream.events.received(response.SerializeToString(), lambda: reads.append(world.clock()))
        world.run()
        release = world.changes[-1]
        assert release is not None
        release()

    def waits(number: int) -> list[float]:
        """Read so many responses; the waits before each next one."""
        found = []
        for _ in range(number):
            start, before = world.clock(), len(reads)
            answer()
            while len(reads) == before:
                world.pass_time(0.1)
            found.append(round(reads[-1] - start, 1))
        return found

    count = 0
    assert waits(10) == [0.0, 0.0, 0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    assert len(
        [data for data in stream.sent if (DELTA_REQUEST if delta else REQUEST).FromString(data).error_detail.code]
    )
    is_bad = False
    assert waits(2) == [0.0, 0.0]
    is_bad = True
    assert waits(4) == [0.0, 0.0, 0.0, 0.1]


def clusters(*names: str) -> bytes:
    response = RESPONSE(type_url=CDS, version_info="1", nonce="n1")
    for name in names:
        response.resources.add(type_url=CDS, value=name.encode())
    return response.SerializeToString()


def test_a_deletion_that_is_ignored_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """A53: at ERROR when it is first ignored, at INFO when the resource is back or nobody wants it."""
    world = World(features=("ignore_resource_deletion",))
    world.link.connect()
    caplog.set_level("INFO", "meshlib.runtime.server_link")
    for response in (clusters("a"), clusters(), clusters(), clusters("a"), clusters()):
        world.streams[-1].events.sent()
        world.streams[-1].events.received(response, lambda: None)
        world.run()
    world.link.want({})
    for _ in range(2):  # the answer, and the request without the name
        world.streams[-1].events.sent()
        world.run()
    assert ["ERROR", "INFO", "ERROR", "INFO"] == [record.levelname for record in caplog.records]
    assert "CDS 'a' was deleted by server:1, which is ignored" in caplog.messages[0]


def test_a_resource_that_does_not_come_in_time_names_the_server() -> None:
    world = World(features=("resource_timer_is_transient_error",))
    world.link.connect()
    world.streams[-1].events.sent()
    world.pass_time(31.0)
    entry = world.cache.get(CDS, "a")
    assert entry is not None
    assert "timeout obtaining resource from xDS server server:1" == entry.error


def test_the_stream_of_one_type_is_begun_anew_by_itself_later_and_later() -> None:
    """Where each type has one of its own: as with whole streams, at once after one that has delivered something."""
    world = World(features=("meshlib.separate_streams",))
    world.link.connect()
    (stream,) = world.streams
    stream.events.sent()
    stream.events.received(clusters("a"), lambda: None)
    stream.events.sent()
    world.run()
    waits = []
    for had_response in (False, False, True, False):
        count = len(stream.sent)
        stream.events.part_ended(CDS, "cut", had_response=had_response)
        start = world.clock()
        world.run()
        while len(stream.sent) == count:
            world.pass_time(0.1)
        waits.append(round(world.clock() - start, 1))
        request = REQUEST.FromString(stream.sent[-1])
        assert ("1", "", True) == (request.version_info, request.response_nonce, request.HasField("node"))
        stream.events.sent()
        world.pass_time(0.5)
    assert [1.0, 1.6, 0.5, 1.0] == waits
    assert [stream] == world.streams
    assert "connected" == world.link.status.state


def test_the_stream_of_one_type_is_not_begun_anew_when_all_have_ended_since() -> None:
    world = World(features=("meshlib.separate_streams",))
    world.link.connect()
    world.streams[0].events.received(EMPTY, lambda: None)
    world.streams[0].events.part_ended(CDS, "cut", had_response=True)
    world.link.disconnect()
    count = len(world.streams[0].sent)
    world.pass_time(10.0)
    assert (count, 1) == (len(world.streams[0].sent), len(world.streams))
