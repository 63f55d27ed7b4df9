"""What lets a change cost what changed: tables that know what is other than before, and clusters followed by themselves."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Generic, TypeVar

from meshlib.model.snapshot import ClusterConfig, ConfigFault
from meshlib.ports import Pause
from meshlib.xds.cache import Key
from meshlib.xds.follow import ClusterFollower
from meshlib.xds.follow_resources import Scope
from meshlib.xds.resources import RTDS

__all__ = ["Parts", "Table"]

K = TypeVar("K")
V = TypeVar("V")


class Table(Generic[K, V]):
    """One part of a snapshot in the making."""

    __slots__ = ("_before", "now")

    def __init__(self) -> None:
        self.now: dict[K, V] = {}
        # What was touched since the last snapshot, and what stood there then; None: nothing.
        self._before: dict[K, V | None] = {}

    def put(self, name: K, value: V) -> None:
        """Have a value stand under a name. Faults are made anew each time: equal ones are no change."""
        before = self.now.get(name)
        if not _is_same(before, value):
            self._before.setdefault(name, before)
            self.now[name] = value

    def drop(self, name: K) -> None:
        """Have nothing stand under a name."""
        before = self.now.pop(name, None)
        if before is not None:
            self._before.setdefault(name, before)

    def take(self, last: Mapping[K, V], pause: Pause, *, is_new: bool) -> Mapping[K, V]:
        """Return the table for a snapshot, and begin anew.

        Args:
            last: The one of the last snapshot, which is returned if nothing is other than there.
            pause: Called on the way.
            is_new: What stands in `last` was not made by this table.
        """
        names = {*self.now, *last} if is_new else self._before.keys()
        before = last if is_new else self._before
        has_changed = any(not _is_same(before.get(name), self.now.get(name)) for name in names)
        self._before = {}
        pause()
        return MappingProxyType(dict(self.now)) if has_changed else last


def _is_same(before: object, now: object) -> bool:
    return before is now or (isinstance(now, ConfigFault | str) and now == before)


class Parts:
    """Remembers which resources each cluster was made of.

    Where the targets lead to depends on whether a cluster is there, not on what it holds: a change inside of one that was
    whole and stays so, and that leads to the same resources, concerns only that cluster.
    """

    def __init__(self) -> None:
        # Per cluster: what it was made of, and whether it was whole.
        self._scopes: dict[str, tuple[Scope, bool]] = {}
        self._made_of: dict[Key, set[str]] = {}

    def within(self, follower: ClusterFollower, key: Key) -> frozenset[str] | None:
        """Follow the clusters that a resource is part of.

        Returns:
            Them, if the change of it stays within them; None: whoever uses it is to be followed anew.
        """
        names = self._made_of.get(key)
        if key[0] == RTDS:
            return None  # Runtime values are part of routes and filters as well.
        if not names or not all(self._stays_whole(follower, name) for name in names):
            return None
        return frozenset(names)

    def _stays_whole(self, follower: ClusterFollower, name: str) -> bool:
        scope, was_whole = self._scopes[name]
        if not was_whole:
            return False
        state, now = follower.look(name)
        return _is_whole(state, now) and now.needs == scope.needs and now.dns == scope.dns

    def learn(self, follower: ClusterFollower, pause: Pause) -> None:
        """Take over what a pass has found."""
        for name, (state, scope) in follower.found.items():
            pause()
            before = self._scopes.get(name)
            is_whole = _is_whole(state, scope)
            old = before[0].needs if before is not None else set()
            if before is None or scope.needs != old or scope.dns != before[0].dns or is_whole is not before[1]:
                self._scopes[name] = (scope, is_whole)
            # Else what is remembered stays, and the garbage collector has nothing new to look at.
            if scope.needs == old:
                continue
            for need in scope.needs - old:
                self._made_of.setdefault(need, set()).add(name)
            for need in old - scope.needs:
                self._leave(need, name)

    def forget(self, need: Key) -> None:
        """Nobody leads to a resource any more, nor to the clusters that are made of it."""
        for name in tuple(self._made_of.get(need, ())):
            scope, _ = self._scopes.pop(name)
            for other in scope.needs:
                self._leave(other, name)

    def _leave(self, need: Key, name: str) -> None:
        names = self._made_of.get(need)
        if names is not None:
            names.discard(name)
            if not names:
                del self._made_of[need]


def _is_whole(state: object, scope: Scope) -> bool:
    return isinstance(state, ClusterConfig) and not scope.is_volatile
