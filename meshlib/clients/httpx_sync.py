"""The blocking httpx transport: `httpx.Client(transport=mesh.httpx_transport())`.

Only a transport: authentication, cookies, redirects, event hooks and mounts of the client work as ever.
"""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import assert_never, cast

import httpcore
import httpx

from meshlib.call import Attempt, Call, Done
from meshlib.clients.connections import Http1Pool
from meshlib.clients.drive import Shell, run
from meshlib.clients.hedge_threads import HedgeThreads
from meshlib.clients.http1_response import RawResponse
from meshlib.clients.http2_sync import Http2Pool
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
from meshlib.clients.mirrors import Copy, Mirrors, copies_of
from meshlib.clients.pacing import Pacer
from meshlib.clients.pools import Lease, PoolKey, Pools
from meshlib.clients.source import MeshSource
from meshlib.clients.timeouts import AttemptTimeouts, Hold
from meshlib.clients.warm_up import warm_connections
from meshlib.errors import MeshError, RoutingError
from meshlib.model.outcome import Failure, LocalReply, Outcome, Response
from meshlib.model.route import MirrorPolicy
from meshlib.ports import Lock

__all__ = ["MeshTransport"]

_Raw = RawResponse | httpcore.Response
_Pool = Http1Pool | Http2Pool


class MeshTransport(httpx.BaseTransport):
    """Sends requests through the mesh: `http://checkout/orders` goes to the mesh service `checkout`.

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
        self._mirrors = Mirrors()
        self._threads = HedgeThreads()
        self._lock = Lock()
        self._plain: httpx.HTTPTransport | None = None  # guarded by the lock

    def _make_pool(self, key: PoolKey) -> _Pool:
        return Http2Pool(key, self._limits) if key.http2 else Http1Pool(key, self._limits)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; called by httpx.

        Raises:
            httpx.TransportError: As with any transport of httpx; `error.mesh` has the details.
        """
        mesh = self._mesh
        if mesh.is_disabled:
            return self._direct().handle_request(request)
        authority = authority_of(request)
        try:
            target = mesh.target(authority) or mesh.wait_target(authority)
        except MeshError as error:
            if self._passthrough == "unknown" and isinstance(error, RoutingError):
                return self._pass(request, authority)
            raise refusal(authority, error, request) from error
        replayable = is_replayable(request)
        head = head_of(request, authority)
        if target.has_demands:
            try:
                target = mesh.meet(target, head)
            except MeshError as error:
                raise refusal(authority, error, request) from error
        call = call_for(mesh, target, head, request, replayable=replayable)
        exchange = _Exchange(
            mesh, self._pools, request, call, replayable=replayable, mirrors=self._mirrors, threads=self._threads
        )
        done = run(call, exchange, clock=mesh.clock, sleep=time.sleep)
        if call.match is not None and call.match.action.internal_redirect is not None:
            call, exchange, done = self._follow(call, exchange, done, request, replayable)
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

    def _follow(
        self, call: Call, exchange: "_Exchange", done: Done, request: httpx.Request, replayable: bool
    ) -> tuple[Call, "_Exchange", Done]:
        """Follow redirects that are the mesh's own business."""
        mesh = self._mesh
        redirects = FollowedRedirects(request)
        while (head := redirects.next(call, done, mesh.rng, replayable=replayable)) is not None:
            assert isinstance(done.result, Response)
            try:
                exchange.discard()
            finally:
                call.close(mesh.clock(), status=done.result.status)
            call = call_for(mesh, call.target, head, redirects.request, replayable=replayable)
            exchange = _Exchange(
                mesh,
                self._pools,
                redirects.request,
                call,
                replayable=replayable,
                mirrors=self._mirrors,
                threads=self._threads,
            )
            done = run(call, exchange, clock=mesh.clock, sleep=time.sleep)
        return call, exchange, done

    def warm_up(self, url: str, *, connections: int = 1, timeout_s: float = 5.0) -> int:
        """Connect to every healthy endpoint that a GET of a URL may reach, so that the first requests need not.

        Endpoints that cannot be connected to are passed over: requests will find out. Idle connections age as others do.

        Args:
            url: E.g. `http://checkout/`.
            connections: How many there are to be for each endpoint, those included that are open already.
            timeout_s: For each connection; the cluster's connect timeout holds too.

        Returns:
            How many connections were opened.

        Raises:
            httpx.ConnectError: The host is not in the mesh; or `httpx.ReadTimeout`: its configuration was not there in time.
        """
        mesh = self._mesh
        request = httpx.Request("GET", url)
        authority = authority_of(request)
        if mesh.is_disabled:
            return 0
        try:
            target = mesh.target(authority) or mesh.wait_target(authority)
        except MeshError as error:
            raise refusal(authority, error, request) from error
        opened = 0
        for key, sent in warm_connections(mesh, target, request, timeout_s):
            lease = self._pools.acquire(key)
            try:
                with contextlib.suppress(*BROKEN):
                    opened += lease.pool.warm_up(sent, connections)
            finally:
                for pool in self._pools.release(lease):
                    pool.close()
        return opened

    def _pass(self, request: httpx.Request, authority: str) -> httpx.Response:
        clock = self._mesh.clock
        start = clock()
        status = 0
        try:
            response = self._direct().handle_request(request)
            status = response.status_code
            return response
        finally:
            self._mesh.emit(passthrough_event(request, authority, clock() - start, status))

    def _direct(self) -> httpx.HTTPTransport:
        with self._lock:
            if self._plain is None:
                self._plain = httpx.HTTPTransport()
            return self._plain

    def close(self) -> None:
        """Close every connection. Calls that are still running fail."""
        self._mirrors.close()
        self._threads.close()
        for pool in self._pools.close():
            pool.close()
        with self._lock:
            plain, self._plain = self._plain, None
        if plain is not None:
            plain.close()


