"""Connecting to the first of several addresses that answers (RFC 8305, "happy eyeballs").

The next address is tried when the one before has failed, or has not answered for a quarter of a second; those that have
begun go on until one has won.
"""

import asyncio
import errno
import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final

__all__ = ["HAPPY_EYEBALLS_S", "Address", "addresses_of", "connect_first", "connect_one", "in_turns", "race"]

Address = tuple[int, int, int, str, Any]
"""Of `getaddrinfo`."""

HAPPY_EYEBALLS_S: Final = 0.25
"""Between the beginnings of two attempts to connect; the recommendation of RFC 8305, section 8, and gRPC's (A61)."""


def in_turns(addresses: Iterable[Address]) -> list[Address]:
    """Return the addresses in the order in which they are tried: the families take turns, beginning with the first."""
    by_family: dict[int, deque[Address]] = {}
    for address in addresses:
        by_family.setdefault(address[0], deque()).append(address)
    found = []
    queues = deque(by_family.values())
    while queues:
        queue = queues.popleft()
        found.append(queue.popleft())
        if queue:
            queues.append(queue)
    return found


@lru_cache(maxsize=4096)
def addresses_of(dials: tuple[str, ...]) -> tuple[Address, ...]:
    """Return endpoint addresses, `ip:port` with IPv6 in brackets, as sockets take them. Their order stays."""
    found: list[Address] = []
    for text in dials:
        host, _, port = text.rpartition(":")
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        found.append((family, socket.SOCK_STREAM, 0, "", (host.strip("[]"), int(port))))
    return tuple(found)


def race(addresses: Iterable[Address], limit_s: float | None, local_address: str | None) -> socket.socket:
    """Return a socket connected to the first address that answers.

    Args:
        limit_s: For all of it; None: as long as it takes.
        local_address: To bind to.

    Raises:
        TimeoutError: None answered in time.
        OSError: All have failed; why the last one did.
    """
    waiting = deque(addresses)
    running: set[socket.socket] = set()
    error: OSError = OSError("no address")
    end = None if limit_s is None else time.monotonic() + limit_s
    won: socket.socket | None = None
    with selectors.DefaultSelector() as selector:
        try:
            next_at = 0.0
            while waiting or running:
                now = time.monotonic()
                if end is not None and now >= end:
                    raise TimeoutError("timed out")
                if waiting and (not running or now >= next_at):
                    next_at = now + HAPPY_EYEBALLS_S
                    try:
                        made = _begin(waiting.popleft(), local_address)
                    except OSError as failure:
                        error = failure
                        continue
                    running.add(made)
                    selector.register(made, selectors.EVENT_WRITE)
                wait_s = [next_at - now] if waiting else []
                wait_s += [] if end is None else [end - now]
                for key, _ in selector.select(max(0.0, min(wait_s)) if wait_s else None):
                    made = key.fileobj  # type: ignore[assignment]  # a socket: that is what was registered
                    selector.unregister(made)
                    running.discard(made)
                    code = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    if not code:
                        won = made
                        return made
                    made.close()
                    error = OSError(code, os.strerror(code))
                    next_at = 0.0  # the next one need not wait for its turn
            raise error
        finally:
            for made in running:
                if made is not won:
                    made.close()


def _begin(address: Address, local_address: str | None) -> socket.socket:
    family, kind, protocol, _, where = address
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        if local_address is not None:
            made.bind((local_address, 0))
        code = made.connect_ex(where)
        if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
            raise OSError(code, os.strerror(code))
    except BaseException:
        made.close()
        raise
    return made


async def connect_first(
    loop: asyncio.AbstractEventLoop, addresses: Sequence[Address], local_address: str | None = None
) -> socket.socket:
    """As `race`, in an asyncio loop, without a limit of its own.

    asyncio has that too, but leaves a socket behind when it is cancelled at the wrong moment; uvloop has it not.
    """
    waiting = deque(addresses)
    if len(waiting) == 1:
        return await connect_one(loop, waiting[0], local_address)
    running: set[asyncio.Task[socket.socket]] = set()
    error: BaseException | None = None
    try:
        while waiting or running:
            if waiting:
                running.add(loop.create_task(connect_one(loop, waiting.popleft(), local_address)))
            wait_s = HAPPY_EYEBALLS_S if waiting else None
            done, _ = await asyncio.wait(running, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None:
                    running.discard(task)
                    return task.result()
            running -= done
    finally:
        for task in running:
            task.add_done_callback(_drop)
            task.cancel()
    if error is None:
        raise OSError("no address")
    raise error


async def connect_one(
    loop: asyncio.AbstractEventLoop, address: Address, local_address: str | None = None
) -> socket.socket:
    """Return a socket connected to an address."""
    family, kind, protocol, _, where = address
    made = socket.socket(family, kind, protocol)
    try:
        made.setblocking(False)
        if local_address is not None:
            made.bind((local_address, 0))
        await loop.sock_connect(made, where)
    except BaseException:
        made.close()
        raise
    return made


def _drop(task: "asyncio.Task[socket.socket]") -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
