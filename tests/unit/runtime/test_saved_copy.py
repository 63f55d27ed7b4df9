from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meshlib.ports import Pause, no_pause
from meshlib.runtime.saved_copy import LONGEST_S, SAVE_AFTER_S, SHARE, SavedCopy
from meshlib.runtime.scheduler import Scheduler
from meshlib.testing import FakeClock
from meshlib.xds.cache import ResourceCache, Spare
from meshlib.xds.resources import EDS


class SlowStore:
    """Attributes:
    saved: When copies were written.
    """

    path = Path()

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self.takes_s = 0.0
        self.saved: list[float] = []

    def save(self, spares: Sequence[Spare], pause: Pause = no_pause) -> None:
        pause()
        self.saved.append(self._clock())
        self._clock.advance(self.takes_s)


def test_what_takes_long_is_written_less_often() -> None:
    clock = FakeClock()
    store, scheduler, cache, pauses = SlowStore(clock), Scheduler(clock), ResourceCache(), []
    any_store: Any = store
    copy = SavedCopy(any_store, clock, lambda place, text: None, clock=clock, pause=lambda: pauses.append(1))
    entry = cache.add(EDS, "a")
    entry.value, entry.body = any_store, b"x"

    def write() -> float:
        """Let it be written once; returns how long that took to come."""
        copy.save_soon(scheduler, cache)
        start, count = clock(), len(store.saved)
        while len(store.saved) == count:
            clock.advance(0.25)
            scheduler.run(block=False)
        return store.saved[-1] - start

    assert SAVE_AFTER_S == write()
    store.takes_s = 0.125
    assert SAVE_AFTER_S == write()
    assert 0.125 / SHARE == write()
    store.takes_s = 100.0
    write()
    assert LONGEST_S == write()
    store.takes_s = 0.0
    write()
    assert SAVE_AFTER_S == write()
    assert len(pauses) == len(store.saved)
