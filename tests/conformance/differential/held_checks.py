"""Services whose health checks are answered one by one, when a script says so.

Whoever checks such a service has one check under way that waits for its answer, and comes back with the next one when it
has taken that in: so nothing is left to time.
"""

import asyncio
import contextlib
import threading
from dataclasses import dataclass, field
from typing import Final, Self

from peers.upstreams import Step

__all__ = ["ANSWER", "CHECK_PATH", "HeldChecks"]

CHECK_PATH: Final = "/healthz"
ANSWER: Final = "x-answer"
"""Header of a request: the status that it is to be answered with, and the name of a header of that answer."""


@dataclass(slots=True)
class _Service:
    """Attributes:
    first: Answers the first check at once; None: it waits as well.
    arrived: Checks so far.
    held: The check that waits.
    """

    first: Step | None
    arrived: int = 0
    held: "asyncio.Future[Step] | None" = None
    servers: list[asyncio.Server] = field(default_factory=list)


class HeldChecks:
    """HTTP/1.1 services on one thread."""

    def __init__(self) -> None:
        self._services: dict[str, _Service] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        for service in self._services.values():
            for server in service.servers:
                server.close()
        running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def open(self, host: str, first: Step | None) -> str:
        """Start a service; returns its address.

        Args:
            first: Answers the first check at once.
        """
        return asyncio.run_coroutine_threadsafe(self._open(host, _Service(first)), self._loop).result(10)

    async def _open(self, host: str, service: _Service) -> str:
        server = await asyncio.start_server(lambda reader, writer: self._serve(service, reader, writer), host, 0)
        service.servers.append(server)
        address = "{}:{}".format(*server.sockets[0].getsockname())
        self._services[address] = service
        return address

    def release(self, address: str, step: Step) -> bool:
        """Answer the check that waits, or the next one; False: none has come within a second."""
        return asyncio.run_coroutine_threadsafe(self._release(self._services[address], step), self._loop).result(10)

    async def _release(self, service: _Service, step: Step) -> bool:
        for _ in range(500):
            if service.held is not None and not service.held.done():
                service.held.set_result(step)
                return True
            await asyncio.sleep(0.002)
        return False

    def arrived(self, address: str) -> int:
        """Return how many checks there have been."""
        return self._services[address].arrived

    async def _serve(self, service: _Service, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                if head[0].split(" ")[1] == CHECK_PATH:
                    step = await self._check(service, reader)
                else:
                    pairs = (line.partition(": ") for line in head[1:])
                    said = next((value for name, _, value in pairs if name.lower() == ANSWER), "200")
                    status, _, name = said.partition(" ")
                    step = Step(int(status), headers=((name, "true"),) if name else ())
                if step is None or step.is_reset:
                    break
                lines = [f"HTTP/1.1 {step.status} x", *(f"{name}: {value}" for name, value in step.headers)]
                writer.write("\r\n".join([*lines, "content-length: 0", "", ""]).encode())
                await writer.drain()
        writer.close()

    async def _check(self, service: _Service, reader: asyncio.StreamReader) -> Step | None:
        """Return the answer to a check; None: whoever checked has gone."""
        service.arrived += 1
        if service.first is not None:
            step, service.first = service.first, None
            return step
        held = service.held = asyncio.get_running_loop().create_future()
        gone = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait({held, gone}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            await asyncio.wait({gone})  # it has the reader until it has ended
        if held.done():
            return held.result()
        if service.held is held:
            service.held = None
        return None
