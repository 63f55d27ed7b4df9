"""Order across types on one stream (ORD rules): clusters before routes, and make before break."""

import pytest

from xds_server.ordering import CDS, EDS, LDS, PUSH_ORDER, RDS, SDS, in_push_order

# c1 and c2 have endpoints of their own name; route r goes to what the state says; listener l names r.
C1 = {"c1": ((EDS, "c1"),)}
BOTH = {"c1": ((EDS, "c1"),), "c2": ((EDS, "c2"),)}


def on_c1(version: str = "1") -> dict[str, dict[str, str]]:
    return {LDS: {"l": "1"}, RDS: {"r": version}, CDS: {"c1": "1"}, EDS: {"c1": "1"}}


def on_c2(version: str = "2") -> dict[str, dict[str, str]]:
    return {LDS: {"l": "1"}, RDS: {"r": version}, CDS: {"c2": "1"}, EDS: {"c2": "1"}}


TO_C1 = {"l": ((RDS, "r"),), "r": ((CDS, "c1"),), **BOTH}
TO_C2 = {"l": ((RDS, "r"),), "r": ((CDS, "c2"),), **BOTH}


@pytest.fixture
def envoy(make_peer):
    """A stream as Envoy has it: everything of CDS and LDS, endpoints and routes by name; all acknowledged."""
    peer = make_peer()
    peer.publish(on_c1(), **TO_C1)
    peer.ask(CDS)
    peer.accept(CDS, "c1")
    peer.ask(EDS, "c1")
    peer.accept(EDS, "c1")
    peer.ask(LDS)
    peer.accept(LDS, "l")
    peer.ask(RDS, "r")
    peer.accept(RDS, "r")
    assert peer.is_silent()
    return peer


def test_ord_1_types_are_in_the_protocols_order():
    assert [CDS, EDS, LDS, RDS, SDS, "x.Other"] == in_push_order(["x.Other", SDS, RDS, LDS, EDS, CDS])
    assert PUSH_ORDER[0] == CDS


def test_ord_1_one_publish_goes_out_clusters_endpoints_listeners_routes(envoy):
    changed = {LDS: {"l": "2"}, RDS: {"r": "2"}, CDS: {"c1": "2"}, EDS: {"c1": "2"}}
    envoy.publish(changed, **TO_C1)
    for type_url, name in ((CDS, "c1"), (EDS, "c1"), (LDS, "l"), (RDS, "r")):
        envoy.accept(type_url, name)
    assert envoy.is_silent()


def test_ord_2_clusters_first_come_then_routes_move_then_clusters_leave(envoy):
    envoy.publish(on_c2(), **TO_C2)
    union = envoy.expect(CDS, "c1", "c2")
    envoy.answer(union)
    envoy.ask(EDS, "c1", "c2", nonce=envoy.machine.subscriptions[EDS].acked_version)
    envoy.accept(EDS, "c2")
    routes = envoy.expect(RDS, "r")
    assert envoy.is_silent()  # c1 stays while the routes are on their way
    envoy.answer(routes)
    envoy.accept(CDS, "c2")
    assert envoy.is_silent()


def test_ord_2_after_the_delay_clusters_leave_anyway(envoy):
    envoy.publish(on_c2(), **TO_C2)
    envoy.accept(CDS, "c1", "c2")
    envoy.expect(RDS, "r")  # never answered
    assert 5.0 == envoy.machine.deadline(envoy.now)
    envoy.now = 5.0
    envoy.expect(CDS, "c2")


def test_ord_2_rejected_routes_keep_the_old_cluster_until_they_are_corrected(envoy):
    envoy.publish(on_c2("bad"), **TO_C2)
    envoy.accept(CDS, "c1", "c2")
    envoy.ask(EDS, "c2")
    envoy.accept(EDS, "c2")
    envoy.answer(envoy.expect(RDS, "r"), error="bad route")
    envoy.now = 100.0
    assert envoy.is_silent()
    envoy.publish(on_c2("good"), **TO_C2)
    envoy.accept(RDS, "r")
    envoy.accept(CDS, "c2")


def test_ord_2_a_removal_alone_goes_out_at_once(envoy):
    two = on_c1()
    two[CDS]["c2"] = two[EDS]["c2"] = "1"
    envoy.publish(two, **TO_C1)
    envoy.accept(CDS, "c1", "c2")
    envoy.publish(on_c1(), **TO_C1)
    envoy.accept(CDS, "c1")


def test_ord_2_a_cluster_that_returns_is_not_removed(envoy):
    envoy.publish(on_c2(), **TO_C2)
    envoy.accept(CDS, "c1", "c2")
    envoy.publish({**on_c1("3"), CDS: {"c1": "1", "c2": "1"}}, **TO_C1)
    envoy.accept(RDS, "r")
    assert envoy.is_silent()


