"""Which virtual host a request's authority belongs to.

The order is exact, then suffix wildcards (`*.example.com`), then prefix wildcards (`example.*`), longest first in each,
then `*`. There is no scoring across the classes: any suffix wildcard beats any prefix wildcard. A wildcard stands for
at least one character, and the port is part of what is compared unless the configuration says otherwise.

Source: Envoy `RouteMatcher::findVirtualHost`; gRFC A27 has the same order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from meshlib.matching import ascii_lower

__all__ = ["DomainIndex", "DomainMatch", "strip_port"]

T = TypeVar("T")
Group = tuple[int, dict[str, tuple[str, T]]]


def strip_port(host: str) -> str:
    """Cut at the last colon outside brackets, whatever follows it (`foo:`, `foo:abc` and `foo:80` are all `foo`)."""
    colon = host.rfind(":")
    return host[:colon] if colon > host.rfind("]") else host


@dataclass(frozen=True, slots=True)
class DomainMatch(Generic[T]):
    """Attributes:
    domain: The pattern that matched, as configured.
    kind: `exact`, `suffix`, `prefix` or `any`.
    """

    value: T
    domain: str
    kind: str


def _longest_first(patterns: dict[str, tuple[str, T]]) -> list[Group[T]]:
    by_length: dict[int, dict[str, tuple[str, T]]] = {}
    for text, entry in patterns.items():
        by_length.setdefault(len(text), {})[text] = entry
    return sorted(by_length.items(), key=lambda group: -group[0])


class DomainIndex(Generic[T]):
    """Domains and what they lead to. Not changed after creation.

    Attributes:
        exact: By lower-case authority; callers may look here first and call `find` on a miss. Empty when ports are
            ignored, because then the authority as it stands decides nothing.
        domains: All patterns as configured.
    """

    __slots__ = ("_any", "_exact", "_ignore_port", "_prefixes", "_suffixes", "domains", "exact")

    def __init__(self, hosts: Iterable[tuple[Sequence[str], T]], *, ignore_port: bool = False) -> None:
        """Index the domains of virtual hosts in order; of two equal domains the first counts (as in gRPC)."""
        exact: dict[str, tuple[str, T]] = {}
        suffixes: dict[str, tuple[str, T]] = {}
        prefixes: dict[str, tuple[str, T]] = {}
        self._any: T | None = None
        domains: list[str] = []
        for patterns, value in hosts:
            for domain in patterns:
                domains.append(domain)
                text = ascii_lower(domain)
                if text == "*":
                    if self._any is None:
                        self._any = value
                elif text.startswith("*"):
                    suffixes.setdefault(text[1:], (domain, value))
                elif text.endswith("*"):
                    prefixes.setdefault(text[:-1], (domain, value))
                else:
                    exact.setdefault(text, (domain, value))
        self._exact = exact
        self._suffixes = _longest_first(suffixes)
        self._prefixes = _longest_first(prefixes)
        self._ignore_port = ignore_port
        self.domains = tuple(domains)
        self.exact: dict[str, T] = {} if ignore_port else {text: value for text, (_, value) in exact.items()}

    @property
    def only_any(self) -> T | None:
        """What `*` leads to, if there is no other domain: then an authority is not even needed."""
        return self._any if not (self._exact or self._suffixes or self._prefixes) else None

    def find(self, authority: str) -> T | None:
        """Return what the authority leads to, or None."""
        found = self.explain(authority)
        return None if found is None else found.value

    def explain(self, authority: str) -> DomainMatch[T] | None:
        """Return what the authority leads to and by which pattern, or None."""
        host = ascii_lower(strip_port(authority) if self._ignore_port else authority)
        if (entry := self._exact.get(host)) is not None:
            return DomainMatch(entry[1], entry[0], "exact")
        size = len(host)
        for length, patterns in self._suffixes:
            if length < size and (entry := patterns.get(host[size - length :])) is not None:
                return DomainMatch(entry[1], entry[0], "suffix")
        for length, patterns in self._prefixes:
            if length < size and (entry := patterns.get(host[:length])) is not None:
                return DomainMatch(entry[1], entry[0], "prefix")
        return None if self._any is None else DomainMatch(self._any, "*", "any")
