"""Who is told what happens in the mesh, and that a listener which fails harms nobody."""

import logging
import threading

from meshlib.events import Event, Hook, Meter
from meshlib.options import check_callable

__all__ = ["EventHooks"]

_LOG = logging.getLogger(__name__)


class EventHooks:
    """The part of a mesh that tells of events."""

    def __init__(self) -> None:
        # Guarded by the lock.
        self._hooks_lock = threading.Lock()
        self._hooks: tuple[Hook, ...] = ()
        self._bad_hooks: set[int] = set()
        # One assignment each, read by everyone.
        self._known_meter: tuple[tuple[Hook, ...], Meter | None] = ((), None)

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
        check_callable("hook", hook)
        with self._hooks_lock:
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
