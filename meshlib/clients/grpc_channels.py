"""Which gRPC channels exist: one per endpoint, authority, options and TLS identity, shared by all mesh channels.

The authority is part of it because gRPC sets `:authority` per channel only. A channel leaves the books when its
endpoint is gone from the configuration, or its certificate has been replaced; it is closed when its last call has ended
(closing a sync channel cancels what is in flight). New calls then make or find another. Connections without calls end
by gRPC's own idle timeout.

Transports, chosen per endpoint: plaintext, or the TLS relay, over a unix socket with local credentials (so that call
credentials may be sent). A `grpc.aio` channel belongs to the event loop that made it, so these are kept per loop.
"""

import asyncio
import os
import ssl
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

import grpc
import grpc.aio

from meshlib.call import Attempt
from meshlib.clients.source import MeshSource
from meshlib.errors import IdentityError
from meshlib.model.secret import ClientTls
from meshlib.ports import Lock
from meshlib.runtime.dial import dial_target
from meshlib.runtime.relay import RelayRoute, TlsRelay
from meshlib.runtime.tls import client_context
from meshlib.view import ClusterState, View

__all__ = ["Channels", "EndpointChannel", "MeshChannels", "Options", "channels_of", "close_channels", "dial_target"]

C = TypeVar("C")
Options = tuple[tuple[str, Any], ...]

# C-core's back-off grows to two minutes, in which an endpoint that is back would go on failing: outlier detection and
# retries decide who is avoided, a channel only has to keep from dialling at every call.
_INITIAL_BACKOFF_MS = 100
_MAX_BACKOFF_MS = 1000


class ChannelKey(NamedTuple):
    """What calls on one channel have in common."""

    address: str
    authority: str
    options: Options
    compression: grpc.Compression | None
    tls: ClientTls | None


class EndpointChannel(Generic[C]):
    """A channel to one endpoint. Fields from `active` on are guarded by the lock of `Channels`.

    Attributes:
        dialled: The target as C-core writes it in its errors; empty when the endpoint is a name that DNS resolves.
        route: The way through the relay; None: plaintext.
        multicallables: By kind, method and serializers; making one costs 3 us.
    """

    __slots__ = ("active", "channel", "dialled", "is_closed", "is_retired", "key", "multicallables", "route")

    def __init__(self, key: ChannelKey, channel: C, dialled: str, route: RelayRoute | None) -> None:
        self.key = key
        self.channel = channel
        self.dialled = dialled
        self.route = route
        self.multicallables: dict[Any, Any] = {}
        self.active = 0
        self.is_retired = False
        self.is_closed = False

    def multicallable(
        self,
        kind: str,
        method: str,
        serializer: Callable[[Any], bytes] | None,
        deserializer: Callable[[bytes], Any] | None,
    ) -> Any:
        """Return the multicallable of a method; `kind` is `unary_unary`, ..."""
        key = (kind, method, serializer, deserializer)
        try:
            return self.multicallables[key]
        except KeyError:
            made = getattr(self.channel, kind)(method, serializer, deserializer)
            self.multicallables[key] = made
            return made

    @property
    def refused_by(self) -> BaseException | None:
        """Why the last TLS connection failed."""
        return None if self.route is None else self.route.last_error


