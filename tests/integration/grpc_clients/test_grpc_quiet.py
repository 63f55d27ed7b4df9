"""gRPC connections of a process that makes no calls at the moment."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_channels import channels_of
from meshlib.clients.grpc_sync import MeshChannel
from meshlib.runtime.tidying import TidyingUp

UNARY = "/test.Service/Unary"


@pytest.fixture
def tidying_up(mesh: Any) -> TidyingUp:
    """What is done once a second, for a mesh without a thread."""
    mesh.source._tidying_up = made = TidyingUp()
    return made


def connections_to(port: int) -> int:
    """Count this machine's established connections to a port; C-core's sockets are of both families."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return sum(fields[2].endswith(f":{port:04X}") and fields[3] == "01" for fields in lines)


def test_a_connection_to_an_endpoint_that_left_is_closed_without_a_call(
    server: Any, mesh: Any, tidying_up: TidyingUp
) -> None:
    """It stayed open for gRPC's half hour; what a call still uses is left alone."""
    idle, busy, new = server(), server(), server()
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        mesh.serve(idle.address)
        assert b"%d x" % idle.port == channel.unary_unary(UNARY)(b"x")
        mesh.serve(idle.address, busy.address)
        while not busy.seen:
            stream = channel.unary_stream("/test.Service/Responses")(b"wait")
            assert b"0:wait" == next(stream)
            if not busy.seen:
                stream.cancel()
        tidying_up.run()
        assert connections_to(idle.port)

        mesh.serve(new.address)
        tidying_up.run()

        deadline = time.monotonic() + 10
        while connections_to(idle.port):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert {"channels": 0, "active": 0} == channels_of(mesh.source).sync.statistics()
        assert connections_to(busy.port)
        assert b"1:wait" == next(stream)
        stream.cancel()
        assert b"%d x" % new.port == channel.unary_unary(UNARY)(b"x")


async def test_so_it_is_in_an_event_loop(server: Any, mesh: Any, tidying_up: TidyingUp) -> None:
    """The control thread retires it, the loop closes it."""
    old, new = server(), server()
    async with AioMeshChannel(mesh.source, "xds:///checkout") as channel:
        mesh.serve(old.address)
        assert b"%d x" % old.port == await channel.unary_unary(UNARY)(b"x")
        mesh.serve(new.address)
        await asyncio.to_thread(tidying_up.run)
        async with asyncio.timeout(10):
            while connections_to(old.port):
                await asyncio.sleep(0.01)
        assert b"%d x" % new.port == await channel.unary_unary(UNARY)(b"x")
