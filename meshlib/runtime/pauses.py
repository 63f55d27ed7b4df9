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
GENTLE_REST_S: Final = 0.0004
"""Where one update follows the other: a fifth of the time, in pieces that a request hardly notices. Each piece makes some
request wait for its turn and wake up again, which takes as long as a short piece itself: with 0.03 ms the median and the
99th percentile of calls were worse, with 0.2 ms and more rest the median was better and the 90th percentile worse."""


class TurnTaking:
    """A `Pause` that rests a moment when half a millisecond has been computed. Used by one thread."""

    __slots__ = ("_pace", "_until")

    def __init__(self, pace: Pace) -> None:
        """Make it.

        Args:
            pace: Says whether there is a hurry.
        """
        self._pace = pace
        self._until = 0.0

    def __call__(self) -> None:
        # Not the mesh's clock: this is about the interpreter, and a clock moved by hand would never rest.
        if time.perf_counter() >= self._until:
            is_gentle = self._pace.is_pressed
            time.sleep(GENTLE_REST_S if is_gentle else REST_S)
            self._until = time.perf_counter() + (GENTLE_SLICE_S if is_gentle else SLICE_S)
