"""When to open the stream to a management server again.

1 s, times 1.6 up to 120 s, each +-20 %; from the start again once a stream has delivered a response. After a stream
that did, the next one opens at once, but never sooner than 1 s after that one opened: a server that answers and hangs
up cannot spin us (grpc-java's formula).

Source: gRPC's connection backoff; the xDS clients of C-core, Go and Java use the same numbers.
"""

from meshlib.ports import Rng

__all__ = ["ReconnectBackoff"]

INITIAL_S = 1.0
MULTIPLIER = 1.6
JITTER = 0.2
CAP_S = 120.0


class ReconnectBackoff:
    """The wait before each attempt to reach one server."""

    def __init__(self) -> None:
        self._next_s = INITIAL_S

    def after_failure(self, rng: Rng) -> float:
        """Return the seconds to wait after a stream that ended without a response; the next wait is longer."""
        base = self._next_s
        self._next_s = min(base * MULTIPLIER, CAP_S)
        return base * (1.0 - JITTER + 2.0 * JITTER * rng.random())

    def after_success(self, lifetime_s: float) -> float:
        """Return the seconds to wait after a stream that had a response and lived for `lifetime_s`."""
        self._next_s = INITIAL_S
        return max(0.0, INITIAL_S - lifetime_s)
