"""`MeshChannel`: a `grpc.Channel` whose every RPC goes where the mesh says. Generated stubs work on it unchanged.

Each RPC is routed, picks an endpoint, and runs on that endpoint's own channel; retries may go to another endpoint.
Unary responses are retried until there is one, streams of responses until their first message. See `grpc_flow` for
wait-for-ready, `grpc_channels` for connections and TLS, `grpc_errors` for what is raised.
"""

import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from meshlib.call import Attempt, Done, Sleep
from meshlib.clients.grpc_channels import channels_of
from meshlib.clients.grpc_common import OK, HeadMaker, parse_target, split_options
from meshlib.clients.grpc_direct import as_call, trailing_metadata
from meshlib.clients.grpc_errors import MeshRpcError
from meshlib.clients.grpc_flow import Flow
from meshlib.clients.grpc_invoke import Method, Rpc, SyncInvoker
from meshlib.clients.grpc_marked import marked_call
from meshlib.clients.grpc_race import race_unary
from meshlib.clients.grpc_replay import Replay
from meshlib.clients.grpc_sync_future import MeshFuture
from meshlib.clients.grpc_sync_stream import MeshStream
from meshlib.clients.source import MeshSource
from meshlib.errors import IdentityError, MeshError
from meshlib.model.outcome import Failure, FailureKind
from meshlib.runtime.dial import dial_target

__all__ = ["MeshChannel"]

Q = TypeVar("Q")
R = TypeVar("R")
MetadataType = tuple[tuple[str, str | bytes], ...]

if TYPE_CHECKING:
    # Generic in the stubs only.
    UnaryUnaryBase = grpc.UnaryUnaryMultiCallable[Any, Any]
    UnaryStreamBase = grpc.UnaryStreamMultiCallable[Any, Any]
    StreamUnaryBase = grpc.StreamUnaryMultiCallable[Any, Any]
    StreamStreamBase = grpc.StreamStreamMultiCallable[Any, Any]
else:
    UnaryUnaryBase = grpc.UnaryUnaryMultiCallable
    UnaryStreamBase = grpc.UnaryStreamMultiCallable
    StreamUnaryBase = grpc.StreamUnaryMultiCallable
    StreamStreamBase = grpc.StreamStreamMultiCallable


