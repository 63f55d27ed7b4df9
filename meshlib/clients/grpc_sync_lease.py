"""What a stream of responses holds until it ends, and who gives it back: the reader, gRPC's callback, or a finalizer.

gRPC's callback refers to the lease, never to the stream, so that a stream which nobody reads any more can be dropped.
"""

import threading
import weakref
from collections.abc import Callable
from typing import Any

import grpc

from meshlib.clients.grpc_dial import in_callback
from meshlib.clients.grpc_endpoint import EndpointChannel
from meshlib.clients.grpc_errors import run_callbacks
from meshlib.clients.grpc_flow import Flow
from meshlib.clients.grpc_invoke import SyncInvoker
from meshlib.clients.grpc_replay import Replay

__all__ = ["Lease"]


class Lease:
    """What one stream holds. Whoever claims the end (`take`) gives it back, and nobody else.

    Attributes:
        replay: Of a stream of requests; None: there is one request.
        channel: Of the attempt under way or committed to; None: there is none.
        is_committed: The stream belongs to its endpoint: gRPC's end of the attempt is the stream's.
        callbacks: To run at the end, once.
    """

    def __init__(self, invoker: SyncInvoker, flow: Flow, replay: Replay | None) -> None:
        self.invoker = invoker
        self.flow = flow
        self.replay = replay
        self.channel: EndpointChannel[grpc.Channel] | None = None
        self.is_committed = False
        self._lock = threading.Lock()
        self._is_over = False
        self.callbacks: list[Callable[[], None]] = []

    @property
    def is_over(self) -> bool:
        return self._is_over

    def on_over(self, callback: Callable[[], None]) -> bool:
        """Run a callback at the end; False: it is over."""
        with self._lock:
            if self._is_over:
                return False
            self.callbacks.append(callback)
            return True

    def take(self) -> bool:
        """Claim the end of the stream; only one gets it."""
        with self._lock:
            was_over, self._is_over = self._is_over, True
            return not was_over

    def end(self, status: grpc.StatusCode, native: Any = None) -> None:
        """Give everything back; idempotent. `call_back` is to follow.

        Args:
            native: gRPC's call, when it has ended by itself.
        """
        if self.take():
            if native is not None:
                self.flow.learn(native.trailing_metadata, self.invoker.clock())
            self.flow.close(self.invoker.clock(), status.value[0])
            self.release()

    def call_back(self) -> None:
        """Run the callbacks of a stream that is over, once; without a lock, as they may ask the stream anything."""
        with self._lock:
            if not self._is_over or not self.callbacks:
                return
            callbacks, self.callbacks = self.callbacks, []
        run_callbacks(callbacks)

    def drop(self) -> None:
        """Give everything back for a stream that was dropped, which `take` has claimed."""
        self.flow.close(self.invoker.clock(), grpc.StatusCode.CANCELLED.value[0])
        self.release()

    def release(self) -> None:
        channel, self.channel = self.channel, None
        if channel is not None:
            self.invoker.release(channel)
        if self.replay is not None:
            self.replay.close()

    def native_over(self, native: "weakref.ref[Any]") -> None:
        """gRPC says that an attempt has ended; before the first message that is the reader's business."""
        if not self.is_committed:
            return
        with in_callback():
            found = native()
            self.end(grpc.StatusCode.CANCELLED if found is None else found.code(), found)
            self.call_back()
