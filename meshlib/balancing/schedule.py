"""Earliest deadline first, the order in which Envoy takes turns by weight.

Each entry's deadline is one period, `1 / weight`, after its last turn; the earliest goes next, and of equals the one
that was put back earlier. Over one cycle every entry gets exactly its share, well spread.

With fixed weights the order repeats, so it is worked out once and a pick is one step in a tuple, without a lock. Only
when the cycle would be long (large weights without a common divisor) a heap under a lock does the same step by step.
"""

from collections.abc import Sequence
from functools import lru_cache
from heapq import heapify, heapreplace
from itertools import count
from math import gcd
from typing import Final

from meshlib.ports import Lock, Rng

__all__ = ["MAX_CYCLE", "HeapSchedule", "Schedule", "TableSchedule", "weighted_schedule"]

# About 3 ms to work out, 32 KiB to keep, per list of hosts and only when it changes.
MAX_CYCLE = 4096
# Of these a thousand are remembered, 1 MB at most.
MAX_REMEMBERED = 128


class TableSchedule:
    """The order of one whole cycle; starts at a random place, as Envoy does, so that clients do not move in step."""

    __slots__ = ("_order", "_size", "_turn")

    def __init__(self, order: Sequence[int]) -> None:
        self._order = tuple(order)
        self._size = len(self._order)
        self._turn: count[int] | None = None

    def next(self, rng: Rng) -> int:
        """Return the index of the entry whose turn it is."""
        turn = self._turn
        if turn is None:
            # Two threads may both be first: each then has a random start, and one of the counters stays.
            turn = self._turn = count(int(rng.random() * self._size))
        return self._order[next(turn) % self._size]


class HeapSchedule:
    """The same order, step by step."""

    __slots__ = ("_heap", "_lock", "_started", "_weights")

    def __init__(self, weights: Sequence[int]) -> None:
        self._weights = tuple(weights)
        # (deadline, deadline before it, index, turn): of equal deadlines the one put back earlier is first. Deadlines
        # are divided, not added up, so that no rounding error grows with time.
        self._heap = [(1 / weight, 0.0, index, 1) for index, weight in enumerate(self._weights) if weight > 0]
        heapify(self._heap)
        self._started = False
        self._lock = Lock()

    def _advance(self) -> int:
        deadline, _, index, turn = self._heap[0]
        heapreplace(self._heap, ((turn + 1) / self._weights[index], deadline, index, turn + 1))
        return index

    def next(self, rng: Rng) -> int:
        """Return the index of the entry whose turn it is."""
        with self._lock:
            if not self._started:
                self._started = True
                for _ in range(int(rng.random() * min(len(self._heap) * 2, 256))):
                    self._advance()
            return self._advance()


Schedule = TableSchedule | HeapSchedule


def weighted_schedule(weights: Sequence[int]) -> Schedule:
    """Make the order for a list of weights.

    Args:
        weights: Not negative, at least one positive; an entry with 0 never has its turn.
    """
    divisor = gcd(*weights)
    small = tuple([weight // divisor for weight in weights])
    length = sum(small)
    if length > MAX_CYCLE:
        return HeapSchedule(small)
    return TableSchedule(_usual_cycle(small) if length <= MAX_REMEMBERED else _cycle(small))


def _cycle(weights: tuple[int, ...]) -> tuple[int, ...]:
    """Return the entries in the order of their turns."""
    # Turn k of an entry is due at k / weight. Division rounds equal fractions to equal floats, so ties stay ties.
    turns = sorted(
        (k / weight, (k - 1) / weight, index) for index, weight in enumerate(weights) for k in range(1, weight + 1)
    )
    return tuple([index for _, _, index in turns])


_usual_cycle: Final = lru_cache(maxsize=1024)(_cycle)
"""Many clusters have the same few weights."""
