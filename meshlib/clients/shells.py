"""What the loops over `Call` ask of a client: one call's way to the network."""

from collections.abc import Callable
from typing import Protocol

from meshlib.call import Attempt
from meshlib.model.outcome import Outcome

__all__ = ["AsyncShell", "Shell"]


class Shell(Protocol):
    """One call's way to the network. The last four are for attempts that run beside each other."""

    def send(self, attempt: Attempt) -> Outcome:
        """Carry out an attempt until its response headers are there, or it has failed.

        What it raises ends the call: trouble that no other endpoint could mend (the caller's own body, a local limit).
        """
        ...

    def discard(self) -> None:
        """Drop the response of the last attempt: another attempt follows."""
        ...

    def fork(self) -> "Shell":
        """Make a shell for one attempt of this call."""
        ...

    def submit(self, work: Callable[[], None]) -> bool:
        """Have another thread do work, at once; False: there is none to be had."""
        ...

    def cancel(self) -> None:
        """End the attempt that another thread is sending, as soon as can be; any number of times."""
        ...

    def adopt(self, winner: "Shell") -> None:
        """Take over the response of a shell that was forked from this one."""
        ...


class AsyncShell(Protocol):
    """As `Shell`, for an event loop, where an attempt is cancelled like any task."""

    async def send(self, attempt: Attempt) -> Outcome:
        """As `Shell.send`."""
        ...

    async def discard(self) -> None:
        """As `Shell.discard`."""
        ...

    def fork(self) -> "AsyncShell":
        """As `Shell.fork`."""
        ...

    def adopt(self, winner: "AsyncShell") -> None:
        """As `Shell.adopt`."""
        ...
