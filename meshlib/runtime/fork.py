"""Forks: what holds threads or gRPC channels stands still before one, and finds its feet after.

One set of hooks per process, made when the first participant registers and not at import. Participants are held weakly.
A participant's `before_fork` runs in the thread that forks, and must leave no lock held by another thread and no live
gRPC call or channel of ours (grpcio hangs or crashes in the child otherwise).
"""

import logging
import os
import threading
import weakref
from typing import Protocol

__all__ = ["ForkAware", "register"]

_LOG = logging.getLogger(__name__)


class ForkAware(Protocol):
    """Who takes part."""

    def before_fork(self) -> None: ...

    def after_fork_in_parent(self) -> None: ...

    def after_fork_in_child(self) -> None: ...


_participants: "weakref.WeakSet[ForkAware]" = weakref.WeakSet()
_lock = threading.Lock()
_is_hooked = False


def register(participant: ForkAware) -> None:
    """Have a participant told of every fork from now on, for as long as it lives."""
    global _is_hooked
    with _lock:
        _participants.add(participant)
        if not _is_hooked:
            os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
            _is_hooked = True


def _before() -> None:
    for participant in list(_participants):
        try:
            participant.before_fork()
        except Exception:
            # An exception here would be printed and ignored by the interpreter, with the other participants not told.
            _LOG.exception("error before a fork")


def _in_parent() -> None:
    for participant in list(_participants):
        participant.after_fork_in_parent()


def _in_child() -> None:
    global _lock
    _lock = threading.Lock()
    for participant in list(_participants):
        participant.after_fork_in_child()
