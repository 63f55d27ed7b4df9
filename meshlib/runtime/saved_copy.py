"""When the copy of the resources on disk is read and written."""

from collections.abc import Callable
from typing import Final

from meshlib.ports import Clock, Pause, WallClock, no_pause
from meshlib.runtime.scheduler import Scheduler, Timer
from meshlib.runtime.state_store import StateError, StateStore
from meshlib.xds.cache import ResourceCache

__all__ = ["SavedCopy"]

SAVE_AFTER_S: Final = 1.0
"""Changes come in bursts; the copy is written once for each."""
SHARE: Final = 0.02
"""Of the time may be spent on it: what is large and changes all the time is written less often."""
LONGEST_S: Final = 60.0


class SavedCopy:
    """Used by the control thread alone."""

    def __init__(
        self,
        store: StateStore | None,
        wall_clock: WallClock,
        problem: Callable[[str, str], None],
        *,
        clock: Clock,
        pause: Pause = no_pause,
    ) -> None:
        """Make it.

        Args:
            store: None: there is no copy.
            problem: Takes the place `state` and what does not work there; an empty text: it works.
            clock: Monotonic seconds.
            pause: Called now and then while it is written.
        """
        self._store = store
        self._wall_clock = wall_clock
        self._problem = problem
        self._clock = clock
        self._pause = pause
        self._after_s = SAVE_AFTER_S
        self._has_loaded = False
        self._timer: Timer | None = None

    def load(self, cache: ResourceCache) -> None:
        """Read it into the cache, once."""
        if self._store is None or self._has_loaded:
            return
        self._has_loaded = True
        try:
            cache.add_spares(self._store.load(self._wall_clock()))
        except StateError as error:
            self._problem("state", str(error))

    def save_soon(self, scheduler: Scheduler, cache: ResourceCache) -> None:
        """Have it written in a moment."""
        if self._store is not None and self._timer is None:
            self._timer = scheduler.later(self._after_s, lambda: self.save(cache))

    def forget_timer(self) -> None:
        """The scheduler is another one now."""
        self._timer = None

    def save(self, cache: ResourceCache) -> None:
        """Write it if something changed since it was written."""
        timer, self._timer = self._timer, None
        if timer is None or self._store is None:
            return
        timer.cancel()
        spares = cache.dump(self._wall_clock(), self._pause)
        if not any(entry.value is not None and not entry.is_spare for entry in cache.entries()):
            return
        began = self._clock()
        try:
            self._store.save(spares, self._pause)
        except StateError as error:
            self._problem("state", str(error))
        else:
            self._problem("state", "")
        self._after_s = min(LONGEST_S, max(SAVE_AFTER_S, (self._clock() - began) / SHARE))
