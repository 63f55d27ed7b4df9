"""The context that an inbound request hands on."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from meshlib.runtime.context import InboundContext, carry, current, entered, remaining_s


def test_there_is_no_context_outside_a_request() -> None:
    assert current() is None
    assert remaining_s(10.0) is None


def test_remaining_time_counts_down_to_zero() -> None:
    with entered(InboundContext(deadline=12.0)):
        assert 2.0 == remaining_s(10.0)
        assert 0.0 == remaining_s(99.0)
    assert current() is None


def test_a_request_without_deadline_has_no_remaining_time() -> None:
    with entered(InboundContext(principal="spiffe://a/b")):
        assert remaining_s(1.0) is None


def test_context_nests() -> None:
    with entered(InboundContext(attempt=1)):
        with entered(InboundContext(attempt=2)):
            assert InboundContext(attempt=2) == current()
        assert InboundContext(attempt=1) == current()


async def test_tasks_inherit_and_do_not_leak() -> None:
    async def child() -> InboundContext | None:
        return current()

    with entered(InboundContext(attempt=3)):
        task = asyncio.create_task(child())
    assert InboundContext(attempt=3) == await task
    assert current() is None


def test_carry_takes_the_context_into_a_thread() -> None:
    with ThreadPoolExecutor(1) as pool, entered(InboundContext(attempt=4)):
        assert pool.submit(current).result() is None
        assert InboundContext(attempt=4) == pool.submit(carry(current)).result()
