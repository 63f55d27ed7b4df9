"""Which of an authority's management servers are in use, as a machine without I/O.

Servers are listed in order of preference. The first is asked alone; the next one joins when the last one in use cannot
be reached while something wanted is unknown, and everything wanted is asked of it too. As soon as a preferred server
answers again, those after it are given up. Servers in use are always the head of the list, and the last of them is the
active one:

- A server that dies while everything is known is no reason to change: what is known stays in use.
- While a later server serves, the ones before it go on being tried.
- What is known of a resource is kept on the way there and back, and is overwritten as answers come.

Source: gRFC A71; A95 for `fallback_on_reachability_only`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Fallback", "Health"]


@dataclass(frozen=True, slots=True)
class Health:
    """How one server is.

    Attributes:
        is_up: It has answered on the stream that is open.
        is_failing: The last stream ended without an answer, and none has come since.
    """

    is_up: bool = False
    is_failing: bool = False


class Fallback:
    """The servers in use of one authority."""

    __slots__ = ("_on_reachability_only", "in_use")

    def __init__(self, *, on_reachability_only: bool = False) -> None:
        """Start with no server.

        Args:
            on_reachability_only: Change servers when one cannot be reached although everything is known (A95).
        """
        self._on_reachability_only = on_reachability_only
        self.in_use = 0
        """How many servers, from the first, are in use. 0: nothing of the authority is wanted."""

    def step(self, health: Sequence[Health], *, is_wanted: bool, has_open_question: Callable[[], bool]) -> bool:
        """Look again.

        Args:
            health: Of each server, in the order of preference; at least one.
            is_wanted: Something of the authority is subscribed to.
            has_open_question: Whether something subscribed to is unknown: neither a value nor a reason why there is
                none. Asked only when the answer matters.

        Returns:
            Whether `in_use` changed.
        """
        before = self.in_use
        if not is_wanted:
            self.in_use = 0
            return before != 0
        self.in_use = max(1, before)
        for index in range(self.in_use):
            if health[index].is_up:
                self.in_use = index + 1
                break
        while (
            self.in_use < len(health)
            and health[self.in_use - 1].is_failing
            and (self._on_reachability_only or has_open_question())
        ):
            self.in_use += 1
        return self.in_use != before
