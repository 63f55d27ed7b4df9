"""Looking host names up, off the control thread."""

import socket
import threading
from collections.abc import Callable
from typing import Final

from meshlib.model.dns import DnsQuestion, DnsRecords, LookupFamily
from meshlib.xds.dns import is_ipv6, of_family

__all__ = ["Answered", "DnsLookups", "Lookup", "look_up"]

Lookup = Callable[[DnsQuestion], DnsRecords]
"""Blocking; an answer without addresses is an answer, anything that is none raises OSError."""
Answered = Callable[[DnsRecords | None, str], None]
"""Takes what was found, or None and the reason."""
MAX_AT_ONCE: Final = 16
"""A name whose servers do not answer blocks for many seconds; the others must not wait for it."""

_FAMILIES: Final = {LookupFamily.V4_ONLY: socket.AF_INET, LookupFamily.V6_ONLY: socket.AF_INET6}
_NO_SUCH: Final = frozenset(
    code for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if (code := getattr(socket, name, None)) is not None
)
"""The servers have answered, and there is nothing: as Envoy's resolvers take it."""
# Addresses for documentation: nothing is sent there, the kernel is only asked for a route.
_ELSEWHERE: Final = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


def look_up(question: DnsQuestion) -> DnsRecords:
    """Return the addresses of a name, by the system's resolver or the servers that the question names.

    Raises:
        OSError: There is no answer.
    """
    lookup = question.lookup
    if lookup.needs_ttl or lookup.servers is not None:
        from meshlib.runtime.dns_servers import ask  # Needs an optional package.

        records = ask(question)
    else:
        records = DnsRecords(_by_system(question))
    has_ipv6 = _has_route(socket.AF_INET6)
    found = of_family(records.addresses, lookup.family, has_ipv6=has_ipv6)
    if lookup.is_routable:
        has_ipv4 = _has_route(socket.AF_INET)
        found = tuple(address for address in found if (has_ipv6 if is_ipv6(address) else has_ipv4))
    return DnsRecords(found, records.ttl_s if lookup.needs_ttl else None)


def _by_system(question: DnsQuestion) -> tuple[str, ...]:
    family = _FAMILIES.get(question.lookup.family, socket.AF_UNSPEC)
    try:
        found = socket.getaddrinfo(question.host, None, family=family, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in _NO_SUCH:
            return ()
        raise
    return tuple(dict.fromkeys(str(info[4][0]) for info in found))


def _has_route(family: socket.AddressFamily) -> bool:
    """Whether this machine can send to a family at all. Sends nothing."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((_ELSEWHERE[family], 9))
    except OSError:
        return False
    return True


class DnsLookups:
    """A limited number of look-ups at once, on daemon threads that end with their work. Used by one thread."""

    def __init__(self, lookup: Lookup, post: Callable[[Callable[[], None]], None]) -> None:
        """Make a resolver.

        Args:
            lookup: Runs on threads.
            post: Runs an action on the owner's thread.
        """
        self._lookup = lookup
        self._post = post
        self._waiting: list[tuple[DnsQuestion, Answered]] = []
        self._active = 0

    def start(self, question: DnsQuestion, answered: Answered) -> None:
        """Look a name up; `answered` runs on the owner's thread."""
        self._waiting.append((question, answered))
        self._next()

    def _next(self) -> None:
        while self._waiting and self._active < MAX_AT_ONCE:
            self._active += 1
            threading.Thread(target=self._run, args=self._waiting.pop(0), name="meshlib-dns", daemon=True).start()

    def _run(self, question: DnsQuestion, answered: Answered) -> None:
        records: DnsRecords | None = None
        error = ""
        try:
            records = self._lookup(question)
        except (OSError, UnicodeError) as failure:
            error = getattr(failure, "strerror", None) or str(failure)
        except Exception as failure:
            # Whatever a resolver library trips over, the name is tried again.
            error = f"{type(failure).__name__}: {failure}"

        def finish() -> None:
            self._active -= 1
            answered(records, error)
            self._next()

        self._post(finish)
