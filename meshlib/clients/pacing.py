"""Bodies that come no faster than an injected fault lets them.

As Envoy does it: the body is let through in slices, one in every sixteenth of a second, the first at once.
"""

from typing import Final

__all__ = ["Pacer"]

SLICES_PER_S: Final = 16


class Pacer:
    """Says how long to wait before each slice of a body."""

    __slots__ = ("_next_at", "size")

    def __init__(self, bytes_per_s: int, now: float) -> None:
        """Begin a body.

        Args:
            bytes_per_s: Above 0.
        """
        self.size: Final = max(1, bytes_per_s // SLICES_PER_S)
        self._next_at = now

    def slices(self, part: bytes) -> list[bytes]:
        """Cut a part of the body into slices."""
        size = self.size
        return [part[start : start + size] for start in range(0, len(part), size)]

    def wait_s(self, part: bytes, now: float) -> float:
        """Return how long to wait before a slice, and count it; a short one takes a part of the time."""
        wait_s = max(0.0, self._next_at - now)
        # What was not used for longer than a second is lost.
        begin = max(self._next_at, now - 1.0)
        self._next_at = begin + len(part) / (self.size * SLICES_PER_S)
        return wait_s
