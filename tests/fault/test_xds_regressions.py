"""What other xDS clients got wrong once, each as a test, over both variants (state of the world and incremental).

The page `docs/explanation/testing.md` says which mistake each is about, and where the other points of the protocol are tested.
"""

from typing import Any

import pytest

from meshlib.errors import BootstrapError
from meshlib.events import ControlPlaneLost
from meshlib.xds.decode_bootstrap import parse_bootstrap
from meshlib.xds.resources import CDS, EDS, LDS, RDS

TYPES = (LDS, RDS, CDS, EDS)


def test_resources_are_not_lost_after_a_restart_with_older_versions(world: Any, make: Any) -> None:
    for port in range(2, 9):
        world.server.put(EDS, checkout=make.endpoints("checkout", port))
        world.spin()
    world.server.restart()
    world.pass_time(2.0)
    assert (world.ports("checkout"), world.server.opened) == ([8], 2)
    world.server.put(EDS, checkout=make.endpoints("checkout", 3))
    world.pass_time(20.0)
    assert world.ports("checkout") == [3]


def test_a_restart_with_the_same_version_and_other_content_is_heard(world: Any, make: Any) -> None:
    world.server.tables[EDS]["checkout"] = b"\x0a\x08checkout"
    world.server.cut()
    world.pass_time(2.0)
    assert world.ports("checkout") == []


def test_timers_do_not_fire_for_cached_resources(world: Any) -> None:
    world.server.mood = "mute"
    world.server.cut()
    world.pass_time(60.0)
    assert len(world.server.stream.requests) == len(TYPES)
    assert world.ports("checkout") == [1]
    assert world.target("checkout") is not None


def test_timers_fire_for_what_is_unknown_though_others_are_cached(world: Any) -> None:
    world.server.mood = "mute"
    world.watch("nobody")
    world.pass_time(14.0)
    assert (world.fault("nobody"), world.ports("checkout")) == ("", [1])
    world.pass_time(2.0)
    assert "LDS resource nobody: does not exist" in world.fault("nobody")
    assert world.ports("checkout") == [1]


def test_a_stream_cut_in_the_middle_of_a_cds_and_eds_exchange_leaves_the_old_endpoints_in_use(
    world: Any, make: Any
) -> None:
    world.server.put(CDS, checkout=make.eds_cluster("checkout", "moved"))
    world.server.put(EDS, moved=make.endpoints("moved", 5))
    world.server.cut_after = world.server.stream.sent + 1
    world.spin()
    assert (world.server.opened, world.ports("checkout")) == (1, [1])
    world.server.cut_after = 0
    world.pass_time(2.0)
    assert (world.server.opened, world.ports("checkout")) == (2, [5])
    assert world.subscribed(EDS) == {"moved"}


@pytest.mark.parametrize("responses", [1, 2, 3])
def test_streams_cut_at_every_message_end_with_the_whole(new_world: Any, responses: int) -> None:
    for variant in ("sotw", "delta"):
        world = new_world(variant)
        world.server.put_service("checkout", 1)
        world.server.cut_after = responses
        world.watch("checkout")
        world.pass_time(60.0 if variant == "delta" else 1.0)
        world.server.cut_after = 0
        world.pass_time(5.0)
        assert world.ports("checkout") == [1]


def test_names_unsubscribed_and_subscribed_again_after_a_while_are_sent_again(world: Any, make: Any) -> None:
    world.server.put_service("other", 7)
    world.server.put(RDS, checkout=make.routes("checkout", "other"))
    world.pass_time(3600.0)
    assert (world.ports("checkout"), world.ports("other")) == (None, [7])
    assert (world.subscribed(CDS), world.subscribed(EDS)) == ({"other"}, {"other"})
    assert {entry.name for entry in world.control.entries() if entry.type_url in (CDS, EDS)} == {"other"}
    world.server.put(RDS, checkout=make.routes("checkout", "checkout"))
    world.spin()
    assert (world.ports("checkout"), world.ports("other"), world.server.opened) == ([1], None, 1)


def test_endpoints_with_a_time_to_live_stay_while_heartbeats_come_and_go_with_a_server_that_died(
    world: Any, make: Any
) -> None:
    world.server.ttl_s = 30
    world.server.put(EDS, checkout=make.endpoints("checkout", 2))
    world.spin()
    answers = len(world.server.stream.requests)
    for _ in range(10):
        world.pass_time(20.0)
        world.server.beat()
    world.spin()
    assert (world.ports("checkout"), world.server.opened) == ([2], 1)
    assert not any(request.HasField("error_detail") for request in world.server.stream.requests[answers:])
    world.server.mood = "down"
    world.server.cut()
    world.pass_time(29.0)
    assert world.ports("checkout") == [2]
    world.pass_time(2.0)
    assert world.ports("checkout") == []
    note = world.control.snapshot.clusters["checkout"].note
    assert "EDS resource checkout: its time to live has passed" in note
    world.server.mood, world.server.ttl_s = "well", 0
    world.pass_time(150.0)
    assert world.ports("checkout") == [2]


