"""How gRPC channels are made and closed, in the sync form and for an event loop."""

import asyncio
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from meshlib.clients.grpc_endpoint import CoreChannel, Options
from meshlib.ports import Lock
from meshlib.runtime.core import new_node_id, open_aio, open_sync
from meshlib.runtime.own_channels import own_aio_channel, own_channel

__all__ = ["AioDialler", "Dialler", "SyncDialler", "in_callback"]

C = TypeVar("C")
Providers = Mapping[str, Mapping[str, str]]

_WAKE_S = 5.0
_SETTLE_S = 5.0

_here = threading.local()


@contextmanager
def in_callback() -> Iterator[None]:
    """Mark a block as run by one of gRPC's own threads, which must not close the channel that it works for."""
    before = getattr(_here, "is_callback", False)
    _here.is_callback = True
    try:
        yield
    finally:
        _here.is_callback = before


class Dialler(Protocol[C]):
    """One kind of channels. Nothing here does I/O before it returns.

    Attributes:
        fork_patience_s: How long a fork waits for calls under way.
    """

    fork_patience_s: float

    def dial(self, target: str, credentials: grpc.ChannelCredentials | None, options: Options, compression: Any) -> C:
        """Make a channel; credentials None: insecure."""
        ...

    def open_core(self, uri: str, providers: Providers, options: Options, compression: Any) -> CoreChannel[C]:
        """Make a channel that is told of its endpoints by core's management server, and have it ask there."""
        ...

    def close(self, channel: C) -> None:
        """Close a channel on which nothing is in flight; any thread may ask."""
        ...

    def run(self, function: Callable[[], None]) -> None:
        """Run a function where channels can be made, now or soon; not at all when that place is gone."""
        ...

    def waits_for_forks(self) -> bool:
        """Whether this thread may wait until other threads have forked before it makes a channel."""
        ...

    def settle(self) -> None:
        """Wait until what is being closed by threads of ours is closed."""
        ...

    def forget(self) -> None:
        """After a fork, in the child: the other threads are not here."""
        ...


class SyncDialler:
    """For threads."""

    fork_patience_s = 0.25
    """A child that is forked in the middle of a call may not get a call of its own through. Streams may take any time."""

    def __init__(self) -> None:
        self._lock = Lock()
        # Guarded by the lock:
        self._closers: set[threading.Thread] = set()

    def dial(
        self, target: str, credentials: grpc.ChannelCredentials | None, options: Options, compression: Any
    ) -> grpc.Channel:
        """As `Dialler.dial`."""
        return own_channel(target, credentials, options, compression)

    def open_core(
        self, uri: str, providers: Providers, options: Options, compression: Any
    ) -> CoreChannel[grpc.Channel]:
        """As `Dialler.open_core`."""
        node_id = new_node_id()
        channel = open_sync(uri, node_id, providers, options, compression)
        # A call that names no endpoint goes nowhere. To subscribe to the channel's state would cost a thread.
        wake: Any = channel.unary_unary("/meshlib.Core/Wake")
        return CoreChannel(node_id, channel, wake.future(b"", timeout=_WAKE_S))

    def close(self, channel: grpc.Channel) -> None:
        """As `Dialler.close`.

        `grpc.Channel.close` waits until the thread that works for the channel has handled what is left of its calls. In
        that very thread, which runs the callbacks of calls, it would wait for itself.
        """
        if not getattr(_here, "is_callback", False):
            channel.close()
            return
        thread = threading.Thread(target=self._close, args=(channel,), name="meshlib-grpc-close", daemon=True)
        with self._lock:
            self._closers.add(thread)
        thread.start()

    def run(self, function: Callable[[], None]) -> None:
        """As `Dialler.run`."""
        function()

    def waits_for_forks(self) -> bool:
        """As `Dialler.waits_for_forks`: gRPC's own threads may not, as the fork waits for channels that these work for."""
        return not getattr(_here, "is_callback", False)

    def settle(self) -> None:
        """As `Dialler.settle`; gRPC's own threads do not wait, as a channel that is being closed may wait for them."""
        if getattr(_here, "is_callback", False):
            return
        with self._lock:
            closers = tuple(self._closers)
        for thread in closers:
            thread.join(_SETTLE_S)

    def forget(self) -> None:
        """As `Dialler.forget`."""
        self._lock = Lock()
        self._closers = set()

    def _close(self, channel: grpc.Channel) -> None:
        try:
            channel.close()
        finally:
            with self._lock:
                self._closers.discard(threading.current_thread())


class AioDialler:
    """For one event loop. A channel whose loop is closed ends with its last reference."""

    fork_patience_s = 0.0
    """It may be the loop that forks, and then nothing goes on until it has."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._tasks: set[asyncio.Task[None]] = set()

    def dial(
        self, target: str, credentials: grpc.ChannelCredentials | None, options: Options, compression: Any
    ) -> grpc.aio.Channel:
        """As `Dialler.dial`."""
        return own_aio_channel(target, credentials, options, compression)

    def open_core(
        self, uri: str, providers: Providers, options: Options, compression: Any
    ) -> CoreChannel[grpc.aio.Channel]:
        """As `Dialler.open_core`."""
        node_id = new_node_id()
        channel = open_aio(uri, node_id, providers, options, compression)
        channel.get_state(try_to_connect=True)
        return CoreChannel(node_id, channel, None)

    def close(self, channel: grpc.aio.Channel) -> None:
        """As `Dialler.close`."""
        self.run(lambda: self._start(channel))

    def run(self, function: Callable[[], None]) -> None:
        """As `Dialler.run`."""
        loop = self._loop()
        if loop is None or loop.is_closed() or not loop.is_running():
            return
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop:
            function()
        else:
            loop.call_soon_threadsafe(function)

    def settle(self) -> None:
        """As `Dialler.settle`: the loop does it, or nobody."""

    def waits_for_forks(self) -> bool:
        """As `Dialler.waits_for_forks`: a loop does not stand still."""
        return False

    def forget(self) -> None:
        """As `Dialler.forget`: the loop is not here, and nothing of it is used."""

    def _start(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(channel.close(None))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
