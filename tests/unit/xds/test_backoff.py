"""Waits before a management server is tried again."""

from meshlib.xds.backoff import ReconnectBackoff


class Fixed:
    def __init__(self, value: float) -> None:
        self._value = value

    def random(self) -> float:
        return self._value

    def getrandbits(self, k: int, /) -> int:
        return 0


def test_waits_grow_by_1_6_up_to_120_s() -> None:
    backoff = ReconnectBackoff()
    waits = [backoff.after_failure(Fixed(0.5)) for _ in range(13)]
    assert [round(wait, 6) for wait in waits[:4]] == [1.0, 1.6, 2.56, 4.096]
    assert waits[-1] == 120.0


def test_jitter_is_a_fifth_either_way() -> None:
    assert ReconnectBackoff().after_failure(Fixed(0.0)) == 0.8
    assert round(ReconnectBackoff().after_failure(Fixed(0.999999)), 3) == 1.2


def test_a_stream_with_a_response_starts_the_waits_over() -> None:
    backoff = ReconnectBackoff()
    backoff.after_failure(Fixed(0.5))
    backoff.after_failure(Fixed(0.5))
    assert backoff.after_success(30.0) == 0.0
    assert backoff.after_failure(Fixed(0.5)) == 1.0


def test_a_server_that_hangs_up_at_once_cannot_spin_us() -> None:
    assert ReconnectBackoff().after_success(0.25) == 0.75
