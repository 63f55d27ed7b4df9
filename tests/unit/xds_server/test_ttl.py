"""Resources that expire unless refreshed: heartbeats in both variants, and for whom."""

import pytest

from meshlib.protos import from_dict, message_class
from xds_server.ordering import CDS, EDS, LDS
from xds_server.snapshot import NOTHING, Resource, Snapshot
from xds_server.ttl import SUPPORTS_TTL
from xds_server.wire import Node

WRAPPER = "envoy.service.discovery.v3.Resource"
ENVOY = Node("n1", user_agent_name="envoy")
TTL_S = 9.0


def snapshot(ttl: str | None, *types: str) -> Snapshot:
    """Two resources of each type: `a`, perhaps with a time to live, and `b` without."""

    def make(type_url: str, name: str):
        key = "cluster_name" if type_url == EDS else "name"
        return from_dict(type_url.rpartition("/")[2], {key: name})

    def wrapped(type_url: str):
        body = {"@type": type_url, ("cluster_name" if type_url == EDS else "name"): "a"}
        return from_dict(WRAPPER, {"name": "a", "resource": body, **({"ttl": ttl} if ttl else {})})

    return Snapshot.build({each: {"a": wrapped(each), "b": make(each, "b")} for each in types})


@pytest.fixture
def start():
    """Return a function that gives a peer a state, and the peer's node."""

    def run(peer, state: Snapshot, node: Node = ENVOY):
        peer._node = node if peer.machine.node is None else None
        peer.machine.publish(state, state.changes_since(peer.snapshot), peer.now)
        peer.snapshot = state
        return peer

    return run


def unwrap(packed):
    """Return a wrapped resource, or None for a plain one."""
    if packed.type_url.rpartition("/")[2] != WRAPPER:
        return None
    return message_class(WRAPPER).FromString(packed.value)


def test_ttl_is_part_of_the_version_and_not_of_the_content():
    plain, with_ttl, longer = (snapshot(ttl, CDS).state(CDS).resources["a"] for ttl in (None, "9s", "10s"))
    assert (None, 9.0) == (plain.ttl_s, with_ttl.ttl_s)
    assert 3 == len({plain.version, with_ttl.version, longer.version})
    assert plain.field == with_ttl.field


def test_ttl_1_delta_heartbeats_name_the_resource_without_its_body(delta, start, decode_delta):
    start(delta, snapshot("9s", CDS)).ask(CDS)
    first = decode_delta(delta.accept(CDS, "a", "b"))
    assert [9, 0] == [each.ttl.seconds for each in first.resources]
    assert 3.0 == delta.machine.deadline(delta.now)
    delta.now = 2.9
    assert delta.is_silent()
    delta.now = 3.0
    (beat,) = decode_delta(delta.accept(CDS, "a")).resources
    assert (first.resources[0].version, 9, False) == (beat.version, beat.ttl.seconds, beat.HasField("resource"))
    assert 6.0 == delta.machine.deadline(delta.now)


def test_ttl_1_a_resend_without_ttl_ends_the_heartbeats(delta, start, decode_delta):
    start(delta, snapshot("9s", CDS)).ask(CDS)
    delta.accept(CDS, "a", "b")
    start(delta, snapshot(None, CDS))
    (entry,) = decode_delta(delta.accept(CDS, "a")).resources
    assert (False, True) == (entry.HasField("ttl"), entry.HasField("resource"))
    delta.now = 100.0
    assert delta.is_silent()
    assert delta.machine.deadline(delta.now) is None


def test_ttl_2_endpoints_are_wrapped_and_refreshed_by_themselves(peer, start, decode_response):
    start(peer, snapshot("9s", EDS)).ask(EDS, "a", "b")
    first = [unwrap(each) for each in decode_response(peer.accept(EDS, "a", "b")).resources]
    assert ("a", 9, True) == (first[0].name, first[0].ttl.seconds, first[0].HasField("resource"))
    assert first[1] is None
    peer.now = 3.0
    (again,) = [unwrap(each) for each in decode_response(peer.accept(EDS, "a")).resources]
    assert ("a", 9, True) == (again.name, again.ttl.seconds, again.HasField("resource"))
    assert peer.is_silent()


