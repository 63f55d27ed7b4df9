"""CSDS over real gRPC, asked with the messages of another library."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from envoy.service.status.v3 import csds_pb2

from meshlib import Mesh
from meshlib.admin import csds
from meshlib.xds.resources import CDS, EDS, LDS, RDS

SERVICE = "/envoy.service.status.v3.ClientStatusDiscoveryService/"


@pytest.fixture
def mesh(ads: Any) -> Iterator[Mesh]:
    with Mesh.connect(ads.address, node_id="orders-1", state_dir="") as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        ads.wait_for(lambda: len(ads.of_type(EDS)) == 2)
        yield mesh


@pytest.fixture
def channel(mesh: Mesh) -> Iterator[grpc.Channel]:
    server = grpc.server(ThreadPoolExecutor(2))
    csds.add_to_server(mesh, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=(("grpc.enable_http_proxy", 0),)) as channel:
        yield channel
    server.stop(0).wait()


def fetcher(channel: Any) -> Any:
    return channel.unary_unary(
        f"{SERVICE}FetchClientStatus",
        request_serializer=csds_pb2.ClientStatusRequest.SerializeToString,
        response_deserializer=csds_pb2.ClientStatusResponse.FromString,
    )


def states(response: Any) -> dict[str, int]:
    (config,) = response.config
    return {one.type_url: one.client_status for one in config.generic_xds_configs}


def test_fetching_gives_every_resource(channel: grpc.Channel) -> None:
    response = fetcher(channel)(csds_pb2.ClientStatusRequest(), timeout=5)
    assert {LDS: 3, RDS: 3, CDS: 3, EDS: 3} == states(response)
    assert "orders-1" == response.config[0].node.id
    assert {"1"} == {one.version_info for one in response.config[0].generic_xds_configs}


def test_a_refused_update_is_seen_beside_the_form_in_use(ads: Any, mesh: Mesh, channel: grpc.Channel) -> None:
    ads.put(EDS, checkout=b"\x0a\x08checkout\x12\xff")
    ads.wait_for(lambda: any(request.HasField("error_detail") for request in ads.of_type(EDS)))
    response = fetcher(channel)(csds_pb2.ClientStatusRequest(exclude_resource_contents=True), timeout=5)
    (one,) = [one for one in response.config[0].generic_xds_configs if one.type_url == EDS]
    assert (4, "1", "2") == (one.client_status, one.version_info, one.error_state.version_info)
    assert one.error_state.details
    assert not one.HasField("xds_config")


def test_a_stream_answers_each_request(channel: grpc.Channel) -> None:
    stream = channel.stream_stream(
        f"{SERVICE}StreamClientStatus",
        request_serializer=csds_pb2.ClientStatusRequest.SerializeToString,
        response_deserializer=csds_pb2.ClientStatusResponse.FromString,
    )
    answers = list(stream(iter([csds_pb2.ClientStatusRequest()] * 3), timeout=5))
    assert 3 == len(answers)
    assert {LDS: 3, RDS: 3, CDS: 3, EDS: 3} == states(answers[-1])


def test_conditions_on_the_node_are_refused(channel: grpc.Channel) -> None:
    request = csds_pb2.ClientStatusRequest()
    request.node_matchers.add()
    with pytest.raises(grpc.RpcError) as caught:
        fetcher(channel)(request, timeout=5)
    assert grpc.StatusCode.INVALID_ARGUMENT is caught.value.code()


async def test_an_asyncio_server_serves_it_too(mesh: Mesh) -> None:
    server = grpc.aio.server()
    csds.add_to_server(mesh, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        response = await fetcher(channel)(csds_pb2.ClientStatusRequest(), timeout=5)
        assert {LDS: 3, RDS: 3, CDS: 3, EDS: 3} == states(response)
        request = csds_pb2.ClientStatusRequest()
        request.node_matchers.add()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await fetcher(channel)(request, timeout=5)
        assert grpc.StatusCode.INVALID_ARGUMENT is caught.value.code()
    await server.stop(None)


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_meshctl_dump_prints_the_same(ads: Any, options: tuple[str, ...]) -> None:
    bootstrap = {"xds_servers": [{"server_uri": ads.address, "channel_creds": [{"type": "insecure"}]}]}
    done = subprocess.run(
        (sys.executable, "-m", "meshlib.cli", "dump", "checkout", *options),
        env={**os.environ, "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(bootstrap), "MESHLIB_STATE_DIR": ""},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    if options:
        configs = json.loads(done.stdout)["config"][0]["generic_xds_configs"]
        assert {"ACKED"} == {config["client_status"] for config in configs}
        assert 4 == len(configs)
    else:
        assert "EDS checkout: ACKED, version 1 in use for" in done.stdout