def test_ord_2_client_by_name_keeps_the_old_cluster_until_it_has_asked_for_the_new_one(make_peer):
    """As grpcio does it: it acknowledges the route first and asks for the route's cluster after that."""
    peer = make_peer()
    peer.publish(on_c1(), **TO_C1)
    for type_url, name in ((LDS, "l"), (RDS, "r"), (CDS, "c1"), (EDS, "c1")):
        peer.ask(type_url, name)
        peer.accept(type_url, name)
    peer.publish(on_c2(), **TO_C2)
    peer.accept(RDS, "r")
    assert peer.is_silent()  # not yet: the client knows no c2
    peer.ask(CDS, "c1", "c2")
    peer.accept(CDS, "c1", "c2")
    assert peer.is_silent()  # not yet: it has no endpoints of c2
    peer.ask(EDS, "c1", "c2")
    peer.accept(EDS, "c2")
    peer.accept(CDS, "c2")


def test_ord_3_endpoints_do_not_wait_for_the_ack_of_clusters(envoy):
    envoy.publish({**on_c1(), CDS: {"c1": "2"}, EDS: {"c1": "2"}}, **TO_C1)
    envoy.expect(CDS, "c1")
    envoy.expect(EDS, "c1")


def test_ord_3_routes_do_not_wait_for_the_ack_of_a_listener(envoy):
    envoy.publish({**on_c1("2"), LDS: {"l": "2"}}, **TO_C1)
    envoy.expect(LDS, "l")
    envoy.expect(RDS, "r")


def test_changed_routes_wait_for_the_ack_of_changed_clusters_but_not_for_ever(envoy):
    envoy.publish({**on_c1("2"), CDS: {"c1": "2"}}, **TO_C1)
    envoy.expect(CDS, "c1")
    envoy.expect(EDS, "c1")
    assert envoy.is_silent()
    assert 5.0 == envoy.machine.deadline(envoy.now)
    envoy.now = 5.0
    envoy.expect(RDS, "r")


def test_ord_4_endpoints_of_a_changed_cluster_are_sent_though_unchanged(envoy):
    envoy.publish({**on_c1(), CDS: {"c1": "2", "c3": "1"}}, **TO_C1)
    envoy.expect(CDS, "c1", "c3")
    envoy.expect(EDS, "c1")


def test_ord_4_secrets_of_a_changed_cluster_are_sent_though_unchanged(make_peer):
    from xds_server.snapshot import Resource, TypeState

    secrets = TypeState.of([Resource("default", "1", b"\x12\x00")])
    peer = make_peer(secrets=secrets)
    names = {"c1": ((SDS, "default"),)}
    peer.publish({CDS: {"c1": "1"}}, **names)
    peer.ask(CDS)
    peer.accept(CDS, "c1")
    peer.ask(SDS, "default")
    peer.accept(SDS, "default")
    peer.publish({CDS: {"c1": "2"}}, **names)
    peer.accept(CDS, "c1")
    peer.expect(SDS, "default")


def test_ord_4_routes_of_a_changed_listener_are_sent_though_unchanged(envoy):
    envoy.publish({**on_c1(), LDS: {"l": "2"}}, **TO_C1)
    envoy.expect(LDS, "l")
    envoy.expect(RDS, "r")


def test_ord_5_an_empty_assignment_is_a_resource_like_another(peer):
    peer.publish({EDS: {"c1": "empty"}})
    peer.ask(EDS, "c1")
    peer.expect(EDS, "c1")


def test_ord_6_an_answer_never_waits_for_what_was_not_named(peer):
    peer.publish({EDS: {"a": "1", "b": "1"}})
    peer.ask(EDS, "a")
    peer.expect(EDS, "a")


def test_ord_8_routes_of_a_publish_never_overtake_its_clusters(envoy):
    """Clusters of the first publish are unanswered when the second one changes clusters and routes."""
    envoy.publish({**on_c1(), CDS: {"c1": "2"}}, **TO_C1)
    first = envoy.expect(CDS, "c1")
    envoy.expect(EDS, "c1")
    envoy.publish({**on_c1("3"), CDS: {"c1": "3"}}, **TO_C1)
    envoy.now = 6.0  # longer than routes wait for an acknowledgement
    assert envoy.is_silent()
    envoy.answer(first)
    envoy.accept(CDS, "c1")
    envoy.expect(RDS, "r")


def test_str_6_a_new_request_for_routes_is_answered_while_clusters_are_warming(peer):
    peer.publish(on_c1(), **TO_C1)
    peer.ask(CDS)
    peer.expect(CDS, "c1")  # warming, so not acknowledged
    peer.ask(LDS)
    peer.accept(LDS, "l")
    peer.ask(RDS, "r")
    peer.expect(RDS, "r")
