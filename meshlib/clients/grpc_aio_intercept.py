"""The interceptors of `grpc_intercept` for `grpc.aio` channels."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from meshlib.call import Attempt, Sleep, Step
from meshlib.clients.grpc_aio_asked import Said
from meshlib.clients.grpc_common import OK, STARTED, HeadMaker
from meshlib.clients.grpc_endpoint import ChannelKey, EndpointChannel
from meshlib.clients.grpc_errors import AioMeshRpcError
from meshlib.clients.grpc_flow import Flow
from meshlib.clients.grpc_invoke import Invoker, Method, Rpc, left_s
from meshlib.clients.grpc_own_endpoint import OwnEndpoint, measure
from meshlib.clients.grpc_replay import AioReplay
from meshlib.clients.source import MeshSource
from meshlib.errors import MeshError
from meshlib.model.outcome import Failure, FailureKind, Outcome

__all__ = ["AioInterceptors"]


class AioInterceptors:
    """The four interceptors of one channel: grpc.aio uses an object for one kind of RPC only."""

    def __init__(self, mesh: MeshSource, authority: str) -> None:
        self._mesh = OwnEndpoint(mesh, authority)
        self._authority = authority
        self._invoker: Invoker[Any] = Invoker(self._mesh, authority, (), None)
        self._heads: dict[Any, HeadMaker] = {}

    def all(self) -> list[grpc.aio.ClientInterceptor]:
        """Return them."""
        return [_UnaryUnary(self), _UnaryStream(self), _StreamUnary(self), _StreamStream(self)]

    async def respond(self, continuation: Any, details: Any, request: Any, replay: AioReplay | None) -> Any:
        """Carry out an RPC with one response; returns the call that brought it."""
        try:
            flow, rpc = await self._begin(details)
        except BaseException:
            _close(replay)
            raise
        try:
            return (await self._first(flow, rpc, continuation, details, request, replay, is_stream=False)).call
        finally:
            self._end(flow, None, replay)

    async def stream(
        self, continuation: Any, details: Any, request: Any, replay: AioReplay | None
    ) -> AsyncIterator[Any]:
        """Carry out an RPC with a stream of responses up to its first one; returns the responses."""
        try:
            flow, rpc = await self._begin(details)
        except BaseException:
            _close(replay)
            raise
        try:
            begun = await self._first(flow, rpc, continuation, details, request, replay, is_stream=True)
        except BaseException:
            self._end(flow, None, replay)
            raise
        return self._responses(flow, begun, replay)

    async def _responses(self, flow: Flow, begun: "_Begun", replay: AioReplay | None) -> AsyncIterator[Any]:
        code = grpc.StatusCode.CANCELLED
        try:
            message = begun.first
            while message is not grpc.aio.EOF:
                yield message
                message = await begun.next()
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as raised:
            error = begun.said.true(raised)
            code = error.code()
            error.mesh = flow.info()
            raise error from None
        finally:
            if code is grpc.StatusCode.CANCELLED:
                begun.call.cancel()
            self._end(flow, code, replay)

    async def _begin(self, details: Any) -> tuple[Flow, Rpc]:
        invoker, method_name = self._invoker, details.method
        began_at = now = invoker.clock()
        rpc = Rpc(details.timeout, details.metadata, details.credentials, details.wait_for_ready, None)
        rpc.cap(now)
        heads = self._heads.get(method_name)
        if heads is None:
            heads = self._heads[method_name] = HeadMaker(self._authority, method_name)
        try:
            target = self._mesh.target(self._authority)
            if target is None:
                target = await self._mesh.wait_target_async(
                    self._authority, left_s(rpc, began_at, now), fails_fast=not rpc.wait_for_ready
                )
                now = invoker.clock()
            if target.has_demands:
                target = await self._mesh.meet_async(target, heads(rpc.metadata), left_s(rpc, began_at, now))
                now = invoker.clock()
        except MeshError as error:
            is_late = left_s(rpc, began_at, invoker.clock()) == 0.0
            raise invoker.refused(error, AioMeshRpcError, heads.plain.path, began_at, is_late=is_late) from error
        timeout_s = None if rpc.timeout_s is None else rpc.timeout_s - (now - began_at)
        return invoker.flow(target, Method("", heads, None, None), rpc, now=now, timeout_s=timeout_s), rpc

    async def _first(
        self,
        flow: Flow,
        rpc: Rpc,
        continuation: Any,
        details: Any,
        request: Any,
        replay: AioReplay | None,
        *,
        is_stream: bool,
    ) -> "_Begun":
        """Get to the response, or the first message.

        Raises:
            grpc.aio.AioRpcError: There is none.
        """
        invoker = self._invoker
        clock = invoker.clock
        failed: Any = None
        now = clock()
        step = flow.start(now)
        while True:
            if isinstance(step, Attempt):
                path: Any = step.head.path
                deadline = flow.call.deadline
                call = await continuation(
                    details._replace(
                        method=path.encode() if isinstance(details.method, bytes) else path,
                        timeout=(None if deadline is None else deadline - now) if is_stream else step.timeout_s,
                        metadata=_metadata(invoker.metadata(flow, step, rpc, _NO_CHANNEL)),
                        wait_for_ready=None,
                    ),
                    request if replay is None else replay.reader(),
                )
                begun = _Begun(call, is_stream, sends_stream=replay is not None)
                try:
                    await begun.begin(step)
                except (grpc.aio.AioRpcError, TimeoutError) as error:
                    failed = begun.said.true(error)
                else:
                    is_over = not is_stream or begun.first is grpc.aio.EOF
                    flow.finished(OK if is_over else STARTED, clock())
                    if is_over:
                        if flow.call.wants_trailers:
                            flow.call.trailers(await call.trailing_metadata() or (), clock())
                        flow.close(clock(), 0)
                    elif replay is not None:
                        replay.commit()
                    return begun
                if replay is not None and replay.is_committed:
                    flow.commit()
                step, now = self._failed(flow, step, failed, now), clock()
            elif isinstance(step, Sleep):
                await asyncio.sleep(step.seconds)
                now = clock()
                step = flow.slept(now)
            else:
                raise invoker.ended(flow, step, failed, AioMeshRpcError)

    def _failed(self, flow: Flow, attempt: Attempt, error: Any, began_at: float) -> Step:
        if isinstance(error, TimeoutError):
            outcome: Outcome = Failure(FailureKind.TIMEOUT, True, error)
        else:
            outcome = self._invoker.outcome_of(error, _NO_CHANNEL, attempt, began_at)
        return flow.finished(outcome, self._invoker.clock())

    def _end(self, flow: Flow, code: grpc.StatusCode | None, replay: AioReplay | None) -> None:
        flow.close(self._invoker.clock(), None if code is None else code.value[0])
        _close(replay)


class _Begun:
    """An attempt under way.

    Attributes:
        call: What the continuation gave.
        first: The first message of a stream of responses, or `grpc.aio.EOF`.
    """

    first: Any = None

    def __init__(self, call: Any, is_stream: bool, *, sends_stream: bool) -> None:
        self.call = call
        # Not `read`: what an interceptor further down makes of a call can be iterated over, and no more than that.
        self._responses = aiter(call) if is_stream else None
        self.said = Said()
        if sends_stream:
            # The call of an interceptor further down may not have callbacks.
            with contextlib.suppress(NotImplementedError, AttributeError):
                call.add_done_callback(self.said)

    async def begin(self, attempt: Attempt) -> None:
        """Wait for the response, or the first message.

        Raises:
            grpc.aio.AioRpcError: There is none.
            TimeoutError: It has taken too long.
        """
        if self._responses is None:
            await self.call
            return
        # The timeout given to gRPC ends the stream; an attempt's own time ends with the first message.
        async with asyncio.timeout(attempt.timeout_s):
            self.first = await self.next()

    async def next(self) -> Any:
        """Return the next message, or `grpc.aio.EOF`."""
        assert self._responses is not None
        return await anext(self._responses, grpc.aio.EOF)


_NO_CHANNEL: EndpointChannel[Any] = EndpointChannel(ChannelKey("", "", (), None, None), None, "", None)


def _close(replay: AioReplay | None) -> None:
    if replay is not None:
        replay.close()


def _metadata(pairs: Any) -> grpc.aio.Metadata | None:
    # Interceptors further down expect what grpc.aio would give them.
    if pairs is None or isinstance(pairs, grpc.aio.Metadata):
        return pairs
    return grpc.aio.Metadata(*pairs)


class _One:
    def __init__(self, shared: AioInterceptors) -> None:
        self._shared = shared


class _UnaryUnary(_One, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._shared.respond(continuation, client_call_details, request, None)


class _StreamUnary(_One, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        replay = AioReplay(request_iterator, None, measure)
        return await self._shared.respond(continuation, client_call_details, None, replay)


class _UnaryStream(_One, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._shared.stream(continuation, client_call_details, request, None)


class _StreamStream(_One, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        replay = AioReplay(request_iterator, None, measure)
        return await self._shared.stream(continuation, client_call_details, None, replay)
