"""`AioMeshChannel`: a `grpc.aio.Channel` whose every RPC goes where the mesh says.

The aio twin of `grpc_sync`: what is decided is shared, `grpc_aio_rpc` drives it. A channel may be used by several event
loops; endpoint channels, which belong to the loop that made them, are kept per loop.
"""

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from meshlib.clients.grpc_aio_calls import StreamStream, StreamUnary, UnaryStream, UnaryUnary
from meshlib.clients.grpc_aio_express import start_express
from meshlib.clients.grpc_aio_held import AioHeld, Running
from meshlib.clients.grpc_aio_rpc import AioRpc
from meshlib.clients.grpc_channels import channels_of
from meshlib.clients.grpc_common import HeadMaker, Metadata, parse_target, split_options
from meshlib.clients.grpc_invoke import AioInvoker, Method, Rpc
from meshlib.clients.grpc_replay import AioReplay
from meshlib.clients.source import MeshSource
from meshlib.errors import MeshError
from meshlib.options import check_type
from meshlib.runtime.dial import dial_target

__all__ = ["AioMeshChannel"]

Serializer = Callable[[Any], bytes] | None
Deserializer = Callable[[bytes], Any] | None

if TYPE_CHECKING:
    # Generic in the stubs only.
    UnaryUnaryBase = grpc.aio.UnaryUnaryMultiCallable[Any, Any]
    UnaryStreamBase = grpc.aio.UnaryStreamMultiCallable[Any, Any]
    StreamUnaryBase = grpc.aio.StreamUnaryMultiCallable[Any, Any]
    StreamStreamBase = grpc.aio.StreamStreamMultiCallable[Any, Any]
else:
    from grpc.aio import StreamStreamMultiCallable as StreamStreamBase
    from grpc.aio import StreamUnaryMultiCallable as StreamUnaryBase
    from grpc.aio import UnaryStreamMultiCallable as UnaryStreamBase
    from grpc.aio import UnaryUnaryMultiCallable as UnaryUnaryBase


class AioMeshChannel(grpc.aio.Channel):
    """A channel to a service of the mesh, for asyncio."""

    def __init__(
        self,
        mesh: MeshSource,
        target: str,
        *,
        options: Sequence[tuple[str, Any]] | None = None,
        compression: grpc.Compression | None = None,
    ) -> None:
        """Make a channel; see `MeshChannel`. No event loop is needed yet, unless the mesh is disabled.

        Raises:
            ConfigError: The target cannot be parsed, or an option contradicts the mesh.
            TypeError: An argument is of another type than it must be.
        """
        parsed = parse_target(target)
        kept, authority = split_options(options)
        check_type("compression", compression, grpc.Compression, none=True)
        self._authority = authority or parsed.host
        self._channels = channels_of(mesh)
        self._channels.attach()
        self._invoker = AioInvoker(mesh, parsed.authority, self._channels, kept, compression)
        self._running: Running = set()
        self._direct: grpc.aio.Channel | None = None
        if mesh.is_disabled:
            address = parsed.host if ":" in parsed.host else f"{parsed.host}:80"
            self._direct = grpc.aio.insecure_channel(dial_target(address), tuple(options or ()), compression)

    def unary_unary(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool = False,  # generated code passes it; it concerns core's own channels
    ) -> UnaryUnaryBase:
        """See `grpc.aio.Channel`."""
        if self._direct is not None:
            return self._direct.unary_unary(method, request_serializer, response_deserializer)
        return _UnaryUnary(self, self._method("unary_unary", method, request_serializer, response_deserializer))

    def unary_stream(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool = False,
    ) -> UnaryStreamBase:
        """See `grpc.aio.Channel`."""
        if self._direct is not None:
            return self._direct.unary_stream(method, request_serializer, response_deserializer)
        return _UnaryStream(self, self._method("unary_stream", method, request_serializer, response_deserializer))

    def stream_unary(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool = False,
    ) -> StreamUnaryBase:
        """See `grpc.aio.Channel`."""
        if self._direct is not None:
            return self._direct.stream_unary(method, request_serializer, response_deserializer)
        return _StreamUnary(self, self._method("stream_unary", method, request_serializer, response_deserializer))

    def stream_stream(
        self,
        method: str,
        request_serializer: Serializer = None,
        response_deserializer: Deserializer = None,
        _registered_method: bool = False,
    ) -> StreamStreamBase:
        """See `grpc.aio.Channel`."""
        if self._direct is not None:
            return self._direct.stream_stream(method, request_serializer, response_deserializer)
        return _StreamStream(self, self._method("stream_stream", method, request_serializer, response_deserializer))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Return READY when the service's configuration is there, else IDLE; SHUTDOWN once closed.

        Connections are per endpoint and made when calls need them: they are not what this speaks of.
        """
        if self._direct is not None:
            return self._direct.get_state(try_to_connect)
        if self._invoker.is_closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        try:
            known = self._invoker.mesh.target(self._invoker.authority) is not None
        except MeshError:
            known = False
        return grpc.ChannelConnectivity.READY if known else grpc.ChannelConnectivity.IDLE

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until `get_state` would answer otherwise; looks ten times a second.

        Raises:
            grpc.aio.UsageError: The channel is closed.
        """
        if self._direct is not None:
            await self._direct.wait_for_state_change(last_observed_state)
            return
        while self.get_state() is last_observed_state:
            if last_observed_state is grpc.ChannelConnectivity.SHUTDOWN:
                raise grpc.aio.UsageError("Channel is closed.")  # there is no other state after this one
            await asyncio.sleep(0.1)

    async def channel_ready(self) -> None:
        """Wait until the service's configuration is there.

        Raises:
            grpc.aio.UsageError: The channel is closed.
        """
        if self._direct is not None:
            await self._direct.channel_ready()
            return
        while not self._invoker.is_closed:
            try:
                await self._invoker.mesh.wait_target_async(self._invoker.authority)
            except MeshError:
                await asyncio.sleep(0.1)
            else:
                return
        raise grpc.aio.UsageError("Channel is closed.")

    async def close(self, grace: float | None = None) -> None:
        """Take no more RPCs, and cancel those that still run after `grace` seconds (None: at once)."""
        if self._invoker.is_closed:
            return
        self._invoker.is_closed = True
        if grace:
            await _finish([rpc for rpc in self._alive() if not rpc.done()], grace)
        for rpc in self._alive():
            rpc.cancel()
        self._invoker.collect()
        self._channels.detach()
        if self._direct is not None:
            await self._direct.close(grace)
        # The endpoints' channels are closed by tasks of the loop, now that nobody uses them.
        await asyncio.sleep(0)

    def _alive(self) -> list[AioHeld]:
        return [rpc for ref in tuple(self._running) if (rpc := ref()) is not None]

    async def __aenter__(self) -> "AioMeshChannel":
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()

    def _method(self, kind: str, method: str, serializer: Serializer, deserializer: Deserializer) -> Method:
        return Method(kind, HeadMaker(self._authority, method), serializer, deserializer)