class _Exchange:
    """One request's way to the network: what its latest attempt has leased and received."""

    __slots__ = (
        "_call",
        "_hold",
        "_is_shared",
        "_lease",
        "_mesh",
        "_mirrors",
        "_pools",
        "_raw",
        "_replayable",
        "_request",
        "_threads",
        "_timeouts",
    )

    def __init__(
        self,
        mesh: MeshSource,
        pools: Pools[_Pool],
        request: httpx.Request,
        call: Call,
        *,
        replayable: bool,
        mirrors: Mirrors | None = None,
        threads: HedgeThreads | None = None,
    ) -> None:
        self._mesh = mesh
        self._pools = pools
        self._mirrors = mirrors
        self._request = request
        self._call = call
        self._replayable = replayable
        self._threads = threads
        self._hold: Hold | None = None
        self._is_shared = False
        self._lease: Lease[_Pool] | None = None
        self._timeouts: AttemptTimeouts | None = None
        self._raw: _Raw | None = None

    def fork(self) -> "_Exchange":
        exchange = _Exchange(
            self._mesh,
            self._pools,
            self._request,
            self._call,
            replayable=self._replayable,
            mirrors=self._mirrors,
            threads=self._threads,
        )
        exchange._hold = Hold()
        return exchange

    def submit(self, work: Callable[[], None]) -> bool:
        return self._threads is not None and self._threads.submit(work)

    def cancel(self) -> None:
        # The streams of an HTTP/2 connection share its socket: such an attempt goes on to its end, in its thread.
        if self._hold is not None and not self._is_shared:
            self._hold.cancel()

    def adopt(self, winner: Shell) -> None:
        assert isinstance(winner, _Exchange)
        self._raw, winner._raw = winner._raw, None
        self._lease, winner._lease = winner._lease, None
        self._timeouts = winner._timeouts

    def send(self, attempt: Attempt) -> Outcome:
        match = self._call.match
        if match is not None and match.mirrors and attempt.number == 1 and self._mirrors is not None:
            self._copy(attempt, match.mirrors, self._mirrors)
        timeouts = timeouts_for(attempt, self._request, self._mesh.clock, replayable=self._replayable, hold=self._hold)
        outcome = self._try(attempt, timeouts, fresh=False)
        if isinstance(outcome, Failure) and is_safe_to_resend(
            attempt.head, timeouts, outcome, replayable=self._replayable
        ):
            timeouts.begin_again()
            outcome = self._try(attempt, timeouts, fresh=True)
        self._timeouts = timeouts
        return outcome

    def _copy(self, attempt: Attempt, policies: Iterable[MirrorPolicy], mirrors: Mirrors) -> None:
        mesh, pools = self._mesh, self._pools
        for copy in copies_of(mesh, self._request, self._call, attempt, policies):
            if not mirrors.submit(partial(_send_copy, mesh, pools, copy)):
                copy.end(0, "overflow")

    def _try(self, attempt: Attempt, timeouts: AttemptTimeouts, *, fresh: bool) -> Outcome:
        try:
            key = pool_key_of(attempt, self._mesh, self._request, self._call.breaker)
            self._is_shared = key.http2
            lease = self._lease = self._pools.acquire(key, fresh=fresh)
            pool = lease.pool
            raw: _Raw
            if isinstance(pool, Http1Pool):
                raw = pool.handle_request(http1_request_for(attempt, self._request, timeouts, key))
            else:
                raw = pool.handle_request(http2_request_for(attempt, self._request, timeouts, key))
        except Exception as error:
            self._release()
            return failure_or_raise(error, timeouts, self._call, self._request)
        except BaseException:
            self._release()
            raise
        # A request that was streamed has had its own time: the call's began before it.
        timeouts.begin_body(self._call.body_deadline if self._replayable else None, self._call.idle_s)
        self._raw = raw
        return response_of(raw)

    def discard(self) -> None:
        raw, self._raw = self._raw, None
        try:
            if raw is not None:
                stream = cast(httpx.SyncByteStream, raw.stream)
                try:
                    if is_small(raw) and self._timeouts is not None:
                        self._timeouts.rush(DISCARD_S)
                        with contextlib.suppress(*BROKEN):
                            for _ in stream:
                                pass
                finally:
                    stream.close()
        finally:
            self._release()

    def response(self, outcome: Response, record: MeshRecord) -> httpx.Response:
        raw = self._raw
        assert raw is not None  # the outcome was a response, and it was not discarded
        return httpx.Response(
            status_code=raw.status,
            headers=response_headers(raw, outcome, self._call),
            stream=_Body(self, raw),
            extensions={**raw.extensions, "mesh": record},
        )

    def parts(self, raw: _Raw) -> Iterator[bytes]:
        try:
            if self._call.body_rate:
                yield from self._paced(raw)
            else:
                yield from cast(httpx.SyncByteStream, raw.stream)
        except Exception as error:
            raise body_error(  # noqa: B904 - it carries its cause
                self._call, error, self._request, self._timeouts, self._mesh.clock()
            )

    def _paced(self, raw: _Raw) -> Iterator[bytes]:
        """Yield a body no faster than an injected fault lets it come."""
        clock = self._mesh.clock
        pacer = Pacer(self._call.body_rate, clock())
        for part in cast(httpx.SyncByteStream, raw.stream):
            for piece in pacer.slices(part):
                wait_s = pacer.wait_s(piece, clock())
                if wait_s:
                    time.sleep(wait_s)
                yield piece

    def drop(self) -> None:
        """Read a response that nobody wants to its end, so that its connection can be kept."""
        raw = self._raw
        assert raw is not None  # as for `response`
        try:
            for _ in self.parts(raw):
                pass
        finally:
            self.end(raw)

    def end(self, raw: _Raw) -> None:
        try:
            cast(httpx.SyncByteStream, raw.stream).close()
        finally:
            now = self._mesh.clock()
            if self._call.wants_trailers:
                learn_of_trailers(self._call, raw.extensions, now)
            self._call.close(now, status=raw.status)
            self._release()

    def _release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            for pool in self._pools.release(lease):
                pool.close()


def _send_copy(mesh: MeshSource, pools: Pools[_Pool], copy: Copy) -> None:
    """Send a copy of a request and drop the answer; nothing that goes wrong gets out of here."""
    call, status, failure = copy.call, 0, "cancelled"
    exchange = _Exchange(mesh, pools, copy.request, call, replayable=True)
    try:
        done = run(call, exchange, clock=mesh.clock, sleep=time.sleep)
        match done.result:
            case Response(status=status):
                failure = ""
                exchange.drop()
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


class _Body(httpx.SyncByteStream):
    """A response body; the call's permits are held until it is closed."""

    __slots__ = ("_exchange", "_raw")

    def __init__(self, exchange: _Exchange, raw: _Raw) -> None:
        self._exchange = exchange
        self._raw = raw

    def __iter__(self) -> Iterator[bytes]:
        return self._exchange.parts(self._raw)

    def close(self) -> None:
        self._exchange.end(self._raw)