class MeshChannel(grpc.Channel):
    """A channel to a service of the mesh.

    Endpoint channels are shared by all mesh channels of a mesh with the same authority and options. Making a channel
    does no I/O; the first RPC to a service not used before waits for its configuration, for at most its own timeout
    or the mesh's default.
    """

    def __init__(
        self,
        mesh: MeshSource,
        target: str,
        *,
        options: Sequence[tuple[str, Any]] | None = None,
        compression: grpc.Compression | None = None,
    ) -> None:
        """Make a channel.

        Args:
            mesh: Routes, picks, and gets the events.
            target: `xds:///service`, `xds:service` or `xds://authority/service`.
            options: Channel arguments for the endpoints' channels; `grpc.default_authority` sets the authority that
                virtual hosts are matched against and servers see.
            compression: Of the endpoints' channels.

        Raises:
            ConfigError: The target cannot be parsed, or an option contradicts the mesh.
        """
        parsed = parse_target(target)
        kept, authority = split_options(options)
        self._authority = authority or parsed.host
        self._channels = channels_of(mesh)
        self._channels.attach()
        self._invoker = SyncInvoker(mesh, parsed.authority, self._channels, kept, compression)
        self._running: weakref.WeakSet[MeshFuture | MeshStream] = weakref.WeakSet()
        self._watches: dict[Callable[[grpc.ChannelConnectivity], None], threading.Event] = {}
        self._direct: grpc.Channel | None = None
        if mesh.is_disabled:
            address = parsed.host if ":" in parsed.host else f"{parsed.host}:80"
            self._direct = grpc.insecure_channel(dial_target(address), tuple(options or ()), compression)

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,  # generated code passes it; it concerns core's own channels
    ) -> UnaryUnaryBase:
        """See `grpc.Channel`."""
        if self._direct is not None:
            return self._direct.unary_unary(method, request_serializer, response_deserializer)
        return _UnaryUnary(self, self._method("unary_unary", method, request_serializer, response_deserializer))

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
    ) -> UnaryStreamBase:
        """See `grpc.Channel`."""
        if self._direct is not None:
            return self._direct.unary_stream(method, request_serializer, response_deserializer)
        return _UnaryStream(self, self._method("unary_stream", method, request_serializer, response_deserializer))

    def stream_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
    ) -> StreamUnaryBase:
        """See `grpc.Channel`."""
        if self._direct is not None:
            return self._direct.stream_unary(method, request_serializer, response_deserializer)
        return _StreamUnary(self, self._method("stream_unary", method, request_serializer, response_deserializer))

    def stream_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
    ) -> StreamStreamBase:
        """See `grpc.Channel`."""
        if self._direct is not None:
            return self._direct.stream_stream(method, request_serializer, response_deserializer)
        return _StreamStream(self, self._method("stream_stream", method, request_serializer, response_deserializer))

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        """Report whether the service's configuration is there: IDLE, CONNECTING, READY, at the end SHUTDOWN.

        READY does not mean that a connection exists: connections are per endpoint and made when calls need them, so
        TRANSIENT_FAILURE is never reported. Enough for `grpc.channel_ready_future`. A thread lives until READY, the
        end of the subscription or of the channel.
        """
        if self._direct is not None:
            self._direct.subscribe(callback, try_to_connect)
            return
        over = threading.Event()
        self._watches[callback] = over
        threading.Thread(
            target=self._watch, args=(callback, try_to_connect, over), name="meshlib-grpc-watch", daemon=True
        ).start()

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """End a subscription."""
        if self._direct is not None:
            self._direct.unsubscribe(callback)
            return
        over = self._watches.pop(callback, None)
        if over is not None:
            over.set()

    def close(self) -> None:
        """Take no more RPCs, and cancel streams and futures that are running.

        Blocking unary RPCs of other threads run to their end. Endpoint channels close with the mesh's last channel.
        """
        invoker = self._invoker
        if invoker.is_closed:
            return
        invoker.is_closed = True
        for callback in tuple(self._watches):
            self.unsubscribe(callback)
            callback(grpc.ChannelConnectivity.SHUTDOWN)
        for running in tuple(self._running):
            running.cancel()
        invoker.collect()
        self._channels.detach()
        if self._direct is not None:
            self._direct.close()

    def __enter__(self) -> "MeshChannel":
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self.close()

    def _method(
        self,
        kind: str,
        method: str,
        serializer: Callable[[Any], bytes] | None,
        deserializer: Callable[[bytes], Any] | None,
    ) -> Method:
        return Method(kind, HeadMaker(self._authority, method), serializer, deserializer)

    def _watch(
        self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool, over: threading.Event
    ) -> None:
        mesh, authority = self._invoker.mesh, self._invoker.authority
        told = None
        while not over.is_set():
            try:
                target = mesh.target(authority)
                if target is None and try_to_connect:
                    if told is None:
                        told = grpc.ChannelConnectivity.CONNECTING
                        callback(told)
                    target = mesh.wait_target(authority, 0.5)
            except MeshError:
                target = None
                over.wait(0.1)
            if target is not None:
                if not over.is_set():
                    callback(grpc.ChannelConnectivity.READY)
                return
            if not try_to_connect:
                if told is None:
                    told = grpc.ChannelConnectivity.IDLE
                    callback(told)
                over.wait(0.1)


