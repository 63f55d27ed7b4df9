"""The mesh's policy on a channel that the application made itself.

What it does: finds the route of each RPC (fault injection, header changes, timeouts, retries, circuit breaker limits,
drops), and emits the same events as a mesh channel. What it cannot do, because the channel chooses its connections:

- pick an endpoint: load balancing, locality, outlier detection, subsets and mTLS of the cluster have no effect, and a
  retry may reach the same server again. Traffic splits still decide whose policy applies, not who serves;
- rewrite the authority, which gRPC sets per channel;
- retry a `future()` of a sync channel: it has one attempt, since whoever waits for it is the application;
- share limits with mesh channels: breakers count the calls of this channel.

Prefer `Mesh.channel`. For sync channels use `intercept`; a `grpc.aio` channel takes interceptors only when it is made:
`grpc.aio.insecure_channel(target, interceptors=aio_interceptors(mesh, target))`.
"""

import time
from collections import deque, namedtuple
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grpc
import grpc.aio

from meshlib.call import Attempt, Sleep
from meshlib.clients.grpc_aio_intercept import AioInterceptors
from meshlib.clients.grpc_common import OK, HeadMaker
from meshlib.clients.grpc_endpoint import ChannelKey, EndpointChannel
from meshlib.clients.grpc_errors import MeshRpcError
from meshlib.clients.grpc_flow import Flow
from meshlib.clients.grpc_invoke import Method, Rpc, SyncInvoker
from meshlib.clients.grpc_own_endpoint import OwnEndpoint, authority_of, measure
from meshlib.clients.grpc_replay import Replay
from meshlib.clients.grpc_sync_stream import MeshStream
from meshlib.clients.source import MeshSource
from meshlib.errors import ConfigError

__all__ = ["aio_interceptors", "intercept"]


def intercept(mesh: MeshSource, channel: grpc.Channel, *, target: str | None = None) -> grpc.Channel:
    """Return a channel that applies the mesh's policy to calls over a sync channel.

    Args:
        mesh: Routes, limits, and gets the events.
        channel: Goes on choosing the connections.
        target: What the mesh is asked for, as in `dns:///checkout:80`; None: the channel's own target.

    Raises:
        ConfigError: The channel does not say its target and none is given, or it is an `xds:` target.
    """
    if mesh.is_disabled:
        return channel
    return grpc.intercept_channel(channel, _Interceptor(mesh, authority_of(target or _target_of(channel))))


def aio_interceptors(mesh: MeshSource, target: str) -> list[grpc.aio.ClientInterceptor]:
    """Return the interceptors to make a `grpc.aio` channel with.

    Args:
        target: The channel's, as in `dns:///checkout:80`; what the mesh is asked for.

    Raises:
        ConfigError: It is an `xds:` target.
    """
    authority = authority_of(target)
    return [] if mesh.is_disabled else AioInterceptors(mesh, authority).all()


def _target_of(channel: grpc.Channel) -> str:
    # No public way; grpcio's own channels have had this since 1.0.
    ask = getattr(getattr(channel, "_channel", None), "target", None)
    if ask is None:
        raise ConfigError("this channel does not say its target: intercept(mesh, channel, target=...)")
    target = ask()
    return target.decode() if isinstance(target, bytes) else str(target)


class _Details(
    namedtuple("_Details", ("method", "timeout", "metadata", "credentials", "wait_for_ready", "compression")),
    grpc.ClientCallDetails,
):
    pass


class _InterceptInvoker(SyncInvoker):
    """Attempts go through the continuation of the interceptor."""

    def __init__(self, mesh: OwnEndpoint, authority: str, continuation: Callable[[Any, Any], Any]) -> None:
        super().__init__(mesh, authority, None, (), None)
        self._continuation = continuation

    def acquire(self, attempt: Attempt) -> EndpointChannel[Any]:
        return _NO_CHANNEL

    def release(self, channel: EndpointChannel[Any]) -> None:
        pass

    def multicallable(self, channel: EndpointChannel[Any], method: Method, attempt: Attempt) -> Any:
        return partial(self.invoke, attempt.head.path)

    def invoke(self, path: str, request: Any, *options: Any) -> Any:
        """Carry out an attempt: timeout, metadata, credentials, wait_for_ready, compression."""
        return self._continuation(_Details(path, *options), request)


