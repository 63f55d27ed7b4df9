"""What a pool takes of the cluster's limits, and gives back."""

from threading import Lock

import httpx
import pytest

from meshlib.clients.connections import Http1Pool
from meshlib.clients.connections_async import AsyncHttp1Pool
from meshlib.clients.pools import PoolKey
from meshlib.model.cluster import CircuitBreakers
from meshlib.resilience.circuit_breaker import CircuitBreaker


@pytest.mark.parametrize("kind", [Http1Pool, AsyncHttp1Pool])
def test_pool_that_nobody_closed_gives_its_permits_back(kind: type[Http1Pool] | type[AsyncHttp1Pool]) -> None:
    breaker = CircuitBreaker(CircuitBreakers(max_connections=1), Lock())
    pool = kind(PoolKey("127.0.0.1:1", breaker=breaker), httpx.Limits(max_connections=5))
    assert pool._begin(breaker) is None if isinstance(pool, Http1Pool) else pool._may_open(breaker)
    assert not breaker.try_connect(is_first=False)

    del pool

    assert breaker.try_connect(is_first=False)


def test_pools_of_two_clusters_with_the_same_endpoint_are_two() -> None:
    first, second = (CircuitBreaker(CircuitBreakers(), Lock()) for _ in range(2))

    assert PoolKey("h:1", breaker=first) != PoolKey("h:1", breaker=second)
    assert PoolKey("h:1", breaker=first) == PoolKey("h:1", breaker=first)
