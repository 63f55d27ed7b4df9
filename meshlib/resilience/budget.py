"""How many retries a cluster may have at the same time.

Source: Envoy, `CircuitBreakers.Thresholds.max_retries` and `retry_budget`.
"""

from meshlib.model.cluster import CircuitBreakers

__all__ = ["retry_limit"]


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
