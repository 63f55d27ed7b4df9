"""Token buckets that fill continuously: one for all requests, and those of descriptors.

A request takes from the buckets of its descriptors first, the slowest first, and then from the one of all; the first
that has too little ends it, and what was taken before is gone.

Source: Envoy `AtomicTokenBucketImpl`, `LocalRateLimiterImpl::requestAllowed`, as from 1.39 on.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from meshlib.model.filters import DescriptorLimit, LocalRateLimit, TokenBucket
from meshlib.ports import Lock

__all__ = ["Grant", "RateLimiter", "RateLimiters"]

_Entries = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Grant:
    """What taking tokens came to.

    Attributes:
        is_granted: There were enough.
        limit: Capacity of the bucket that says so; None: none does.
        remaining: Whole tokens left.
        reset_s: Until there is a token; 0 while there is one.
    """

    is_granted: bool
    limit: int | None
    remaining: int = 0
    reset_s: float = 0.0


_GRANTED, _REFUSED = Grant(True, None), Grant(False, None)


class RateLimiter:
    """Hands out the tokens of one bucket, which is full at first. Any thread may ask."""

    __slots__ = ("_lock", "_tokens", "_updated_at", "bucket", "per_s")

    def __init__(self, bucket: TokenBucket, now: float) -> None:
        self.bucket = bucket
        self.per_s = bucket.tokens_per_fill / bucket.fill_interval_s
        self._lock = Lock()
        # Guarded by the lock.
        self._tokens = float(bucket.max_tokens)
        self._updated_at = now

    def take(self, now: float, count: int = 1) -> Grant:
        """Take tokens if there are enough; of a request for none at all Envoy says that there are not.

        Args:
            now: Monotonic seconds. A time before the last one's adds nothing.
        """
        with self._lock:
            self._fill(now)
            is_granted = 0 < count <= self._tokens
            if is_granted:
                self._tokens -= count
            return self._grant(is_granted)

    def peek(self, now: float) -> Grant:
        """Say again what is left, of a request that was granted what it asked for."""
        with self._lock:
            self._fill(now)
            return self._grant(True)

    def _fill(self, now: float) -> None:
        if now > self._updated_at:
            filled = self._tokens + (now - self._updated_at) * self.per_s
            self._tokens = min(float(self.bucket.max_tokens), filled)
            self._updated_at = now

    def _grant(self, is_granted: bool) -> Grant:
        tokens = self._tokens
        return Grant(is_granted, self.bucket.max_tokens, int(tokens), max(0.0, 1.0 - tokens) / self.per_s)


class _AnyValue:
    """The buckets of an entry with values that stand for any: one for each that has come, those used last."""

    __slots__ = ("_buckets", "_limit", "_lock", "_most")

    def __init__(self, limit: DescriptorLimit, most: int) -> None:
        self._limit = limit
        self._most = most
        self._lock = Lock()
        self._buckets: OrderedDict[_Entries, RateLimiter] = OrderedDict()

    def find(self, entries: _Entries, now: float) -> RateLimiter | None:
        wanted = self._limit.entries
        if len(entries) != len(wanted):
            return None
        for (key, value), (wanted_key, wanted_value) in zip(entries, wanted, strict=True):
            if key != wanted_key or (wanted_value and value != wanted_value):
                return None
        with self._lock:
            found = self._buckets.get(entries)
            if found is None:
                found = self._buckets[entries] = RateLimiter(self._limit.bucket, now)
                if len(self._buckets) > self._most:
                    self._buckets.popitem(last=False)
            else:
                self._buckets.move_to_end(entries)
            return found


class RateLimiters:
    """All buckets of one filter. Any thread may ask."""

    __slots__ = ("_any", "_config", "_default", "_exact")

    def __init__(self, config: LocalRateLimit, now: float) -> None:
        self._config = config
        bucket = config.bucket
        self._default = RateLimiter(bucket, now) if bucket is not None and bucket.max_tokens else None
        self._exact: dict[_Entries, RateLimiter] = {}
        self._any: list[_AnyValue] = []
        for limit in config.descriptors:
            if all(value for _, value in limit.entries):
                self._exact[limit.entries] = RateLimiter(limit.bucket, now)
            else:
                self._any.append(_AnyValue(limit, config.max_dynamic))

    def take(self, descriptors: Sequence[tuple[_Entries, int]], now: float) -> Grant:
        """Let a request take what it needs.

        Args:
            descriptors: The request's, each with what it takes.
        """
        first: Grant | None = None
        if descriptors:
            found = [
                (limiter, hits) for entries, hits in descriptors if (limiter := self._find(entries, now)) is not None
            ]
            found.sort(key=lambda entry: entry[0].per_s)
            for limiter, hits in found:
                grant = limiter.take(now, hits)
                if not grant.is_granted:
                    return grant
                first = first or grant
            if len(found) > 1:
                # Rules may make one descriptor twice, which takes twice from its bucket.
                first = found[0][0].peek(now)
            if first is not None and not self._config.always_takes:
                return first
        if self._default is not None:
            grant = self._default.take(now)
            return grant if first is None or not grant.is_granted else first
        if self._config.bucket is not None:
            return _REFUSED
        return first or _GRANTED

    def _find(self, entries: _Entries, now: float) -> RateLimiter | None:
        found = self._exact.get(entries)
        if found is not None:
            return found
        return next((limiter for one in self._any if (limiter := one.find(entries, now)) is not None), None)
