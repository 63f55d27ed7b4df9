"""The binomial intervals that the demo's shares are judged by."""

from math import comb

import pytest

from meshlib.cli.demo.statistics import binomial_interval


def probability(n: int, p: float, low: int, high: int) -> float:
    return sum(comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(low, high + 1))


@pytest.mark.parametrize(("n", "p"), [(10, 0.5), (200, 0.1), (500, 0.2), (900, 0.9)])
def test_interval_covers_at_least_its_confidence(n: int, p: float) -> None:
    low, high = binomial_interval(n, p)
    assert probability(n, p, low, high) >= 0.999


@pytest.mark.parametrize(("n", "p"), [(200, 0.1), (500, 0.2), (900, 0.9)])
def test_interval_is_no_wider_than_needed(n: int, p: float) -> None:
    low, high = binomial_interval(n, p)
    assert probability(n, p, 0, low) > 0.0005
    assert probability(n, p, high, n) > 0.0005


def test_known_values_for_two_thousand_calls() -> None:
    assert (342, 460) == binomial_interval(2000, 0.2)
