"""The async httpx transport: `httpx.AsyncClient(transport=mesh.async_httpx_transport())`.

Works under asyncio, uvloop and trio. Only a transport: authentication, cookies, redirects, event hooks and mounts of
the client work as ever.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import assert_never

import anyio
import httpx

from meshlib.call import Call, Done, Step
from meshlib.clients.connections_async import AsyncHttp1Pool
from meshlib.clients.drive import arun
from meshlib.clients.http2_async import AsyncHttp2Pool
from meshlib.clients.httpx_async_exchange import Exchange, Pool, close_all
from meshlib.clients.httpx_async_express import send_express
from meshlib.clients.httpx_common import (
    BROKEN,
    DEFAULT_LIMITS,
    KnownAddresses,
    Passthrough,
    authority_of,
    call_for,
    check_options,
    head_of,
    is_replayable,
    local_response,
    passthrough_event,
    record_of,
)
from meshlib.clients.httpx_errors import (
    httpx_error,
    refusal,
)
from meshlib.clients.httpx_express import Express, Tried, begin
from meshlib.clients.httpx_redirects import FollowedRedirects
from meshlib.clients.loops import Work, handed_to_this_loop
from meshlib.clients.mirrors import AsyncMirrors
from meshlib.clients.pools import PoolKey, Pools
from meshlib.clients.source import MeshSource
from meshlib.clients.unrouted import count_unrouted
from meshlib.clients.warm_up import warm_connections
from meshlib.errors import MeshError, RoutingError
from meshlib.model.outcome import Failure, LocalReply, Response
from meshlib.options import check_count
from meshlib.ports import Lock

__all__ = ["AsyncMeshTransport"]


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
        check_options(passthrough, limits)
        self._passthrough = passthrough
        self._limits = limits
        self._express: Express | None = getattr(mesh, "_express", None)
        expiry = limits.keepalive_expiry
        idle_s = 60.0 if expiry is None else expiry
        self._pools: Pools[Pool] = Pools(self._make_pool, clock=mesh.clock, idle_s=idle_s, known=KnownAddresses(mesh))
        self._dropped = self._pools.dropped
        if (tidying_up := getattr(mesh, "_tidying_up", None)) is not None:
            tidying_up.add(self._tidy)
        self._hand_over: Callable[[Work], None] | None = None  # to the loop of the connections, once there are some
        self._mirrors = AsyncMirrors()
        self._lock = Lock()
        self._plain: httpx.AsyncHTTPTransport | None = None  # guarded by the lock

    def _make_pool(self, key: PoolKey) -> Pool:
        if self._hand_over is None:
            self._hand_over = handed_to_this_loop()
        return AsyncHttp2Pool(key, self._limits) if key.http2 else AsyncHttp1Pool(key, self._limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; called by httpx.

        Raises:
            httpx.TransportError: As with any transport of httpx; `error.mesh` has the details.
        """
        mesh = self._mesh
        if mesh.is_disabled:
            return await self._direct().handle_async_request(request)
        if self._dropped:
            await self._close_dropped()
        authority = authority_of(request)
        try:
            target = mesh.target(authority)
        except MeshError as error:
            return await self._unrouted(request, authority, error)
        if target is None:
            began_at = mesh.clock()
            try:
                target = await mesh.wait_target_async(authority)
            except MeshError as error:
                return await self._unrouted(request, authority, error, began_at)
        step: Step | None = None
        early: Tried[Pool] | None = None
        begun = begin(mesh, self._express, request, authority, target)
        if begun is not None:
            if begun.berth is not None:
                found = await send_express(begun, self._pools)
                if isinstance(found, httpx.Response):
                    return found
                early = found
            replayable = True
            call, step = begun.joined()
        else:
            replayable = is_replayable(request)
            head = head_of(request, authority)
            if target.has_demands:
                began_at = mesh.clock()
                try:
                    target = await mesh.meet_async(target, head)
                except MeshError as error:
                    return await self._unrouted(request, authority, error, began_at)
            call = call_for(mesh, target, head, request, replayable=replayable)
        exchange = Exchange(
            mesh,
            self._pools,
            request,
            call,
            replayable=replayable,
            mirrors=self._mirrors,
            early=early,
        )
        done = await arun(call, exchange, clock=mesh.clock, sleep=anyio.sleep, step=step)
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
        self, call: Call, exchange: "Exchange", done: Done, request: httpx.Request, replayable: bool
    ) -> tuple[Call, "Exchange", Done]:
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
            exchange = Exchange(
                mesh, self._pools, redirects.request, call, replayable=replayable, mirrors=self._mirrors
            )
            done = await arun(call, exchange, clock=mesh.clock, sleep=anyio.sleep)
        return call, exchange, done

    async def warm_up(self, url: str, *, connections: int = 1, timeout_s: float = 5.0) -> int:
        """As `MeshTransport.warm_up`."""
        check_count("warm_up: connections", connections)
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
                await close_all(self._pools.release(lease))
        return opened

    async def _unrouted(
        self, request: httpx.Request, authority: str, error: MeshError, began_at: float | None = None
    ) -> httpx.Response:
        """Send a request past the mesh that leads it nowhere, where the application says so.

        Raises:
            httpx.TransportError: Else.
        """
        if self._passthrough == "unknown" and isinstance(error, RoutingError):
            return await self._pass(request, authority)
        count_unrouted(self._mesh, error, kind="http", authority=authority, method=request.method, began_at=began_at)
        raise refusal(authority, error, request) from error

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

    def _tidy(self) -> None:
        """Have closed what has idled for long enough and responses that were dropped; called by the mesh, once a second."""
        closing = self._pools.sweep()
        if self._hand_over is not None:
            if closing:
                self._hand_over(partial(close_all, closing))
            if self._dropped:
                self._hand_over(self._close_dropped)

    async def _close_dropped(self) -> None:
        while self._dropped:
            # Its loop may be closed meanwhile, which is not the fault of whoever came by.
            with contextlib.suppress(Exception):
                await self._dropped.popleft().aclose()

    async def aclose(self) -> None:
        """Close every connection. Calls that are still running fail."""
        await self._close_dropped()
        await self._mirrors.aclose()
        for pool in self._pools.close():
            await pool.aclose()
        with self._lock:
            plain, self._plain = self._plain, None
        if plain is not None:
            await plain.aclose()
