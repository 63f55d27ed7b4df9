"""The attempts of one call of a function: what each means to `Call`, and the strategies that ask it for tenacity.

What a function raises is how its attempt failed (`function_errors.py`); an exception of `ignore` is none, but an answer that is
passed on to the caller at once.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

import tenacity
from tenacity.retry import retry_base
from tenacity.wait import wait_base

from meshlib.call import Attempt, Call, Done, Sleep, Step
from meshlib.clients.function_errors import outcome_of
from meshlib.clients.function_race import FunctionShell
from meshlib.clients.race import arace
from meshlib.clients.source import MeshSource
from meshlib.model.outcome import Failure, FailureKind, Outcome, Response

__all__ = ["NOTHING", "Progress", "RetryByPolicy", "WaitByPolicy"]

NOTHING: Final = object()
OK = Response(200)


class Progress:
    """One call of a function: where `Call` stands, and what the last attempt gave."""

    def __init__(self, call: Call, mesh: MeshSource, ignore: tuple[type[Exception], ...]) -> None:
        self.call = call
        self.value: Any = NOTHING
        self.error: Exception | None = None
        self._clock = mesh.clock
        self._ignore = ignore
        self.step: Step = call.start(mesh.clock())

    def next_attempt(self) -> Attempt | None:
        """Return the attempt to make now; None: the call has ended. Any wait that was asked for is over."""
        while isinstance(self.step, Sleep):
            self.step = self.call.slept(self._clock())
        return self.step if isinstance(self.step, Attempt) else None

    def returned(self, value: Any) -> None:
        self.value, self.error = value, None
        self.step = self.call.finished(OK, self._clock())

    def raised(self, error: Exception) -> None:
        self.error = error
        self.step = self.call.finished(self._meant_by(error), self._clock())

    async def race(self, step: Attempt, run: Callable[[Attempt], Awaitable[Any]]) -> None:
        """Carry the call to its end, with attempts that run beside each other."""
        shell = FunctionShell(self.call, run, returned=OK, raised=self._meant_by, nothing=NOTHING)
        self.step = await arace(self.call, shell, step, clock=self._clock)
        self.value, self.error = shell.value, shell.error

    def _meant_by(self, error: Exception) -> Outcome:
        return OK if isinstance(error, self._ignore) else outcome_of(error)

    def timed_out(self) -> None:
        self.error = None
        self.step = self.call.finished(Failure(FailureKind.TIMEOUT, True), self._clock())

    def failure(self) -> Exception | None:
        """Return what to raise, or None when the last attempt gave a value."""
        if self.value is not NOTHING:
            return None
        if self.error is None:
            return self.call.error()
        if isinstance(self.error, self._ignore):
            return self.error
        record = self.call.error(str(self.error) or type(self.error).__name__)
        self.error.add_note(f"meshlib: {record}")
        return self.error


class RetryByPolicy(retry_base):
    """Whether: as `Call` reads the route's retry policy. It also says when to stop, so tenacity's own stop is never."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        # tenacity hands over cancellation and interrupts too: those end the loop whatever the policy says. What the
        # function raises is no exception here, but part of the progress.
        outcome = retry_state.outcome
        return not isinstance(self._progress.step, Done) and not (outcome is not None and outcome.failed)


class WaitByPolicy(wait_base):
    """How long: the policy's backoff."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        step = self._progress.step
        return step.seconds if isinstance(step, Sleep) else 0.0
