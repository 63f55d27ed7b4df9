"""Several management servers on a clock moved by hand: who is asked for what, and who is given up."""

from collections.abc import Callable
from typing import Any

import pytest

from meshlib.events import Event
from meshlib.model.endpoint import ClusterLoadAssignment
from meshlib.protos import message_class
from meshlib.runtime.ads import StreamEvents
from meshlib.runtime.scheduler import Scheduler
from meshlib.runtime.server_link import ServerLink
from meshlib.runtime.server_links import ServerLinks
from meshlib.testing import FakeClock, FixedRng
from meshlib.xds.bootstrap import ServerConfig
from meshlib.xds.cache import CacheShare, ResourceCache, ResourceState
from meshlib.xds.decode import Decoded
from meshlib.xds.decode_bootstrap import parse_bootstrap
from meshlib.xds.resources import CDS, EDS
from meshlib.xds.sotw import SotwMachine

RESPONSE = message_class("envoy.service.discovery.v3.DiscoveryResponse")
REQUEST = message_class("envoy.service.discovery.v3.DiscoveryRequest")
OTHER = "xdstp://other/envoy.config.cluster.v3.Cluster/a"


class FakeStream:
    def __init__(self, events: StreamEvents) -> None:
        self.events = events
        self.requests: list[Any] = []
        self.is_open = True

    def send(self, data: bytes) -> None:
        self.requests.append(REQUEST.FromString(data))

    def close(self) -> None:
        self.is_open = False

    def names(self) -> list[str]:
        return list(self.requests[-1].resource_names)


def decode(type_url: str, body: bytes) -> Decoded:
    name, _, value = body.decode().partition("=")
    return Decoded(name, ClusterLoadAssignment(value))


class World:
    def __init__(self, authorities: dict[str, Any] | None = None, servers: str = "ab") -> None:
        self.clock = FakeClock()
        self.scheduler = Scheduler(self.clock)
        self.cache = ResourceCache()
        self.streams: dict[str, list[FakeStream]] = {}
        self.events: list[Event] = []
        document = {"xds_servers": [server(name) for name in servers], "authorities": authorities or {}}
        self.links = ServerLinks(parse_bootstrap(document, origin="test"), self.cache, self.make)
        self.links.connect()

    def make(self, server: ServerConfig, share: CacheShare, before: ServerLink | None) -> ServerLink:
        return ServerLink(
            server,
            parse_bootstrap(
                {"xds_servers": [{"server_uri": "x", "channel_creds": [{"type": "insecure"}]}]}, origin=""
            ).node,
            SotwMachine(share, decode=decode) if before is None else before.machine,
            scheduler=self.scheduler,
            clock=self.clock,
            rng=FixedRng(0.5),
            emit=self.events.append,
            changed=lambda done: self.links.step() and None,
            open_stream=self.open,
        )

    def open(self, server: ServerConfig, events: StreamEvents) -> FakeStream:
        stream = FakeStream(events)
        self.streams.setdefault(server.uri, []).append(stream)
        return stream

    def fail(self, name: str) -> None:
        self.streams[name][-1].events.ended("refused")
        self.scheduler.run(block=False)

    def answer(self, name: str, *bodies: str, type_url: str = CDS) -> None:
        stream = self.streams[name][-1]
        for _ in range(3):
            stream.events.sent()
            self.scheduler.run(block=False)
        response = RESPONSE(type_url=type_url, version_info=f"{name}1", nonce="n")
        for body in bodies:
            response.resources.add(type_url=type_url, value=body.encode())
        stream.events.received(response.SerializeToString(), lambda: None)
        self.scheduler.run(block=False)

    def wait(self, look: Callable[[], bool]) -> None:
        for _ in range(1000):
            if look():
                return
            self.clock.advance(0.1)
            self.scheduler.run(block=False)
        raise AssertionError("did not happen")

    def value(self, name: str, type_url: str = CDS) -> str | None:
        found = self.cache.value(type_url, name)
        return None if found is None else found.name


def server(name: str) -> dict[str, Any]:
    return {"server_uri": name, "channel_creds": [{"type": "insecure"}]}


def wanted(*names: str) -> dict[str, frozenset[str]]:
    return {CDS: frozenset(names)}


def test_only_the_first_server_is_connected_to() -> None:
    world = World()
    world.links.want(wanted("x"))
    assert ["a"] == list(world.streams)
    assert "a" == world.links.status.server_uri


def test_the_second_server_is_asked_for_everything_when_the_first_cannot_be_reached() -> None:
    world = World()
    world.links.want(wanted("x", "y"))
    world.fail("a")
    assert ["x", "y"] == world.streams["b"][-1].names()
    world.answer("b", "x=1", "y=1")
    assert "b" == world.links.status.server_uri
    assert ("1", "1") == (world.value("x"), world.value("y"))


def test_the_first_server_is_tried_again_meanwhile_with_one_stream_at_a_time() -> None:
    world = World()
    world.links.want(wanted("x"))
    for count in range(2, 5):
        world.fail("a")
        world.wait(lambda count=count: len(world.streams["a"]) == count)  # type: ignore[misc]
    assert 1 == sum(stream.is_open for stream in world.streams["a"])
    assert 1 == len(world.streams["b"])


def test_the_first_server_takes_over_when_it_answers_and_the_second_is_given_up() -> None:
    world = World()
    world.links.want(wanted("x"))
    world.fail("a")
    world.answer("b", "x=old")
    world.wait(lambda: len(world.streams["a"]) == 2)
    assert "old" == world.value("x")
    world.answer("a", "x=new")
    assert "new" == world.value("x")
    assert not world.streams["b"][-1].is_open
    assert ["a"] == [status.server_uri for status in world.links.statuses]


