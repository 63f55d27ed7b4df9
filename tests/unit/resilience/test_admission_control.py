"""Requests refused at random while a service fails."""

from random import Random

import pytest

from meshlib.model.filters import AdmissionControl
from meshlib.resilience.admission_control import AdmissionController


def controller(good: int = 0, bad: int = 0, now: float = 0.0, **options: object) -> AdmissionController:
    found = AdmissionController(AdmissionControl(**options))  # type: ignore[arg-type]
    for is_success in [True] * good + [False] * bad:
        found.record(now, is_success=is_success)
    return found


@pytest.mark.parametrize(
    ("good", "bad", "options", "expected"),
    [
        (0, 0, {}, 0.0),
        (95, 5, {}, 0.0),
        (100, 0, {}, 0.0),
        (0, 100, {}, 0.8),
        (0, 100, {"max_rejection": 1.0}, 100 / 101),
        (50, 50, {}, (100 - 50 / 0.95) / 101),
        (50, 50, {"threshold": 0.5}, 0.0),
        (50, 50, {"aggression": 2.0, "max_rejection": 1.0}, ((100 - 50 / 0.95) / 101) ** 0.5),
        (0, 100, {"rps_threshold": 101}, 0.0),
        (0, 100, {"rps_threshold": 100}, 0.8),
        (0, 100, {"is_enabled": False}, 0.0),
    ],
)
def test_probability_follows_the_success_rate(good: int, bad: int, options: dict[str, object], expected: float) -> None:
    assert expected == pytest.approx(controller(good, bad, **options).rejection_probability(0.5))


def test_rate_is_an_average_over_the_window_so_far() -> None:
    found = controller(bad=100, rps_threshold=20)
    assert found.rejection_probability(5.0) > 0
    assert 0.0 == found.rejection_probability(5.1)


def test_results_count_for_the_window_and_no_longer() -> None:
    found = controller(bad=10)
    found.record(20.0, is_success=True)
    assert found.rejection_probability(29.9) > 0
    assert 0.0 == found.rejection_probability(30.0)


def test_share_of_refusals_is_the_probability() -> None:
    found, rng = controller(bad=1000), Random(7)
    refused = sum(not found.admits(0.0, rng) for _ in range(10_000))
    assert 7_800 < refused < 8_200


@pytest.mark.parametrize(
    ("status", "grpc_status", "is_grpc", "expected"),
    [
        (200, None, False, True),
        (499, None, False, True),
        (500, None, False, False),
        (0, None, False, False),
        (200, 0, True, True),
        (200, 5, True, True),
        (200, 14, True, False),
        (200, 8, True, False),
        (200, None, True, False),
    ],
)
def test_what_is_a_success(status: int, grpc_status: int | None, is_grpc: bool, expected: bool) -> None:
    assert expected == controller().is_success(status, grpc_status, is_grpc=is_grpc)


def test_criteria_can_be_chosen() -> None:
    found = controller(http_success=((200, 300), (404, 405)), grpc_success=frozenset({0, 14}))
    assert [True, False, True] == [found.is_success(code, None, is_grpc=False) for code in (200, 302, 404)]
    assert [True, False, True] == [found.is_success(200, code, is_grpc=True) for code in (0, 5, 14)]
