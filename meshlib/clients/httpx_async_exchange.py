"""One request of the async transport on its way to the network: connections, bodies, and copies of it."""

import contextlib
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import assert_never, cast

import anyio
import httpcore
import httpx

from meshlib.call import Attempt, Call
from meshlib.clients.connections_async import AsyncHttp1Pool
from meshlib.clients.drive import AsyncShell, arun
from meshlib.clients.http1_response import RawResponse
from meshlib.clients.http2_async import AsyncHttp2Pool
from meshlib.clients.httpx_common import (
    BROKEN,
    DISCARD_S,
    MeshRecord,
    is_small,
    learn_of_trailers,
    pool_key_of,
    response_headers,
    response_of,
    timeouts_for,
)
from meshlib.clients.httpx_errors import (
    body_error,
    failure_or_raise,
    is_safe_to_resend,
)
from meshlib.clients.httpx_express import Tried
from meshlib.clients.httpx_requests import http1_request_for, http2_request_for
from meshlib.clients.mirrors import AsyncMirrors, Copy, copies_of
from meshlib.clients.pacing import Pacer
from meshlib.clients.pools import Lease, Pools
from meshlib.clients.source import MeshSource
from meshlib.clients.timeouts import AttemptTimeouts
from meshlib.model.outcome import Failure, LocalReply, Outcome, Response
from meshlib.model.route import MirrorPolicy

__all__ = ["Exchange", "Pool", "close_all"]

_Raw = RawResponse | httpcore.Response
Pool = AsyncHttp1Pool | AsyncHttp2Pool


