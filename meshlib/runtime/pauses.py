"""How long computations of the control thread let requests go first."""

import time
from typing import Final

__all__ = ["TurnTaking"]

SLICE_S: Final = 0.0005
"""Computing at a stretch. The interpreter itself takes turns every 5 ms only, and a request may need several turns."""
REST_S: Final = 0.00005
"""Long enough for a thread that waits to wake up and take its turn."""


class TurnTaking:
    """A `Pause` that rests a moment when half a millisecond has been computed. Used by one thread."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = 0.0

    def __call__(self) -> None:
        # Not the mesh's clock: this is about the interpreter, and a clock moved by hand would never rest.
        if time.perf_counter() >= self._until:
            time.sleep(REST_S)
            self._until = time.perf_counter() + SLICE_S
