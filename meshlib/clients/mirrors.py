"""Copies of requests under way: sent in the background, bounded in number, and never heard of by the caller.

What would be one too many is dropped (and counted), so a slow mirror costs neither time nor memory without end.
"""

import asyncio
import importlib
import os
import threading
from collections.abc import Awaitable, Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any, Final

import anyio
import httpx

from meshlib.call import Attempt, Call, mirror_call
from meshlib.clients.httpx_common import is_in_memory
from meshlib.clients.source import MeshSource
from meshlib.events import RequestMirrored
from meshlib.model.route import MirrorPolicy

__all__ = ["AsyncMirrors", "Copy", "Mirrors", "copies_of"]

MAX_THREADS: Final = 8
MAX_COPIES: Final = 64
"""Under way and waiting, per transport."""
THREAD_IDLE_S: Final = 5.0
GRACE_S: Final = 1.0
"""How long closing a transport waits for copies that are under way."""


class Copy:
    """One copy of a request.

    Attributes:
        request: What a transport needs of the copy: URL, body and time-outs of the original, nothing of its callbacks.
        call: To be driven, and closed.
    """

    __slots__ = ("_cluster", "_mesh", "_start", "_target", "call", "request")

    def __init__(self, mesh: MeshSource, original: httpx.Request, call: Call, target: str, cluster: str) -> None:
        self._mesh = mesh
        self._start = mesh.clock()
        self._target = target
        self._cluster = cluster
        self.call = call
        timeouts = original.extensions.get("timeout", {})
        self.request = httpx.Request(
            original.method, original.url, stream=original.stream, extensions={"timeout": timeouts}
        )

    def end(self, status: int, failure: str) -> None:
        """Give back what the call holds, and tell the hooks."""
        mesh, call = self._mesh, self.call
        now = mesh.clock()
        call.close(now, status=status)
        mesh.emit(RequestMirrored(self._target, self._cluster, call.endpoint, now - self._start, status, failure))


def copies_of(
    mesh: MeshSource, request: httpx.Request, call: Call, attempt: Attempt, mirrors: Iterable[MirrorPolicy]
) -> list[Copy]:
    """Make the copies of a request whose first attempt is about to be sent."""
    now = mesh.clock()
    can_copy = is_in_memory(request)
    timeout_s = None if call.deadline is None else call.deadline - now
    copies = []
    for policy in mirrors:
        if can_copy:
            shadow = mirror_call(call, policy, attempt.head, rng=mesh.rng, now=now, timeout_s=timeout_s, hook=mesh.emit)
            copies.append(Copy(mesh, request, shadow, call.target.name, policy.cluster))
        else:
            mesh.emit(RequestMirrored(call.target.name, policy.cluster, None, 0.0, 0, "body"))
    return copies


class Mirrors:
    """Background work for threads: a few daemon threads that end when there is nothing to do."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._condition = threading.Condition()
        # Guarded by the condition:
        self._pending = 0
        self._threads = 0
        self._is_closed = False
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def submit(self, work: Callable[[], None]) -> bool:
        """Have work done, which must not raise; False: there is too much of it already."""
        if self._pid != os.getpid():
            self._begin()  # threads do not outlive a fork
        with self._condition:
            if self._is_closed or self._pending >= MAX_COPIES:
                return False
            self._pending += 1
            starts = self._pending > self._threads and self._threads < MAX_THREADS
            self._threads += starts
        self._queue.put(work)
        if starts:
            threading.Thread(target=self._run, name="meshlib-mirror", daemon=True).start()
        return True

    def _run(self) -> None:
        while True:
            try:
                work = self._queue.get(timeout=THREAD_IDLE_S)
            except Empty:
                with self._condition:
                    if self._pending:
                        continue  # it is being put in at this moment
                    self._threads -= 1
                return
            if work is None:
                return
            try:
                work()
            finally:
                with self._condition:
                    self._pending -= 1
                    self._condition.notify_all()

    def close(self, grace_s: float = GRACE_S) -> None:
        """Take no more work, and wait a little for what there is."""
        if self._pid != os.getpid():
            self._begin()
        with self._condition:
            self._is_closed = True
            self._condition.wait_for(lambda: not self._pending, grace_s)
            threads, self._threads = self._threads, 0
        for _ in range(threads):
            self._queue.put(None)


class AsyncMirrors:
    """Background tasks of one event loop, under asyncio or trio."""

    def __init__(self) -> None:
        self._scopes: set[anyio.CancelScope] = set()
        self._tasks: set[Any] = set()  # asyncio only keeps weak references to tasks
        self._drained: anyio.Event | None = None
        self._is_closed = False

    def submit(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Have work done, which must not raise; False: there is too much of it already."""
        if self._is_closed or len(self._scopes) >= MAX_COPIES:
            return False
        scope = anyio.CancelScope()
        self._scopes.add(scope)

        async def task() -> None:
            try:
                with scope:
                    await work()
            finally:
                self._scopes.discard(scope)
                if self._drained is not None and not self._scopes:
                    self._drained.set()

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            importlib.import_module("trio").lowlevel.spawn_system_task(task)
        else:
            made = loop.create_task(task())
            self._tasks.add(made)
            made.add_done_callback(self._tasks.discard)
        return True

    async def aclose(self, grace_s: float = GRACE_S) -> None:
        """Take no more work, wait a little for what there is, and cancel the rest."""
        self._is_closed = True
        if not self._scopes:
            return
        self._drained = anyio.Event()
        with anyio.move_on_after(grace_s):
            await self._drained.wait()
        if self._scopes:
            for scope in list(self._scopes):
                scope.cancel()
            with anyio.CancelScope(shield=True):
                await self._drained.wait()
