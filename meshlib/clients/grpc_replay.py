"""Request streams that can be sent again: a tee of the caller's iterator with a bound.

Messages are serialised once and kept until the call is committed to its endpoint: a response message has arrived, or
the kept ones have outgrown the limit (gRPC's 256 KiB per call, A6). After that nothing is kept and nothing repeated.

Each attempt reads through a reader of its own. When an attempt fails while its reader waits for the caller's next
message, the next attempt's reader gets that message: the caller's iterator is asked for each message exactly once.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any, Final

__all__ = ["LIMIT_BYTES", "LIMIT_MESSAGES", "AioReplay", "Replay"]

LIMIT_BYTES: Final = 256 * 1024
# gRPC counts bytes alone; a message costs us an object too, however small it is.
LIMIT_MESSAGES: Final = 4096

Serializer = Callable[[Any], bytes] | None
_LOG = logging.getLogger(__name__)


def _serialized(item: Any, serializer: Serializer) -> Any:
    """Return a message as it is sent; None: it cannot be, by which gRPC knows to end the call as INTERNAL."""
    try:
        return item if serializer is None else serializer(item)
    except Exception:
        _LOG.exception("Exception serializing message!")
        return None


_END: Final = object()


class _Kept:
    """The messages kept: a window onto the stream, from `start` on."""

    __slots__ = ("_measure", "is_committed", "messages", "size", "start")

    def __init__(self, measure: Callable[[Any], int]) -> None:
        self._measure = measure
        self.messages: deque[Any] = deque()
        self.start = 0
        self.size = 0
        self.is_committed = False

    @property
    def end(self) -> int:
        return self.start + len(self.messages)

    def add(self, message: Any) -> None:
        self.messages.append(message)
        self.size += self._size(message)
        if self.size > LIMIT_BYTES or len(self.messages) > LIMIT_MESSAGES:
            self.is_committed = True

    def drop_before(self, position: int) -> None:
        while self.messages and self.start < position:
            self.size -= self._size(self.messages.popleft())
            self.start += 1

    def _size(self, message: Any) -> int:
        return 0 if message is None else self._measure(message)


class Replay:
    """A request stream for threads.

    Args:
        messages: The caller's.
        serializer: Of the method; None: messages are passed on as they are.
        measure: Size of a serialised message in bytes.
    """

    def __init__(self, messages: Iterable[Any], serializer: Serializer, measure: Callable[[Any], int] = len) -> None:
        self._source = iter(messages)
        self._serializer = serializer
        # Guarded by the condition:
        self._changed = threading.Condition()
        self._kept = _Kept(measure)
        self._reader: _Reader | None = None
        self._is_pulling = False
        self._is_exhausted = False
        self._failure: BaseException | None = None

    @property
    def is_committed(self) -> bool:
        """Whether the stream cannot be sent again."""
        return self._kept.is_committed

    def commit(self) -> None:
        """Keep nothing any more: there will be no other attempt."""
        with self._changed:
            self._kept.is_committed = True
            if self._reader is not None:
                self._kept.drop_before(self._reader.position)

    def reader(self) -> Iterator[Any]:
        """Return the stream from its first message, for the next attempt; ends the reader of the one before."""
        with self._changed:
            if self._reader is not None:
                self._reader.is_over = True
            self._reader = _Reader(self)
            self._changed.notify_all()
            return self._reader

    def close(self) -> None:
        """End the current reader: the call is over."""
        with self._changed:
            if self._reader is not None:
                self._reader.is_over = True
            self._changed.notify_all()

    def _next(self, reader: "_Reader") -> Any:
        while True:
            with self._changed:
                while True:
                    if reader.is_over:
                        raise StopIteration
                    if reader.position < self._kept.end:
                        message = self._kept.messages[reader.position - self._kept.start]
                        reader.position += 1
                        if self._kept.is_committed:
                            self._kept.drop_before(reader.position)
                        return message
                    if self._failure is not None:
                        raise self._failure
                    if self._is_exhausted:
                        raise StopIteration
                    if not self._is_pulling:
                        self._is_pulling = True
                        break
                    self._changed.wait()
            self._pull()

    def _pull(self) -> None:
        """Ask the caller for a message, outside the lock: it may take any time."""
        item: Any = _END
        failure: BaseException | None = None
        try:
            item = next(self._source)
        except StopIteration:
            pass
        except BaseException as error:
            failure = error
        message = None if item is _END else _serialized(item, self._serializer)
        with self._changed:
            self._is_pulling = False
            if failure is not None:
                self._failure = failure
            elif item is _END:
                self._is_exhausted = True
            else:
                self._kept.add(message)
            self._changed.notify_all()


class _Reader(Iterator[Any]):
    """What gRPC's consumer thread iterates over. Fields are guarded by the condition of the stream."""

    __slots__ = ("_replay", "is_over", "position")

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self.position = 0
        self.is_over = False

    def __next__(self) -> Any:
        return self._replay._next(self)


