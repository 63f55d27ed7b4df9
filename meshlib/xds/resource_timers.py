"""The times of resources on one stream: how long one has to come, and how long one may be used.

The shell runs the timers; here is which are to run. A timer for a resource to come dies with the stream, one for its end
does not.
"""

from collections.abc import Iterable
from typing import Final

from meshlib.xds.cache import Entry, Key, ResourceCache
from meshlib.xds.commands import CancelTimer, Command, StartExpiry, StartTimer, StopExpiry

__all__ = ["ResourceTimers"]

ROUNDING_S: Final = 0.001
"""A timer may run this much early: a time made of a time and a difference is not exact."""


class ResourceTimers:
    """Which resources of a cache are waited for, and which expire."""

    def __init__(self, cache: ResourceCache, arrival_s: float) -> None:
        """Make one without timers.

        Args:
            arrival_s: How long a resource has to come, in seconds.
        """
        self._cache = cache
        self._arrival_s = arrival_s
        self._awaited: set[Key] = set()
        self._expiring: set[Key] = set()

    # To come.

    def start(self, type_url: str, names: Iterable[str], commands: list[Command]) -> None:
        """A request naming these was taken by the transport: those that nothing is known of have so long to come."""
        for name in names:
            key = (type_url, name)
            entry = self._cache.peek(*key)
            if entry is not None and key not in self._awaited and entry.is_open_question:
                self._awaited.add(key)
                commands.append(StartTimer(key, self._arrival_s))

    def take(self, key: Key) -> bool:
        """Return whether a timer that has run out was still wanted."""
        if key not in self._awaited:
            return False
        self._awaited.discard(key)
        return True

    def cancel(self, key: Key, commands: list[Command]) -> None:
        """A resource need not be waited for any more."""
        if self.take(key):
            commands.append(CancelTimer(key))

    def cancel_all(self) -> list[Command]:
        """The stream is gone, and says nothing about what exists."""
        commands: list[Command] = [CancelTimer(key) for key in self._awaited]
        self._awaited.clear()
        return commands

    # To live.

    def set_expiry(self, entry: Entry, ttl_s: float | None, now: float, commands: list[Command]) -> None:
        """Begin the time of a resource anew; None: it does not expire."""
        key = (entry.type_url, entry.name)
        if ttl_s is not None:
            entry.expires_at = now + ttl_s
            self._expiring.add(key)
            commands.append(StartExpiry(key, entry.expires_at))
        elif entry.expires_at is not None:
            entry.expires_at = None
            self._expiring.discard(key)
            commands.append(StopExpiry(key))

    def take_expiry(self, entry: Entry, now: float) -> bool:
        """Return whether the time of a resource is really over, and note that it has been."""
        if entry.expires_at is None or entry.expires_at > now + ROUNDING_S:
            return False
        entry.expires_at = None
        self._expiring.discard((entry.type_url, entry.name))
        return True

    def expiries(self) -> list[Command]:
        """Say all times of expiry again: after a fork, the timers of the process before are not here."""
        entries = [self._cache.peek(*key) for key in sorted(self._expiring)]
        return [
            StartExpiry((entry.type_url, entry.name), entry.expires_at)
            for entry in entries
            if entry is not None and entry.expires_at is not None
        ]

    def inherit(self, other: "ResourceTimers") -> None:
        """Go on with what expires in another one for the same cache."""
        self._expiring |= other._expiring

    # Both.

    def retain(self, type_url: str, keep: frozenset[str], commands: list[Command]) -> None:
        """End the timers of all other resources of a type."""
        for key in [key for key in self._awaited if key[0] == type_url and key[1] not in keep]:
            self.cancel(key, commands)
        for key in [key for key in self._expiring if key[0] == type_url and key[1] not in keep]:
            self._expiring.discard(key)
            commands.append(StopExpiry(key))
