"""The four kinds of call objects of an aio mesh channel."""

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from meshlib.call import Attempt
from meshlib.clients.grpc_aio_asked import true_error
from meshlib.clients.grpc_aio_rpc import AioRpc, Over
from meshlib.clients.grpc_common import OK, STARTED
from meshlib.clients.grpc_direct_aio import AioDirectCall, aio_puller
from meshlib.clients.grpc_endpoint import EndpointChannel
from meshlib.clients.grpc_flow import Flow
from meshlib.clients.grpc_replay import AioReplay

if TYPE_CHECKING:
    # Generic in the stubs only.
    UnaryUnaryBase = grpc.aio.UnaryUnaryCall[Any, Any]
    UnaryStreamBase = grpc.aio.UnaryStreamCall[Any, Any]
    StreamUnaryBase = grpc.aio.StreamUnaryCall[Any, Any]
    StreamStreamBase = grpc.aio.StreamStreamCall[Any, Any]
else:
    from grpc.aio import StreamStreamCall as StreamStreamBase
    from grpc.aio import StreamUnaryCall as StreamUnaryBase
    from grpc.aio import UnaryStreamCall as UnaryStreamBase
    from grpc.aio import UnaryUnaryCall as UnaryUnaryBase

__all__ = ["StreamStream", "StreamUnary", "UnaryStream", "UnaryUnary"]


class _UnaryResponse(AioRpc):
    async def _next(self) -> Any:
        return await self._native

    def _has_first(self, flow: Flow, first: Any) -> None:
        self._first = first
        flow.finished(OK, self._invoker.clock())
        self._settle(grpc.StatusCode.OK)

    async def _response(self) -> Any:
        if not self._is_over:
            await self._driven()
        if self._is_cancelled:
            raise asyncio.CancelledError()
        if self._error is not None:
            raise self._error
        return self._first

    def __await__(self) -> Generator[Any, None, Any]:
        return self._response().__await__()


class _StreamResponse(AioRpc):
    _has_unread = False
    _is_drained = False
    _pull: Callable[[], Any] | None = None  # set once the first message is handed out

    def _native_timeout_s(self, flow: Flow, attempt: Attempt, now: float) -> float | None:
        # An attempt's own time ends with the first message, the deadline with the stream.
        deadline = flow.call.deadline
        return None if deadline is None else max(deadline - now, 0.0)

    async def _next(self) -> Any:
        attempt, flow = self._attempt, self._flow
        assert attempt is not None and flow is not None
        timeout_s, deadline = attempt.timeout_s, flow.call.deadline
        if timeout_s is None or (deadline is not None and deadline - self._attempt_began_at <= timeout_s):
            return await self._native.read()
        left_s = self._attempt_began_at + timeout_s - self._invoker.clock()
        async with asyncio.timeout(max(left_s, 0.0)):
            return await self._native.read()

    def _has_first(self, flow: Flow, first: Any) -> None:
        if first is grpc.aio.EOF:
            self._is_drained = True
            flow.finished(OK, self._invoker.clock())
            self._settle(grpc.StatusCode.OK)
            return
        self._first = first
        self._has_unread = True
        flow.finished(STARTED, self._invoker.clock())
        self._is_committed = True
        if self._replay is not None:
            self._replay.commit()

    async def read(self) -> Any:
        """Return the next message, or `grpc.aio.EOF`.

        Raises:
            grpc.aio.AioRpcError: The stream has ended without success.
        """
        if not self._is_committed and not self._is_over:
            await self._driven()
        if self._has_unread:
            self._has_unread = False
            first, self._first = self._first, None
            self._pull = aio_puller(self._native)
            return first
        if self._is_cancelled:
            raise asyncio.CancelledError()
        if self._error is not None:
            raise self._error
        if self._is_drained:
            return grpc.aio.EOF
        try:
            message = await self._native.read()
        except grpc.aio.AioRpcError as raised:
            error = true_error(raised, self._status)
            error.mesh = self.mesh
            self._error = error
            self._settle(error.code())
            raise error from None
        except asyncio.CancelledError:
            self.cancel()
            raise
        if message is grpc.aio.EOF:
            self._is_drained = True
            self._settle(grpc.StatusCode.OK)
        return message

    async def initial_metadata(self) -> grpc.aio.Metadata:
        """Return the initial metadata, and stay with the endpoint that sent them."""
        while not self._is_committed and not self._is_over:
            native = self._native
            if native is None or self._pending is not None:
                await self._driven()
                break
            metadata: grpc.aio.Metadata = await native.initial_metadata()
            if native is self._native and not self._is_committed and not self._is_over:
                if not native.done():
                    # Its first message is still to come; a retry would bring other metadata.
                    assert self._flow is not None
                    self._flow.commit()
                    return self._marked(metadata)
                await self._driven()
        return await super().initial_metadata()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        pull = self._pull
        if pull is not None and not self._is_over:
            # Every message but the first: what `read` would come to, with half the coroutines.
            try:
                message = await pull()
            except asyncio.CancelledError:
                self.cancel()
                raise
            if message is not grpc.aio.EOF:
                return message
        message = await self.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message


