"""What an inbound request hands on to the calls made while serving it.

Server adapters enter a context for each request, clients read it: the deadline caps every outbound call, the attempt
number tells a callee that it is being retried. It is a context variable, so it follows tasks by itself; work handed to
a thread pool keeps it through `carry`.

The trace context travels with OpenTelemetry's own context (API only), which the same adapters attach.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

__all__ = ["InboundContext", "carry", "current", "entered", "remaining_s"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class InboundContext:
    """One request that is being served.

    Attributes:
        deadline: Monotonic seconds after which nobody waits for the answer; None: no deadline.
        principal: SPIFFE id of the caller as its certificate proved it, or empty.
        attempt: 1, or more when the caller is retrying.
    """

    deadline: float | None = None
    principal: str = ""
    attempt: int = 1


_current: ContextVar[InboundContext | None] = ContextVar("meshlib_inbound", default=None)


def current() -> InboundContext | None:
    """Return the request that is being served here, or None."""
    return _current.get()


@contextmanager
def entered(context: InboundContext) -> Iterator[None]:
    """Make a context the current one for a block."""
    token = _current.set(context)
    try:
        yield
    finally:
        with suppress(ValueError):  # a generator that is dropped ends in another context, where nothing was set
            _current.reset(token)


def remaining_s(now: float) -> float | None:
    """Return the seconds left until the inbound deadline (0.0 when it has passed), or None without one."""
    context = _current.get()
    if context is None or context.deadline is None:
        return None
    return max(0.0, context.deadline - now)


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function so that it runs in the context of where it was wrapped: for executors that drop it."""
    context = copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.copy().run(function, *args, **kwargs)

    return run
