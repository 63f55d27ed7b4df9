"""Answers on one state-of-the-world stream: the decision table row by row, then the rules by name."""

import pytest

from xds_server.ordering import CDS, EDS, LDS, RDS, SDS
from xds_server.stream import StreamRefused
from xds_server.versions import type_version
from xds_server.wire import Node

UNKNOWN = "type.googleapis.com/example.Unknown"


# The decision table.


def test_row_1_first_request_is_answered_now_whatever_its_nonce_and_version(peer):
    peer.publish({CDS: {"a": "1"}})
    peer.ask(CDS, nonce="of another stream", version=type_version([("a", "1")]))
    peer.expect(CDS, "a")


def test_row_2_rejection_is_recorded_and_not_answered(peer):
    peer.publish({CDS: {"a": "1"}})
    peer.ask(CDS)
    peer.answer(peer.expect(CDS, "a"), error="bad cluster")
    assert peer.is_silent()
    assert "bad cluster" == peer.machine.subscriptions[CDS].last_error


def test_row_2_rejection_still_takes_over_the_names(peer):
    peer.publish({EDS: {"a": "1", "b": "1"}})
    peer.ask(EDS, "a")
    peer.answer(peer.expect(EDS, "a"), "a", "b", error="bad endpoint")
    peer.expect(EDS, "b")


@pytest.mark.parametrize("nonce", ["", "stale"])
def test_row_3_stale_request_is_ignored_and_its_names_arrive_with_the_ack(peer, nonce):
    peer.publish({EDS: {"a": "1", "b": "1"}})
    peer.ask(EDS, "a")
    response = peer.expect(EDS, "a")
    peer.ask(EDS, "a", "b", nonce=nonce)
    assert peer.is_silent()
    assert 1 == peer.machine.subscriptions[EDS].stale_nonces
    peer.answer(response, "a", "b")
    peer.expect(EDS, "b")


def test_row_4_ack_is_not_answered(peer):
    peer.publish({CDS: {"a": "1"}})
    peer.ask(CDS)
    response = peer.accept(CDS, "a")
    assert peer.is_silent()
    assert response.version == peer.machine.subscriptions[CDS].acked_version


def test_row_4_ack_is_answered_when_the_state_has_moved_on(peer):
    peer.publish({CDS: {"a": "1"}})
    peer.ask(CDS)
    response = peer.expect(CDS, "a")
    peer.publish({CDS: {"a": "2"}})
    assert peer.is_silent()
    peer.answer(response)
    peer.expect(CDS, "a")


def test_row_5_ack_of_a_child_whose_parent_was_sent_again_is_answered(peer):
    peer.publish({CDS: {"c": "1"}, EDS: {"e": "1"}}, c=((EDS, "e"),))
    peer.ask(CDS)
    peer.accept(CDS, "c")
    peer.ask(EDS, "e")
    endpoints = peer.expect(EDS, "e")
    peer.publish({CDS: {"c": "2"}, EDS: {"e": "1"}}, c=((EDS, "e"),))
    peer.expect(CDS, "c")
    assert peer.is_silent()  # the endpoints are still in flight
    peer.answer(endpoints)
    peer.expect(EDS, "e")


def test_row_6_added_name_of_a_full_state_type_brings_everything_wanted(peer):
    peer.publish({CDS: {"a": "1", "b": "1", "c": "1"}})
    peer.ask(CDS, "a")
    peer.answer(peer.expect(CDS, "a"), "a", "b")
    peer.expect(CDS, "a", "b")


def test_row_6_added_name_of_another_type_brings_only_that(peer):
    peer.publish({EDS: {"a": "1", "b": "1"}})
    peer.ask(EDS, "a")
    peer.answer(peer.expect(EDS, "a"), "a", "b")
    peer.expect(EDS, "b")


@pytest.mark.parametrize("type_url", [CDS, LDS, RDS, EDS])
def test_row_7_removed_name_is_not_answered(peer, type_url):
    peer.publish({type_url: {"a": "1", "b": "1"}})
    peer.ask(type_url, "a", "b")
    peer.answer(peer.expect(type_url, "a", "b"), "a")
    assert peer.is_silent()
    assert {"a"} == set(peer.machine.subscriptions[type_url].known)


