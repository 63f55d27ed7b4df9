"""Exact binomial intervals: how many of n calls may go one way before chance is no excuse."""

from math import exp, lgamma, log, log1p

__all__ = ["binomial_interval"]


def _log_probability(n: int, k: int, p: float) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) + k * log(p) + (n - k) * log1p(-p)


def binomial_interval(n: int, p: float, confidence: float = 0.999) -> tuple[int, int]:
    """Return the counts between which a binomial variable lies with at least the given probability.

    Args:
        n: Number of trials, at least 1.
        p: Probability of each, in (0, 1).
        confidence: Each tail beyond the interval holds at most half of the rest.
    """
    tail = (1 - confidence) / 2
    low, below = 0, 0.0
    while (below := below + exp(_log_probability(n, low, p))) < tail:
        low += 1
    high, above = n, 0.0
    while (above := above + exp(_log_probability(n, high, p))) < tail:
        high -= 1
    return low, high
