"""How many requests may be under way, found out by their latency.

From time to time the limit goes down to its least until enough requests have shown how quick the service is without
load. Afterwards latencies are held against that: as long as they are not much longer the limit grows, else it shrinks.

Two windows alternate. *Measuring*: the limit is the least; ends with the number of samples it takes. *Updating*: every
interval with samples the limit is worked out anew. Nothing happens by itself: times that have passed are noticed when
the next request asks.

Source: Envoy `GradientController`. It estimates the percentile from a histogram; here it is exact, over at most
`MAX_SAMPLES` latencies of a window, chosen evenly when there are more.
"""

from collections.abc import Sequence

from meshlib.model.filters import AdaptiveConcurrency
from meshlib.ports import Lock, Rng

__all__ = ["ConcurrencyLimiter"]

MAX_SAMPLES = 1024
MIN_LIMIT_STREAK = 5
"""So many updates in a row at the least limit: the least latency is measured anew, it may be out of date."""


class ConcurrencyLimiter:
    """Lets requests in as long as fewer are under way than the limit of the moment. Any thread may ask.

    Attributes:
        limit: Of the moment; guarded by the lock, read by anyone.
        active: Requests under way; guarded by the lock.
        min_rtt_s: Latency without load; None: not measured yet.
    """

    __slots__ = (
        "_epoch",
        "_is_measuring",
        "_lock",
        "_measure_at",
        "_restored_limit",
        "_samples",
        "_seen",
        "_streak",
        "_update_at",
        "active",
        "config",
        "limit",
        "min_rtt_s",
    )

    def __init__(self, config: AdaptiveConcurrency, now: float) -> None:
        self.config = config
        self._lock = Lock()
        # Guarded by the lock.
        self.active = 0
        self.limit = config.min_limit
        self.min_rtt_s: float | None = None
        self._samples: list[float] = []
        self._seen = 0
        self._streak = 0
        self._update_at = now + config.update_interval_s
        self._measure_at: float | None = None
        self._restored_limit = config.min_limit
        self._is_measuring = False
        # Requests that began before it tell how it was under the limit before.
        self._epoch = now
        if config.min_rtt_interval_s is None:
            self.min_rtt_s = config.min_rtt_s
        else:
            self._measure(now)

    def try_acquire(self, now: float, rng: Rng) -> bool:
        """Count a request in; False: the limit is reached, nothing is counted."""
        with self._lock:
            if self._measure_at is not None and now >= self._measure_at and not self._is_measuring:
                self._measure(now)
            elif now >= self._update_at and not self._is_measuring:
                self._update(now)
            if self.config.is_enabled and self.active >= self.limit:
                return False
            self.active += 1
            return True

    def release(self, began_at: float, now: float, rng: Rng, *, is_sample: bool) -> None:
        """Count a request out.

        Args:
            began_at: When it was counted in.
            is_sample: It has a response, whose latency counts.
        """
        with self._lock:
            self.active -= 1
            if not is_sample or began_at < self._epoch:
                return
            self._seen += 1
            if len(self._samples) < MAX_SAMPLES:
                self._samples.append(now - began_at)
            elif (place := int(rng.random() * self._seen)) < MAX_SAMPLES:
                self._samples[place] = now - began_at
            if self._is_measuring and self._seen >= self.config.min_rtt_requests:
                self._measured(now, rng)

    def _measure(self, now: float) -> None:
        self._is_measuring = True
        self._restored_limit = self.limit
        self.limit = self.config.min_limit
        self._epoch = now
        self._clear()

    def _measured(self, now: float, rng: Rng) -> None:
        config = self.config
        assert config.min_rtt_interval_s is not None
        self.min_rtt_s = _percentile(self._samples, config.percentile)
        self.limit = self._restored_limit
        self._is_measuring = False
        self._streak = 0
        jitter_s = config.min_rtt_interval_s * config.min_rtt_jitter_percent / 100 * rng.random()
        self._measure_at = now + config.min_rtt_interval_s + jitter_s
        self._update_at = now + config.update_interval_s
        self._clear()

    def _update(self, now: float) -> None:
        config = self.config
        self._update_at = now + config.update_interval_s
        if not self._samples or self.min_rtt_s is None:
            return
        sample_s = _percentile(self._samples, config.percentile)
        self._clear()
        most_s = self.min_rtt_s * (1 + config.buffer_percent / 100)
        gradient = 2.0 if sample_s <= 0 else max(0.5, min(2.0, most_s / sample_s))
        before, limit = self.limit, self.limit * gradient
        # The root lets a limit grow while all is well; a share alone would stay where it is.
        self.limit = max(config.min_limit, min(config.max_limit, int(limit + limit**0.5)))
        self._streak = self._streak + 1 if before == self.limit == config.min_limit else 0
        if self._streak >= MIN_LIMIT_STREAK and config.min_rtt_interval_s is not None:
            self._streak = 0
            self._measure(now)

    def _clear(self) -> None:
        self._samples.clear()
        self._seen = 0


def _percentile(samples: Sequence[float], percentile: float) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percentile / 100))]