@pytest.mark.parametrize("type_url", [CDS, LDS, RDS, EDS])
def test_row_8_emptied_names_leave_an_empty_subscription(peer, type_url):
    peer.publish({type_url: {"a": "1"}})
    peer.ask(type_url, "a")
    response = peer.expect(type_url, "a")
    peer.ask(type_url, nonce=response.nonce)
    peer.publish({type_url: {"a": "2", "b": "1"}})
    assert peer.is_silent()


# Streams.


def test_first_request_without_a_node_ends_the_stream(make_peer):
    peer = make_peer()
    peer._node = None
    with pytest.raises(StreamRefused, match="must carry a node with an id") as refused:
        peer.ask(CDS)
    assert "INVALID_ARGUMENT" == refused.value.code


def test_request_without_a_type_ends_the_stream(peer):
    with pytest.raises(StreamRefused, match="type_url"):
        peer.ask("")


def test_another_node_id_on_the_same_stream_ends_it(peer, make_peer):
    peer.ask(CDS)
    peer._node = type(peer.machine.node)("n2")
    with pytest.raises(StreamRefused, match=r"'n1'.*'n2'"):
        peer.ask(CDS)


def test_unknown_type_is_silent_and_the_others_go_on(peer):
    peer.publish({CDS: {"a": "1"}})
    peer.ask(UNKNOWN, "x")
    assert peer.is_silent()
    peer.ask(CDS)
    peer.expect(CDS, "a")


def test_types_may_come_in_any_order(peer):
    """The order in which grpcio comes back after a reconnect."""
    peer.publish({LDS: {"l": "1"}, RDS: {"r": "1"}, CDS: {"c": "1"}, EDS: {"e": "1"}})
    for type_url, name in ((RDS, "r"), (EDS, "e"), (CDS, "c"), (LDS, "l")):
        peer.ask(type_url, name, version="from before")
        peer.accept(type_url, name)


# State of the world.


@pytest.mark.parametrize("type_url", [CDS, LDS])
def test_sw_1_first_request_of_a_full_state_type_is_answered_even_with_nothing(peer, type_url):
    peer.ask(type_url)
    response = peer.accept(type_url)
    assert type_version([]) == response.version != ""
    assert peer.is_silent()


def test_sw_2_first_request_of_another_type_waits_until_something_exists(make_peer):
    peer = make_peer(settings={"resource_errors": False})
    peer.ask(EDS, "a")
    assert peer.is_silent()
    peer.publish({EDS: {"a": "1"}})
    peer.expect(EDS, "a")


def test_sw_3_every_change_sends_all_clusters(peer):
    peer.publish({CDS: {"a": "1", "b": "1"}})
    peer.ask(CDS)
    peer.accept(CDS, "a", "b")
    peer.publish({CDS: {"a": "1", "b": "2"}})
    peer.expect(CDS, "a", "b")


def test_sw_4_other_types_send_only_what_changed(peer):
    peer.publish({EDS: {"a": "1", "b": "1"}})
    peer.ask(EDS, "a", "b")
    peer.accept(EDS, "a", "b")
    peer.publish({EDS: {"a": "1", "b": "2"}})
    peer.accept(EDS, "b")


def test_sw_4_deletion_of_another_type_is_not_sent_and_its_return_is(peer):
    peer.publish({EDS: {"a": "1"}})
    peer.ask(EDS, "a")
    peer.accept(EDS, "a")
    peer.publish({})
    assert peer.is_silent()
    peer.publish({EDS: {"a": "1"}})
    peer.expect(EDS, "a")


def test_sw_5_last_resource_removed_sends_an_empty_response(peer):
    peer.publish({LDS: {"a": "1"}})
    peer.ask(LDS)
    peer.accept(LDS, "a")
    peer.publish({})
    peer.expect(LDS)


def test_sw_6_name_that_does_not_exist_yet_is_sent_when_it_does(peer):
    peer.ask(RDS, "a")
    peer.accept(RDS)  # says that it does not exist
    peer.publish({RDS: {"a": "1"}})
    peer.expect(RDS, "a")


@pytest.mark.parametrize("type_url", [CDS, EDS])
def test_sw_7_subscribing_again_sends_again_though_unchanged(peer, type_url):
    peer.publish({type_url: {"a": "1", "b": "1"}})
    peer.ask(type_url, "a", "b")
    response = peer.expect(type_url, "a", "b")
    peer.answer(response, "a")
    peer.ask(type_url, "a", "b", nonce=response.nonce)
    assert "b" in peer.next().names


def test_sw_8_nothing_is_sent_for_a_type_without_subscription(peer):
    peer.ask(LDS)
    peer.accept(LDS)
    assert not peer.publish({CDS: {"a": "1"}, EDS: {"a": "1"}})
    assert peer.is_silent()


