"""How an RPC ends, as far as its server can know, and when."""

import asyncio
import logging
import sys
from contextvars import copy_context
from typing import Any, Final

import grpc

from meshlib.servers.inbound import InboundRequest

__all__ = ["CallEnd", "StreamEnd"]

_LOG = logging.getLogger(__name__)

CANCELLED: Final = 1
UNKNOWN: Final = 2
DEADLINE_EXCEEDED: Final = 4


class CallEnd:
    """How a call ends, as far as the server knows."""

    __slots__ = ("_context", "_has_returned", "_request")

    def __init__(self, request: InboundRequest, context: Any) -> None:
        self._request = request
        self._context = context
        self._has_returned = False

    def returned(self) -> None:
        """The handler has come to its end."""
        self._has_returned = True

    def report(self) -> None:
        """Report the status: what the handler set, else OK after a return, else why there was none."""
        self._request.finish(200, self._code())

    def _code(self, otherwise: int = UNKNOWN) -> int:
        context = self._context
        # The context that grpc.aio gives to plain functions has no code().
        code = context.code() if hasattr(context, "code") else None
        if isinstance(code, grpc.StatusCode):
            return int(code.value[0])
        if isinstance(code, int) and code:
            return code
        if self._has_returned:
            return 0
        if (remaining_s := context.time_remaining()) is not None and remaining_s <= 0.0:
            return DEADLINE_EXCEEDED
        if isinstance(sys.exception(), asyncio.CancelledError | GeneratorExit):
            return CANCELLED  # the caller went, and grpcio dropped the handler
        is_active = getattr(context, "is_active", None)
        return CANCELLED if is_active is not None and not is_active() else otherwise


class StreamEnd(CallEnd):
    """The end of a stream of responses from an async generator.

    When the caller leaves, grpc.aio cancels its own task and drops the generators: they stay where they are until the
    garbage collector closes them, at some time and in whatever context. So the end of the RPC is waited for too, and
    what it finds open is reported and closed then.
    """

    __slots__ = ("_generator", "_inside")

    def watch(self, generator: Any) -> None:
        """See to it that the handler's generator is closed with the RPC; its code sees what is current now."""
        self._generator = generator
        self._inside = copy_context()
        self._context.add_done_callback(self._over)

    async def close(self) -> None:
        """Close the handler's generator here, where it ran."""
        generator, self._generator = self._generator, None
        if generator is not None and hasattr(generator, "aclose"):
            await generator.aclose()

    def _over(self, context: Any) -> None:
        if self._generator is not None:
            self._request.finish(200, self._code(CANCELLED))
            task = asyncio.get_running_loop().create_task(self.close(), context=self._inside)
            _closing.add(task)
            task.add_done_callback(_closed)


# Tasks are held weakly by their loop.
_closing: set[asyncio.Task[None]] = set()


def _closed(task: asyncio.Task[None]) -> None:
    _closing.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        _LOG.error("a handler of a stream failed after its caller had left", exc_info=error)
