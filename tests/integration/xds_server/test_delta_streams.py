"""Incremental streams on real sockets, seen by a scripted client. Silence is shown by what comes next, not by waiting."""

from datetime import timedelta

import grpc
import pytest

from meshlib.protos import from_any
from xds_server.addresses import Address
from xds_server.identity import Identity
from xds_server.ordering import CDS, EDS, LDS, RDS, SDS
from xds_server.tokens import Tokens


@pytest.fixture
def mesh(source, eds_cluster, assignment, route, api_listener):
    """Set the smallest mesh: svc -> r1 -> c1 -> one endpoint."""
    source.set(api_listener("svc", "r1"), route("r1", "c1"), eds_cluster("c1"), assignment("c1", 7001))
    return source


def told(response) -> tuple[str, list[str], list[str]]:
    return response.type_url, [each.name for each in response.resources], list(response.removed_resources)


async def expect(client, type_url, *names, removed=()):
    """Take and acknowledge the next response, which must say exactly this."""
    response = await client.response()
    assert (type_url, list(names), list(removed)) == told(response)
    await client.ack(response)
    return response


async def start(client):
    """Ask as Envoy does: everything of clusters and listeners, the rest by name."""
    await client.ask(CDS)
    await expect(client, CDS, "c1")
    await client.ask(EDS, "+c1")
    await expect(client, EDS, "c1")
    await client.ask(LDS)
    await expect(client, LDS, "svc")
    await client.ask(RDS, "+r1")
    await expect(client, RDS, "r1")


async def test_a_client_is_given_everything_once_with_versions(mesh, run_server, connect_delta):
    async with run_server() as app, connect_delta(app.listen) as client:
        await client.ask(CDS)
        (entry,) = (await expect(client, CDS, "c1")).resources
        assert "c1" == from_any(entry.resource).name
        assert 32 == len(entry.version)
        await client.ask(LDS, "+svc", "+gone")  # the sentinel: the ACK was not answered
        response = await expect(client, LDS, "svc", removed=["gone"])
        assert [("gone", 5)] == [(e.resource_name.name, e.error_detail.code) for e in response.resource_errors]


async def test_one_change_of_endpoints_is_one_response_with_one_resource(mesh, run_server, connect_delta, assignment):
    async with run_server() as app, connect_delta(app.listen) as client:
        await start(client)
        mesh.resources[EDS]["c1"] = assignment("c1", 7001, 7002)
        mesh.publish()
        response = await expect(client, EDS, "c1")
        assert 2 == len(from_any(response.resources[0].resource).endpoints[0].lb_endpoints)


async def test_a_changed_cluster_brings_its_endpoints_though_unchanged(mesh, run_server, connect_delta, eds_cluster):
    async with run_server() as app, connect_delta(app.listen) as client:
        await start(client)
        mesh.resources[CDS]["c1"] = eds_cluster("c1", "2s")
        mesh.publish()
        warming = await client.response()
        assert (CDS, ["c1"], []) == told(warming)  # not acknowledged: it is warming
        await expect(client, EDS, "c1")


async def test_a_service_that_moves_leaves_last(mesh, run_server, connect_delta, eds_cluster, assignment, route):
    async with run_server() as app, connect_delta(app.listen) as client:
        await start(client)
        mesh.resources[CDS] = {"c2": eds_cluster("c2")}
        mesh.resources[EDS] = {"c2": assignment("c2", 7002)}
        mesh.resources[RDS] = {"r1": route("r1", "c2")}
        mesh.publish()
        clusters = await client.response()
        assert (CDS, ["c2"], []) == told(clusters)
        await client.ask(EDS, "+c2")
        await expect(client, EDS, "c2")
        await client.ack(clusters)  # warm now
        await expect(client, RDS, "r1")
        await expect(client, CDS, removed=["c1"])
        await expect(client, EDS, removed=["c1"])


