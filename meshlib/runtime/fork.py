"""Forks: what holds threads or gRPC channels stands still before one, and finds its feet after.

One set of hooks per process, made when the first participant registers and not at import. Participants are held weakly.
A participant's `before_fork` runs in the thread that forks, and must leave no lock held by another thread and no live
gRPC call or channel of ours (grpcio hangs or crashes in the child otherwise).
"""

import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

import grpc

__all__ = ["ForkAware", "keep_core", "register"]

_LOG = logging.getLogger(__name__)
_core: grpc.ServerCredentials | None = None


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


def keep_core() -> None:
    """Keep gRPC's core from shutting down when its last channel is closed; called before those are closed for a fork.

    The shutdown is done by a thread of core's, which holds the lock that the next use of gRPC needs: one fork in a hundred came
    in between, and that child stood still for ever in its first channel. Credentials are the smallest thing that uses core.
    """
    global _core
    if _core is None:
        _core = grpc.local_server_credentials()


def _before() -> None:
    keep_core()
    _tell("before a fork", lambda participant: participant.before_fork())


def _in_parent() -> None:
    _tell("after a fork", lambda participant: participant.after_fork_in_parent())


def _in_child() -> None:
    global _lock
    _lock = threading.Lock()
    _tell("after a fork", lambda participant: participant.after_fork_in_child())


def _tell(when: str, tell: Callable[[ForkAware], None]) -> None:
    for participant in list(_participants):
        try:
            tell(participant)
        except Exception:
            # It would be printed and ignored by the interpreter, with the other participants not told.
            _LOG.exception("error %s", when)