def test_sw_9_repeated_names_count_once_and_the_empty_name_never_exists(peer):
    peer.publish({EDS: {"a": "1"}})
    peer.ask(EDS, "a", "a", "")
    response = peer.expect(EDS, "a")
    assert [""] == [error.name for error in response.errors]


def test_sw_10_request_that_repeats_names_and_nonce_is_not_answered(peer):
    peer.publish({EDS: {"a": "1"}})
    peer.ask(EDS, "a")
    response = peer.accept(EDS, "a")
    peer.ask(EDS, "a", nonce=response.nonce)
    assert peer.is_silent()


# Wildcard.


@pytest.mark.parametrize("type_url", [EDS, RDS, SDS])
def test_wc_1_an_empty_list_of_other_types_means_nothing(peer, type_url):
    peer.publish({type_url: {"a": "1"}})
    peer.ask(type_url)
    assert peer.is_silent()


def test_wc_2_legacy_wildcard_lasts_while_nothing_is_named(peer):
    peer.publish({CDS: {"a": "1"}})
    peer.ask(CDS)
    peer.accept(CDS, "a")
    peer.publish({CDS: {"a": "1", "b": "1"}})
    peer.expect(CDS, "a", "b")


def test_wc_2_a_named_resource_ends_legacy_for_good(peer):
    peer.publish({CDS: {"a": "1", "b": "1"}})
    peer.ask(CDS, "a")
    response = peer.expect(CDS, "a")
    peer.ask(CDS, nonce=response.nonce)
    peer.publish({CDS: {"a": "2", "b": "2"}})
    assert peer.is_silent()


def test_wc_3_from_everything_over_star_and_name_to_name_to_nothing(peer):
    peer.publish({CDS: {"a": "1", "b": "1"}})
    peer.ask(CDS)
    peer.answer(peer.expect(CDS, "a", "b"), "*", "a")
    response = peer.expect(CDS, "a", "b")
    peer.answer(response, "a")
    assert peer.is_silent()
    peer.publish({CDS: {"a": "2", "b": "2"}})
    response = peer.expect(CDS, "a")
    peer.ask(CDS, nonce=response.nonce)
    peer.publish({CDS: {"a": "3", "b": "3"}})
    assert peer.is_silent()


def test_wc_4_narrowing_from_everything_to_names_is_silent(peer):
    peer.publish({CDS: {"a": "1", "b": "1"}})
    peer.ask(CDS, "*")
    peer.answer(peer.expect(CDS, "a", "b"), "a")
    assert peer.is_silent()


def test_wc_7_named_clusters_are_the_only_ones_sent(peer):
    peer.publish({CDS: {"a": "1", "b": "1"}})
    peer.ask(CDS, "b")
    peer.expect(CDS, "b")


# Versions, nonces, rejections.


def test_ver_2_equal_content_is_not_pushed(peer):
    peer.publish({CDS: {"a": "1"}})
    peer.ask(CDS)
    peer.accept(CDS, "a")
    assert not peer.publish({CDS: {"a": "1"}})
    assert peer.is_silent()


def test_ver_3_change_of_one_type_keeps_the_version_of_another(peer):
    peer.publish({CDS: {"a": "1"}, LDS: {"l": "1"}})
    peer.ask(LDS)
    before = peer.accept(LDS, "l").version
    peer.publish({CDS: {"a": "2"}, LDS: {"l": "1"}})
    assert before == peer.snapshot.state(LDS).version


def test_ack_1_nonces_are_never_reused_on_a_stream(peer):
    peer.publish({CDS: {"a": "1"}, EDS: {"a": "1"}})
    peer.ask(CDS)
    peer.ask(EDS, "a")
    nonces = [peer.accept(CDS, "a").nonce, peer.accept(EDS, "a").nonce]
    peer.publish({CDS: {"a": "2"}})
    nonces.append(peer.next().nonce)
    assert 3 == len(set(nonces))


def test_ack_2_changes_under_way_merge_into_one_response(peer):
    peer.publish({EDS: {"a": "1", "b": "1"}})
    peer.ask(EDS, "a", "b")
    response = peer.expect(EDS, "a", "b")
    peer.publish({EDS: {"a": "2", "b": "1"}})
    peer.publish({EDS: {"a": "3", "b": "2"}})
    assert peer.is_silent()
    peer.answer(response)
    peer.accept(EDS, "a", "b")
    assert peer.is_silent()


