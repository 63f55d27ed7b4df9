import gc
import ssl

import pytest

from meshlib.clients.pools import PoolKey, Pools
from meshlib.testing.clock import FakeClock

A, B = PoolKey("10.0.0.1:80"), PoolKey("10.0.0.2:80")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def pools(clock: FakeClock) -> Pools[list[PoolKey]]:
    return Pools(lambda key: [key], clock=clock, idle_s=4.0)


def test_calls_to_one_endpoint_share_a_pool(pools):
    first, second, other = pools.acquire(A), pools.acquire(A), pools.acquire(B)
    assert first.pool is second.pool
    assert first.pool is not other.pool
    assert len(pools) == 2


def test_another_tls_context_is_another_pool(pools):
    old, new = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    first = pools.acquire(PoolKey("10.0.0.1:80", context=old))
    assert first.pool is not pools.acquire(PoolKey("10.0.0.1:80", context=new)).pool


def test_pool_without_calls_is_handed_out_for_closing_by_the_next_release(pools, clock):
    gone = pools.acquire(A)
    pools.release(gone)
    clock.advance(4.5)
    busy = pools.acquire(B)
    assert pools.release(busy) == [[A]]
    assert len(pools) == 1


def test_pool_without_calls_is_handed_out_by_a_look_without_a_call(pools, clock):
    pools.release(pools.acquire(A))
    busy = pools.acquire(B)
    clock.advance(4.0)
    assert pools.sweep() == []
    clock.advance(0.5)
    assert pools.sweep() == [[A]]
    assert pools.sweep() == []
    assert pools.release(busy) == []


@pytest.mark.parametrize(("of_cluster_s", "expected_s"), [(1.0, 1.0), (60.0, 4.0), (0.0, 4.0), (None, 4.0)])
def test_pool_goes_when_the_cluster_lets_none_of_its_connections_idle_longer(pools, clock, of_cluster_s, expected_s):
    pools.release(pools.acquire(A._replace(idle_s=of_cluster_s)))
    clock.advance(expected_s - 0.25)
    assert pools.sweep() == []
    clock.advance(0.5)
    assert len(pools.sweep()) == 1


def test_pool_in_use_is_never_closed(pools, clock):
    pools.acquire(A)
    clock.advance(3600.0)
    assert pools.release(pools.acquire(B)) == []


def test_fresh_pool_is_closed_at_its_release_and_never_shared(pools):
    shared = pools.acquire(A)
    fresh = pools.acquire(A, fresh=True)
    assert fresh.pool is not shared.pool
    assert pools.acquire(A).pool is shared.pool
    assert pools.release(fresh) == [fresh.pool]


def test_close_hands_out_everything_once_and_refuses_more(pools):
    lease = pools.acquire(A)
    pools.release(pools.acquire(B))
    assert sorted(pools.close()) == [[A], [B]]
    assert pools.close() == []
    assert pools.release(lease) == []
    with pytest.raises(RuntimeError, match="closed"):
        pools.acquire(A)


def test_forked_child_starts_without_pools(pools):
    lease = pools.acquire(A)
    pools.forget()
    assert pools.acquire(A).pool is not lease.pool
    assert pools.release(lease) == []


class Body:
    """Of a response, as far as pools know it; `counts` has the number that are held."""

    def __init__(self, pools: Pools[list[PoolKey]], counts: list[int]) -> None:
        self.pools, self.counts = pools, counts
        self.cycle = self  # as between httpx's responses and their streams
        self.held = 1
        counts[0] += 1

    def __del__(self) -> None:
        self.pools.dropped.append(self)

    def give_back(self) -> None:
        self.counts[0] -= self.held
        self.held = 0


def test_what_was_dropped_with_its_transport_is_given_back_when_the_next_is_made(clock):
    counts = [0]

    def leave_behind() -> None:
        pools = Pools(lambda key: [key], clock=clock, idle_s=4.0)
        pools.dropped.append(Body(pools, counts))
        Body(pools, counts)  # its finaliser runs before that of its pools, or after

    leave_behind()
    gc.collect()
    assert [2] == counts
    Pools(lambda key: [key], clock=clock, idle_s=4.0)
    assert [0] == counts
