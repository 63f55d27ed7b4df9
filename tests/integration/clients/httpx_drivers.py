"""One face for the httpx clients under test: blocking, and async under asyncio, uvloop and trio.

A behaviour is written once, with blocking calls, and holds for every driver: those over the mesh, and those of plain
httpx, which prove that what the behaviour says is httpx's own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal

from meshlib.clients.httpx_async import AsyncMeshTransport
from meshlib.clients.httpx_sync import MeshTransport

DRIVERS = ("plain sync", "plain asyncio", "sync", "asyncio", "uvloop", "trio")


class Driver:
    """Makes clients. Attributes: name, is_async, is_meshed."""

    def __init__(self, name: str, mesh: Any, stack: ExitStack) -> None:
        self.name = name
        self.mesh = mesh
        self.is_meshed = not name.startswith("plain")
        self.is_async = name.split()[-1] != "sync"
        self._stack = stack
        self.portal: BlockingPortal | None = None
        if self.is_async:
            options = {"use_uvloop": True} if name == "uvloop" else {}
            backend = "trio" if name.endswith("trio") else "asyncio"
            self.portal = stack.enter_context(start_blocking_portal(backend, options))

    def transport(self, **options: Any) -> Any:
        """Return a transport: the mesh's, or httpx's own."""
        if self.is_async:
            return AsyncMeshTransport(self.mesh, **options) if self.is_meshed else httpx.AsyncHTTPTransport(**options)
        return MeshTransport(self.mesh, **options) if self.is_meshed else httpx.HTTPTransport(**options)

    def client(self, *, transport: Any = None, limits: httpx.Limits | None = None, **options: Any) -> "Client":
        """Return a client, closed at the end of the test."""
        made = {} if limits is None else {"limits": limits}
        options.setdefault("timeout", 10)
        options["transport"] = transport or self.transport(**made)
        client = Client(self, options)
        self._stack.callback(client.close)
        return client

    def call(self, function: Callable[[], Any]) -> Any:
        """Run a function, which is async for the async drivers."""
        return function() if self.portal is None else self.portal.call(function)

    def pieces(self, parts: Iterable[bytes]) -> Any:
        """Return a body that is made as it is sent."""
        if not self.is_async:
            return (part for part in parts)

        async def made() -> Any:
            for part in parts:
                yield part

        return made()

    def hook(self, function: Callable[..., None]) -> Any:
        """Return an event hook."""
        if not self.is_async:
            return function

        async def made(*arguments: Any) -> None:
            function(*arguments)

        return made


class Client:
    """A client; `inner` is httpx's."""

    def __init__(self, driver: Driver, options: Mapping[str, Any]) -> None:
        self.driver = driver

        def make() -> Any:
            return httpx.Client(**options)

        async def amake() -> Any:
            return httpx.AsyncClient(**options)

        self.inner: Any = driver.call(amake if driver.is_async else make)

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        """Make a request and read the response."""
        inner = self.inner
        return self.driver.call(lambda: inner.request(method, url, **options))

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.request("GET", url, **options)

    def post(self, url: str, **options: Any) -> httpx.Response:
        return self.request("POST", url, **options)

    def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        inner = self.inner
        return self.driver.call(lambda: inner.send(request, **options))

    @contextmanager
    def stream(self, method: str, url: str, **options: Any) -> Iterator["Streamed"]:
        """Make a request whose response is read as the caller wants."""
        made = self.inner.stream(method, url, **options)
        if self.driver.portal is None:
            with made as response:
                yield Streamed(self.driver, response)
        else:
            with self.driver.portal.wrap_async_context_manager(made) as response:
                yield Streamed(self.driver, response)

    def close(self) -> None:
        inner = self.inner
        self.driver.call(inner.aclose if self.driver.is_async else inner.close)


class Streamed:
    """A response that is being streamed."""

    def __init__(self, driver: Driver, response: httpx.Response) -> None:
        self.driver = driver
        self.response = response

    def read(self) -> bytes:
        response = self.response
        return self.driver.call(response.aread if self.driver.is_async else response.read)

    def close(self) -> None:
        response = self.response
        self.driver.call(response.aclose if self.driver.is_async else response.close)

    def each(self, kind: str, *arguments: Any) -> list[Any]:
        """Return everything that `iter_<kind>` gives."""
        response = self.response
        if not self.driver.is_async:
            return list(getattr(response, f"iter_{kind}")(*arguments))

        async def collect() -> list[Any]:
            return [part async for part in getattr(response, f"aiter_{kind}")(*arguments)]

        return self.driver.call(collect)

    def count(self, kind: str) -> int:
        """Return the sum of the lengths of what `iter_<kind>` gives, none of it kept."""
        response = self.response
        if not self.driver.is_async:
            return sum(len(part) for part in getattr(response, f"iter_{kind}")())

        async def collect() -> int:
            total = 0
            async for part in getattr(response, f"aiter_{kind}")():
                total += len(part)
            return total

        return self.driver.call(collect)


def opened(name: str, mesh: Any) -> AbstractContextManager[Driver]:
    """Make a driver for a block."""

    @contextmanager
    def block() -> Iterator[Driver]:
        with ExitStack() as stack:
            yield Driver(name, mesh, stack)

    return block()