@pytest.mark.parametrize("type_url", [CDS, EDS])
def test_ack_4_client_that_rejects_everything_gets_one_response(peer, type_url):
    peer.publish({type_url: {"a": "1"}})
    peer.ask(type_url, "a")
    peer.answer(peer.expect(type_url, "a"), error="no")
    for _ in range(100):
        assert peer.is_silent()
        peer.now += 1.0


def test_ack_4_content_that_moved_on_while_the_rejection_travelled_is_sent_at_once(peer):
    peer.publish({CDS: {"a": "1"}})
    peer.ask(CDS)
    response = peer.expect(CDS, "a")
    peer.publish({CDS: {"a": "2"}})
    peer.answer(response, error="no")
    peer.expect(CDS, "a")


def test_ack_5_return_to_accepted_content_after_a_rejection_is_sent(peer):
    peer.publish({CDS: {"a": "good"}})
    peer.ask(CDS)
    peer.accept(CDS, "a")
    peer.publish({CDS: {"a": "bad"}})
    peer.answer(peer.expect(CDS, "a"), error="no")
    peer.publish({CDS: {"a": "good"}})
    peer.accept(CDS, "a")
    assert peer.machine.subscriptions[CDS].last_error is None


def test_ack_8_error_without_text_is_a_rejection(peer):
    peer.publish({CDS: {"a": "1"}})
    peer.ask(CDS)
    peer.answer(peer.expect(CDS, "a"), error="")
    assert 1 == peer.machine.subscriptions[CDS].nacks


def test_ack_9_after_the_timeout_the_next_response_goes_out_anyway(make_peer):
    peer = make_peer(settings={"ack_timeout_s": 60.0})
    peer.publish({CDS: {"a": "1"}})
    peer.ask(CDS)
    peer.expect(CDS, "a")
    peer.publish({CDS: {"a": "2"}})
    assert 60.0 == peer.machine.deadline(peer.now)
    peer.now = 59.9
    assert peer.is_silent()
    peer.now = 60.0
    peer.expect(CDS, "a")


# Limits and errors.


def test_lim_1_endpoints_are_split_and_the_next_part_follows_the_ack(make_peer):
    peer = make_peer(settings={"max_response_bytes": 4})  # two resources of two bytes
    peer.publish({EDS: dict.fromkeys("abcde", "1")})
    peer.ask(EDS, *"abcde")
    peer.answer(peer.expect(EDS, "a", "b"))
    second = peer.expect(EDS, "c", "d")
    assert peer.is_silent()
    peer.answer(second, error="one of them is bad")
    peer.accept(EDS, "e")
    assert peer.is_silent()


def test_lim_1_clusters_are_never_split(make_peer):
    peer = make_peer(settings={"max_response_bytes": 1})
    peer.publish({CDS: dict.fromkeys("abc", "1")})
    peer.ask(CDS)
    peer.expect(CDS, "a", "b", "c")


def test_err_1_missing_names_are_said_beside_what_exists(peer, decode_response):
    peer.publish({EDS: {"a": "1"}})
    peer.ask(EDS, "a", "gone")
    message = decode_response(peer.expect(EDS, "a"))
    (error,) = message.resource_errors
    assert ("gone", 5) == (error.resource_name.name, error.error_detail.code)
    assert "ClusterLoadAssignment 'gone' does not exist" == error.error_detail.message


def test_err_2_a_missing_name_is_said_once_per_subscription(peer):
    peer.ask(EDS, "gone")
    response = peer.accept(EDS)
    assert ["gone"] == [error.name for error in response.errors]
    assert peer.is_silent()
    peer.ask(EDS, nonce=response.nonce)
    peer.ask(EDS, "gone", nonce=response.nonce)
    assert ["gone"] == [error.name for error in peer.expect(EDS).errors]


def test_lim_1_many_missing_names_are_said_in_several_responses(peer, monkeypatch):
    monkeypatch.setattr("xds_server.machine.MAX_ERROR_BYTES", 110)
    names = [f"gone-{number}" for number in range(5)]
    peer.ask(EDS, *names)
    said = []
    for _ in names:
        if (response := peer.next()) is None:
            break
        said.append([error.name for error in response.errors])
        peer.answer(response)
    assert [["gone-0", "gone-1"], ["gone-2", "gone-3"], ["gone-4"]] == said


