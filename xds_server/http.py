"""The HTTP server under the admin pages: uvicorn in a loop and a process that are not its own, and with less patience.

uvicorn waits for a request's head as long as it takes, so that callers who send a byte now and then hold connections for
ever. Here a head must be there in time, whether it is the first of a connection or a later one, and a caller must read
its answer. Heads are parsed by h11, which limits them (64 KiB); httptools does not.
"""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["HEAD_S", "HttpServer"]

HEAD_S: Final = 10.0
READ_S: Final = 30.0
"""Without a single byte read of an answer that waits to be."""


class _Hurried(H11Protocol):
    """Closes a connection whose caller takes too long."""

    _waiting: asyncio.TimerHandle | None = None
    _unread = 0
    _is_paused = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait(HEAD_S)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        is_served = self.cycle is not None and not self.cycle.response_complete
        if self._is_paused:
            return
        if is_served:
            self._stop_waiting()
        elif self._waiting is None:  # bytes that came before do not buy time
            self._wait(HEAD_S)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._is_paused = True
        self._wait(READ_S)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_paused = False
        self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self, seconds: float) -> None:
        self._stop_waiting()
        self._unread = self._left()
        self._waiting = self.loop.call_later(seconds, self._late)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _left(self) -> int:
        return int(self.transport.get_write_buffer_size())

    def _late(self) -> None:
        self._waiting = None
        if self._is_paused and self._left() < self._unread:
            self._wait(READ_S)
        else:
            self.transport.abort()


class HttpServer(uvicorn.Server):
    """Serves an ASGI application on a socket that is there already."""

    _task: "asyncio.Task[None] | None" = None

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", http=_Hurried))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals are the command's business

    async def start(self, sock: socket.socket) -> None:
        """Serve from now on.

        Raises:
            RuntimeError: It did not come up.
        """
        self._task = asyncio.create_task(self.serve(sockets=[sock]), name="http")
        while not self.started and not self._task.done():
            await asyncio.sleep(0.005)
        if self._task.done():
            await self._task
            raise RuntimeError("the HTTP server did not start")

    async def stop(self) -> None:
        """Answer what is being answered, and end."""
        self.should_exit = True
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
