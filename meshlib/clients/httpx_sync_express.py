"""Blocking HTTP requests that need no `Call` as long as they go well; see `httpx_express`."""

from collections.abc import Iterator
from typing import Any

import httpx

from meshlib.call import Call
from meshlib.clients.http1_sync import Http1Connection
from meshlib.clients.http2_sync import Http2Answer
from meshlib.clients.httpx_errors import body_error
from meshlib.clients.httpx_express import Begun, Tried
from meshlib.clients.httpx_sync_exchange import Pool
from meshlib.clients.pools import Lease, Pools

__all__ = ["send_express"]


def send_express(begun: Begun, pools: Pools[Pool]) -> httpx.Response | Tried[Pool]:
    """Send a request that has begun and has a berth.

    Returns:
        The response for the caller; or what came of it otherwise, with which its call is to go on.
    """
    berth, sent = begun.berth, begun.sent
    assert berth is not None
    lease: Lease[Pool] | None = None
    try:
        lease = pools.acquire(berth.key)
        pool: Any = lease.pool  # what it takes is what the berth's protocol has made
        connection, head = pool.exchange(sent)
    except BaseException as error:
        return Tried(sent.timeouts, lease, error)
    if not begun.is_final(head):
        return Tried(sent.timeouts, lease, pool.response(connection, head, sent))
    sent.timeouts.begin_body(begun.body_deadline(), begun.way.idle_s)
    extensions = connection.extensions(sent, head)
    extensions["mesh"] = berth.record
    body = _Body(begun, pools, lease, pool, connection, head.status)
    return httpx.Response(head.status, headers=head.headers, stream=body, extensions=extensions)


class _Body(httpx.SyncByteStream):
    """A response body; what the request took is held until it is there or closed, or dropped."""

    __slots__ = ("_begun", "_call", "_connection", "_is_closed", "_lease", "_pool", "_pools", "_status")

    def __init__(
        self,
        begun: Begun,
        pools: Pools[Pool],
        lease: Lease[Pool],
        pool: Pool,
        connection: Http1Connection | Http2Answer,
        status: int,
    ) -> None:
        self._begun = begun
        self._pools = pools
        self._lease = lease
        self._pool = pool
        self._connection = connection
        self._status = status
        self._call: Call | None = None
        self._is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        reader = self._connection.reader
        try:
            pieces = reader.open_body()
        except Exception as error:
            found = self._broken(error)
            self.close()
            raise found  # noqa: B904 - it carries its cause
        if not reader.is_complete:
            return self._rest(pieces)
        # Mostly it came together with the head.
        if self._connection.is_reusable:
            self._leave(True)
        return iter(pieces)

    def _rest(self, pieces: list[bytes]) -> Iterator[bytes]:
        try:
            yield from pieces
            connection: Any = self._connection
            yield from connection.pieces(self._begun.sent)
        except Exception as error:
            found = self._broken(error)
            self.close()
            raise found  # noqa: B904 - it carries its cause
        except GeneratorExit:  # as of a `break`, and perhaps in a finaliser
            if not self._is_closed:
                if not self._connection.is_reusable:
                    self._connection.close()
                self._pools.dropped.append(self)
            raise
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        if not self._is_closed:
            self._pools.dropped.append(self)

    def _broken(self, error: Exception) -> Exception:
        begun = self._begun
        call = self._call = self._call or begun.answered(self._status)
        return body_error(call, error, begun.request, begun.sent.timeouts, begun.mesh.clock())

    def close(self) -> None:
        if not self._is_closed:
            self._leave(self._connection.is_reusable)

    def _leave(self, keep: bool) -> None:
        """Give everything back."""
        self._is_closed = True
        pool: Any = self._pool
        try:
            pool.leave(self._connection, keep=keep)
        finally:
            self._begun.left(self._call, self._status, self._connection.reader)
            for pool in self._pools.release(self._lease):
                pool.close()

    def give_back(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._begun.left(self._call, self._status, self._connection.reader)
