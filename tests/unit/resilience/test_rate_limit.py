"""A bucket that fills continuously."""

import pytest

from meshlib.model.filters import DescriptorLimit, LocalRateLimit, TokenBucket
from meshlib.model.matcher import Fraction
from meshlib.resilience.rate_limit import Grant, RateLimiter, RateLimiters


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


def slow(tokens: int, interval_s: float = 600.0) -> TokenBucket:
    return TokenBucket(tokens, 1, interval_s)


def limiters(
    *descriptors: DescriptorLimit, bucket: TokenBucket | None = None, always_takes: bool = True, max_dynamic: int = 20
) -> RateLimiters:
    always = Fraction(100)
    config = LocalRateLimit(
        bucket, always, always, descriptors=descriptors, always_takes=always_takes, max_dynamic=max_dynamic
    )
    return RateLimiters(config, 0.0)


def entry(value: str) -> tuple[tuple[str, str], ...]:
    return (("k", value),)


def test_a_descriptor_takes_from_its_bucket_and_from_that_of_all() -> None:
    found = limiters(DescriptorLimit(entry("a"), slow(2)), bucket=slow(3))
    asked = [(entry("a"), 1)]
    assert [found.take(asked, 0.0).remaining for _ in range(2)] == [1, 0]
    refused = found.take(asked, 0.0)
    assert (refused.is_granted, refused.limit) == (False, 2)
    assert found.take([], 0.0) == Grant(True, 3, 0, 600.0)
    assert not found.take([(entry("b"), 1)], 0.0).is_granted


def test_a_descriptor_may_be_spared_the_bucket_of_all() -> None:
    found = limiters(DescriptorLimit(entry("a"), slow(2)), bucket=slow(1), always_takes=False)
    assert [found.take([(entry("a"), 1)], 0.0).is_granted for _ in range(3)] == [True, True, False]
    assert found.take([], 0.0).is_granted


def test_the_slowest_bucket_is_asked_first() -> None:
    found = limiters(DescriptorLimit(entry("a"), slow(5, 1.0)), DescriptorLimit(entry("b"), slow(1)))
    both = [(entry("a"), 1), (entry("b"), 1)]
    assert [found.take(both, 0.0).is_granted for _ in range(3)] == [True, False, False]
    assert found.take([(entry("a"), 1)], 0.0).remaining == 3, "what was refused by the other took nothing here"


def test_a_descriptor_made_twice_takes_twice_and_says_what_is_left_then() -> None:
    found = limiters(DescriptorLimit(entry("a"), slow(3)), always_takes=False)
    twice = [(entry("a"), 1), (entry("a"), 1)]
    assert found.take(twice, 0.0) == Grant(True, 3, 1, 0.0)
    assert found.take(twice, 0.0) == Grant(False, 3, 0, 600.0)


def test_each_value_has_a_bucket_of_its_own_and_the_oldest_goes() -> None:
    found = limiters(DescriptorLimit(entry(""), slow(1)), max_dynamic=2)
    assert [found.take([(entry(value), 1)], 0.0).is_granted for value in "abab"] == [True, True, False, False]
    assert found.take([(entry("c"), 1)], 0.0).is_granted
    assert found.take([(entry("a"), 1)], 0.0).is_granted, "a went for c"
    assert not found.take([(entry("c"), 1)], 0.0).is_granted


def test_without_tokens_nothing_passes_and_nothing_is_told() -> None:
    assert limiters(bucket=TokenBucket(0, 1, 1.0)).take([], 0.0) == Grant(False, None)


def test_without_a_bucket_only_descriptors_are_limited() -> None:
    found = limiters(DescriptorLimit(entry("a"), slow(1)))
    assert found.take([], 0.0) == Grant(True, None)
    assert [found.take([(entry("a"), 1)], 0.0).is_granted for _ in range(2)] == [True, False]


def test_hits() -> None:
    found = limiters(DescriptorLimit(entry("a"), slow(5)))
    assert [found.take([(entry("a"), 2)], 0.0).remaining for _ in range(3)] == [3, 1, 1]
    assert not found.take([(entry("a"), 0)], 0.0).is_granted, "as in Envoy"
