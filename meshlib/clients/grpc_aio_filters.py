"""Filters around grpc.aio channels: all four kinds of methods, filters of both kinds.

Filters may have to be awaited before there is a call, and grpc.aio hands out its call objects at once, so these stand for the
call until the filters have let it begin. Where a call ends, what awaits it waits for the filters too.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from meshlib.clients.filters import (
    AsyncFilterChain,
    FilterAnswer,
    FilterHeaders,
    FilterRequest,
    FilterResponse,
)
from meshlib.clients.grpc_aio_asked import Asked, Known

__all__ = ["FilteredAioChannel", "MethodBase"]

if TYPE_CHECKING:
    # Generic in the stubs only.
    UnaryUnaryBase = grpc.aio.UnaryUnaryCall[Any, Any]
    UnaryStreamBase = grpc.aio.UnaryStreamCall[Any, Any]
    StreamUnaryBase = grpc.aio.StreamUnaryCall[Any, Any]
    StreamStreamBase = grpc.aio.StreamStreamCall[Any, Any]

    class MethodBase:
        """All kinds of methods at once, which the stubs see as different."""

else:
    from grpc.aio import StreamStreamCall as StreamStreamBase
    from grpc.aio import StreamUnaryCall as StreamUnaryBase
    from grpc.aio import UnaryStreamCall as UnaryStreamBase
    from grpc.aio import UnaryUnaryCall as UnaryUnaryBase

    class MethodBase(
        grpc.aio.UnaryUnaryMultiCallable,
        grpc.aio.UnaryStreamMultiCallable,
        grpc.aio.StreamUnaryMultiCallable,
        grpc.aio.StreamStreamMultiCallable,
    ):
        """All kinds of methods at once."""


class _Filtered(Asked):
    """What the four kinds of call objects share. Belongs to one event loop."""

    def __init__(self, chain: AsyncFilterChain, seen: FilterRequest, start: Callable[[], Any]) -> None:
        """Begin a call.

        Args:
            start: Makes the call itself, once the filters have seen its request.
        """
        self._chain = chain
        self._seen = seen
        self._start = start
        self._count = 0
        self._inner: Any = None
        self._is_cancelled = False
        self._callbacks: list[Callable[[Any], None]] = []
        self._ending: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._beginning = self._loop.create_task(self._begin())
        self._beginning.add_done_callback(self._begun)

    async def _begin(self) -> None:
        seen, chain = self._seen, self._chain
        answer, self._count = await chain.begin(seen)
        if answer is not None:
            await chain.end(seen, FilterResponse(answer.status, FilterHeaders(answer.headers)), self._count)
            raise _answered(answer)
        try:
            self._inner = inner = self._start()
        except BaseException as error:
            chain.fail(seen, error, self._count)
            raise
        inner.add_done_callback(self._over)

    def _begun(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or task.exception() is not None:
            self._call_back()

    def _over(self, inner: Any) -> None:
        """The call has ended: its filters hear of it."""
        if self._ending is None:
            self._ending = self._loop.create_task(self._end(inner))
            self._ending.add_done_callback(self._ended)

    async def _end(self, inner: Any) -> None:
        code = await inner.code()
        pairs = await inner.trailing_metadata()
        trailers = [(name, value) for name, value in pairs or () if isinstance(value, str)]
        await self._chain.end(self._seen, FilterResponse(code.value[0], FilterHeaders(trailers)), self._count)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            task.exception()  # whoever awaits the call gets it
        self._call_back()

    def _call_back(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)

    async def _call(self) -> Any:
        """Return the call itself.

        Raises:
            grpc.aio.AioRpcError: A filter has answered instead.
            Exception: What a filter raised.
        """
        try:
            await asyncio.shield(self._beginning)
        except asyncio.CancelledError:
            self.cancel()
            raise
        return self._inner

    async def _with_end(self, result: Awaitable[Any]) -> Any:
        """Return what the call comes to, once the filters have heard of it."""
        try:
            found = await result
        except grpc.aio.AioRpcError:
            await self._heard()
            raise
        except asyncio.CancelledError:
            self.cancel()
            raise
        await self._heard()
        return found

    async def _heard(self) -> None:
        self._over(self._inner)
        assert self._ending is not None
        await asyncio.shield(self._ending)

    # grpc.aio.Call

    def cancel(self) -> bool:
        """Cancel the RPC; False: it is over."""
        if self.done():
            return False
        self._is_cancelled = True
        if self._inner is None:
            self._beginning.cancel()
        else:
            self._inner.cancel()
        return True

    def cancelled(self) -> bool:
        return self._is_cancelled or (self._inner is not None and self._inner.cancelled())

    def done(self) -> bool:
        return self._beginning.done() and (self._inner is None or self._inner.done())

    def time_remaining(self) -> float | None:
        found: float | None = None if self._inner is None else self._inner.time_remaining()
        return found

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        is_told = self._beginning.done() if self._inner is None else self._ending is not None and self._ending.done()
        if is_told:
            callback(self)
        else:
            self._callbacks.append(callback)

    async def _final(self) -> Any:
        """Return what knows the status: the call, or the answer of a filter; None: cancelled before there was any."""
        try:
            return await self._call()
        except grpc.aio.AioRpcError as error:
            return Known(error)
        except asyncio.CancelledError:
            if self._is_cancelled and self._beginning.cancelled():
                return None
            raise

    async def wait_for_connection(self) -> None:
        inner = await self._call()
        await inner.wait_for_connection()

    @property
    def mesh(self) -> Any:
        """What the mesh knows of the call so far; None: the filters have it still."""
        return None if self._inner is None else self._inner.mesh


def _answered(answer: FilterAnswer) -> grpc.aio.AioRpcError:
    code = next(code for code in grpc.StatusCode if code.value[0] == answer.status)
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*answer.headers), answer.body.decode("utf-8", "replace")
    )


class _UnaryResponse(_Filtered):
    async def _response(self) -> Any:
        inner = await self._call()
        return await self._with_end(inner)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._response().__await__()


class _StreamResponse(_Filtered):
    async def read(self) -> Any:
        """Return the next message, or `grpc.aio.EOF`."""
        inner = await self._call()
        try:
            message = await inner.read()
        except grpc.aio.AioRpcError:
            await self._heard()
            raise
        if message is grpc.aio.EOF:
            await self._heard()
        return message

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        message = await self.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message


class _StreamRequest(_Filtered):
    async def write(self, request: Any) -> None:
        """Send a message."""
        await (await self._call()).write(request)

    async def done_writing(self) -> None:
        """There are no more messages."""
        await (await self._call()).done_writing()

    @property
    def _done_writing_flag(self) -> bool:
        # See `grpc_aio_calls`.
        return self._inner is not None and self._inner._done_writing_flag


class _UnaryUnary(_UnaryResponse, UnaryUnaryBase):
    """One request, one response."""


class _UnaryStream(_StreamResponse, UnaryStreamBase):
    """One request, a stream of responses."""


class _StreamUnary(_StreamRequest, _UnaryResponse, StreamUnaryBase):
    """A stream of requests, one response."""


class _StreamStream(_StreamRequest, _StreamResponse, StreamStreamBase):
    """Both are streams."""


class _Method(MethodBase):
    """One method of any kind."""

    def __init__(self, channel: "FilteredAioChannel", kind: type[_Filtered], path: str, inner: Any) -> None:
        self._channel = channel
        self._kind = kind
        self._path = path
        self._inner = inner

    def __call__(self, request: Any = None, timeout: Any = None, metadata: Any = None, **options: Any) -> Any:
        channel, pairs = self._channel, tuple(metadata or ())
        request = options.pop("request_iterator", request)
        text = FilterHeaders((name, value) for name, value in pairs if isinstance(value, str))
        seen = FilterRequest(channel.service, "POST", self._path, text, is_grpc=True)

        def start() -> Any:
            binary = [pair for pair in pairs if not isinstance(pair[1], str)]
            sent = (*((name.lower(), value) for name, value in seen.headers.items_list), *binary)
            return self._inner(request, timeout=timeout, metadata=sent or None, **options)

        return self._kind(channel.chain, seen, start)


class FilteredAioChannel(grpc.aio.Channel):
    """A channel whose calls go through filters first."""

    def __init__(self, channel: grpc.aio.Channel, service: str, chain: AsyncFilterChain) -> None:
        """Put filters around a channel, which this one closes.

        Args:
            service: What filters are told is called.
        """
        self.chain = chain
        self.service = service
        self._channel = channel

    def _method(self, kind: type[_Filtered], name: str, method: Any, args: Any, options: Any) -> Any:
        inner = getattr(self._channel, name)(method, *args, **options)
        return _Method(self, kind, method.decode() if isinstance(method, bytes) else method, inner)

    def unary_unary(self, method: str, *args: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._method(_UnaryUnary, "unary_unary", method, args, options)

    def unary_stream(self, method: str, *args: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._method(_UnaryStream, "unary_stream", method, args, options)

    def stream_unary(self, method: str, *args: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._method(_StreamUnary, "stream_unary", method, args, options)

    def stream_stream(self, method: str, *args: Any, **options: Any) -> Any:
        """See `grpc.aio.Channel`."""
        return self._method(_StreamStream, "stream_stream", method, args, options)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """See `grpc.aio.Channel`."""
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """See `grpc.aio.Channel`."""
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """See `grpc.aio.Channel`."""
        await self._channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """See `grpc.aio.Channel`."""
        await self._channel.close(grace)

    async def __aenter__(self) -> "FilteredAioChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
