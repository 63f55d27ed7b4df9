"""Streams of responses for sync callers, retried until the first message.

The first attempt starts when the stream is made; what follows (a retry, a pause) is done by the thread that asks for
the first message, or for the status. So a stream needs no thread of its own, but a stream that nobody reads is not
retried. Once a message or the initial metadata have been handed out, the stream belongs to its endpoint: configuration
updates leave it alone, and its end is the caller's.
"""

import threading
import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import grpc

from meshlib.call import Attempt, Sleep, Step
from meshlib.clients.grpc_common import OK, STARTED
from meshlib.clients.grpc_direct import puller
from meshlib.clients.grpc_errors import CANCELLED, CLOSED, AnyFuture, CallInfo, MeshRpcError
from meshlib.clients.grpc_flow import Flow
from meshlib.clients.grpc_invoke import Method, Rpc, SyncInvoker
from meshlib.clients.grpc_replay import Replay
from meshlib.clients.grpc_sync_lease import Lease
from meshlib.errors import IdentityError
from meshlib.model.outcome import Failure, FailureKind

__all__ = ["MeshStream"]


class MeshStream(grpc.Call, AnyFuture):
    """The call object of an RPC with a stream of responses. To be read by one thread at a time."""

    def __init__(self, invoker: SyncInvoker, method: Method, rpc: Rpc, request: Any, replay: Replay | None) -> None:
        self._invoker = invoker
        self._method = method
        self._rpc = rpc
        self._request = request
        self._replay = replay
        self._native: Any = None
        self._lease: Lease | None = None
        self._error: Any = None
        self._is_drained = False
        self._peeked: list[Any] = []
        self._pull: Callable[[], Any] | None = None
        self._pending: Step | None = None
        self._attempt_began_at = 0.0
        self._attempt: Attempt | None = None
        self._cancelled = threading.Event()
        self._is_closed = False
        # Held by whoever drives the call before its first message: readers of one stream wait for each other, as they
        # do in gRPC.
        self._driving = threading.Lock()

    def start(self) -> None:
        """Begin the RPC: the first attempt is under way when this returns, unless a fault delays it.

        Raises:
            ValueError: The channel was closed.
        """
        try:
            flow = self._invoker.begin(self._method, self._rpc)
        except MeshRpcError as error:
            self._error = error
            return
        self._lease = Lease(self._invoker, flow, self._replay)
        with self._driving:
            self._pending = self._launch(flow.start(self._invoker.clock()))

    def __iter__(self) -> "MeshStream":
        return self

    def __next__(self) -> Any:
        pull = self._pull
        if pull is not None:
            # Every message but the first.
            try:
                return pull()
            except (StopIteration, grpc.RpcError) as error:
                self._ended(error)
                raise
        if self._peeked:
            return self._peeked.pop()
        lease = self._lease
        if lease is None or not lease.is_committed:
            self._drive()
            if self._peeked:
                return self._peeked.pop()
        if self._error is not None:
            raise self._error
        if self._is_drained:
            raise StopIteration
        self._pull = puller(self._native)
        return self.__next__()

    def _ended(self, error: StopIteration | grpc.RpcError) -> None:
        """The stream has ended after its first message."""
        lease = self._lease
        assert lease is not None
        if isinstance(error, StopIteration):
            lease.end(grpc.StatusCode.OK, self._native)
        else:
            code = error.code()
            error.mesh = lease.flow.info()  # type: ignore[attr-defined]  # where users find it
            lease.end(code)
        lease.call_back()

    def _launch(self, step: Step) -> Step | None:
        """Start an attempt if the step is one; what cannot be done without waiting is returned."""
        lease, invoker = self._lease, self._invoker
        assert lease is not None
        while isinstance(step, Attempt):
            try:
                channel = invoker.acquire(step)
            except IdentityError as unable:
                step = lease.flow.finished(Failure(FailureKind.IDENTITY, False, unable), invoker.clock())
                continue
            lease.channel = channel
            now = self._attempt_began_at = invoker.clock()
            deadline = lease.flow.call.deadline
            self._attempt = step
            native = invoker.multicallable(channel, self._method, step)(
                self._request if self._replay is None else self._replay.reader(),
                # An attempt's own time ends with the first message, the deadline with the stream.
                None if deadline is None else max(deadline - now, 0.0),
                invoker.metadata(lease.flow, step, self._rpc, channel),
                self._rpc.credentials,
                None,
                self._rpc.compression,
            )
            self._native = native
            over = partial(lease.native_over, weakref.ref(native))
            if not native.add_callback(over):
                over()
            if self._cancelled.is_set():
                native.cancel()
            return None
        return step

    def _drive(self) -> None:
        """Get to the first message, or to the end."""
        lease = self._lease
        if lease is None:
            return
        with self._driving:
            while not lease.is_committed and self._error is None and not self._is_drained:
                self._advance(lease)
        lease.call_back()

    def _advance(self, lease: Lease) -> None:
        invoker, flow = self._invoker, lease.flow
        step, self._pending = self._pending, None
        if self._cancelled.is_set():
            self._end_cancelled(lease)
        elif step is None:
            step = self._await_first(lease)
            self._pending = None if step is None else self._launch(step)
        elif isinstance(step, Sleep):
            if self._cancelled.wait(step.seconds):
                self._end_cancelled(lease)
            else:
                self._pending = self._launch(flow.slept(invoker.clock()))
        else:
            assert not isinstance(step, Attempt)
            if lease.take():
                self._error = invoker.ended(flow, step, self._native, MeshRpcError)
                lease.release()

    def _await_first(self, lease: Lease) -> Step | None:
        """Wait for the first message of an attempt; None: it is there, or the stream has ended well."""
        invoker, native, flow = self._invoker, self._native, lease.flow
        attempt = self._attempt
        assert attempt is not None
        timer = self._per_try_timer(attempt, flow)
        try:
            message = next(native)
        except StopIteration:
            flow.finished(OK, invoker.clock())
            self._is_drained = True
            lease.is_committed = True
            lease.end(grpc.StatusCode.OK, native)
            return None
        except grpc.RpcError as error:
            if self._cancelled.is_set():
                self._end_cancelled(lease)
                return None
            channel = lease.channel
            assert channel is not None
            is_committed = self._replay is not None and self._replay.is_committed
            if invoker.is_unsent(error, channel) and not is_committed:
                lease.channel = None
                invoker.release(channel)
                return attempt
            now = invoker.clock()
            if timer is not None and now - self._attempt_began_at >= (attempt.timeout_s or 0.0):
                outcome: Any = Failure(FailureKind.TIMEOUT, True, error)
            else:
                outcome = invoker.outcome_of(error, channel, attempt, self._attempt_began_at)
            lease.channel = None
            invoker.release(channel)
            if is_committed:
                flow.commit()
            return flow.finished(outcome, now)
        finally:
            if timer is not None:
                timer.cancel()
        self._peeked.append(message)
        self._commit(lease)
        return None

    def _per_try_timer(self, attempt: Attempt, flow: Flow) -> threading.Timer | None:
        """Return what ends an attempt whose own time is shorter than the call's; None: there is no such time."""
        timeout_s, deadline = attempt.timeout_s, flow.call.deadline
        if timeout_s is None or (deadline is not None and deadline - self._attempt_began_at <= timeout_s):
            return None
        timer = threading.Timer(
            max(self._attempt_began_at + timeout_s - self._invoker.clock(), 0.0), self._native.cancel
        )
        timer.daemon = True
        timer.start()
        return timer

    def _commit(self, lease: Lease) -> None:
        """The stream belongs to this endpoint from now on."""
        lease.flow.finished(STARTED, self._invoker.clock())
        lease.is_committed = True
        if self._replay is not None:
            self._replay.commit()

    def _is_settled(self, lease: Lease) -> bool:
        return lease.is_committed or self._error is not None

    def _end_cancelled(self, lease: Lease) -> None:
        self._error = MeshRpcError(
            grpc.StatusCode.CANCELLED, CLOSED if self._is_closed else CANCELLED, lease.flow.info()
        )
        lease.end(grpc.StatusCode.CANCELLED)

    # grpc.Call

    def _final(self) -> Any:
        """Return what knows the status; waits for the first message."""
        self._drive()
        return self._native if self._error is None else self._error

    def initial_metadata(self) -> Any:
        """Return the initial metadata, and stay with the endpoint that sent them."""
        lease = self._lease
        while lease is not None and not lease.is_committed and self._error is None:
            with self._driving:
                if self._is_settled(lease):
                    break
                if self._pending is None:
                    metadata = self._native.initial_metadata()
                    if metadata or self._native.is_active():
                        self._commit(lease)
                        break
                self._advance(lease)
            lease.call_back()
        final = self._native if self._error is None else self._error
        metadata = final.initial_metadata()
        return metadata if lease is None else lease.flow.marked(metadata)

    def trailing_metadata(self) -> Any:
        return self._final().trailing_metadata()

    def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = self._final().code()
        return code

    def details(self) -> str:
        details: str = self._final().details()
        return details

    def debug_error_string(self) -> str:
        text: str = self._final().debug_error_string()
        return text

    def is_active(self) -> bool:
        return self._lease is not None and not self._lease.is_over

    def time_remaining(self) -> Any:
        deadline = None if self._lease is None else self._lease.flow.call.deadline
        return None if deadline is None else max(deadline - self._invoker.clock(), 0.0)

    def cancel(self) -> bool:
        lease = self._lease
        if lease is None or lease.is_over:
            return False
        self._cancelled.set()
        if self._native is not None:
            self._native.cancel()
        # Somebody who reads notices; else it is done here.
        if self._driving.acquire(blocking=False):
            try:
                if not lease.is_committed:
                    self._end_cancelled(lease)
                else:
                    lease.end(grpc.StatusCode.CANCELLED)
            finally:
                self._driving.release()
            lease.call_back()
        return True

    def channel_closed(self) -> None:
        """End the RPC with its channel; for its caller that is an error."""
        self._is_closed = not self._cancelled.is_set()
        self.cancel()

    def cancelled(self) -> bool:
        return self._cancelled.is_set() and not self._is_closed

    def done(self) -> bool:
        return not self.is_active()

    def running(self) -> bool:
        return self.is_active()

    # grpc.Future, as gRPC's own streams have it: there is no result but the end.

    def result(self, timeout: float | None = None) -> None:
        error = self.exception(timeout)
        if error is not None:
            raise error

    def exception(self, timeout: float | None = None) -> Exception | None:
        if timeout is not None:
            over = threading.Event()
            if self.add_callback(over.set):
                # Somebody has to see to retries until the first message is there.
                threading.Thread(target=self._drive, name="meshlib-grpc-stream", daemon=True).start()
                if not over.wait(timeout):
                    raise grpc.FutureTimeoutError()
        if self.code() is grpc.StatusCode.OK:
            return None
        if self.cancelled():
            raise grpc.FutureCancelledError()
        error: Exception = self._final()
        return error

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        error = self.exception(timeout)
        return None if error is None else error.__traceback__

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return self._lease is not None and self._lease.on_over(callback)

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        if not self.add_callback(lambda: fn(self)):
            fn(self)

    @property
    def mesh(self) -> CallInfo:
        """What the mesh knows of the call so far."""
        return CallInfo() if self._lease is None else self._lease.flow.info()

    def __del__(self) -> None:
        lease = getattr(self, "_lease", None)
        if lease is not None and lease.take():
            # gRPC cancels a call whose object is dropped; the rest must not be done in a finalizer.
            lease.invoker.abandoned.append(lease.drop)
