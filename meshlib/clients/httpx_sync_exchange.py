"""One request of the blocking transport on its way to the network: connections, bodies, and copies of it."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import assert_never, cast

import httpcore
import httpx

from meshlib.call import Attempt, Call
from meshlib.clients.connections import Http1Body, Http1Pool
from meshlib.clients.drive import Shell, run
from meshlib.clients.hedge_threads import HedgeThreads
from meshlib.clients.http1_response import RawResponse
from meshlib.clients.http2_sync import Http2Pool
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
from meshlib.clients.mirrors import Copy, Mirrors, copies_of
from meshlib.clients.pacing import Pacer
from meshlib.clients.pools import Lease, Pools
from meshlib.clients.source import MeshSource
from meshlib.clients.timeouts import AttemptTimeouts, Hold
from meshlib.model.outcome import Failure, LocalReply, Outcome, Response
from meshlib.model.route import MirrorPolicy

__all__ = ["Exchange", "Pool"]

_Raw = RawResponse | httpcore.Response
Pool = Http1Pool | Http2Pool


class Exchange:
    """One request's way to the network: what its latest attempt has leased and received."""

    __slots__ = (
        "_call",
        "_early",
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
        pools: Pools[Pool],
        request: httpx.Request,
        call: Call,
        *,
        replayable: bool,
        mirrors: Mirrors | None = None,
        threads: HedgeThreads | None = None,
        early: Tried[Pool] | None = None,
    ) -> None:
        """Begin.

        Args:
            early: What came of the call's first attempt, which was made already.
        """
        self._early = early
        self._mesh = mesh
        self._pools = pools
        self._mirrors = mirrors
        self._request = request
        self._call = call
        self._replayable = replayable
        self._threads = threads
        self._hold: Hold | None = None
        self._is_shared = False
        self._lease: Lease[Pool] | None = None
        self._timeouts: AttemptTimeouts | None = None
        self._raw: _Raw | None = None

    def fork(self) -> "Exchange":
        exchange = Exchange(
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
        assert isinstance(winner, Exchange)
        self._raw, winner._raw = winner._raw, None
        self._lease, winner._lease = winner._lease, None
        self._timeouts = winner._timeouts

    def send(self, attempt: Attempt) -> Outcome:
        early, self._early = self._early, None
        if early is not None:
            timeouts, self._lease = early.timeouts, early.lease
            result = early.result
            outcome = (
                self._failed(result, timeouts)
                if isinstance(result, BaseException)
                else self._received(result, timeouts)
            )
        else:
            match = self._call.match
            if match is not None and match.mirrors and attempt.number == 1 and self._mirrors is not None:
                self._copy(attempt, match.mirrors, self._mirrors)
            timeouts = timeouts_for(
                attempt, self._request, self._mesh.clock, self._call, replayable=self._replayable, hold=self._hold
            )
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
        except BaseException as error:
            return self._failed(error, timeouts)
        return self._received(raw, timeouts)

    def _failed(self, error: BaseException, timeouts: AttemptTimeouts) -> Failure:
        self._release()
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
            found = body_error(self._call, error, self._request, self._timeouts, self._mesh.clock())
            self.close()
            raise found  # noqa: B904 - it carries its cause
        except GeneratorExit:  # as of a `break`, and perhaps in a finaliser
            if isinstance(raw, RawResponse):
                cast(Http1Body, raw.stream).cut()
            self.forsake()
            raise
        except BaseException:
            self.close()
            raise

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
            self.close()

    def close(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            try:
                cast(httpx.SyncByteStream, raw.stream).close()
            finally:
                self._end(raw)
                self._release()

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

    def _release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            for pool in self._pools.release(lease):
                pool.close()


def _send_copy(mesh: MeshSource, pools: Pools[Pool], copy: Copy) -> None:
    """Send a copy of a request and drop the answer; nothing that goes wrong gets out of here."""
    call, status, failure = copy.call, 0, "cancelled"
    exchange = Exchange(mesh, pools, copy.request, call, replayable=True)
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
    """A response body; the call's permits are held until it is closed, or dropped."""

    __slots__ = ("_exchange", "_raw")

    def __init__(self, exchange: Exchange, raw: _Raw) -> None:
        self._exchange = exchange
        self._raw = raw

    def __iter__(self) -> Iterator[bytes]:
        return self._exchange.parts(self._raw)

    def close(self) -> None:
        self._exchange.close()

    def __del__(self) -> None:
        self._exchange.forsake()
