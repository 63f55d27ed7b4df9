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
from typing import Final

from meshlib.model.dns import DnsAnswer
from meshlib.model.secret import Secret
from meshlib.model.snapshot import ClusterConfig, ConfigFault, Demand, InboundConfig, Snapshot, TargetConfig
from meshlib.ports import Pause, no_pause
from meshlib.xds.cache import Key, ResourceCache
from meshlib.xds.dns import DnsWish
from meshlib.xds.follow import clusters_of
from meshlib.xds.follow_resources import DNS, PROVIDER_PREFIX, SECRET, Facts, Scope, provider_secret_names
from meshlib.xds.follow_targets import Follower
from meshlib.xds.parts import Parts, Table
from meshlib.xds.resources import SDS, TYPE_URLS

__all__ = ["Closure", "DnsAnswer", "Facts", "Resolution", "clusters_of", "provider_secret_names", "resolve"]

USE: Final = "use"
"""Stands in the place of a type URL: a cluster that is in the snapshot."""
INBOUND: Final = "inbound"
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
    something on its way is missing: then what comes out depends on what was in use before. A change that stays within a
    cluster (other endpoints, other settings, another certificate) has only that cluster followed.
    """

    def __init__(self) -> None:
        self._last: Snapshot | None = None

    def resolve(self, facts: Facts, previous: Snapshot, pause: Pause = no_pause) -> Resolution:
        """Return what follows from the facts.

        Args:
            facts: The cache is always the same one, and nobody else takes its marks.
            previous: What came out the last time; anything else has everything followed anew.
            pause: Called between what is followed.
        """
        touched = facts.cache.take_touched()
        if self._last is None or previous is not self._last or facts.cache is not self._cache:
            self.start(facts, previous)
        try:
            return self.run(facts, touched, pause)
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
        self._secret_names: set[str] = set()
        self._parts = Parts()
        # The parts of the snapshot.
        self._targets: Table[str, TargetConfig | ConfigFault] = Table()
        self._inbound: Table[str, InboundConfig | ConfigFault] = Table()
        self._clusters: Table[str, ClusterConfig | ConfigFault] = Table()
        self._versions: Table[Key, str] = Table()

    def run(self, facts: Facts, touched: Iterable[Key], pause: Pause = no_pause) -> Resolution:
        """Follow what may have changed, and put the snapshot together."""
        assert self._last is not None
        follower = Follower(facts, self._last)
        moved: set[str] = set()  # clusters that changed by themselves, or whose users did, or what those want of them
        dirty = self._dirty(facts, touched, follower, moved, pause)
        if (facts.targets, facts.inbound) != self._starts:
            self._starts = (facts.targets, facts.inbound)
            there = {*((TARGET, name) for name in facts.targets), *((INBOUND, name) for name in facts.inbound)}
            if facts.home is not None and facts.targets:
                there.add((HOME, facts.home.cluster))
            for key in self._nodes.keys() - there:
                moved |= self._remove(key)
            dirty = (dirty & there) | (there - self._nodes.keys())
        fresh: dict[Key, _Node] = {}
        for key in sorted(dirty):
            pause()
            fresh[key] = self._follow(follower, key)
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
            pause()
            if (USE, name) in self._users:
                self._use(follower, name, name in held, clusters)
        for name, config in clusters.items():
            self._clusters.put(name, config)
        self._parts.learn(follower, pause)
        return Resolution(
            self._subscriptions(),
            self._dns_names(),
            self._snapshot(facts, pause),
            {name: missing for (kind, name), missing in self._waiting.items() if kind != HOME},
        )

    # What to follow.

    def _dirty(
        self, facts: Facts, touched: Iterable[Key], follower: Follower, moved: set[str], pause: Pause
    ) -> set[Key]:
        changed = []
        for key in touched:
            pause()
            if key in self._users:
                before, now = self._prints.get(key), self._note(key)
                if before != now:
                    changed.append(key)
        changed += [(DNS, label) for label, answer in self._dns.items() if facts.dns.get(label) != answer]
        dirty = set(self._volatile)
        for key in changed:
            pause()
            users, within = self._users[key], self._parts.within(follower, key)
            moved |= within or NOBODY
            dirty |= users if within is None else {user for user in users if user[0] == INBOUND}
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
        if version is None:
            self._versions.drop(key)
        else:
            self._versions.put(key, version)
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
                used = follower.used_by(config)
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
            (self._inbound if key[0] == INBOUND else self._targets).drop(key[1])
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
        table: Table[str, object] = self._inbound if kind == INBOUND else self._targets  # type: ignore[assignment]
        if node.config is not None:
            table.put(name, node.config)
        else:
            table.drop(name)
        return NOBODY if before is None else before.used

    def _begin(self, need: Key) -> None:
        kind, name = need
        if kind in self._wanted:
            self._wanted[kind].add(name)
            self._stale.add(kind)
            self._note(need)
        elif kind == DNS:
            self._dns[name] = None
        elif kind == SECRET:
            self._secret_names.add(name)

    def _unuse(self, key: Key, needs: Iterable[Key]) -> None:
        for need in needs:
            users = self._users[need]
            users.discard(key)
            if users:
                continue
            del self._users[need]
            self._parts.forget(need)
            kind, name = need
            if kind in self._wanted:
                self._wanted[kind].discard(name)
                self._stale.add(kind)
                self._prints.pop(need, None)
                self._versions.drop(need)
            elif kind == DNS:
                self._dns.pop(name, None)
            elif kind == SECRET:
                self._secret_names.discard(name)
            elif kind == USE:
                self._clusters.drop(name)

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

    def _secrets(self, facts: Facts, last: Mapping[str, Secret]) -> Mapping[str, Secret]:
        """Return the secrets in use; the same object when they are the same."""
        found: dict[str, Secret] = {}
        for name in sorted(self._secret_names):
            secret = self._known_secret(facts, name)
            if secret is not None:
                found[name] = secret
        is_same = len(found) == len(last) and all(secret is last.get(name) for name, secret in found.items())
        return last if is_same else MappingProxyType(found)

    def _known_secret(self, facts: Facts, name: str) -> Secret | None:
        if name.startswith(PROVIDER_PREFIX):
            return facts.provider_secrets.get(name)
        entry = facts.cache.peek(SDS, name)
        if entry is None or not entry.is_answered:
            # Asked for and not answered: whatever uses it goes on with what it had.
            assert self._last is not None
            return self._last.secrets.get(name)
        return entry.value if isinstance(entry.value, Secret) else None

    def _snapshot(self, facts: Facts, pause: Pause) -> Snapshot:
        previous = self._last
        assert previous is not None
        is_new, self._is_new = self._is_new, False
        targets = self._targets.take(previous.targets, pause, is_new=is_new)
        inbound = self._inbound.take(previous.inbound, pause, is_new=is_new)
        clusters = self._clusters.take(previous.clusters, pause, is_new=is_new)
        versions = self._versions.take(previous.versions, pause, is_new=is_new)
        secrets = self._secrets(facts, previous.secrets)
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
