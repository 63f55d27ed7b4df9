"""From resources to one complete configuration: what a set of targets needs, and whether all of it is there.

A target is a listener name. It leads to a route configuration (inline or RDS), or to several in scopes (inline or SRDS),
those to clusters, those to endpoints (EDS and LEDS, the cluster itself, or DNS) and to secrets. What comes out is what following everything from the cache anew would
give (`resolve`); `Closure` follows what changed.

Make before break:

- A target moves to new routes when every cluster that they can choose is warm or has a final error; until then it keeps
  its routes, and the clusters of those stay subscribed and in the snapshot, even when the server has removed them.
- A cluster keeps its endpoints and settings until its new form is warm.
- One target that waits does not hold up another.

Errors follow gRFC A74: those of a listener or its routes fail the target, those of a cluster fail the calls that choose
it, those of endpoints are a note on the cluster. Parts that did not change stay the same objects, and a snapshot equal
to the one before is that one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from types import MappingProxyType
from typing import Final, TypeVar

from meshlib.model.dns import DnsAnswer
from meshlib.model.secret import Secret
from meshlib.model.snapshot import ClusterConfig, ConfigFault, Demand, InboundConfig, Snapshot, TargetConfig
from meshlib.xds.cache import Key, ResourceCache
from meshlib.xds.dns import DnsWish
from meshlib.xds.follow import (
    DNS,
    PROVIDER_PREFIX,
    SECRET,
    Facts,
    Scope,
    clusters_of,
    provider_secret_names,
)
from meshlib.xds.follow_targets import Follower, clusters_of_target
from meshlib.xds.resources import SDS, TYPE_URLS

__all__ = ["Closure", "DnsAnswer", "Facts", "Resolution", "clusters_of", "provider_secret_names", "resolve"]

V = TypeVar("V")
USE: Final = "use"
"""Stands in the place of a type URL: a cluster that is in the snapshot."""
INBOUND: Final = "inbound"
VERSIONS: Final = "versions"
TARGET: Final = "target"
HOME: Final = "home"
"""The local cluster, which nobody waits for."""
NOBODY: Final[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class Resolution:
    """Attributes:
    wanted: Names to subscribe to, by type URL.
    dns_names: Host names to keep resolved, by label of the question.
    snapshot: The previous one itself when nothing changed.
    waiting: What each target or inbound listener that is not ready, or holds on to an older form, waits for.
    """

    wanted: Mapping[str, frozenset[str]]
    dns_names: Mapping[str, DnsWish]
    snapshot: Snapshot
    waiting: Mapping[str, tuple[str, ...]]


def resolve(facts: Facts, previous: Snapshot) -> Resolution:
    """Follow all targets and inbound listeners through the cache, from scratch."""
    closure = Closure()
    closure.start(facts, previous)
    return closure.run(facts, ())


@dataclass(slots=True)
class _Node:
    """A starting point, and what came out.

    Attributes:
        used: Clusters that its routes can choose.
    """

    config: TargetConfig | InboundConfig | ConfigFault | None
    missing: tuple[str, ...]
    used: frozenset[str]
    scope: Scope


class Closure:
    """The same as `resolve` at the price of what changed: only starting points that lead to it are followed anew.

    A starting point is followed again when a resource or host name that it met has changed, and each time as long as
    something on its way is missing: then what comes out depends on what was in use before.
    """

    def __init__(self) -> None:
        self._last: Snapshot | None = None

    def resolve(self, facts: Facts, previous: Snapshot) -> Resolution:
        """Return what follows from the facts.

        Args:
            facts: The cache is always the same one, and nobody else takes its marks.
            previous: What came out the last time; anything else has everything followed anew.
        """
        touched = facts.cache.take_touched()
        if self._last is None or previous is not self._last or facts.cache is not self._cache:
            self.start(facts, previous)
        try:
            return self.run(facts, touched)
        except BaseException:
            self._last = None  # Half done: the next time everything is followed anew.
            raise

    def start(self, facts: Facts, previous: Snapshot) -> None:
        """Forget everything."""
        self._last = previous
        self._is_new = True
        self._cache: ResourceCache = facts.cache
        self._starts: tuple[frozenset[str], frozenset[str]] = (NOBODY, NOBODY)
        self._demands: Mapping[str, frozenset[Demand]] = {}
        self._nodes: dict[Key, _Node] = {}
        self._users: dict[Key, set[Key]] = {}
        self._prints: dict[Key, object] = {}
        self._dns: dict[str, DnsAnswer | None] = {}
        self._waiting: dict[Key, tuple[str, ...]] = {}
        self._volatile: set[Key] = set()
        self._wanted: dict[str, set[str]] = {type_url: set() for type_url in TYPE_URLS}
        self._wanted_now: Mapping[str, frozenset[str]] = MappingProxyType(dict.fromkeys(TYPE_URLS, NOBODY))
        self._stale: set[str] = set()
        # The parts of the snapshot, and whether they are other than in the last one.
        self._targets: dict[str, TargetConfig | ConfigFault] = {}
        self._inbound: dict[str, InboundConfig | ConfigFault] = {}
        self._clusters: dict[str, ClusterConfig | ConfigFault] = {}
        self._versions: dict[Key, str] = {}
        self._changed: set[str] = set()

    def run(self, facts: Facts, touched: Iterable[Key]) -> Resolution:
        """Follow what may have changed, and put the snapshot together."""
        assert self._last is not None
        follower = Follower(facts, self._last)
        dirty = self._dirty(facts, touched)
        moved: set[str] = set()  # clusters whose users changed, or what those want of them
        if (facts.targets, facts.inbound) != self._starts:
            self._starts = (facts.targets, facts.inbound)
            there = {*((TARGET, name) for name in facts.targets), *((INBOUND, name) for name in facts.inbound)}
            if facts.home is not None and facts.targets:
                there.add((HOME, facts.home.cluster))
            for key in self._nodes.keys() - there:
                moved |= self._remove(key)
            dirty = (dirty & there) | (there - self._nodes.keys())
        fresh = {key: self._follow(follower, key) for key in sorted(dirty)}
        for key, node in fresh.items():
            if node.missing:
                self._waiting[key] = node.missing
            else:
                self._waiting.pop(key, None)
        held = {name for key in self._waiting for name in (fresh.get(key) or self._nodes[key]).used}
        clusters: dict[str, ClusterConfig | ConfigFault] = {}
        for node in fresh.values():
            follower.scope = node.scope
            for name in sorted(node.used):
                self._use(follower, name, name in held, clusters)
        for key, node in fresh.items():
            moved |= self._replace(key, node)
        follower.scope = Scope()  # Others that use them have noted what they need.
        for name in moved - clusters.keys():
            if (USE, name) in self._users:
                self._use(follower, name, name in held, clusters)
        for name, config in clusters.items():
            self._put(self._clusters, name, config, USE)
        return Resolution(
            self._subscriptions(),
            self._dns_names(),
            self._snapshot(facts),
            {name: missing for (kind, name), missing in self._waiting.items() if kind != HOME},
        )

    # What to follow.

    def _dirty(self, facts: Facts, touched: Iterable[Key]) -> set[Key]:
        dirty = set(self._volatile)
        for key in touched:
            users = self._users.get(key)
            if users is None:
                continue
            before, now = self._prints.get(key), self._note(key)
            if before != now:
                dirty |= users
        for label, answer in self._dns.items():
            if facts.dns.get(label) != answer:
                dirty |= self._users[DNS, label]
        self._dns = {label: facts.dns.get(label) for label in self._dns}
        if facts.demands is not self._demands:
            for name in {*facts.demands, *self._demands}:
                if facts.demands.get(name) != self._demands.get(name) and (TARGET, name) in self._nodes:
                    dirty.add((TARGET, name))
            self._demands = facts.demands
        return dirty

    def _note(self, key: Key) -> object:
        """Remember what is known of a resource; equal ones lead to the same."""
        entry = self._cache.peek(*key)
        version = None if entry is None or entry.value is None else entry.version
        if self._versions.get(key) != version:
            self._changed.add(VERSIONS)
            if version is None:
                del self._versions[key]
            else:
                self._versions[key] = version
        found = None if entry is None else (_Same(entry.value), entry.state, entry.error, entry.is_absent)
        self._prints[key] = found
        return found

    def _follow(self, follower: Follower, key: Key) -> _Node:
        kind, name = key
        scope = follower.scope = Scope()
        config: TargetConfig | InboundConfig | ConfigFault | None
        used = NOBODY
        if kind == HOME:
            config, missing = None, follower.awaited(name)
            assert self._last is not None
            if not missing or name in self._last.clusters:
                used = frozenset({name})
        elif kind == INBOUND:
            config, missing = follower.inbound(name)
        else:
            config, missing = follower.target(name)
            if isinstance(config, TargetConfig):
                used = clusters_of_target(config)
        scope.is_volatile = scope.is_volatile or bool(missing)
        return _Node(config, missing, used, scope)

    def _use(self, follower: Follower, name: str, is_held: bool, found: dict[str, ClusterConfig | ConfigFault]) -> None:
        """Have a cluster in the snapshot, and the leaves of an aggregate."""
        follower.scope.needs.add((USE, name))
        config = found[name] = follower.usable(name, is_held=is_held)
        for leaf in config.leaves if isinstance(config, ClusterConfig) else ():
            follower.scope.needs.add((USE, leaf))
            if leaf not in found or is_held:
                found[leaf] = follower.usable(leaf, is_held=is_held)

    # Who needs what.

    def _remove(self, key: Key) -> frozenset[str]:
        """Forget a starting point; returns the clusters that it used."""
        node = self._nodes.pop(key)
        self._waiting.pop(key, None)
        self._volatile.discard(key)
        if key[0] != HOME:
            table: dict[str, object] = self._inbound if key[0] == INBOUND else self._targets  # type: ignore[assignment]
            if table.pop(key[1], None) is not None:
                self._changed.add(key[0])
        self._unuse(key, node.scope.needs)
        return node.used

    def _replace(self, key: Key, node: _Node) -> frozenset[str]:
        """Take over what came out; returns the clusters that were used before."""
        before = self._nodes.get(key)
        self._nodes[key] = node
        old = before.scope.needs if before is not None else set()
        for need in node.scope.needs - old:
            users = self._users.get(need)
            if users is None:
                users = self._users[need] = set()
                self._begin(need)
            users.add(key)
        self._unuse(key, old - node.scope.needs)
        (self._volatile.add if node.scope.is_volatile else self._volatile.discard)(key)
        kind, name = key
        if kind == HOME:
            return NOBODY if before is None else before.used
        table: dict[str, object] = self._inbound if kind == INBOUND else self._targets  # type: ignore[assignment]
        if node.config is not None:
            self._put(table, name, node.config, kind)
        elif table.pop(name, None) is not None:
            self._changed.add(kind)
        return NOBODY if before is None else before.used

    def _begin(self, need: Key) -> None:
        kind, name = need
        if kind in self._wanted:
            self._wanted[kind].add(name)
            self._stale.add(kind)
            self._note(need)
        elif kind == DNS:
            self._dns[name] = None

    def _unuse(self, key: Key, needs: Iterable[Key]) -> None:
        for need in needs:
            users = self._users[need]
            users.discard(key)
            if users:
                continue
            del self._users[need]
            kind, name = need
            if kind in self._wanted:
                self._wanted[kind].discard(name)
                self._stale.add(kind)
                self._prints.pop(need, None)
                if self._versions.pop(need, None) is not None:
                    self._changed.add(VERSIONS)
            elif kind == DNS:
                self._dns.pop(name, None)
            elif kind == USE and self._clusters.pop(name, None) is not None:
                self._changed.add(USE)

    def _put(self, table: dict[str, V], name: str, value: V, kind: str) -> None:
        before = table.get(name)
        if before is not value and not (isinstance(value, ConfigFault) and value == before):
            table[name] = value
            self._changed.add(kind)

    # What comes out.

    def _subscriptions(self) -> Mapping[str, frozenset[str]]:
        """Return what to subscribe to; the same object when it is the same."""
        if self._stale:
            now = dict(self._wanted_now)
            for type_url in self._stale:
                names = frozenset(self._wanted[type_url])
                if names != now[type_url]:
                    now[type_url] = names
            self._stale.clear()
            if any(now[type_url] is not names for type_url, names in self._wanted_now.items()):
                self._wanted_now = MappingProxyType(now)
        return self._wanted_now

    def _dns_names(self) -> Mapping[str, DnsWish]:
        return {
            label: reduce(
                DnsWish.joined, [self._nodes[key].scope.dns[label] for key in sorted(self._users[DNS, label])]
            )
            for label in self._dns
        }

    def _secrets(self, facts: Facts) -> dict[str, Secret]:
        found: dict[str, Secret] = {}
        for name in sorted(name for kind, name in self._users if kind == SECRET):
            secret = self._known_secret(facts, name)
            if secret is not None:
                found[name] = secret
        return found

    def _known_secret(self, facts: Facts, name: str) -> Secret | None:
        if name.startswith(PROVIDER_PREFIX):
            return facts.provider_secrets.get(name)
        entry = facts.cache.peek(SDS, name)
        if entry is None or not entry.is_answered:
            # Asked for and not answered: whatever uses it goes on with what it had.
            assert self._last is not None
            return self._last.secrets.get(name)
        return entry.value if isinstance(entry.value, Secret) else None

    def _snapshot(self, facts: Facts) -> Snapshot:
        previous = self._last
        assert previous is not None
        changed, is_new = self._changed, self._is_new
        self._changed, self._is_new = set(), False

        def part(kind: str, table: dict[str, V], old: Mapping[str, V]) -> Mapping[str, V]:
            return _kept(table, old) if is_new or kind in changed else old

        targets = part(TARGET, self._targets, previous.targets)
        inbound = part(INBOUND, self._inbound, previous.inbound)
        clusters = part(USE, self._clusters, previous.clusters)
        secrets = _kept(self._secrets(facts), previous.secrets)
        versions = previous.versions
        if (is_new or VERSIONS in changed) and self._versions != previous.versions:
            versions = MappingProxyType(dict(self._versions))
        before = (previous.targets, previous.inbound, previous.clusters, previous.secrets, previous.versions)
        parts = (targets, inbound, clusters, secrets, versions)
        if all(new is old for new, old in zip(parts, before, strict=True)):
            return previous
        self._last = Snapshot(targets, inbound, clusters, secrets, previous.number + 1, versions, facts.home)
        return self._last


class _Same:
    """Compares a value by identity: equal ones are told apart, as the decoder keeps those that did not change."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._value is other._value

    __hash__ = None  # type: ignore[assignment]


def _same(new: Mapping[str, object], old: Mapping[str, object]) -> bool:
    """Whether two mappings hold the same objects; faults are made anew each time and compare by value."""
    if len(new) != len(old):
        return False
    return all(
        value is old.get(name) or (isinstance(value, ConfigFault) and value == old.get(name))
        for name, value in new.items()
    )


def _kept(new: Mapping[str, V], old: Mapping[str, V]) -> Mapping[str, V]:
    return old if _same(new, old) else MappingProxyType(dict(new))
