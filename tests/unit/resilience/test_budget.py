import pytest

from meshlib.model.retry import RetryBudget
from meshlib.resilience.budget import RetryAccount


def taken(account: RetryAccount, attempts: int, now: float, tries: int) -> int:
    """Try to take so many retries at a moment; each that is granted is an attempt too."""
    got = 0
    for _ in range(tries):
        got += account.try_take(attempts + got, now)
    return got


def test_a_client_with_few_calls_may_retry():
    account = RetryAccount(RetryBudget(percent=20, min_per_s=10, window_s=10), 0.0)
    assert 100 == taken(account, 1, 0.0, 1000)
    assert 10 == taken(account, 101, 1.0, 1000)


def test_calls_earn_a_share():
    account = RetryAccount(RetryBudget(percent=20, min_per_s=0, window_s=10), 0.0)
    assert 0 == taken(account, 0, 0.0, 10)
    assert 20 == taken(account, 100, 1.0, 100)
    assert 2 == taken(account, 100 + 20 + 10, 2.0, 100)


def test_retries_earn_nothing():
    account = RetryAccount(RetryBudget(percent=50, min_per_s=0, window_s=10), 0.0)
    attempts = 10
    total = 0
    for now in range(1, 9):
        got = taken(account, attempts, float(now), 100)
        attempts += got
        total += got
    assert total == 5


def test_what_was_earned_long_ago_does_not_count():
    account = RetryAccount(RetryBudget(percent=20, min_per_s=1, window_s=10), 0.0)
    # 1000 calls over 100 s: 100 of them in the window, which pay for 20 beside the 10 that are free.
    assert 30 == taken(account, 1000, 100.0, 1000)
    assert 10 == taken(account, 1030, 130.0, 1000)


@pytest.mark.parametrize("options", [{"percent": -1}, {"min_per_s": -0.1}, {"window_s": 0}])
def test_numbers_out_of_range_are_errors(options):
    with pytest.raises(ValueError, match="must"):
        RetryBudget(**options)
