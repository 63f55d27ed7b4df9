"""The static stride scheduler: turns by weight without a heap or a lock.

Weights are scaled so that the greatest is 65535. A sequence number names a host and a generation; the host is passed
over in so many of its generations as its weight falls short of the greatest. Over 65535 generations each host has
exactly as many turns as its scaled weight says.

Source: gRFC A58; C-core's `static_stride_scheduler`.
"""

from collections.abc import Callable, Sequence

__all__ = ["MAX_RATIO", "MIN_RATIO", "StaticStride"]

FULL = 65535
OFFSET = 32767
"""Half of `FULL`: puts the hosts' generations out of step with each other."""
TINY = 1e-290
MAX_RATIO = 10.0
MIN_RATIO = 0.01
"""C-core's: no host's weight is above ten times the mean, or below one hundredth of it."""


class StaticStride:
    """Draws indices; the weights are fixed, and the sequence is somebody else's, who may go on with it elsewhere."""

    __slots__ = ("_next", "_size", "weights")

    def __init__(self, weights: Sequence[float], sequence: Callable[[], int], *, is_clamped: bool = False) -> None:
        """Make the scheduler.

        Args:
            weights: Not negative, at least one more than 0; 0 stands for the mean of the others.
            sequence: Returns the next whole number; any thread may ask.
            is_clamped: Keep weights near the mean, as C-core does.
        """
        if max(weights) < TINY:
            # Their reciprocals would be no numbers any more; only the ratios count.
            weights = [weight / TINY for weight in weights]
        known = [weight for weight in weights if weight > 0]
        mean = sum(known) / len(known)
        top = max(known)
        least = 1
        if is_clamped:
            top = min(top, MAX_RATIO * mean)
        scale = FULL / top
        filled = round(scale * mean)
        if is_clamped:
            least = max(1, round(filled * MIN_RATIO))
        self.weights = tuple(
            max(least, round(min(weight, top) * scale)) if weight > 0 else filled for weight in weights
        )
        self._size = len(self.weights)
        self._next = sequence

    def next(self) -> int:
        """Return the index of the entry whose turn it is."""
        weights, size = self.weights, self._size
        while True:
            number = self._next() & 0xFFFFFFFF
            index = number % size
            weight = weights[index]
            # In how many of its generations an entry is passed over: `FULL - weight` of `FULL`.
            if (weight * (number // size) + index * OFFSET) % FULL >= FULL - weight:
                return index
