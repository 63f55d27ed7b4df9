"""Publishing: all or nothing, equal content reaches nobody, new groups on demand."""

import logging
from types import SimpleNamespace

import pytest

from meshlib.protos import from_dict
from xds_server.groups import DEFAULT_GROUPS, Group
from xds_server.hub import Hub, LiveStream
from xds_server.model import Compiled, Document, Finding, Place, Position, Profile, Severity
from xds_server.ordering import CDS
from xds_server.publisher import MAX_GROUPS, Publisher
from xds_server.sotw import SotwStream
from xds_server.stream import StreamRefused
from xds_server.wire import Node, Request

BAD = Finding(Severity.ERROR, "MESH0001", "is wrong", Position("a.yaml", 3, 5))
ELSEWHERE = Group(Profile.ENVOY, "127.0.0.1:9")


@pytest.fixture
def world():
    """Documents name static clusters; the document `bad` is an error. Everything can be changed by a test."""
    state = SimpleNamespace(names=["a"], instances=(), compiled=[], depends_on_place=False)
    hub = Hub()

    def compile_group(documents, instances, group):
        state.compiled.append(group)
        names = [document.content["name"] for document in documents]
        clusters = {
            name: from_dict("envoy.config.cluster.v3.Cluster", {"name": name})
            for name in (*names, *(each.id for each in instances))
        }
        return Compiled({CDS: clusters}, (BAD,) if "bad" in names else (), state.depends_on_place)

    state.hub = hub
    state.publisher = Publisher(
        hub,
        load=lambda: ([Document({"name": name}, {}) for name in state.names], ()),
        compile_group=compile_group,
        instances=lambda: state.instances,
    )
    return state


def clusters(world, group=DEFAULT_GROUPS[0]):
    return list(world.hub.snapshot(group).state(CDS).resources)


def stream_of(world, group=DEFAULT_GROUPS[0]) -> LiveStream:
    stream = LiveStream(SotwStream(world.hub.snapshot(group)), group, "peer", 0.0)
    stream.machine.request(Request(CDS, node=Node("n")), 0.0)
    while (response := stream.machine.respond(0.0)) is not None:
        stream.machine.request(Request(CDS, nonce=response.nonce), 0.0)
    world.hub.add(stream)
    return stream


async def test_str_9_nothing_is_served_before_the_first_publish(world):
    assert await world.publisher.snapshot(DEFAULT_GROUPS[0]) is None
    assert not world.publisher.is_ready


async def test_every_profile_is_published(world):
    assert await world.publisher.publish("start", reload=True)
    assert [["a"]] * 3 == [clusters(world, group) for group in DEFAULT_GROUPS]


async def test_con_1_errors_keep_the_old_state_and_are_logged_with_their_place(world, caplog):
    await world.publisher.publish("start", reload=True)
    world.names = ["a", "bad"]
    with caplog.at_level(logging.ERROR):
        assert not await world.publisher.publish("edit", reload=True)
    assert ["a"] == clusters(world)
    assert world.publisher.is_behind
    assert (BAD,) == world.publisher.findings
    assert "a.yaml:3:5: error: is wrong [MESH0001]" in caplog.messages


async def test_registrations_are_compiled_with_the_last_good_documents(world):
    await world.publisher.publish("start", reload=True)
    world.names = ["bad"]
    await world.publisher.publish("edit", reload=True)
    world.instances = (SimpleNamespace(id="i"),)
    assert await world.publisher.publish("registration", reload=False)
    assert ["a", "i"] == clusters(world)


async def test_a_fault_of_ours_keeps_the_old_state_and_does_not_stop_later_publishes(world, caplog):
    await world.publisher.publish("start", reload=True)
    world.names = [7]  # no name at all: the compiler raises
    assert not await world.publisher.publish("edit", reload=True)
    world.names = ["b"]
    assert await world.publisher.publish("edit", reload=True)
    assert ["b"] == clusters(world)


async def test_ver_2_equal_content_wakes_nobody(world):
    await world.publisher.publish("start", reload=True)
    stream = stream_of(world)
    await world.publisher.publish("again", reload=True)
    assert not stream.wake.is_set()
    world.names = ["b"]
    await world.publisher.publish("edit", reload=True)
    assert stream.wake.is_set()


async def test_a_new_group_is_compiled_on_demand_and_once(world):
    await world.publisher.publish("start", reload=True)
    world.compiled.clear()
    assert await world.publisher.snapshot(ELSEWHERE) is await world.publisher.snapshot(ELSEWHERE)
    assert [ELSEWHERE] == world.compiled


async def test_grp_2_a_group_without_streams_is_forgotten_at_the_next_publish(world):
    await world.publisher.publish("start", reload=True)
    await world.publisher.snapshot(ELSEWHERE)
    stream = stream_of(world, ELSEWHERE)
    await world.publisher.publish("again", reload=True)
    assert ELSEWHERE in world.hub.groups
    world.hub.remove(stream)
    world.hub.remove(stream)  # twice is harmless
    await world.publisher.publish("again", reload=True)
    assert set(DEFAULT_GROUPS) == set(world.hub.groups)


async def test_the_number_of_groups_is_bounded(world):
    await world.publisher.publish("start", reload=True)
    snapshot = world.hub.snapshot(DEFAULT_GROUPS[0])
    world.hub.publish({Group(Profile.ENVOY, f"h:{port}"): snapshot for port in range(MAX_GROUPS)}, 0.0)
    with pytest.raises(StreamRefused) as refused:
        await world.publisher.snapshot(ELSEWHERE)
    assert "RESOURCE_EXHAUSTED" == refused.value.code


def placed(region: str) -> Group:
    return Group(Profile.MESHLIB, place=Place((region, "", "")))


async def test_places_share_a_state_while_nothing_depends_on_them(world):
    await world.publisher.publish("start", reload=True)
    count = len(world.compiled)
    first, second = [await world.publisher.snapshot(placed(region)) for region in ("eu", "us")]
    assert first is second is world.hub.snapshot(Group(Profile.MESHLIB))
    assert count == len(world.compiled)
    for region in ("eu", "us"):
        stream_of(world, placed(region))
    world.names = ["a", "b"]
    assert await world.publisher.publish("documents", reload=True)
    assert 2 * count == len(world.compiled)
    assert ["a", "b"] == clusters(world, placed("eu"))


async def test_each_place_has_its_own_state_once_something_depends_on_it(world):
    await world.publisher.publish("start", reload=True)
    await world.publisher.snapshot(placed("eu"))
    stream_of(world, placed("eu"))
    assert placed("eu") not in world.compiled
    world.depends_on_place, world.names = True, ["a", "b"]
    assert await world.publisher.publish("documents", reload=True)
    assert placed("eu") in world.compiled
    await world.publisher.snapshot(placed("us"))
    assert placed("us") == world.compiled[-1]


async def test_any_number_of_places_may_ask_where_they_decide_nothing(world):
    await world.publisher.publish("start", reload=True)
    for number in range(MAX_GROUPS + 10):
        assert await world.publisher.snapshot(placed(f"r{number}")) is not None
