"""The end of the process: what was not closed is closed then, so that leases end and the copy on disk is written.

Held weakly, and registered on first use. A process killed by a signal does none of this; leases then run out.
"""

import atexit
import threading
import weakref
from typing import Protocol

__all__ = ["Closable", "close_at_exit"]


class Closable(Protocol):
    """Who is closed; safe to call twice.

    Attributes:
        closes_first: Whoever calls this process should stop before it loses its configuration: leases close first.
    """

    closes_first: bool

    def close(self) -> None: ...


_open: "weakref.WeakSet[Closable]" = weakref.WeakSet()
_lock = threading.Lock()
_is_hooked = False


def close_at_exit(closable: Closable) -> None:
    """Have something closed when the interpreter ends, if it still exists then."""
    global _is_hooked
    with _lock:
        _open.add(closable)
        if not _is_hooked:
            atexit.register(_close_all)
            _is_hooked = True


def _close_all() -> None:
    for closable in sorted(_open, key=lambda one: not one.closes_first):
        closable.close()
