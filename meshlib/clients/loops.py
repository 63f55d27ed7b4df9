"""How a thread has something done in an event loop that it does not wait for."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

__all__ = ["Work", "handed_to_this_loop"]

Work = Callable[[], Awaitable[None]]

# The loop holds its tasks weakly.
_running: set[asyncio.Task[Any]] = set()


def handed_to_this_loop() -> Callable[[Work], None]:
    """Return what hands work to the loop that runs here, from any thread.

    It does nothing once the loop has ended. The work must not raise.
    """
    trio = sys.modules.get("trio")
    if trio is not None and _runs_trio(trio):
        token = trio.lowlevel.current_trio_token()
        return lambda work: _unless_ended(token.run_sync_soon, trio.lowlevel.spawn_system_task, work)
    loop = asyncio.get_running_loop()
    return lambda work: _unless_ended(loop.call_soon_threadsafe, _start, work)


def _runs_trio(trio: Any) -> bool:
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


def _unless_ended(hand: Callable[..., object], *what: object) -> None:
    try:
        hand(*what)
    except RuntimeError:  # asyncio's for a closed loop; trio.RunFinishedError is one
        return


def _start(work: Work) -> None:
    task = asyncio.ensure_future(work())
    _running.add(task)
    task.add_done_callback(_running.discard)
