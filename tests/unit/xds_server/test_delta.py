"""Answers on one incremental stream: the decision table row by row, then the rules by name."""

import pytest

from xds_server.ordering import CDS, ECDS, EDS, LDS, RDS, SDS
from xds_server.snapshot import Resource, TypeState
from xds_server.stream import StreamRefused
from xds_server.versions import type_version

UNKNOWN = "type.googleapis.com/example.Unknown"


# The decision table.


@pytest.mark.parametrize("type_url", [CDS, LDS])
def test_first_wildcard_request_is_answered_even_with_nothing(delta, type_url):
    delta.ask(type_url, nonce="of another stream")
    delta.accept(type_url)
    assert delta.is_silent()


def test_first_named_request_is_answered_if_anything_differs(make_delta):
    delta = make_delta(settings={"resend_on_reconnect": False})
    delta.publish({EDS: {"a": "1", "b": "2"}})
    delta.ask(EDS, "+a", "+b", initial={"a": "1", "b": "1"})
    delta.accept(EDS, "b")
    assert delta.is_silent()


def test_new_subscription_brings_the_resource_or_that_it_is_gone(delta):
    delta.publish({EDS: {"a": "1"}})
    delta.ask(EDS, "+a", "+b")
    delta.accept(EDS, "a", "-b")
    assert delta.is_silent()


@pytest.mark.parametrize("type_url", [CDS, EDS])
def test_dx_1_subscribing_again_brings_the_resource_again(delta, type_url):
    delta.publish({type_url: {"a": "1", "b": "1"}})
    delta.ask(type_url, "+a", "+b")
    delta.accept(type_url, "a", "b")
    delta.ask(type_url, "+a")
    delta.accept(type_url, "a")
    assert delta.is_silent()


def test_dx_1_subscribing_again_to_what_is_gone_says_so_again(delta):
    delta.ask(EDS, "+a")
    delta.accept(EDS, "-a")
    delta.ask(EDS, "+a")
    delta.accept(EDS, "-a")
    assert delta.is_silent()


def test_unsubscribing_is_silent(delta):
    delta.publish({EDS: {"a": "1", "b": "1"}})
    delta.ask(EDS, "+a", "+b")
    delta.answer(delta.expect(EDS, "a", "b"), "-a")
    delta.publish({EDS: {"a": "2", "b": "1"}})
    assert delta.is_silent()
    assert {"b"} == set(delta.machine.subscriptions[EDS].known)


def test_unsubscribing_from_a_name_that_the_wildcard_covers_brings_it(delta):
    delta.publish({CDS: {"a": "1", "b": "1"}})
    delta.ask(CDS, "+*", "+a")
    delta.answer(delta.expect(CDS, "a", "b"), "-a")
    delta.accept(CDS, "a")
    assert delta.is_silent()


def test_what_is_under_way_and_gone_is_told_when_the_wildcard_comes_back(delta):
    """The client takes the response as an answer to the wildcard that it has again."""
    delta.publish({CDS: {"a": "1", "b": "1"}})
    delta.ask(CDS)
    under_way = delta.expect(CDS, "a", "b")
    delta.publish({CDS: {}})
    delta.ask(CDS, "+c", "-*")
    delta.ask(CDS, "+*")
    delta.answer(under_way)
    delta.accept(CDS, "-a", "-b", "-c")
    assert delta.is_silent()


def test_unsubscribing_from_a_name_that_the_wildcard_does_not_cover_says_that_it_is_gone(delta):
    delta.ask(CDS, "+*", "+a")
    delta.answer(delta.expect(CDS, "-a"), "-a")
    delta.accept(CDS, "-a")
    assert delta.is_silent()


@pytest.mark.parametrize("first", [("+b",), ("+*",)])
def test_unsubscribing_from_what_was_never_subscribed_is_silent(delta, first):
    delta.publish({CDS: {"b": "1"}})
    delta.ask(CDS, *first)
    delta.accept(CDS, "b")
    delta.ask(CDS, "-a")
    assert delta.is_silent()


def test_name_in_both_lists_is_unsubscribed(delta):
    delta.publish({EDS: {"a": "1"}})
    delta.ask(EDS, "+a", "-a")
    assert delta.is_silent()
    delta.publish({EDS: {"a": "2"}})
    assert delta.is_silent()


def test_subscribing_to_everything_brings_what_is_new(delta):
    delta.publish({CDS: {"a": "1", "b": "1"}})
    delta.ask(CDS, "+a")
    delta.accept(CDS, "a")
    delta.ask(CDS, "+*")
    delta.accept(CDS, "b")


