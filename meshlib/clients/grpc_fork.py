"""Forks that are under way: calls that begin meanwhile make no channel."""

import threading

from meshlib.ports import Lock

__all__ = ["Forks"]

WAIT_S = 5.0
"""A fork takes milliseconds; what should go wrong in it must not stop calls for good."""


class Forks:
    """Counts the threads that are about to fork: several may be, and the first that is done must not speak for all."""

    def __init__(self) -> None:
        # Guarded by the lock:
        self._lock = Lock()
        self._count = 0
        self._none = threading.Event()
        self._none.set()

    @property
    def are_under_way(self) -> bool:
        """Whether a thread is about to fork."""
        return not self._none.is_set()

    def begin(self) -> None:
        """A thread is about to fork; `end` must follow, or `forget` in the child."""
        with self._lock:
            self._count += 1
            self._none.clear()

    def end(self) -> None:
        """A thread has forked, or could not."""
        with self._lock:
            self._count = max(self._count - 1, 0)
            if not self._count:
                self._none.set()

    def wait_over(self) -> bool:
        """Wait until no thread is about to fork; returns False when that takes too long."""
        return self._none.wait(WAIT_S)

    def forget(self) -> None:
        """After a fork, in the child: there is one thread, and it has forked."""
        self.__init__()  # type: ignore[misc]  # the lock may be held by a thread that is not here
