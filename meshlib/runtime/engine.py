"""What a `Mesh` does of itself: starting and stopping, on its own, around forks, and publishing views."""

import logging
import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from opentelemetry.trace import TracerProvider

from meshlib.errors import BootstrapError
from meshlib.events import Meter
from meshlib.model.retry import DEFAULT_SAFETY, RetryBudget, Safety
from meshlib.model.snapshot import Snapshot
from meshlib.options import check_callable, check_number, check_type
from meshlib.ports import Clock, Rng
from meshlib.runtime import clock as clocks
from meshlib.runtime import fork
from meshlib.runtime.asking import FIRST_USE_TIMEOUT_S, TargetDesk
from meshlib.runtime.context import HANDED_ON, names_to_hand_on
from meshlib.runtime.control import ControlPlane
from meshlib.runtime.exit import close_at_exit
from meshlib.runtime.health_checks import HealthCheckRunner
from meshlib.runtime.hooks import EventHooks
from meshlib.runtime.pace import Pace
from meshlib.runtime.pauses import TurnTaking
from meshlib.runtime.server_link import OpenStream
from meshlib.runtime.state_store import StateStore, default_directory
from meshlib.runtime.tidying import TidyingUp
from meshlib.runtime.tracing import Tracing
from meshlib.runtime.wait import Waiters
from meshlib.view import TargetView, View, build_view
from meshlib.xds.bootstrap import Bootstrap
from meshlib.xds.decode_bootstrap import parse_bootstrap

__all__ = ["MeshEngine", "read_text"]

_LOG = logging.getLogger(__name__)


class MeshEngine(TargetDesk, EventHooks):
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
        check_type("state_dir", state_dir, str, os.PathLike, none=True)
        check_type("guard_unsafe", guard_unsafe, bool)
        check_type("retry_budget", retry_budget, RetryBudget, none=True)
        check_type("one_retry_layer", one_retry_layer, bool)
        check_number("first_use_timeout_s", first_use_timeout_s, least=0)
        check_callable("clock", clock)
        check_callable("rng.random", getattr(rng, "random", None), none=rng is None)
        check_callable("open_stream", open_stream, none=True)
        check_callable(
            "tracer_provider.get_tracer", getattr(tracer_provider, "get_tracer", None), none=tracer_provider is None
        )
        TargetDesk.__init__(self, clock, first_use_timeout_s)
        EventHooks.__init__(self)
        # Fixed at creation.
        self.rng = rng if rng is not None else clocks.system_rng()
        self.guard_unsafe = guard_unsafe
        self.handed_on = HANDED_ON | names_to_hand_on(hand_on)
        self.is_disabled = os.environ.get("MESHLIB_DISABLE", "") == "1"
        self.tracing = Tracing(tracer_provider)
        self._safety = Safety(retry_budget, one_retry_layer)
        self._pause = TurnTaking(Pace())
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
            check_type("bootstrap", bootstrap, Bootstrap, Mapping, str, os.PathLike)
            self._path = Path(bootstrap)
        self._needs_rebuild = False
        self._tidying_up = TidyingUp()
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
                self._view = build_view(
                    self._view.snapshot,
                    None,
                    now=now,
                    wall_offset_s=clocks.wall() - now,
                    hostname=clocks.hostname(),
                    rng=self.rng,
                    safety=self._safety,
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

    def _express(self, target: TargetView) -> tuple[View, Meter | None] | None:
        """Return the view for a call to a target that needs no `Call`, and who counts it; None: events are to be made.

        Returns:
            None: the target is none of the current view, or the mesh is closed.
        """
        view, known = self._view, self._known_meter
        if self._is_dormant or view.targets.get(target.name) is not target:
            return None
        return view, known[1] if known[0] is self._hooks else self._meter

    # For the control thread.

    def publish(self, snapshot: Snapshot) -> None:
        """Take a snapshot into use. Called by the control thread."""
        now = self.clock()
        self._view = build_view(
            snapshot,
            self._view,
            now=now,
            wall_offset_s=clocks.wall() - now,
            hostname=clocks.hostname(),
            rng=self.rng,
            pause=self._pause,
            safety=self._safety,
        )
        self._health.step()

    def tick(self, now: float) -> None:
        """Do periodic work. Called by the control thread."""
        view = self._view
        for event in view.sweep(now, self.rng):
            self.emit(event)
        view.keep_time(clocks.wall() - now)
        self._tidying_up.run(lambda: self._is_closed)

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
        self._hooks_lock = threading.Lock()
        self._tidying_up.after_fork_in_child()
        self._waiters = Waiters()
        self._health.after_fork_in_child()
        self._parked = []
        self._is_dormant = True
        self._needs_rebuild = True
        if self._control is not None:
            self._control.after_fork_in_child()

    # Parts of the above.

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
            pause=self._pause,
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
