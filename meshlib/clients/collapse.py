"""Identical calls that are under way at the same time become one: who comes second waits for the first one's result.

Whoever comes first does the work, in its own thread or task, with its own deadline and trace. The others wait as long
as they themselves may. When the first one leaves for reasons of its own (it is cancelled, the request that it serves has
no time left), one of the others takes its place: nobody fails for somebody else's reasons.
"""

from collections.abc import Awaitable, Callable, Hashable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import anyio
import anyio.lowlevel

from meshlib.errors import DeadlineExceeded
from meshlib.ports import Lock

__all__ = ["AsyncFlights", "Flights"]

TimeLeft = Callable[[], float | None]
"""Seconds that somebody may still wait; None: no limit."""

# Keys of the work that is being done here, or for which this is being done: waiting for it would be waiting for oneself.
_at_work: ContextVar[frozenset[Hashable]] = ContextVar("meshlib_at_work", default=frozenset())


class _HandOverError(Exception):
    """The one who did the work left; somebody else must do it."""


@contextmanager
def _working(key: Hashable) -> Iterator[None]:
    token = _at_work.set(_at_work.get() | {key})
    try:
        yield
    finally:
        _at_work.reset(token)


class Flights:
    """Calls under way in threads.

    Args:
        is_personal: Whether a failure is the worker's own, so that it says nothing to the others.
    """

    def __init__(self, is_personal: Callable[[BaseException], bool]) -> None:
        self._is_personal: Final = is_personal
        self._lock = Lock()
        # Guarded by the lock.
        self._flights: dict[Hashable, Future[Any]] = {}

    def run(self, key: Hashable, work: Callable[[], Any], left_s: TimeLeft) -> Any:
        """Do the work, or wait for whoever does it.

        Raises:
            DeadlineExceeded: Somebody else's result did not come in time.
            Exception: What the work raised.
        """
        if key in _at_work.get():
            return work()
        while True:
            with self._lock:
                found = self._flights.get(key)
                if found is None:
                    flight = self._flights[key] = Future[Any]()
            if found is None:
                return self._work(key, flight, work)
            try:
                return found.result(left_s())
            except _HandOverError:
                continue
            except FutureTimeoutError as error:
                if found.done():
                    raise  # the work's own
                raise _late() from error

    def _work(self, key: Hashable, flight: "Future[Any]", work: Callable[[], Any]) -> Any:
        try:
            with _working(key):
                value = work()
        except BaseException as error:
            self._land(key)
            flight.set_exception(_HandOverError() if self._is_personal(error) else error)
            raise
        self._land(key)
        flight.set_result(value)
        return value

    def _land(self, key: Hashable) -> None:
        with self._lock:
            del self._flights[key]


class _Flight:
    """One call under way in a task; of one event loop."""

    __slots__ = ("done", "error", "is_personal", "value")

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.value: Any = None
        self.error: BaseException | None = None
        self.is_personal = False


class AsyncFlights:
    """Calls under way in tasks. Those of different event loops know nothing of each other."""

    def __init__(self, is_personal: Callable[[BaseException], bool]) -> None:
        """As `Flights`."""
        self._is_personal: Final = is_personal
        # An event loop touches its own keys only, so that there is no lock.
        self._flights: dict[Hashable, _Flight] = {}

    async def run(self, key: Hashable, work: Callable[[], Awaitable[Any]], left_s: TimeLeft) -> Any:
        """As `Flights.run`."""
        key = (anyio.lowlevel.current_token(), key)
        if key in _at_work.get():
            return await work()
        while True:
            flight = self._flights.get(key)
            if flight is None:
                return await self._work(key, work)
            with anyio.move_on_after(left_s()):
                await flight.done.wait()
            if not flight.done.is_set():
                raise _late()
            if flight.error is None:
                return flight.value
            if not flight.is_personal:
                raise flight.error

    async def _work(self, key: Hashable, work: Callable[[], Awaitable[Any]]) -> Any:
        flight = self._flights[key] = _Flight()
        try:
            with _working(key):
                flight.value = await work()
        except BaseException as error:
            flight.error, flight.is_personal = error, self._is_personal(error)
            raise
        else:
            return flight.value
        finally:
            del self._flights[key]
            flight.done.set()


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the identical call that is under way did not end in the time of this one")
