"""How many retries a cluster may have: at the same time, and over time.

Source: Envoy, `CircuitBreakers.Thresholds.max_retries` and `retry_budget`; finagle, `RetryBudget`.
"""

from meshlib.model.cluster import CircuitBreakers
from meshlib.model.retry import RetryBudget
from meshlib.ports import Lock

__all__ = ["RetryAccount", "retry_limit"]


def retry_limit(limits: CircuitBreakers, active: int) -> int:
    """Return the number of concurrent retries allowed.

    Args:
        active: Requests in flight, pending ones included.

    Returns:
        `max_retries`; with a retry budget instead its share of the active requests, at least the minimum concurrency,
        truncated.
    """
    percent = limits.retry_budget_percent
    if percent is None:
        return limits.max_retries
    return max(int(percent * active / 100), limits.min_retry_concurrency)


class RetryAccount:
    """What one cluster's calls have earned of a `RetryBudget`, and what retries have used up.

    Calls are not counted here, which would cost each of them something: whoever asks for a retry says how many attempts
    the cluster has seen so far. Those since the last question are taken to have come evenly.
    """

    __slots__ = ("_balance", "_earning", "_last_at", "_lock", "_retries", "_seen", "budget")

    def __init__(self, budget: RetryBudget, now: float) -> None:
        """Open an account, with as much in it as a window without calls gives."""
        self.budget = budget
        self._lock = Lock()
        # Guarded by the lock:
        self._balance = budget.min_per_s * budget.window_s
        self._earning = 0.0  # calls of about one window
        self._seen = 0
        self._retries = 0
        self._last_at = now

    def try_take(self, attempts: int, now: float) -> bool:
        """Take what one retry costs; False: there is not enough.

        Args:
            attempts: Of the cluster so far, retries included.
            now: Monotonic seconds.
        """
        budget = self.budget
        with self._lock:
            passed_s = max(0.0, now - self._last_at)
            calls = max(0, attempts - self._seen - self._retries)
            self._seen, self._retries, self._last_at = attempts, 0, max(now, self._last_at)
            share = passed_s / budget.window_s
            recent = calls / share if share > 1 else calls
            self._earning = self._earning * max(0.0, 1 - share) + recent
            most = budget.min_per_s * budget.window_s + budget.percent / 100 * self._earning
            earned = budget.min_per_s * passed_s + budget.percent / 100 * calls
            self._balance = min(most, self._balance + earned)
            if self._balance < 1:
                return False
            self._balance -= 1
            self._retries += 1
            return True
