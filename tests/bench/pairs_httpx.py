"""Pairs of httpx clients."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
from pair import Open, Pair, Runner
from world import CANARY, HTTP2, SECURE, SERVICE, World

SMALL, BIG = "/orders/1", "/big/1"
MIB = b"x" * 1048576


@dataclass(frozen=True)
class Case:
    """Attributes:
    plain: Whom the plain client calls: `direct`, `tls`, `http2` or `envoy`; `canary`: as `direct`.
    path: A path that the servers know.
    content: Body of the request; None: a GET.
    is_stream: Bodies are streamed in pieces of 64 KiB, both ways.
    """

    plain: str = "direct"
    path: str = SMALL
    content: bytes | None = None
    is_stream: bool = False

    def urls(self, world: World) -> tuple[str, str]:
        """Return the URL for the plain and for the meshed client."""
        match self.plain:
            case "tls":
                return f"https://{world.tls}{self.path}", f"http://{SECURE}{self.path}"
            case "http2":
                return f"http://{world.http2}{self.path}", f"http://{HTTP2}{self.path}"
            case "canary":
                return f"http://{world.http}{self.path}", f"http://{CANARY}{self.path}"
            case "envoy":
                return f"http://{world.envoy}{self.path}", f"http://{SERVICE}{self.path}"
            case _:
                return f"http://{world.http}{self.path}", f"http://{SERVICE}{self.path}"

    def options(self, world: World) -> dict[str, Any]:
        """Return options of the plain client."""
        if self.plain == "tls":
            import ssl

            return {"verify": ssl.create_default_context(cafile=str(world.roots))}
        if self.plain == "http2":
            return {"http1": False, "http2": True}
        return {"headers": {"host": f"{SERVICE}.default.svc.cluster.local"}} if self.plain == "envoy" else {}


def _pieces(content: bytes) -> Iterator[bytes]:
    for at in range(0, len(content), 65536):
        yield content[at : at + 65536]


async def _apieces(content: bytes) -> AsyncIterator[bytes]:
    for piece in _pieces(content):
        yield piece


def _sync(case: Case, world: World, stack: ExitStack) -> tuple[Runner, Runner]:
    plain = stack.enter_context(httpx.Client(**case.options(world)))
    meshed = stack.enter_context(httpx.Client(transport=world.mesh.httpx_transport()))
    method = "GET" if case.content is None else "POST"

    def call(client: httpx.Client, url: str) -> None:
        if case.is_stream:
            content = _pieces(case.content or b"")
            length = {"content-length": str(len(case.content or b""))}
            with client.stream("POST", url, content=content, headers=length) as response:
                assert response.status_code == 200
                for _ in response.iter_bytes():
                    pass
        else:
            assert client.request(method, url, content=case.content).status_code == 200

    def runner(client: httpx.Client, url: str) -> Runner:
        def run(calls: int) -> None:
            for _ in range(calls):
                call(client, url)

        return run

    theirs, ours = case.urls(world)
    return runner(plain, theirs), runner(meshed, ours)


@contextmanager
def event_loop() -> Iterator[Callable[[Awaitable[Any]], Any]]:
    """Give a function that runs what is awaitable, always on the same loop."""
    with asyncio.Runner() as runner:
        yield lambda made: runner.run(_awaited(made))


async def _awaited(made: Awaitable[Any]) -> Any:
    return await made


async def spread(call: Callable[[], Awaitable[None]], calls: int, at_once: int) -> None:
    """Make calls, so many at a time."""
    if at_once == 1:
        for _ in range(calls):
            await call()
        return

    async def worker(share: int) -> None:
        for _ in range(share):
            await call()

    await asyncio.gather(*(worker(calls // at_once) for _ in range(at_once)))


def _async(case: Case, at_once: int, world: World, stack: ExitStack) -> tuple[Runner, Runner]:
    run = stack.enter_context(event_loop())
    plain = httpx.AsyncClient(**case.options(world))
    meshed = httpx.AsyncClient(transport=world.mesh.async_httpx_transport())
    clients = AsyncExitStack()
    run(clients.enter_async_context(plain))
    run(clients.enter_async_context(meshed))
    stack.callback(lambda: run(clients.aclose()))
    method = "GET" if case.content is None else "POST"

    def runner(client: httpx.AsyncClient, url: str) -> Runner:
        async def call() -> None:
            if case.is_stream:
                content = _apieces(case.content or b"")
                length = {"content-length": str(len(case.content or b""))}
                async with client.stream("POST", url, content=content, headers=length) as response:
                    assert response.status_code == 200
                    async for _ in response.aiter_bytes():
                        pass
            else:
                assert (await client.request(method, url, content=case.content)).status_code == 200

        return lambda calls: run(spread(call, calls, at_once))

    theirs, ours = case.urls(world)
    return runner(plain, theirs), runner(meshed, ours)


def _all(label: str, case: Case, calls: int, needs: str = "") -> Iterator[Pair]:
    def sync() -> Open:
        return partial(_sync, case)

    def at_once(number: int) -> Open:
        return partial(_async, case, number)

    yield Pair(f"httpx sync{label}", sync(), calls, needs)
    yield Pair(f"httpx async, 1 at a time{label}", at_once(1), calls, needs)
    yield Pair(f"httpx async, 50 at once{label}", at_once(50), calls, needs)


PAIRS = (
    *_all("", Case(), 1000),
    *_all(", canary", Case(plain="canary"), 1000),
    *_all(", mTLS / TLS", Case(plain="tls"), 500),
    *_all(", HTTP/2", Case(plain="http2"), 300),
    *_all(", mesh / through Envoy", Case(plain="envoy"), 500, needs="envoy"),
    Pair("httpx sync, 1 MiB down", partial(_sync, Case(path=BIG)), 50),
    Pair("httpx sync, 1 MiB up", partial(_sync, Case(content=MIB)), 50),
    Pair("httpx sync, 1 MiB streamed both ways", partial(_sync, Case(path=BIG, content=MIB, is_stream=True)), 50),
    Pair("httpx async, 1 MiB down", partial(_async, Case(path=BIG), 1), 50),
    Pair("httpx async, 1 MiB up", partial(_async, Case(content=MIB), 1), 50),
    Pair("httpx async, 1 MiB streamed both ways", partial(_async, Case(path=BIG, content=MIB, is_stream=True), 1), 50),
    Pair("httpx sync, 1 MiB down, mTLS / TLS", partial(_sync, Case(plain="tls", path=BIG)), 50),
    Pair("httpx async, 1 MiB down, mTLS / TLS", partial(_async, Case(plain="tls", path=BIG), 1), 50),
)
