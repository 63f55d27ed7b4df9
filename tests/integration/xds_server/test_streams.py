"""Rules of streams, on real sockets, seen by a scripted client. Silence is shown by what comes next, not by waiting."""

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest

from xds_server.admission import StreamLimits
from xds_server.ordering import CDS, EDS, LDS, RDS, SDS


@pytest.fixture
def mesh(source, eds_cluster, assignment, route, api_listener):
    """Set the smallest mesh: svc -> r1 -> c1 -> one endpoint."""
    source.set(api_listener("svc", "r1"), route("r1", "c1"), eds_cluster("c1"), assignment("c1", 7001))
    return source


async def test_a_client_is_given_what_it_names_from_listener_to_endpoints(mesh, run_server, connect, unpack):
    async with run_server() as app, connect(app.listen) as client:
        for type_url, name in ((LDS, "svc"), (RDS, "r1"), (CDS, "c1"), (EDS, "c1")):
            await client.ask(type_url, name)
            response = await client.response()
            assert type_url == response.type_url
            (resource,) = unpack(response)
            assert name == (resource.cluster_name if type_url == EDS else resource.name)
            await client.ack(response, name)


async def test_a_wildcard_client_is_given_all_clusters_and_an_ack_is_not_answered(mesh, run_server, connect, unpack):
    async with run_server() as app, connect(app.listen) as client:
        await client.ask(CDS)
        response = await client.response()
        assert [cluster.name for cluster in unpack(response)] == ["c1"]
        await client.ack(response)
        await client.ask(LDS)  # the sentinel
        assert (await client.response()).type_url == LDS


async def test_a_change_is_pushed_and_equal_content_is_not(mesh, run_server, connect, unpack, assignment):
    async with run_server() as app, connect(app.listen) as client:
        await client.ask(EDS, "c1")
        first = await client.response()
        await client.ack(first, "c1")
        mesh.publish()  # nothing changed
        mesh.resources[EDS]["c1"] = assignment("c1", 7001, 7002)
        mesh.publish()
        second = await client.response()
        assert len(unpack(second)[0].endpoints[0].lb_endpoints) == 2
        assert first.version_info != second.version_info


async def test_a_rejection_is_not_answered_and_the_corrected_resource_is_sent(
    mesh, run_server, connect, unpack, route, eds_cluster
):
    async with run_server() as app, connect(app.listen) as client:
        await client.ask(RDS, "r1")
        response = await client.response()
        await client.ack(response, "r1", error="bad route")
        await client.ask(CDS, "c1")  # the sentinel
        clusters = await client.response()
        assert clusters.type_url == CDS
        await client.ack(clusters, "c1")
        changed = route("r1", "c1")
        changed.virtual_hosts[0].name = "corrected"
        mesh.resources[RDS]["r1"] = changed
        mesh.publish()
        assert unpack(await client.response())[0].virtual_hosts[0].name == "corrected"


async def test_a_missing_node_ends_the_stream(mesh, run_server, connect):
    async with run_server() as app, connect(app.listen, node={"cluster": "no id"}) as client:
        await client.ask(CDS)
        assert await client.call.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert await client.call.details() == "the first request must carry a node with an id"


async def test_secrets_are_never_served_in_plaintext(mesh, run_server, connect, tmp_path):
    async with run_server(state_dir=tmp_path / "state") as app, connect(app.listen) as client:
        await client.ask(SDS, "default", "ROOTCA")
        response = await client.response()
        assert list(response.resources) == []
        assert {error.resource_name.name: error.error_detail.code for error in response.resource_errors} == {
            "default": 7,
            "ROOTCA": 7,
        }


async def test_half_close_ends_the_stream_with_ok_and_leaves_nothing(mesh, run_server, connect):
    async with run_server() as app, connect(app.listen) as client:
        await client.ask(CDS)
        await client.response()
        await client.call.done_writing()
        assert await client.call.code() == grpc.StatusCode.OK
        assert list(app.hub.streams()) == []


