"""Which endpoint channels are open, how they leave, and how endpoints change between the relay and gRPC's own TLS."""

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import grpc

from meshlib.clients.grpc_dial import Dialler
from meshlib.clients.grpc_endpoint import ChannelKey, CoreChannel, EndpointChannel, Options
from meshlib.ports import Lock
from meshlib.runtime.core import CoreCluster, LocalAds, cookie
from meshlib.runtime.relay import TlsRelay
from meshlib.view import View

__all__ = ["Books"]

C = TypeVar("C")

MAX_CORES = 4
"""Channels over core of one kind: one for each set of options. Each takes 2 MB and three threads."""


class Books(Generic[C]):
    """The books of the endpoint channels of one kind (sync, or aio of one loop).

    Attributes:
        view: Whose endpoints they are.

    Args:
        relay: Shared with the other kinds.
        dialler: Makes and closes channels of this kind.
        on_secured: Called when a TLS channel has been made.
    """

    def __init__(self, relay: TlsRelay, dialler: Dialler[C], on_secured: Callable[[], None]) -> None:
        self._relay = relay
        self._dialler = dialler
        self._on_secured = on_secured
        # Guarded by the lock:
        self._lock = Lock()
        self._open: dict[ChannelKey, EndpointChannel[C]] = {}
        self._leaving: set[EndpointChannel[C]] = set()  # retired, with calls on them or being closed
        self._cores: dict[tuple[Options, grpc.Compression | None], CoreChannel[C]] = {}
        # Until when the relay has to serve, in monotonic seconds; None: the time begins with the next look.
        self._distrusted: dict[ChannelKey, float | None] = {}
        self.view: View | None = None
        self._addresses: frozenset[str] = frozenset()

    def release(self, channel: EndpointChannel[C]) -> None:
        """Give a channel back; a retired one is closed with its last call."""
        channel.calls.pop()
        if channel.is_retired:
            self.let_go(channel)

    def let_go(self, channel: EndpointChannel[C]) -> None:
        """Close a retired channel if it has no call any more."""
        if not channel.calls:
            self._dispose((channel,))

    # For `CorePath`.

    def secured(self) -> tuple[EndpointChannel[C], ...]:
        """Return the TLS channels that are open."""
        with self._lock:
            return tuple(channel for channel in self._open.values() if channel.secrets is not None)

    def hand_over(
        self,
        channel: EndpointChannel[C],
        cluster: CoreCluster,
        ads: LocalAds,
        providers: Mapping[str, Mapping[str, str]],
    ) -> bool:
        """Have new calls to an endpoint go over core instead of the relay.

        Returns:
            False: core is not ready; ask again.
        """
        key = channel.key
        kind = (key.options, key.compression)
        with self._lock:
            if key in self._distrusted:
                return True
            core = self._cores.get(kind)
            if core is None and len(self._cores) >= MAX_CORES:
                return True
        if core is None:
            self._dialler.run(lambda: self._open_core(ads.uri, providers, kind))
            return False
        if not ads.has_taken(core.node_id, cluster):
            return False
        steering = cookie(key.address, cluster.name)
        made = EndpointChannel(key, core.channel, "", None, secrets=channel.secrets, core=core, steering=steering)
        with self._lock:
            if self._open.get(key) is not channel or self._cores.get(kind) is not core:
                return True
            self._open[key] = made
            core.uses += 1
            idle = self._retire((channel,))
        self._dispose(idle)
        return True

    def distrust(self, channel: EndpointChannel[C]) -> None:
        """Have an endpoint go over the relay for a while: core could not send a call."""
        idle: list[EndpointChannel[C]] = []
        with self._lock:
            if self._open.get(channel.key) is channel:
                del self._open[channel.key]
                self._distrusted[channel.key] = None
                idle = self._retire((channel,))
        self._dispose(idle)
        self._on_secured()

    def forgive(self, now: float, after_s: float) -> None:
        """Let core have endpoints again whose time with the relay is over."""
        with self._lock:
            for key, until in tuple(self._distrusted.items()):
                if until is None:
                    self._distrusted[key] = now + after_s
                elif now >= until or key.address not in self._addresses:
                    del self._distrusted[key]

    def leave_core(self) -> None:
        """Have all new calls go over the relay; those on their way over core end there."""
        with self._lock:
            over = [channel for channel in self._open.values() if channel.core is not None]
            for channel in over:
                del self._open[channel.key]
            idle = self._retire(over)
            unused = [core for core in self._cores.values() if not core.uses]
            self._cores = {}
        self._dispose(idle)
        for core in unused:
            self._dialler.close(core.channel)

    def _open_core(
        self,
        uri: str,
        providers: Mapping[str, Mapping[str, str]],
        kind: tuple[Options, grpc.Compression | None],
    ) -> None:
        if kind not in self._cores:  # nobody else makes them
            made = self._dialler.open_core(uri, providers, *kind)
            with self._lock:
                self._cores[kind] = made

    def _retire(
        self, channels: "tuple[EndpointChannel[C], ...] | list[EndpointChannel[C]]"
    ) -> list[EndpointChannel[C]]:
        """Mark channels, the lock being held; return those to dispose of now.

        Calls are counted without the lock: whoever takes a channel counts itself in and then looks at the mark, here it is
        the other way round, so that one of the two sees the other.
        """
        for channel in channels:
            channel.is_retired = True
            self._leaving.add(channel)
        return [channel for channel in channels if not channel.calls]

    def _dispose(self, channels: "tuple[EndpointChannel[C], ...] | list[EndpointChannel[C]]") -> None:
        for channel in channels:
            core = channel.core
            with self._lock:
                if channel.is_closed:
                    continue
                channel.is_closed = True
                if core is not None:
                    core.uses -= 1
                    if core.uses:
                        self._leaving.discard(channel)
                        continue
                    for kind, one in tuple(self._cores.items()):
                        if one is core:
                            del self._cores[kind]
            try:
                channel.multicallables.clear()
                self._dialler.close(channel.channel)
                if channel.route is not None:
                    self._relay.release(channel.route)
            finally:
                with self._lock:
                    # Not before it is closed: a fork waits for that.
                    self._leaving.discard(channel)
