"""HTTP requests of event loops that need no `Call` as long as they go well; see `httpx_express`."""

from collections.abc import AsyncIterator
from typing import Any

import httpx

from meshlib.call import Call
from meshlib.clients.http1_async import READ_BYTES, AsyncHttp1Connection
from meshlib.clients.http2_async import AsyncHttp2Answer
from meshlib.clients.httpx_async_exchange import Pool, close_all
from meshlib.clients.httpx_errors import body_error
from meshlib.clients.httpx_express import Begun, Tried
from meshlib.clients.pools import Lease, Pools

__all__ = ["send_express"]


async def send_express(begun: Begun, pools: Pools[Pool]) -> httpx.Response | Tried[Pool]:
    """As the blocking one; a cancellation is one of the things that may come of it."""
    berth, sent = begun.berth, begun.sent
    assert berth is not None
    lease: Lease[Pool] | None = None
    try:
        lease = pools.acquire(berth.key)
        pool: Any = lease.pool  # what it takes is what the berth's protocol has made
        connection, head = await pool.exchange(sent)
    except BaseException as error:
        return Tried(sent.timeouts, lease, error)
    if not begun.is_final(head):
        return Tried(sent.timeouts, lease, pool.response(connection, head, sent))
    sent.timeouts.begin_body(begun.body_deadline(), begun.way.idle_s)
    extensions = connection.extensions(sent, head)
    extensions["mesh"] = berth.record
    body = _Body(begun, pools, lease, pool, connection, head.status)
    return httpx.Response(head.status, headers=head.headers, stream=body, extensions=extensions)


class _Body(httpx.AsyncByteStream):
    """A response body, and its iterator if it is there already: an async generator would cost as much as a request's
    headers. What the request took is held until the body is there or closed, or dropped."""

    __slots__ = (
        "_begun",
        "_call",
        "_closing",
        "_connection",
        "_idle",
        "_is_closed",
        "_lease",
        "_pieces",
        "_pool",
        "_pools",
        "_status",
    )

    def __init__(
        self,
        begun: Begun,
        pools: Pools[Pool],
        lease: Lease[Pool],
        pool: Pool,
        connection: AsyncHttp1Connection | AsyncHttp2Answer,
        status: int,
    ) -> None:
        self._begun = begun
        self._pools = pools
        self._lease = lease
        self._pool: Any = pool
        self._connection = connection
        self._status = status
        self._pieces: list[bytes] | None = None
        self._call: Call | None = None
        self._is_closed = False
        self._closing: list[AsyncHttp1Connection] | None = None
        self._idle: list[Pool] | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        connection = self._connection
        reader = connection.reader
        try:
            pieces = self._pieces = reader.open_body()
        except Exception as error:
            self._pools.dropped.append(self)  # closing may have to wait
            raise self._broken(error)  # noqa: B904 - it carries its cause
        if not reader.is_complete:
            return self._rest(pieces)
        # Mostly it came together with the head.
        if connection.is_reusable:
            self._leave(True)
        return self

    async def __anext__(self) -> bytes:
        if self._pieces:
            return self._pieces.pop(0)
        raise StopAsyncIteration

    async def _rest(self, pieces: list[bytes]) -> AsyncIterator[bytes]:
        connection, timeouts = self._connection, self._begun.sent.timeouts
        reader, stream = connection.reader, connection.stream
        try:
            for piece in pieces:
                yield piece
            while not reader.is_complete:
                for piece in reader.body(await stream.read(READ_BYTES, timeouts.step_s("read"))):
                    yield piece
        except BaseException as error:
            found = self._broken(error) if isinstance(error, Exception) else error
            await self.aclose()
            raise found  # noqa: B904 - it carries its cause

    def __del__(self) -> None:
        if not self._is_closed or self._closing or self._idle:
            self._pools.dropped.append(self)

    def _broken(self, error: Exception) -> Exception:
        begun = self._begun
        call = self._call = self._call or begun.answered(self._status)
        return body_error(call, error, begun.request, begun.sent.timeouts, begun.mesh.clock())

    async def aclose(self) -> None:
        if not self._is_closed:
            self._leave(self._connection.is_reusable)
        if self._closing:
            closing, self._closing = self._closing, None
            await self._pool.close_all(closing)
        if self._idle:
            idle, self._idle = self._idle, None
            await close_all(idle)

    def _leave(self, keep: bool) -> None:
        """Give everything back; what is to be closed then is left for `aclose`."""
        self._is_closed = True
        try:
            self._closing = self._pool.leave(self._connection, keep=keep)
        finally:
            self._begun.left(self._call, self._status, self._connection.reader)
            self._idle = self._pools.release(self._lease)

    def give_back(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._begun.left(self._call, self._status, self._connection.reader)
