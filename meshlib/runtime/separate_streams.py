"""One stream per type of resource to a management server, over one channel, in place of an aggregated one.

To its owner it is one stream: messages go to the stream of their type, which opens with one that says who we are. It is
over when the last one has ended, or one ends before the server has said anything; others are begun anew by themselves.
So is a type given up that the server has no service for; but a server without one for listeners does not speak this
variant. Both variants have their own methods for each type.

Source: xDS protocol, "Non-aggregated streams".
"""

import threading
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import grpc

from meshlib.errors import MeshError
from meshlib.ports import WallClock
from meshlib.protos import message_class
from meshlib.runtime.ads import AdsEvents, StreamRequests, describe_end
from meshlib.runtime.credentials import TlsFiles, authorization, open_channel
from meshlib.xds.bootstrap import ServerConfig
from meshlib.xds.resources import CDS, ECDS, EDS, LDS, LEDS, RDS, RTDS, SDS, SRDS, VHDS

__all__ = ["SeparateStreams", "method_of"]

_SERVICES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        LDS: ("listener.v3.Listener", "Listeners"),
        RDS: ("route.v3.Route", "Routes"),
        CDS: ("cluster.v3.Cluster", "Clusters"),
        EDS: ("endpoint.v3.Endpoint", "Endpoints"),
        SDS: ("secret.v3.Secret", "Secrets"),
        SRDS: ("route.v3.ScopedRoutes", "ScopedRoutes"),
        VHDS: ("route.v3.VirtualHost", "VirtualHosts"),
        LEDS: ("endpoint.v3.LocalityEndpoint", "LocalityEndpoints"),
        ECDS: ("extension.v3.ExtensionConfig", "ExtensionConfigs"),
        RTDS: ("runtime.v3.Runtime", "Runtime"),
    }
)


def method_of(type_url: str, *, is_delta: bool) -> str:
    """Return the gRPC method that serves a type alone."""
    service, what = _SERVICES[type_url]
    return f"/envoy.service.{service}DiscoveryService/{'Delta' if is_delta else 'Stream'}{what}"


class _Part:
    """The stream of one type."""

    def __init__(self, type_url: str, events: AdsEvents) -> None:
        self.type_url = type_url
        self.requests = StreamRequests(events.sent)
        self.may_read = threading.Event()
        self.has_response = False
        self.thread: threading.Thread | None = None


class SeparateStreams:
    """A `Stream`. Credentials are read, and the server is dialled, on threads of its own."""

    def __init__(
        self, server: ServerConfig, events: AdsEvents, wall_clock: WallClock, files: TlsFiles | None = None
    ) -> None:
        self._server = server
        self._events = events
        self._files = files or TlsFiles()
        self._wall_clock = wall_clock
        variant = "Delta" if server.is_delta else ""
        self._request = message_class(f"envoy.service.discovery.v3.{variant}DiscoveryRequest")
        self._parts: dict[str, _Part] = {}  # of the owner's thread, which alone sends and closes
        self._closed = threading.Event()  # set under the lock
        # Guarded by the lock.
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._live = 0
        self._has_response = False

    @property
    def channel(self) -> grpc.Channel | None:
        """The channel to the server, for other streams to it; it is closed with these. None: not dialled yet."""
        with self._lock:
            return self._channel

    def send(self, data: bytes) -> None:
        """Queue a message on the stream of its type."""
        request = self._request.FromString(data)
        type_url = request.type_url
        part = self._parts.get(type_url)
        if part is None or request.HasField("node"):
            part = self._parts[type_url] = _Part(type_url, self._events)
            with self._lock:
                self._live += 1
            part.thread = threading.Thread(target=self._run, args=(part,), name="meshlib-ads", daemon=True)
            part.thread.start()
        part.requests.put(data)

    def close(self) -> None:
        """Give the streams and their channel up. No event follows."""
        self._shut()
        for part in self._parts.values():
            if part.thread is not None and part.thread is not threading.current_thread():
                part.thread.join(timeout=2.0)

    def _shut(self) -> bool:
        """End everything; return whether it was not over yet."""
        with self._lock:
            was_open = not self._closed.is_set()
            self._closed.set()
            channel, self._channel = self._channel, None
        for part in tuple(self._parts.values()):
            part.may_read.set()
            part.requests.put(None)
        if channel is not None:
            channel.close()
        return was_open

    def _run(self, part: _Part) -> None:
        reason, is_unimplemented = self._read(part)
        part.requests.put(None)
        with self._lock:
            self._live -= 1
            goes_on = self._live > 0 and self._has_response
            was_closed = self._closed.is_set()
        if is_unimplemented and part.type_url != LDS:
            if not was_closed:
                self._events.unserved(part.type_url, reason)
        elif goes_on and not is_unimplemented:
            if not was_closed:
                self._events.part_ended(part.type_url, reason, had_response=part.has_response)
        elif self._shut():
            self._events.ended(reason, is_unimplemented=is_unimplemented)

    def _read(self, part: _Part) -> tuple[str, bool]:
        """Deliver messages of a type until its stream ends; return why it did, and whether the method is unknown."""
        try:
            metadata = authorization(self._server, self._wall_clock)
            with self._lock:
                if self._closed.is_set():
                    return "", False
                if self._channel is None:
                    self._channel = open_channel(self._server, self._files)
                channel = self._channel
        except MeshError as error:
            return str(error), False
        # A server may leave the type out where the stream says it: of two values of a field, the last one counts.
        stamp = self._stamp(part.type_url)
        try:
            method = method_of(part.type_url, is_delta=self._server.is_delta)
            open_stream: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(method)
            for data in open_stream(part.requests, metadata=metadata):
                part.may_read.clear()
                part.has_response = self._has_response = True
                if self._closed.is_set():
                    return "", False
                self._events.received(data + stamp, part.may_read.set)
                part.may_read.wait()
        except grpc.RpcError as error:
            reason, is_unimplemented = describe_end(error)
            return f"{method}: {reason}", is_unimplemented
        except ValueError:
            # grpcio's word for "this channel was closed meanwhile".
            return "the channel was closed", False
        return f"the server ended the stream of {method}", False

    def _stamp(self, type_url: str) -> bytes:
        variant = "Delta" if self._server.is_delta else ""
        message = message_class(f"envoy.service.discovery.v3.{variant}DiscoveryResponse")(type_url=type_url)
        return bytes(message.SerializeToString())
