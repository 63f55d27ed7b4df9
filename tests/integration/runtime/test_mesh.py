"""A mesh against a management server over real gRPC."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from peers.endpoints import ports

from meshlib import Mesh
from meshlib.errors import RoutingError, UnavailableError
from meshlib.events import ControlPlaneConnected, ControlPlaneLost, Event, ResourceRejected
from meshlib.view import ClusterState
from meshlib.xds.resources import CDS, EDS, LDS, RDS


def eventually(look: Callable[[], bool], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def connect(server: Any, **options: Any) -> Mesh:
    return Mesh.connect(server.address, node_id="orders-1", state_dir=options.pop("state_dir", ""), **options)


def test_first_use_leads_from_the_listener_to_endpoints(ads: Any) -> None:
    with connect(ads) as mesh:
        target = mesh.wait_target("checkout", 30.0)
        assert target.name == "checkout"
        assert ports(mesh) == [1]
        assert mesh.target("checkout") is target
    first = ads.requests[0][1]
    assert (first.node.id, first.node.user_agent_name) == ("orders-1", "meshlib")
    assert [request.HasField("node") for _, request in ads.requests].count(True) == 1


def test_an_update_reaches_the_view(ads: Any, tools: Any) -> None:
    with connect(ads) as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        ads.put(EDS, tools.load_assignment("checkout", 2, 3))
        eventually(lambda: ports(mesh) == [2, 3])


def test_the_status_lists_fields_that_have_no_effect(ads: Any, tools: Any) -> None:
    ads.put(CDS, {**tools.eds_cluster("checkout"), "alt_stat_name": "x", "preconnect_policy": {}})
    with connect(ads) as mesh:
        mesh.wait_ready("checkout", timeout_s=5.0)
        status = mesh.status()
        assert {"CDS checkout": ("alt_stat_name", "preconnect_policy")} == status.unused
        assert {"CDS checkout": ["alt_stat_name", "preconnect_policy"]} == status.to_dict()["unused"]
        assert "unused in CDS checkout: alt_stat_name, preconnect_policy" in str(status)
        ads.put(CDS, tools.eds_cluster("checkout"))
        eventually(lambda: mesh.status().unused == {})


SERVICES = {
    LDS: ("listener.v3.Listener", "StreamListeners"),
    RDS: ("route.v3.Route", "StreamRoutes"),
    CDS: ("cluster.v3.Cluster", "StreamClusters"),
    EDS: ("endpoint.v3.Endpoint", "StreamEndpoints"),
}


def start_separate(server: Any, *types: str) -> dict[str, Any]:
    """Start a server with a service for each of these types; returns a bootstrap for it."""
    method = grpc.stream_stream_rpc_method_handler(server._stream)
    server.more_handlers = tuple(
        grpc.method_handlers_generic_handler(f"envoy.service.{service}DiscoveryService", {name: method})
        for service, name in map(SERVICES.__getitem__, types)
    )
    server.start()
    creds, features = [{"type": "insecure"}], ["meshlib.separate_streams"]
    return {"xds_servers": [{"server_uri": server.address, "channel_creds": creds, "server_features": features}]}


def test_a_type_that_the_server_has_no_service_for_costs_no_other_stream(ads: Any, tools: Any) -> None:
    server = type(ads)()
    bootstrap = start_separate(server, LDS, RDS, CDS)
    tools.put_service(server, "checkout", 1)
    try:
        with Mesh(bootstrap, state_dir="") as mesh:
            mesh.wait_ready("checkout", timeout_s=10.0)
            (cluster,) = mesh.status().clusters
            assert "EDS resource checkout: the management server has no EDS: /envoy.service.endpoint" in cluster.note
            server.put(CDS, {**tools.eds_cluster("checkout"), "connect_timeout": "2s"})
            eventually(lambda: [found.version for found in mesh.dump() if found.type == "CDS"] == ["2"])
            assert 3 == server._count
    finally:
        server.stop()


def test_a_stream_of_one_type_that_ends_costs_no_other_stream(ads: Any, tools: Any) -> None:
    server = type(ads)()
    bootstrap = start_separate(server, LDS, RDS, CDS, EDS)
    tools.put_service(server, "checkout", 1)
    try:
        with Mesh(bootstrap, state_dir="") as mesh:
            mesh.wait_ready("checkout", timeout_s=10.0)
            server.wait_for(lambda: len(server.of_type(EDS)) == 2)
            number = next(number for number, request in server.requests if request.type_url == EDS)
            server._streams[number].put(None)
            server.wait_for(lambda: len(server.of_type(EDS)) > 2, timeout_s=30.0)
            first = server.of_type(EDS)[2]
            assert ("1", "", True) == (first.version_info, first.response_nonce, first.HasField("node"))
            server.put(EDS, tools.load_assignment("checkout", 2))
            eventually(lambda: ports(mesh) == [2])
            assert {LDS: 1, RDS: 1, CDS: 1, EDS: 2} == {
                type_url: len({number for number, request in server.requests if request.type_url == type_url})
                for type_url in SERVICES
            }
    finally:
        server.stop()


def test_a_grpc_call_fails_as_soon_as_no_server_can_be_reached_unless_it_waits(ads: Any) -> None:
    """As gRPC's own clients."""
    ads.stop()
    with connect(ads) as mesh:
        call = mesh.channel("xds:///checkout").unary_unary("/a/b")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", timeout=60.0)
        assert grpc.StatusCode.UNAVAILABLE is caught.value.code()
        text = f"LDS resource checkout: xDS channel for server {ads.address}: UNAVAILABLE: failed to connect"
        assert caught.value.details().startswith(text)
        assert "(xDS node ID:orders-1)" in caught.value.details()

        async def call_async() -> None:
            async with mesh.aio_channel("xds:///checkout") as channel:
                await channel.unary_unary("/a/b")(b"", timeout=60.0)

        with pytest.raises(grpc.aio.AioRpcError, match="xDS channel for server"):
            asyncio.run(call_async())
        waits = call.future(b"", timeout=60.0, wait_for_ready=True)
        with pytest.raises(grpc.RpcError, match="xDS channel for server"):
            call(b"", timeout=60.0)
        assert not waits.done()
        waits.cancel()