def test_a_refusal_is_said_once_and_does_not_loop(world: Any, make: Any) -> None:
    count = len(world.server.stream.requests)
    world.server.put(EDS, checkout=b"\x0a\x08checkout\x12\xff")
    world.pass_time(3600.0)
    (nack,) = world.server.stream.requests[count:]
    assert (nack.type_url, nack.error_detail.code) == (EDS, 3)
    assert world.ports("checkout") == [1]
    world.server.put(EDS, checkout=make.endpoints("checkout", 2))
    world.spin()
    assert world.ports("checkout") == [2]
    assert not world.server.stream.requests[-1].HasField("error_detail")


def test_a_refused_resource_is_refused_once_per_stream_and_its_older_form_outlives_reconnects(world: Any) -> None:
    world.server.put(EDS, checkout=b"\x0a\x08checkout\x12\xff")
    world.spin()
    for number in range(2, 6):
        world.server.cut()
        world.pass_time(10.0)
        refused = [m for m in world.server.stream.of_type(EDS) if m.HasField("error_detail")]
        assert (world.server.opened, len(refused), world.ports("checkout")) == (number, 1, [1])


def test_new_content_under_the_same_route_name_is_used(world: Any, make: Any) -> None:
    before = world.target("checkout")
    world.server.put(CDS, green=make.eds_cluster("green"))
    world.server.put(EDS, green=make.endpoints("green", 9))
    world.server.put(RDS, checkout=make.routes("checkout", "green"))
    world.spin()
    after = world.target("checkout")
    assert after.listener is before.listener
    assert after.routes is not before.routes
    assert (world.ports("green"), world.ports("checkout")) == ([9], None)


def test_all_localities_gone_leaves_a_cluster_without_endpoints_that_says_why(world: Any, make: Any) -> None:
    world.server.put(EDS, checkout=make.endpoints("checkout"))
    world.spin()
    assert world.ports("checkout") == []
    assert "EDS resource checkout: contains no localities" in world.control.snapshot.clusters["checkout"].note
    world.server.put(EDS, checkout=make.endpoints("checkout", 4))
    world.spin()
    assert (world.ports("checkout"), world.control.snapshot.clusters["checkout"].note) == ([4], "")


def test_a_management_server_that_is_found_through_the_mesh_itself_is_refused() -> None:
    for uri in ("xds:///istiod.istio-system", "XDS:istiod"):
        servers = [{"server_uri": uri, "channel_creds": [{"type": "insecure"}]}]
        with pytest.raises(BootstrapError, match=r"at /xds_servers/0/server_uri: .* through the mesh itself"):
            parse_bootstrap({"xds_servers": servers}, origin="test")


def test_a_subscription_late_in_a_streams_life_is_answered_and_has_its_own_time(world: Any) -> None:
    world.pass_time(86_400.0 / 4)
    world.server.put_service("late", 8)
    world.watch("late")
    assert (world.ports("late"), world.server.opened) == ([8], 1)
    world.server.mood = "mute"
    world.watch("later")
    world.pass_time(14.0)
    assert world.fault("later") == ""
    world.pass_time(2.0)
    assert "LDS resource later: does not exist" in world.fault("later")


def test_unsubscribing_the_last_resource_is_no_wildcard_and_the_stream_goes_on(new_world: Any) -> None:
    for variant in ("sotw", "delta"):
        world = new_world(variant)
        world.watch("nobody", keep=False)
        world.pass_time(200.0)
        assert (world.control.targets, world.subscribed(LDS)) == (frozenset(), set())
        last = world.server.stream.requests[-1]
        if variant == "sotw":
            assert (list(last.resource_names), bool(last.response_nonce)) == ([], True)
        else:
            assert list(last.resource_names_unsubscribe) == ["nobody"]
        world.server.put_service("checkout", 1)
        world.watch("checkout")
        assert (world.ports("checkout"), world.server.opened) == ([1], 1)


def test_a_rolling_restart_of_every_backend_behind_a_black_hole_is_heard_when_the_hole_is_noticed(
    world: Any, make: Any
) -> None:
    """The network swallows everything, and gRPC's keepalive ends the stream in the end; what changed comes then."""
    world.server.mood = "black hole"
    for port in range(2, 6):
        world.server.put(EDS, checkout=make.endpoints("checkout", port, port + 10))
        world.pass_time(10.0)
    assert world.ports("checkout") == [1]
    world.server.mood = "well"
    world.server.stream.end("UNAVAILABLE: keepalive watchdog timeout")
    world.pass_time(1.5)
    assert (world.ports("checkout"), world.server.opened) == ([5, 15], 2)
    assert [event for event in world.events if isinstance(event, ControlPlaneLost)] == [
        ControlPlaneLost("s:1", "UNAVAILABLE: keepalive watchdog timeout")
    ]
