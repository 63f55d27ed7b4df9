"""One aggregated stream to a management server, on grpcio's sync stack and a thread of ours.

It carries bytes and knows nothing of their meaning. grpc.aio is not used: its poller does not survive a fork.
"""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Final, Protocol

import grpc

from meshlib.errors import MeshError
from meshlib.ports import WallClock
from meshlib.runtime.credentials import TlsFiles, authorization, open_channel
from meshlib.xds.bootstrap import ServerConfig

__all__ = ["AdsEvents", "AdsStream", "Stream", "StreamEvents", "StreamRequests", "describe_end"]

_SERVICE: Final = "/envoy.service.discovery.v3.AggregatedDiscoveryService"
METHOD: Final = f"{_SERVICE}/StreamAggregatedResources"
DELTA_METHOD: Final = f"{_SERVICE}/DeltaAggregatedResources"


class StreamEvents(Protocol):
    """Who hears of a stream. Called on the stream's threads; must not block."""

    def sent(self) -> None:
        """The transport has taken the message that was sent last."""
        ...

    def received(self, data: bytes, done: Callable[[], None]) -> None:
        """A message came. The next one is read once `done` was called: a slow consumer slows the server down."""
        ...

    def ended(self, reason: str, *, is_unimplemented: bool = False) -> None:
        """The stream is over and will say nothing more. Not called after `close`.

        Args:
            reason: For people.
            is_unimplemented: The server does not know the method.
        """
        ...


class AdsEvents(StreamEvents, Protocol):
    """Who hears of resources."""

    def unserved(self, type_url: str, reason: str) -> None:
        """The server has no service for a type, where each type has one of its own. The others go on.

        Args:
            reason: For people.
        """
        ...

    def part_ended(self, type_url: str, reason: str, *, had_response: bool) -> None:
        """The stream of a type is over, where each type has one of its own. The others go on.

        A message of the type that says who we are begins a new one.

        Args:
            reason: For people.
            had_response: It has delivered one.
        """
        ...


class Stream(Protocol):
    """What the control thread needs of a stream; tests have their own."""

    def send(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class StreamRequests(Iterator[bytes]):
    """What grpcio sends. It asks for the next message only when the transport has taken the one before (`sent`)."""

    def __init__(self, sent: Callable[[], None]) -> None:
        self._queue: SimpleQueue[bytes | None] = SimpleQueue()
        self._sent = sent
        self._has_sent = False

    def put(self, data: bytes | None) -> None:
        self._queue.put(data)

    def __next__(self) -> bytes:
        if self._has_sent:
            self._sent()
        data = self._queue.get()
        if data is None:
            raise StopIteration
        self._has_sent = True
        return data


class AdsStream:
    """A stream from its opening to its end. Credentials are read, and the server is dialled, on its own thread.

    It is an incremental one if the server's features say so.
    """

    def __init__(
        self, server: ServerConfig, events: AdsEvents, wall_clock: WallClock, files: TlsFiles | None = None
    ) -> None:
        self._server = server
        self._events = events
        self._files = files or TlsFiles()
        self._is_unimplemented = False  # of the stream's own thread
        self._wall_clock = wall_clock
        self._requests = StreamRequests(events.sent)
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None  # guarded by the lock
        self._closed = threading.Event()  # set under the lock
        self._may_read = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meshlib-ads", daemon=True)
        self._thread.start()

    def send(self, data: bytes) -> None:
        """Queue a message."""
        self._requests.put(data)

    @property
    def channel(self) -> grpc.Channel | None:
        """The channel to the server, for other streams to it; it is closed with this one. None: not dialled yet."""
        with self._lock:
            return self._channel

    def close(self) -> None:
        """Give the stream and its channel up. No event follows."""
        with self._lock:
            self._closed.set()
            channel, self._channel = self._channel, None
        self._may_read.set()
        self._requests.put(None)
        if channel is not None:
            channel.close()
        # The thread holds nothing that needs it to end first, but a fork must not meet it alive inside grpcio.
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        reason = self._read()
        with self._lock:
            was_closed = self._closed.is_set()
            self._closed.set()
            channel, self._channel = self._channel, None
        self._requests.put(None)
        if channel is not None:
            channel.close()
        if not was_closed:
            self._events.ended(reason, is_unimplemented=self._is_unimplemented)

    def _read(self) -> str:
        """Deliver messages until the stream ends; return why it did."""
        try:
            channel = open_channel(self._server, self._files)
            metadata = authorization(self._server, self._wall_clock)
        except MeshError as error:
            return str(error)
        with self._lock:
            if self._closed.is_set():
                channel.close()
                return ""
            self._channel = channel
        try:
            method = DELTA_METHOD if self._server.is_delta else METHOD
            open_stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
            for data in open_stream(self._requests, metadata=metadata):
                self._may_read.clear()
                if self._closed.is_set():
                    return ""
                self._events.received(data, self._may_read.set)
                self._may_read.wait()
        except grpc.RpcError as error:
            reason, self._is_unimplemented = describe_end(error)
            return reason
        except ValueError:
            # grpcio's word for "this channel was closed meanwhile".
            return "the channel was closed"
        return "the server ended the stream"


def describe_end(error: grpc.RpcError) -> tuple[str, bool]:
    """Return why a stream ended, for people, and whether it was because the server does not know the method."""
    code, details = getattr(error, "code", None), getattr(error, "details", None)
    status = code() if callable(code) else None
    name = status.name if status is not None else "UNKNOWN"
    return f"{name}: {details() if callable(details) else error}", status is grpc.StatusCode.UNIMPLEMENTED
