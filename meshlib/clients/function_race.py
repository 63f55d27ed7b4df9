"""Attempts of an async function that run beside each other."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any

import anyio

from meshlib.call import Attempt, Call
from meshlib.clients.shells import AsyncShell
from meshlib.clients.tracing import attempt_scope
from meshlib.model.outcome import Failure, FailureKind, Outcome

__all__ = ["FunctionShell"]


class FunctionShell:
    """Runs a function for one attempt, and keeps what came of it.

    Attributes:
        value: What it returned, else as `nothing` was given.
        error: What it raised.
    """

    def __init__(
        self,
        call: Call,
        run: Callable[[Attempt], Awaitable[Any]],
        *,
        returned: Outcome,
        raised: Callable[[Exception], Outcome],
        nothing: Any,
    ) -> None:
        """Make a shell.

        Args:
            run: Calls the function.
            returned: What its return means.
            raised: Says what an exception means.
            nothing: Stands for no value.
        """
        self.value = nothing
        self.error: Exception | None = None
        self._call = call
        self._run = run
        self._returned = returned
        self._raised = raised
        self._nothing = nothing
        # Of the attempt which this shell is made for: when it runs, another one may be the latest.
        self._scope: AbstractContextManager[None] = attempt_scope(call)

    def fork(self) -> "FunctionShell":
        return FunctionShell(self._call, self._run, returned=self._returned, raised=self._raised, nothing=self._nothing)

    async def send(self, attempt: Attempt) -> Outcome:
        try:
            with self._scope, anyio.move_on_after(attempt.timeout_s) as scope:
                self.value = await self._run(attempt)
        except Exception as error:
            self.error = error
            return self._raised(error)
        if scope.cancelled_caught:
            return Failure(FailureKind.TIMEOUT, True)
        return self._returned

    async def discard(self) -> None:
        """A value needs no dropping."""

    def adopt(self, winner: AsyncShell) -> None:
        assert isinstance(winner, FunctionShell)
        self.value, self.error = winner.value, winner.error
