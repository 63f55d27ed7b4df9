"""Which gRPC channels exist: one per endpoint, authority, options and TLS identity, shared by all mesh channels.

The authority is part of it because gRPC sets `:authority` per channel only. A channel leaves the books when its
endpoint is gone from the configuration, or its certificate has been replaced; it is closed when its last call has ended
(closing a sync channel cancels what is in flight). New calls then make or find another. Calls look for what is to leave, and
once a second the mesh does. Connections without calls end by gRPC's own idle timeout.

Transports, chosen per endpoint: plaintext; the TLS relay, over a unix socket with local credentials (so that call
credentials may be sent); or gRPC's own TLS, to which `grpc_core` hands endpoints over that the relay has verified. A
`grpc.aio` channel belongs to the event loop that made it, so these are kept per loop.
"""

import asyncio
import logging
import os
import ssl
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import grpc
import grpc.aio

from meshlib.call import Attempt
from meshlib.clients.grpc_books import Books
from meshlib.clients.grpc_core import CorePath, CoreStatus
from meshlib.clients.grpc_dial import AioDialler, Dialler, SyncDialler
from meshlib.clients.grpc_endpoint import (
    ChannelKey,
    ChannelSecrets,
    EndpointChannel,
    Options,
)
from meshlib.clients.grpc_fork import Forks
from meshlib.clients.source import MeshSource
from meshlib.errors import IdentityError
from meshlib.identity.certificates import parse_chain
from meshlib.model.secret import ClientTls
from meshlib.ports import Lock
from meshlib.runtime.clock import monotonic, wall
from meshlib.runtime.dial import dial_target
from meshlib.runtime.fork import keep_core
from meshlib.runtime.relay import TlsRelay
from meshlib.runtime.tls import client_context, client_material
from meshlib.view import ClusterState, View

__all__ = ["Channels", "MeshChannels", "channels_of", "close_channels", "tls_status"]

C = TypeVar("C")
_LOG = logging.getLogger(__name__)

# C-core's back-off grows to two minutes, in which an endpoint that is back would go on failing: outlier detection and
# retries decide who is avoided, a channel only has to keep from dialling at every call.
_INITIAL_BACKOFF_MS = 100
_MAX_BACKOFF_MS = 1000
_LOOK_S = 0.001