def test_ack_and_rejection_are_not_answered(delta):
    delta.publish({CDS: {"a": "1"}, LDS: {"l": "1"}})
    delta.ask(CDS)
    response = delta.accept(CDS, "a")
    assert response.version == delta.machine.subscriptions[CDS].acked_version
    delta.ask(LDS)
    delta.answer(delta.expect(LDS, "l"), error="bad listener")
    assert delta.is_silent()
    assert "bad listener" == delta.machine.subscriptions[LDS].last_error


def test_request_that_says_nothing_is_not_answered(delta):
    delta.publish({CDS: {"a": "1"}})
    delta.ask(CDS)
    delta.accept(CDS, "a")
    delta.ask(CDS)
    assert delta.is_silent()


@pytest.mark.parametrize(("nonce", "error"), [("", None), ("stale", None), ("stale", "no"), ("1", "no")])
def test_subscriptions_count_in_every_request(delta, nonce, error):
    delta.publish({EDS: {"a": "1", "b": "1"}})
    delta.ask(EDS, "+a")
    response = delta.expect(EDS, "a")
    delta.ask(EDS, "+b", nonce=nonce, error=error)
    if nonce != response.nonce:
        delta.answer(response)
    delta.expect(EDS, "b")


# Rules.


def test_dx_2_a_missing_name_stays_subscribed_and_its_creation_is_sent(delta):
    delta.ask(RDS, "+a")
    delta.accept(RDS, "-a")
    delta.publish({RDS: {"a": "1"}})
    delta.accept(RDS, "a")


@pytest.mark.parametrize(("type_url", "first"), [(CDS, ()), (CDS, ("+a",)), (EDS, ("+a",)), (RDS, ("+a",))])
def test_dx_3_a_deletion_is_told_once(delta, type_url, first):
    delta.publish({type_url: {"a": "1"}})
    delta.ask(type_url, *first)
    delta.accept(type_url, "a")
    delta.publish({})
    delta.accept(type_url, "-a")
    assert delta.is_silent()


def test_dx_3_a_deletion_is_not_told_to_whom_it_was_never_sent(delta):
    delta.publish({CDS: {"a": "1"}})
    delta.ask(CDS)
    response = delta.expect(CDS, "a")
    delta.publish({CDS: {"a": "1", "b": "1"}})
    delta.publish({CDS: {"a": "1"}})
    delta.answer(response)
    assert delta.is_silent()


def test_dx_4_only_what_changed_travels_in_one_response(delta):
    delta.publish({CDS: {"a": "1", "b": "1", "c": "1", "d": "1"}})
    delta.ask(CDS)
    delta.accept(CDS, "a", "b", "c", "d")
    delta.publish({CDS: {"a": "2", "b": "1", "c": "2"}})
    delta.accept(CDS, "a", "c")
    delta.accept(CDS, "-d")  # additions come first (ORD-2)
    assert delta.is_silent()


def test_dx_6_first_wildcard_request_is_answered_when_the_client_has_everything(delta):
    delta.publish({CDS: {"a": "1"}})
    delta.ask(CDS, initial={"a": "1"})
    delta.accept(CDS)


def test_dx_7_rejected_content_is_not_sent_again_but_a_subscription_forces_it(delta):
    delta.publish({EDS: {"a": "1"}})
    delta.ask(EDS, "+a")
    delta.answer(delta.expect(EDS, "a"), error="no")
    delta.publish({EDS: {"a": "1", "b": "1"}})
    assert delta.is_silent()
    delta.ask(EDS, "+a")
    delta.expect(EDS, "a")


def test_dx_8_a_resource_carries_name_version_and_content(make_delta, decode_delta):
    delta = make_delta(settings={"identifier": "server-7"})
    delta.publish({EDS: {"a": "1"}})
    delta.ask(EDS, "+a", "+gone")
    response = delta.expect(EDS, "a", "-gone")
    message = decode_delta(response)
    (resource,) = message.resources
    assert ("a", "1", True) == (resource.name, resource.version, resource.HasField("resource"))
    assert (EDS, response.nonce, "server-7", type_version([("a", "1")])) == (
        message.type_url,
        message.nonce,
        message.control_plane.identifier,
        message.system_version_info,
    )
    assert ["gone"] == list(message.removed_resources)
    (error,) = message.resource_errors
    assert ("gone", 5, "ClusterLoadAssignment 'gone' does not exist") == (
        error.resource_name.name,
        error.error_detail.code,
        error.error_detail.message,
    )


