"""How RPCs of a mesh channel for threads are made: its four kinds of multicallables."""

import time
import weakref
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.call import Attempt, Done, Sleep, Step
from meshlib.clients.grpc_common import OK
from meshlib.clients.grpc_direct import as_call, trailing_metadata
from meshlib.clients.grpc_errors import CLOSED, MeshRpcError
from meshlib.clients.grpc_express import Begun, begin, joined, note_berth, succeeded
from meshlib.clients.grpc_flow import Flow
from meshlib.clients.grpc_invoke import Method, Rpc, SyncInvoker
from meshlib.clients.grpc_marked import marked_call
from meshlib.clients.grpc_race import race_unary
from meshlib.clients.grpc_replay import Replay
from meshlib.clients.grpc_sync_future import MeshFuture
from meshlib.clients.grpc_sync_stream import MeshStream
from meshlib.errors import IdentityError
from meshlib.model.outcome import Failure, FailureKind

__all__ = ["Running", "StreamStream", "StreamUnary", "UnaryStream", "UnaryUnary"]

MetadataType = tuple[tuple[str, str | bytes], ...]
Running = weakref.WeakSet[MeshFuture | MeshStream]

if TYPE_CHECKING:
    # Generic in the stubs only.
    UnaryUnaryBase = grpc.UnaryUnaryMultiCallable[Any, Any]
    UnaryStreamBase = grpc.UnaryStreamMultiCallable[Any, Any]
    StreamUnaryBase = grpc.StreamUnaryMultiCallable[Any, Any]
    StreamStreamBase = grpc.StreamStreamMultiCallable[Any, Any]
else:
    from grpc import StreamStreamMultiCallable as StreamStreamBase
    from grpc import StreamUnaryMultiCallable as StreamUnaryBase
    from grpc import UnaryStreamMultiCallable as UnaryStreamBase
    from grpc import UnaryUnaryMultiCallable as UnaryUnaryBase


class _Multicallable:
    def __init__(self, invoker: SyncInvoker, running: Running, method: Method) -> None:
        self._invoker = invoker
        self._running = running
        self._method = method

    def _blocking(self, request: Any, replay: Replay | None, rpc: Rpc) -> tuple[Any, Any, Flow]:
        """Carry an RPC with one response to its end.

        Returns:
            The response, an answer of which `as_call` makes a call, and the flow.
        """
        flow = self._invoker.begin(self._method, rpc, can_hedge=replay is None)
        return self._carry(request, replay, rpc, flow)

    def _carry(
        self, request: Any, replay: Replay | None, rpc: Rpc, flow: Flow, step: Step | None = None, error: Any = None
    ) -> tuple[Any, Any, Flow]:
        """Carry a flow to its end.

        Args:
            step: What it has come to; None: it is to be started.
            error: What the attempt before raised.
        """
        invoker, method = self._invoker, self._method
        clock = invoker.clock
        # A flow adds something to its call only for those who wait until somebody is there.
        machine: Any = flow if rpc.wait_for_ready else flow.call
        try:
            now = clock()
            if step is None:
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
                            response, answer = channel.direct_unary(
                                step.head.path, method.serializer, method.deserializer
                            )(request, step.timeout_s, metadata, rpc.credentials, rpc.compression)
                        else:
                            response, answer = invoker.multicallable(channel, method, step).with_call(
                                replay.reader(), step.timeout_s, metadata, rpc.credentials, None, rpc.compression
                            )
                    except grpc.RpcError as raised:
                        if invoker.is_closed:
                            raise _ended_by_closing(raised, flow) from None
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
                    if invoker.is_closed:
                        raise MeshRpcError(grpc.StatusCode.CANCELLED, CLOSED, flow.info())
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
        self._running.add(future)
        future.start()
        return future

    def _stream(self, request: Any, replay: Replay | None, rpc: Rpc) -> Any:
        stream = MeshStream(self._invoker, self._method, rpc, request, replay)
        self._running.add(stream)
        stream.start()
        return stream


