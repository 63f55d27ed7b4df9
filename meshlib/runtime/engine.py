"""What a `Mesh` does of itself: starting and stopping, publishing views, and answering who asks for a target."""

import logging
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from opentelemetry.trace import TracerProvider

from meshlib.errors import BootstrapError, DeadlineExceeded, MeshError, RoutingError, UnavailableError
from meshlib.events import Event, Hook, Meter
from meshlib.model.request import RequestHead
from meshlib.model.retry import DEFAULT_SAFETY, RetryBudget, Safety
from meshlib.model.snapshot import ConfigFault, Snapshot
from meshlib.ports import Clock, Rng
from meshlib.runtime import clock as clocks
from meshlib.runtime import fork
from meshlib.runtime.context import HANDED_ON, names_to_hand_on, remaining_s
from meshlib.runtime.control import ControlPlane
from meshlib.runtime.exit import close_at_exit
from meshlib.runtime.health_checks import HealthCheckRunner
from meshlib.runtime.pace import Pace
from meshlib.runtime.pauses import TurnTaking
from meshlib.runtime.server_link import OpenStream
from meshlib.runtime.state_store import StateStore, default_directory
from meshlib.runtime.tracing import Tracing
from meshlib.runtime.wait import Waiters
from meshlib.view import TargetView, View, build_view
from meshlib.xds.bootstrap import Bootstrap
from meshlib.xds.decode_bootstrap import parse_bootstrap
from meshlib.xds.names import listener_name

__all__ = ["FIRST_USE_TIMEOUT_S", "MeshEngine", "read_text"]

_LOG = logging.getLogger(__name__)

FIRST_USE_TIMEOUT_S: Final = 15.0
"""Envoy's and gRPC's time for a first resource."""
ON_DEMAND_S: Final = 5.0
"""How long a request waits for what is subscribed to because of it: Envoy's time for clusters on demand."""
MAX_PARKED: Final = 1000
"""Requests that wait for such; further ones are answered with what is there."""
MAX_NAMES: Final = 10_000
"""Authorities whose listener name is remembered: a client that makes up host names must not grow without end."""