class Channels(Books[C]):
    """The endpoint channels of one kind (sync, or aio of one loop)."""

    def __init__(self, relay: TlsRelay, dialler: Dialler[C], on_secured: Callable[[], None]) -> None:
        """As `Books`."""
        super().__init__(relay, dialler, on_secured)
        self._dialling = 0  # guarded by the lock: calls that make a channel
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
        if view is not self.view:
            self.follow(view)
        # A plain tuple: it is equal to the named one, which takes 0.3 us more to make.
        endpoint = attempt.endpoint
        found = (endpoint.address, attempt.head.authority, options, compression, attempt.tls, endpoint.dials)
        with self._lock:
            channel: EndpointChannel[C] | None = self._open.get(found)  # type: ignore[call-overload]  # mypy: not equal
            # What has expired is never used: `_new` says so.
            if channel is not None and (channel.expires_at is None or wall() <= channel.expires_at):
                channel.calls.append(None)
                return channel
        self._begin_dialling()
        key = ChannelKey(*found)
        made: EndpointChannel[C] | None = None
        try:
            # Outside the lock: certificates are read and a channel is made. Another thread may do the same meanwhile.
            made = self._new(key, view, attempt)
        finally:
            with self._lock:
                self._dialling -= 1
                if made is not None:
                    channel = self._enter(made)
                    channel.calls.append(None)
        if channel is not made:
            self._dispose((made,))
        if key.tls is not None:
            self._on_secured()
        return channel

    def _begin_dialling(self) -> None:
        """Count a call that is about to make a channel. It waits for threads that are about to fork.

        These have retired all channels, and wait for their calls.
        """
        waits = self._dialler.waits_for_forks()
        while True:
            has_waited = waits and not _forks.wait_over()
            with self._lock:
                if not waits or has_waited or not _forks.are_under_way:
                    self._dialling += 1
                    return

    def _enter(self, made: EndpointChannel[C]) -> EndpointChannel[C]:
        """Put a new channel into the books, the lock being held; returns the one to use, which may be another thread's."""
        key = made.key
        channel = self._open.get(key)
        if channel is not None:
            self._retire((made,))
            return channel
        if key.address in self._addresses:
            self._open[key] = made
        else:
            # An attempt of an older configuration: for this call only.
            self._retire((made,))
        return made

    def close(self, *, at_once: bool = False) -> None:
        """Retire every channel; those without calls are closed now, the others with their last call.

        Args:
            at_once: Close them all, which ends their calls as CANCELLED.
        """
        with self._lock:
            retired = tuple(self._open.values())
            self._open.clear()
            self.view = None
            leaving = self._retire(retired)
            if at_once:
                leaving = list(self._leaving)
        self._dispose(leaving)

    def statistics(self) -> dict[str, int]:
        """Return the number of channels, and of calls on them."""
        with self._lock:
            return {"channels": len(self._open), "active": sum(len(channel.calls) for channel in self._open.values())}

    def quiesce(self) -> None:
        """Before a fork: have calls end, let none begin, and close the channels.

        gRPC survives a fork with closed channels only, and with no other thread in it: else it skips its handlers, and calls
        in the child hang. Calls that take longer than a fork waits are not waited for again by the next.
        """
        patience_s = self._dialler.fork_patience_s
        give_up = monotonic() + patience_s
        pause = threading.Event()
        while True:
            with self._lock:
                ending = tuple(channel for channel in self._open.values() if patience_s or not channel.calls)
                for channel in ending:
                    del self._open[channel.key]
                idle = self._retire(ending)
            self._dispose(idle)
            with self._lock:
                lasting = tuple(channel for channel in self._leaving if not channel.outlasts_forks)
                # gRPC's own threads do not wait for the fork when they try calls again: these are in the books anew.
                is_still = not (lasting or self._dialling or self._open)
            if is_still or monotonic() >= give_up:
                break
            pause.wait(_LOOK_S)
        for channel in lasting:
            channel.outlasts_forks = True
        self._dialler.settle()

    def forget(self) -> None:
        """After a fork, in the child: the parent's channels do not work here, and closing them could hang."""
        self._lock = Lock()
        self._dialler.forget()
        self._dialling = 0
        for channel in self._open.values():
            channel.expires_at = 0.0  # not to be taken again
        _inherited.append((self._open, self._cores))
        self._open = {}
        self._leaving = set()
        self._cores = {}
        self._distrusted = {}
        self.view = None

    def _new(self, key: ChannelKey, view: View, attempt: Attempt) -> EndpointChannel[C]:
        timeout_s = attempt.cluster.config.cluster.connect_timeout_s
        route = secrets = None
        target = dial_target(key.address, key.dials)
        dialled = " ".join(_as_printed(dial_target(one)) for one in key.dials or (key.address,))
        credentials = None
        if key.tls is not None:
            context = _context(key.tls, view)
            certificate, trust = client_material(key.tls, view.secrets)
            expires_at = None if certificate is None else parse_chain(certificate.chain_pem)[0].not_after
            secrets = ChannelSecrets(context, certificate, trust, expires_at)
            route = self._relay.open(
                key.address, context, server_name=key.tls.sni, connect_timeout_s=timeout_s, dials=key.dials
            )
            target = dialled = route.target
            credentials = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
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
        made = self._dialler.dial(target, credentials, tuple(options.items()), key.compression)
        return EndpointChannel(key, made, dialled, route, secrets=secrets)

    def tidy(self, view: View) -> None:
        """Follow the configuration without a call, if there is anything to retire."""
        if self._open and view is not self.view:
            self.follow(view)

    def follow(self, view: View) -> None:
        """Retire the channels that a new configuration has no use for."""
        addresses: set[str] = set()
        dialled: set[tuple[str, tuple[str, ...]]] = set()
        for cluster in view.clusters.values():
            if isinstance(cluster, ClusterState):
                addresses.update(cluster.states)
                if cluster.has_dials:
                    dialled.update((state.address, state.endpoint.dials) for state in cluster.states.values())
        with self._lock:
            if view is self.view:
                return
            self.view = view
            self._addresses = frozenset(addresses)
            gone = [
                channel
                for channel in self._open.values()
                if channel.key.address not in addresses
                or (channel.key.dials and (channel.key.address, channel.key.dials) not in dialled)
                or _is_outdated(channel, view)
            ]
            for channel in gone:
                del self._open[channel.key]
            idle = self._retire(gone)
        self._dispose(idle)


def _as_printed(target: str) -> str:
    """Return what C-core's errors have for a target of one address."""
    if target.startswith("dns:"):
        return ""
    return target.replace("[", "%5B").replace("]", "%5D") if target.startswith("ipv6:") else target


