"""Looking host names up, off the control thread."""

import socket
import threading
from collections.abc import Callable
from typing import Final

__all__ = ["DnsLookups", "Lookup", "look_up"]

Lookup = Callable[[str], tuple[str, ...]]
MAX_AT_ONCE: Final = 4
"""A name whose servers do not answer blocks for many seconds; the others must not wait for it."""


def look_up(host: str) -> tuple[str, ...]:
    """Return the addresses of a name, sorted: IPv4 if it has any, else IPv6 (a name with both is one machine twice).

    Raises:
        OSError: It does not resolve.
    """
    found = {(info[0], str(info[4][0])) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    four = sorted(address for family, address in found if family == socket.AF_INET)
    return tuple(four or sorted(address for family, address in found if family == socket.AF_INET6))


class DnsLookups:
    """At most four look-ups at once, on daemon threads that end with their work. Used by one thread."""

    def __init__(self, lookup: Lookup, post: Callable[[Callable[[], None]], None]) -> None:
        """Make a resolver.

        Args:
            lookup: Blocking; raises OSError.
            post: Runs an action on the owner's thread.
        """
        self._lookup = lookup
        self._post = post
        self._waiting: list[tuple[str, Callable[[tuple[str, ...], str], None]]] = []
        self._active = 0

    def start(self, host: str, answered: Callable[[tuple[str, ...], str], None]) -> None:
        """Look a name up; `answered(addresses, error)` runs on the owner's thread."""
        self._waiting.append((host, answered))
        self._next()

    def _next(self) -> None:
        while self._waiting and self._active < MAX_AT_ONCE:
            self._active += 1
            host, answered = self._waiting.pop(0)
            threading.Thread(target=self._run, args=(host, answered), name="meshlib-dns", daemon=True).start()

    def _run(self, host: str, answered: Callable[[tuple[str, ...], str], None]) -> None:
        addresses: tuple[str, ...] = ()
        error = ""
        try:
            addresses = self._lookup(host)
        except (OSError, UnicodeError) as failure:
            error = getattr(failure, "strerror", None) or str(failure)

        def finish() -> None:
            self._active -= 1
            answered(addresses, error)
            self._next()

        self._post(finish)
