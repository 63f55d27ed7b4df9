"""The real clocks, and real chance. Everything else takes them as arguments."""

import random
import time

from meshlib.ports import Clock, Rng, WallClock

__all__ = ["monotonic", "system_rng", "wall"]

monotonic: Clock = time.monotonic
wall: WallClock = time.time  # noqa: TID251 - here is where the injected wall clock comes from


def system_rng() -> Rng:
    """Return a generator of its own, seeded by the system."""
    return random.Random()
