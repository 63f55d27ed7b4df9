from threading import Lock

import pytest

from meshlib.model.cluster import CircuitBreakers
from meshlib.resilience.budget import retry_limit
from meshlib.resilience.circuit_breaker import CircuitBreaker


def breaker(**limits: float) -> CircuitBreaker:
    return CircuitBreaker(CircuitBreakers(**limits), Lock())  # type: ignore[arg-type]


def test_requests_up_to_the_limit() -> None:
    found = breaker(max_requests=2)

    assert [found.try_acquire() for _ in range(3)] == [True, True, False]
    found.release()
    assert found.try_acquire()
    assert found.active == 2


def test_retries_up_to_the_limit() -> None:
    found = breaker(max_retries=1)

    assert [found.try_acquire_retry() for _ in range(2)] == [True, False]
    found.release_retry()
    assert found.try_acquire_retry()


def test_new_limits_keep_the_counts() -> None:
    found = breaker(max_requests=5)
    assert found.try_acquire()
    found.limits = CircuitBreakers(max_requests=1)

    assert not found.try_acquire()
    assert found.active == 1


@pytest.mark.parametrize(
    ("percent", "active", "expected"),
    [(None, 100, 3), (20.0, 100, 20), (20.0, 99, 19), (20.0, 4, 3), (20.0, 0, 3), (100.0, 7, 7), (0.0, 1000, 3)],
)
def test_budget_is_a_share_of_the_active_requests(percent: float | None, active: int, expected: int) -> None:
    assert retry_limit(CircuitBreakers(retry_budget_percent=percent), active) == expected


def test_budget_may_allow_none() -> None:
    assert retry_limit(CircuitBreakers(retry_budget_percent=10.0, min_retry_concurrency=0), 9) == 0


def test_connections_up_to_the_limit_but_one_for_every_host() -> None:
    found = breaker(max_connections=1)

    assert [found.try_connect(is_first=first) for first in (True, False, True)] == [True, False, True]
    assert found.connections == 2
    found.disconnected(2)
    assert found.try_connect(is_first=False)


def test_requests_wait_up_to_the_limit() -> None:
    found = breaker(max_pending_requests=1)

    assert [found.try_pend() for _ in range(2)] == [True, False]
    found.end_pending()
    assert found.try_pend()


def test_abandoned_connections_are_free_without_the_lock() -> None:
    found = breaker(max_connections=1)
    found.try_connect(is_first=True)
    with found.lock:  # as when a finaliser runs in the middle of something
        found.abandon(1)

    assert found.try_connect(is_first=False)
    assert found.connections == 1


def test_connections_to_one_endpoint_are_limited_but_for_the_first() -> None:
    breaker = CircuitBreaker(CircuitBreakers(max_connections_per_host=2), Lock())
    assert breaker.try_connect(is_first=True, of_host=0)
    assert breaker.try_connect(is_first=False, of_host=1)
    assert not breaker.try_connect(is_first=False, of_host=2)
    assert 2 == breaker.connections
    breaker.limits = CircuitBreakers(max_connections_per_host=0)
    assert breaker.try_connect(is_first=True, of_host=0), "one may always be opened"
