"""Seams to the outside world, as protocols: what the pure parts may ask for and the shells provide."""

from threading import Lock
from typing import Protocol

__all__ = ["Clock", "Lock", "Pause", "Rng", "WallClock", "no_pause"]
# Lock is re-exported here so that the decision folders need not import threading: they guard a few assignments with
# it and nothing else (never I/O, a callback or another lock).


class Clock(Protocol):
    """Monotonic seconds."""

    def __call__(self) -> float: ...


class WallClock(Protocol):
    """Seconds since the epoch; only for what people read and for certificate lifetimes."""

    def __call__(self) -> float: ...


class Pause(Protocol):
    """What a long computation calls often, with no lock held, so that other threads get their turn meanwhile."""

    def __call__(self) -> None: ...


def no_pause() -> None:
    """Go on at once."""


class Rng(Protocol):
    """The part of `random.Random` that decisions use."""

    def random(self) -> float:
        """Return a float in [0.0, 1.0)."""
        ...

    def getrandbits(self, k: int, /) -> int:
        """Return an integer of `k` random bits."""
        ...
