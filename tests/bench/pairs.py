"""What is compared: the same call with and without the mesh, by the client that the application would use."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
import httpx

import meshlib

SERVICE = "bench"
METHOD = "/bench.Orders/Get"

Runner = Callable[[int], None]
"""Makes so many calls."""


@dataclass(frozen=True)
class Addresses:
    """Where the servers are without the mesh, as `host:port`."""

    http: str
    grpc: str


Open = Callable[[meshlib.Mesh, Addresses, ExitStack], tuple[Runner, Runner]]


@dataclass(frozen=True)
class Pair:
    """Attributes:
    open: Makes the plain and the meshed client and returns what calls each; they end with the stack.
    calls: In one round of a full run.
    """

    name: str
    open: Open
    calls: int


def _httpx_sync(mesh: meshlib.Mesh, addresses: Addresses, stack: ExitStack) -> tuple[Runner, Runner]:
    plain = stack.enter_context(httpx.Client())
    meshed = stack.enter_context(httpx.Client(transport=mesh.httpx_transport()))

    def runner(client: httpx.Client, url: str) -> Runner:
        def run(calls: int) -> None:
            for _ in range(calls):
                assert client.get(url).status_code == 200

        return run

    return runner(plain, f"http://{addresses.http}/orders/1"), runner(meshed, f"http://{SERVICE}/orders/1")


@contextmanager
def _loop() -> Iterator[Callable[[Awaitable[Any]], Any]]:
    with asyncio.Runner() as runner:
        yield lambda made: runner.run(_awaited(made))


async def _awaited(made: Awaitable[Any]) -> Any:
    return await made


async def _spread(call: Callable[[], Awaitable[None]], calls: int, at_once: int) -> None:
    """Make calls, so many at a time."""
    if at_once == 1:
        for _ in range(calls):
            await call()
        return

    async def worker(share: int) -> None:
        for _ in range(share):
            await call()

    await asyncio.gather(*(worker(calls // at_once) for _ in range(at_once)))


def _httpx_async(at_once: int) -> Open:
    def make(mesh: meshlib.Mesh, addresses: Addresses, stack: ExitStack) -> tuple[Runner, Runner]:
        run = stack.enter_context(_loop())
        plain = httpx.AsyncClient()
        meshed = httpx.AsyncClient(transport=mesh.async_httpx_transport())
        clients = AsyncExitStack()
        run(clients.enter_async_context(plain))
        run(clients.enter_async_context(meshed))
        stack.callback(lambda: run(clients.aclose()))

        def runner(client: httpx.AsyncClient, url: str) -> Runner:
            async def call() -> None:
                assert (await client.get(url)).status_code == 200

            return lambda calls: run(_spread(call, calls, at_once))

        return runner(plain, f"http://{addresses.http}/orders/1"), runner(meshed, f"http://{SERVICE}/orders/1")

    return make


def _grpc_sync(mesh: meshlib.Mesh, addresses: Addresses, stack: ExitStack) -> tuple[Runner, Runner]:
    plain = stack.enter_context(grpc.insecure_channel(addresses.grpc))
    meshed = stack.enter_context(mesh.channel(f"xds:///{SERVICE}:81"))

    def runner(channel: grpc.Channel) -> Runner:
        method: Any = channel.unary_unary(METHOD)

        def run(calls: int) -> None:
            for _ in range(calls):
                assert method(b"1", timeout=10)

        return run

    return runner(plain), runner(meshed)


def _grpc_aio(mesh: meshlib.Mesh, addresses: Addresses, stack: ExitStack) -> tuple[Runner, Runner]:
    run = stack.enter_context(_loop())

    async def connect() -> tuple[grpc.aio.Channel, grpc.aio.Channel]:
        return grpc.aio.insecure_channel(addresses.grpc), mesh.aio_channel(f"xds:///{SERVICE}:81")

    channels: tuple[grpc.aio.Channel, grpc.aio.Channel] = run(connect())
    for channel in channels:
        stack.callback(lambda channel=channel: run(channel.close()))

    def runner(channel: grpc.aio.Channel) -> Runner:
        method: Any = channel.unary_unary(METHOD)

        async def call() -> None:
            assert await method(b"1", timeout=10)

        return lambda calls: run(_spread(call, calls, 1))

    return runner(channels[0]), runner(channels[1])


PAIRS = (
    Pair("httpx sync", _httpx_sync, 1000),
    Pair("httpx async, 1 at a time", _httpx_async(1), 1000),
    Pair("httpx async, 50 at once", _httpx_async(50), 1000),
    Pair("grpc sync unary", _grpc_sync, 1000),
    Pair("grpc.aio unary", _grpc_aio, 1000),
)
