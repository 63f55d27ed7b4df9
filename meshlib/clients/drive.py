"""The two loops over `Call`: one blocks, one awaits, both obey the same directives.

A shell is anything that can carry out one attempt and drop the response of an attempt that is going to be repeated.
The loops release what the call holds when they leave by an exception, cancellation included. When they return, the
caller owns the call: a response may still be streaming, and its permits are held until `Call.close`.
"""

from collections.abc import Awaitable, Callable
from typing import assert_never

from meshlib.call import Attempt, Call, Done, Sleep, Step
from meshlib.clients.race import arace, race
from meshlib.clients.shells import AsyncShell, Shell
from meshlib.model.outcome import Response
from meshlib.ports import Clock

__all__ = ["AsyncShell", "Shell", "arun", "run"]


def run(call: Call, shell: Shell, *, clock: Clock, sleep: Callable[[float], None], step: Step | None = None) -> Done:
    """Carry a call to its end, blocking.

    Args:
        step: The first, of a call that has begun; None: begin it.

    Returns:
        What the call came to. After a response the call stays open, so that its permits cover the body; the caller
        closes it. On any exception it has been closed here.
    """
    try:
        if step is None:
            step = call.start(clock())
        while True:
            match step:
                case Attempt():
                    if step.is_raced:
                        return race(call, shell, step, clock=clock)
                    outcome = shell.send(step)
                    step = call.finished(outcome, clock())
                    if isinstance(outcome, Response) and not _is_answer(step):
                        shell.discard()
                case Sleep(seconds=seconds):
                    sleep(seconds)
                    step = call.slept(clock())
                case Done():
                    return step
                case _:
                    assert_never(step)
    except BaseException:
        call.close(clock())
        raise


async def arun(
    call: Call,
    shell: AsyncShell,
    *,
    clock: Clock,
    sleep: Callable[[float], Awaitable[None]],
    step: Step | None = None,
) -> Done:
    """As `run`, awaiting; a cancellation at any await closes the call."""
    try:
        if step is None:
            step = call.start(clock())
        while True:
            match step:
                case Attempt():
                    if step.is_raced:
                        return await arace(call, shell, step, clock=clock)
                    outcome = await shell.send(step)
                    step = call.finished(outcome, clock())
                    if isinstance(outcome, Response) and not _is_answer(step):
                        await shell.discard()
                case Sleep(seconds=seconds):
                    await sleep(seconds)
                    step = call.slept(clock())
                case Done():
                    return step
                case _:
                    assert_never(step)
    except BaseException:
        call.close(clock())
        raise


def _is_answer(step: Step) -> bool:
    """Whether the response at hand is what the caller gets."""
    return isinstance(step, Done) and isinstance(step.result, Response)