def test_every_response_is_acknowledged_with_its_nonce(ads: Any) -> None:
    with connect(ads) as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        for type_url in (LDS, RDS, CDS, EDS):
            ads.wait_for(lambda type_url=type_url: len(ads.of_type(type_url)) == 2)  # type: ignore[misc]
            first, ack = ads.of_type(type_url)
            assert (first.response_nonce, first.version_info) == ("", "")
            assert (ack.version_info, bool(ack.response_nonce), ack.HasField("error_detail")) == ("1", True, False)


def test_an_invalid_resource_is_refused_and_the_last_good_one_stays(ads: Any, tools: Any) -> None:
    events: list[Event] = []
    with connect(ads) as mesh:
        mesh.add_hook(events.append)
        mesh.wait_ready("checkout", timeout_s=30)
        ads.put(EDS, checkout=b"\x0a\x08checkout\x12\xff")
        ads.wait_for(lambda: any(request.HasField("error_detail") for request in ads.of_type(EDS)))
        nack = next(request for request in ads.of_type(EDS) if request.HasField("error_detail"))
        assert (nack.error_detail.code, nack.version_info) == (3, "1")
        assert nack.error_detail.message.startswith("xDS response validation errors: [resource index 0: ")
        assert ports(mesh) == [1]
        ads.put(EDS, tools.load_assignment("checkout", 4))
        eventually(lambda: ports(mesh) == [4])
    assert [event.name for event in events if isinstance(event, ResourceRejected)] in ([], ["checkout"])


def test_a_stream_that_ends_is_opened_again_with_the_versions_kept(ads: Any, tools: Any) -> None:
    events: list[Event] = []
    with connect(ads) as mesh:
        mesh.add_hook(events.append)
        mesh.wait_ready("checkout", timeout_s=30)
        ads.wait_for(lambda: len(ads.of_type(EDS)) == 2)
        ads.stop()
        assert ports(mesh) == [1]
        assert mesh.wait_target("checkout", 0.0) is mesh.target("checkout")
        ads.start()
        ads.wait_for(lambda: bool(ads.of_type(EDS, stream=2)))
        again = ads.of_type(EDS, stream=2)[0]
        assert (again.version_info, again.response_nonce, list(again.resource_names)) == ("1", "", ["checkout"])
        ads.put(EDS, tools.load_assignment("checkout", 5))
        eventually(lambda: ports(mesh) == [5])
        assert len([event for event in events if isinstance(event, ControlPlaneConnected)]) == 2
        assert len([event for event in events if isinstance(event, ControlPlaneLost)]) >= 1


