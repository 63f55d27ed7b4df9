"""A token bucket that fills continuously.

Source: Envoy `AtomicTokenBucketImpl`, as its local rate limit uses it from 1.33 on.
"""

from dataclasses import dataclass

from meshlib.model.filters import TokenBucket
from meshlib.ports import Lock

__all__ = ["Grant", "RateLimiter"]


@dataclass(frozen=True, slots=True)
class Grant:
    """What taking a token came to.

    Attributes:
        is_granted: There was one.
        limit: Capacity of the bucket.
        remaining: Whole tokens left.
        reset_s: Until there is a token; 0 while there is one.
    """

    is_granted: bool
    limit: int
    remaining: int
    reset_s: float


class RateLimiter:
    """Hands out the tokens of one bucket, which is full at first. Any thread may ask."""

    __slots__ = ("_lock", "_tokens", "_updated_at", "bucket")

    def __init__(self, bucket: TokenBucket, now: float) -> None:
        self.bucket = bucket
        self._lock = Lock()
        # Guarded by the lock.
        self._tokens = float(bucket.max_tokens)
        self._updated_at = now

    def take(self, now: float) -> Grant:
        """Take a token if there is one.

        Args:
            now: Monotonic seconds. A time before the last one's adds nothing.
        """
        bucket = self.bucket
        per_s = bucket.tokens_per_fill / bucket.fill_interval_s
        with self._lock:
            if now > self._updated_at:
                self._tokens = min(float(bucket.max_tokens), self._tokens + (now - self._updated_at) * per_s)
                self._updated_at = now
            is_granted = self._tokens >= 1.0
            if is_granted:
                self._tokens -= 1.0
            tokens = self._tokens
        return Grant(is_granted, bucket.max_tokens, int(tokens), max(0.0, 1.0 - tokens) / per_s)
