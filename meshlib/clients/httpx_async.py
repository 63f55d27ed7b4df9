"""The async httpx transport: `httpx.AsyncClient(transport=mesh.async_httpx_transport())`.

Works under asyncio, uvloop and trio. Only a transport: authentication, cookies, redirects, event hooks and mounts of
the client work as ever.
"""

import contextlib
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import assert_never, cast

import anyio
import httpcore
import httpx

from meshlib.call import Attempt, Call, Done
from meshlib.clients.connections_async import AsyncHttp1Pool
from meshlib.clients.drive import AsyncShell, arun
from meshlib.clients.http1_response import RawResponse
from meshlib.clients.http2_async import AsyncHttp2Pool
from meshlib.clients.httpx_common import (
    BROKEN,
    DEFAULT_LIMITS,
    DISCARD_S,
    KnownAddresses,
    MeshRecord,
    Passthrough,
    authority_of,
    call_for,
    head_of,
    is_replayable,
    is_small,
    learn_of_trailers,
    local_response,
    passthrough_event,
    pool_key_of,
    record_of,
    response_headers,
    response_of,
    timeouts_for,
)
from meshlib.clients.httpx_errors import (
    body_error,
    failure_or_raise,
    httpx_error,
    is_safe_to_resend,
    refusal,
)
from meshlib.clients.httpx_redirects import FollowedRedirects
from meshlib.clients.httpx_requests import http1_request_for, http2_request_for
from meshlib.clients.mirrors import AsyncMirrors, Copy, copies_of
from meshlib.clients.pacing import Pacer
from meshlib.clients.pools import Lease, PoolKey, Pools
from meshlib.clients.source import MeshSource
from meshlib.clients.timeouts import AttemptTimeouts
from meshlib.clients.warm_up import warm_connections
from meshlib.errors import MeshError, RoutingError
from meshlib.model.outcome import Failure, LocalReply, Outcome, Response
from meshlib.model.route import MirrorPolicy
from meshlib.ports import Lock

__all__ = ["AsyncMeshTransport"]

_Raw = RawResponse | httpcore.Response
_Pool = AsyncHttp1Pool | AsyncHttp2Pool


