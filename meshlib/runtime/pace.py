"""How often updates of management servers are taken into use: the first at once, those that follow it closely together.

What a thousand small updates a second cost is not what changed but the times that everything is gone through for it, and
requests wait for the interpreter meanwhile. So after each time the control thread rests, as long as keeps it to a share of
its time; what comes in between is read, kept in the cache and taken into use together. Answers to it wait too: servers
that have one response of a type under way at a time then put more into the next one. What somebody waits for does not wait.

Envoy merges updates of endpoints for a second (`update_merge_window`).
"""

from typing import Final

__all__ = ["Pace"]

SHARE: Final = 0.1
"""Of the time may be spent on updates."""
LONGEST_REST_S: Final = 0.1
"""How long updates wait before they are looked at; servers themselves collect changes for as long (istiod: 0.1 s). Longer
would not make them cheaper: with the hundred that come meanwhile, a thirtieth of the work is there for each response."""
PATIENCE_S: Final = 0.4
"""How long the rests within what is done at one time may be in all. An update that others precede and follow waits for those
under way, and then has its own turn: with `LONGEST_REST_S` it is in use within a second, the window of Envoy's clusters."""


class Pace:
    """When it is time again. Used on the control thread, but for `hurry`.

    Attributes:
        is_pressed: The update at hand follows another one closely, and nobody waits for it: it may take its time.
        is_awaited: Somebody waits for something that an update may bring.
    """

    def __init__(self) -> None:
        self.is_pressed = False
        self.is_awaited = False
        self._spent_s = 0.0
        self._rests_until = float("-inf")
        self._patience_s = PATIENCE_S

    def arrive(self, now: float) -> bool:
        """An update has come; returns `is_pressed`."""
        if not self._spent_s:
            self._patience_s = PATIENCE_S
        self.is_pressed = self.wait_s(now) > 0.0
        return self.is_pressed

    def hurry(self) -> None:
        """Somebody begins to wait: what is under way gets done, and what comes is not put off. For any thread."""
        self.is_awaited = True
        self.is_pressed = False

    def spend(self, seconds: float) -> None:
        """Time went into an update."""
        self._spent_s += seconds

    def wait_patiently(self, seconds: float) -> None:
        """So much of the time was a rest within the work."""
        self._patience_s = max(0.0, self._patience_s - seconds)

    @property
    def patience(self) -> float:
        """The part of `PATIENCE_S` that is left: 1.0 when the first of some updates comes, less the longer they take."""
        return self._patience_s / PATIENCE_S

    def rest(self, now: float) -> None:
        """Everything that came was taken into use."""
        self._rests_until = now + min(LONGEST_REST_S, self._spent_s * (1.0 / SHARE - 1.0))
        self._spent_s = 0.0

    def wait_s(self, now: float) -> float:
        """Return how long further updates wait; 0.0: not at all."""
        return 0.0 if self.is_awaited else max(0.0, self._rests_until - now)
