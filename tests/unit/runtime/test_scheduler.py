"""Posted actions and timers, in order, on a clock moved by hand."""

import logging
import threading

import pytest

from meshlib.runtime.scheduler import Scheduler
from meshlib.testing import FakeClock


def test_posted_actions_run_in_order() -> None:
    scheduler, ran = Scheduler(FakeClock()), list[int]()
    for number in range(3):
        scheduler.post(lambda number=number: ran.append(number))  # type: ignore[misc]
    assert scheduler.run(block=False) == 3
    assert ran == [0, 1, 2]


def test_who_asks_gets_an_answer_from_the_thread_that_runs_or_none_in_time() -> None:
    scheduler = Scheduler(FakeClock())
    assert scheduler.ask(threading.get_ident, 0.0) is None
    assert 1 == scheduler.run(block=False)  # nobody waits for it any more
    thread = threading.Thread(target=scheduler.run)
    thread.start()
    assert thread.ident == scheduler.ask(threading.get_ident, 60.0)
    thread.join()


def test_timers_run_when_due_and_in_order_of_time() -> None:
    clock = FakeClock()
    scheduler, ran = Scheduler(clock), list[str]()
    scheduler.later(2.0, lambda: ran.append("second"))
    scheduler.later(1.0, lambda: ran.append("first"))
    assert scheduler.run(block=False) == 0
    clock.advance(2.0)
    assert scheduler.run(block=False) == 2
    assert ran == ["first", "second"]


def test_a_cancelled_timer_does_not_run() -> None:
    clock = FakeClock()
    scheduler, ran = Scheduler(clock), list[str]()
    scheduler.later(1.0, lambda: ran.append("x")).cancel()
    clock.advance(2.0)
    assert scheduler.run(block=False) == 0
    assert ran == []


def test_an_action_that_fails_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    scheduler, ran = Scheduler(FakeClock()), list[str]()
    scheduler.post(lambda: [][0])
    scheduler.post(lambda: ran.append("next"))
    with caplog.at_level(logging.ERROR):
        scheduler.run(block=False)
    assert ran == ["next"]
    assert "error in the control thread" in caplog.text


def test_timers_that_are_cancelled_again_and_again_do_not_pile_up() -> None:
    clock = FakeClock()
    scheduler, ran = Scheduler(clock), list[int]()
    kept = [scheduler.later(5.0 + number, lambda number=number: ran.append(number)) for number in range(100)]  # type: ignore[misc]
    for _ in range(10_000):
        scheduler.later(3600.0, lambda: None).cancel()
    assert len(scheduler._timers) < 300
    clock.advance(200.0)
    assert scheduler.run(block=False) == len(kept)
    assert ran == list(range(100))
