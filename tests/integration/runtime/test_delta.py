"""A mesh over the incremental variant: against a server that says what it is told to, and where there is none."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from peers.endpoints import ports

from meshlib import Mesh
from meshlib.errors import RoutingError
from meshlib.events import ControlPlaneLost, Event
from meshlib.xds.resources import CDS, EDS, LDS, RDS
from meshlib.xds.stream_machine import DOES_NOT_EXIST_S


def eventually(look: Callable[[], bool], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def connect(server: Any) -> Mesh:
    bootstrap = {
        "xds_servers": [
            {
                "server_uri": server.address,
                "channel_creds": [{"type": "insecure"}],
                "server_features": ["meshlib.delta"],
            }
        ],
        "node": {"id": "orders-1"},
    }
    return Mesh(bootstrap, state_dir="")


def test_first_use_leads_from_the_listener_to_endpoints(delta_ads: Any) -> None:
    with connect(delta_ads) as mesh:
        assert mesh.wait_target("checkout", 30.0).name == "checkout"
        assert ports(mesh) == [1]
        for type_url in (LDS, RDS, CDS, EDS):
            delta_ads.wait_for(lambda kind=type_url: len(delta_ads.of_type(kind)) == 2)
            first, ack = delta_ads.of_type(type_url)
            assert (list(first.resource_names_subscribe), first.response_nonce) == (["checkout"], "")
            assert (list(ack.resource_names_subscribe), bool(ack.response_nonce)) == ([], True)
    assert delta_ads.requests[0][1].node.id == "orders-1"
    assert [request.HasField("node") for _, request in delta_ads.requests].count(True) == 1


def test_an_update_sends_the_one_resource_that_changed(delta_ads: Any, tools: Any) -> None:
    for name in "ab":
        tools.put_service(delta_ads, name, 7)
    with connect(delta_ads) as mesh:
        mesh.wait_ready("checkout", "a", "b", timeout_s=30)
        count = len(delta_ads.resources_sent(EDS))
        delta_ads.put(EDS, tools.load_assignment("checkout", 2, 3))
        eventually(lambda: ports(mesh) == [2, 3])
        assert delta_ads.resources_sent(EDS)[count:] == ["checkout"]
        assert (ports(mesh, "a"), ports(mesh, "b")) == ([7], [7])


def test_new_routes_are_used_when_their_cluster_is_ready_and_the_old_one_is_given_up(
    delta_ads: Any, tools: Any
) -> None:
    with connect(delta_ads) as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        before = mesh.target("checkout")
        delta_ads.put(CDS, tools.eds_cluster("checkout-v2"))
        delta_ads.put(RDS, tools.route_config("checkout", "checkout-v2"))
        delta_ads.wait_for(lambda: any("checkout-v2" in m.resource_names_subscribe for m in delta_ads.of_type(EDS)))
        assert mesh.target("checkout") is before
        delta_ads.put(EDS, tools.load_assignment("checkout-v2", 9))
        eventually(lambda: ports(mesh, "checkout-v2") == [9])
        delta_ads.wait_for(lambda: any("checkout" in m.resource_names_unsubscribe for m in delta_ads.of_type(EDS)))
        assert ports(mesh) == []


def test_what_does_not_exist_or_is_removed_is_known_at_once(delta_ads: Any) -> None:
    def is_gone() -> bool:
        try:
            return mesh.target("checkout") is None
        except RoutingError as error:
            return "LDS resource checkout: was removed" in str(error)

    with connect(delta_ads) as mesh:
        start = time.monotonic()
        with pytest.raises(RoutingError, match="LDS resource nobody: does not exist"):
            mesh.wait_target("nobody", 30.0)
        assert time.monotonic() - start < DOES_NOT_EXIST_S, "the server said so"
        mesh.wait_ready("checkout", timeout_s=30)
        delta_ads.remove(EDS, "checkout")
        eventually(lambda: ports(mesh) == [])
        assert mesh.target("checkout") is not None
        delta_ads.remove(LDS, "checkout")
        eventually(is_gone)


def test_an_invalid_resource_is_refused_and_the_last_good_one_stays(delta_ads: Any, tools: Any) -> None:
    with connect(delta_ads) as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        delta_ads.put(EDS, checkout=b"\x0a\x08checkout\x12\xff")
        delta_ads.wait_for(lambda: any(request.HasField("error_detail") for request in delta_ads.of_type(EDS)))
        nack = next(request for request in delta_ads.of_type(EDS) if request.HasField("error_detail"))
        assert nack.error_detail.code == 3
        assert nack.response_nonce
        assert ports(mesh) == [1]
        delta_ads.put(EDS, tools.load_assignment("checkout", 4))
        eventually(lambda: ports(mesh) == [4])


def test_a_reconnect_brings_only_what_changed_meanwhile(delta_ads: Any, tools: Any) -> None:
    tools.put_service(delta_ads, "other", 5)
    with connect(delta_ads) as mesh:
        mesh.wait_ready("checkout", "other", timeout_s=30)
        delta_ads.stop()
        delta_ads.put(EDS, tools.load_assignment("checkout", 6))
        delta_ads.remove(EDS, "other")
        delta_ads.start()
        eventually(lambda: ports(mesh) == [6])
        again = delta_ads.of_type(LDS, stream=2)[0]
        assert set(again.resource_names_subscribe) == set(again.initial_resource_versions) == {"checkout", "other"}
        eventually(lambda: ports(mesh, "other") == [])
        assert [delta_ads.resources_sent(kind, stream=2) for kind in (LDS, RDS, CDS, EDS)] == [[], [], [], ["checkout"]]


def test_a_reconnect_with_nothing_new_is_a_connection_though_the_server_says_nothing(delta_ads: Any) -> None:
    events: list[Event] = []
    with connect(delta_ads) as mesh:
        mesh.add_hook(events.append)
        mesh.wait_ready("checkout", timeout_s=30)
        eventually(lambda: mesh.status().connection == "connected")
        delta_ads.stop()
        eventually(lambda: mesh.status().connection != "connected")
        delta_ads.start()
        eventually(lambda: mesh.status().connection == "connected")
        assert [number for number, _ in delta_ads.responses if number > 1] == []
        assert ports(mesh) == [1]
    assert any(isinstance(event, ControlPlaneLost) for event in events)


@pytest.mark.parametrize("responses", [1, 2, 3])
def test_streams_cut_after_any_response_lead_to_the_whole_in_the_end(delta_ads: Any, responses: int) -> None:
    delta_ads.cut_after_responses(responses)
    with connect(delta_ads) as mesh:
        mesh.wait_ready("checkout", timeout_s=30.0)
        assert ports(mesh) == [1]


def test_a_server_without_the_incremental_variant_is_spoken_to_in_the_other_at_once(ads: Any, tools: Any) -> None:
    events: list[Event] = []
    with connect(ads) as mesh:
        mesh.add_hook(events.append)
        mesh.wait_ready("checkout", timeout_s=30)
        assert mesh.status().connection == "connected"
        assert not [event for event in events if isinstance(event, ControlPlaneLost)], "no time was lost with backoff"
        ads.put(EDS, tools.load_assignment("checkout", 2))
        eventually(lambda: ports(mesh) == [2])
        assert "UNIMPLEMENTED" not in mesh.status().connection_text
