"""What an inbound request hands on to the calls made while serving it.

Server adapters enter a context for each request, clients read it: the deadline caps every outbound call, the attempt
number tells a callee that it is being retried, and some headers go on as they came. It is a context variable, so it
follows tasks by itself; work handed to a thread pool keeps it through `carry`, or in a `ContextExecutor`.

The trace context travels with OpenTelemetry's own context (API only), which the same adapters attach.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar, Token, copy_context
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

from meshlib.model.request import Headers, RequestHead
from meshlib.options import check_callable, check_type, entries

__all__ = [
    "ContextExecutor",
    "InboundContext",
    "added_to",
    "carry",
    "current_request",
    "enter",
    "entered",
    "handed_on",
    "leave",
    "names_to_hand_on",
    "peek_request",
    "remaining_s",
    "urgency_of",
    "with_handed_on",
]

_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

P = ParamSpec("P")
R = TypeVar("R")

PRIORITY: Final = "priority"
"""RFC 9218: how urgent a request is (`u=0` to `u=7`)."""
B3: Final = frozenset({"b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid", "x-b3-sampled", "x-b3-flags"})
HANDED_ON: Final = B3 | {PRIORITY, "x-request-id"}
"""Request headers that go on to the calls made while serving the request, as they came: those by which Istio and Zipkin
join the requests of one origin, and the priority."""
XFCC: Final = "x-forwarded-client-cert"
NOT_HANDED_ON: Final = frozenset(
    {"connection", "content-length", "content-type", "expect", "host", "keep-alive", "te", "trailer"}
    | {"transfer-encoding", "upgrade"}
)
MAX_HANDED_ON: Final = 1024
"""Characters of one such value: longer ones stay behind. A B3 trace has 85, a UUID 36."""
DEFAULT_URGENCY: Final = 3


@dataclass(frozen=True, slots=True)
class InboundContext:
    """One request that is being served.

    Attributes:
        deadline: Monotonic seconds after which nobody waits for the answer; None: no deadline.
        principal: SPIFFE id of the caller as its certificate proved it, or empty.
        attempt: 1, or more when the caller is retrying.
        urgency: 0 (most) to 7 (least), from the `priority` header; 3 where it says nothing (RFC 9218, section 4.1).
        handed_on: Headers that calls made meanwhile carry too.
    """

    deadline: float | None = None
    principal: str = ""
    attempt: int = 1
    urgency: int = DEFAULT_URGENCY
    handed_on: tuple[tuple[str, str], ...] = ()


def names_to_hand_on(names: Iterable[str]) -> frozenset[str]:
    """Check the application's choice of headers to hand on.

    Raises:
        TypeError: It is no sequence of names.
        ValueError: No name of a header; or of one that belongs to one hop, or that the mesh writes itself.
    """
    if isinstance(names, str):
        raise ValueError(f"hand_on={names!r}: give a sequence of header names")
    names = entries("hand_on", names, "header names")
    for name in names:
        check_type("an entry of hand_on", name, str)
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"hand_on: {name!r} is no name of a header")
    chosen = frozenset(name.lower() for name in names)
    for name in sorted(chosen):
        if name in NOT_HANDED_ON or name.startswith((":", "x-envoy-", "grpc-")):
            raise ValueError(f"hand_on: {name!r} belongs to one request and cannot go on to others")
    return chosen


def handed_on(
    headers: Headers, *, names: frozenset[str], but: frozenset[str], principal: str = ""
) -> tuple[tuple[str, str], ...]:
    """Return the headers of an inbound request that go on as they came.

    Args:
        names: Those that go on.
        but: Names that somebody else sees to: those of OpenTelemetry's propagator.
        principal: The caller's SPIFFE id; it takes the place of what the caller says itself in XFCC.
    """
    proven = ((XFCC, f"URI={principal}"),) if principal and XFCC in names else ()
    found = [item for item in headers.items if item[0] in names]
    if not found:
        return proven
    return (
        *(item for item in found if item[0] not in but and item[0] != XFCC and len(item[1]) <= MAX_HANDED_ON),
        *proven,
    )


def with_handed_on(head: RequestHead, handed: tuple[tuple[str, str], ...]) -> RequestHead:
    """Return the head of a call with what is handed on to it. What the application wrote itself has the last word."""
    items = head.headers.items
    added = added_to(items, handed)
    if not added:
        return head
    made = head.but(headers=Headers((*items, *added)))
    made.kin = head.memo or head.kin
    return made


def added_to(items: Iterable[tuple[str, object]], handed: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return what of the headers that are handed on a call gets, by those that it has itself."""
    names = {name for name, _ in handed}
    own = {name for name, _ in items if name in names or name in B3}
    if not own:
        return handed
    if not own.isdisjoint(B3):
        own |= B3  # all or nothing: a span id that stays behind would belong to another trace
    return tuple(item for item in handed if item[0] not in own)


def urgency_of(priority: str | None) -> int:
    """Read a `priority` header; what cannot be read means nothing (RFC 9218, section 4).

    Returns:
        0 to 7.
    """
    if priority is None or len(priority) > MAX_HANDED_ON:
        return DEFAULT_URGENCY
    urgency = DEFAULT_URGENCY
    for member in priority.split(","):
        key, _, value = member.partition(";")[0].strip(" \t").partition("=")
        if key == "u":  # the last one counts (RFC 8941, section 4.2.2)
            urgency = int(value) if len(value) == 1 and value in "01234567" else DEFAULT_URGENCY
    return urgency


_current: ContextVar[InboundContext | None] = ContextVar("meshlib_inbound", default=None)


peek_request: Final[Callable[[], InboundContext | None]] = _current.get
"""As `current_request`, for what each call asks: it saves the call of a function of ours."""


def current_request() -> InboundContext | None:
    """Return the request that is being served here, or None."""
    return _current.get()


def enter(context: InboundContext) -> Token[InboundContext | None]:
    """Make a context the current one; `leave` takes the token."""
    return _current.set(context)


def leave(token: Token[InboundContext | None]) -> bool:
    """Make the context from before the current one again.

    Returns:
        False: this is another context than the one entered, maybe a copy of it, and nothing was done. A generator that
        is dropped ends in the context of whoever drops it, where no token from before is good for anything.
    """
    try:
        _current.reset(token)
    except ValueError:
        return False
    return True


@contextmanager
def entered(context: InboundContext) -> Iterator[None]:
    """Make a context the current one for a block."""
    token = enter(context)
    try:
        yield
    finally:
        leave(token)


def remaining_s(now: float) -> float | None:
    """Return the seconds left until the inbound deadline (0.0 when it has passed), or None without one."""
    context = _current.get()
    if context is None or context.deadline is None:
        return None
    return max(0.0, context.deadline - now)


def carry(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap a function so that it runs in the context of where it was wrapped: for executors that drop it."""
    check_callable("carry", function)
    context = copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.copy().run(function, *args, **kwargs)

    return run


class ContextExecutor(ThreadPoolExecutor):
    """A thread pool whose functions run in the context of whoever submitted them: deadline, identity and trace.

    `submit`, `map` and `loop.run_in_executor` carry it alike; `asyncio.to_thread` needs no executor of its own for that.
    """

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> "Future[R]":
        """As `concurrent.futures.Executor.submit`."""
        return super().submit(carry(fn), *args, **kwargs)
