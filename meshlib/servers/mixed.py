"""Plaintext and TLS on one port: which of them a connection speaks is told by its first byte, which stays where it is.

A TLS connection begins with a handshake record, whose type is 0x16; no request of HTTP/1.1 and no preface of HTTP/2 does.
The byte is looked at while it is in the socket, so whoever gets the connection then finds it untouched.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

__all__ = ["FIRST_BYTE_S", "MixedServer", "begins_with_tls"]

HANDSHAKE: Final = b"\x16"
FIRST_BYTE_S: Final = 15.0
"""How long a connection may say nothing: Envoy's `listener_filters_timeout`."""
ACCEPT_PAUSE_S: Final = 1.0
"""While there are no file descriptors left; asyncio's own servers wait as long."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_TURN: Final = 100
"""Connections accepted at a time, so that those that are there get their turn."""

Choose = Callable[[socket.socket, bool], None]


def begins_with_tls(connection: socket.socket) -> bool:
    """Wait for the first byte of a blocking socket.

    Raises:
        TimeoutError: There was none in time.
        OSError: The connection is broken.
    """
    before = connection.gettimeout()
    connection.settimeout(FIRST_BYTE_S)
    try:
        return connection.recv(1, socket.MSG_PEEK) == HANDSHAKE
    finally:
        connection.settimeout(before)


class Acceptor:
    """Takes connections from a listening socket and hands each on when its first byte is there.

    Must be used within one event loop.
    """

    def __init__(self, listening: socket.socket, choose: Choose) -> None:
        """
        Args:
            listening: Stays the caller's.
            choose: Gets a non-blocking socket, which is its own from then on, and whether it speaks TLS.
        """
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._choose = choose
        self._waiting: dict[socket.socket, asyncio.TimerHandle] = {}
        self._pause: asyncio.TimerHandle | None = None
        self._is_closed = False
        listening.setblocking(False)
        self._resume()

    def close(self) -> None:
        """Accept no more, and drop the connections that have not said anything. Safe to call twice."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listening)
        for connection in list(self._waiting):
            self._drop(connection)

    def _resume(self) -> None:
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        for _ in range(_TURN):
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._loop.remove_reader(self._listening)
                self._pause = self._loop.call_later(ACCEPT_PAUSE_S, self._resume)
                return
            connection.setblocking(False)
            self._waiting[connection] = self._loop.call_later(FIRST_BYTE_S, self._drop, connection)
            self._loop.add_reader(connection, self._look, connection)

    def _look(self, connection: socket.socket) -> None:
        try:
            first = connection.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            first = b""
        if not first:
            self._drop(connection)
            return
        self._forget(connection)
        self._choose(connection, first == HANDSHAKE)

    def _forget(self, connection: socket.socket) -> None:
        self._waiting.pop(connection).cancel()
        self._loop.remove_reader(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._forget(connection)
        connection.close()


class MixedServer:
    """What `loop.create_server` returns, as far as uvicorn uses it, for a port with plaintext and TLS."""

    def __init__(
        self, listening: socket.socket, protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext, backlog: int
    ) -> None:
        """
        Args:
            listening: A bound socket; stays the caller's.
            protocol: Makes the protocol of a connection, plaintext or not.
            context: Of those that begin with TLS.
            backlog: Of the socket.
        """
        listening.listen(backlog)
        self.sockets: tuple[socket.socket, ...] = (listening,)
        self._protocol = protocol
        self._context = context
        self._begun: set[asyncio.Task[None]] = set()
        self._acceptor = Acceptor(listening, self._begin)

    def close(self) -> None:
        """Accept no more. Connections that are there stay."""
        self._acceptor.close()
        self.sockets = ()

    async def wait_closed(self) -> None:
        """End the handshakes that had begun: nobody has asked for anything over them yet."""
        for task in self._begun:
            task.cancel()
        if self._begun:
            await asyncio.wait(self._begun)

    def _begin(self, connection: socket.socket, is_tls: bool) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(connection, is_tls))
        # Tasks are held weakly by their loop.
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)

    async def _connect(self, connection: socket.socket, is_tls: bool) -> None:
        options: dict[str, Any] = {"ssl": self._context, "ssl_handshake_timeout": FIRST_BYTE_S} if is_tls else {}
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, connection, **options)
        except OSError:  # with ssl.SSLError: a caller that is refused, or has gone
            connection.close()
