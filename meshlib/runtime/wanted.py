"""What a mesh has been asked for: listeners by its users, and by requests what these need of them."""

import threading
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from meshlib.model.snapshot import ConfigFault, Demand, DemandKind, Snapshot, TargetConfig
from meshlib.xds.cache import ResourceCache
from meshlib.xds.names import is_collection, virtual_host_name
from meshlib.xds.resources import VHDS

__all__ = ["MAX_DEMANDS", "Wanted"]

MAX_DEMANDS: Final = 4096
"""Clusters, virtual hosts and scopes of one target that requests asked for: their names come from requests."""
MAX_NAME: Final = 1024
"""Characters of such a name; a management server may end the stream for longer ones."""


class Wanted:
    """Any thread may add; the control thread gives up what does not exist.

    Attributes:
        targets: Names of client listeners.
        inbound: Names of server listeners.
        demands: By target, the oldest first.
    """

    def __init__(self) -> None:
        # Each an immutable value that is replaced by one assignment, guarded by the lock.
        self._lock = threading.Lock()
        self.targets: frozenset[str] = frozenset()
        self.inbound: frozenset[str] = frozenset()
        self._kept: frozenset[str] = frozenset()
        self.demands: Mapping[str, Mapping[Demand, None]] = MappingProxyType({})
        # Of the control thread alone.
        self.forget_absent()
        self._seen: tuple[object, Mapping[str, frozenset[Demand]]] = (None, {})

    def after_fork_in_child(self) -> None:
        """The lock may have been held by a thread that is not here."""
        self._lock = threading.Lock()

    def watch(self, targets: frozenset[str], inbound: frozenset[str], *, keep: bool) -> bool:
        """Want listeners; False: all of them were wanted already. As `ControlPlane.watch`."""
        if targets <= (self._kept if keep else self.targets) and inbound <= self.inbound:
            return False
        with self._lock:
            self.targets |= targets
            self.inbound |= inbound
            if keep:
                self._kept |= targets
        return True

    def demand(self, target: str, demands: Iterable[Demand]) -> bool:
        """Want what a request of a target needs; False: that was wanted already. As `ControlPlane.demand`."""
        known = self.demands.get(target, {})
        new = [demand for demand in demands if demand not in known and _is_name(demand[1])]
        if not new:
            return False
        with self._lock:
            kept = {**self.demands.get(target, {}), **dict.fromkeys(new)}
            for demand in list(kept)[: max(0, len(kept) - MAX_DEMANDS)]:
                del kept[demand]
            self.demands = MappingProxyType({**self.demands, target: MappingProxyType(kept)})
        return True

    # For the control thread.

    def forget_absent(self) -> None:
        """Start counting anew for how long things have not existed."""
        self._was_absent: frozenset[str] = frozenset()
        self._absent_demands: frozenset[tuple[str, Demand]] = frozenset()

    def demands_now(self) -> Mapping[str, frozenset[Demand]]:
        """Return what requests asked for; the same object as long as it is the same."""
        demands = self.demands
        if demands is not self._seen[0]:
            found = {target: frozenset(asked) for target, asked in demands.items()}
            self._seen = (demands, MappingProxyType(found))
        return self._seen[1]

    def drop_absent(self, snapshot: Snapshot, cache: ResourceCache) -> bool:
        """Give up what did not exist the last time this was called and does not now; a next use asks again.

        Returns:
            Whether there was any.
        """
        absent = frozenset(
            name for name, target in snapshot.targets.items() if isinstance(target, ConfigFault) and target.is_absent
        )
        drop, self._was_absent = self._was_absent & absent - self._kept, absent
        if drop:
            with self._lock:
                self.targets -= drop
        return self._drop_absent_demands(snapshot, cache) or bool(drop)

    def _drop_absent_demands(self, snapshot: Snapshot, cache: ResourceCache) -> bool:
        """Give up what requests asked for and does not exist, as above, and all of targets that are gone."""
        absent = frozenset(
            (name, demand)
            for name, target in snapshot.targets.items()
            if isinstance(target, TargetConfig)
            for demand in target.answered
            if _is_absent(target, demand, snapshot, cache)
        )
        drop, self._absent_demands = self._absent_demands & absent, absent
        with self._lock:
            demands = {
                target: {demand: None for demand in asked if (target, demand) not in drop}
                for target, asked in self.demands.items()
                if target in self.targets
            }
            if demands == self.demands:
                return False
            self.demands = MappingProxyType(demands)
            return True


def _is_absent(target: TargetConfig, demand: Demand, snapshot: Snapshot, cache: ResourceCache) -> bool:
    kind, name = demand
    match kind:
        case DemandKind.CLUSTER:
            found = snapshot.clusters.get(name)
            return isinstance(found, ConfigFault) and found.is_absent
        case DemandKind.VIRTUAL_HOST:
            hosts = [virtual_host_name(routes.name, name) for routes in target.all_routes if routes.has_more_hosts]
            entries = [cache.peek(VHDS, host) for host in hosts]
            return all(entry is None or entry.is_absent for entry in entries)
        case DemandKind.SCOPE:
            return not any(scope.name == name for scope in target.scopes or ())


def _is_name(name: str) -> bool:
    """Whether what a request names could be a resource: not all of them at once, and not of any length."""
    return len(name) <= MAX_NAME and not is_collection(name)
