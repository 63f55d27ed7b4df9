import pytest

from meshlib.resilience.backoff import full_jitter_s, grpc_jitter_s
from meshlib.testing import FixedRng

LOWEST, HIGHEST = FixedRng(0.0), FixedRng(1 - 2**-53)


def test_default_waits_are_whole_milliseconds_below_a_doubling_window() -> None:
    """Envoy: 0-24, 0-49, 0-99, 0-199, 0-249 ms, and so on at the ceiling."""
    longest = [full_jitter_s(retry, 0.025, None, HIGHEST) for retry in range(1, 8)]
    shortest = [full_jitter_s(retry, 0.025, None, LOWEST) for retry in range(1, 8)]

    assert longest == [0.024, 0.049, 0.099, 0.199, 0.249, 0.249, 0.249]
    assert shortest == [0.0] * 7


def test_ceiling_can_be_set() -> None:
    assert full_jitter_s(5, 0.1, 0.3, HIGHEST) == 0.299


def test_base_below_a_millisecond_is_one() -> None:
    assert full_jitter_s(1, 0.0001, 1.0, HIGHEST) == 0.0
    assert full_jitter_s(2, 0.0001, 1.0, HIGHEST) == 0.001


def test_ceiling_is_never_below_the_base() -> None:
    assert full_jitter_s(1, 0.1, 0.05, HIGHEST) == 0.099


def test_many_retries_do_not_overflow() -> None:
    assert full_jitter_s(100_000, 0.025, None, HIGHEST) == 0.249


@pytest.mark.parametrize(("retry", "expected"), [(1, 0.025), (2, 0.05), (4, 0.2), (5, 0.25), (9, 0.25)])
def test_grpc_waits_stay_within_a_fifth_of_the_window(retry: int, expected: float) -> None:
    assert grpc_jitter_s(retry, 0.025, None, LOWEST) == pytest.approx(expected * 0.8)
    assert grpc_jitter_s(retry, 0.025, None, HIGHEST) == pytest.approx(expected * 1.2)