class AsyncMeshTransport(httpx.AsyncBaseTransport):
    """Sends requests through the mesh: `http://checkout/orders` goes to the mesh service `checkout`.

    Like every async transport it belongs to one event loop.

    What the mesh answers itself (no route, a limit, an injected fault) is a response, as from Envoy. What fails raises
    the httpx exception of that failure, with the details as `error.mesh`, a `MeshError`. Every response has a
    `MeshRecord` in `extensions["mesh"]`.

    Args:
        mesh: Where policies come from.
        passthrough: `never`: a host that is not in the mesh is an error. `unknown`: such requests go out directly.
        limits: Of connections, per endpoint. The default keeps idle ones for 4 s.
    """

    def __init__(
        self, mesh: MeshSource, *, passthrough: Passthrough = "never", limits: httpx.Limits = DEFAULT_LIMITS
    ) -> None:
        self._mesh = mesh
        self._passthrough = passthrough
        self._limits = limits
        expiry = limits.keepalive_expiry
        idle_s = 60.0 if expiry is None else expiry
        self._pools: Pools[_Pool] = Pools(self._make_pool, clock=mesh.clock, idle_s=idle_s, known=KnownAddresses(mesh))
        self._mirrors = AsyncMirrors()
        self._lock = Lock()
        self._plain: httpx.AsyncHTTPTransport | None = None  # guarded by the lock

    def _make_pool(self, key: PoolKey) -> _Pool:
        return AsyncHttp2Pool(key, self._limits) if key.http2 else AsyncHttp1Pool(key, self._limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; called by httpx.

        Raises:
            httpx.TransportError: As with any transport of httpx; `error.mesh` has the details.
        """
        mesh = self._mesh
        if mesh.is_disabled:
            return await self._direct().handle_async_request(request)
        authority = authority_of(request)
        try:
            target = mesh.target(authority) or await mesh.wait_target_async(authority)
        except MeshError as error:
            if self._passthrough == "unknown" and isinstance(error, RoutingError):
                return await self._pass(request, authority)
            raise refusal(authority, error, request) from error
        replayable = is_replayable(request)
        head = head_of(request, authority)
        if target.has_demands:
            try:
                target = await mesh.meet_async(target, head)
            except MeshError as error:
                raise refusal(authority, error, request) from error
        call = call_for(mesh, target, head, request, replayable=replayable)
        exchange = _Exchange(mesh, self._pools, request, call, replayable=replayable, mirrors=self._mirrors)
        done = await arun(call, exchange, clock=mesh.clock, sleep=anyio.sleep)
        if call.match is not None and call.match.action.internal_redirect is not None:
            call, exchange, done = await self._follow(call, exchange, done, request, replayable)
        match done.result:
            case LocalReply() as reply:
                call.close(mesh.clock(), status=reply.status)
                return local_response(reply, request, record_of(call, done))
            case Failure() as failure:
                call.close(mesh.clock())
                raise httpx_error(call, failure, request)
            case Response() as outcome:
                return exchange.response(outcome, record_of(call, done))
            case _:
                assert_never(done.result)

    async def _follow(
        self, call: Call, exchange: "_Exchange", done: Done, request: httpx.Request, replayable: bool
    ) -> tuple[Call, "_Exchange", Done]:
        """Follow redirects that are the mesh's own business."""
        mesh = self._mesh
        redirects = FollowedRedirects(request)
        while (head := redirects.next(call, done, mesh.rng, replayable=replayable)) is not None:
            assert isinstance(done.result, Response)
            try:
                await exchange.discard()
            finally:
                call.close(mesh.clock(), status=done.result.status)
            call = call_for(mesh, call.target, head, redirects.request, replayable=replayable)
            exchange = _Exchange(
                mesh, self._pools, redirects.request, call, replayable=replayable, mirrors=self._mirrors
            )
            done = await arun(call, exchange, clock=mesh.clock, sleep=anyio.sleep)
        return call, exchange, done

    async def warm_up(self, url: str, *, connections: int = 1, timeout_s: float = 5.0) -> int:
        """As `MeshTransport.warm_up`."""
        mesh = self._mesh
        request = httpx.Request("GET", url)
        authority = authority_of(request)
        if mesh.is_disabled:
            return 0
        try:
            target = mesh.target(authority) or await mesh.wait_target_async(authority)
        except MeshError as error:
            raise refusal(authority, error, request) from error
        opened = 0
        for key, sent in warm_connections(mesh, target, request, timeout_s):
            lease = self._pools.acquire(key)
            try:
                with contextlib.suppress(*BROKEN):
                    opened += await lease.pool.warm_up(sent, connections)
            finally:
                await _close_all(self._pools.release(lease))
        return opened

    async def _pass(self, request: httpx.Request, authority: str) -> httpx.Response:
        clock = self._mesh.clock
        start = clock()
        status = 0
        try:
            response = await self._direct().handle_async_request(request)
            status = response.status_code
            return response
        finally:
            self._mesh.emit(passthrough_event(request, authority, clock() - start, status))

    def _direct(self) -> httpx.AsyncHTTPTransport:
        with self._lock:
            if self._plain is None:
                self._plain = httpx.AsyncHTTPTransport()
            return self._plain

    async def aclose(self) -> None:
        """Close every connection. Calls that are still running fail."""
        await self._mirrors.aclose()
        for pool in self._pools.close():
            await pool.aclose()
        with self._lock:
            plain, self._plain = self._plain, None
        if plain is not None:
            await plain.aclose()


class _Exchange:
    """One request's way to the network: what its latest attempt has leased and received."""

    __slots__ = ("_call", "_lease", "_mesh", "_mirrors", "_pools", "_raw", "_replayable", "_request", "_timeouts")

    def __init__(
        self,
        mesh: MeshSource,
        pools: Pools[_Pool],
        request: httpx.Request,
        call: Call,
        *,
        replayable: bool,
        mirrors: AsyncMirrors | None = None,
    ) -> None:
        self._mesh = mesh
        self._pools = pools
        self._mirrors = mirrors
        self._request = request
        self._call = call
        self._replayable = replayable
        self._lease: Lease[_Pool] | None = None
        self._timeouts: AttemptTimeouts | None = None
        self._raw: _Raw | None = None

    def fork(self) -> "_Exchange":
        return _Exchange(
            self._mesh, self._pools, self._request, self._call, replayable=self._replayable, mirrors=self._mirrors
        )

    def adopt(self, winner: AsyncShell) -> None:
        assert isinstance(winner, _Exchange)
        self._raw, winner._raw = winner._raw, None
        self._lease, winner._lease = winner._lease, None
        self._timeouts = winner._timeouts

    async def send(self, attempt: Attempt) -> Outcome:
        match = self._call.match
        if match is not None and match.mirrors and attempt.number == 1 and self._mirrors is not None:
            self._copy(attempt, match.mirrors, self._mirrors)
        timeouts = timeouts_for(attempt, self._request, self._mesh.clock, replayable=self._replayable)
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
                raw = await self._share(pool, http2_request_for(attempt, self._request, timeouts, key), timeouts)
        except Exception as error:
            await self._release()
            return failure_or_raise(error, timeouts, self._call, self._request)
        except BaseException:
            await self._release()
            raise
        # A request that was streamed has had its own time: the call's began before it.
        timeouts.begin_body(self._call.body_deadline if self._replayable else None, self._call.idle_s)
        self._raw = raw
        return response_of(raw)

    async def _share(
        self, pool: AsyncHttp2Pool, request: httpcore.Request, timeouts: AttemptTimeouts
    ) -> httpcore.Response:
        # Streams of one HTTP/2 connection take turns at reading it, and nothing limits the wait for the turn.
        left = timeouts.left()
        if left is None:
            return await pool.handle_async_request(request)
        with anyio.move_on_after(left):
            return await pool.handle_async_request(request)
        raise httpcore.ReadTimeout("the time for this attempt is over")

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
        except Exception as error:
            raise body_error(  # noqa: B904 - it carries its cause
                self._call, error, self._request, self._timeouts, self._mesh.clock()
            )

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
            await self.end(raw)

    async def end(self, raw: _Raw) -> None:
        try:
            await cast(httpx.AsyncByteStream, raw.stream).aclose()
        finally:
            now = self._mesh.clock()
            if self._call.wants_trailers:
                learn_of_trailers(self._call, raw.extensions, now)
            self._call.close(now, status=raw.status)
            await self._release()

    async def _release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            await _close_all(self._pools.release(lease))


async def _close_all(pools: list[_Pool]) -> None:
    if pools:
        with anyio.CancelScope(shield=True):
            for pool in pools:
                await pool.aclose()


async def _send_copy(mesh: MeshSource, pools: Pools[_Pool], copy: Copy) -> None:
    """Send a copy of a request and drop the answer; nothing that goes wrong gets out of here."""
    call, status, failure = copy.call, 0, "cancelled"
    exchange = _Exchange(mesh, pools, copy.request, call, replayable=True)
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
    """A response body; the call's permits are held until it is closed."""

    __slots__ = ("_exchange", "_raw")

    def __init__(self, exchange: _Exchange, raw: _Raw) -> None:
        self._exchange = exchange
        self._raw = raw

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._exchange.parts(self._raw)

    async def aclose(self) -> None:
        await self._exchange.end(self._raw)
