"""Refuse at random what a failing service would fail anyway, before it is sent.

Source: Envoy `AdmissionControlFilter`; the idea is client-side throttling (Google's SRE book, "Handling Overload").
"""

from collections import deque

from meshlib.model.filters import GRPC_FAULTS, AdmissionControl
from meshlib.ports import Lock, Rng

__all__ = ["AdmissionController"]

BUCKET_S = 1.0
"""Results within a second are counted together."""


class _Counts:
    __slots__ = ("began_at", "requests", "successes")

    def __init__(self, began_at: float) -> None:
        self.began_at = began_at
        self.requests = 0
        self.successes = 0


class AdmissionController:
    """Counts results over a window, and lets requests in accordingly. Any thread may ask."""

    __slots__ = ("_lock", "_requests", "_successes", "_window", "config")

    def __init__(self, config: AdmissionControl) -> None:
        self.config = config
        self._lock = Lock()
        # Guarded by the lock; oldest first.
        self._window: deque[_Counts] = deque()
        self._requests = 0
        self._successes = 0

    def rejection_probability(self, now: float) -> float:
        """Return the chance of a request to be refused, 0.0-1.0."""
        config = self.config
        with self._lock:
            self._forget(now)
            requests, successes = self._requests, self._successes
            oldest_s = now - self._window[0].began_at if self._window else 0.0
        if not config.is_enabled or not requests or requests / max(1.0, oldest_s) < config.rps_threshold:
            return 0.0
        probability = (requests - successes / config.threshold) / (requests + 1)
        if probability <= 0.0:
            return 0.0
        return float(min(probability ** (1.0 / config.aggression), config.max_rejection))

    def admits(self, now: float, rng: Rng) -> bool:
        """Decide about one request. Chance is only asked when there is some."""
        probability = self.rejection_probability(now)
        return probability <= 0.0 or rng.random() >= probability

    def record(self, now: float, *, is_success: bool) -> None:
        """Count the result of a request that was let in."""
        with self._lock:
            self._forget(now)
            if not self._window or now - self._window[-1].began_at > BUCKET_S:
                self._window.append(_Counts(now))
            counts = self._window[-1]
            counts.requests += 1
            self._requests += 1
            if is_success:
                counts.successes += 1
                self._successes += 1

    def is_success(self, status: int, grpc_status: int | None, *, is_grpc: bool) -> bool:
        """Whether a result is a success by the filter's criteria.

        Args:
            status: HTTP status; 0: there was no response.
            grpc_status: None: there was none, which is no success of a gRPC call.
        """
        config = self.config
        if is_grpc:
            if grpc_status is None:
                return False
            known = config.grpc_success
            return grpc_status not in GRPC_FAULTS if known is None else grpc_status in known
        return any(start <= status < end for start, end in config.http_success)

    def _forget(self, now: float) -> None:
        window = self._window
        while window and now - window[0].began_at >= self.config.window_s:
            old = window.popleft()
            self._requests -= old.requests
            self._successes -= old.successes
