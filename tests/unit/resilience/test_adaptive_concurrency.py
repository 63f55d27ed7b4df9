"""A limit of concurrent requests that follows their latency."""

from random import Random

import pytest

from meshlib.model.filters import AdaptiveConcurrency
from meshlib.resilience.adaptive_concurrency import MAX_SAMPLES, ConcurrencyLimiter

RNG = Random(1)


class Service:
    """A limiter and requests through it, one after the other on a clock of its own."""

    def __init__(self, **options: object) -> None:
        options = {"min_rtt_requests": 5, "min_rtt_jitter_percent": 0.0, **options}
        self.now = 0.0
        self.limiter = ConcurrencyLimiter(AdaptiveConcurrency(**options), 0.0)  # type: ignore[arg-type]

    def serve(self, count: int, latency_s: float) -> None:
        for _ in range(count):
            assert self.limiter.try_acquire(self.now, RNG)
            began_at, self.now = self.now, self.now + latency_s
            self.limiter.release(began_at, self.now, RNG, is_sample=True)

    def update(self, latency_s: float) -> int:
        """Let an update happen after one sample; returns the limit."""
        self.serve(1, latency_s)
        self.now += self.limiter.config.update_interval_s
        self.limiter.try_acquire(self.now, RNG)
        self.limiter.release(self.now, self.now, RNG, is_sample=False)
        return self.limiter.limit


def test_the_least_latency_is_measured_first_under_the_least_limit() -> None:
    service = Service()
    assert 3 == service.limiter.limit
    service.serve(4, 0.01)
    assert service.limiter.min_rtt_s is None
    service.serve(1, 0.01)
    assert 0.01 == pytest.approx(service.limiter.min_rtt_s)


def test_requests_beyond_the_limit_are_refused_and_not_counted() -> None:
    limiter = Service(min_limit=2).limiter
    assert [True, True, False] == [limiter.try_acquire(0.0, RNG) for _ in range(3)]
    assert 2 == limiter.active
    limiter.release(0.0, 0.0, RNG, is_sample=False)
    assert limiter.try_acquire(0.0, RNG)


def test_limit_grows_while_latency_stays_low_up_to_its_ceiling() -> None:
    """Twice the limit and its root: 3 -> 6 + 2.4 = 8 -> 16 + 4 = 20 -> ..."""
    service = Service(max_limit=100)
    service.serve(5, 0.01)
    assert [8, 20, 46, 100, 100] == [service.update(0.001) for _ in range(5)]


def test_limit_grows_by_its_root_alone_at_the_bearable_latency() -> None:
    service = Service(max_limit=100)
    service.serve(5, 0.01)
    service.update(0.001)
    service.update(0.001)
    assert 20 + 4 == service.update(0.0125)


def test_limit_shrinks_when_latency_rises_down_to_its_least() -> None:
    service = Service()
    service.serve(5, 0.01)
    for _ in range(4):
        service.update(0.001)
    before = service.limiter.limit
    assert before > service.update(1.0) >= 3
    for _ in range(8):
        service.update(1.0)
    assert 3 == service.limiter.limit


def test_without_samples_the_limit_stays() -> None:
    service = Service()
    service.serve(5, 0.01)
    limit = service.update(0.001)
    service.now += 50.0
    assert service.limiter.try_acquire(service.now, RNG)
    assert limit == service.limiter.limit


def test_latency_is_measured_anew_at_intervals_and_the_limit_restored() -> None:
    service = Service(min_rtt_interval_s=60.0)
    service.serve(5, 0.01)
    for _ in range(4):
        limit = service.update(0.001)
    service.now = 61.0
    service.serve(1, 0.02)
    assert 3 == service.limiter.limit
    service.serve(4, 0.02)
    assert (limit, pytest.approx(0.02)) == (service.limiter.limit, service.limiter.min_rtt_s)


def test_requests_from_before_a_measurement_are_no_samples_of_it() -> None:
    service = Service(min_rtt_interval_s=1.0)
    service.serve(5, 0.01)
    limiter = service.limiter
    assert limiter.try_acquire(service.now, RNG)
    began_at, service.now = service.now, 5.0
    service.serve(4, 0.01)
    limiter.release(began_at, service.now, RNG, is_sample=True)
    assert 3 == limiter.limit, "still measuring: the old one does not make it five"


def test_a_limit_that_stays_at_its_least_has_the_latency_measured_at_once() -> None:
    service = Service()
    service.serve(5, 0.01)
    while service.limiter.limit > 3:
        service.update(1.0)
    for _ in range(6):
        service.update(1.0)
    service.serve(5, 1.0)
    assert 1.0 == pytest.approx(service.limiter.min_rtt_s)


def test_a_fixed_latency_is_never_measured() -> None:
    service = Service(min_rtt_interval_s=None, min_rtt_s=0.01)
    assert [8, 20] == [service.update(0.001) for _ in range(2)]
    service.now = 10_000.0
    service.serve(1, 0.001)
    assert 20 <= service.limiter.limit


def test_a_disabled_limiter_lets_everything_in_and_goes_on_counting() -> None:
    limiter = Service(is_enabled=False).limiter
    assert all(limiter.try_acquire(0.0, RNG) for _ in range(100))
    assert 100 == limiter.active


def test_samples_of_a_window_are_bounded() -> None:
    service = Service(update_interval_s=1e9)
    service.serve(5 + 3 * MAX_SAMPLES, 0.001)
    assert MAX_SAMPLES == len(service.limiter._samples)
