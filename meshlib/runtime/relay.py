"""TLS to a SPIFFE peer for gRPC: a thread that carries bytes between unix sockets of ours and TLS connections.

grpcio's Python client can neither require a URI SAN nor show the peer's certificate. So a channel dials a unix socket
in a directory that only this user can enter; the relay accepts connections of this very process only (the kernel says
whose they are), makes the TLS connection with Python's `ssl`, and forwards bytes once the handshake, which verifies
the peer, is over. Until then it does not even read what gRPC has to say, so a wrong peer gets no application byte.

A route is one unix socket for one endpoint under one TLS context. A rotated certificate is another context, hence
another route: new channels dial the new one, connections of the old one go on until their channel is closed.

Memory per connection is bounded by one buffer in each direction: whoever cannot write stops the other side's reading.
The thread starts with the first route and ends with the last one. A forked child forgets the parent's routes (and
closes its copies of the sockets), and starts a thread of its own.
"""

import asyncio
import contextlib
import errno
import os
import shutil
import socket
import ssl
import struct
import tempfile
import threading
import weakref
from typing import Any, Final

from meshlib.errors import IdentityError
from meshlib.runtime.relay_link import BUFFER_BYTES, LINGER_S, Link, RelayRoute, dial

__all__ = ["TlsRelay"]

THREAD_NAME: Final = "meshlib-relay"

