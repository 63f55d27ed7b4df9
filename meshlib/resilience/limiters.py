"""What counts for the filters that limit requests."""

from typing import assert_never

from meshlib.model.filters import AdaptiveConcurrency, AdmissionControl, LimitFilter, LocalRateLimit
from meshlib.resilience.adaptive_concurrency import ConcurrencyLimiter
from meshlib.resilience.admission_control import AdmissionController
from meshlib.resilience.rate_limit import RateLimiters

__all__ = ["Limiter", "make_limiter"]

Limiter = RateLimiters | AdmissionController | ConcurrencyLimiter


def make_limiter(config: LimitFilter, now: float) -> Limiter:
    """Make what counts for one configuration."""
    match config:
        case LocalRateLimit():
            return RateLimiters(config, now)
        case AdmissionControl():
            return AdmissionController(config)
        case AdaptiveConcurrency():
            return ConcurrencyLimiter(config, now)
        case _:
            assert_never(config)
