"""Waiting: looks at once, after each change, and one last time."""

import asyncio
import threading

import pytest

from meshlib.runtime.clock import monotonic
from meshlib.runtime.wait import Waiters


def test_what_is_there_is_found_without_waiting() -> None:
    assert Waiters().wait(lambda: "here", 0.0, monotonic) == "here"


def test_time_over_is_none() -> None:
    assert Waiters().wait(lambda: None, 0.0, monotonic) is None


def test_a_change_wakes_a_thread() -> None:
    waiters, found = Waiters(), list[str]()
    looked = threading.Event()

    def look() -> str | None:
        looked.set()
        return found[0] if found else None

    def change() -> None:
        looked.wait(5.0)
        found.append("now")
        waiters.notify()

    thread = threading.Thread(target=change)
    thread.start()
    assert waiters.wait(look, 10.0, monotonic) == "now"
    thread.join()
    assert not waiters._waiters


async def test_a_change_wakes_tasks_from_another_thread() -> None:
    waiters, found = Waiters(), list[str]()
    tasks = [
        asyncio.create_task(waiters.wait_async(lambda: found[0] if found else None, 10.0, monotonic)) for _ in range(5)
    ]
    await asyncio.sleep(0)
    found.append("now")
    await asyncio.to_thread(waiters.notify)
    assert await asyncio.gather(*tasks) == ["now"] * 5
    assert not waiters._waiters


async def test_a_cancelled_task_leaves_nothing_behind() -> None:
    waiters = Waiters()
    task = asyncio.create_task(waiters.wait_async(lambda: None, 10.0, monotonic))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not waiters._waiters


def test_an_error_of_the_look_ends_the_wait() -> None:
    waiters = Waiters()
    with pytest.raises(ZeroDivisionError):
        waiters.wait(lambda: 1 // 0, 10.0, monotonic)
    assert not waiters._waiters