class _Interceptor(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    def __init__(self, mesh: MeshSource, authority: str) -> None:
        self._mesh = OwnEndpoint(mesh, authority)
        self._authority = authority
        # By method; threads may make one twice.
        self._heads: dict[str, HeadMaker] = {}
        self._abandoned: deque[Callable[[], None]] = deque()

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._unary("unary_unary", continuation, client_call_details, request, None)

    def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Iterator[Any]
    ) -> Any:
        replay = Replay(request_iterator, None, measure)
        return self._unary("stream_unary", continuation, client_call_details, None, replay)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return self._stream("unary_stream", continuation, client_call_details, request, None)

    def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Iterator[Any]
    ) -> Any:
        replay = Replay(request_iterator, None, measure)
        return self._stream("stream_stream", continuation, client_call_details, None, replay)

    def _prepared(self, kind: str, continuation: Any, details: Any) -> tuple[_InterceptInvoker, Method, Rpc]:
        invoker = _InterceptInvoker(self._mesh, self._authority, continuation)
        invoker.abandoned = self._abandoned
        heads = self._heads.get(details.method)
        if heads is None:
            heads = self._heads[details.method] = HeadMaker(self._authority, details.method)
        rpc = Rpc(
            details.timeout,
            details.metadata,
            details.credentials,
            getattr(details, "wait_for_ready", None),
            getattr(details, "compression", None),
        )
        return invoker, Method(kind, heads, None, None), rpc

    def _stream(self, kind: str, continuation: Any, details: Any, request: Any, replay: Replay | None) -> Any:
        stream = MeshStream(*self._prepared(kind, continuation, details), request, replay)
        stream.start()
        return stream

    def _unary(self, kind: str, continuation: Any, details: Any, request: Any, replay: Replay | None) -> Any:
        invoker, method, rpc = self._prepared(kind, continuation, details)
        try:
            flow = invoker.begin(method, rpc)
        except MeshRpcError as error:
            return error
        clock = invoker.clock
        is_handed_over = False
        call: Any = None
        try:
            now = clock()
            step = flow.start(now)
            while True:
                if isinstance(step, Attempt):
                    call = invoker.invoke(
                        step.head.path,
                        request if replay is None else replay.reader(),
                        step.timeout_s,
                        invoker.metadata(flow, step, rpc, _NO_CHANNEL),
                        rpc.credentials,
                        None,
                        rpc.compression,
                    )
                    if not call.done():
                        is_handed_over = True
                        call.add_done_callback(partial(_record, invoker, flow, step, now))
                        return call
                    if call.code() is grpc.StatusCode.OK:
                        now = clock()
                        flow.finished(OK, now)
                        flow.learn(call.trailing_metadata, now)
                        flow.close(now, 0)
                        return call
                    outcome = invoker.outcome_of(call, _NO_CHANNEL, step, now)
                    if replay is not None and replay.is_committed:
                        flow.commit()
                    now = clock()
                    step = flow.finished(outcome, now)
                elif isinstance(step, Sleep):
                    time.sleep(step.seconds)
                    now = clock()
                    step = flow.slept(now)
                else:
                    return invoker.ended(flow, step, call, MeshRpcError)
        finally:
            if not is_handed_over:
                flow.close(clock())
                if replay is not None:
                    replay.close()


def _record(invoker: _InterceptInvoker, flow: Flow, attempt: Attempt, began_at: float, call: Any) -> None:
    """A future has ended: count it, and leave it as it is."""
    code = call.code()
    is_ok = code is grpc.StatusCode.OK
    outcome = OK if is_ok else invoker.outcome_of(call, _NO_CHANNEL, attempt, began_at)
    now = invoker.clock()
    flow.finished(outcome, now)
    if is_ok:
        flow.learn(call.trailing_metadata, now)
    flow.close(now, code.value[0])


_NO_CHANNEL: EndpointChannel[Any] = EndpointChannel(ChannelKey("", "", (), None, None), None, "", None)
