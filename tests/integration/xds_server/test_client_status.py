"""CSDS on real sockets."""

from datetime import timedelta

import grpc
import pytest

from meshlib.protos import message_class
from xds_server.addresses import Address
from xds_server.identity import Identity
from xds_server.ordering import CDS
from xds_server.tokens import Tokens

SERVICE = "/envoy.service.status.v3.ClientStatusDiscoveryService/"
REQUEST = b""  # all clients, with contents


@pytest.fixture
def mesh(source, eds_cluster, assignment):
    source.set(eds_cluster("c1"), assignment("c1", 7001))
    return source


def clusters_of(data: bytes) -> dict[str, list[str]]:
    response = message_class("envoy.service.status.v3.ClientStatusResponse").FromString(data)
    return {config.node.id: [each.name for each in config.generic_xds_configs] for config in response.config}


async def test_status_is_fetched_and_streamed(mesh, run_server, connect_delta):
    async with run_server() as app, connect_delta(app.listen) as client:
        await client.ask(CDS)
        await client.ack(await client.response())
        async with grpc.aio.insecure_channel(str(app.listen)) as channel:
            assert {"raw-1": ["c1"]} == clusters_of(await channel.unary_unary(SERVICE + "FetchClientStatus")(REQUEST))
            stream = channel.stream_stream(SERVICE + "StreamClientStatus")()
            for _ in range(2):
                await stream.write(REQUEST)
                assert {"raw-1": ["c1"]} == clusters_of(await stream.read())
            await stream.done_writing()
            assert await stream.code() == grpc.StatusCode.OK


async def test_bad_request_is_refused_with_the_reason(mesh, run_server):
    async with run_server() as app, grpc.aio.insecure_channel(str(app.listen)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(SERVICE + "FetchClientStatus")(b"\xff")
        assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()


async def test_secure_listener_wants_a_token(mesh, run_server, tmp_path):
    state = tmp_path / "state"
    async with run_server(state_dir=state, secure_listen=Address("127.0.0.1", 0)) as app:
        credentials = grpc.ssl_channel_credentials((state / "ca/root.pem").read_bytes())
        async with grpc.aio.secure_channel(str(app.secure_listen), credentials) as channel:
            fetch = channel.unary_unary(SERVICE + "FetchClientStatus")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await fetch(REQUEST)
            assert grpc.StatusCode.UNAUTHENTICATED == refused.value.code()
            token = Tokens.open(state).issue(Identity("default", "checkout"), timedelta(hours=1))
            assert {} == clusters_of(await fetch(REQUEST, metadata=(("authorization", f"Bearer {token}"),)))