class Exchange:
    """One request's way to the network: what its latest attempt has leased and received."""

    __slots__ = (
        "_call",
        "_early",
        "_lease",
        "_mesh",
        "_mirrors",
        "_pools",
        "_raw",
        "_replayable",
        "_request",
        "_timeouts",
    )

    def __init__(
        self,
        mesh: MeshSource,
        pools: Pools[Pool],
        request: httpx.Request,
        call: Call,
        *,
        replayable: bool,
        mirrors: AsyncMirrors | None = None,
        early: Tried[Pool] | None = None,
    ) -> None:
        """As the blocking one."""
        self._early = early
        self._mesh = mesh
        self._pools = pools
        self._mirrors = mirrors
        self._request = request
        self._call = call
        self._replayable = replayable
        self._lease: Lease[Pool] | None = None
        self._timeouts: AttemptTimeouts | None = None
        self._raw: _Raw | None = None

    def fork(self) -> "Exchange":
        return Exchange(
            self._mesh, self._pools, self._request, self._call, replayable=self._replayable, mirrors=self._mirrors
        )

    def adopt(self, winner: AsyncShell) -> None:
        assert isinstance(winner, Exchange)
        self._raw, winner._raw = winner._raw, None
        self._lease, winner._lease = winner._lease, None
        self._timeouts = winner._timeouts

    async def send(self, attempt: Attempt) -> Outcome:
        early, self._early = self._early, None
        if early is not None:
            timeouts, self._lease = early.timeouts, early.lease
            result = early.result
            outcome = (
                await self._failed(result, timeouts)
                if isinstance(result, BaseException)
                else self._received(result, timeouts)
            )
        else:
            match = self._call.match
            if match is not None and match.mirrors and attempt.number == 1 and self._mirrors is not None:
                self._copy(attempt, match.mirrors, self._mirrors)
            timeouts = timeouts_for(attempt, self._request, self._mesh.clock, self._call, replayable=self._replayable)
            outcome = await self._try(attempt, timeouts, fresh=False)
        if isinstance(outcome, Failure) and is_safe_to_resend(
            attempt.head, timeouts, outcome, replayable=self._replayable
        ):
            timeouts.begin_again()
            outcome = await self._try(attempt, timeouts, fresh=True)
        self._timeouts = timeouts
        return outcome

    def _copy(self, attempt: Attempt, policies: Iterable[MirrorPolicy], mirrors: AsyncMirrors) -> None:
        mesh, pools = self._mesh, self._pools
        for copy in copies_of(mesh, self._request, self._call, attempt, policies):
            if not mirrors.submit(partial(_send_copy, mesh, pools, copy)):
                copy.end(0, "overflow")

    async def _try(self, attempt: Attempt, timeouts: AttemptTimeouts, *, fresh: bool) -> Outcome:
        try:
            key = pool_key_of(attempt, self._mesh, self._request, self._call.breaker)
            lease = self._lease = self._pools.acquire(key, fresh=fresh)
            pool = lease.pool
            raw: _Raw
            if isinstance(pool, AsyncHttp1Pool):
                raw = await pool.handle_async_request(http1_request_for(attempt, self._request, timeouts, key))
            else:
                raw = await pool.share(http2_request_for(attempt, self._request, timeouts, key))
        except BaseException as error:
            return await self._failed(error, timeouts)
        return self._received(raw, timeouts)

    async def _failed(self, error: BaseException, timeouts: AttemptTimeouts) -> Failure:
        await self._release()
        if not isinstance(error, Exception):
            raise error
        return failure_or_raise(error, timeouts, self._call, self._request)

    def _received(self, raw: _Raw, timeouts: AttemptTimeouts) -> Response:
        call = self._call
        if self._replayable:
            ends_at = call.body_deadline
        else:  # a request that was streamed has had its own time: the call's began before it
            sent_at = timeouts.sent_at
            ends_at = call.body_deadline_after(self._mesh.clock() if sent_at is None else sent_at)
        timeouts.begin_body(ends_at, call.idle_s)
        self._raw = raw
        return response_of(raw)

    async def discard(self) -> None:
        raw, self._raw = self._raw, None
        try:
            if raw is not None:
                stream = cast(httpx.AsyncByteStream, raw.stream)
                try:
                    if is_small(raw) and self._timeouts is not None:
                        self._timeouts.rush(DISCARD_S)
                        with contextlib.suppress(*BROKEN):
                            async for _ in stream:
                                pass
                finally:
                    with anyio.CancelScope(shield=True):
                        await stream.aclose()
        finally:
            await self._release()

    def response(self, outcome: Response, record: MeshRecord) -> httpx.Response:
        raw = self._raw
        assert raw is not None  # the outcome was a response, and it was not discarded
        return httpx.Response(
            status_code=raw.status,
            headers=response_headers(raw, outcome, self._call),
            stream=_Body(self, raw),
            extensions={**raw.extensions, "mesh": record},
        )

    async def parts(self, raw: _Raw) -> AsyncIterator[bytes]:
        try:
            if self._call.body_rate:
                async for part in self._paced(raw):
                    yield part
            else:
                async for part in cast(httpx.AsyncByteStream, raw.stream):
                    yield part
        except BaseException as error:
            found = error
            if isinstance(error, Exception):
                found = body_error(self._call, error, self._request, self._timeouts, self._mesh.clock())
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise found  # noqa: B904 - it carries its cause

    async def _paced(self, raw: _Raw) -> AsyncIterator[bytes]:
        """Yield a body no faster than an injected fault lets it come."""
        clock = self._mesh.clock
        pacer = Pacer(self._call.body_rate, clock())
        async for part in cast(httpx.AsyncByteStream, raw.stream):
            for piece in pacer.slices(part):
                wait_s = pacer.wait_s(piece, clock())
                if wait_s:
                    await anyio.sleep(wait_s)
                yield piece

    async def drop(self) -> None:
        """Read a response that nobody wants to its end, so that its connection can be kept."""
        raw = self._raw
        assert raw is not None  # as for `response`
        try:
            async for _ in self.parts(raw):
                pass
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            try:
                await cast(httpx.AsyncByteStream, raw.stream).aclose()
            finally:
                self._end(raw)
                await self._release()

    def forsake(self) -> None:
        """For finalisers: nobody is going to close the response."""
        if self._raw is not None:
            self._pools.dropped.append(self)

    def give_back(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            self._end(raw)

    def _end(self, raw: _Raw) -> None:
        now = self._mesh.clock()
        if self._call.wants_trailers:
            learn_of_trailers(self._call, raw.extensions, now)
        self._call.close(now, status=raw.status)

    async def _release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            await close_all(self._pools.release(lease))


async def close_all(pools: list[Pool]) -> None:
    if pools:
        with anyio.CancelScope(shield=True):
            for pool in pools:
                await pool.aclose()


async def _send_copy(mesh: MeshSource, pools: Pools[Pool], copy: Copy) -> None:
    """Send a copy of a request and drop the answer; nothing that goes wrong gets out of here."""
    call, status, failure = copy.call, 0, "cancelled"
    exchange = Exchange(mesh, pools, copy.request, call, replayable=True)
    try:
        done = await arun(call, exchange, clock=mesh.clock, sleep=anyio.sleep)
        match done.result:
            case Response(status=status):
                failure = ""
                await exchange.drop()
            case Failure(kind=kind):
                failure = kind.value
            case LocalReply(flag=flag):
                failure = flag
            case _:
                assert_never(done.result)
    except Exception as error:
        failure = type(error).__name__
    finally:
        copy.end(status, failure)


class _Body(httpx.AsyncByteStream):
    """A response body; the call's permits are held until it is closed, or dropped."""

    __slots__ = ("_exchange", "_raw")

    def __init__(self, exchange: Exchange, raw: _Raw) -> None:
        self._exchange = exchange
        self._raw = raw

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._exchange.parts(self._raw)

    async def aclose(self) -> None:
        await self._exchange.aclose()

    def __del__(self) -> None:
        self._exchange.forsake()