class MeshEngine:
    """The base of `Mesh`; its attributes and errors are described there."""

    closes_first = False

    def __init__(
        self,
        bootstrap: "Bootstrap | Mapping[str, Any] | str | os.PathLike[str]",
        *,
        state_dir: "str | os.PathLike[str] | None" = None,
        guard_unsafe: bool = True,
        retry_budget: RetryBudget | None = DEFAULT_SAFETY.budget,
        one_retry_layer: bool = True,
        hand_on: Iterable[str] = (),
        first_use_timeout_s: float = FIRST_USE_TIMEOUT_S,
        clock: Clock = clocks.monotonic,
        rng: Rng | None = None,
        open_stream: OpenStream | None = None,
        tracer_provider: TracerProvider | None = None,
    ) -> None:
        # Fixed at creation.
        self.clock = clock
        self.rng = rng if rng is not None else clocks.system_rng()
        self.guard_unsafe = guard_unsafe
        self.handed_on = HANDED_ON | names_to_hand_on(hand_on)
        self.is_disabled = os.environ.get("MESHLIB_DISABLE", "") == "1"
        self.tracing = Tracing(tracer_provider)
        self._safety = Safety(retry_budget, one_retry_layer)
        self._first_use_timeout_s = first_use_timeout_s
        self._pace = Pace()
        self._pause = TurnTaking(self._pace)
        self._state_dir = _state_directory(state_dir)
        self._open_stream = open_stream
        # Guarded by the lock.
        self._lock = threading.Lock()
        self._bootstrap: Bootstrap | None = None
        self._path: Path | None = None
        if isinstance(bootstrap, Bootstrap):
            self._bootstrap = bootstrap
        elif isinstance(bootstrap, Mapping):
            self._bootstrap = parse_bootstrap(bootstrap, origin="dict")
        else:
            self._path = Path(bootstrap)
        self._control: ControlPlane | None = None
        self._is_closed = False
        self._hooks: tuple[Hook, ...] = ()
        self._known_meter: tuple[tuple[Hook, ...], Meter | None] = ((), None)
        self._bad_hooks: set[int] = set()
        # One assignment each, read by everyone.
        self._is_dormant = True
        self._needs_rebuild = False
        self._view = View(Snapshot(), {}, {})
        self._names: dict[str, str] = {}
        self._waiters = Waiters()
        self._parked: list[None] = []
        self._health = HealthCheckRunner(
            lambda: self._view, clock=self.clock, rng=self.rng, emit=self.emit, changed=self.changed
        )

    # Life.

    def start(self) -> None:
        """Connect in the background; returns at once. Called by the first use otherwise. May follow `close`.

        Raises:
            BootstrapError: The bootstrap file cannot be read or is not valid.
        """
        if self.is_disabled:
            self._is_dormant = False
            return
        with self._lock:
            if self._needs_rebuild:
                # After a fork: the states in the old view belong to calls and locks of another process.
                now = self.clock()
                offset_s = clocks.wall() - now
                self._view = build_view(
                    self._view.snapshot, None, now=now, wall_offset_s=offset_s, rng=self.rng, safety=self._safety
                )
                self._needs_rebuild = False
            control = self._control
            if control is None:
                control = self._control = self._make_control(self._loaded())
                fork.register(self)
                close_at_exit(self)
            self._is_closed = False
            control.start()
            self._is_dormant = False
        self._health.step()

    def close(self) -> None:
        """End the stream and the thread, and write the copy on disk. Safe to call twice."""
        with self._lock:
            control = self._control
            self._is_closed = self._is_dormant = True
        self._health.close()
        if control is not None:
            control.close()
        self._waiters.notify()

    def __repr__(self) -> str:
        state = "disabled" if self.is_disabled else "closed" if self._is_closed else repr(self._view)
        return f"<Mesh {state}>"

    @property
    def bootstrap(self) -> Bootstrap:
        """The bootstrap; reads its file the first time.

        Raises:
            BootstrapError: The file cannot be read or is not valid.
        """
        with self._lock:
            return self._loaded()

    # What clients and servers ask.

    @property
    def view(self) -> View:
        """The current view; read it once per call."""
        if self._is_dormant:
            self._wake()
        return self._view

    def target(self, authority: str) -> TargetView | None:
        """Return the target of an authority if it is known and usable right now; never blocks.

        Raises:
            RoutingError: The management server says that it does not exist.
            UnavailableError: Its configuration cannot be used, or the mesh is closed.
        """
        if self._is_dormant:
            self._wake()
        name = self._names.get(authority)
        if name is None:
            name = self._name(authority)
        found = self._view.targets.get(name)
        return found if type(found) is TargetView and not found.warming else self._usable(name)

    def wait_target(self, authority: str, timeout_s: float | None = None) -> TargetView:
        """Subscribe to a target if need be, and wait until it is usable; None: the mesh's default time.

        Raises:
            RoutingError: The management server says that it does not exist.
            DeadlineExceeded: The request that is being served meanwhile has no time left.
            UnavailableError: It was not there in time; the text says what is missing and how the server is.
        """
        name, timeout_s = self._subscribe(authority, timeout_s)
        found = self._waiters.wait(lambda: self._usable(name), timeout_s, self.clock)
        if found is None:
            raise self.not_ready(f"service {authority!r}", name, timeout_s)
        return found

    async def wait_target_async(self, authority: str, timeout_s: float | None = None) -> TargetView:
        """As `wait_target`, without blocking the event loop."""
        name, timeout_s = self._subscribe(authority, timeout_s)
        found = await self._waiters.wait_async(lambda: self._usable(name), timeout_s, self.clock)
        if found is None:
            raise self.not_ready(f"service {authority!r}", name, timeout_s)
        return found

    def meet(self, target: TargetView, head: RequestHead, timeout_s: float | None = None) -> TargetView:
        """Have what a request needs subscribed to, and wait until there is an answer, for a bounded time.

        Args:
            target: As `target` returned it.
            head: The request.
            timeout_s: What the caller has left; None: no limit of its own.

        Returns:
            The target with it; or the target as it is then, whose routes answer the request with what they have.
        """
        wait_s = self._begin_to_meet(target, head, timeout_s)
        if wait_s is None:
            return target
        try:
            return self._waiters.wait(lambda: self._met(target.name, head), wait_s, self.clock) or self._now(target)
        finally:
            self._parked.pop()

    async def meet_async(self, target: TargetView, head: RequestHead, timeout_s: float | None = None) -> TargetView:
        """As `meet`, without blocking the event loop."""
        wait_s = self._begin_to_meet(target, head, timeout_s)
        if wait_s is None:
            return target
        try:
            found = await self._waiters.wait_async(lambda: self._met(target.name, head), wait_s, self.clock)
            return found or self._now(target)
        finally:
            self._parked.pop()

    def wait_ready(self, *services: str, timeout_s: float | None = None) -> None:
        """Subscribe to services and wait until all of them are usable, so that no first call has to.

        Services that do not exist yet are waited for too: processes of a mesh start in any order.

        Args:
            *services: As written in URLs and targets, e.g. `checkout` or `checkout:8080`. None given: all that were
                used so far.
            timeout_s: For all of them together; None: the mesh's default.

        Raises:
            RoutingError: The time is over, and one does not exist.
            UnavailableError: One was not there in time, or cannot be used.
        """
        limit_s = self._first_use_timeout_s if timeout_s is None else timeout_s
        deadline = self.clock() + limit_s
        for service in services:
            self._subscribe(service, None, keep=True)
        names = [self._name(service) for service in services] or sorted(self._running().targets)
        for name in names:
            remaining_s = max(0.0, deadline - self.clock())
            found = self._waiters.wait(lambda name=name: self._ready(name), remaining_s, self.clock)  # type: ignore[misc]
            if found is None and self._usable(name) is None:
                raise self.not_ready(f"target {name!r}", name, limit_s)

    def emit(self, event: Event) -> None:
        """Hand an event to the hooks; never raises."""
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:
                if id(hook) not in self._bad_hooks:
                    self._bad_hooks.add(id(hook))
                    _LOG.exception("hook %r failed; further failures of it are not reported", hook)

    def add_hook(self, hook: Hook) -> None:
        """Have a function called with every event. It runs where the event happens, so it must be quick."""
        with self._lock:
            self._hooks = (*self._hooks, hook)

    @property
    def _meter(self) -> Meter | None:
        """The only hook, if it is one that needs no events of calls; None: make them."""
        hooks = self._hooks
        known, meter = self._known_meter
        if hooks is not known:
            only = hooks[0] if len(hooks) == 1 else None
            meter = only if isinstance(only, Meter) else None
            self._known_meter = (hooks, meter)
        return meter

    def _quiet(self, target: TargetView) -> tuple[View, Meter] | None:
        """Return the view and the meter for a call to a target of which only a meter is to be told.

        Returns:
            None: the target is none of the current view, somebody takes spans or events, or the mesh is closed.
        """
        view, meter = self._view, self._known_meter[1]
        if (
            meter is None
            or self._known_meter[0] is not self._hooks
            or self._is_dormant
            or view.targets.get(target.name) is not target
            or not self.tracing.is_idle()
        ):
            return None
        return view, meter

    # For the control thread.

    def publish(self, snapshot: Snapshot) -> None:
        """Take a snapshot into use. Called by the control thread."""
        now = self.clock()
        self._view = build_view(
            snapshot,
            self._view,
            now=now,
            wall_offset_s=clocks.wall() - now,
            rng=self.rng,
            pause=self._pause,
            safety=self._safety,
        )
        self._health.step()

    def tick(self, now: float) -> None:
        """Do periodic work. Called by the control thread."""
        for event in self._view.sweep(now, self.rng):
            self.emit(event)

    def changed(self) -> None:
        """Have everyone who waits look again. Called by the control thread."""
        self._waiters.notify()

    # Fork.

    def before_fork(self) -> None:
        """Stand still. Called by the fork hooks."""
        self._health.close()
        if self._control is not None:
            self._control.before_fork()

    def after_fork_in_parent(self) -> None:
        """Go on. Called by the fork hooks."""
        if self._control is not None:
            self._control.after_fork_in_parent()
        if not self._is_dormant:
            self._health.step()

    def after_fork_in_child(self) -> None:
        """Start again on first use. Called by the fork hooks."""
        self._lock = threading.Lock()
        self._waiters = Waiters()
        self._health.after_fork_in_child()
        self._parked = []
        self._is_dormant = True
        self._needs_rebuild = True
        if self._control is not None:
            self._control.after_fork_in_child()

    # Parts of the above.

    def _wake(self) -> None:
        if self._is_closed:
            raise UnavailableError("the mesh is closed")
        self.start()

    def _running(self) -> ControlPlane:
        if self._is_dormant:
            self._wake()
        if self._control is None:
            raise UnavailableError("the mesh is disabled (MESHLIB_DISABLE=1): it knows no services")
        return self._control

    def _name(self, authority: str) -> str:
        # gRPC targets with an authority of their own (`xds://authority/name`) come as they are.
        xds_authority, _, path = authority.removeprefix("xds://").partition("/")
        if path and authority.startswith("xds://"):
            name = listener_name(self.bootstrap, path, xds_authority=xds_authority)
        else:
            name = listener_name(self.bootstrap, authority)
        self._names[authority] = name
        if len(self._names) > MAX_NAMES:
            self._names = {authority: name}
        return name

    def _begin_to_meet(self, target: TargetView, head: RequestHead, timeout_s: float | None) -> float | None:
        """Ask for what a request needs; returns how long it may wait, or None if it need not or must not."""
        unmet, wished = target.unmet(head), target.wished(head)
        if unmet or wished:
            self._running().demand(target.name, unmet | wished)
        if not unmet:
            return None
        # Adding and taking away are one step each; a few more than the limit would do no harm.
        if len(self._parked) >= MAX_PARKED:
            return None
        self._parked.append(None)
        asked_s = target.config.listener.on_demand_timeout_s
        limits = (
            self._first_use_timeout_s,
            ON_DEMAND_S if asked_s is None else asked_s,
            timeout_s,
            remaining_s(self.clock()),
        )
        return min(limit for limit in limits if limit is not None)

    def _met(self, name: str, head: RequestHead) -> TargetView | None:
        """Return the target if it has an answer to everything that a request needs; else ask for the rest."""
        found = self._usable(name)
        if found is None:
            return None
        unmet = found.unmet(head)
        if unmet:
            # What came leads to more: a scope to routes that have the cluster named by a header.
            self._running().demand(name, unmet)
            return None
        return found

    def _now(self, target: TargetView) -> TargetView:
        return self._usable(target.name) or target

    def _ready(self, name: str) -> TargetView | None:
        found = self._view.targets.get(name)
        return None if isinstance(found, ConfigFault) or found is None or found.is_warming else found

    def _usable(self, name: str) -> TargetView | None:
        found = self._view.targets.get(name)
        if isinstance(found, ConfigFault):
            if found.is_absent:
                raise RoutingError(found.message, flag="NR", resource=name)
            raise UnavailableError(found.message, resource=name)
        return None if found is not None and found.warming and found.is_warming else found

    def _subscribe(self, authority: str, timeout_s: float | None, *, keep: bool = False) -> tuple[str, float]:
        control = self._running()
        name = self._name(authority)
        control.watch(targets=frozenset((name,)), keep=keep)
        limit_s = self._first_use_timeout_s if timeout_s is None else timeout_s
        inbound_s = remaining_s(self.clock())
        return name, limit_s if inbound_s is None else min(limit_s, inbound_s)

    def not_ready(self, what: str, name: str, timeout_s: float) -> MeshError:
        """Return the error for something that was waited for in vain: what is missing, and how the server is."""
        control = self._control
        if self._is_closed or control is None:
            return UnavailableError("the mesh is closed", resource=name)
        missing = ", ".join(control.waiting.get(name, (f"LDS resource {name}",)))
        is_late = remaining_s(self.clock()) == 0.0  # of the request that is being served meanwhile
        kind = DeadlineExceeded if is_late else UnavailableError
        return kind(
            f"{what} is not ready after {timeout_s:g} s: waiting for {missing}; {control.describe(self.clock())}",
            resource=name,
        )

    def _loaded(self) -> Bootstrap:
        """Return the bootstrap; the lock is held."""
        if self._bootstrap is None:
            assert self._path is not None
            try:
                text = read_text(str(self._path))
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise BootstrapError(f"bootstrap {self._path}: cannot be read: {reason}") from error
            self._bootstrap = parse_bootstrap(text, origin=str(self._path))
        return self._bootstrap

    def _make_control(self, bootstrap: Bootstrap) -> ControlPlane:
        store = None
        if self._state_dir is not None:
            store = StateStore(self._state_dir, bootstrap.node, bootstrap.servers[0])
        return ControlPlane(
            bootstrap,
            self,
            clock=self.clock,
            wall_clock=clocks.wall,
            rng=self.rng,
            emit=self.emit,
            store=store,
            open_stream=self._open_stream,
            loads=lambda: self._view.loads,
            view=lambda: self._view,
            pace=self._pace,
        )


def read_text(path: str) -> str:
    return Path(path).read_text("utf-8")


def _state_directory(given: "str | os.PathLike[str] | None") -> Path | None:
    """Return where the copy goes; None: nowhere."""
    if given is None:
        given = os.environ.get("MESHLIB_STATE_DIR")
    if given is None:
        return default_directory()
    return Path(given) if os.fspath(given) else None