async def test_shutdown_ends_streams_with_unavailable(mesh, run_server, connect):
    async with run_server() as app, connect(app.listen) as client:
        await client.ask(CDS)
        await client.response()
        await app.ads.stop(drain_s=0.0)
        assert await client.call.code() == grpc.StatusCode.UNAVAILABLE


async def test_a_client_that_opens_streams_without_end_is_refused(mesh, run_server, connect):
    """The server's limit is set low for it; the streams that it has go on."""
    async with run_server(stream_limits=StreamLimits(at_once=3)) as app, AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(app.listen)) for _ in range(3)]
        for client in clients:
            await client.ask(CDS)
            await client.response()
        more = await stack.enter_async_context(connect(app.listen))
        assert await more.call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "3 streams open" in await more.call.details()
        await clients[0].call.done_writing()
        assert await clients[0].call.code() == grpc.StatusCode.OK
        again = await stack.enter_async_context(connect(app.listen))
        await again.ask(CDS)
        await again.response()
        assert (2, 1) == (app.statistics.streams_closed, app.statistics.streams_refused)


async def test_str_10_streams_of_one_node_are_independent(mesh, run_server, connect, unpack, eds_cluster):
    async with run_server() as app, connect(app.listen) as old, connect(app.listen) as new:
        for client in (old, new):
            await client.ask(CDS)
            await client.ack(await client.response())
        mesh.resources[CDS]["c2"] = eds_cluster("c2")
        mesh.resources[EDS]["c2"] = mesh.resources[EDS]["c1"].__class__(cluster_name="c2")
        mesh.publish()
        rejected = await old.response()
        await old.ack(rejected, error="not this one")
        accepted = await new.response()
        assert ["c1", "c2"] == [cluster.name for cluster in unpack(accepted)]
        await new.ack(accepted)
        await old.call.done_writing()
        assert await old.call.code() == grpc.StatusCode.OK
        await new.ask(LDS)  # goes on
        assert (await new.response()).type_url == LDS


async def test_bp_2_a_client_that_does_not_read_loses_its_stream_and_holds_up_nobody(
    mesh, run_server, connect, unpack, assignment
):
    """More is under way to it than flow control lets through, while another client is told of each change.

    Its window does not grow: gRPC makes it larger, up to megabytes, by what it has measured.
    """
    mesh.resources[RDS]["r1"].virtual_hosts[0].name = "x" * 1_000_000
    fixed = [("grpc.http2.bdp_probe", 0)]
    async with run_server() as app, connect(app.listen, options=fixed) as stuck, connect(app.listen) as other:
        app.ads._write_timeout_s = 1.0
        await stuck.ask(RDS, "r1")
        await other.ask(EDS, "c1")
        await other.ack(await other.response(), "c1")
        for number in range(2, 6):
            mesh.resources[EDS]["c1"] = assignment("c1", *range(7001, 7001 + number))
            mesh.publish()
            response = await other.response()
            assert number == len(unpack(response)[0].endpoints[0].lb_endpoints)
            await other.ack(response, "c1")
        async with asyncio.timeout(30):
            while app.statistics.write_timeouts == 0 or len(list(app.hub.streams())) != 1:
                await asyncio.sleep(0.05)


async def test_rejections_of_nothing_that_was_sent_are_counted_and_not_logged(mesh, run_server, connect, caplog):
    async with run_server() as app, connect(app.listen) as client:
        await client.ask(CDS)
        response = await client.response()
        for _ in range(3):
            await client.ask(CDS, nonce="stale", error="no rejection of anything")
        await client.ack(response, error="a real one")
        await client.ask(LDS)  # the sentinel
        assert (await client.response()).type_url == LDS
        assert 4 == app.statistics.rejections["Cluster"]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert ["node 'raw-1' rejects Cluster: a real one"] == [text for text in warnings if "rejects" in text]
