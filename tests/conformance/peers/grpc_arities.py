"""Calls of all four kinds, and a server that keeps them waiting: at the beginning, in the middle, or for ever.

Also for `grpcio_program.py`, which is run as a program of its own: nothing but gRPC is imported.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio

__all__ = ["KINDS", "PAUSE_S", "WaitingServer", "aplay", "play"]

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
PAUSE_S = 0.3


class WaitingServer(grpc.GenericRpcHandler):
    """The last part of a method says how it answers: `Quick`, `Late`, `Stalls` after headers and first message, `Never`.

    On an event loop of its own: many calls wait beside each other.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        self._thread.start()
        assert self._is_up.wait(20)

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        server = grpc.aio.server(handlers=[self])
        self.port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self._is_up.set()
        await self._over.wait()
        await server.stop(None)

    def service(self, details: Any) -> Any:
        _, kind, how = details.method.split("/")

        async def stream(requests: Any, context: Any) -> AsyncIterator[bytes]:
            count = 1 if isinstance(requests, bytes) else len([one async for one in requests])
            if how == "Late":
                await asyncio.sleep(4 * PAUSE_S)
            elif how == "Stalls":
                await context.send_initial_metadata(())
                if kind.endswith("_stream"):
                    yield b"first"
            if how in ("Stalls", "Never"):
                await self._over.wait()
            yield b"%d" % count

        async def one(requests: Any, context: Any) -> bytes:
            return [message async for message in stream(requests, context)][-1]

        make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(stream if kind.endswith("_stream") else one)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()


def _messages() -> Iterator[bytes]:
    for _ in range(3):
        time.sleep(PAUSE_S)
        yield b"part"


def play(channel: Any, kind: str, how: str, timeout_s: float | None) -> tuple[str, list[str]]:
    """Make a call; returns the code's name, and the messages that came."""
    function = getattr(channel, kind)(f"/{kind}/{how}")
    got: list[str] = []
    try:
        answer = function(_messages() if kind.startswith("stream") else b"whole", timeout=timeout_s)
        if kind.endswith("_stream"):
            for message in answer:
                got.append(message.decode())
        else:
            got.append(answer.decode())
    except grpc.RpcError as error:
        return error.code().name, got
    return "OK", got


async def aplay(channel: Any, kind: str, how: str, timeout_s: float | None) -> tuple[str, list[str]]:
    """As `play`, over a channel of `grpc.aio`."""

    async def messages() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(PAUSE_S)
            yield b"part"

    function = getattr(channel, kind)(f"/{kind}/{how}")
    got: list[str] = []
    try:
        call = function(messages() if kind.startswith("stream") else b"whole", timeout=timeout_s)
        if kind.endswith("_stream"):
            async for message in call:
                got.append(message.decode())
        else:
            got.append((await call).decode())
    except grpc.RpcError as error:
        return error.code().name, got
    return "OK", got