class Channels(Generic[C]):
    """The endpoint channels of one kind (sync, or aio of one loop).

    Args:
        relay: Shared with the other kinds.
        make: From target, credentials (None: insecure), options and compression; no I/O.
        close: Closes a channel on which nothing is in flight.
    """

    def __init__(
        self,
        relay: TlsRelay,
        make: Callable[[str, grpc.ChannelCredentials | None, Options, grpc.Compression | None], C],
        close: Callable[[C], None],
    ) -> None:
        self._relay = relay
        self._make = make
        self._close = close
        # Guarded by the lock:
        self._lock = Lock()
        self._open: dict[ChannelKey, EndpointChannel[C]] = {}
        self._view: View | None = None
        self._addresses: frozenset[str] = frozenset()
        _all_channels.add(self)

    def acquire(
        self,
        view: View,
        attempt: Attempt,
        options: Options = (),
        compression: grpc.Compression | None = None,
    ) -> EndpointChannel[C]:
        """Take the channel of an attempt; `release` must follow.

        Args:
            view: The mesh's current one: channels whose endpoint it does not know are retired.
            options: Channel arguments of the application.

        Raises:
            IdentityError: A certificate or trust bundle that the endpoint asks for is not there, or has expired.
        """
        if view is not self._view:
            self._follow(view)
        # A plain tuple: it is equal to the named one, which takes 0.3 us more to make.
        found = (attempt.endpoint.address, attempt.head.authority, options, compression, attempt.tls)
        with self._lock:
            channel: EndpointChannel[C] | None = self._open.get(found)  # type: ignore[call-overload]  # mypy: not equal
            if channel is not None:
                channel.active += 1
                return channel
        key = ChannelKey(*found)
        # Outside the lock: certificates are read and a channel is made. Another thread may do the same meanwhile.
        made = self._new(key, view, attempt)
        with self._lock:
            channel = self._open.get(key)
            if channel is None:
                channel = made
                if key.address in self._addresses:
                    self._open[key] = channel
                else:
                    # An attempt of an older configuration: for this call only.
                    channel.is_retired = True
            channel.active += 1
        if channel is not made:
            self._dispose((made,))
        return channel

    def release(self, channel: EndpointChannel[C]) -> None:
        """Give a channel back; a retired one is closed with its last call."""
        with self._lock:
            channel.active -= 1
            if channel.active or not channel.is_retired:
                return
        self._dispose((channel,))

    def close(self) -> None:
        """Retire every channel; those without calls are closed now, the others with their last call."""
        with self._lock:
            retired = tuple(self._open.values())
            self._open.clear()
            self._view = None
            idle = self._retire(retired)
        self._dispose(idle)

    def statistics(self) -> dict[str, int]:
        """Return the number of channels, and of calls on them."""
        with self._lock:
            return {"channels": len(self._open), "active": sum(channel.active for channel in self._open.values())}

    def quiesce(self) -> None:
        """Before a fork: close what is idle. gRPC survives a fork with closed channels only."""
        with self._lock:
            idle = tuple(channel for channel in self._open.values() if not channel.active)
            for channel in idle:
                del self._open[channel.key]
            self._retire(idle)
        self._dispose(idle)

    def forget(self) -> None:
        """After a fork, in the child: the parent's channels do not work here, and closing them could hang."""
        self._lock = Lock()
        _inherited.append(self._open)
        self._open = {}
        self._view = None

    def _new(self, key: ChannelKey, view: View, attempt: Attempt) -> EndpointChannel[C]:
        timeout_s = attempt.cluster.config.cluster.connect_timeout_s
        route = None
        target = dialled = dial_target(key.address)
        credentials = None
        if key.tls is not None:
            route = self._relay.open(
                key.address, _context(key.tls, view), server_name=key.tls.sni, connect_timeout_s=timeout_s
            )
            target = dialled = route.target
            credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
        elif target.startswith("ipv6:"):
            dialled = target.replace("[", "%5B").replace("]", "%5D")  # as C-core prints it
        elif target.startswith("dns:"):
            dialled = ""
        options: dict[str, Any] = {
            "grpc.default_authority": key.authority,
            "grpc.initial_reconnect_backoff_ms": _INITIAL_BACKOFF_MS,
            "grpc.max_reconnect_backoff_ms": _MAX_BACKOFF_MS,
            # Despite its name: the time that one connection attempt may take.
            "grpc.min_reconnect_backoff_ms": max(1, round(timeout_s * 1000)),
            "grpc.enable_http_proxy": 0,
            "grpc.service_config_disable_resolution": 1,
        }
        options.update(key.options)
        return EndpointChannel(
            key, self._make(target, credentials, tuple(options.items()), key.compression), dialled, route
        )

    def _follow(self, view: View) -> None:
        """Retire the channels that a new configuration has no use for."""
        addresses: set[str] = set()
        for cluster in view.clusters.values():
            if isinstance(cluster, ClusterState):
                addresses.update(cluster.states)
        with self._lock:
            if view is self._view:
                return
            self._view = view
            self._addresses = frozenset(addresses)
            gone = [c for c in self._open.values() if c.key.address not in addresses or _is_outdated(c, view)]
            for channel in gone:
                del self._open[channel.key]
            idle = self._retire(gone)
        self._dispose(idle)

    def _retire(
        self, channels: "tuple[EndpointChannel[C], ...] | list[EndpointChannel[C]]"
    ) -> list[EndpointChannel[C]]:
        """Mark channels, the lock being held; return those to dispose of now."""
        for channel in channels:
            channel.is_retired = True
        return [channel for channel in channels if not channel.active]

    def _dispose(self, channels: "tuple[EndpointChannel[C], ...] | list[EndpointChannel[C]]") -> None:
        for channel in channels:
            with self._lock:
                if channel.is_closed:
                    continue
                channel.is_closed = True
            channel.multicallables.clear()
            self._close(channel.channel)
            if channel.route is not None:
                self._relay.release(channel.route)


