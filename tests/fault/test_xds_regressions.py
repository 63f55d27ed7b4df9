"""What other xDS clients got wrong once, each as a test, over both variants (state of the world and incremental).

The points that the protocol's peers assert in their own suites are tested elsewhere, most of them message by message:

| Point | State of the world | Incremental |
| --- | --- | --- |
| ACK has version and nonce; NACK keeps the old version and names the resource | `unit/xds/test_sotw.py`: `test_ack_carries_version_and_nonce`, `test_nack_keeps_previous_version` | `unit/xds/test_delta.py`: `test_ack_carries_the_nonce_and_nothing_else`, `test_every_response_is_answered_by_itself_and_in_order` |
| good and bad resources in one response | `test_good_resources_of_a_bad_response_are_used` | `test_good_resources_of_a_bad_response_are_used_and_each_keeps_its_version` |
| first request of a new stream | `test_a_new_stream_keeps_versions_and_forgets_nonces` | `test_a_new_stream_says_what_is_held_in_the_first_request_of_a_type_only` |
| all unsubscribed, then subscribed again on the same stream | `test_the_last_name_unsubscribed_sends_an_empty_list_once_and_the_nonce_is_kept` | `test_a_name_unsubscribed_and_wanted_again_is_asked_for_again` |
| the timer waits for the transport, not for what is cached; what comes late is used | `unit/runtime/test_server_link.py`: `test_time_to_exist_runs_from_when_the_transport_took_the_request`; `test_timer_starts_when_the_request_was_taken_and_only_for_what_is_unknown`, `test_a_resource_that_comes_after_its_timer_is_used` | `test_the_timer_guards_against_servers_that_say_nothing`, `test_timers_die_with_the_stream_and_start_again_for_what_is_unknown` |
| deletions of listeners and clusters count, absence of others does not; `ignore_resource_deletion` | `test_a_cluster_left_out_is_deleted`, `test_endpoints_left_out_stay`, `test_ignore_resource_deletion_keeps_the_value` | `test_resources_of_every_type_are_removed_by_name`, `test_absence_says_nothing`, `test_ignore_resource_deletion_keeps_what_was_in_use` |
| a stream that ends after a response is no error, one that ends before is | `test_server_link.py`: `test_an_answer_starts_the_waits_over_and_is_told`, `test_a_server_that_refuses_is_tried_again_later_and_later` | the same, and `test_a_server_that_has_nothing_to_add_after_a_reconnect_is_connected` |
| waits grow by 1.6 up to 120 s, with a fifth of jitter | `unit/xds/test_backoff.py` | the same |
| the next response is not read until this one was dealt with | `test_server_link.py`: `test_the_next_response_waits_until_this_one_was_dealt_with` | the same |
| fallback, and return to the first server | `unit/xds/test_fallback.py`, `unit/runtime/test_server_links.py` | the same |
| `xdstp` names: canonical form, unknown authority, wrong type | `unit/xds/test_names.py`, `unit/runtime/test_server_links.py` | and `test_names_with_parameters_in_another_order_are_the_same` |
| load reports | `unit/xds/test_load_report.py` | the same |
"""

from typing import Any

import pytest

from meshlib.errors import BootstrapError
from meshlib.events import ControlPlaneLost
from meshlib.xds.bootstrap import parse_bootstrap
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
