"""Unary calls of event loops past grpc.aio's Python layer; the twin of `grpc_direct`.

grpc.aio makes for each call a task, an object around core's with four base classes, metadata objects and callbacks. Here the
coroutine of the layer below is begun at once and goes on when the future that it waits for is done, without a task: whoever
awaits the call waits for that same future.
"""

import asyncio
import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Final

import grpc
import grpc.aio

from meshlib.clients.grpc_direct import (
    TRIAL_S,
    TRIAL_TARGET,
    Deserializer,
    Serializer,
    cygrpc,
    is_known,
    is_switched_off,
)
from meshlib.runtime.clock import wall
from meshlib.runtime.own_channels import own_aio_channel

__all__ = ["AioDirectCall", "AioDirectUnary", "aio_puller", "make_aio_unary"]

try:
    from grpc import _common, _compression, _observability
    from grpc.aio import _call, _channel
except ImportError:  # a grpcio that nobody has looked at: it is called the public way
    _common = _compression = _observability = _call = _channel = None  # type: ignore[assignment]  # see `_is_usable`

native: Any = _call
if TYPE_CHECKING:
    # Generic in the stubs, and from some version on.
    CallBase = _call.Call[Any, Any]
else:
    CallBase = getattr(_call, "Call", object)
_CANCELLED: Final = "Locally cancelled by application!"


class AioDirectCall(CallBase):
    """A call under way, for one owner. As `grpc.aio.UnaryUnaryCall`, but for what its owner does for it: nobody may drop
    it without a `cancel`.

    Attributes:
        future: Done when core is.
        owner: Whose `attempt_ended` is told; not kept alive. None: nobody.
        response: Of a call that went well.
        is_over: It has ended, and its owner has heard of it.
        is_ok: It is over, and went well.
    """

    def __init__(self, call: Any, coroutine: Any, future: Any, deserializer: Deserializer) -> None:
        # Not the base's: what that keeps besides is for other kinds of calls.
        self._cython_call = call
        self._coroutine = coroutine
        self._deserializer = deserializer
        self._failure: BaseException | None = None
        self.future = future
        self.owner: weakref.ref[Any] | None = None
        self.response: Any = None
        self.is_over = self.is_ok = False
        future._asyncio_future_blocking = False  # as a task does that has seen whom to wait for
        future.add_done_callback(self.go_on)

    def __del__(self) -> None:
        """Nothing: the future that core completes refers to the call."""

    def go_on(self, future: Any) -> None:
        """Have the coroutine go on to its end, now that its future is done."""
        if self.is_over:
            return
        self.is_over = True
        try:
            if future.cancelled():
                self._coroutine.throw(asyncio.CancelledError())
            else:
                self._coroutine.send(None)
        except StopIteration as stop:
            if self._cython_call.is_ok():
                self.is_ok = True
                self.response = stop.value
                if self._deserializer is not None:
                    self.response = _common.deserialize(stop.value, self._deserializer)
        except asyncio.CancelledError:
            self.cancel()
        except Exception as error:
            self._failure = error
        else:
            self._failure = RuntimeError("grpc.aio waits twice in a unary call")
        owner = None if self.owner is None else self.owner()
        if owner is not None:
            owner.attempt_ended(self)

    def wait(self) -> Generator[Any, None, None]:
        """Wait until the call is over; its owner has heard of it then.

        Whoever waits has the coroutine go on itself: a callback of the future would take a turn of the loop.

        Raises:
            asyncio.CancelledError: The call was cancelled, or the task that waits.
        """
        future = self.future
        if not future.done():
            future.remove_done_callback(self.go_on)
            future._asyncio_future_blocking = True
            try:
                yield future
            except GeneratorExit:
                self.left()
                raise
            except asyncio.CancelledError:
                if future.done():
                    self.go_on(future)
                raise
        self.go_on(future)

    def left(self) -> None:
        """Whoever waited is gone without a word: the loop has the coroutine go on. Called by finalizers, that run anywhere."""
        future = self.future
        with contextlib.suppress(RuntimeError):  # the loop is closed
            if future.done():
                future.get_loop().call_soon_threadsafe(self.go_on, future)
            else:
                future.add_done_callback(self.go_on)

    def outcome(self) -> Any:
        """Return the response of a call that is over.

        Raises:
            grpc.aio.AioRpcError: It has none.
            asyncio.CancelledError: It was cancelled here.
        """
        call = self._cython_call
        if self._failure is not None:
            raise self._failure
        if call.is_ok():
            return self.response
        if call.is_locally_cancelled():
            raise asyncio.CancelledError()
        raise native._create_rpc_error(call._initial_metadata, call._status)

    def __await__(self) -> Generator[Any, None, Any]:
        yield from self.wait()
        return self.outcome()

    def cancel(self) -> bool:
        """As of any call of grpc.aio."""
        if not self._cancel(_CANCELLED):
            return False
        self.future.cancel()
        return True