@pytest.mark.parametrize(
    ("limit", "asked", "text"),
    [
        ("MAX_TYPES", [(CDS, "a"), (EDS, "a"), (RDS, "a")], "at most 2 types"),
        ("MAX_NAMES", [(CDS, "a"), (EDS, "a", "b")], "at most 2 names"),
        ("MAX_NAME_CHARS", [(CDS, "abc")], "at most 2 characters"),
        ("MAX_NAME_CHARS", [("abc",)], "at most 2 characters"),
    ],
)
def test_stream_that_asks_for_too_much_ends(peer, monkeypatch, limit, asked, text):
    monkeypatch.setattr("xds_server.requests.MAX_NAME_CHARS", 200)
    monkeypatch.setattr(f"xds_server.requests.{limit}", 2)
    for each in asked[:-1]:
        peer.ask(*each)
    with pytest.raises(StreamRefused, match=text):
        peer.ask(*asked[-1])


def test_denied_types_say_why_and_never_hold_anything(make_peer):
    peer = make_peer(denied={SDS: "no identity"})
    peer.publish({SDS: {"default": "1"}})
    peer.ask(SDS, "default")
    response = peer.expect(SDS)
    assert [(7, "Secret 'default': no identity")] == [(error.code, error.message) for error in response.errors]


def test_response_carries_version_type_nonce_and_identifier(make_peer, decode_response):
    peer = make_peer(settings={"identifier": "server-7"})
    peer.publish({CDS: {"a": "1"}})
    peer.ask(CDS)
    response = peer.expect(CDS, "a")
    message = decode_response(response)
    assert (type_version([("a", "1")]), CDS, response.nonce, "server-7", 1) == (
        message.version_info,
        message.type_url,
        message.nonce,
        message.control_plane.identifier,
        len(message.resources),
    )


@pytest.mark.parametrize("type_url", [CDS, EDS])
def test_name_dropped_and_taken_back_while_a_response_travels_is_sent_again(peer, type_url):
    """The client threw its copy away with the first request; both requests were stale, so the ACK shows no change."""
    peer.publish({type_url: {"a": "1", "b": "1"}})
    peer.ask(type_url, "a", "b")
    peer.accept(type_url, "a", "b")
    peer.publish({type_url: {"a": "1", "b": "2"}})
    response = peer.next()
    peer.ask(type_url, "b", nonce="1")
    peer.ask(type_url, "a", "b", nonce="1")
    peer.answer(response, "a", "b")
    assert "a" in peer.next().names


def test_ack_5_correction_of_one_resource_brings_its_companions_of_the_rejected_response(peer):
    """The client may have thrown the whole response away."""
    peer.publish({EDS: {"a": "1", "b": "bad", "c": "1"}})
    peer.ask(EDS, "c")
    peer.answer(peer.expect(EDS, "c"), "a", "b", "c")
    peer.answer(peer.expect(EDS, "a", "b"), error="b is bad")
    peer.publish({EDS: {"a": "1", "b": "bad", "c": "2"}})
    peer.accept(EDS, "c")
    peer.publish({EDS: {"a": "1", "b": "good", "c": "2"}})
    peer.accept(EDS, "a", "b")
    assert peer.is_silent()


@pytest.mark.parametrize("type_url", [CDS, EDS])
def test_ack_5_without_the_rejected_resource_its_companions_are_sent(peer, type_url):
    peer.publish({type_url: {"a": "1", "b": "bad"}})
    peer.ask(type_url, "a", "b")
    peer.answer(peer.expect(type_url, "a", "b"), error="b is bad")
    assert peer.is_silent()
    peer.ask(type_url, "a", nonce="1")
    peer.accept(type_url, "a")
    assert peer.is_silent()


def test_ack_5_what_a_rejected_state_left_out_is_said_to_be_gone_when_the_names_change(peer):
    """The rejected response was the only one without b, and what it did hold is not asked for any more."""
    peer.publish({LDS: {"a": "1", "b": "1"}})
    peer.ask(LDS, "a", "b", "c")
    peer.accept(LDS, "a", "b")
    peer.publish({LDS: {"a": "bad"}})
    peer.answer(peer.expect(LDS, "a"), "b", "c", error="a is bad")
    peer.accept(LDS)
    assert peer.is_silent()


def test_a_node_with_an_enormous_id_is_refused(peer):
    peer._node = Node("n" * 3000)
    with pytest.raises(StreamRefused, match="at most 2048 characters"):
        peer.ask(CDS)
