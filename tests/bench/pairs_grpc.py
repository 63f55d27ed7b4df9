"""gRPC: against plain channels, against grpcio's own xDS client, over mutual TLS, and streams."""

import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import grpc
import grpc.aio
from pair import Open, Pair, Runner
from pairs_httpx import event_loop, spread
from world import SECURE_GRPC, SERVICE, World

from meshlib.clients.grpc_channels import tls_status
from meshlib.clients.grpc_core import SWITCH

GET, LIST = "/bench.Orders/Get", "/bench.Orders/List"
MESSAGES = 1000
BOOTSTRAP = "grpc.TEST_ONLY_DO_NOT_USE_IN_PROD.xds_bootstrap_config"


def _plain(world: World, api: Any) -> Any:
    return api.insecure_channel(world.grpc)


def _tls(world: World, api: Any) -> Any:
    """A channel that knows its peer by address, and shows a certificate as the mesh does."""
    folder = world.roots.parent
    roots, key, chain = ((folder / name).read_bytes() for name in (world.roots.name, "key.pem", "chain.pem"))
    return api.secure_channel(world.grpc_tls, grpc.ssl_channel_credentials(roots, key, chain))


def _grpcio_xds(world: World, api: Any) -> Any:
    server = {"server_uri": world.xds, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
    bootstrap = json.dumps({"xds_servers": [server], "node": {"id": "bench-grpcio"}})
    return api.insecure_channel(f"xds:///{SERVICE}:81", options=[(BOOTSTRAP, bootstrap)])


Connect = Callable[[World, Any], Any]


def _sync(connect: Connect, world: World, stack: ExitStack, *, target: str = f"{SERVICE}:81") -> tuple[Runner, Runner]:
    plain = stack.enter_context(connect(world, grpc))
    meshed = stack.enter_context(world.mesh.channel(f"xds:///{target}"))

    def runner(channel: grpc.Channel) -> Runner:
        method: Any = channel.unary_unary(GET)

        def run(calls: int) -> None:
            for _ in range(calls):
                assert method(b"1", timeout=10)

        return run

    return runner(plain), runner(meshed)


def _aio(connect: Connect, world: World, stack: ExitStack, *, target: str = f"{SERVICE}:81") -> tuple[Runner, Runner]:
    run = stack.enter_context(event_loop())

    async def open_both() -> tuple[grpc.aio.Channel, grpc.aio.Channel]:
        return connect(world, grpc.aio), world.mesh.aio_channel(f"xds:///{target}")

    channels: tuple[grpc.aio.Channel, grpc.aio.Channel] = run(open_both())
    for channel in channels:
        stack.callback(lambda channel=channel: run(channel.close()))

    def runner(channel: grpc.aio.Channel) -> Runner:
        method: Any = channel.unary_unary(GET)

        async def call() -> None:
            assert await method(b"1", timeout=10)

        return lambda calls: run(spread(call, calls, 1))

    return runner(channels[0]), runner(channels[1])


def _secure(
    make: Callable[..., tuple[Runner, Runner]], mode: str, world: World, stack: ExitStack
) -> tuple[Runner, Runner]:
    """As `make` over mutual TLS, once the mesh makes its calls in the mode asked for."""
    if mode == "relay":
        os.environ[SWITCH] = mode
        stack.callback(os.environ.pop, SWITCH)
    plain, meshed = make(_tls, world, stack, target=SECURE_GRPC)
    give_up = time.monotonic() + 20
    while True:
        meshed(1)
        found = tls_status(world.mesh)
        assert found is not None
        if found.mode == mode and (found.core if mode == "core" else found.relay) == 1:
            return plain, meshed
        assert time.monotonic() < give_up, f"gRPC over TLS is made by {found}"
        time.sleep(0.05)


def _sync_stream(world: World, stack: ExitStack) -> tuple[Runner, Runner]:
    plain = stack.enter_context(grpc.insecure_channel(world.grpc))
    meshed = stack.enter_context(world.mesh.channel(f"xds:///{SERVICE}:81"))

    def runner(channel: grpc.Channel) -> Runner:
        method: Any = channel.unary_stream(LIST)

        def run(calls: int) -> None:
            for _ in range(calls):
                assert sum(1 for _ in method(b"%d" % MESSAGES)) == MESSAGES

        return run

    return runner(plain), runner(meshed)


def _aio_stream(world: World, stack: ExitStack) -> tuple[Runner, Runner]:
    run = stack.enter_context(event_loop())

    async def open_both() -> tuple[grpc.aio.Channel, grpc.aio.Channel]:
        return grpc.aio.insecure_channel(world.grpc), world.mesh.aio_channel(f"xds:///{SERVICE}:81")

    channels: tuple[grpc.aio.Channel, grpc.aio.Channel] = run(open_both())
    for channel in channels:
        stack.callback(lambda channel=channel: run(channel.close()))

    def runner(channel: grpc.aio.Channel) -> Runner:
        method: Any = channel.unary_stream(LIST)

        async def call() -> None:
            count = 0
            async for _ in method(b"%d" % MESSAGES):
                count += 1
            assert count == MESSAGES

        return lambda calls: run(spread(call, calls, 1))

    return runner(channels[0]), runner(channels[1])


def _secured(make: Callable[..., tuple[Runner, Runner]], mode: str) -> Open:
    return partial(_secure, make, mode)


PAIRS = (
    Pair("grpc sync unary", partial(_sync, _plain), 1000),
    Pair("grpc.aio unary", partial(_aio, _plain), 1000),
    Pair("grpc sync unary / grpcio xds:///", partial(_sync, _grpcio_xds), 1000),
    Pair("grpc.aio unary / grpcio xds:///", partial(_aio, _grpcio_xds), 1000),
    Pair("grpc sync unary, mTLS by core / TLS", _secured(_sync, "core"), 1000),
    Pair("grpc.aio unary, mTLS by core / TLS", _secured(_aio, "core"), 1000),
    Pair("grpc sync unary, mTLS by relay / TLS", _secured(_sync, "relay"), 500),
    Pair("grpc.aio unary, mTLS by relay / TLS", _secured(_aio, "relay"), 500),
    Pair(f"grpc sync, {MESSAGES} messages down", _sync_stream, 5),
    Pair(f"grpc.aio, {MESSAGES} messages down", _aio_stream, 5),
)
