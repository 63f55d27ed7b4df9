"""When to act on a burst of events: once it is quiet, but not later than a fixed time after the first (PSH-1)."""


class Debounce:
    """Collects events; `now` is monotonic seconds.

    Args:
        quiet_s: Act when no event came for this long; 0 acts at once.
        max_wait_s: Act at the latest this long after the first event.
    """

    def __init__(self, quiet_s: float, max_wait_s: float) -> None:
        self._quiet_s = quiet_s
        self._max_wait_s = max_wait_s
        self._first: float | None = None
        self._due: float | None = None

    @property
    def due(self) -> float | None:
        """When to act; None while there is nothing to act on."""
        return self._due

    def event(self, now: float) -> None:
        if self._first is None:
            self._first = now
        self._due = min(now + self._quiet_s, self._first + self._max_wait_s)

    def take(self, now: float) -> bool:
        """Tell whether it is time, and if so start over: later events belong to the next burst."""
        if self._due is None or now < self._due:
            return False
        self._first = self._due = None
        return True
