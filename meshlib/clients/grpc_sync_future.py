"""`multicallable.future(...)`: an RPC with one response that nobody waits for.

No thread is kept: gRPC's callback at the end of an attempt decides and starts the next one. A pause costs a timer, and
the first use of a service a short-lived thread that waits for its configuration.

As with gRPC's own, an RPC whose future is dropped is cancelled, unless somebody wants to be called back.
"""

import threading
import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import grpc

from meshlib.call import Attempt, Sleep, Step
from meshlib.clients.grpc_common import OK
from meshlib.clients.grpc_dial import in_callback
from meshlib.clients.grpc_endpoint import EndpointChannel
from meshlib.clients.grpc_errors import CANCELLED, CLOSED, AnyFuture, CallInfo, MeshRpcError, run_callbacks
from meshlib.clients.grpc_flow import Flow
from meshlib.clients.grpc_invoke import Method, Rpc, SyncInvoker
from meshlib.clients.grpc_replay import Replay
from meshlib.errors import IdentityError, MeshError
from meshlib.model.outcome import Failure, FailureKind
from meshlib.runtime.context import carry

__all__ = ["MeshFuture"]


class MeshFuture(grpc.Call, AnyFuture):
    """The call object of a future RPC; all methods may be called by any thread."""

    def __init__(self, invoker: SyncInvoker, method: Method, rpc: Rpc, request: Any, replay: Replay | None) -> None:
        self._invoker = invoker
        self._method = method
        self._rpc = rpc
        self._request = request
        self._replay = replay
        self._began_at = invoker.clock()
        # Used by one thread at a time: whoever starts it, then the callback of the attempt or the timer.
        self._flow: Flow | None = None
        self._last_error: Any = None
        # Guarded by the condition:
        self._changed = threading.Condition()
        self._native: Any = None
        self._timer: threading.Timer | None = None
        self._held: list[EndpointChannel[grpc.Channel]] = []  # of an attempt under way; who pops it gives it back
        self._is_cancelled = self._is_closed = False
        self._is_done = False  # nothing happens any more; before that a cancelled one is over for its caller
        self._response: Any = None
        self._error: Any = None
        self._callbacks: list[Callable[[], None]] = []
        # gRPC's callback refers to this list only: what is in it stays until the end.
        self._kept: list[MeshFuture] = []

    def start(self) -> None:
        """Begin the RPC.

        Raises:
            ValueError: The channel was closed.
        """
        try:
            known = self._invoker.mesh.target(self._invoker.authority) is not None
        except MeshError:
            known = not self._rpc.wait_for_ready
        if known or self._invoker.is_closed:
            self._begin()
        else:
            threading.Thread(target=carry(self._begin), name="meshlib-grpc-future", daemon=True).start()

    def _begin(self) -> None:
        try:
            flow = self._invoker.begin(self._method, self._rpc)
        except MeshRpcError as error:
            self._settle(error=error)
            return
        self._flow = flow
        self._obey(flow, flow.start(self._invoker.clock()))

    def _obey(self, flow: Flow, step: Step) -> None:
        invoker = self._invoker
        while isinstance(step, Attempt):
            try:
                channel = invoker.acquire(step)
            except IdentityError as unable:
                step = flow.finished(Failure(FailureKind.IDENTITY, False, unable), invoker.clock())
                continue
            began_at = invoker.clock()
            native = invoker.multicallable(channel, self._method, step).future(
                self._request if self._replay is None else self._replay.reader(),
                step.timeout_s,
                invoker.metadata(flow, step, self._rpc, channel),
                self._rpc.credentials,
                None,
                self._rpc.compression,
            )
            held = [channel]
            with self._changed:
                self._native, self._held = native, held
                cancelled = self._is_cancelled
            native.add_done_callback(
                partial(_over, weakref.ref(self), self._kept, invoker, self._replay, flow, held, step, began_at)
            )
            if cancelled:
                native.cancel()
            return
        if isinstance(step, Sleep):
            timer = threading.Timer(step.seconds, self._woken, (flow,))
            timer.daemon = True
            with self._changed:
                cancelled = self._is_cancelled
                self._timer = None if cancelled else timer
            if cancelled:
                self._settle_cancelled(flow)
            else:
                timer.start()
            return
        self._settle(error=invoker.ended(flow, step, self._last_error, MeshRpcError))

    def _attempted(
        self, flow: Flow, channel: EndpointChannel[grpc.Channel], attempt: Attempt, began_at: float, native: Any
    ) -> None:
        invoker = self._invoker
        invoker.release(channel)
        if native.code() is grpc.StatusCode.OK:
            now = invoker.clock()
            flow.finished(OK, now)
            flow.learn(native.trailing_metadata, now)
            flow.close(now, 0)
            self._settle(response=native.result())
            return
        if self._is_cancelled:
            self._settle_cancelled(flow)
            return
        is_committed = self._replay is not None and self._replay.is_committed
        if invoker.is_unsent(native, channel) and not is_committed:
            self._obey(flow, attempt)
            return
        self._last_error = native
        outcome = invoker.outcome_of(native, channel, attempt, began_at)
        if is_committed:
            flow.commit()
        self._obey(flow, flow.finished(outcome, invoker.clock()))

    def _woken(self, flow: Flow) -> None:
        with self._changed:
            if self._timer is None:
                return  # cancelled
            self._timer = None
        if self._is_cancelled:
            self._settle_cancelled(flow)
            return
        self._obey(flow, flow.slept(self._invoker.clock()))

    def _settle_cancelled(self, flow: Flow) -> None:
        flow.close(self._invoker.clock(), grpc.StatusCode.CANCELLED.value[0])
        self._settle()

    def _settle(self, *, response: Any = None, error: Any = None) -> None:
        with self._changed:
            if not self._is_cancelled:
                self._response, self._error = response, error
            self._is_done = True
            callbacks, self._callbacks = self._callbacks, []
            self._changed.notify_all()
        self._kept.clear()
        if self._replay is not None:
            self._replay.close()
        run_callbacks(callbacks)

    # grpc.Future

    def cancel(self) -> bool:
        return self._cancel(CANCELLED)

    def channel_closed(self) -> None:
        """End the RPC with its channel; for its caller that is an error."""
        self._cancel(CLOSED)

    def _cancel(self, details: str) -> bool:
        with self._changed:
            if self.done():
                return False
            self._is_cancelled, self._is_closed = True, details is CLOSED
            self._error = MeshRpcError(grpc.StatusCode.CANCELLED, details, self.mesh)
            timer, self._timer = self._timer, None
            native, flow = self._native, self._flow
            held = self._held
        if timer is not None:
            timer.cancel()
            if flow is not None:
                self._settle_cancelled(flow)
        elif native is not None:
            native.cancel()
            channel = _pop(held)
            if channel is not None and flow is not None:
                flow.close(self._invoker.clock(), grpc.StatusCode.CANCELLED.value[0])
                self._invoker.release(channel)
        with self._changed:
            self._changed.notify_all()
        return True

    def cancelled(self) -> bool:
        return self._is_cancelled and not self._is_closed

    def running(self) -> bool:
        return not self.done()

    def done(self) -> bool:
        return self._is_done or self._is_cancelled

    def result(self, timeout: float | None = None) -> Any:
        error = self._wait(timeout)
        if error is not None:
            if self.cancelled():
                raise grpc.FutureCancelledError()
            raise error
        return self._response

    def exception(self, timeout: float | None = None) -> Exception | None:
        error = self._wait(timeout)
        if error is not None and self.cancelled():
            raise grpc.FutureCancelledError()
        found: Exception | None = error
        return found

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        error = self.exception(timeout)
        return None if error is None else error.__traceback__

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        if not self._on_done(partial(fn, self)):
            fn(self)

    def _on_done(self, callback: Callable[[], None]) -> bool:
        with self._changed:
            if self.done():
                return False
            self._callbacks.append(callback)
            if not self._kept:
                self._kept.append(self)
            return True

    def _wait(self, timeout: float | None = None) -> Any:
        with self._changed:
            if not self._changed.wait_for(self.done, timeout):
                raise grpc.FutureTimeoutError()
            return self._error

    # grpc.Call

    def _final(self) -> Any:
        error = self._wait()
        return self._native if error is None else error

    def initial_metadata(self) -> Any:
        metadata = self._final().initial_metadata()
        return metadata if self._flow is None else self._flow.marked(metadata)

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
        return not self.done()

    def time_remaining(self) -> Any:
        timeout_s = self._rpc.timeout_s
        return None if timeout_s is None else max(timeout_s - (self._invoker.clock() - self._began_at), 0.0)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return self._on_done(callback)

    @property
    def mesh(self) -> CallInfo:
        """What the mesh knows of the call so far."""
        return CallInfo() if self._flow is None else self._flow.info()

    def __del__(self) -> None:
        if not getattr(self, "_is_done", True):
            self._is_cancelled = True
            if self._native is not None:
                self._native.cancel()  # its callback gives back what is held


def _over(
    future: "weakref.ref[MeshFuture]",
    kept: list[MeshFuture],
    invoker: SyncInvoker,
    replay: Replay | None,
    flow: Flow,
    held: list[EndpointChannel[grpc.Channel]],
    attempt: Attempt,
    began_at: float,
    native: Any,
) -> None:
    """Go on after an attempt, for a future or for nobody any more.

    Args:
        kept: Only held: see there.
        held: Empty: who cancelled the future has given back what there was.
    """
    found, channel = future(), _pop(held)
    with in_callback():
        if channel is None:
            if found is not None:
                found._settle()
        elif found is not None:
            found._attempted(flow, channel, attempt, began_at, native)
        else:
            invoker.release(channel)
            flow.close(invoker.clock(), grpc.StatusCode.CANCELLED.value[0])
            if replay is not None:
                replay.close()


def _pop(held: list[EndpointChannel[grpc.Channel]]) -> EndpointChannel[grpc.Channel] | None:
    """Take over what is held; only one gets it."""
    try:
        return held.pop()
    except IndexError:
        return None
