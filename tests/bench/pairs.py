"""All pairs."""

from contextlib import ExitStack
from typing import Any

import grpc
import grpc.aio
import httpx
import pairs_httpx
from core import decider
from pair import Pair, Runner
from pairs_httpx import event_loop, spread
from world import SERVICE, World

METHOD = "/bench.Orders/Get"


def _grpc_sync(world: World, stack: ExitStack) -> tuple[Runner, Runner]:
    plain = stack.enter_context(grpc.insecure_channel(world.grpc))
    meshed = stack.enter_context(world.mesh.channel(f"xds:///{SERVICE}:81"))

    def runner(channel: grpc.Channel) -> Runner:
        method: Any = channel.unary_unary(METHOD)

        def run(calls: int) -> None:
            for _ in range(calls):
                assert method(b"1", timeout=10)

        return run

    return runner(plain), runner(meshed)


def _grpc_aio(world: World, stack: ExitStack) -> tuple[Runner, Runner]:
    run = stack.enter_context(event_loop())

    async def connect() -> tuple[grpc.aio.Channel, grpc.aio.Channel]:
        return grpc.aio.insecure_channel(world.grpc), world.mesh.aio_channel(f"xds:///{SERVICE}:81")

    channels: tuple[grpc.aio.Channel, grpc.aio.Channel] = run(connect())
    for channel in channels:
        stack.callback(lambda channel=channel: run(channel.close()))

    def runner(channel: grpc.aio.Channel) -> Runner:
        method: Any = channel.unary_unary(METHOD)

        async def call() -> None:
            assert await method(b"1", timeout=10)

        return lambda calls: run(spread(call, calls, 1))

    return runner(channels[0]), runner(channels[1])


def _decision(world: World, stack: ExitStack) -> tuple[Runner, Runner]:
    """A plain call, and the decisions about one alone: route, endpoint, limits, record. The goal is below 5 %."""
    client = stack.enter_context(httpx.Client())

    def plain(calls: int) -> None:
        for _ in range(calls):
            assert client.get(f"http://{world.http}/orders/1").status_code == 200

    return plain, decider()


PAIRS = (
    *pairs_httpx.PAIRS,
    Pair("decision alone, 100 routes and 50 endpoints", _decision, 1000),
    Pair("grpc sync unary", _grpc_sync, 1000),
    Pair("grpc.aio unary", _grpc_aio, 1000),
)
