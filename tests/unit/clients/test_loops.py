"""Work that a thread hands to an event loop."""

import asyncio
import threading

import anyio
import pytest

from meshlib.clients.loops import handed_to_this_loop


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_work_runs_in_the_loop_that_was_there(backend):
    async def main() -> tuple[int, int]:
        done, found = anyio.Event(), []

        async def work() -> None:
            found.append(threading.get_ident())
            done.set()

        thread = threading.Thread(target=handed_to_this_loop(), args=(work,))
        thread.start()
        with anyio.fail_after(10):
            await done.wait()
        thread.join()
        return threading.get_ident(), found[0]

    here, there = anyio.run(main, backend=backend)
    assert here == there


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_that_has_ended_does_nothing(backend):
    async def main():
        return handed_to_this_loop()

    worked = []

    async def work() -> None:
        worked.append(1)

    anyio.run(main, backend=backend)(work)
    assert [] == worked


async def test_without_a_loop_of_trio_it_is_asyncios():
    import trio  # noqa: F401 - loaded, but not running here

    done = asyncio.Event()

    async def work() -> None:
        done.set()

    handed_to_this_loop()(work)
    await asyncio.wait_for(done.wait(), 10)