@pytest.mark.parametrize("responses", [1, 2, 3])
def test_streams_cut_after_any_response_lead_to_the_whole_in_the_end(ads: Any, responses: int) -> None:
    ads.cut_after_responses(responses)
    with connect(ads) as mesh:
        mesh.wait_ready("checkout", timeout_s=30.0)
        assert ports(mesh) == [1]


def test_an_unreachable_server_is_named_in_the_error() -> None:
    with Mesh.connect("127.0.0.1:1", node_id="n", state_dir="") as mesh:
        mesh.start()
        eventually(lambda: "Connection refused" in mesh.status().connection_text)
        with pytest.raises(UnavailableError) as caught:
            mesh.wait_target("checkout", 1.0)
    text = str(caught.value)
    assert "service 'checkout' is not ready after 1 s: waiting for LDS resource checkout" in text
    assert "management server 127.0.0.1:1 does not answer" in text
    assert "UNAVAILABLE" in text
    assert "Connection refused" in text


def test_what_is_missing_is_named_in_the_error(ads: Any, tools: Any) -> None:
    def refusal() -> str:
        with pytest.raises(UnavailableError) as caught:
            mesh.wait_target("checkout", 0.1)
        return str(caught.value)

    ads.remove(EDS, "checkout")
    tools.put_service(ads, "other", 2)
    with connect(ads) as mesh:
        mesh.wait_ready("other", timeout_s=30)
        eventually(lambda: "waiting for EDS resource checkout; connected to management server" in refusal())


def test_a_service_that_was_removed_is_a_routing_error(ads: Any) -> None:
    with connect(ads) as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        ads.remove(LDS, "checkout")

        def is_gone() -> bool:
            try:
                mesh.target("checkout")
            except RoutingError as error:
                return "LDS resource checkout: was removed (xDS node ID:orders-1)" in str(error)
            return False

        eventually(is_gone)


def test_new_routes_are_used_when_their_cluster_is_ready(ads: Any, tools: Any) -> None:
    with connect(ads) as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        before = mesh.target("checkout")
        ads.put(RDS, tools.route_config("checkout", "checkout-v2"))
        ads.wait_for(lambda: any("checkout-v2" in request.resource_names for request in ads.of_type(CDS)))
        ads.put(CDS, tools.eds_cluster("checkout-v2"))
        ads.wait_for(lambda: any("checkout-v2" in request.resource_names for request in ads.of_type(EDS)))
        assert mesh.target("checkout") is before
        ads.put(EDS, tools.load_assignment("checkout-v2", 9))
        eventually(lambda: ports(mesh, "checkout-v2") == [9])
        assert ports(mesh) == []


def test_a_new_process_starts_from_the_copy_on_disk(ads: Any, tmp_path: Path) -> None:
    with connect(ads, state_dir=tmp_path / "state") as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
    ads.stop()
    files = list((tmp_path / "state").iterdir())
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    with connect(ads, state_dir=tmp_path / "state") as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        assert ports(mesh) == [1]
        ads.put(EDS, {"cluster_name": "checkout"})
        ads.start()
        eventually(lambda: ports(mesh) == [])


def test_a_corrupt_copy_is_set_aside_and_the_mesh_works(ads: Any, tmp_path: Path) -> None:
    with connect(ads, state_dir=tmp_path) as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
    (state,) = tmp_path.iterdir()
    state.write_bytes(state.read_bytes()[:-7])
    with connect(ads, state_dir=tmp_path) as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        assert "is corrupt (the checksum does not match)" in mesh.status().problems["state"]
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".corrupt", ".state"]


async def test_waiting_in_a_loop_blocks_neither_the_loop_nor_a_thread(ads: Any, tools: Any) -> None:
    async with connect(ads) as mesh:
        # Once it is connected, so that the threads of the connection itself are not counted as the waiters'.
        await mesh.wait_target_async("checkout", 30.0)
        threads = threading.active_count()
        waits = [asyncio.create_task(mesh.wait_target_async("late", 30.0)) for _ in range(50)]
        await asyncio.sleep(0.05)
        assert threading.active_count() <= threads + 4
        tools.put_service(ads, "late", 7)
        assert {target.name for target in await asyncio.gather(*waits)} == {"late"}
        with pytest.raises(UnavailableError, match="waiting for LDS resource never"):
            await mesh.wait_target_async("never", 0.05)


