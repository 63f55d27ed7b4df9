"""Order across types on one incremental stream (ORD rules): what is added first, what is gone last."""

import pytest

from xds_server.ordering import CDS, EDS, LDS, RDS, SDS
from xds_server.snapshot import Resource, TypeState

BOTH = {"c1": ((EDS, "c1"),), "c2": ((EDS, "c2"),)}
TO_C1 = {"l": ((RDS, "r"),), "r": ((CDS, "c1"),), **BOTH}
TO_C2 = {"l": ((RDS, "r"),), "r": ((CDS, "c2"),), **BOTH}


def on(cluster: str, version: str = "1") -> dict[str, dict[str, str]]:
    return {LDS: {"l": "1"}, RDS: {"r": version}, CDS: {cluster: "1"}, EDS: {cluster: "1"}}


@pytest.fixture
def envoy(make_delta):
    """A stream as Envoy has it: everything of CDS and LDS, endpoints and routes by name; all acknowledged."""
    peer = make_delta()
    peer.publish(on("c1"), **TO_C1)
    peer.ask(CDS)
    peer.accept(CDS, "c1")
    peer.ask(EDS, "+c1")
    peer.accept(EDS, "c1")
    peer.ask(LDS)
    peer.accept(LDS, "l")
    peer.ask(RDS, "+r")
    peer.accept(RDS, "r")
    assert peer.is_silent()
    return peer


def test_ord_1_one_publish_goes_out_clusters_endpoints_listeners_routes(envoy):
    envoy.publish({LDS: {"l": "2"}, RDS: {"r": "2"}, CDS: {"c1": "2"}, EDS: {"c1": "2"}}, **TO_C1)
    for type_url, name in ((CDS, "c1"), (EDS, "c1"), (LDS, "l"), (RDS, "r")):
        envoy.accept(type_url, name)
    assert envoy.is_silent()


def test_ord_2_clusters_first_come_then_routes_move_then_clusters_and_their_endpoints_leave(envoy):
    envoy.publish(on("c2", "2"), **TO_C2)
    envoy.accept(CDS, "c2")
    envoy.ask(EDS, "+c2")
    envoy.accept(EDS, "c2")
    routes = envoy.expect(RDS, "r")
    assert envoy.is_silent()  # c1 stays while the routes are on their way
    envoy.answer(routes)
    envoy.accept(CDS, "-c1")
    envoy.accept(EDS, "-c1")
    assert envoy.is_silent()


def test_ord_2_endpoints_that_the_client_gives_up_itself_are_not_removed_again(envoy):
    """As Envoy does it once the cluster is gone."""
    envoy.publish(on("c2", "2"), **TO_C2)
    envoy.accept(CDS, "c2")
    envoy.ask(EDS, "+c2")
    envoy.accept(EDS, "c2")
    envoy.accept(RDS, "r")
    envoy.accept(CDS, "-c1")
    envoy.ask(EDS, "-c1")
    assert envoy.is_silent()


def test_ord_2_routes_leave_after_the_listener_has_moved_to_others(envoy):
    moved = {LDS: {"l": "2"}, RDS: {"r2": "1"}, CDS: {"c1": "1"}, EDS: {"c1": "1"}}
    envoy.publish(moved, l=((RDS, "r2"),), r2=((CDS, "c1"),), **BOTH)
    envoy.accept(LDS, "l")
    assert envoy.is_silent()  # the client still serves with r
    envoy.ask(RDS, "+r2")
    envoy.accept(RDS, "r2")
    envoy.accept(RDS, "-r")
    assert envoy.is_silent()


def test_ord_2_after_the_delay_clusters_leave_anyway(envoy):
    envoy.publish(on("c2", "2"), **TO_C2)
    envoy.accept(CDS, "c2")
    envoy.expect(RDS, "r")  # never answered
    assert envoy.is_silent()
    assert 5.0 == envoy.machine.deadline(envoy.now)
    envoy.now = 5.0
    envoy.accept(CDS, "-c1")


def test_ord_2_rejected_routes_keep_the_old_cluster_until_they_are_corrected(envoy):
    envoy.publish(on("c2", "bad"), **TO_C2)
    envoy.accept(CDS, "c2")
    envoy.ask(EDS, "+c2")
    envoy.accept(EDS, "c2")
    envoy.answer(envoy.expect(RDS, "r"), error="bad route")
    envoy.now = 100.0
    assert envoy.is_silent()
    envoy.publish(on("c2", "good"), **TO_C2)
    envoy.accept(RDS, "r")
    envoy.accept(CDS, "-c1")


def test_ord_2_rejected_routes_that_leave_do_not_hold_anything_up(envoy):
    envoy.publish(on("c1", "bad"), **TO_C1)
    envoy.answer(envoy.expect(RDS, "r"), error="bad route")
    envoy.publish({})
    envoy.accept(LDS, "-l")
    for type_url, name in ((CDS, "-c1"), (EDS, "-c1"), (RDS, "-r")):
        envoy.accept(type_url, name)
    assert envoy.is_silent()


