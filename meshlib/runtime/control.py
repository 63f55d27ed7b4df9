"""The control thread: it owns the stream, the cache, timers and look-ups, and makes snapshots.

One daemon thread per mesh. Others only post to it; what it shares with them are immutable values, replaced by one
assignment each (`connection`, `waiting`, `snapshot`). No request waits for it, except the first use of a name.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from functools import partial
from types import MappingProxyType
from typing import Final, Protocol

from meshlib.events import Event, Hook
from meshlib.model.dns import DnsAnswer
from meshlib.model.snapshot import Demand, Snapshot
from meshlib.ports import Clock, Rng, WallClock
from meshlib.runtime.certificate_sources import CertificateSources
from meshlib.runtime.certificates import CertificateWatch
from meshlib.runtime.dns import DnsLookups, Lookup, look_up
from meshlib.runtime.host_names import HostNames
from meshlib.runtime.load_reports import LoadReporter, OpenLoadStream
from meshlib.runtime.openers import GrpcStreams
from meshlib.runtime.orca_reports import OrcaListener
from meshlib.runtime.pace import Pace
from meshlib.runtime.pauses import TurnTaking
from meshlib.runtime.saved_copy import SavedCopy
from meshlib.runtime.scheduler import Scheduler, Timer
from meshlib.runtime.server_link import ConnectionStatus, OpenStream, ServerLink
from meshlib.runtime.server_links import ServerLinks
from meshlib.runtime.state_store import StateStore
from meshlib.runtime.wanted import Wanted
from meshlib.view import View
from meshlib.view.lost_names import lost_names
from meshlib.xds.bootstrap import Bootstrap, ServerConfig
from meshlib.xds.cache import CacheShare, Entry, ResourceCache
from meshlib.xds.delta import new_machine
from meshlib.xds.dependencies import Closure, Facts
from meshlib.xds.encode_secret import provided_entry
from meshlib.xds.load_report import ClusterLoad

__all__ = ["ControlPlane", "Owner"]

_LOG = logging.getLogger(__name__)

TICK_S: Final = 1.0
ABSENT_S: Final = 60.0
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
        pause: TurnTaking | None = None,
    ) -> None:
        """Make a control plane that is not running. No I/O.

        Args:
            loads: Returns what is counted for load reports now. Called on the control thread.
            view: Returns the view in use. Called on the control thread.
            pause: What the owner rests with too, so that both know how much there is to do; None: nobody else does.
        """
        # Fixed at creation.
        self._bootstrap = bootstrap
        self._owner = owner
        self._clock = clock
        self._wall_clock = wall_clock
        self._rng = rng
        self._emit = emit
        streams = GrpcStreams(wall_clock)
        self._open_stream: OpenStream = open_stream or streams.resources
        self._lookup = lookup
        self._loads = loads
        self._view = view
        self._pause = TurnTaking(Pace()) if pause is None else pause
        self._pace = self._pause.pace
        self._open_load_stream: OpenLoadStream = open_load_stream or streams.loads
        # Guarded by the lock.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # Locks for itself.
        self._asked = Wanted()
        # Replaced by the control thread, read by all.
        self.snapshot = Snapshot()
        self.waiting: Mapping[str, tuple[str, ...]] = MappingProxyType({})
        self.unreachable: Mapping[str, str] = MappingProxyType({})
        self.problems: Mapping[str, str] = MappingProxyType({})
        # Of the control thread alone.
        self._cache = ResourceCache()
        self._closure = Closure()
        self._copy = SavedCopy(store, wall_clock, self._problem, clock=clock, pause=self._pause)
        self._answers: Mapping[str, DnsAnswer] = {}
        self._sources = CertificateSources(
            bootstrap.certificate_providers,
            clock=clock,
            rng=rng,
            changed=self._on_news,
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
            pace=self._pace,
            pause=self._pause,
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
        self._names = HostNames(self._lookups, self._scheduler, self._rng, self._on_news, self._answers)
        # Kept over a fork, so that a child need not wait for what its parent knew.
        self._answers = self._names.answers
        self._is_stopping = False
        self._is_dirty = True
        self._done: list[Callable[[], None]] = []
        self._turn: Timer | None = None
        self._copy.forget_timer()
        self._asked.forget_absent()
        self._wanted: Mapping[str, frozenset[str]] | None = None
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
        if self._asked.watch(targets, inbound, keep=keep):
            self._pace.hurry()
            self._scheduler.post(partial(self._on_change, None))

    def demand(self, target: str, demands: Iterable[Demand]) -> None:
        """Subscribe to what a request of a target needs. Costs nothing for what was asked for already.

        The oldest ones are given up when there are too many, and those that do not exist after a minute.
        """
        if self._asked.demand(target, demands):
            self._pace.hurry()
            self._scheduler.post(partial(self._on_change, None))

    @property
    def certificates_since(self) -> Mapping[tuple[str, str], float]:
        """When each certificate or bundle in use came, in monotonic seconds, by name and kind."""
        return self._certificates.since

    @property
    def targets(self) -> frozenset[str]:
        """Names of all client listeners subscribed to."""
        return self._asked.targets

    @property
    def inbound(self) -> frozenset[str]:
        """Names of all server listeners subscribed to."""
        return self._asked.inbound

    @property
    def node_id(self) -> str:
        return self._bootstrap.node.id

    def entries(self, timeout_s: float = 2.0) -> tuple[Entry, ...]:
        """Return copies of all cache entries, and what certificate providers brought as secrets without keys; an empty
        tuple when the control thread does not get to it in time."""
        if not self.is_running or threading.current_thread() is self._thread:
            return self._entries()
        return self._scheduler.ask(self._entries, timeout_s) or ()

    def _entries(self) -> tuple[Entry, ...]:
        since = self._sources.since
        provided = tuple(provided_entry(secret, since[name]) for name, secret in self._sources.secrets.items())
        return tuple(copy(entry) for entry in self._cache.entries()) + provided

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
        self._asked.after_fork_in_child()
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
        self._copy.load(self._cache)
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
        self._copy.save(self._cache)
        done, self._done = self._done, []
        for release in done:
            release()
        self._reset_thread_state()
        self._is_stopping = True
        self._owner.changed()

    def _on_change(self, done: Callable[[], None] | None) -> None:
        """Something may have changed.

        Args:
            done: A server's word, and what lets it say the next one; None: something else, which does not wait.
        """
        wait_s = 0.0 if done is None else self._pace.wait_s(self._clock())
        if done is not None and wait_s > 0.0:
            if self._turn is None:
                self._turn = self._scheduler.later(wait_s, self._on_news)
            done()
        else:
            self._is_dirty = True
            if done is not None:
                self._done.append(done)
            else:
                self._pace.is_pressed = False
        # At once, so that nothing of a server that is given up is taken after this.
        self._links.step()

    def _tick(self) -> None:
        self._scheduler.later(TICK_S, self._tick)
        now = self._clock()
        self._owner.tick(now)
        if lost := lost_names(self._view().clusters.values()):
            self._names.look_up_again(lost, now)
        self._orca.step()
        self._emit_all(self._certificates.sweep(self._clock(), self._wall_clock()))

    def _emit_all(self, events: Iterable[Event]) -> None:
        for event in events:
            self._emit(event)

    def _drop_absent(self) -> None:
        """Give up what did not exist a minute ago and does not now."""
        self._scheduler.later(ABSENT_S, self._drop_absent)
        if self._asked.drop_absent(self.snapshot, self._cache):
            self._is_dirty = True

    def _settle(self) -> None:
        """Take into use what has changed."""
        began = self._clock()
        self._is_dirty = False
        if self._turn is not None:
            self._turn.cancel()
            self._turn = None
        try:
            self._follow()
        finally:
            now = self._clock()
            self._pace.spend(now - began)
            self._pace.rest(now)
            self._links.answer()

    def _follow(self) -> None:
        """Follow everything anew until nothing more is found, then publish."""
        facts = Facts(
            self._cache,
            self._asked.targets,
            self._asked.inbound,
            self._answers,
            self._sources.secrets,
            self._bootstrap.node.id,
            self._asked.demands_now(),
            self._bootstrap.runtime,
            pending_providers=self._sources.pending,
            home=self._bootstrap.home,
        )
        snapshot = self.snapshot
        while True:
            resolution = self._closure.resolve(facts, snapshot, self._pause)
            snapshot = resolution.snapshot
            self._links.want(resolution.wanted)
            # Each round of copies from disk leads to further names. New names may also be refused at once (an authority
            # that is not in the bootstrap, a type that the variant does not carry); without any this runs once.
            is_new, self._wanted = resolution.wanted is not self._wanted, resolution.wanted
            if not self._links.adopt_spares(self._clock()) and not is_new:
                break
        self.waiting = resolution.waiting
        self._pace.is_awaited = bool(self.waiting)
        self._names.want(resolution.dns_names)
        previous, self.snapshot = self.snapshot, resolution.snapshot
        if resolution.snapshot is not previous:
            self._owner.publish(resolution.snapshot)
            self._pause()
            self._emit_all(self._certificates.update(resolution.snapshot, self._clock()))
            self._copy.save_soon(self._scheduler, self._cache)
        self.unreachable = self._links.unreachable(resolution.waiting)
        self._reporter.step()
        self._orca.step()
        self._owner.changed()

    def _on_news(self) -> None:
        """Certificate providers or name servers have something that they did not have before."""
        self._is_dirty = True

    def _problem(self, place: str, text: str) -> None:
        """Note what does not work though the mesh does; told once per change."""
        if self.problems.get(place, "") == text:
            return
        if text:
            _LOG.warning("%s", text)
        problems = {**self.problems, place: text}
        self.problems = MappingProxyType({name: value for name, value in problems.items() if value})
