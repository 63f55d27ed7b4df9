import pytest

from meshlib.testing import FakeClock


def test_moves_only_when_told() -> None:
    clock = FakeClock(5.0)

    assert (clock(), clock()) == (5.0, 5.0)
    clock.advance(1.5)
    assert clock() == 6.5


def test_due_timers_run_in_order_each_at_its_own_time() -> None:
    clock, seen = FakeClock(0.0), []
    for name, delay in (("late", 3.0), ("early", 1.0), ("same", 1.0), ("too late", 9.0)):
        clock.call_later(delay, lambda name=name: seen.append((name, clock())))  # type: ignore[misc]

    clock.advance(5.0)

    assert seen == [("early", 1.0), ("same", 1.0), ("late", 3.0)]
    assert (clock(), clock.next_due_at) == (5.0, 9.0)


def test_timer_made_by_a_timer_runs_in_the_same_step_if_due() -> None:
    clock, seen = FakeClock(0.0), []
    clock.call_later(1.0, lambda: clock.call_later(1.0, lambda: seen.append(clock())))

    clock.advance(2.0)

    assert seen == [2.0]


def test_cancelled_timer_does_not_run() -> None:
    clock, seen = FakeClock(0.0), []
    timer = clock.call_later(1.0, lambda: seen.append(1))
    timer.cancel()
    clock.advance(2.0)

    assert seen == []
    assert clock.next_due_at is None


def test_time_that_has_passed_is_due_at_the_next_step() -> None:
    clock, seen = FakeClock(10.0), []
    clock.call_at(3.0, lambda: seen.append(clock()))
    clock.advance(0.0)

    assert seen == [10.0]


def test_time_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="backwards"):
        FakeClock().advance(-1.0)


async def test_sleeping_lets_time_pass() -> None:
    clock = FakeClock(0.0)
    clock.sleep(1.0)
    await clock.sleep_async(2.0)

    assert (clock(), clock.slept) == (3.0, [1.0, 2.0])