def test_answers_of_a_server_that_was_given_up_count_no_more() -> None:
    world = World()
    world.links.want(wanted("x"))
    world.fail("a")
    world.answer("b", "x=old")
    late = world.streams["b"][-1]
    world.wait(lambda: len(world.streams["a"]) == 2)
    for _ in range(3):
        world.streams["a"][-1].events.sent()
    response = RESPONSE(type_url=CDS, version_info="2", nonce="n2")
    first = RESPONSE(type_url=CDS, version_info="1", nonce="n1")
    response.resources.add(type_url=CDS, value=b"x=late")
    first.resources.add(type_url=CDS, value=b"x=new")
    world.streams["a"][-1].events.received(first.SerializeToString(), lambda: None)
    late.events.received(response.SerializeToString(), lambda: None)
    world.scheduler.run(block=False)
    assert "new" == world.value("x")


def test_everything_known_is_no_reason_to_change_but_a_new_name_is() -> None:
    world = World()
    world.links.want(wanted("x"))
    world.answer("a", "x=1")
    world.fail("a")
    world.wait(lambda: len(world.streams["a"]) == 2)
    world.fail("a")
    assert "b" not in world.streams
    world.links.want(wanted("x", "y"))
    assert ["x", "y"] == world.streams["b"][-1].names()
    assert "1" == world.value("x")


def test_what_is_not_wanted_any_more_is_forgotten_though_two_servers_were_asked() -> None:
    world = World()
    world.links.want(wanted("x", "y"))
    world.fail("a")
    world.answer("b", "x=1", "y=1")
    world.wait(lambda: len(world.streams["a"]) == 2)
    world.answer("a", "x=2", "y=2")
    world.links.want(wanted("x"))
    world.answer("a", "x=2")
    assert world.cache.get(CDS, "y") is None
    assert "2" == world.value("x")


def test_names_go_to_the_servers_of_their_authority() -> None:
    world = World({"other": {"xds_servers": [server("c")]}})
    assert ["a"] == list(world.streams)
    world.links.want(wanted("x", OTHER))
    assert ["x"] == world.streams["a"][-1].names()
    assert [OTHER] == world.streams["c"][-1].names()
    world.answer("c", f"{OTHER}=1")
    assert "1" == world.value(OTHER)
    world.links.want(wanted("x"))
    assert not world.streams["c"][-1].is_open
    assert world.cache.get(CDS, OTHER) is None


def test_one_authority_falls_back_without_the_other() -> None:
    world = World({"other": {"xds_servers": [server("c"), server("b")]}})
    world.links.want(wanted("x", OTHER))
    world.fail("c")
    assert [OTHER] == world.streams["b"][-1].names()
    world.streams["b"][-1].events.sent()
    world.fail("a")
    assert sorted((OTHER, "x")) == world.streams["b"][-1].names()
    assert 1 == len(world.streams["b"])


def test_authorities_with_the_same_server_share_its_stream() -> None:
    world = World({"other": {}})
    world.links.want(wanted("x", OTHER))
    assert sorted((OTHER, "x")) == world.streams["a"][-1].names()
    assert 1 == len(world.streams["a"])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("xdstp://unknown/envoy.config.cluster.v3.Cluster/a", 'authority "unknown" not present in bootstrap config'),
        ("xdstp://other/envoy.config.listener.v3.Listener/a", "the name is of type envoy.config.listener.v3.Listener"),
        ("xdstp:other", "not an xdstp:// name"),
    ],
)
def test_a_name_without_a_home_fails_with_the_reason(name: str, reason: str) -> None:
    world = World({"other": {}})
    world.links.want(wanted("x", name))
    entry = world.cache.get(CDS, name)
    assert entry is not None
    assert ResourceState.RECEIVED_ERROR is entry.state
    assert entry.error.startswith(reason)
    assert ["x"] == world.streams["a"][-1].names()
    world.links.want(wanted("x"))
    assert world.cache.get(CDS, name) is None


def test_links_made_anew_keep_versions() -> None:
    world = World()
    world.links.want({CDS: frozenset("x"), EDS: frozenset()})
    world.answer("a", "x=1")
    world.links.disconnect()
    world.links.renew()
    world.links.connect()
    assert "a1" == world.streams["a"][-1].requests[0].version_info
    assert "" == world.streams["a"][-1].requests[0].response_nonce


def test_who_waits_has_no_hope_when_all_servers_of_what_is_missing_have_failed() -> None:
    world = World({"other": {"xds_servers": [server("c")]}})
    world.links.want(wanted("x", OTHER))
    waiting = {
        "first": ("CDS resource x", "EDS resource y"),
        "second": (f"CDS resource {OTHER}",),
        "third": ("DNS: z",),
    }
    world.fail("a")
    assert {} == world.links.unreachable(waiting)
    world.fail("b")
    assert {"first": "CDS resource x: xDS channel for server b: refused"} == world.links.unreachable(waiting)
    world.fail("c")
    assert ["first", "second"] == list(world.links.unreachable(waiting))
    # Until one has answered, as connecting is not yet knowing better.
    world.wait(lambda: len(world.streams["b"]) == 2)
    assert ["first", "second"] == list(world.links.unreachable(waiting))
    world.answer("b")
    assert ["second"] == list(world.links.unreachable(waiting))