@pytest.mark.parametrize("type_url", [CDS, LDS])
def test_ttl_2_full_state_types_are_refreshed_by_all_of_their_resources(peer, start, decode_response, type_url):
    """Envoy deletes everything when a response of clusters holds only a heartbeat."""
    start(peer, snapshot("9s", type_url)).ask(type_url)
    version = peer.accept(type_url, "a", "b").version
    peer.now = 3.0
    response = peer.accept(type_url, "a", "b")
    assert version == response.version
    resources = decode_response(response).resources
    assert unwrap(resources[0]).HasField("resource")
    assert unwrap(resources[1]) is None
    assert peer.is_silent()


def test_ttl_3_a_heartbeat_waits_for_the_answer_to_the_last_response(delta, start):
    start(delta, snapshot("9s", EDS)).ask(EDS, "+a")
    response = delta.expect(EDS, "a")
    delta.now = 5.0
    assert delta.is_silent()
    delta.answer(response)
    assert "a" in delta.accept(EDS, "a").names
    assert delta.is_silent()


def test_ttl_3_a_heartbeat_is_skipped_after_a_real_response(delta, start):
    start(delta, snapshot("9s", EDS)).ask(EDS, "+a")
    delta.accept(EDS, "a")
    delta.now = 2.0
    delta.ask(EDS, "+a")
    delta.accept(EDS, "a")
    delta.now = 3.0
    assert delta.is_silent()
    assert 5.0 == delta.machine.deadline(delta.now)


def test_what_may_have_expired_is_sent_again_with_its_body(delta, start, decode_delta):
    start(delta, snapshot("9s", EDS)).ask(EDS, "+a")
    delta.accept(EDS, "a")
    delta.now = 8.0
    (entry,) = decode_delta(delta.accept(EDS, "a")).resources
    assert entry.HasField("resource")
    assert delta.is_silent()


def test_ttl_3_what_was_rejected_is_not_refreshed(delta, start):
    start(delta, snapshot("9s", EDS)).ask(EDS, "+a")
    delta.answer(delta.expect(EDS, "a"), error="no")
    delta.now = 50.0
    assert delta.is_silent()


def test_what_a_returning_client_kept_is_refreshed_at_once(delta, start):
    state = snapshot("9s", CDS)
    versions = {name: resource.version for name, resource in state.state(CDS).resources.items()}
    delta._node = ENVOY
    delta.machine.publish(state, state.changes_since(NOTHING), 0.0)
    delta.ask(CDS, initial=versions)
    delta.accept(CDS)
    delta.accept(CDS, "a")
    assert delta.is_silent()


@pytest.mark.parametrize(
    ("node", "expected"),
    [(ENVOY, True), (Node("n1", client_features=frozenset({SUPPORTS_TTL})), True), (Node("n1"), False)],
)
def test_ttl_is_sent_to_clients_that_know_it(
    make_peer, make_delta, start, decode_response, decode_delta, node, expected
):
    state = snapshot("9s", EDS)
    peer, delta = start(make_peer(), state, node), start(make_delta(), state, node)
    peer.ask(EDS, "a")
    assert expected == (unwrap(decode_response(peer.accept(EDS, "a")).resources[0]) is not None)
    delta.ask(EDS, "+a")
    assert expected == decode_delta(delta.accept(EDS, "a")).resources[0].HasField("ttl")
    peer.now = delta.now = 3.0
    assert (not expected, not expected) == (peer.is_silent(), delta.is_silent())


def test_a_resource_keeps_its_place_in_memory_while_nothing_changes():
    message = from_dict(WRAPPER, {"ttl": "9s", "resource": {"@type": CDS, "name": "a"}})
    resource = Resource.of("a", message)
    assert Resource.of("a", message, resource) is resource
