"""Threads for attempts that run beside each other, of the blocking clients.

Work begins at once or not at all: a hedge that waits for a thread comes too late. Threads end when they have had
nothing to do for a while.
"""

import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final

__all__ = ["MAX_THREADS", "HedgeThreads"]

MAX_THREADS: Final = 64
"""Per transport. Calls beyond them are made without hedging, in the caller's own thread."""
IDLE_S: Final = 5.0


class HedgeThreads:
    """Daemon threads, made when they are needed."""

    def __init__(self, limit: int = MAX_THREADS) -> None:
        self._limit = limit
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        # Guarded by the lock:
        self._lock = threading.Lock()
        self._threads = 0
        self._free = 0  # waiting for work that nobody has been promised
        self._is_closed = False
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def submit(self, work: Callable[[], None]) -> bool:
        """Have work done, which must not raise; False: all threads are busy."""
        if self._pid != os.getpid():
            self._begin()  # threads do not outlive a fork
        with self._lock:
            if self._is_closed:
                return False
            if self._free:
                self._free -= 1
            elif self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._run, name="meshlib-hedge", daemon=True).start()
            else:
                return False
        self._queue.put(work)
        return True

    def _run(self) -> None:
        while True:
            try:
                work = self._queue.get(timeout=IDLE_S)
            except Empty:
                with self._lock:
                    if not self._free:
                        continue  # what we were promised is being put in at this moment
                    self._free -= 1
                    self._threads -= 1
                return
            if work is None:
                return
            try:
                work()
            finally:
                del work
                with self._lock:
                    self._free += 1

    def close(self) -> None:
        """Take no more work; what is under way goes on."""
        with self._lock:
            self._is_closed = True
            threads, self._threads, self._free = self._threads, 0, 0
        for _ in range(threads):
            self._queue.put(None)