class _StreamRequest(AioRpc):
    _replay: AioReplay

    async def write(self, request: Any) -> None:
        """Send a message; returns when gRPC has taken it.

        Raises:
            grpc.aio.AioRpcError: The RPC has failed meanwhile.
            asyncio.InvalidStateError: It was over before, or `done_writing` has been called.
            grpc.aio.UsageError: The requests come from an iterator.
        """
        self._check_style()
        await self._replay.put(request)
        if self._error is not None:
            raise self._error
        if self._is_cancelled:
            raise asyncio.CancelledError()

    async def done_writing(self) -> None:
        """There are no more messages; idempotent."""
        self._check_style()
        self._replay.finish()

    @property
    def _done_writing_flag(self) -> bool:
        # grpc.aio's call objects for intercepted calls ask for it before they write.
        return self._replay.is_finished

    def _check_style(self) -> None:
        if not self._replay.is_written:
            raise grpc.aio.UsageError("The iterator and read/write APIs may not be mixed on a single RPC.")


class UnaryUnary(_UnaryResponse, UnaryUnaryBase):
    """One request, one response.

    Where gRPC can be called directly no task and no coroutine of ours waits: the end of an attempt says so itself, and
    whoever awaits the call waits for the same future.
    """

    def _send(self, flow: Flow, attempt: Attempt, channel: EndpointChannel[grpc.aio.Channel], now: float) -> Any:
        method, rpc = self._method, self._rpc
        unary = channel.direct_unary(attempt.head.path, method.serializer, method.deserializer)
        if unary is None:
            return super()._send(flow, attempt, channel, now)
        metadata = self._invoker.metadata(flow, attempt, rpc, channel)
        native = unary(self._request, attempt.timeout_s, metadata, rpc.credentials, rpc.compression)
        if type(native) is AioDirectCall:
            native.owner = self._ref
        else:
            native.add_done_callback(Over(self._ref))
        return native

    def attempt_ended(self, native: AioDirectCall) -> None:
        """Go on after an attempt, unless somebody drives the call who waits for it too."""
        flow = self._flow
        if self._is_over or self._driver is not None or native is not self._native or flow is None:
            return
        if native.is_ok:
            self._has_first(flow, native.response)
            return
        try:
            native.outcome()
        except grpc.aio.AioRpcError as error:
            self._failed(flow, error)
            if self._pending is not None:
                self._ensure_driver()
        except asyncio.CancelledError:
            self.cancel()
        except Exception as error:
            self._error = error
            self._settle(grpc.StatusCode.UNKNOWN)

    def __await__(self) -> Generator[Any, None, Any]:
        while not self._is_over:
            native = self._native
            if (
                type(native) is not AioDirectCall
                or self._driver is not None
                or self._task is not None
                or native.is_over
            ):
                return (yield from self._response().__await__())
            try:
                yield from native.wait()
            except asyncio.CancelledError:
                self.cancel()
                raise
        if self._is_cancelled:
            raise asyncio.CancelledError()
        if self._error is not None:
            raise self._error
        return self._first


class UnaryStream(_StreamResponse, UnaryStreamBase):
    """One request, a stream of responses."""


class StreamUnary(_StreamRequest, _UnaryResponse, StreamUnaryBase):
    """A stream of requests, one response."""


class StreamStream(_StreamRequest, _StreamResponse, StreamStreamBase):
    """Both are streams."""
