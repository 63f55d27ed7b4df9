"""The real clocks, real chance, and the name of this machine. Everything else takes them as arguments."""

import random
import socket
import time

from meshlib.ports import Clock, Rng, WallClock

__all__ = ["hostname", "monotonic", "system_rng", "wall"]

monotonic: Clock = time.monotonic
wall: WallClock = time.time  # noqa: TID251 - here is where the injected wall clock comes from


def hostname() -> str:
    """Return the name of this machine; it may change while it runs."""
    return socket.gethostname()


def system_rng() -> Rng:
    """Return a generator of its own, seeded by the system."""
    return random.Random()
