"""A bucket that fills continuously."""

import pytest

from meshlib.model.filters import TokenBucket
from meshlib.resilience.rate_limit import Grant, RateLimiter


def test_bucket_is_full_at_first_and_fills_continuously() -> None:
    limiter = RateLimiter(TokenBucket(3, tokens_per_fill=2, fill_interval_s=1.0), 0.0)
    assert [True, True, True, False] == [limiter.take(0.0).is_granted for _ in range(4)]
    assert not limiter.take(0.25).is_granted
    assert limiter.take(0.5).is_granted, "a whole token, half an interval later"
    assert not limiter.take(0.75).is_granted


def test_bucket_holds_no_more_than_its_capacity() -> None:
    limiter = RateLimiter(TokenBucket(2, 1, 1.0), 0.0)
    assert [True, True, False] == [limiter.take(1000.0).is_granted for _ in range(3)]


def test_a_bucket_without_capacity_grants_nothing() -> None:
    limiter = RateLimiter(TokenBucket(0, 1, 1.0), 0.0)
    assert [False, False] == [limiter.take(now).is_granted for now in (0.0, 1000.0)]


def test_a_clock_that_goes_back_adds_nothing_and_takes_nothing() -> None:
    limiter = RateLimiter(TokenBucket(1, 1, 1.0), 100.0)
    assert limiter.take(100.0).is_granted
    assert not limiter.take(50.0).is_granted
    assert not limiter.take(100.5).is_granted
    assert limiter.take(101.0).is_granted


@pytest.mark.parametrize(
    ("taken", "now", "expected"),
    [
        (1, 0.0, Grant(True, 4, 3, 0.0)),
        (4, 0.0, Grant(True, 4, 0, 0.5)),
        (5, 0.0, Grant(False, 4, 0, 0.5)),
        (5, 0.25, Grant(False, 4, 0, 0.25)),
    ],
)
def test_grant_says_what_is_left_and_when_more_comes(taken: int, now: float, expected: Grant) -> None:
    limiter = RateLimiter(TokenBucket(4, 2, 1.0), 0.0)
    for _ in range(taken - 1):
        limiter.take(0.0)
    assert expected == limiter.take(now)
