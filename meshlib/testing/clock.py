"""A clock that moves only when told."""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

__all__ = ["FakeClock", "Timer"]


class Timer:
    """Something to be done at a time.

    Attributes:
        due_at: Seconds of the clock.
        is_pending: Neither run nor cancelled.
    """

    __slots__ = ("_action", "due_at", "is_pending")

    def __init__(self, due_at: float, action: Callable[[], object]) -> None:
        self.due_at = due_at
        self.is_pending = True
        self._action = action

    def cancel(self) -> None:
        """Don't do it; without effect once it is done."""
        self.is_pending = False

    def run(self) -> None:
        """Do it, unless it was done or cancelled."""
        if self.is_pending:
            self.is_pending = False
            self._action()


class FakeClock:
    """Monotonic seconds for tests. Call it for the time; `advance` to let time pass.

    Timers run inside `advance`, in the order in which they are due (of equal ones, in the order in which they were
    made), and each sees the clock at its own time. A timer that a timer makes runs too if it is due within the same
    step. For one thread.

    Attributes:
        slept: Every duration given to `sleep` or `sleep_async`, in order.
    """

    def __init__(self, now: float = 1000.0) -> None:
        """Make a clock.

        Args:
            now: Where it starts; not 0, so that a forgotten start time shows.
        """
        self._now = now
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = count()
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self._now

    def call_at(self, due_at: float, action: Callable[[], object]) -> Timer:
        """Have something done at a time; one that has passed already waits for the next `advance`."""
        timer = Timer(due_at, action)
        heappush(self._timers, (due_at, next(self._order), timer))
        return timer

    def call_later(self, delay_s: float, action: Callable[[], object]) -> Timer:
        """Have something done after a while."""
        return self.call_at(self._now + delay_s, action)

    @property
    def next_due_at(self) -> float | None:
        """When the next timer is due; None: there is none."""
        while self._timers and not self._timers[0][2].is_pending:
            heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def advance(self, seconds: float) -> None:
        """Let time pass, running what is due on the way.

        Args:
            seconds: Not negative; 0 runs what is due now.
        """
        if seconds < 0:
            raise ValueError(f"time does not run backwards: {seconds}")
        end = self._now + seconds
        while (due_at := self.next_due_at) is not None and due_at <= end:
            timer = heappop(self._timers)[2]
            self._now = max(self._now, due_at)
            timer.run()
        self._now = end

    def sleep(self, seconds: float) -> None:
        """Stand in for `time.sleep`: returns at once, and that much time has passed."""
        self.slept.append(seconds)
        self.advance(seconds)

    async def sleep_async(self, seconds: float) -> None:
        """Stand in for `asyncio.sleep`: as `sleep`."""
        self.sleep(seconds)

    def __repr__(self) -> str:
        return f"FakeClock({self._now})"