def test_two_meshes_in_one_process_do_not_meet(ads: Any, tools: Any) -> None:
    with connect(ads) as one, Mesh.connect(ads.address, node_id="other", state_dir="") as two:
        one.wait_ready("checkout", timeout_s=30)
        two.wait_ready("checkout", timeout_s=30)
        one.close()
        ads.put(EDS, tools.load_assignment("checkout", 6))
        eventually(lambda: ports(two) == [6])


def test_a_closed_mesh_says_so_and_can_be_started_again(ads: Any) -> None:
    mesh = connect(ads)
    mesh.wait_ready("checkout", timeout_s=30)
    mesh.close()
    mesh.close()
    with pytest.raises(UnavailableError, match="the mesh is closed"):
        mesh.target("checkout")
    with mesh:
        ads.wait_for(lambda: len({number for number, _ in ads.requests}) == 2)
        assert mesh.wait_target("checkout", 30.0).name == "checkout"


def test_no_thread_is_left_after_close(ads: Any) -> None:
    with connect(ads) as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
    eventually(lambda: not [t for t in threading.enumerate() if t.name in ("meshlib-control", "meshlib-ads")])


def test_a_fork_leaves_both_sides_with_updates(ads: Any, tools: Any, forking: Any) -> None:
    """The child uses what the parent knew at once, hears of changes, and exits; the parent goes on hearing of them."""
    with forking("updates", ads.address) as process:
        assert process.stdout.readline() == "known\n"
        ads.put(EDS, tools.load_assignment("checkout", 8))
        assert process.stdout.readline() == "over\n"
    assert process.returncode == 0


def test_the_local_cluster_of_the_bootstrap_keeps_requests_in_their_zone(ads: Any, tools: Any) -> None:
    def in_zones(name: str, **ports: list[int]) -> dict[str, Any]:
        found: dict[str, Any] = {**tools.load_assignment(name), "endpoints": []}
        for zone, listed in ports.items():
            group = tools.load_assignment(name, *listed)["endpoints"][0]
            found["endpoints"].append({**group, "locality": {"region": "r", "zone": zone}})
        return found

    ads.put(CDS, tools.eds_cluster("checkout"), tools.eds_cluster("orders"))
    ads.put(EDS, in_zones("checkout", near=[1, 2, 3], far=[4, 5, 6]), in_zones("orders", near=[7], far=[8]))
    bootstrap = {
        "xds_servers": [{"server_uri": ads.address, "channel_creds": [{"type": "insecure"}]}],
        "node": {"id": "orders-1", "locality": {"region": "r", "zone": "near"}},
        "meshlib": {"local_cluster": "orders"},
    }
    with Mesh(bootstrap, state_dir="") as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        eventually(lambda: ports(mesh, "orders") == [7, 8])

        def picked() -> set[int]:
            state = mesh.view.clusters["checkout"]
            assert isinstance(state, ClusterState)
            picks = [state.picker.pick(None, mesh.rng) for _ in range(60)]
            return {pick.endpoint.port for pick in picks if pick is not None}

        assert {1, 2, 3} == picked()
        ads.put(EDS, in_zones("orders", near=[7, 9, 10], far=[8]))
        eventually(lambda: ports(mesh, "orders") == [7, 8, 9, 10])
        assert {1, 2, 3, 4, 5, 6} == picked()


@pytest.mark.parametrize("variant", ["ads", "delta_ads"])
def test_messages_larger_than_grpcs_default_of_4_mib_are_taken(
    variant: str, request: pytest.FixtureRequest, tools: Any
) -> None:
    server = request.getfixturevalue(variant)
    cluster = {**tools.eds_cluster("checkout"), "metadata": {"filter_metadata": {"x": {"y": "z" * (5 << 20)}}}}
    server.put(CDS, cluster)
    features = ["meshlib.delta"] if variant == "delta_ads" else []
    entry = {"server_uri": server.address, "channel_creds": [{"type": "insecure"}], "server_features": features}
    with Mesh({"xds_servers": [entry], "node": {"id": "n"}}, state_dir="") as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        assert ports(mesh) == [1]
