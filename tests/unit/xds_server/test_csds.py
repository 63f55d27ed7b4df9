"""What CSDS says about streams in every state, and whom it says it about."""

import pytest

from meshlib.protos import from_dict, message_class
from xds_server.csds import answer
from xds_server.groups import Group
from xds_server.hub import LiveStream
from xds_server.identity import Identity
from xds_server.model import Profile
from xds_server.ordering import CDS, EDS, SDS
from xds_server.snapshot import Resource, TypeState
from xds_server.status import clients, clients_status
from xds_server.stream import StreamRefused
from xds_server.wire import resource_field


@pytest.fixture
def ask():
    """Return the entries of an answer by node id, type and name."""

    def run(*peers, now=10.0, **request):
        streams = [
            LiveStream(peer.machine, Group(Profile.ENVOY), "ipv4:127.0.0.1:1", 0.0, Identity("default", "a"))
            for peer in peers
        ]
        data = from_dict("envoy.service.status.v3.ClientStatusRequest", request).SerializeToString()
        answered = answer(data, clients(streams, with_resources=True), now=now, wall_now=1_000_010.0)
        message = message_class("envoy.service.status.v3.ClientStatusResponse").FromString(answered)
        return {
            (config.node.id, entry.type_url, entry.name): entry
            for config in message.config
            for entry in config.generic_xds_configs
        }

    return run


def state_of(entry) -> str:
    return entry.DESCRIPTOR.fields_by_name["config_status"].enum_type.values_by_number[entry.config_status].name


@pytest.mark.parametrize("variant", ["make_peer", "make_delta"])
def test_each_state_has_its_name(request, ask, variant):
    peer = request.getfixturevalue(variant)()
    plus = "+" if variant == "make_delta" else ""
    peer.publish({EDS: {"a": "1"}})
    peer.now = 4.0
    peer.ask(EDS, f"{plus}a", f"{plus}gone")
    response = peer.next()
    entries = ask(peer)
    assert "STALE" == state_of(entries["n1", EDS, "a"])
    peer.now = 6.0
    peer.answer(response)
    entry = ask(peer)["n1", EDS, "a"]
    assert ("SYNCED", "1", 1_000_004) == (state_of(entry), entry.version_info, entry.last_updated.seconds)
    assert "NOT_SENT" == state_of(ask(peer)["n1", EDS, "gone"])
    peer.publish({EDS: {"a": "bad"}})
    peer.answer(peer.next(), error="no endpoints")
    entry = ask(peer)["n1", EDS, "a"]
    assert ("ERROR", "bad", "no endpoints", 1_000_006) == (
        state_of(entry),
        entry.version_info,
        entry.error_state.details,
        entry.error_state.last_update_attempt.seconds,
    )


def test_contents_are_told_unless_excluded_and_those_of_secrets_never(ask, make_delta):
    content = resource_field(b"\x0a\x03x/y")
    peer = make_delta(secrets=TypeState.of([Resource("default", "1", content)]))
    snapshot = {CDS: {"a": "1"}}
    peer.publish(snapshot)
    peer.machine._snapshot = type(peer.snapshot)({CDS: TypeState.of([Resource("a", "1", content)])})
    peer.ask(CDS)
    peer.accept(CDS, "a")
    peer.ask(SDS, "+default")
    peer.accept(SDS, "default")
    entries = ask(peer)
    assert "x/y" == entries["n1", CDS, "a"].xds_config.type_url
    assert not entries["n1", SDS, "default"].HasField("xds_config")
    assert not ask(peer, exclude_resource_contents=True)["n1", CDS, "a"].HasField("xds_config")


@pytest.mark.parametrize(
    ("matcher", "expected"),
    [
        ({"exact": "n1"}, True),
        ({"prefix": "N", "ignore_case": True}, True),
        ({"suffix": "1"}, True),
        ({"contains": "x"}, False),
    ],
)
def test_clients_are_chosen_by_node_id(ask, peer, matcher, expected):
    peer.publish({CDS: {"a": "1"}})
    peer.ask(CDS)
    peer.expect(CDS, "a")
    assert expected == bool(ask(peer, node_matchers=[{"node_id": {"exact": "other"}}, {"node_id": matcher}]))


@pytest.mark.parametrize(
    "matcher", [{"node_metadatas": [{"path": [{"key": "a"}]}]}, {"node_id": {"safe_regex": {"regex": ".*"}}}]
)
def test_matchers_that_are_not_offered_are_refused(ask, peer, matcher):
    peer.ask(CDS)
    with pytest.raises(StreamRefused, match="node_"):
        ask(peer, node_matchers=[matcher])


def test_status_page_tells_the_same(peer):
    peer.publish({CDS: {"a": "1"}})
    peer.ask(CDS)
    peer.accept(CDS, "a")
    (client,) = clients_status([LiveStream(peer.machine, Group(Profile.GRPC), "peer", 1.0)], 3.5)
    assert ("n1", "sotw", "aggregated", 2.5) == (
        client["node_id"],
        client["protocol"],
        client["stream"],
        client["connected_s"],
    )
    assert ("SYNCED", 1) == (client["types"]["Cluster"]["state"], client["types"]["Cluster"]["resources"])