def _is_outdated(channel: EndpointChannel[Any], view: View) -> bool:
    """Whether a channel's certificate or trust has been replaced."""
    tls, route = channel.key.tls, channel.route
    if tls is None or route is None:
        return False
    try:
        return _context(tls, view) is not route.context
    except IdentityError:
        # Nothing to put in its place: the connection that was verified goes on.
        return False


def _context(tls: ClientTls, view: View) -> ssl.SSLContext:
    """Return the context for an endpoint; gRPC speaks h2, whatever other protocols the configuration names."""
    return client_context(replace(tls, alpn=("h2",)) if tls.alpn else tls, view.secrets, default_alpn=("h2",))


class MeshChannels:
    """All endpoint channels of one mesh, and its relay."""

    def __init__(self) -> None:
        self.relay = TlsRelay()
        self.sync: Channels[grpc.Channel] = Channels(self.relay, _make_sync, _close_sync)
        # Guarded by the lock:
        self._lock = Lock()
        self._aio: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Channels[grpc.aio.Channel]] = (
            weakref.WeakKeyDictionary()
        )
        self._users = 0

    def aio(self, loop: asyncio.AbstractEventLoop) -> Channels[grpc.aio.Channel]:
        """Return the channels that belong to an event loop."""
        with self._lock:
            channels = self._aio.get(loop)
            if channels is None:
                channels = self._aio[loop] = Channels(self.relay, _make_aio, _AioCloser(loop))
            return channels

    def attach(self) -> None:
        """One more mesh channel uses these."""
        with self._lock:
            self._users += 1

    def detach(self) -> None:
        """One mesh channel fewer; with the last one, all endpoint channels go."""
        with self._lock:
            self._users -= 1
            if self._users > 0:
                return
        self.close()

    def close(self) -> None:
        """Retire all channels. The relay ends by itself when the last connection has gone."""
        with self._lock:
            others = tuple(self._aio.values())
        self.sync.close()
        for channels in others:
            channels.close()


def _make_sync(
    target: str, credentials: grpc.ChannelCredentials | None, options: Options, compression: grpc.Compression | None
) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(target, options, compression)
    return grpc.secure_channel(target, credentials, options, compression)


def _close_sync(channel: grpc.Channel) -> None:
    channel.close()


def _make_aio(
    target: str, credentials: grpc.ChannelCredentials | None, options: Options, compression: grpc.Compression | None
) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(target, options, compression)
    return grpc.aio.secure_channel(target, credentials, options, compression)


class _AioCloser:
    """Closes channels in their loop, from whatever thread. One whose loop is closed ends with its last reference."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, channel: grpc.aio.Channel) -> None:
        loop = self._loop()
        if loop is None or loop.is_closed() or not loop.is_running():
            return
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop:
            self._start(channel)
        else:
            loop.call_soon_threadsafe(self._start, channel)

    def _start(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(channel.close(None))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def channels_of(mesh: MeshSource) -> MeshChannels:
    """Return the endpoint channels that all mesh channels of a mesh share."""
    with _lock:
        found = _by_mesh.get(mesh)
        if found is None:
            found = _by_mesh[mesh] = MeshChannels()
        return found


def close_channels(mesh: MeshSource) -> None:
    """Close the endpoint channels of a mesh that is being closed; does nothing when there are none."""
    with _lock:
        found = _by_mesh.get(mesh)
    if found is not None:
        found.close()


_lock = Lock()
_by_mesh: "weakref.WeakKeyDictionary[MeshSource, MeshChannels]" = weakref.WeakKeyDictionary()
_all_channels: "weakref.WeakSet[Channels[Any]]" = weakref.WeakSet()
_inherited: list[Any] = []


def _before_fork() -> None:
    for channels in tuple(_all_channels):
        channels.quiesce()


def _after_fork_in_child() -> None:
    global _lock
    _lock = Lock()
    for channels in tuple(_all_channels):
        channels.forget()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