def test_ord_2_a_cluster_that_returns_is_not_removed(envoy):
    envoy.publish(on("c2", "2"), **TO_C2)
    envoy.accept(CDS, "c2")
    envoy.publish({**on("c1", "3"), CDS: {"c1": "1", "c2": "1"}}, **TO_C1)
    envoy.accept(RDS, "r")
    assert envoy.is_silent()


def test_ord_2_a_client_that_asks_for_a_leaving_cluster_has_it_until_its_routes_have_moved(make_delta):
    peer = make_delta()
    peer.publish(on("c1"), **TO_C1)
    for type_url, name in ((LDS, "l"), (RDS, "r"), (CDS, "c1"), (EDS, "c1")):
        peer.ask(type_url, f"+{name}")
        peer.accept(type_url, name)
    peer.publish(on("c2", "2"), **TO_C2)
    routes = peer.expect(RDS, "r")
    assert peer.is_silent()
    peer.ask(CDS, "+c1")
    peer.accept(CDS, "c1")
    peer.accept(EDS, "c1")
    peer.answer(routes)
    for type_url in (CDS, EDS):
        peer.ask(type_url, "+c2")
        peer.accept(type_url, "c2")
    peer.accept(CDS, "-c1")
    peer.accept(EDS, "-c1")


def test_ord_3_endpoints_do_not_wait_for_the_ack_of_clusters(envoy):
    envoy.publish({**on("c1"), CDS: {"c1": "2"}, EDS: {"c1": "2"}}, **TO_C1)
    envoy.expect(CDS, "c1")
    envoy.expect(EDS, "c1")


def test_changed_routes_wait_for_the_ack_of_changed_clusters_but_not_for_ever(envoy):
    envoy.publish({**on("c1", "2"), CDS: {"c1": "2"}}, **TO_C1)
    envoy.expect(CDS, "c1")
    envoy.expect(EDS, "c1")
    assert envoy.is_silent()
    assert 5.0 == envoy.machine.deadline(envoy.now)
    envoy.now = 5.0
    envoy.expect(RDS, "r")


def test_ord_4_only_the_endpoints_of_the_changed_cluster_are_sent_though_unchanged(make_delta):
    peer = make_delta()
    two = {CDS: {"c1": "1", "c2": "1"}, EDS: {"c1": "1", "c2": "1"}}
    peer.publish(two, **BOTH)
    peer.ask(CDS)
    peer.accept(CDS, "c1", "c2")
    peer.ask(EDS, "+c1", "+c2")
    peer.accept(EDS, "c1", "c2")
    peer.publish({**two, CDS: {"c1": "2", "c2": "1"}}, **BOTH)
    peer.expect(CDS, "c1")  # not acknowledged: it is warming
    peer.accept(EDS, "c1")
    assert peer.is_silent()


def test_ord_4_secrets_of_a_changed_cluster_are_sent_though_unchanged_or_said_to_be_missing(make_delta):
    peer = make_delta(secrets=TypeState.of([Resource("default", "1", b"\x12\x00")]))
    names = {"c1": ((SDS, "default"), (SDS, "missing"))}
    peer.publish({CDS: {"c1": "1"}}, **names)
    peer.ask(CDS)
    peer.accept(CDS, "c1")
    peer.ask(SDS, "+default", "+missing")
    peer.accept(SDS, "default", "-missing")
    peer.publish({CDS: {"c1": "2"}}, **names)
    peer.accept(CDS, "c1")
    peer.accept(SDS, "default", "-missing")
    assert peer.is_silent()


def test_ord_4_routes_of_a_changed_listener_are_sent_though_unchanged(envoy):
    envoy.publish({**on("c1"), LDS: {"l": "2"}}, **TO_C1)
    envoy.expect(LDS, "l")
    envoy.expect(RDS, "r")


def test_ord_5_an_empty_assignment_is_a_resource_like_another(delta):
    delta.publish({EDS: {"c1": "empty"}})
    delta.ask(EDS, "+c1")
    delta.expect(EDS, "c1")


def test_ord_6_an_answer_never_waits_for_what_was_not_named(delta):
    delta.publish({EDS: {"a": "1", "b": "1"}})
    delta.ask(EDS, "+a")
    delta.expect(EDS, "a")


def test_ord_8_routes_of_a_publish_never_overtake_its_clusters(envoy):
    envoy.publish({**on("c1"), CDS: {"c1": "2"}}, **TO_C1)
    first = envoy.expect(CDS, "c1")
    envoy.expect(EDS, "c1")
    envoy.publish({**on("c1", "3"), CDS: {"c1": "3"}}, **TO_C1)
    envoy.now = 6.0  # longer than routes wait for an acknowledgement
    assert envoy.is_silent()
    envoy.answer(first)
    envoy.accept(CDS, "c1")
    envoy.expect(RDS, "r")


def test_str_6_a_warming_client_gets_what_it_asks_for(delta):
    delta.publish(on("c1"), **TO_C1)
    delta.ask(CDS)
    delta.expect(CDS, "c1")  # warming, so not acknowledged
    delta.ask(LDS)
    delta.accept(LDS, "l")
    delta.ask(RDS, "+r")
    delta.expect(RDS, "r")