async def _finish(running: Iterable[AioHeld], grace: float) -> None:
    loop = asyncio.get_running_loop()
    waiting = []
    for rpc in running:
        over = asyncio.Event()
        rpc.add_done_callback(partial(_set, over))
        waiting.append(loop.create_task(over.wait()))
    if waiting:
        _, late = await asyncio.wait(waiting, timeout=grace)
        for task in late:
            task.cancel()


def _set(over: asyncio.Event, _: Any) -> None:
    over.set()


class _Multicallable:
    def __init__(self, channel: AioMeshChannel, method: Method) -> None:
        self._channel = channel
        self._invoker = channel._invoker
        self._method = method

    def _start(self, rpc: AioRpc) -> None:
        rpc.start(self._channel._running)

    def _replay(self, requests: AsyncIterable[Any] | Iterable[Any] | None) -> AioReplay:
        return AioReplay(requests, self._method.serializer)


class _UnaryUnary(_Multicallable, UnaryUnaryBase):
    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> UnaryUnary:
        method = self._method
        if method.heads.memo.way is not None:
            asked = (timeout, metadata, credentials, wait_for_ready, compression)
            started = start_express(self._invoker, method, self._channel._running, request, asked)
            if started is not None:
                return started
        rpc = Rpc(timeout, metadata, credentials, wait_for_ready, compression)
        call = UnaryUnary(self._invoker, self._method, rpc, request, None)
        self._start(call)
        return call


class _UnaryStream(_Multicallable, UnaryStreamBase):
    def __call__(
        self,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> UnaryStream:
        rpc = Rpc(timeout, metadata, credentials, wait_for_ready, compression)
        call = UnaryStream(self._invoker, self._method, rpc, request, None)
        self._start(call)
        return call


class _StreamUnary(_Multicallable, StreamUnaryBase):
    def __call__(
        self,
        request_iterator: AsyncIterable[Any] | Iterable[Any] | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> StreamUnary:
        rpc = Rpc(timeout, metadata, credentials, wait_for_ready, compression)
        call = StreamUnary(self._invoker, self._method, rpc, None, self._replay(request_iterator))
        self._start(call)
        return call


class _StreamStream(_Multicallable, StreamStreamBase):
    def __call__(
        self,
        request_iterator: AsyncIterable[Any] | Iterable[Any] | None = None,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> StreamStream:
        rpc = Rpc(timeout, metadata, credentials, wait_for_ready, compression)
        call = StreamStream(self._invoker, self._method, rpc, None, self._replay(request_iterator))
        self._start(call)
        return call