# Wildcard.


@pytest.mark.parametrize("type_url", [EDS, RDS, SDS, ECDS])
@pytest.mark.parametrize("first", [(), ("+*",)])
def test_wc_1_other_types_have_no_wildcard(make_delta, type_url, first):
    delta = make_delta(settings={"resource_errors": False})
    delta.publish({type_url: {"a": "1"}})
    delta.ask(type_url, *first)
    assert delta.is_silent()


def test_wc_3_from_everything_over_star_and_name_to_name_to_nothing(delta):
    delta.publish({CDS: {"a": "1", "b": "1"}})
    delta.ask(CDS)
    delta.answer(delta.expect(CDS, "a", "b"), "+a")
    delta.answer(delta.expect(CDS, "a"), "-*")
    assert delta.is_silent()
    delta.publish({CDS: {"a": "2", "b": "2"}})
    delta.answer(delta.expect(CDS, "a"), "-a")
    delta.publish({CDS: {"a": "3", "b": "3"}})
    assert delta.is_silent()


@pytest.mark.parametrize("name", ["-a", "-*"])
def test_wc_5_nothing_can_be_unsubscribed_from_before_something_is_named(delta, name):
    delta.publish({CDS: {"a": "1"}})
    delta.ask(CDS)
    delta.answer(delta.expect(CDS, "a"), name)
    delta.publish({CDS: {"a": "2"}})
    delta.expect(CDS, "a")


def test_wc_5_star_in_both_lists_of_the_first_request_means_nothing_yet(delta):
    delta.publish({CDS: {"a": "1"}})
    delta.ask(CDS, "+*", "-*")
    assert delta.is_silent()
    delta.ask(CDS, "+a")
    delta.accept(CDS, "a")
    delta.publish({CDS: {"a": "1", "b": "1"}})
    assert delta.is_silent()


def test_wc_7_named_clusters_are_the_only_ones_sent(delta):
    delta.publish({CDS: {"a": "1", "b": "1"}})
    delta.ask(CDS, "+b")
    delta.accept(CDS, "b")
    assert delta.is_silent()


# Acknowledgements.


def test_ack_2_changes_under_way_merge_into_one_response(delta):
    delta.publish({EDS: {"a": "1", "b": "1"}})
    delta.ask(EDS, "+a", "+b")
    response = delta.expect(EDS, "a", "b")
    delta.publish({EDS: {"a": "2", "b": "1"}})
    delta.publish({EDS: {"a": "3"}})
    assert delta.is_silent()
    delta.answer(response)
    delta.accept(EDS, "a")
    delta.accept(EDS, "-b")
    assert delta.is_silent()


@pytest.mark.parametrize("type_url", [CDS, EDS])
def test_ack_4_client_that_rejects_everything_gets_one_response(delta, type_url):
    delta.publish({type_url: {"a": "1"}})
    delta.ask(type_url, "+a")
    delta.answer(delta.expect(type_url, "a"), error="no")
    for _ in range(100):
        assert delta.is_silent()
        delta.now += 1.0


def test_ack_4_client_that_rejects_a_removal_is_left_in_peace(delta):
    delta.publish({CDS: {"a": "1"}})
    delta.ask(CDS)
    delta.accept(CDS, "a")
    delta.publish({})
    delta.answer(delta.expect(CDS, "-a"), error="no")
    assert delta.is_silent()
    delta.publish({CDS: {"a": "1"}})
    delta.expect(CDS, "a")


def test_ack_5_return_to_accepted_content_after_a_rejection_is_sent(delta):
    delta.publish({CDS: {"a": "good"}})
    delta.ask(CDS)
    delta.accept(CDS, "a")
    delta.publish({CDS: {"a": "bad"}})
    delta.answer(delta.expect(CDS, "a"), error="no")
    delta.publish({CDS: {"a": "good"}})
    delta.accept(CDS, "a")
    assert delta.machine.subscriptions[CDS].last_error is None


def test_ack_5_correction_of_one_resource_brings_its_companions_of_the_rejected_response(delta):
    delta.publish({EDS: {"a": "1", "b": "bad", "c": "1"}})
    delta.ask(EDS, "+a", "+b", "+gone")
    delta.answer(delta.expect(EDS, "a", "b", "-gone"), error="b is bad")
    delta.publish({EDS: {"a": "1", "b": "good", "c": "2"}})
    delta.accept(EDS, "a", "b", "-gone")
    assert delta.is_silent()


