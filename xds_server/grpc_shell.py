"""What every gRPC method of the server does around its own work: read, refuse with a status, contain faults."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, NoReturn, Protocol

import grpc
import grpc.aio

from xds_server.admission import Admission
from xds_server.statistics import Statistics
from xds_server.stream import StreamRefused
from xds_server.text import one_line

_log = logging.getLogger(__name__)


class GrpcService(Protocol):
    """A service that is offered beside discovery."""

    def handler(self, *, is_secure: bool) -> grpc.GenericRpcHandler:
        """Return its methods for one listener."""

    def finish(self) -> None:
        """End its streams: the server is going away."""


async def guarded(context: Any, body: Awaitable[None]) -> None:
    """Run a method and turn what ends it into a status (section 18 of the rules)."""
    try:
        await body
    except StreamRefused as refused:
        _log.info("stream of %s ended: %s: %s", context.peer(), refused.code, one_line(str(refused)))
        await _abort(context, refused.code, str(refused))
    except Exception as error:
        if isinstance(error, grpc.aio.AbortError) or context.cancelled():
            raise  # a client that goes away in the middle of a write is no fault of ours
        incident = uuid.uuid4().hex[:12]
        _log.exception("stream of %s failed, incident %s", context.peer(), incident)
        await _abort(context, "INTERNAL", f"a fault of the management server, see {incident} in its log")


@asynccontextmanager
async def admitted(admission: Admission, client: str, statistics: Statistics) -> AsyncIterator[None]:
    """Hold a place for a stream among those of its client, once it is its turn.

    Raises:
        StreamRefused: The client has too many streams, or opens them too fast.
    """
    try:
        wait_s = admission.open(client, asyncio.get_running_loop().time())
    except StreamRefused:
        statistics.streams_refused += 1
        raise
    try:
        if wait_s:
            await asyncio.sleep(wait_s)
        yield
    finally:
        admission.close(client)


async def read(context: Any) -> bytes | None:
    """Return the next message; None when the client has closed its side."""
    data = await context.read()
    return None if data is grpc.aio.EOF else data


def is_local(context: Any) -> bool:
    """Tell whether the peer is on this machine."""
    return str(context.peer()).startswith(("ipv4:127.", "ipv6:[::1]:", "ipv6:%5B::1%5D:", "unix:"))


async def _abort(context: Any, code: str, message: str) -> NoReturn:
    await context.abort(grpc.StatusCode[code], message)
    raise AssertionError("unreachable: abort raises")
