"""The control thread: it owns the stream, the cache, timers and look-ups, and makes snapshots.

One daemon thread per mesh. Others only post to it; what it shares with them are immutable values, replaced by one
assignment each (`connection`, `waiting`, `snapshot`). No request waits for it, except the first use of a name.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Final, Protocol, TypeVar

from meshlib.events import Event, Hook
from meshlib.model.snapshot import ConfigFault, Demand, DemandKind, Snapshot, TargetConfig
from meshlib.ports import Clock, Rng, WallClock
from meshlib.runtime.ads import AdsStream, Stream, StreamEvents
from meshlib.runtime.certificate_sources import CertificateSources
from meshlib.runtime.certificates import CertificateWatch
from meshlib.runtime.credentials import TlsFiles
from meshlib.runtime.dns import DnsLookups, Lookup, look_up
from meshlib.runtime.load_reports import LoadReporter, OpenLoadStream
from meshlib.runtime.load_stream import LoadStream
from meshlib.runtime.orca_reports import OrcaListener
from meshlib.runtime.pauses import TurnTaking
from meshlib.runtime.scheduler import Scheduler, Timer
from meshlib.runtime.separate_streams import SeparateStreams
from meshlib.runtime.server_link import ConnectionStatus, OpenStream, ServerLink
from meshlib.runtime.server_links import ServerLinks
from meshlib.runtime.state_store import StateError, StateStore
from meshlib.view import View
from meshlib.xds.bootstrap import Bootstrap, ServerConfig
from meshlib.xds.cache import CacheShare, Entry, ResourceCache
from meshlib.xds.delta import new_machine
from meshlib.xds.dependencies import Closure, DnsAnswer, Facts
from meshlib.xds.encode_secret import provided_entry
from meshlib.xds.load_report import ClusterLoad
from meshlib.xds.names import is_collection, virtual_host_name
from meshlib.xds.resources import VHDS

__all__ = ["ControlPlane", "Owner"]

T = TypeVar("T")
_LOG = logging.getLogger(__name__)

SAVE_AFTER_S: Final = 1.0
"""Changes come in bursts; the copy on disk is written once for each."""
TICK_S: Final = 1.0
ABSENT_S: Final = 60.0
MAX_DEMANDS: Final = 4096
"""Clusters, virtual hosts and scopes of one target that requests asked for: their names come from requests."""
MAX_NAME: Final = 1024
"""Characters of such a name; a management server may end the stream for longer ones."""
RESUME_AFTER_S: Final = 0.5
"""After a fork the parent waits this long before it opens the stream again: more forks may follow."""
PARK_TIMEOUT_S: Final = 5.0


def _no_view() -> View:
    return View(Snapshot(), {}, {})


class Owner(Protocol):
    """Whom the control thread works for. Called on the control thread."""

    def publish(self, snapshot: Snapshot) -> None:
        """Take a new snapshot into use."""
        ...

    def tick(self, now: float) -> None:
        """About a second has passed."""
        ...

    def changed(self) -> None:
        """Something that somebody may be waiting for may have changed."""
        ...


@dataclass(slots=True)
class _Name:
    """A host name that is kept resolved."""

    refresh_s: float
    timer: Timer | None = None


class ControlPlane:
    """Runs the machines. `start` and `close` may be called by any thread, and again."""

    def __init__(
        self,
        bootstrap: Bootstrap,
        owner: Owner,
        *,
        clock: Clock,
        wall_clock: WallClock,
        rng: Rng,
        emit: Hook,
        store: StateStore | None = None,
        open_stream: OpenStream | None = None,
        lookup: Lookup = look_up,
        loads: Callable[[], Iterable[ClusterLoad]] = tuple,
        open_load_stream: OpenLoadStream | None = None,
        view: Callable[[], View] = _no_view,
    ) -> None:
        """Make a control plane that is not running. No I/O.

        Args:
            loads: Returns what is counted for load reports now. Called on the control thread.
            view: Returns the view in use. Called on the control thread.
        """
        # Fixed at creation.
        self._bootstrap = bootstrap
        self._owner = owner
        self._clock = clock
        self._wall_clock = wall_clock
        self._rng = rng
        self._emit = emit
        self._store = store
        self._open_stream: OpenStream = open_stream or self._open_ads
        self._lookup = lookup
        self._loads = loads
        self._view = view
        self._pause = TurnTaking()
        self._files = TlsFiles()
        self._open_load_stream: OpenLoadStream = open_load_stream or self._open_beside
        # Guarded by the lock.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._targets: frozenset[str] = frozenset()
        self._inbound: frozenset[str] = frozenset()
        self._kept: frozenset[str] = frozenset()
        self._demands: Mapping[str, Mapping[Demand, None]] = MappingProxyType({})
        # Replaced by the control thread, read by all.
        self.snapshot = Snapshot()
        self.waiting: Mapping[str, tuple[str, ...]] = MappingProxyType({})
        self.problems: Mapping[str, str] = MappingProxyType({})
        # Of the control thread alone.
        self._cache = ResourceCache()
        self._closure = Closure()
        self._has_loaded = False
        self._answers: dict[str, DnsAnswer] = {}
        self._sources = CertificateSources(
            bootstrap.certificate_providers,
            clock=clock,
            rng=rng,
            changed=self._on_sources,
            problem=self._problem,
        )
        self._certificates = CertificateWatch()
        self._scheduler = Scheduler(clock)
        self._links = ServerLinks(bootstrap, self._cache, self._make_link)
        self._reset_thread_state()

    def _make_link(self, server: ServerConfig, share: CacheShare, before: ServerLink | None) -> ServerLink:
        providers = frozenset(self._bootstrap.certificate_providers)
        machine = new_machine(share, server.features, pause=self._pause, providers=providers)
        return ServerLink(
            server,
            self._bootstrap.node,
            machine if before is None else before.machine,
            scheduler=self._scheduler,
            clock=self._clock,
            rng=self._rng,
            emit=self._emit,
            changed=self._on_change,
            open_stream=self._open_stream,
        )

    def _reset_thread_state(self) -> None:
        """Make what a running thread needs; nothing of it outlives a fork."""
        self._scheduler = Scheduler(self._clock)
        self._links.renew()
        self._reporter = LoadReporter(
            self._bootstrap.node,
            self._links,
            scheduler=self._scheduler,
            clock=self._clock,
            rng=self._rng,
            loads=self._loads,
            open_stream=self._open_load_stream,
        )
        self._orca = OrcaListener(self._view, scheduler=self._scheduler, clock=self._clock, rng=self._rng)
        self._lookups = DnsLookups(self._lookup, self._scheduler.post)
        self._names: dict[str, _Name] = {}
        self._is_stopping = False
        self._is_dirty = True
        self._done: list[Callable[[], None]] = []
        self._save_timer: Timer | None = None
        self._was_absent: frozenset[str] = frozenset()
        self._absent_demands: frozenset[tuple[str, Demand]] = frozenset()
        self._wanted: Mapping[str, frozenset[str]] | None = None
        self._demands_seen: tuple[object, Mapping[str, frozenset[Demand]]] = (None, {})
        self._unpark = threading.Event()
        self._has_parked = False

    # For any thread.

    @property
    def connection(self) -> ConnectionStatus:
        """How the connection to the active one of the `xds_servers` is."""
        return self._links.status

    @property
    def connections(self) -> tuple[ConnectionStatus, ...]:
        """How the connections to all servers in use are."""
        return self._links.statuses

    def describe(self, now: float) -> str:
        """Say how the servers are, for people."""
        return "; ".join(status.describe(now) for status in self.connections)

    @property
    def server_uri(self) -> str:
        return self._links.status.server_uri

    @property
    def is_running(self) -> bool:
        thread = self._thread
        return thread is not None and thread.is_alive()

    def start(self) -> None:
        """Start the thread unless it runs."""
        with self._lock:
            if self._thread is not None:
                return
            self._is_stopping = False
            self._thread = threading.Thread(target=self._run, name="meshlib-control", daemon=True)
            self._scheduler.post(self._begin)
            self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop the thread: the stream ends, the copy on disk is up to date. It may be started again."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is None:
            return
        self._scheduler.post(self._stop)
        self._unpark.set()
        if thread is not threading.current_thread():
            thread.join(timeout_s)

    def watch(
        self,
        *,
        targets: frozenset[str] = frozenset(),
        inbound: frozenset[str] = frozenset(),
        keep: bool = False,
    ) -> None:
        """Subscribe to listeners. Costs nothing for names that are subscribed to already.

        Args:
            targets: Names of client listeners.
            inbound: Names of server listeners.
            keep: Stay subscribed to targets that do not exist; others of that kind are given up after a minute, as a
                client that makes up host names must not grow without end.
        """
        if targets <= (self._kept if keep else self._targets) and inbound <= self._inbound:
            return
        with self._lock:
            self._targets |= targets
            self._inbound |= inbound
            if keep:
                self._kept |= targets
        self._scheduler.post(partial(self._on_change, None))

    def demand(self, target: str, demands: Iterable[Demand]) -> None:
        """Subscribe to what a request of a target needs. Costs nothing for what was asked for already.

        The oldest ones are given up when there are too many, and those that do not exist after a minute.
        """
        known = self._demands.get(target, {})
        new = [demand for demand in demands if demand not in known and _is_name(demand[1])]
        if not new:
            return
        with self._lock:
            kept = {**self._demands.get(target, {}), **dict.fromkeys(new)}
            for demand in list(kept)[: max(0, len(kept) - MAX_DEMANDS)]:
                del kept[demand]
            self._demands = MappingProxyType({**self._demands, target: MappingProxyType(kept)})
        self._scheduler.post(partial(self._on_change, None))

    @property
    def certificates_since(self) -> Mapping[tuple[str, str], float]:
        """When each certificate or bundle in use came, in monotonic seconds, by name and kind."""
        return self._certificates.since

    @property
    def targets(self) -> frozenset[str]:
        """Names of all client listeners subscribed to."""
        return self._targets

    @property
    def inbound(self) -> frozenset[str]:
        """Names of all server listeners subscribed to."""
        return self._inbound

    @property
    def node_id(self) -> str:
        return self._bootstrap.node.id

    def entries(self, timeout_s: float = 2.0) -> tuple[Entry, ...]:
        """Return copies of all cache entries, and what certificate providers brought as secrets without keys; an empty
        tuple when the control thread does not get to it in time."""
        return self._ask(self._entries, timeout_s) or ()

    def _entries(self) -> tuple[Entry, ...]:
        since = self._sources.since
        provided = tuple(provided_entry(secret, since[name]) for name, secret in self._sources.secrets.items())
        return tuple(copy(entry) for entry in self._cache.entries()) + provided

    def _ask(self, look: Callable[[], T], timeout_s: float) -> T | None:
        if not self.is_running or threading.current_thread() is self._thread:
            return look()
        answer: list[T] = []
        answered = threading.Event()

        def run() -> None:
            answer.append(look())
            answered.set()

        self._scheduler.post(run)
        answered.wait(timeout_s)
        return answer[0] if answer else None

    # Fork.

    def before_fork(self) -> None:
        """Take the stream down and have the thread stand still, so that a fork meets no lock held and no live gRPC."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        parked = threading.Event()
        self._unpark.clear()
        self._scheduler.post(partial(self._park, parked))
        if not parked.wait(PARK_TIMEOUT_S):
            _LOG.warning("the control thread did not stand still before a fork; the child starts without its cache")

    def after_fork_in_parent(self) -> None:
        """Go on; the stream opens again after a moment."""
        self._unpark.set()

    def after_fork_in_child(self) -> None:
        """Forget the thread, which is not here; `start` makes a new one. The snapshot stays in use."""
        self._lock = threading.Lock()
        self._thread = None
        if not self._has_parked:
            self._cache = ResourceCache()
            self._scheduler = Scheduler(self._clock)
            self._links = ServerLinks(self._bootstrap, self._cache, self._make_link)
        self._reset_thread_state()

    def _park(self, parked: threading.Event) -> None:
        self._reporter.close()
        self._orca.close()
        self._links.disconnect()
        self._sources.disconnect()
        self._has_parked = True
        parked.set()
        self._unpark.wait()
        self._has_parked = False
        if not self._is_stopping:
            self._links.connect(RESUME_AFTER_S)
            self._sources.resume()

    # The control thread.

    def _run(self) -> None:
        scheduler = self._scheduler
        while not self._is_stopping:
            scheduler.run()
            if self._is_dirty and not self._is_stopping:
                try:
                    self._settle()
                except Exception:
                    _LOG.exception("the configuration could not be worked out; the last one stays in use")
            done, self._done = self._done, []
            for release in done:
                release()

    def _begin(self) -> None:
        if not self._has_loaded:
            self._has_loaded = True
            self._load()
        self._sources.begin(self._scheduler)
        self._scheduler.later(TICK_S, self._tick)
        self._scheduler.later(ABSENT_S, self._drop_absent)
        self._is_dirty = True
        self._links.connect()

    def _stop(self) -> None:
        self._is_stopping = True
        self._reporter.close()
        self._orca.close()
        self._links.disconnect()
        self._sources.disconnect()
        self._save()
        done, self._done = self._done, []
        for release in done:
            release()
        self._reset_thread_state()
        self._is_stopping = True
        self._owner.changed()

    def _open_ads(self, server: ServerConfig, events: StreamEvents) -> Stream:
        kind = SeparateStreams if server.is_separate else AdsStream
        return kind(server, events, self._wall_clock, self._files)

    def _open_beside(self, server: ServerConfig, stream: Stream, events: StreamEvents) -> Stream | None:
        channel = stream.channel if isinstance(stream, AdsStream | SeparateStreams) else None
        return None if channel is None else LoadStream(server, channel, events, self._wall_clock)

    def _on_change(self, done: Callable[[], None] | None) -> None:
        self._is_dirty = True
        if done is not None:
            self._done.append(done)
        # At once, so that nothing of a server that is given up is taken after this.
        self._links.step()

    def _tick(self) -> None:
        self._scheduler.later(TICK_S, self._tick)
        self._owner.tick(self._clock())
        self._orca.step()
        self._emit_all(self._certificates.sweep(self._clock(), self._wall_clock()))

    def _emit_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self._emit(event)

    def _drop_absent(self) -> None:
        """Unsubscribe from targets that did not exist a minute ago and do not now; a next use asks again."""
        self._scheduler.later(ABSENT_S, self._drop_absent)
        absent = frozenset(
            name
            for name, target in self.snapshot.targets.items()
            if isinstance(target, ConfigFault) and target.is_absent
        )
        drop, self._was_absent = self._was_absent & absent - self._kept, absent
        if drop:
            with self._lock:
                self._targets -= drop
            self._is_dirty = True
        self._drop_absent_demands()

    def _drop_absent_demands(self) -> None:
        """Give up what requests asked for and does not exist, as above, and all of targets that are gone."""
        absent = frozenset(
            (name, demand)
            for name, target in self.snapshot.targets.items()
            if isinstance(target, TargetConfig)
            for demand in target.answered
            if self._is_absent(target, demand)
        )
        drop, self._absent_demands = self._absent_demands & absent, absent
        with self._lock:
            demands = {
                target: {demand: None for demand in asked if (target, demand) not in drop}
                for target, asked in self._demands.items()
                if target in self._targets
            }
            if demands != self._demands:
                self._demands = MappingProxyType(demands)
                self._is_dirty = True

    def _is_absent(self, target: TargetConfig, demand: Demand) -> bool:
        kind, name = demand
        match kind:
            case DemandKind.CLUSTER:
                found = self.snapshot.clusters.get(name)
                return isinstance(found, ConfigFault) and found.is_absent
            case DemandKind.VIRTUAL_HOST:
                hosts = [virtual_host_name(routes.name, name) for routes in target.all_routes if routes.has_more_hosts]
                entries = [self._cache.peek(VHDS, host) for host in hosts]
                return all(entry is None or entry.is_absent for entry in entries)
            case DemandKind.SCOPE:
                return not any(scope.name == name for scope in target.scopes or ())

    def _demands_now(self) -> Mapping[str, frozenset[Demand]]:
        """Return what requests asked for; the same object as long as it is the same."""
        demands = self._demands
        if demands is not self._demands_seen[0]:
            found = {target: frozenset(asked) for target, asked in demands.items()}
            self._demands_seen = (demands, MappingProxyType(found))
        return self._demands_seen[1]

    def _settle(self) -> None:
        """Follow everything anew until nothing more is found, then publish."""
        self._is_dirty = False
        facts = Facts(
            self._cache,
            self._targets,
            self._inbound,
            self._answers,
            self._sources.secrets,
            self._bootstrap.node.id,
            self._demands_now(),
            self._bootstrap.runtime,
            pending_providers=self._sources.pending,
        )
        snapshot = self.snapshot
        while True:
            resolution = self._closure.resolve(facts, snapshot)
            snapshot = resolution.snapshot
            self._links.want(resolution.wanted)
            # Each round of copies from disk leads to further names. New names may also be refused at once (an authority
            # that is not in the bootstrap, a type that the variant does not carry); without any this runs once.
            is_new, self._wanted = resolution.wanted is not self._wanted, resolution.wanted
            if not self._links.adopt_spares(self._clock()) and not is_new:
                break
        self.waiting = resolution.waiting
        self._keep_resolved(resolution.dns_names)
        previous, self.snapshot = self.snapshot, resolution.snapshot
        if resolution.snapshot is not previous:
            self._owner.publish(resolution.snapshot)
            self._emit_all(self._certificates.update(resolution.snapshot, self._clock()))
            self._save_soon()
        self._reporter.step()
        self._orca.step()
        self._owner.changed()

    # Host names.

    def _keep_resolved(self, wanted: Mapping[str, float]) -> None:
        for host in self._names.keys() - wanted.keys():
            timer = self._names.pop(host).timer
            if timer is not None:
                timer.cancel()
            self._answers.pop(host, None)
        for host, refresh_s in wanted.items():
            if host in self._names:
                self._names[host].refresh_s = refresh_s
            else:
                self._names[host] = _Name(refresh_s)
                self._lookups.start(host, partial(self._on_resolved, host))

    def _on_resolved(self, host: str, addresses: tuple[str, ...], error: str) -> None:
        name = self._names.get(host)
        if name is None:
            return
        before = self._answers.get(host)
        if error and before is not None:
            addresses = before.addresses
        answer = DnsAnswer(addresses, error)
        if answer != before:
            self._answers[host] = answer
            self._is_dirty = True
        name.timer = self._scheduler.later(
            name.refresh_s, partial(self._lookups.start, host, partial(self._on_resolved, host))
        )

    # Files.

    def _on_sources(self) -> None:
        self._is_dirty = True

    def _load(self) -> None:
        if self._store is None:
            return
        try:
            self._cache.add_spares(self._store.load(self._wall_clock()))
        except StateError as error:
            self._problem("state", str(error))

    def _save_soon(self) -> None:
        if self._store is not None and self._save_timer is None:
            self._save_timer = self._scheduler.later(SAVE_AFTER_S, self._save)

    def _save(self) -> None:
        """Write the copy if something changed since it was written."""
        timer, self._save_timer = self._save_timer, None
        if timer is None or self._store is None:
            return
        timer.cancel()
        spares = self._cache.dump(self._wall_clock())
        if not any(entry.value is not None and not entry.is_spare for entry in self._cache.entries()):
            return
        try:
            self._store.save(spares)
        except StateError as error:
            self._problem("state", str(error))
        else:
            self._problem("state", "")

    def _problem(self, place: str, text: str) -> None:
        """Note what does not work though the mesh does; told once per change."""
        if self.problems.get(place, "") == text:
            return
        if text:
            _LOG.warning("%s", text)
        problems = {**self.problems, place: text}
        self.problems = MappingProxyType({name: value for name, value in problems.items() if value})


def _is_name(name: str) -> bool:
    """Whether what a request names could be a resource: not all of them at once, and not of any length."""
    return len(name) <= MAX_NAME and not is_collection(name)
