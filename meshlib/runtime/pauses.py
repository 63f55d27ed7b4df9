"""How long computations of the control thread let requests go first."""

import time
from typing import Final

from meshlib.runtime.pace import Pace

__all__ = ["TurnTaking"]

SLICE_S: Final = 0.0005
"""Computing at a stretch. The interpreter itself takes turns every 5 ms only, and a request may need several turns."""
REST_S: Final = 0.00005
"""Long enough for a thread that waits to wake up and take its turn."""


GENTLE_SLICE_S: Final = 0.0001
GENTLE_REST_S: Final = 0.001
"""Where one update follows the other, and others run: a tenth of the time, in pieces that a request hardly notices, and so far
apart that most requests meet one at most. Each piece makes some request wait for its turn and wake up again, which takes as
long as a short piece itself: with 0.03 ms the median and the 99th percentile of calls were worse, with 0.2 ms the 90th."""
COMPANY: Final = 0.02
"""The part of the time for which other threads of the process have run: below it nobody is there to be disturbed, and pieces
as short as these only cost: falling asleep and waking up takes a third of a gentle piece."""


class TurnTaking:
    """A `Pause` that rests a moment when half a millisecond has been computed, or less. Used by one thread.

    Attributes:
        pace: Says whether there is a hurry.
    """

    __slots__ = ("_asked_at", "_others_s", "_until", "pace")

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._until = self._asked_at = self._others_s = 0.0

    def __call__(self) -> None:
        # Not the mesh's clock: this is about the interpreter, and a clock moved by hand would never rest.
        now = time.perf_counter()
        if now < self._until:
            return
        if self.pace.is_pressed and self._has_company(now):
            time.sleep(max(REST_S, GENTLE_REST_S * self.pace.patience))
            rested_at = time.perf_counter()
            self.pace.wait_patiently(rested_at - now)
            self._until = rested_at + GENTLE_SLICE_S
        else:
            time.sleep(REST_S)
            self._until = time.perf_counter() + SLICE_S

    def _has_company(self, now: float) -> bool:
        """Whether other threads of the process have run since this was asked last."""
        others_s = time.process_time() - time.thread_time()
        ran_s, self._others_s = others_s - self._others_s, others_s
        asked_at, self._asked_at = self._asked_at, now
        return ran_s > COMPANY * (now - asked_at)
