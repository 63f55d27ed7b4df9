"""The stream of load reports to a management server, on the channel of its aggregated stream."""

import threading
from collections.abc import Callable
from typing import Final

import grpc

from meshlib.errors import MeshError
from meshlib.ports import WallClock
from meshlib.runtime.ads import StreamEvents, StreamRequests
from meshlib.runtime.credentials import authorization
from meshlib.xds.bootstrap import ServerConfig

__all__ = ["LoadStream"]

METHOD: Final = "/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats"


class LoadStream:
    """A stream from its opening to its end; the channel is somebody else's. Its messages are few, so none waits."""

    def __init__(
        self, server: ServerConfig, channel: grpc.Channel, events: StreamEvents, wall_clock: WallClock
    ) -> None:
        self._server = server
        self._channel = channel
        self._events = events
        self._wall_clock = wall_clock
        self._requests = StreamRequests(events.sent)
        self._lock = threading.Lock()
        self._cancel: Callable[[], object] | None = None  # guarded by the lock
        self._is_closed = False  # guarded by the lock
        self._thread = threading.Thread(target=self._run, name="meshlib-load", daemon=True)
        self._thread.start()

    def send(self, data: bytes) -> None:
        """Queue a message."""
        self._requests.put(data)

    def close(self) -> None:
        """Give the stream up. No event follows."""
        with self._lock:
            self._is_closed = True
            cancel, self._cancel = self._cancel, None
        self._requests.put(None)
        if cancel is not None:
            cancel()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        reason = self._read()
        with self._lock:
            was_closed, self._is_closed, self._cancel = self._is_closed, True, None
        self._requests.put(None)
        if not was_closed:
            self._events.ended(reason)

    def _read(self) -> str:
        """Deliver messages until the stream ends; return why it did."""
        try:
            metadata = authorization(self._server, self._wall_clock)
            open_stream: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(METHOD)
            call = open_stream(self._requests, metadata=metadata)
            with self._lock:
                if self._is_closed:
                    call.cancel()
                    return ""
                self._cancel = call.cancel
            for data in call:
                self._events.received(data, _go_on)
        except MeshError as error:
            return str(error)
        except grpc.RpcError as error:
            code = getattr(error, "code", None)
            return str(code()) if callable(code) else str(error)
        except ValueError:
            # grpcio's word for "this channel was closed meanwhile".
            return "the channel was closed"
        return "the server ended the stream"


def _go_on() -> None:
    """Read the next message at once."""
