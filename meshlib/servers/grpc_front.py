"""One port for plaintext and TLS before a gRPC server, which can have either on a port but not both.

The server listens at two ports of 127.0.0.1, one of each kind. A thread of ours takes the connections, sees by the first
byte which kind each is, and carries its bytes, encrypted as they are, to the right one: TLS still ends in the server, which
so knows the caller's certificate. What the server takes for the caller's address is the front's: the real one is found by
the port that the front calls from.

Memory per connection is bounded by the transports' write buffers: whoever cannot write stops the other side's reading.
"""

import asyncio
import socket
import threading
from collections.abc import MutableMapping
from typing import Final

from meshlib.servers.addresses import join, plain_ip
from meshlib.servers.mixed import Acceptor

__all__ = ["GrpcFront"]

INNER: Final = "127.0.0.1"


class _Side(asyncio.Protocol):
    """One of the two connections of a link."""

    other: "_Side"

    def __init__(self, ended: asyncio.Event) -> None:
        """
        Args:
            ended: Set when both are closed.
        """
        self.transport: asyncio.Transport | None = None
        self._has_finished = False
        self._ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        # gRPC's server speaks at once: nobody is read from until both are there.
        if (other := self.other.transport) is None:
            transport.pause_reading()
        else:
            other.resume_reading()

    def data_received(self, data: bytes) -> None:
        if (other := self.other.transport) is not None:
            other.write(data)

    def pause_writing(self) -> None:
        if (other := self.other.transport) is not None:
            other.pause_reading()

    def resume_writing(self) -> None:
        if (other := self.other.transport) is not None:
            other.resume_reading()

    def eof_received(self) -> bool:
        self._has_finished = True
        if (other := self.other.transport) is not None:
            other.write_eof()
        if self.other._has_finished and other is not None:
            other.close()
        return not self.other._has_finished  # the other direction may go on

    def connection_lost(self, error: Exception | None) -> None:
        if (other := self.other.transport) is not None:
            if error is None:
                other.close()
            else:
                other.abort()
        self.transport = None
        if other is None:
            self._ended.set()


class GrpcFront:
    """Takes connections until `close`; those that are there then go on until the server or the caller ends them."""

    def __init__(
        self, listening: socket.socket, *, plaintext_port: int, tls_port: int, forwarded: MutableMapping[str, str]
    ) -> None:
        """
        Args:
            listening: Taking connections; the front's from now on.
            plaintext_port: Of the server, at 127.0.0.1.
            tls_port: Likewise.
            forwarded: Gets the caller's IP address by what the server takes for it. It does not grow over the number of
                ports, and entries stay: a call may be looked at when its connection is gone.
        """
        self._listening = listening
        self._ports = (plaintext_port, tls_port)
        self._forwarded = forwarded
        self._links: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Event | None = None
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="meshlib-front", daemon=True)
        self._thread.start()
        self._is_ready.wait()

    def close(self) -> None:
        """Accept no more. Safe to call twice."""
        loop, closing = self._loop, self._closing
        if loop is not None and closing is not None and self._thread.is_alive():
            loop.call_soon_threadsafe(closing.set)

    async def _run(self) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        with self._listening:
            acceptor = Acceptor(self._listening, self._begin)
            self._is_ready.set()
            await self._closing.wait()
            acceptor.close()
        if self._links:
            await asyncio.wait(self._links)

    def _begin(self, connection: socket.socket, is_tls: bool) -> None:
        assert self._loop is not None
        task = self._loop.create_task(self._link(connection, self._ports[is_tls]))
        self._links.add(task)
        task.add_done_callback(self._links.discard)

    async def _link(self, connection: socket.socket, port: int) -> None:
        assert self._loop is not None
        ended = asyncio.Event()
        caller, server = _Side(ended), _Side(ended)
        caller.other, server.other = server, caller
        try:
            remote = plain_ip(connection.getpeername()[0])
            # The caller's bytes stay in its socket until there is somebody to take them.
            transport, _ = await self._loop.create_connection(lambda: server, INNER, port)
            self._forwarded[join(*transport.get_extra_info("sockname")[:2])] = remote
            await self._loop.connect_accepted_socket(lambda: caller, connection)
            if server.transport is None and caller.transport is not None:  # lost meanwhile
                caller.transport.abort()
        except OSError:  # the server has stopped, or the caller has gone
            connection.close()
            if server.transport is not None:
                server.transport.abort()
            return
        await ended.wait()
