"""The two loops over a `Call` whose attempts run beside each other: one in threads, one in tasks.

Only the thread or task that made the call touches the machine; attempts report to it. Whichever way a loop is left, no
attempt of the call goes on: what is still running is cancelled, and a response that comes all the same is dropped by
whoever has it.
"""

import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final

import anyio

from meshlib.call import Attempt, Call, Done, RaceStep, Wait
from meshlib.clients.shells import AsyncShell, Shell
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response
from meshlib.ports import Clock
from meshlib.runtime.context import carry

__all__ = ["arace", "race"]

_NO_THREAD: Final = Failure(FailureKind.OVERFLOW, False)


class _Runner:
    """One attempt, in a thread of its own. Outcome and flag are guarded by the lock."""

    __slots__ = ("_is_given_up", "_lock", "_report", "attempt", "outcome", "shell")

    def __init__(self, shell: Shell, attempt: Attempt, report: Callable[["_Runner"], None]) -> None:
        self.shell = shell
        self.attempt = attempt
        self.outcome: Outcome | BaseException | None = None
        self._report = report
        self._is_given_up = False
        self._lock = threading.Lock()

    def run(self) -> None:
        outcome: Outcome | BaseException
        try:
            outcome = self.shell.send(self.attempt)
        except BaseException as error:
            outcome = error
        with self._lock:
            self.outcome = outcome
            is_late = self._is_given_up
        if is_late:
            self._drop(outcome)
        else:
            self._report(self)

    def give_up(self) -> None:
        """Nobody wants the outcome any more."""
        with self._lock:
            self._is_given_up = True
            outcome = self.outcome
        if outcome is None:
            self.shell.cancel()
        else:
            self._drop(outcome)

    def _drop(self, outcome: Outcome | BaseException) -> None:
        if isinstance(outcome, Response):
            self.shell.discard()


def race(call: Call, shell: Shell, attempt: Attempt, *, clock: Clock) -> Done:
    """Carry a call on from its first attempt.

    When no thread is to be had the first attempt is made right here, and those beside it are not made.
    """
    ended: SimpleQueue[_Runner] = SimpleQueue()
    flights: set[_Runner] = set()
    step: RaceStep = attempt
    try:
        while True:
            if isinstance(step, Attempt):
                runner = _Runner(shell.fork(), step, ended.put)
                flights.add(runner)
                if not shell.submit(carry(runner.run)):
                    if len(flights) == 1:
                        runner.run()
                    else:
                        runner.outcome = _NO_THREAD
                        ended.put(runner)
                step = call.racing(clock())
            elif isinstance(step, Wait):
                try:
                    runner = ended.get(timeout=step.seconds)
                except Empty:
                    step = call.waited(clock())
                    continue
                flights.discard(runner)
                outcome = runner.outcome
                assert outcome is not None
                if isinstance(outcome, BaseException):
                    raise outcome
                step = call.ended(runner.attempt, outcome, clock())
                if isinstance(step, Done) and step.result is outcome:
                    shell.adopt(runner.shell)
                elif isinstance(outcome, Response):
                    runner.shell.discard()
            else:
                return step
    finally:
        for runner in flights:
            runner.give_up()


class _Ended:
    """The attempts that have ended and were not looked at yet."""

    def __init__(self) -> None:
        self._entries: deque[tuple[AsyncShell, Attempt, Outcome | Exception]] = deque()
        self._changed = anyio.Event()

    async def run(self, shell: AsyncShell, attempt: Attempt) -> None:
        """Carry out an attempt; only cancellation gets out of here."""
        outcome: Outcome | Exception
        try:
            outcome = await shell.send(attempt)
        except Exception as error:
            outcome = error
        self._entries.append((shell, attempt, outcome))
        self._changed.set()

    async def next(self, seconds: float | None) -> tuple[AsyncShell, Attempt, Outcome | Exception] | None:
        """Return an attempt that has ended, in the order of their ends; None: the time is over."""
        if not self._entries:
            self._changed = anyio.Event()
            if seconds is None:
                await self._changed.wait()
            else:
                with anyio.move_on_after(seconds):
                    await self._changed.wait()
        return self._entries.popleft() if self._entries else None

    async def drop(self) -> None:
        """Drop the responses that nobody looked at."""
        while self._entries:
            shell, _, outcome = self._entries.popleft()
            if isinstance(outcome, Response):
                await shell.discard()


async def arace(call: Call, shell: AsyncShell, attempt: Attempt, *, clock: Clock) -> Done:
    """As `race`, in tasks."""
    ended = _Ended()
    done: Done | None = None
    trouble: Exception | None = None
    try:
        async with anyio.create_task_group() as tasks:
            try:
                done = await _arace(call, shell, attempt, ended, tasks, clock)
            except Exception as error:
                trouble = error  # a task group would wrap it
            tasks.cancel_scope.cancel()
    except BaseException:
        if done is not None and isinstance(done.result, Response):  # cancelled while the others were being cancelled
            with anyio.CancelScope(shield=True):
                await shell.discard()
        raise
    finally:
        if ended._entries:
            with anyio.CancelScope(shield=True):
                await ended.drop()
    if trouble is not None:
        raise trouble
    assert done is not None
    return done


async def _arace(call: Call, shell: AsyncShell, attempt: Attempt, ended: _Ended, tasks: Any, clock: Clock) -> Done:
    step: RaceStep = attempt
    while True:
        if isinstance(step, Attempt):
            tasks.start_soon(ended.run, shell.fork(), step)
            step = call.racing(clock())
        elif isinstance(step, Wait):
            found = await ended.next(step.seconds)
            if found is None:
                step = call.waited(clock())
                continue
            runner, finished, outcome = found
            if isinstance(outcome, Exception):
                raise outcome
            step = call.ended(finished, outcome, clock())
            if isinstance(step, Done) and step.result is outcome:
                shell.adopt(runner)
            elif isinstance(outcome, Response):
                await runner.discard()
        else:
            return step
