"""What a thread of ours does next: actions posted by others, and timers, in order, one at a time."""

import heapq
import logging
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

from meshlib.ports import Clock

__all__ = ["Scheduler", "Timer"]

Action = Callable[[], None]
T = TypeVar("T")
_LOG = logging.getLogger(__name__)
FEW_TIMERS: Final = 64
LONGEST_WAIT_S: Final = 60.0
"""A thread that has nothing to do still looks at the clock now and then: clocks of machines that slept jump."""


class Timer:
    """One action in the future."""

    __slots__ = ("_action", "when")

    def __init__(self, when: float, action: Action) -> None:
        self.when = when
        self._action: Action | None = action

    def cancel(self) -> None:
        """It will not run. Safe to call at any time."""
        self._action = None

    @property
    def is_pending(self) -> bool:
        """Neither cancelled nor run."""
        return self._action is not None

    def take(self) -> Action | None:
        action, self._action = self._action, None
        return action


class Scheduler:
    """`post` and `ask` are for any thread; everything else belongs to the thread that runs it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._posted: SimpleQueue[Action] = SimpleQueue()
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._limit = FEW_TIMERS

    def post(self, action: Action) -> None:
        """Have an action run soon, after those posted before it."""
        self._posted.put(action)

    def ask(self, look: Callable[[], T], timeout_s: float) -> T | None:
        """Return what `look` returns on the thread that runs this; None: it did not get to it in time. For other threads."""
        answer: list[T] = []
        answered = threading.Event()

        def run() -> None:
            answer.append(look())
            answered.set()

        self.post(run)
        answered.wait(timeout_s)
        return answer[0] if answer else None

    def later(self, delay_s: float, action: Action) -> Timer:
        """Have an action run in `delay_s` seconds."""
        timer = Timer(self._clock() + delay_s, action)
        if len(self._timers) >= self._limit:
            self._drop_cancelled()
        self._count += 1
        heapq.heappush(self._timers, (timer.when, self._count, timer))
        return timer

    def run(self, *, block: bool = True) -> int:
        """Run what is there to run; with `block`, wait for the first. Returns how many actions ran."""
        done = 0
        try:
            if block:
                self._guarded(self._posted.get(timeout=self._wait_s()))
                done += 1
            while True:
                self._guarded(self._posted.get_nowait())
                done += 1
        except Empty:
            pass
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            action = heapq.heappop(self._timers)[2].take()
            if action is not None:
                self._guarded(action)
                done += 1
        return done

    def _drop_cancelled(self) -> None:
        """Forget timers that were cancelled long before their time, as those of heartbeats are. Costs little on average:
        it happens when there are twice as many as were left the last time."""
        self._timers = [entry for entry in self._timers if entry[2].is_pending]
        heapq.heapify(self._timers)
        self._limit = max(FEW_TIMERS, 2 * len(self._timers))

    def _wait_s(self) -> float:
        if not self._timers:
            return LONGEST_WAIT_S
        return min(max(0.0, self._timers[0][0] - self._clock()), LONGEST_WAIT_S)

    @staticmethod
    def _guarded(action: Action) -> None:
        try:
            action()
        except Exception:
            # One action that fails must not end the thread that everything else depends on.
            _LOG.exception("error in the control thread; it goes on")
