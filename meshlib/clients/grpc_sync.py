"""`MeshChannel`: a `grpc.Channel` whose every RPC goes where the mesh says. Generated stubs work on it unchanged.

Each RPC is routed, picks an endpoint, and runs on that endpoint's own channel; retries may go to another endpoint.
Unary responses are retried until there is one, streams of responses until their first message. See `grpc_flow` for
wait-for-ready, `grpc_channels` for connections and TLS, `grpc_errors` for what is raised.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import grpc

from meshlib.clients import grpc_sync_calls as calls
from meshlib.clients.grpc_channels import channels_of
from meshlib.clients.grpc_common import HeadMaker, parse_target, split_options
from meshlib.clients.grpc_invoke import Method, SyncInvoker
from meshlib.clients.source import MeshSource
from meshlib.errors import MeshError
from meshlib.options import check_type
from meshlib.runtime.dial import dial_target

__all__ = ["MeshChannel"]


class MeshChannel(grpc.Channel):
    """A channel to a service of the mesh.

    Endpoint channels are shared by all mesh channels of a mesh with the same authority and options. Making a channel
    does no I/O; the first RPC to a service not used before waits for its configuration, for at most its own timeout
    or the mesh's default.
    """

    def __init__(
        self,
        mesh: MeshSource,
        target: str,
        *,
        options: Sequence[tuple[str, Any]] | None = None,
        compression: grpc.Compression | None = None,
    ) -> None:
        """Make a channel.

        Args:
            mesh: Routes, picks, and gets the events.
            target: `xds:///service`, `xds:service` or `xds://authority/service`.
            options: Channel arguments for the endpoints' channels; `grpc.default_authority` sets the authority that
                virtual hosts are matched against and servers see.
            compression: Of the endpoints' channels.

        Raises:
            ConfigError: The target cannot be parsed, or an option contradicts the mesh.
            TypeError: An argument is of another type than it must be.
        """
        parsed = parse_target(target)
        kept, authority = split_options(options)
        check_type("compression", compression, grpc.Compression, none=True)
        self._authority = authority or parsed.host
        self._channels = channels_of(mesh)
        self._channels.attach()
        self._invoker = SyncInvoker(mesh, parsed.authority, self._channels, kept, compression)
        self._running: calls.Running = weakref.WeakSet()
        self._watches: dict[Callable[[grpc.ChannelConnectivity], None], threading.Event] = {}
        self._direct: grpc.Channel | None = None
        if mesh.is_disabled:
            address = parsed.host if ":" in parsed.host else f"{parsed.host}:80"
            self._direct = grpc.insecure_channel(dial_target(address), tuple(options or ()), compression)

    def unary_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,  # generated code passes it; it concerns core's own channels
    ) -> calls.UnaryUnaryBase:
        """See `grpc.Channel`."""
        if self._direct is not None:
            return self._direct.unary_unary(method, request_serializer, response_deserializer)
        return calls.UnaryUnary(
            self._invoker, self._running, self._method("unary_unary", method, request_serializer, response_deserializer)
        )

    def unary_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
    ) -> calls.UnaryStreamBase:
        """See `grpc.Channel`."""
        if self._direct is not None:
            return self._direct.unary_stream(method, request_serializer, response_deserializer)
        return calls.UnaryStream(
            self._invoker,
            self._running,
            self._method("unary_stream", method, request_serializer, response_deserializer),
        )

    def stream_unary(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
    ) -> calls.StreamUnaryBase:
        """See `grpc.Channel`."""
        if self._direct is not None:
            return self._direct.stream_unary(method, request_serializer, response_deserializer)
        return calls.StreamUnary(
            self._invoker,
            self._running,
            self._method("stream_unary", method, request_serializer, response_deserializer),
        )

    def stream_stream(
        self,
        method: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        _registered_method: bool = False,
    ) -> calls.StreamStreamBase:
        """See `grpc.Channel`."""
        if self._direct is not None:
            return self._direct.stream_stream(method, request_serializer, response_deserializer)
        return calls.StreamStream(
            self._invoker,
            self._running,
            self._method("stream_stream", method, request_serializer, response_deserializer),
        )

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool = False) -> None:
        """Report whether the service's configuration is there: IDLE, CONNECTING, READY, at the end SHUTDOWN.

        READY does not mean that a connection exists: connections are per endpoint and made when calls need them, so
        TRANSIENT_FAILURE is never reported. Enough for `grpc.channel_ready_future`. A thread lives until READY, the
        end of the subscription or of the channel.
        """
        if self._direct is not None:
            self._direct.subscribe(callback, try_to_connect)
            return
        over = threading.Event()
        self._watches[callback] = over
        threading.Thread(
            target=self._watch, args=(callback, try_to_connect, over), name="meshlib-grpc-watch", daemon=True
        ).start()

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """End a subscription."""
        if self._direct is not None:
            self._direct.unsubscribe(callback)
            return
        over = self._watches.pop(callback, None)
        if over is not None:
            over.set()

    def close(self) -> None:
        """Take no more RPCs, and cancel streams and futures that are running.

        Endpoint channels close with the mesh's last channel, which ends blocking RPCs of other threads as CANCELLED;
        until then these go on to the end of their attempt.
        """
        invoker = self._invoker
        if invoker.is_closed:
            return
        invoker.is_closed = True
        for callback in tuple(self._watches):
            self.unsubscribe(callback)
            callback(grpc.ChannelConnectivity.SHUTDOWN)
        for running in tuple(self._running):
            running.channel_closed()
        invoker.collect()
        self._channels.detach()
        if self._direct is not None:
            self._direct.close()

    def __enter__(self) -> "MeshChannel":
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        self.close()

    def _method(
        self,
        kind: str,
        method: str,
        serializer: Callable[[Any], bytes] | None,
        deserializer: Callable[[bytes], Any] | None,
    ) -> Method:
        return Method(kind, HeadMaker(self._authority, method), serializer, deserializer)

    def _watch(
        self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool, over: threading.Event
    ) -> None:
        mesh, authority = self._invoker.mesh, self._invoker.authority
        told = None
        while not over.is_set():
            try:
                target = mesh.target(authority)
                if target is None and try_to_connect:
                    if told is None:
                        told = grpc.ChannelConnectivity.CONNECTING
                        callback(told)
                    target = mesh.wait_target(authority, 0.5)
            except MeshError:
                target = None
                over.wait(0.1)
            if target is not None:
                if not over.is_set():
                    callback(grpc.ChannelConnectivity.READY)
                return
            if not try_to_connect:
                if told is None:
                    told = grpc.ChannelConnectivity.IDLE
                    callback(told)
                over.wait(0.1)