class _Multicallable:
    def __init__(self, channel: MeshChannel, method: Method) -> None:
        self._channel = channel
        self._invoker = channel._invoker
        self._method = method

    def _blocking(self, request: Any, replay: Replay | None, rpc: Rpc) -> tuple[Any, Any, Flow]:
        """Carry an RPC with one response to its end.

        Returns:
            The response, an answer of which `as_call` makes a call, and the flow.
        """
        invoker, method = self._invoker, self._method
        clock = invoker.clock
        flow = invoker.begin(method, rpc, can_hedge=replay is None)
        # A flow adds something to its call only for those who wait until somebody is there.
        machine: Any = flow if rpc.wait_for_ready else flow.call
        try:
            error: Any = None
            now = clock()
            step = machine.start(now)
            while True:
                if type(step) is Attempt:
                    if step.is_raced:
                        done, error = race_unary(invoker, method, rpc, request, flow, step)
                        if done.result is OK:
                            flow.close(clock(), 0)
                            return error.result(), error, flow
                        step = flow.raced(done, clock())
                        continue
                    try:
                        channel = invoker.acquire(step)
                    except IdentityError as unable:
                        step = machine.finished(Failure(FailureKind.IDENTITY, False, unable), clock())
                        continue
                    try:
                        metadata = invoker.metadata(flow, step, rpc, channel)
                        if replay is None:
                            response, answer = channel.unary(step.head.path, method.serializer, method.deserializer)(
                                request, step.timeout_s, metadata, rpc.credentials, rpc.compression
                            )
                        else:
                            response, answer = invoker.multicallable(channel, method, step).with_call(
                                replay.reader(), step.timeout_s, metadata, rpc.credentials, None, rpc.compression
                            )
                    except grpc.RpcError as raised:
                        if invoker.is_unsent(raised, channel) and (replay is None or not replay.is_committed):
                            continue
                        error = raised
                        outcome = invoker.outcome_of(raised, channel, step, now)
                    else:
                        now = clock()
                        machine.finished(OK, now)
                        if flow.call.wants_trailers:
                            flow.learn(partial(trailing_metadata, answer), now)
                        machine.close(now, grpc_status=0)
                        return response, answer, flow
                    finally:
                        invoker.release(channel)
                    if replay is not None and replay.is_committed:
                        flow.commit()
                    now = clock()
                    step = machine.finished(outcome, now)
                elif type(step) is Sleep:
                    time.sleep(step.seconds)
                    now = clock()
                    step = machine.slept(now)
                else:
                    assert isinstance(step, Done)
                    raise invoker.ended(flow, step, error, MeshRpcError)
        except BaseException:
            flow.close(clock())
            raise
        finally:
            if replay is not None:
                replay.close()

    def _future(self, request: Any, replay: Replay | None, rpc: Rpc) -> Any:
        future = MeshFuture(self._invoker, self._method, rpc, request, replay)
        self._channel._running.add(future)
        future.start()
        return future

    def _stream(self, request: Any, replay: Replay | None, rpc: Rpc) -> Any:
        stream = MeshStream(self._invoker, self._method, rpc, request, replay)
        self._channel._running.add(stream)
        stream.start()
        return stream


class _UnaryUnary(_Multicallable, UnaryUnaryBase):
    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: MetadataType | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._blocking(request, None, Rpc(timeout, metadata, credentials, wait_for_ready, compression))[0]

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: MetadataType | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> tuple[Any, grpc.Call]:
        rpc = Rpc(timeout, metadata, credentials, wait_for_ready, compression)
        response, answer, flow = self._blocking(request, None, rpc)
        return response, marked_call(as_call(answer), flow)

    def future(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: MetadataType | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._future(request, None, Rpc(timeout, metadata, credentials, wait_for_ready, compression))


class _StreamUnary(_Multicallable, StreamUnaryBase):
    def __call__(
        self,
        request_iterator: Iterator[Any],
        timeout: float | None = None,
        metadata: MetadataType | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self.with_call(request_iterator, timeout, metadata, credentials, wait_for_ready, compression)[0]

    def with_call(
        self,
        request_iterator: Iterator[Any],
        timeout: float | None = None,
        metadata: MetadataType | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> tuple[Any, grpc.Call]:
        replay = Replay(request_iterator, self._method.serializer)
        rpc = Rpc(timeout, metadata, credentials, wait_for_ready, compression)
        response, call, flow = self._blocking(None, replay, rpc)
        return response, marked_call(call, flow)

    def future(
        self,
        request_iterator: Iterator[Any],
        timeout: float | None = None,
        metadata: MetadataType | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        replay = Replay(request_iterator, self._method.serializer)
        return self._future(None, replay, Rpc(timeout, metadata, credentials, wait_for_ready, compression))


class _UnaryStream(_Multicallable, UnaryStreamBase):
    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: MetadataType | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self._stream(request, None, Rpc(timeout, metadata, credentials, wait_for_ready, compression))


class _StreamStream(_Multicallable, StreamStreamBase):
    def __call__(
        self,
        request_iterator: Iterator[Any],
        timeout: float | None = None,
        metadata: MetadataType | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        replay = Replay(request_iterator, self._method.serializer)
        return self._stream(None, replay, Rpc(timeout, metadata, credentials, wait_for_ready, compression))