async def test_a_returning_client_is_told_what_changed_meanwhile(mesh, run_server, connect_delta, eds_cluster):
    async with run_server() as app:
        async with connect_delta(app.listen) as client:
            await client.ask(CDS)
            version = (await expect(client, CDS, "c1")).resources[0].version
        async with connect_delta(app.listen) as client:
            await client.ask(CDS, initial={"c1": version, "gone": "1"})
            await expect(client, CDS, removed=["gone"])
            await client.ask(EDS, "+c1", initial={"c1": "whatever"})
            await expect(client, EDS, "c1")


async def test_a_rejection_is_not_answered_and_the_corrected_resource_is_sent(mesh, run_server, connect_delta, route):
    async with run_server() as app, connect_delta(app.listen) as client:
        await client.ask(RDS, "+r1")
        await client.ack(await client.response(), error="bad route")
        await client.ask(CDS, "+c1")  # the sentinel
        await expect(client, CDS, "c1")
        changed = route("r1", "c1")
        changed.virtual_hosts[0].name = "corrected"
        mesh.resources[RDS]["r1"] = changed
        mesh.publish()
        response = await expect(client, RDS, "r1")
        assert "corrected" == from_any(response.resources[0].resource).virtual_hosts[0].name


async def test_secrets_are_those_of_the_token_and_nobody_elses(mesh, run_server, connect_delta, tmp_path):
    state = tmp_path / "state"
    async with run_server(state_dir=state, secure_listen=Address("127.0.0.1", 0)) as app:
        async with connect_delta(app.listen) as client:
            await client.ask(SDS, "+default")
            response = await expect(client, SDS, removed=["default"])
            assert [7] == [error.error_detail.code for error in response.resource_errors]
        token = Tokens.open(state).issue(Identity("default", "checkout"), timedelta(hours=1))
        root = (state / "ca/root.pem").read_bytes()
        async with connect_delta(app.secure_listen, root=root, token=token) as client:
            await client.ask(SDS, "+default", "+ROOTCA", "+other")
            response = await expect(client, SDS, "ROOTCA", "default", removed=["other"])
            assert root == from_any(response.resources[0].resource).validation_context.trusted_ca.inline_bytes


async def test_half_close_ends_the_stream_with_ok_and_leaves_nothing(mesh, run_server, connect_delta):
    async with run_server() as app, connect_delta(app.listen) as client:
        await client.ask(CDS)
        await client.response()
        await client.call.done_writing()
        assert await client.call.code() == grpc.StatusCode.OK
        assert [] == list(app.hub.streams())


BY_TYPE = [
    ("cluster.v3.ClusterDiscoveryService/{}Clusters", CDS, "c1"),
    ("endpoint.v3.EndpointDiscoveryService/{}Endpoints", EDS, "c1"),
    ("listener.v3.ListenerDiscoveryService/{}Listeners", LDS, "svc"),
    ("route.v3.RouteDiscoveryService/{}Routes", RDS, "r1"),
]


@pytest.mark.parametrize(("method", "type_url", "name"), BY_TYPE)
async def test_str_1_each_type_has_a_service_of_its_own(
    mesh, run_server, connect, connect_delta, unpack, method, type_url, name
):
    async with run_server() as app:
        async with connect(app.listen, method=method.format("Stream")) as client:
            await client.ask("", name)
            response = await client.response()
            assert (type_url, 1) == (response.type_url, len(unpack(response)))
            await client.ack(response, name)
        async with connect_delta(app.listen, method=method.format("Delta")) as client:
            await client.ask("", f"+{name}")
            await expect(client, type_url, name)


@pytest.mark.parametrize("variant", ["connect", "connect_delta"])
async def test_str_3_another_type_ends_a_stream_for_one_type(mesh, run_server, request, variant):
    method = f"cluster.v3.ClusterDiscoveryService/{'Delta' if variant == 'connect_delta' else 'Stream'}Clusters"
    async with run_server() as app, request.getfixturevalue(variant)(app.listen, method=method) as client:
        await client.ask(EDS)
        assert await client.call.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "open a stream of that type's service" in await client.call.details()


async def test_str_2_no_type_ends_an_aggregated_stream(mesh, run_server, connect_delta):
    async with run_server() as app, connect_delta(app.listen) as client:
        await client.ask("")
        assert await client.call.code() == grpc.StatusCode.INVALID_ARGUMENT