ACCEPT_PAUSE_S: Final = 0.1
"""While there are no file descriptors left."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# sun_path has 108 bytes on Linux, with the terminating zero.
_MAX_PATH: Final = 100

_PEERCRED = struct.Struct("3i")


class TlsRelay:
    """The relay of one mesh. Methods may be called by any thread and do not block on the network."""

    def __init__(self) -> None:
        # Guarded by the lock; the loop's thread alone takes `_loop` back.
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._folder: str | None = None
        self._remove_folder: weakref.finalize[Any, Any] | None = None
        self._routes: set[RelayRoute] = set()
        self._number = 0
        # Of the loop's thread:
        self._buffer = bytearray(BUFFER_BYTES)
        self._links: set[Link] = set()
        self._dialling: set[asyncio.Task[None]] = set()
        _relays.add(self)

    def open(
        self,
        address: str,
        context: ssl.SSLContext,
        *,
        server_name: str = "",
        connect_timeout_s: float = 5.0,
        dials: tuple[str, ...] = (),
    ) -> RelayRoute:
        """Open a way to an endpoint; `release` must follow.

        Args:
            address: `host:port`, IPv6 in brackets, or `unix:/path`.
            context: Verifies the peer inside the handshake and offers `h2` by ALPN.
            server_name: SNI; empty: none is sent.
            connect_timeout_s: For the TCP connection and the handshake together.
            dials: All addresses of the endpoint in the order in which they are tried; empty: just the one.

        Raises:
            IdentityError: This system cannot say which process a local connection comes from.
        """
        if not hasattr(socket, "SO_PEERCRED"):
            raise IdentityError("TLS with SPIFFE identities over gRPC needs SO_PEERCRED (Linux)")
        with self._lock:
            if self._folder is None:
                self._folder = _private_folder()
                self._remove_folder = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            self._number += 1
            path = os.path.join(self._folder, f"{self._number:x}")
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                listener.setblocking(False)
                listener.bind(path)
                listener.listen(128)
            except BaseException:
                listener.close()
                raise
            route = RelayRoute(path, listener, address, context, server_name, connect_timeout_s, dials)
            self._routes.add(route)
            loop = self._loop
            if loop is None:
                loop = self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._run, args=(loop,), name=THREAD_NAME, daemon=True)
                self._thread.start()
            loop.call_soon_threadsafe(self._serve, loop, route)
        return route

    def release(self, route: RelayRoute) -> None:
        """Take no more connections on a route. Those that are there end when gRPC or the peer closes them."""
        with self._lock:
            if route not in self._routes:
                return
            self._routes.discard(route)
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._unserve, self._loop, route)

    def close(self) -> None:
        """Cut every connection and end the thread; returns when it has ended. The relay can be used again."""
        with self._lock:
            routes = tuple(self._routes)
            thread = self._thread
            loop = self._loop
        for route in routes:
            self.release(route)
        if loop is not None and thread is not None:
            with contextlib.suppress(RuntimeError):  # it has ended meanwhile
                loop.call_soon_threadsafe(self._abort_all)
            if thread is not threading.current_thread():
                thread.join(timeout=LINGER_S * 2)

    def statistics(self) -> dict[str, int]:
        """Return the number of open routes and connections."""
        return {"routes": len(self._routes), "connections": len(self._links)}

    # In the loop's thread.

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            loop.run_until_complete(_settle(loop))
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    def _serve(self, loop: asyncio.AbstractEventLoop, route: RelayRoute) -> None:
        if route.listener.fileno() != -1:
            loop.add_reader(route.listener, self._accept, loop, route)

    def _unserve(self, loop: asyncio.AbstractEventLoop, route: RelayRoute) -> None:
        if route.listener.fileno() != -1:
            loop.remove_reader(route.listener)
            route.listener.close()
            with contextlib.suppress(OSError):
                os.unlink(route.path)
        self._stop_if_idle(loop)

    def _accept(self, loop: asyncio.AbstractEventLoop, route: RelayRoute) -> None:
        try:
            client, _ = route.listener.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED:
                # The connection stays in the backlog, so that the loop would call this again without a pause.
                route.last_error = error
                loop.remove_reader(route.listener)
                loop.call_later(ACCEPT_PAUSE_S, self._serve, loop, route)
            return  # else it is gone already
        if _PEERCRED.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))[0] != os.getpid():
            client.close()
            return
        client.setblocking(False)
        task = loop.create_task(self._connect(loop, route, client))
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def _connect(self, loop: asyncio.AbstractEventLoop, route: RelayRoute, client: socket.socket) -> None:
        link = Link(loop, route, client, self._buffer, self._forget)
        self._links.add(link)
        try:
            try:
                async with asyncio.timeout(route.connect_timeout_s):
                    link.upstream = await dial(loop, route.address, route.dials)
                    chosen = await link.shake_hands()
            except TimeoutError as error:
                raise TimeoutError(
                    f"no TLS connection to {route.address} within {route.connect_timeout_s:g} s"
                ) from error
            if chosen != "h2":
                raise ssl.SSLError(f"{route.address} chose ALPN protocol {chosen!r}, gRPC needs 'h2'")
            link.join()
        except asyncio.CancelledError:
            link.drop()
            raise
        except Exception as error:
            # Everything that can go wrong before the first byte ends here; gRPC sees a closed socket, and whoever
            # made the call reads the reason from the route.
            route.last_error = error
            link.drop()

    def _abort_all(self) -> None:
        for task in tuple(self._dialling):
            task.cancel()
        for link in tuple(self._links):
            link.drop()

    def _forget(self, link: Link) -> None:
        self._links.discard(link)
        self._stop_if_idle(link.loop)

    def _stop_if_idle(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if self._routes or self._links or self._loop is not loop:
                return
            self._loop = None
            self._thread = None
            self._folder = None
            if self._remove_folder is not None:
                self._remove_folder()
                self._remove_folder = None
        loop.stop()

    def _after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        self._loop = None
        self._thread = None
        self._folder = None
        if self._remove_folder is not None:
            self._remove_folder.detach()  # the folder is the parent's
            self._remove_folder = None
        # Our copies would keep the parent's connections half open. The transports stay referenced: their finalizers
        # would warn about a loop that never runs here.
        for route in self._routes:
            route.listener.close()
        for link in self._links:
            link.client.close()
            if link.upstream is not None:
                link.upstream.close()
        _inherited.append((self._routes, self._links, self._dialling))
        self._routes = set()
        self._links = set()
        self._dialling = set()


async def _settle(loop: asyncio.AbstractEventLoop) -> None:
    """Let transports that were aborted last close their sockets; that takes a few rounds of the loop."""
    await loop.shutdown_default_executor()
    for _ in range(5):
        await asyncio.sleep(0)


def _private_folder() -> str:
    folder = tempfile.mkdtemp(prefix="meshlib-relay-")  # mode 0700
    if len(os.fsencode(folder)) <= _MAX_PATH - 8:
        return folder
    # A long TMPDIR: a unix socket's path has to fit into 108 bytes.
    os.rmdir(folder)
    return tempfile.mkdtemp(prefix="meshlib-relay-", dir="/tmp")


_relays: "weakref.WeakSet[TlsRelay]" = weakref.WeakSet()
_inherited: list[Any] = []


def _forget_all() -> None:
    for relay in tuple(_relays):
        relay._after_fork_in_child()


os.register_at_fork(after_in_child=_forget_all)
