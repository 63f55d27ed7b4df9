"""Waiting for the configuration to be so, for threads and for event loops, without a thread per waiter."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from meshlib.ports import Clock

__all__ = ["Waiters"]

T = TypeVar("T")


class Waiters:
    """Who wants to hear that something changed. `notify` costs one call per waiter and never blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiters: set[Callable[[], None]] = set()

    def notify(self) -> None:
        """Something changed: every waiter looks again."""
        with self._lock:
            waiters = tuple(self._waiters)
        for wake in waiters:
            wake()

    def wait(self, look: Callable[[], T | None], timeout_s: float, clock: Clock) -> T | None:
        """Block until `look` returns something, and return it; None after `timeout_s`.

        Args:
            look: Cheap; called in this thread at once and after each change. What it raises ends the wait.
            timeout_s: At least one look is taken, even with 0.
            clock: Monotonic seconds.
        """
        changed = threading.Event()
        deadline = clock() + timeout_s
        self._add(changed.set)
        try:
            while True:
                changed.clear()
                found = look()
                remaining = deadline - clock()
                if found is not None or remaining <= 0.0:
                    return found
                changed.wait(remaining)
        finally:
            self._remove(changed.set)

    async def wait_async(self, look: Callable[[], T | None], timeout_s: float, clock: Clock) -> T | None:
        """As `wait`, for a task: the loop goes on meanwhile."""
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def wake() -> None:
            # The loop may have closed since; nobody is waiting then.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(changed.set)

        deadline = clock() + timeout_s
        self._add(wake)
        try:
            while True:
                changed.clear()
                found = look()
                remaining = deadline - clock()
                if found is not None or remaining <= 0.0:
                    return found
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), remaining)
        finally:
            self._remove(wake)

    def _add(self, wake: Callable[[], None]) -> None:
        with self._lock:
            self._waiters.add(wake)

    def _remove(self, wake: Callable[[], None]) -> None:
        with self._lock:
            self._waiters.discard(wake)
