"""Unary RPCs of event loops that need no `Call` as long as they go well; see `grpc_express`."""

import asyncio
import weakref
from collections.abc import Generator
from typing import Any

import grpc

from meshlib.call import Attempt
from meshlib.clients.grpc_aio_calls import UnaryUnary
from meshlib.clients.grpc_aio_held import AioHeld, Running
from meshlib.clients.grpc_aio_rpc import Over
from meshlib.clients.grpc_common import Metadata
from meshlib.clients.grpc_direct_aio import AioDirectCall
from meshlib.clients.grpc_errors import CallInfo
from meshlib.clients.grpc_express import Begun, Berth, begin, joined, note_berth, succeeded
from meshlib.clients.grpc_flow import Flow
from meshlib.clients.grpc_invoke import AioInvoker, Method, Rpc

__all__ = ["ExpressUnary", "start_express"]

Asked = tuple[float | None, Metadata | None, grpc.CallCredentials | None, bool | None, grpc.Compression | None]
"""What a caller says about an RPC: the fields of `Rpc`."""


def start_express(
    invoker: AioInvoker,
    method: Method,
    running: Running,
    request: Any,
    asked: Asked,
) -> UnaryUnary | None:
    """Start an RPC that goes the way of those before it.

    Args:
        asked: What its caller said about it.

    Returns:
        None: it does not, and nothing was done.
    """
    channels, way = invoker.channels, method.heads.memo.way
    begun = begin(invoker, channels, method, way, asked[0], asked[1])
    if begun is None:
        return None
    berth = begun[4]
    if berth is not None:
        return ExpressUnary(invoker, method, running, begun, berth, request, asked)
    rpc = Rpc(*asked)
    flow, step = joined(invoker, method, begun, rpc)
    note_berth(invoker, channels, method, begun, flow, step)
    call = UnaryUnary(invoker, method, rpc, request, None)
    call.go_on(running, flow, step)
    return call


class ExpressUnary(UnaryUnary):
    """An RPC without a `Flow`, until it has to be as all others are: `_join` sees to that.

    It is so when it is cancelled, dropped, asked about while it runs, or ends otherwise than with a response.
    """

    _begun: Begun | None = None

    def __init__(
        self,
        invoker: AioInvoker,
        method: Method,
        running: Running,
        begun: Begun,
        berth: Berth,
        request: Any,
        asked: Asked,
    ) -> None:
        # Not the base's: what that makes is for others.
        self._invoker = invoker
        self._method = method
        self._request = request
        self._channels = berth.channels
        self._channel = berth.channel
        self._began_at = begun[2]
        self._asked = asked
        self._running = running
        ref: weakref.ref[AioHeld] = weakref.ref(self)
        self._ref = ref
        self._begun = begun
        running.add(ref)
        timeout_s, sent, brought = asked[0], berth.metadata, begun[5]
        if brought is not None:
            timeout_s, sent = brought.timeout_s, brought.metadata
        self._timeout_s = timeout_s
        limit_s = begun[0].limit_s
        left_s = timeout_s if limit_s is None or (timeout_s is not None and timeout_s < limit_s) else limit_s
        try:
            native = self._native = berth.unary(request, left_s, sent, asked[2], asked[4])
        except BaseException:
            self.cancel()
            raise
        if type(native) is AioDirectCall:
            native.owner = ref
        else:
            self._join()
            native.add_done_callback(Over(ref))

    def _join(self) -> Flow:
        """Have a flow, and whatever else the base needs."""
        flow, begun = self._flow, self._begun
        if flow is None:
            assert begun is not None
            native = self._native
            direct = type(native) is AioDirectCall
            self._loop = native.future.get_loop() if direct else asyncio.get_running_loop()
            rpc = self._rpc = Rpc(*self._asked)
            self._attempt_began_at = self._began_at
            flow, step = joined(self._invoker, self._method, begun, rpc)
            assert isinstance(step, Attempt)
            self._flow, self._attempt = flow, step
        return flow

    def attempt_ended(self, native: AioDirectCall) -> None:
        begun = self._begun
        if self._flow is None and not self._is_over and begun is not None:
            if native.is_ok and begun[0].cluster.learner is None:
                self._is_over = True
                self._first = native.response
                self._channel = None
                assert self._running is not None
                self._running.discard(self._ref)
                succeeded(self._invoker, begun)
                if self._callbacks:
                    self._call_back()
                return
            self._join()
        UnaryUnary.attempt_ended(self, native)

    def __await__(self) -> Generator[Any, None, Any]:
        if self._flow is None and not self._is_over:
            native = self._native
            future = native.future
            if not future.done():
                # As `AioDirectCall.wait`; a generator in a generator would be resumed twice.
                future.remove_done_callback(native.go_on)
                future._asyncio_future_blocking = True
                try:
                    yield future
                except GeneratorExit:
                    native.left()
                    raise
                except asyncio.CancelledError:
                    if future.done():
                        native.go_on(future)
                    self.cancel()
                    raise
            native.go_on(future)
            if self._flow is None:
                return self._first
        return (yield from UnaryUnary.__await__(self))

    async def _driven(self) -> None:
        if not self._is_over:
            self._join()
        await UnaryUnary._driven(self)

    def cancel(self) -> bool:
        """As of any call."""
        if self._is_over:
            return False
        self._join()
        return UnaryUnary.cancel(self)

    def time_remaining(self) -> float | None:
        """As of any call."""
        begun = self._begun
        if self._flow is not None or begun is None:
            return UnaryUnary.time_remaining(self)
        limits = [limit_s for limit_s in (self._timeout_s, begun[0].stream_s) if limit_s is not None]
        return max(self._began_at + min(limits) - self._invoker.clock(), 0.0) if limits else None

    @property
    def mesh(self) -> CallInfo:
        """As of any call."""
        begun = self._begun
        if self._flow is None and begun is not None:
            return CallInfo(begun[0].match.cluster, (begun[1].address,), 1, "")
        return super().mesh

    def __del__(self) -> None:
        if not self._is_over:
            if self._flow is None and self._begun is not None:
                self._join()  # takes no lock
            UnaryUnary.__del__(self)