class AioReplay:
    """A request stream for one event loop; without an iterator the messages come by `put`, as from `call.write`.

    A task of its own reads the caller's iterator, one message ahead of nobody: gRPC cancels the task that reads a
    request stream when an attempt fails, and that must not reach the caller's generator.
    """

    def __init__(
        self,
        messages: AsyncIterable[Any] | Iterable[Any] | None,
        serializer: Serializer,
        measure: Callable[[Any], int] = len,
    ) -> None:
        self._serializer = serializer
        self._kept = _Kept(measure)
        self._reader: _AioReader | None = None
        self._is_exhausted = False
        self._is_closed = False
        self._failure: BaseException | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._wanted = 0
        self._pump = None if messages is None else asyncio.get_running_loop().create_task(self._read(messages))

    @property
    def is_written(self) -> bool:
        """Whether the messages come by `put`."""
        return self._pump is None

    @property
    def is_finished(self) -> bool:
        """Whether there are no more messages."""
        return self._is_exhausted

    @property
    def is_committed(self) -> bool:
        """Whether the stream cannot be sent again."""
        return self._kept.is_committed

    def commit(self) -> None:
        """Keep nothing any more: there will be no other attempt."""
        self._kept.is_committed = True
        if self._reader is not None:
            self._kept.drop_before(self._reader.position)

    def reader(self) -> AsyncIterator[Any]:
        """Return the stream from its first message, for the next attempt; ends the reader of the one before."""
        if self._reader is not None:
            self._reader.is_over = True
        self._reader = _AioReader(self)
        self._wake()
        return self._reader

    async def put(self, item: Any) -> None:
        """Hand over a message, and wait until gRPC has taken it.

        Raises:
            asyncio.InvalidStateError: The call is over, or its requests are.
        """
        if self._is_closed:
            raise asyncio.InvalidStateError("RPC already finished.")
        if self._is_exhausted:
            raise asyncio.InvalidStateError('RPC is half closed after calling "done_writing".')
        self._kept.add(item if self._serializer is None else self._serializer(item))
        end = self._kept.end
        self._wake()
        while not self._is_closed and not (self._reader is not None and self._reader.position >= end):
            await self._wait()

    def finish(self) -> None:
        """There are no more messages; idempotent."""
        self._is_exhausted = True
        self._wake()

    def close(self) -> None:
        """The call is over."""
        self._is_closed = True
        if self._reader is not None:
            self._reader.is_over = True
        if self._pump is not None and self._pump is not _current_task():
            self._pump.cancel()
        self._wake()

    async def _read(self, messages: AsyncIterable[Any] | Iterable[Any]) -> None:
        try:
            if isinstance(messages, AsyncIterable):
                async for item in messages:
                    await self._offer(item)
            else:
                for item in messages:
                    await self._offer(item)
        except Exception as error:
            # The reader raises it inside gRPC, which ends the call and logs it, as for any iterator.
            self._failure = error
        self.finish()

    async def _offer(self, item: Any) -> None:
        await self.put(item)
        # Backpressure: the next message is asked for when gRPC wants it.
        while not self._is_closed and self._wanted < self._kept.end:
            await self._wait()

    async def _next(self, reader: "_AioReader") -> Any:
        while True:
            if reader.is_over:
                raise StopAsyncIteration
            if reader.position < self._kept.end:
                message = self._kept.messages[reader.position - self._kept.start]
                reader.position += 1
                if self._kept.is_committed:
                    self._kept.drop_before(reader.position)
                self._wake()
                return message
            if self._failure is not None:
                raise self._failure
            if self._is_exhausted:
                raise StopAsyncIteration
            self._wanted = max(self._wanted, reader.position)
            self._wake()
            await self._wait()

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class _AioReader(AsyncIterator[Any]):
    """What gRPC's task iterates over."""

    __slots__ = ("_replay", "is_over", "position")

    def __init__(self, replay: AioReplay) -> None:
        self._replay = replay
        self.position = 0
        self.is_over = False

    async def __anext__(self) -> Any:
        return await self._replay._next(self)


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
