"""What a call object of an aio mesh channel holds while it runs, and how it gives that back."""

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from meshlib.call import Attempt, Step
from meshlib.clients.grpc_aio_asked import Asked, metadata_of, now_of
from meshlib.clients.grpc_channels import Channels
from meshlib.clients.grpc_endpoint import EndpointChannel
from meshlib.clients.grpc_errors import CallInfo
from meshlib.clients.grpc_flow import Flow
from meshlib.clients.grpc_invoke import AioInvoker, Method, Rpc
from meshlib.clients.grpc_replay import AioReplay

__all__ = ["AioHeld", "Running"]


class AioHeld(Asked):
    """The state of a call object, and its end; `AioRpc` adds the way there."""

    # What few calls set, or not at once.
    _replay: AioReplay | None = None
    _flow: Flow | None = None
    _native: Any = None
    _channel: EndpointChannel[grpc.aio.Channel] | None = None
    _attempt: Attempt | None = None
    _attempt_began_at = 0.0
    _pending: Step | None = None
    _pause: "asyncio.Future[None] | None" = None
    _driver: "asyncio.Future[None] | None" = None
    _task: "asyncio.Task[None] | None" = None
    _status: grpc.aio.AioRpcError | None = None  # of the attempt, for request streams
    _first: Any = None  # the response, or the first message of a stream
    _error: Any = None
    _is_committed = False
    _is_cancelled = False
    _is_over = False
    _callbacks: Sequence[Callable[[Any], None]] = ()
    _running: "Running | None" = None

    def __init__(self, invoker: AioInvoker, method: Method, rpc: Rpc, request: Any, replay: AioReplay | None) -> None:
        self._invoker = invoker
        self._method = method
        self._rpc = rpc
        self._request = request
        self._replay = replay
        self._loop = asyncio.get_running_loop()
        self._channels: Channels[grpc.aio.Channel] = invoker.channels
        self._began_at = invoker.clock()
        self._ref = weakref.ref(self)

    def _release_channel(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            self._channels.release(channel)

    def _settle(self, code: grpc.StatusCode) -> None:
        """Give everything back; idempotent."""
        if self._is_over:
            return
        self._is_over = True
        if self._running is not None:
            self._running.discard(self._ref)
        self._give_back(code)
        if self._task is not None and self._driver is None:
            self._task.cancel()
        self._call_back()

    def _call_back(self) -> None:
        callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            callback(self)

    def _give_back(self, code: grpc.StatusCode) -> None:
        flow, native = self._flow, self._native
        if flow is not None:
            now = self._invoker.clock()
            if flow.call.wants_trailers and native is not None and native.done():
                flow.learn(lambda: now_of(native.trailing_metadata()), now)
            flow.close(now, 0 if code is grpc.StatusCode.OK else code.value[0])
        self._release_channel()
        if self._replay is not None:
            self._replay.close()

    def __del__(self) -> None:
        # grpc.aio cancels a call whose object is dropped; the rest must not be done in a finalizer.
        if getattr(self, "_is_over", True) or self._flow is None:
            return
        self._is_over = True
        flow, channel, replay, native = self._flow, self._channel, self._replay, self._native
        channels, clock, running, ref = self._channels, self._invoker.clock, self._running, self._ref

        def give_back() -> None:
            if running is not None:
                running.discard(ref)
            if native is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    native.cancel()  # our callback at its end makes it a cycle, which is collected at some time only
            flow.close(clock(), grpc.StatusCode.CANCELLED.value[0])
            if channel is not None:
                channels.release(channel)
            if replay is not None:
                replay.close()

        self._invoker.abandoned.append(give_back)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._invoker.collect)

    # grpc.aio.Call

    def cancel(self) -> bool:
        """Cancel the RPC; False: it is over."""
        if self._is_over:
            return False
        self._is_cancelled = True
        if self._native is not None:
            self._native.cancel()
        if self._pause is not None:
            self._pause.cancel()
        if self._task is not None and self._flow is None:
            self._task.cancel()
        self._settle(grpc.StatusCode.CANCELLED)
        return True

    def cancelled(self) -> bool:
        # As in gRPC, where it is the code that counts, whoever said it.
        error = self._error
        return self._is_cancelled or (
            isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.CANCELLED
        )

    def done(self) -> bool:
        return self._is_over

    def time_remaining(self) -> float | None:
        deadline = None if self._flow is None else self._flow.call.deadline
        if deadline is None:
            timeout_s = self._rpc.timeout_s
            if timeout_s is None:
                return None
            deadline = self._began_at + timeout_s
        return max(deadline - self._invoker.clock(), 0.0)

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._is_over:
            callback(self)
        else:
            self._callbacks = (*self._callbacks, callback)

    def _marked(self, metadata: grpc.aio.Metadata) -> grpc.aio.Metadata:
        return metadata if self._flow is None else self._flow.marked(metadata, metadata_of)

    @property
    def mesh(self) -> CallInfo:
        """What the mesh knows of the call so far."""
        return CallInfo() if self._flow is None else self._flow.info()


Running = set[weakref.ref[AioHeld]]
