"""The processes that serve one address together, and so share one lease.

A prefork server's workers come and go while the address stays: the lease belongs to all of them. They know of each other
through a page of shared memory, made before the first fork. A berth holds the process id of who works there, so one who
was killed counts no more, and whether that one renews the lease.
"""

import mmap
import os
import uuid
from contextlib import suppress
from typing import Final

__all__ = ["Crew"]

BERTHS: Final = 1024
"""gunicorn's hard limit is its file descriptors; berths are used again by later workers."""
_FREE: Final = 0
_RESERVED: Final = -1
# Else the process id, times two, plus one for who renews the lease.


class Crew:
    """Who works at one address. Made in the parent process; everything else happens in the children too."""

    def __init__(self) -> None:
        self._id = uuid.uuid4().hex[:12]
        self._berths = memoryview(mmap.mmap(-1, BERTHS * 8)).cast("q")

    def lease_id(self, service: str) -> str:
        """Return the name of the lease; the same in all processes."""
        return f"{service}-{self._id}"

    def reserve(self, number: int) -> int:
        """Count a worker that is about to be forked; returns its berth.

        Args:
            number: Ever higher, from 0.
        """
        berth = number % BERTHS
        self._berths[berth] = _RESERVED
        return berth

    def board(self, berth: int, *, renews: bool = False) -> None:
        """Take the berth reserved for this process, or say anew whether it renews the lease."""
        self._berths[berth] = os.getpid() * 2 + renews

    def leave(self, berth: int) -> bool:
        """Give up a berth; returns whether nobody is left. Of those who leave together at least one is told so."""
        if self._berths[berth] // 2 == os.getpid():
            self._berths[berth] = _FREE
        return self.is_empty

    @property
    def is_empty(self) -> bool:
        """Whether nobody works here or is about to."""
        return not any(map(_is_taken, self._berths))

    def is_alone(self, berth: int) -> bool:
        """Whether nobody but who has this berth works here or is about to."""
        return not any(_is_taken(value) for number, value in enumerate(self._berths) if number != berth)

    @property
    def is_renewed(self) -> bool:
        """Whether somebody renews the lease."""
        return any(value > 0 and value % 2 and _is_taken(value) for value in self._berths)


def _is_taken(value: int) -> bool:
    if value <= 0:
        return value == _RESERVED
    with suppress(ProcessLookupError, PermissionError):
        os.kill(value // 2, 0)
        return True
    return False
