"""LRS on real sockets, and what the load page shows."""

import asyncio

import grpc
import grpc.aio
import httpx
import pytest

from meshlib.protos import from_dict, message_class
from xds_server.admission import StreamLimits
from xds_server.lrs import SENDS_ALL


@pytest.fixture
def mesh(source, eds_cluster, assignment):
    source.set(eds_cluster("c1"), assignment("c1", 7001))
    return source


@pytest.fixture
def report_on():
    """Return a function that opens a stream of reports on a channel."""

    def open_stream(channel):
        return channel.stream_stream(
            "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats",
            request_serializer=lambda value: from_dict(
                "envoy.service.load_stats.v3.LoadStatsRequest", value
            ).SerializeToString(),
            response_deserializer=message_class("envoy.service.load_stats.v3.LoadStatsResponse").FromString,
        )()

    return open_stream


async def shown(app) -> dict:
    async with httpx.AsyncClient(base_url=f"http://{app.admin}", trust_env=False) as client:
        return (await client.get("/v1/load")).json()


async def test_client_is_told_what_to_report_and_its_reports_are_shown(mesh, run_server, report_on):
    async with run_server() as app, grpc.aio.insecure_channel(str(app.listen)) as channel:
        stream = report_on(channel)
        await stream.write({"node": {"id": "n1", "user_agent_name": "envoy", "client_features": [SENDS_ALL]}})
        wanted = await stream.read()
        assert (True, 10, False) == (
            wanted.send_all_clusters,
            wanted.load_reporting_interval.seconds,
            wanted.report_endpoint_granularity,
        )
        locality = {"locality": {"zone": "a"}, "total_successful_requests": 2, "total_requests_in_progress": 1}
        stats = {"cluster_name": "c1", "upstream_locality_stats": [locality]}
        for _ in range(2):
            await stream.write({"cluster_stats": [stats]})
        app.load_reporting.set_interval(2.0)
        assert 2 == (await stream.read()).load_reporting_interval.seconds
        await stream.done_writing()
        assert await stream.code() == grpc.StatusCode.OK
        page = await shown(app)
        (client,) = page["clients"]
        (found,) = client["localities"]
        assert (2.0, "n1", "a", 4, 0) == (
            page["interval_s"],
            client["node_id"],
            found["zone"],
            found["succeeded"],
            found["in_progress"],
        )


async def test_client_without_the_feature_is_told_the_names(mesh, run_server, report_on):
    async with run_server() as app, grpc.aio.insecure_channel(str(app.listen)) as channel:
        stream = report_on(channel)
        await stream.write({"node": {"id": "n1", "user_agent_name": "meshlib"}})
        wanted = await stream.read()
        assert (False, ["c1"]) == (wanted.send_all_clusters, list(wanted.clusters))


async def test_report_without_a_node_ends_the_stream(mesh, run_server, report_on):
    async with run_server() as app, grpc.aio.insecure_channel(str(app.listen)) as channel:
        stream = report_on(channel)
        await stream.write({})
        assert await stream.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_shutdown_ends_the_stream_with_unavailable(mesh, run_server, report_on):
    async with run_server() as app, grpc.aio.insecure_channel(str(app.listen)) as channel:
        stream = report_on(channel)
        await stream.write({"node": {"id": "n1"}})
        await stream.read()
        _, code = await asyncio.gather(app.ads.stop(drain_s=0.0), stream.code())
        assert grpc.StatusCode.UNAVAILABLE == code


async def test_streams_of_reports_count_among_those_of_their_client(mesh, run_server, report_on):
    async with (
        run_server(stream_limits=StreamLimits(at_once=1)) as app,
        grpc.aio.insecure_channel(str(app.listen)) as channel,
    ):
        first = report_on(channel)
        await first.write({"node": {"id": "n1"}})
        await first.read()
        second = report_on(channel)
        assert await second.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 1 == app.statistics.streams_refused
        await first.done_writing()
        assert await first.code() == grpc.StatusCode.OK
        third = report_on(channel)
        await third.write({"node": {"id": "n1"}})
        assert ["c1"] == list((await third.read()).clusters)
        third.cancel()
