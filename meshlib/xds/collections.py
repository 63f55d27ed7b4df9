"""Subscriptions that stand for many resources: `*` for all of a type, `xdstp://.../*` for all below a path.

What a server sends that no name asks for is kept when a collection covers it: it is a member, with an entry of its own
in the cache. The collection has an entry too, whose value is made anew whenever a member changes, so that who depends on
all of them hears of each.
"""

from types import MappingProxyType
from typing import Final

from meshlib.model.discovery import Collection
from meshlib.xds.cache import Entry, ResourceCache, ResourceState
from meshlib.xds.names import covers, is_collection
from meshlib.xds.resources import LEDS, SRDS

__all__ = ["MAX_MEMBERS", "Collections"]

MAX_MEMBERS: Final = 50_000
"""Of one collection: what a server may have a client hold that did not ask for it by name."""
_WHOLE: Final = frozenset({SRDS, LEDS})
"""Types of which somebody wants all members; the others are only looked up by name."""
_EVERYTHING: Final = Collection()


class Collections:
    """The collections that one server is asked for, and their members. Of one thread."""

    def __init__(self, cache: ResourceCache) -> None:
        self._cache = cache
        self._members: dict[str, dict[str, set[str]]] = {}

    def begin(self, type_url: str, name: str) -> None:
        """Note a name that is subscribed to from now on."""
        if is_collection(name):
            self._members.setdefault(type_url, {}).setdefault(name, set())

    def of(self, type_url: str) -> tuple[str, ...]:
        """Return the names of the collections of a type."""
        return tuple(self._members.get(type_url, ()))

    def members(self, type_url: str) -> frozenset[str]:
        """Return the names of all members of a type."""
        found = self._members.get(type_url)
        return frozenset().union(*found.values()) if found else frozenset()

    def has(self, type_url: str, name: str) -> bool:
        """Whether a resource is held for the sake of a collection."""
        found = self._members.get(type_url)
        return found is not None and any(name in members for members in found.values())

    def join(self, type_url: str, name: str) -> bool:
        """Take a resource in; False: no collection covers it, or there is no room."""
        found = self._members.get(type_url)
        joined = False
        for collection, members in found.items() if found else ():
            if name in members or (len(members) < MAX_MEMBERS and covers(collection, name)):
                members.add(name)
                joined = True
        return joined

    def leave(self, type_url: str, name: str) -> None:
        """A resource is gone."""
        for members in self._members.get(type_url, {}).values():
            members.discard(name)

    def retain(self, type_url: str, keep: frozenset[str]) -> frozenset[str]:
        """Forget the other collections of a type; returns what is to be kept for the rest, and `keep`."""
        found = self._members.get(type_url)
        if not found:
            return keep
        for collection in [name for name in found if name not in keep]:
            del found[collection]
        return keep.union(*found.values())

    def settle(self, type_url: str, touched: frozenset[str], version: str, now: float) -> tuple[Entry, ...]:
        """Bring the entries of collections up to date after a response; returns those that it answered.

        Args:
            touched: Names that the response says anything about; empty: it answers for all collections.
        """
        settled = []
        for collection, members in self._members.get(type_url, {}).items():
            is_answered = (
                not touched
                or collection == "*"
                or collection in touched
                or any(covers(collection, name) for name in touched)
            )
            entry = self._cache.get(type_url, collection) if is_answered else None
            if entry is None:
                continue
            value = self._value(type_url, members, entry)
            if value is not entry.value:
                entry.value, entry.updated_at = value, now
            entry.state, entry.error, entry.failed_version = ResourceState.ACKED, "", ""
            entry.version, entry.is_absent, entry.is_spare = version, False, False
            settled.append(entry)
        return tuple(settled)

    def renew(self, type_url: str, name: str) -> None:
        """A member has changed outside of a response: it has expired."""
        for collection, members in self._members.get(type_url, {}).items():
            entry = self._cache.get(type_url, collection) if name in members else None
            if entry is not None and entry.value is not None:
                entry.value = self._value(type_url, members, entry)

    def adopt(self, type_url: str, now: float) -> None:
        """Let the members that came from disk stand for collections that no server has answered for."""
        for collection, members in self._members.get(type_url, {}).items():
            entry = self._cache.get(type_url, collection)
            if entry is not None and members and not entry.is_answered:
                entry.value, entry.updated_at, entry.is_spare = self._value(type_url, members, entry), now, True

    def _value(self, type_url: str, members: set[str], entry: Entry) -> Collection:
        if type_url not in _WHOLE:
            return _EVERYTHING
        found = {}
        for name in sorted(members):
            member = self._cache.peek(type_url, name)
            if member is not None and member.value is not None:
                found[name] = member.value
        before = entry.value.members if isinstance(entry.value, Collection) else None
        if before is not None and len(before) == len(found) and all(before.get(n) is v for n, v in found.items()):
            assert isinstance(entry.value, Collection)
            return entry.value
        return Collection(MappingProxyType(found))