def test_ack_5_without_the_rejected_resource_its_companions_are_sent(delta):
    delta.publish({EDS: {"a": "1", "b": "bad"}})
    delta.ask(EDS, "+a", "+b")
    delta.answer(delta.expect(EDS, "a", "b"), error="b is bad")
    assert delta.is_silent()
    delta.ask(EDS, "-b")
    delta.accept(EDS, "a")
    assert delta.is_silent()


def test_ack_5_also_when_the_unsubscription_crossed_the_rejected_response(delta):
    delta.publish({EDS: {"a": "1", "b": "bad"}})
    delta.ask(EDS, "+a", "+b")
    response = delta.expect(EDS, "a", "b")
    delta.ask(EDS, "-b")
    delta.answer(response, error="b is bad")
    delta.accept(EDS, "a")
    assert delta.is_silent()


def test_ack_5_removals_of_a_rejected_response_are_said_again_after_a_subscription_that_crossed_it(delta):
    delta.publish({LDS: {"a": "bad"}})
    delta.ask(LDS, initial={"a": "1", "b": "1"})
    response = delta.expect(LDS, "a", "-b")
    delta.ask(LDS, "+a")
    delta.answer(response, error="a is bad")
    delta.expect(LDS, "a", "-b")


def test_ack_5_also_when_the_rejected_resource_is_gone_by_then(delta):
    delta.publish({LDS: {"a": "bad"}})
    delta.ask(LDS, initial={"a": "1", "b": "1"})
    response = delta.expect(LDS, "a", "-b")
    delta.publish({})
    delta.ask(LDS, "+a")
    delta.answer(response, error="a is bad")
    delta.expect(LDS, "-a", "-b")


def test_ack_5_what_came_and_went_while_a_rejected_removal_waited_is_said_to_be_gone(make_delta):
    delta = make_delta(settings={"max_response_bytes": 180})
    delta.publish({LDS: {"a": "bad"}})
    delta.ask(LDS, "+c", "+*")
    delta.answer(delta.expect(LDS, "a", "-c"), error="a is bad")
    delta.publish({LDS: {"a": "1", "b": "1", "c": "1"}})
    full = delta.expect(LDS, "a", "b")  # c is to follow
    delta.publish({})
    delta.answer(full)
    delta.accept(LDS, "-a", "-b")
    delta.accept(LDS, "-c")
    assert delta.is_silent()


def test_ack_9_after_the_timeout_the_next_response_goes_out_anyway(delta):
    delta.publish({CDS: {"a": "1"}})
    delta.ask(CDS)
    first = delta.expect(CDS, "a")
    delta.publish({CDS: {"a": "2"}})
    assert 60.0 == delta.machine.deadline(delta.now)
    delta.now = 60.0
    delta.expect(CDS, "a")
    delta.answer(first)
    assert 1 == delta.machine.subscriptions[CDS].stale_nonces


# Reconnects.


def test_rec_3_wildcard_types_bring_what_changed_and_what_is_gone(delta):
    delta.publish({CDS: {"same": "1", "changed": "2", "new": "1"}})
    delta.ask(CDS, initial={"same": "1", "changed": "1", "gone": "1"})
    delta.accept(CDS, "changed", "new", "-gone")
    assert delta.is_silent()


@pytest.mark.parametrize("type_url", [EDS, RDS, SDS])
def test_rec_3_what_clients_may_be_warming_is_sent_again(make_delta, type_url):
    same = TypeState.of([Resource("same", "1", b"\x12\x00")])
    delta = make_delta(secrets=same)
    delta.publish({EDS: {"same": "1"}, RDS: {"same": "1"}})
    delta.ask(type_url, "+same", "+gone", initial={"same": "1", "gone": "1"})
    delta.accept(type_url, "same", "-gone")
    assert delta.is_silent()


def test_rec_3_named_clusters_follow_their_versions(delta):
    delta.publish({CDS: {"same": "1", "changed": "2"}})
    delta.ask(CDS, "+same", "+changed", "+gone", initial={"same": "1", "changed": "1", "gone": "1"})
    delta.accept(CDS, "changed", "-gone")


def test_rec_4_what_the_client_has_is_not_a_subscription(delta):
    delta.publish({EDS: {"a": "1", "b": "2"}, CDS: {"a": "1", "b": "2"}})
    for type_url in (CDS, EDS):
        delta.ask(type_url, "+a", initial={"b": "1", "gone": "1"})
        delta.accept(type_url, "a")
    delta.publish({})
    delta.accept(CDS, "-a")
    delta.accept(EDS, "-a")
    assert delta.is_silent()


