"""Make before break for clients that ask late: what they were told of is there until they have been told otherwise.

A gRPC client acknowledges routes first and asks for the cluster that they name after that. When the cluster leaves the
state in between, an answer that it does not exist fails calls until the next routes are there.
"""

from collections.abc import Callable
from typing import Any

import pytest

from xds_server.delta import DeltaStream
from xds_server.ordering import CDS, ECDS, EDS, LDS, RDS, SDS
from xds_server.snapshot import Resource, TypeState

C1_AND_C2 = {"c1": ((EDS, "c1"),), "c2": ((EDS, "c2"),)}
TO_C1 = {"l": ((RDS, "r"),), "r": ((CDS, "c1"),), **C1_AND_C2}
TO_C2 = {"l": ((RDS, "r"),), "r": ((CDS, "c2"),), **C1_AND_C2}


def on(*clusters: str, routes: str = "1") -> dict[str, dict[str, str]]:
    one_each = dict.fromkeys(clusters, "1")
    return {LDS: {"l": "1"}, RDS: {"r": routes}, CDS: one_each, EDS: one_each}


@pytest.fixture(params=["sotw", "delta"])
def client(request, make_peer, make_delta) -> Any:
    """A client that names what it wants, on either variant."""
    return make_peer() if request.param == "sotw" else make_delta()


@pytest.fixture
def ask(client) -> Callable[..., None]:
    """Ask for more names of a type, as the variant says it."""

    def add(type_url: str, *names: str) -> None:
        if is_delta(client):
            client.ask(type_url, *(f"+{name}" for name in names))
            return
        subscription = client.machine.subscriptions.get(type_url)
        held = subscription.names if subscription is not None else ()
        client.ask(type_url, *sorted({*held, *names}))

    return add


@pytest.fixture
def at_routes(client, ask) -> Any:
    """A client that has accepted a listener and its routes to c1, and asked for nothing more."""
    client.publish(on("c1"), **TO_C1)
    ask(LDS, "l")
    client.accept(LDS, "l")
    ask(RDS, "r")
    client.accept(RDS, "r")
    assert client.is_silent()
    return client


def is_delta(client: Any) -> bool:
    return isinstance(client.machine, DeltaStream)


def news(client: Any, name: str, *others: str) -> tuple[str, ...]:
    """What a response about clusters tells when there is one more."""
    return (name,) if is_delta(client) else tuple(sorted((name, *others)))


def removal(client: Any, name: str, *others: str) -> tuple[str, ...]:
    """What a response about clusters tells when one is gone."""
    return (f"-{name}",) if is_delta(client) else others


def test_a_cluster_that_known_routes_name_is_given_to_who_asks_after_it_left(at_routes, ask):
    at_routes.publish(on("c2", routes="2"), **TO_C2)
    routes = at_routes.expect(RDS, "r")
    ask(CDS, "c1")  # it crosses the routes
    assert not at_routes.expect(CDS, "c1").errors
    ask(EDS, "c1")
    assert not at_routes.expect(EDS, "c1").errors
    at_routes.answer(routes)
    assert at_routes.is_silent()


def test_it_leaves_when_the_client_has_what_its_new_routes_name(at_routes, ask):
    at_routes.publish(on("c2", routes="2"), **TO_C2)
    ask(CDS, "c1")
    at_routes.accept(CDS, "c1")
    at_routes.accept(RDS, "r")
    ask(CDS, "c2")
    at_routes.accept(CDS, *news(at_routes, "c2", "c1"))
    assert at_routes.is_silent()  # no endpoints of c2 yet
    ask(EDS, "c2")
    at_routes.accept(EDS, "c2")
    at_routes.accept(CDS, *removal(at_routes, "c1", "c2"))
    assert at_routes.is_silent()


def test_who_asks_after_it_has_new_routes_hears_that_the_cluster_is_gone(at_routes, ask):
    at_routes.publish(on("c2", routes="2"), **TO_C2)
    at_routes.accept(RDS, "r")
    ask(CDS, "c2")
    at_routes.accept(CDS, "c2")
    ask(EDS, "c2")
    at_routes.accept(EDS, "c2")
    ask(CDS, "c1")
    told = at_routes.expect(CDS, *removal(at_routes, "c1", "c2"))
    assert ["c1"] == [error.name for error in told.errors]


def test_nothing_is_held_longer_than_the_delay(at_routes, ask):
    at_routes.publish(on("c2", routes="2"), **TO_C2)
    at_routes.expect(RDS, "r")  # never answered
    assert at_routes.is_silent()
    at_routes.now = 5.0
    assert at_routes.is_silent()
    ask(CDS, "c1")
    told = at_routes.expect(CDS, *removal(at_routes, "c1"))
    assert ["c1"] == [error.name for error in told.errors]


def test_routes_that_are_on_their_way_do_not_make_the_ones_in_use_forgotten(at_routes, ask):
    """The cluster leaves one publish later than the routes to it, which the client has not acknowledged yet."""
    at_routes.publish(on("c1", "c2", routes="2"), **TO_C2)
    at_routes.expect(RDS, "r")
    at_routes.publish(on("c2", routes="2"), **TO_C2)
    ask(CDS, "c1")
    assert not at_routes.expect(CDS, "c1").errors


def test_routes_that_were_not_sent_yet_do_not_make_the_ones_in_use_forgotten(client, ask):
    client.publish(on("c1"), **TO_C1)
    ask(RDS, "r")
    client.expect(RDS, "r")  # in flight, so the next routes wait
    client.publish(on("c1", "c2", routes="2"), **TO_C2)
    client.publish(on("c2", routes="2"), **TO_C2)
    ask(CDS, "c1")
    assert not client.expect(CDS, "c1").errors


