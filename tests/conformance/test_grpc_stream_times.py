"""Deadlines and limits of streams for calls of all four kinds, beside gRPC's own client.

C-core counts the limits of a route by a clock of its own, which was seen seconds ahead: where one of them is set, no
answer comes in time.
"""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from differential.grpc_cases import Service
from peers.envoy import socket_address
from peers.grpc_arities import KINDS, WaitingServer, aplay, play
from peers.grpcio import GrpcioClient
from peers.management import ManagementServer
from peers.upstreams import LOOPBACK

import meshlib

LIMIT_S = 3.0
SERVICES: dict[str, dict[str, Any]] = {
    "free": {},
    "duration": {"route": {"max_stream_duration": {"max_stream_duration": f"{LIMIT_S}s"}}},
    "header": {"route": {"max_stream_duration": {"grpc_timeout_header_max": f"{LIMIT_S}s"}}},
    "offset": {
        "route": {"max_stream_duration": {"grpc_timeout_header_max": f"{LIMIT_S}s", "grpc_timeout_header_offset": "2s"}}
    },
    "zero": {
        "route": {"max_stream_duration": {"max_stream_duration": "0s"}},
        "manager": {"common_http_protocol_options": {"max_stream_duration": f"{LIMIT_S}s"}},
    },
    "manager": {"manager": {"common_http_protocol_options": {"max_stream_duration": f"{LIMIT_S}s"}}},
    "of http": {
        "route": {"timeout": "0.2s", "idle_timeout": "0.2s"},
        "manager": {"stream_idle_timeout": "0.2s"},
    },
}
SHORT_S, LONG_S = 2.5, 30.0
"""Deadlines; the former is long enough for a connection and a slow upload on a busy machine."""


def calls() -> Iterator[tuple[str, str, str, float]]:
    """Yield services, kinds, answers and deadlines; all of them end."""
    for service in SERVICES:
        is_limited = service not in ("free", "zero", "of http")
        for kind in KINDS:
            if not is_limited:
                yield service, kind, "Late" if service == "of http" else "Quick", LONG_S
            yield service, kind, "Stalls", LONG_S if is_limited else SHORT_S
            yield service, kind, "Never", LONG_S if service == "duration" else SHORT_S


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GrpcioClient, Any]]:
    folder: Path = tmp_path_factory.mktemp("grpc-times")
    server = WaitingServer()
    resources = []
    for name, options in SERVICES.items():
        service = Service(name.replace(" ", "-"))
        entry = {"endpoint": {"address": socket_address(f"{LOOPBACK}:{server.port}")}}
        group = {"locality": {"region": "r"}, "load_balancing_weight": 1, "lb_endpoints": [entry]}
        route = {"cluster": service.cluster("c", [group]), **options.get("route", {})}
        service.listen([{"match": {"prefix": "/"}, "route": route}], **options.get("manager", {}))
        resources += service.resources
    documents = {"services.json.yaml": json.dumps({"resources": resources})}
    try:
        with ManagementServer(folder, documents) as management:
            with GrpcioClient("grpcio", management.listen, folder) as grpcio:
                with meshlib.Mesh.connect(management.listen, node_id="m", state_dir="", first_use_timeout_s=15) as mesh:
                    yield grpcio, mesh
    finally:
        server.close()


def test_calls_of_every_kind_end_as_with_grpc(sides: tuple[GrpcioClient, Any]) -> None:
    """All calls beside each other."""
    grpcio, mesh = sides
    table = list(calls())
    with ThreadPoolExecutor(len(table) + 1) as pool:
        theirs = pool.submit(grpcio.play, [(f"xds:///{one[0].replace(' ', '-')}", *one[1:]) for one in table])
        channels = {name: mesh.channel(f"xds:///{name.replace(' ', '-')}") for name in SERVICES}
        ours = [pool.submit(play, channels[one[0]], *one[1:]) for one in table]
        awaited = pool.submit(lambda: asyncio.run(_awaited(mesh, table)))
        expected = dict(zip(table, theirs.result(), strict=True))
        assert expected == dict(zip(table, [one.result() for one in ours], strict=True))
        assert expected == dict(zip(table, awaited.result(), strict=True))
    for channel in channels.values():
        channel.close()
    codes = {code for code, _ in expected.values()}
    assert {"OK", "DEADLINE_EXCEEDED"} == codes


async def _awaited(mesh: Any, table: list[tuple[str, str, str, float]]) -> list[tuple[str, list[str]]]:
    channels = {name: mesh.aio_channel(f"xds:///{name.replace(' ', '-')}") for name in SERVICES}
    found = await asyncio.gather(*(aplay(channels[one[0]], *one[1:]) for one in table))
    for channel in channels.values():
        await channel.close()
    return list(found)