# Limits, errors, secrets.


@pytest.mark.parametrize("type_url", [CDS, EDS])
def test_lim_1_responses_are_split_and_the_next_part_follows_the_ack(make_delta, type_url):
    delta = make_delta(settings={"max_response_bytes": 180})  # two entries
    delta.publish({type_url: dict.fromkeys("abcde", "1")})
    delta.ask(type_url, *(f"+{name}" for name in "abcdexyz"))
    delta.answer(delta.expect(type_url, "a", "b"))
    second = delta.expect(type_url, "c", "d")
    assert delta.is_silent()
    delta.answer(second, error="one of them is bad")
    third = delta.accept(type_url, "e", "-x")
    assert ["x"] == [error.name for error in third.errors]
    delta.accept(type_url, "-y")
    delta.accept(type_url, "-z")
    assert delta.is_silent()


def test_lim_1_what_goes_away_before_its_part_was_sent_is_said_to_be_gone(make_delta):
    delta = make_delta(settings={"max_response_bytes": 180})
    delta.publish({EDS: dict.fromkeys("abc", "1")})
    delta.ask(EDS, "+a", "+b", "+c")
    response = delta.expect(EDS, "a", "b")
    delta.publish({EDS: dict.fromkeys("ab", "1")})
    delta.answer(response)
    delta.accept(EDS, "-c")


def test_lim_1_many_missing_names_are_said_in_several_responses(delta, monkeypatch):
    monkeypatch.setattr("xds_server.machine.MAX_ERROR_BYTES", 110)
    delta.ask(EDS, *(f"+gone-{number}" for number in range(5)))
    said = [delta.accept(EDS, "-gone-0", "-gone-1"), delta.accept(EDS, "-gone-2", "-gone-3")]
    said.append(delta.accept(EDS, "-gone-4"))
    assert [2, 2, 1] == [len(response.errors) for response in said]
    assert delta.is_silent()


def test_err_3_errors_can_be_switched_off_and_removals_stay(make_delta):
    delta = make_delta(settings={"resource_errors": False})
    delta.ask(EDS, "+a")
    assert () == delta.accept(EDS, "-a").errors


def test_denied_types_say_why_and_never_hold_anything(make_delta):
    delta = make_delta(denied={SDS: "no identity"})
    delta.publish({SDS: {"default": "1"}})
    delta.ask(SDS, "+default")
    response = delta.expect(SDS, "-default")
    assert [(7, "Secret 'default': no identity")] == [(error.code, error.message) for error in response.errors]


def test_secrets_are_those_of_the_identity_and_follow_its_rotation(make_delta):
    delta = make_delta(secrets=TypeState.of([Resource("default", "mine", b"\x12\x00")]))
    delta.ask(SDS, "+default")
    delta.accept(SDS, "default")
    delta.machine.publish_secrets(TypeState.of([Resource("default", "mine, later", b"\x12\x00")]))
    delta.accept(SDS, "default")


def test_str_4_unknown_type_is_silent_and_the_others_go_on(delta):
    delta.publish({CDS: {"a": "1"}})
    delta.ask(UNKNOWN, "+x")
    assert delta.is_silent()
    delta.ask(CDS)
    delta.expect(CDS, "a")


@pytest.mark.parametrize("make", ["make_peer", "make_delta"])
def test_str_1_on_a_stream_for_one_type_the_type_may_be_left_out(request, make):
    peer = request.getfixturevalue(make)(service_type=CDS)
    peer.publish({CDS: {"a": "1"}})
    peer.ask("")
    peer.accept(CDS, "a")
    peer.publish({CDS: {"a": "2"}})
    peer.accept(CDS, "a")


@pytest.mark.parametrize("make", ["make_peer", "make_delta"])
def test_str_3_another_type_ends_a_stream_for_one_type(request, make):
    peer = request.getfixturevalue(make)(service_type=CDS)
    with pytest.raises(StreamRefused, match=r"for type.*Cluster, not .*ClusterLoadAssignment") as refused:
        peer.ask(EDS)
    assert "INVALID_ARGUMENT" == refused.value.code


def test_stream_that_asks_for_too_much_ends(delta, monkeypatch):
    monkeypatch.setattr("xds_server.requests.MAX_NAMES", 2)
    delta.ask(EDS, "+a", "+b")
    delta.ask(EDS, "+a", "+b")  # the same ones
    with pytest.raises(StreamRefused, match="at most 2 names"):
        delta.ask(EDS, "+c")