class AioDirectUnary:
    """One method of a channel; see `AioDirectCall`."""

    __slots__ = ("_call", "_deserializer", "_method", "_public", "_serializer")

    def __init__(self, channel: Any, method: str, serializer: Serializer, deserializer: Deserializer) -> None:
        self._public = channel.unary_unary(method, serializer, deserializer)
        self._call = channel._channel.call
        self._method = _common.encode(method)
        self._serializer = serializer
        self._deserializer = deserializer

    def __call__(
        self,
        request: Any,
        timeout_s: float | None,
        metadata: Any,
        credentials: Any,
        compression: grpc.Compression | None,
    ) -> Any:
        """Start a call; what cannot be started is left to grpc.aio, which knows how to complain."""
        coroutine = None
        if _observability._OBSERVABILITY_PLUGIN is None:
            try:
                message = request if self._serializer is None else self._serializer(request)
                sent = _compression.augment_metadata(metadata, compression) if compression else metadata
                deadline = None if timeout_s is None else wall() + timeout_s
                call = self._call(self._method, deadline, credentials, None)
                coroutine = call.unary_unary(message, tuple(sent) if sent else (), None)
                future = coroutine.send(None)
            except Exception:
                if coroutine is not None:
                    coroutine.close()
            else:
                return AioDirectCall(call, coroutine, future, self._deserializer)
        return self._public(
            request, timeout=timeout_s, metadata=metadata, credentials=credentials, compression=compression
        )


@functools.cache
def _is_usable() -> bool:
    if is_switched_off() or not is_known(grpc.__version__):
        return False
    wanted = ("unary_unary", "cancel", "is_ok", "is_locally_cancelled", "done", "_status", "_initial_metadata")
    return (
        all(hasattr(getattr(cygrpc, "_AioCall", None), name) for name in wanted)
        and hasattr(getattr(cygrpc, "AioChannel", None), "call")
        and all(hasattr(native, name) for name in ("_create_rpc_error", "UnaryStreamCall", "StreamStreamCall"))
        and hasattr(getattr(native, "_StreamResponseMixin", None), "_read")
        and hasattr(_observability, "_OBSERVABILITY_PLUGIN")
        and hasattr(_channel, "Channel")
        and _is_tried()
    )


def _is_tried() -> bool:
    """Whether a call to nowhere ends as it must.

    Whoever asks is in an event loop and cannot wait there, so the call is made in another thread, for a few milliseconds.
    """
    found: list[bool] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            found.append(asyncio.run(_try()))

    thread = threading.Thread(target=run, name="meshlib-grpc-trial", daemon=True)
    thread.start()
    thread.join(TRIAL_S)
    return found == [True]


async def _try() -> bool:
    async with own_aio_channel(TRIAL_TARGET, None, (("grpc.enable_http_proxy", 0),)) as channel:
        unary = AioDirectUnary(channel, "/meshlib.Direct/Trial", None, None)
        first, second = (unary(b"", TRIAL_S, (("a", "b"),), None, None) for _ in range(2))
        if type(first) is not AioDirectCall or not second.cancel():
            return False
        with contextlib.suppress(asyncio.CancelledError):
            await second
            return False
        try:
            await first
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.UNAVAILABLE and first.is_over and not first.is_ok
    return False


def aio_puller(stream: Any) -> Callable[[], Any] | None:
    """Return what gets the next raw message of a stream of responses, or the end without its status; None: use `read`."""
    if _is_usable() and type(stream) in (native.UnaryStreamCall, native.StreamStreamCall):
        found: Callable[[], Any] = stream._read
        return found
    return None


def make_aio_unary(channel: Any, method: str, serializer: Serializer, deserializer: Deserializer) -> Any:
    """Return what starts calls of a unary method of a channel of grpc.aio; None: use that."""
    if _is_usable() and type(channel) is _channel.Channel and not channel._unary_unary_interceptors:
        return AioDirectUnary(channel, method, serializer, deserializer)
    return None