def test_endpoints_leave_later_than_the_retained_cluster_that_names_them(at_routes, ask):
    at_routes.publish({**on("c2", routes="2"), EDS: {"c1": "1", "c2": "1"}}, **TO_C2)
    ask(CDS, "c1")
    at_routes.accept(CDS, "c1")
    at_routes.publish(on("c2", routes="2"), **TO_C2)
    ask(EDS, "c1")
    assert not at_routes.expect(EDS, "c1").errors


def test_routes_that_a_known_listener_names_are_given_to_who_asks_after_they_left(client, ask):
    moved = {LDS: {"l": "2"}, RDS: {"r2": "1"}, CDS: {"c2": "1"}, EDS: {"c2": "1"}}
    client.publish(on("c1"), **TO_C1)
    ask(LDS, "l")
    client.expect(LDS, "l")
    client.publish(moved, l=((RDS, "r2"),), r2=((CDS, "c2"),), **C1_AND_C2)
    ask(RDS, "r")
    assert not client.expect(RDS, "r").errors
    ask(CDS, "c1")
    assert not client.expect(CDS, "c1").errors


def test_endpoints_that_a_known_cluster_names_are_given_to_who_asks_after_they_left(client, ask):
    """The cluster stays, and takes its endpoints from elsewhere."""
    client.publish({CDS: {"c": "1"}, EDS: {"c1": "1"}}, c=((EDS, "c1"),))
    ask(CDS, "c")
    first = client.expect(CDS, "c")
    client.publish({CDS: {"c": "2"}, EDS: {"c2": "1"}}, c=((EDS, "c2"),))
    ask(EDS, "c1")
    assert not client.accept(EDS, "c1").errors
    client.answer(first)
    client.accept(CDS, "c")
    assert client.is_silent()  # c1 stays until the client has the others
    ask(EDS, "c2")
    client.accept(EDS, "c2")
    if is_delta(client):
        client.accept(EDS, "-c1")
    assert client.is_silent()


def test_a_filter_that_a_known_listener_names_is_given_to_who_asks_after_it_left(client, ask):
    client.publish({LDS: {"l": "1"}, ECDS: {"f": "1"}}, l=((ECDS, "f"),))
    ask(LDS, "l")
    client.expect(LDS, "l")
    client.publish({LDS: {"l": "2"}})
    ask(ECDS, "f")
    assert not client.expect(ECDS, "f").errors


@pytest.mark.parametrize("variant", ["sotw", "delta"])
def test_secrets_stay_when_the_cluster_that_names_them_leaves(variant, make_peer, make_delta):
    """They belong to the identity of the client, not to the state."""
    secrets = TypeState.of([Resource("default", "1", b"\x12\x00")])
    client = (make_peer if variant == "sotw" else make_delta)(secrets=secrets)
    sign = "" if variant == "sotw" else "+"
    client.publish({CDS: {"c": "1"}}, c=((SDS, "default"),))
    client.ask(CDS, f"{sign}c")
    client.expect(CDS, "c")
    client.publish({CDS: {}})
    client.ask(SDS, f"{sign}default")
    assert not client.expect(SDS, "default").errors


def test_what_rejected_routes_replace_is_held_until_they_are_corrected(at_routes, ask):
    at_routes.publish(on("c2", routes="bad"), **TO_C2)
    at_routes.answer(at_routes.expect(RDS, "r"), error="bad route")
    at_routes.now = 100.0
    assert at_routes.is_silent()
    ask(CDS, "c1")
    assert not at_routes.accept(CDS, "c1").errors
    at_routes.publish(on("c2", routes="good"), **TO_C2)
    at_routes.accept(RDS, "r")
    ask(CDS, "c2")
    at_routes.accept(CDS, *news(at_routes, "c2", "c1"))
    ask(EDS, "c2")
    at_routes.accept(EDS, "c2")
    at_routes.accept(CDS, *removal(at_routes, "c1", "c2"))
    assert at_routes.is_silent()


def test_a_rejected_listener_does_not_hold_what_it_does_not_name(make_delta):
    """A client that cannot use one listener, ever, does not collect all clusters that there have been."""
    peer = make_delta()
    references = {"l": ((RDS, "r"),), "r": ((CDS, "c1"),), "other": ((CDS, "c2"),), **C1_AND_C2}
    both = {**on("c1", "c2"), LDS: {"l": "1", "other": "bad"}}
    peer.publish(both, **references)
    peer.ask(LDS)
    peer.answer(peer.expect(LDS, "l", "other"), error="other: unknown filter")
    peer.ask(CDS)
    peer.accept(CDS, "c1", "c2")
    peer.publish({**both, CDS: {"c3": "1"}}, **references)
    peer.accept(CDS, "c3")
    peer.now = 5.0
    peer.accept(CDS, "-c1")  # only routes named it, which the client never asked for
    peer.now = 500.0
    assert peer.is_silent()


def test_what_rejections_in_a_row_name_is_forgotten_when_it_is_gone(at_routes):
    for number in range(50):
        cluster = f"c{number}"
        content = on(cluster, routes=f"bad{number}")
        at_routes.publish(content, l=((RDS, "r"),), r=((CDS, cluster),))
        at_routes.answer(at_routes.expect(RDS, "r"), error="bad route")
        at_routes.now += 10.0
        assert at_routes.is_silent()
    routes = at_routes.machine.subscriptions[RDS]
    assert {(CDS, "c1"), (CDS, "c49")} == set(routes.references())
    assert ["c1"] == sorted(at_routes.machine._retained.of(CDS))
