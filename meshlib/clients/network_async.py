"""Sockets for event loops, with time-outs that end at a moment; the twin of `meshlib.clients.network`.

Under asyncio (uvloop too) a connection is one asyncio protocol, whose data is handed to whoever reads without anything
in between: that takes a fifth of the CPU time of a stream of anyio. Under trio it is httpcore's own stream.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import anyio
import httpcore
from httpcore._backends.auto import AutoBackend

from meshlib.clients.asyncio_protocol import StreamProtocol, TlsProtocol, TlsWire
from meshlib.clients.network import Listener, SocketOption, left_of
from meshlib.runtime.eyeballs import HAPPY_EYEBALLS_S, Address, addresses_of, connect_first, in_turns

__all__ = ["AsyncDeadlineBackend", "AsyncSocketStream", "AsyncioStream", "TrioStream"]

WRITE_BYTES: Final = 262144
"""A transport keeps what the socket does not take at once; it is given no more than this at a time."""


def _expire(waiter: "asyncio.Future[bool]") -> None:
    if not waiter.done():
        waiter.set_result(False)


class AsyncioStream(httpcore.AsyncNetworkStream):
    """A connection of one asyncio loop, with TLS or without.

    Attributes:
        wrote: The latest `write` got something off.
    """

    __slots__ = ("_loop", "_protocol", "_transport", "wrote")

    def __init__(self, transport: asyncio.Transport | TlsWire, protocol: StreamProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self.wrote = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        protocol = self._protocol
        chunks = protocol.chunks
        left = left_of(timeout, httpcore.ReadTimeout)  # a peer that sends faster than is read has its time, too
        if not chunks and not protocol.is_eof:
            try:
                if not await protocol.wait(left):
                    raise httpcore.ReadTimeout("timed out")
            finally:
                protocol.waiter = None
        if chunks:
            data = chunks.popleft()
            if len(data) > max_bytes:
                chunks.appendleft(data[max_bytes:])
                data = data[:max_bytes]
            protocol.size -= len(data)
            if protocol.is_paused and not chunks:
                protocol.is_paused = False
                if not protocol.is_lost:
                    self._transport.resume_reading()
            return data
        if protocol.error is not None:
            raise httpcore.ReadError(protocol.error) from protocol.error
        return b""

    def push(self, buffer: "bytes | memoryview[int]") -> bool:
        """Send what is not much; True: `drain` is to follow, before anything else is sent.

        Raises:
            httpcore.WriteError: The connection is gone.
        """
        protocol, transport = self._protocol, self._transport
        self.wrote = False
        if protocol.is_lost or transport.is_closing():
            raise httpcore.WriteError(protocol.error or "the connection is closed")
        transport.write(buffer)
        self.wrote = True
        return protocol.is_full

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        protocol, transport = self._protocol, self._transport
        self.wrote = False
        if protocol.is_lost or transport.is_closing():
            raise httpcore.WriteError(protocol.error or "the connection is closed")
        if len(buffer) <= WRITE_BYTES:
            if buffer:
                transport.write(buffer)
                self.wrote = True
            if protocol.is_full:
                await self.drain(timeout)
            return
        view = memoryview(buffer)
        for at in range(0, len(view), WRITE_BYTES):
            if protocol.is_lost:
                raise httpcore.WriteError(protocol.error or "the connection is closed")
            transport.write(view[at : at + WRITE_BYTES])
            self.wrote = True
            if protocol.is_full:
                await self.drain(timeout)

    async def write_hearing(self, data: bytes, timeout: float | None, listener: Listener) -> None:
        """As `SocketStream.write_hearing`."""
        protocol = self._protocol
        view = memoryview(data)
        for at in range(0, len(view), WRITE_BYTES):
            await self._hear(listener)
            self.push(view[at : at + WRITE_BYTES])
            while protocol.is_full:
                protocol.listens = listener.listens
                try:
                    await self.drain(timeout)
                finally:
                    protocol.listens = False
                await self._hear(listener)

    async def _hear(self, listener: Listener) -> None:
        if self.is_readable and listener.listens:
            listener.take(await self.read(WRITE_BYTES))

    async def drain(self, timeout: float | None) -> None:
        """Wait until there is room for writing."""
        protocol, loop = self._protocol, self._loop
        left = left_of(timeout, httpcore.WriteTimeout)
        waiter = protocol.room = loop.create_future()
        timer = None if left is None else loop.call_later(left, _expire, waiter)
        try:
            if not await waiter:
                raise httpcore.WriteTimeout("timed out")
        finally:
            protocol.room = None
            if timer is not None:
                timer.cancel()
        if protocol.is_lost:
            raise httpcore.WriteError(protocol.error or "the connection is closed")

    async def aclose(self) -> None:
        self.close()
        await asyncio.sleep(0)  # the transport closes its socket in the loop's next turn

    def close(self) -> None:
        """Close at once; what was not sent yet is dropped."""
        if not self._protocol.is_lost:  # a transport that is gone already does not take it
            self._transport.abort()

    @property
    def is_readable(self) -> bool:
        """Something has come, be it the end: of an idle connection nothing good."""
        protocol = self._protocol
        return bool(protocol.chunks) or protocol.is_eof

    has_data = is_readable

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> "AsyncioStream":
        transport = self._transport
        if isinstance(transport, TlsWire):
            raise httpcore.UnsupportedProtocol("this connection has TLS already")
        try:
            async with asyncio.timeout(left_of(timeout, httpcore.ConnectTimeout)):
                secured = TlsProtocol(transport, ssl_context, server_hostname)
                await secured.shake_hands()
        except BaseException as error:
            transport.abort()
            if isinstance(error, TimeoutError):
                raise httpcore.ConnectTimeout(error) from error
            if isinstance(error, OSError):
                raise httpcore.ConnectError(error) from error
            raise
        return AsyncioStream(TlsWire(transport, secured), secured)

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "is_readable" | "has_data":
                return self.is_readable
            case "client_addr":
                return self._transport.get_extra_info("sockname")
            case "server_addr":
                return self._transport.get_extra_info("peername")
            case _:
                return self._transport.get_extra_info(info)


class TrioStream(httpcore.AsyncNetworkStream):
    """A stream of httpcore's, with our time-outs."""

    __slots__ = ("_inner", "wrote")

    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner
        self.wrote = True  # nobody knows

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._inner.read(max_bytes, left_of(timeout, httpcore.ReadTimeout))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._inner.write(buffer, left_of(timeout, httpcore.WriteTimeout))

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def write_hearing(self, data: bytes, timeout: float | None, listener: Listener) -> None:
        """As `AsyncioStream.write_hearing`, but while it waits for room it hears nothing."""
        view = memoryview(data)
        for at in range(0, len(view), WRITE_BYTES):
            if self.has_data and listener.listens:
                listener.take(await self.read(WRITE_BYTES))
            await self.write(bytes(view[at : at + WRITE_BYTES]), timeout)

    @property
    def has_data(self) -> bool:
        """A read gives something at once. With TLS nobody knows: what has come may be its own, or a part of something."""
        return self._inner.get_extra_info("ssl_object") is None and self.is_readable

    @property
    def is_readable(self) -> bool:
        """As `AsyncioStream.is_readable`."""
        try:
            return bool(self._inner.get_extra_info("is_readable"))
        except ValueError:  # it was closed meanwhile
            return True

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> "TrioStream":
        try:
            left = left_of(timeout, httpcore.ConnectTimeout)
        except httpcore.ConnectTimeout:
            await self._inner.aclose()
            raise
        return TrioStream(await self._inner.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "is_readable":
                return self.is_readable
            case "has_data":
                return self.has_data
            case _:
                return self._inner.get_extra_info(info)


AsyncSocketStream = AsyncioStream | TrioStream


class AsyncDeadlineBackend(httpcore.AsyncNetworkBackend):
    """For the async transport, under asyncio (uvloop too) or trio: the one that is running at its first connection.

    Args:
        dials: As `DeadlineBackend`.
    """

    def __init__(self, dials: tuple[str, ...] = ()) -> None:
        self._inner = AutoBackend()
        self._dials = dials

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> AsyncSocketStream:
        left = left_of(timeout, httpcore.ConnectTimeout)
        if not _is_asyncio():

            def dial(host: str, port: int) -> Awaitable[httpcore.AsyncNetworkStream]:
                return self._inner.connect_tcp(host, port, left, local_address, socket_options)

            if not self._dials:
                return TrioStream(await dial(host, port))
            try:
                with anyio.fail_after(left):
                    return TrioStream(await _first_stream(dial, self._dials))
            except TimeoutError as error:
                raise httpcore.ConnectTimeout(error) from error
        loop = asyncio.get_running_loop()

        async def connect() -> tuple[asyncio.Transport, StreamProtocol]:
            addresses = addresses_of(self._dials) or await _found(loop, host, port)
            made = await connect_first(loop, addresses, local_address)
            try:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for option in socket_options or ():
                    made.setsockopt(*option)
            except BaseException:
                made.close()
                raise
            return await loop.create_connection(StreamProtocol, sock=made)

        return await _opened(connect, left)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> AsyncSocketStream:
        left = left_of(timeout, httpcore.ConnectTimeout)
        if not _is_asyncio():
            return TrioStream(await self._inner.connect_unix_socket(path, left, socket_options))
        loop = asyncio.get_running_loop()
        return await _opened(lambda: loop.create_unix_connection(StreamProtocol, path), left)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


def _is_asyncio() -> bool:
    try:
        return asyncio.current_task() is not None  # trio may be the guest of a loop, whose tasks are not asyncio's
    except RuntimeError:
        return False


async def _found(loop: asyncio.AbstractEventLoop, host: str, port: int) -> list[Address]:
    """Return the addresses of a host, in the order in which they are tried."""
    found: Any
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return in_turns(found)


async def _first_stream(
    connect: Callable[[str, int], Awaitable[httpcore.AsyncNetworkStream]], dials: tuple[str, ...]
) -> httpcore.AsyncNetworkStream:
    """As `connect_first`, for loops of every kind."""
    won: list[httpcore.AsyncNetworkStream] = []
    failures: list[Exception] = []

    async def attempt(dial: str, ended: anyio.Event) -> None:
        host, _, port = dial.rpartition(":")
        try:
            stream = await connect(host.strip("[]"), int(port))
        except Exception as failure:
            failures.append(failure)
            ended.set()
            return
        if won:
            await stream.aclose()
        else:
            won.append(stream)
            tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            for dial in dials:
                ended = anyio.Event()
                tasks.start_soon(attempt, dial, ended)
                with anyio.move_on_after(HAPPY_EYEBALLS_S):
                    await ended.wait()
    except BaseException:
        for stream in won:
            with anyio.CancelScope(shield=True):
                await stream.aclose()
        raise
    if won:
        return won[0]
    raise failures[-1]


async def _opened(connect: Callable[[], Any], left: float | None) -> AsyncioStream:
    try:
        async with asyncio.timeout(left):
            transport, protocol = await connect()
    except TimeoutError as error:
        raise httpcore.ConnectTimeout(error) from error
    except OSError as error:
        raise httpcore.ConnectError(error) from error
    return AsyncioStream(transport, protocol)