def _is_outdated(channel: EndpointChannel[Any], view: View) -> bool:
    """Whether a channel's certificate or trust has been replaced."""
    tls, secrets = channel.key.tls, channel.secrets
    if tls is None or secrets is None:
        return False
    try:
        return _context(tls, view) is not secrets.context
    except IdentityError:
        # Nothing to put in its place: the connection that was verified goes on.
        return False


def _context(tls: ClientTls, view: View) -> ssl.SSLContext:
    """Return the context for an endpoint; gRPC speaks h2, whatever other protocols the configuration names."""
    return client_context(replace(tls, alpn=("h2",)) if tls.alpn else tls, view.secrets, default_alpn=("h2",))


class MeshChannels:
    """All endpoint channels of one mesh, and its relay."""

    def __init__(self, mesh: MeshSource) -> None:
        self._mesh = weakref.ref(mesh)  # which holds these
        self.relay = TlsRelay()
        self.core = CorePath(self._kinds)
        self.sync: Channels[grpc.Channel] = Channels(self.relay, SyncDialler(), self.core.wake)
        # Guarded by the lock:
        self._lock = Lock()
        self._aio: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Channels[grpc.aio.Channel]] = (
            weakref.WeakKeyDictionary()
        )
        self._users = 0
        if (tidying_up := getattr(mesh, "_tidying_up", None)) is not None:
            tidying_up.add(self._tidy)

    def aio(self, loop: asyncio.AbstractEventLoop) -> Channels[grpc.aio.Channel]:
        """Return the channels that belong to an event loop; the first time, those of closed loops go.

        Nothing else lets go of these: a channel of grpc.aio holds its loop.
        """
        with self._lock:
            channels = self._aio.get(loop)
            if channels is not None:
                return channels
            gone = [self._aio.pop(one) for one in tuple(self._aio) if one.is_closed()]
            channels = self._aio[loop] = Channels(self.relay, AioDialler(loop), self.core.wake)
        for one in gone:
            one.close(at_once=True)
        return channels

    def attach(self) -> None:
        """One more mesh channel uses these."""
        with self._lock:
            self._users += 1

    def detach(self) -> None:
        """One mesh channel fewer; with the last one, all endpoint channels go, and blocking calls of other threads."""
        with self._lock:
            self._users -= 1
            if self._users > 0:
                return
        self.sync.close(at_once=True)
        self.close()

    def close(self) -> None:
        """Retire all channels. The relay ends by itself when the last connection has gone."""
        for channels in self._kinds():
            channels.close()
        self.core.close()

    def _tidy(self) -> None:
        """Retire what the configuration has no use for, though there is no call that would; called once a second."""
        if (mesh := self._mesh()) is not None:
            view = mesh.view
            for channels in self._kinds():
                channels.tidy(view)

    def tls_status(self) -> CoreStatus:
        """Return how calls over TLS are made."""
        return self.core.status()

    def _kinds(self) -> "tuple[Channels[Any], ...]":
        with self._lock:
            return (self.sync, *self._aio.values())

    def _after_fork_in_child(self) -> None:
        self._lock = Lock()
        self.core.forget()


def channels_of(mesh: MeshSource) -> MeshChannels:
    """Return the endpoint channels that all mesh channels of a mesh share."""
    with _lock:
        found = _by_mesh.get(mesh)
        if found is None:
            found = _by_mesh[mesh] = MeshChannels(mesh)
        return found


def tls_status(mesh: MeshSource) -> CoreStatus | None:
    """Return how gRPC's calls over TLS are made; None: there are no channels."""
    with _lock:
        found = _by_mesh.get(mesh)
    return None if found is None else found.tls_status()


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
_forks = Forks()


def _before_fork() -> None:
    _forks.begin()  # first of all: whatever fails below, `end` follows
    if _all_channels:
        keep_core()
    # An exception in one must not keep the others from standing still: the interpreter would print and ignore it.
    for channels in tuple(_all_channels):
        try:
            channels.quiesce()
        except Exception:
            _LOG.exception("error before a fork")
    for found in tuple(_by_mesh.values()):
        try:
            found.core.close()
        except Exception:
            _LOG.exception("error before a fork")


def _after_fork_in_child() -> None:
    global _lock
    _lock = Lock()
    _forks.forget()
    for channels in tuple(_all_channels):
        channels.forget()
    for found in tuple(_by_mesh.values()):
        found._after_fork_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_forks.end, after_in_child=_after_fork_in_child)
