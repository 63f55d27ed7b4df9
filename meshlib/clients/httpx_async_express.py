"""HTTP requests of event loops that need no `Call` as long as they go well; see `httpx_express`."""

from collections.abc import AsyncIterator

import httpx

from meshlib.call import Call
from meshlib.clients.connections_async import AsyncHttp1Pool
from meshlib.clients.http1_async import READ_BYTES, AsyncHttp1Connection
from meshlib.clients.httpx_async_exchange import Pool, close_all
from meshlib.clients.httpx_common import learn_of_trailers
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
        pool = lease.pool
        assert isinstance(pool, AsyncHttp1Pool)
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
    """A response body, and its iterator: an async generator would cost as much as a request's headers."""

    __slots__ = ("_begun", "_call", "_connection", "_is_closed", "_lease", "_pieces", "_pool", "_pools", "_status")

    def __init__(
        self,
        begun: Begun,
        pools: Pools[Pool],
        lease: Lease[Pool],
        pool: AsyncHttp1Pool,
        connection: AsyncHttp1Connection,
        status: int,
    ) -> None:
        self._begun = begun
        self._pools = pools
        self._lease = lease
        self._pool = pool
        self._connection = connection
        self._status = status
        self._pieces: list[bytes] | None = None
        self._call: Call | None = None
        self._is_closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        connection = self._connection
        reader, pieces = connection.reader, self._pieces
        try:
            if pieces is None:
                pieces = self._pieces = reader.open_body()
            while not pieces and not reader.is_complete:
                stream = connection.stream
                data = await stream.read(READ_BYTES, self._begun.sent.timeouts.step_s("read"))
                pieces = self._pieces = reader.body(data)
        except Exception as error:
            raise self._broken(error)  # noqa: B904 - it carries its cause
        if pieces:
            return pieces.pop(0)
        raise StopAsyncIteration

    def _broken(self, error: Exception) -> Exception:
        begun = self._begun
        call = self._call = self._call or begun.answered(self._status)
        return body_error(call, error, begun.request, begun.sent.timeouts, begun.mesh.clock())

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        begun, pool, connection, call = self._begun, self._pool, self._connection, self._call
        try:
            closing = pool.leave(connection, keep=connection.is_reusable)
            if closing:
                await pool.close_all(closing)
        finally:
            if call is None and begun.way.cluster.learner is not None:  # since a moment ago
                call = begun.answered(self._status)
            if call is None:
                begun.ended(self._status)
            else:
                now = begun.mesh.clock()
                if call.wants_trailers:
                    learn_of_trailers(call, {"trailers": connection.reader.trailers}, now)
                call.close(now, status=self._status)
            idle = self._pools.release(self._lease)
            if idle:
                await close_all(idle)