def _ended_by_closing(error: Any, flow: Flow) -> Any:
    """Return what the caller gets of an attempt that failed on a channel that has been closed: there is no other."""
    error.mesh = flow.info()
    return error


class UnaryUnary(_Multicallable, UnaryUnaryBase):
    def __init__(self, invoker: SyncInvoker, running: Running, method: Method) -> None:
        super().__init__(invoker, running, method)
        self._memo = method.heads.memo

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: MetadataType | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        if self._memo.way is not None:
            found = self._express(request, timeout, metadata, credentials, wait_for_ready, compression)
            if found is not None:
                return found[0]
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
        if self._memo.way is not None:
            found = self._express(request, timeout, metadata, credentials, wait_for_ready, compression)
            if found is not None:
                return found[0], as_call(found[1])
        rpc = Rpc(timeout, metadata, credentials, wait_for_ready, compression)
        response, answer, flow = self._blocking(request, None, rpc)
        return response, marked_call(as_call(answer), flow)

    def _express(
        self,
        request: Any,
        timeout_s: float | None,
        metadata: MetadataType | None,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
    ) -> tuple[Any, ...] | None:
        """As `_blocking` for an RPC that goes the way of those before it; see `grpc_express`.

        Returns:
            None: it does not, and nothing was done.
        """
        invoker, way = self._invoker, self._memo.way
        begun = begin(invoker, invoker.channels, self._method, way, timeout_s, metadata)
        if begun is None:
            return None
        answer: tuple[Any, Any] | None = None
        failure, berth, brought = None, begun[4], begun[5]
        if berth is not None:
            sent: Any = berth.metadata
            if brought is not None:
                timeout_s, sent = brought.timeout_s, brought.metadata
            limit_s = way.limit_s
            left_s = timeout_s if limit_s is None or (timeout_s is not None and timeout_s < limit_s) else limit_s
            try:
                answer = berth.unary(request, left_s, sent, credentials, compression)
            except BaseException as error:
                failure = error
            else:
                if way.cluster.learner is None:
                    succeeded(invoker, begun)
                    return answer
        rpc = Rpc(timeout_s, metadata, credentials, wait_for_ready, compression)
        return self._join(begun, request, rpc, failure, answer)

    def _join(
        self, begun: Begun, request: Any, rpc: Rpc, error: BaseException | None, answer: tuple[Any, Any] | None
    ) -> tuple[Any, ...]:
        """Go on with what `_express` began the way that all other RPCs go.

        Args:
            error: What its attempt raised, if it made one; None: nothing.
            answer: What it brought.
        """
        invoker, method, began_at, berth = self._invoker, self._method, begun[2], begun[4]
        flow, step = joined(invoker, method, begun, rpc)
        try:
            if berth is None:
                note_berth(invoker, invoker.channels, method, begun, flow, step)
            elif answer is not None:
                now = invoker.clock()
                flow.finished(OK, now)
                flow.learn(partial(trailing_metadata, answer[1]), now)
                flow.close(now, 0)
                return answer
            elif isinstance(error, grpc.RpcError) and isinstance(step, Attempt):
                if invoker.is_closed:
                    raise _ended_by_closing(error, flow)
                if not invoker.is_unsent(error, berth.channel):
                    outcome = invoker.outcome_of(error, berth.channel, step, began_at)
                    step = flow.finished(outcome, invoker.clock())
            elif error is not None:
                raise error
        except BaseException:
            flow.close(invoker.clock())
            raise
        finally:
            if berth is not None:
                berth.channels.release(berth.channel)
        return self._carry(request, None, rpc, flow, step, error)

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


class StreamUnary(_Multicallable, StreamUnaryBase):
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


class UnaryStream(_Multicallable, UnaryStreamBase):
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


class StreamStream(_Multicallable, StreamStreamBase):
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
