"""What is looked after once a second though nobody calls: connections that have idled for long enough."""

import logging
import threading
import weakref
from collections.abc import Callable

__all__ = ["TidyingUp"]

_LOG = logging.getLogger(__name__)


class TidyingUp:
    """Methods that let go of what is old, each for as long as somebody else holds its object."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: list[weakref.WeakMethod[Callable[[], None]]] = []  # guarded by the lock

    def add(self, tidy: Callable[[], None]) -> None:
        """Have a bound method called once a second, by the control thread: it must not wait."""
        with self._lock:
            self._known.append(weakref.WeakMethod(tidy))

    def run(self, is_closed: Callable[[], bool] = lambda: False) -> None:
        """Call them; never raises.

        Args:
            is_closed: Whether the mesh is; another thread may close it meanwhile, and there is nothing to tidy then.
        """
        with self._lock:
            self._known = [one for one in self._known if one() is not None]
            known = tuple(self._known)
        for one in known:
            tidy = one()
            if tidy is None:
                continue
            if is_closed():
                return
            try:
                tidy()
            except Exception:
                if is_closed():
                    return
                _LOG.exception("%r failed", tidy)

    def after_fork_in_child(self) -> None:
        """Another thread may have held the lock."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)
