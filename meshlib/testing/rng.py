"""Chance that can be repeated, and chance that is not."""

from collections.abc import Iterable, Iterator
from random import Random

__all__ = ["FixedRng", "SeededRng"]


class SeededRng(Random):
    """`random.Random` that shows its seed.

    Attributes:
        seed_value: Give it back to have the same numbers again.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.seed_value = seed

    def __repr__(self) -> str:
        return f"SeededRng({self.seed_value})"


class FixedRng:
    """An `Rng` that gives the numbers it was told, then the last of them for ever.

    `getrandbits(k)` gives the same fraction of its range, so `FixedRng(0.0)` draws the least of everything.
    """

    def __init__(self, *values: float) -> None:
        """Make it.

        Args:
            values: In [0.0, 1.0), at least one.
        """
        if not values or not all(0.0 <= value < 1.0 for value in values):
            raise ValueError(f"values must be in [0.0, 1.0), and at least one: {values}")
        self._values = _then_last(values)

    def random(self) -> float:
        """Return the next number."""
        return next(self._values)

    def getrandbits(self, k: int, /) -> int:
        """Return the next number's share of `2 ** k`."""
        return int(next(self._values) * (1 << k))


def _then_last(values: Iterable[float]) -> Iterator[float]:
    value = 0.0
    for value in values:
        yield value
    while True:
        yield value
