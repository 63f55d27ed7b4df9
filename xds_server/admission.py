"""How many streams a client may open: at a time, and within a second (BP-4).

A client is who connects: an address, with the identity that it has proved. One that opens streams without end, be it a
reconnect loop or a leak, is slowed down and then refused, and takes nothing from others. Pure: time comes in as `now`.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from xds_server.stream import StreamRefused

MAX_WAIT_S = 1.0
"""A stream that would have to wait longer is refused."""
MAX_IDLE_CLIENTS = 4096
"""Clients without a stream that are remembered; by then most of them may open as many as anybody."""


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What one client may do.

    Attributes:
        at_once: Open streams. Envoy without ADS has one for each cluster, so this is no small number.
        per_s: New streams a second, after as many as `burst` at once.
    """

    at_once: int = 10_000
    per_s: float = 500.0
    burst: int = 1000


@dataclass(slots=True)
class _Client:
    """Attributes:
    free_at: When all of its burst is there again; monotonic seconds.
    """

    open: int = 0
    free_at: float = 0.0


@dataclass(slots=True)
class Admission:
    """Counts the streams of each client."""

    limits: StreamLimits = field(default_factory=StreamLimits)
    _clients: OrderedDict[str, _Client] = field(default_factory=OrderedDict)

    def open(self, client: str, now: float) -> float:
        """Take in a new stream; `close` must follow.

        Returns:
            Seconds to wait before it may go on.

        Raises:
            StreamRefused: The client has too many streams, or opens them too fast. Then `close` must not follow.
        """
        found = self._clients.get(client)
        if found is None:
            self._forget(now)
            found = self._clients[client] = _Client(free_at=now)
        self._clients.move_to_end(client)
        limits = self.limits
        if found.open >= limits.at_once:
            raise StreamRefused(
                "RESOURCE_EXHAUSTED", f"this client has {found.open} streams open, the most that are allowed"
            )
        # Each stream puts off by its share the time at which all of the burst is there again.
        free_at = max(found.free_at, now) + 1.0 / limits.per_s
        wait_s = max(0.0, free_at - now - limits.burst / limits.per_s)
        if wait_s > MAX_WAIT_S:
            raise StreamRefused(
                "RESOURCE_EXHAUSTED", f"this client opens more than {limits.per_s:g} streams a second: wait and retry"
            )
        found.free_at = free_at
        found.open += 1
        return wait_s

    def close(self, client: str) -> None:
        """A stream has ended."""
        self._clients[client].open -= 1

    def _forget(self, now: float) -> None:
        """Drop clients without streams: first those that are as free as unknown ones."""
        if len(self._clients) <= MAX_IDLE_CLIENTS:
            return
        idle = [name for name, one in self._clients.items() if not one.open]
        free = [name for name in idle if self._clients[name].free_at <= now]
        for name in free or idle[: max(1, len(idle) - MAX_IDLE_CLIENTS)]:
            del self._clients[name]


def client_of(peer: str, identity: object) -> str:
    """Return who a stream's client is.

    Args:
        peer: As gRPC says it: `ipv4:127.0.0.1:1234`, `ipv6:[::1]:1234`, `unix:`.
        identity: What it has proved; None: nothing.
    """
    host = peer.rpartition(":")[0] if peer.startswith("ip") else peer
    return host if identity is None else f"{host} {identity}"
