"""What an asyncio loop hands to a connection of ours, in plaintext or through TLS.

asyncio's own TLS transport takes twelve functions of Python for each piece of data and a buffer of 256 KiB for each
connection; here OpenSSL works on two buffers in memory, between the loop's transport and whoever reads. What a peer may do
to such a connection means the same: an end without `close_notify` is an end, as for the blocking client.
"""

import asyncio
import contextlib
import ssl
from collections import deque
from typing import Any, Final

__all__ = ["StreamProtocol", "TlsProtocol", "TlsWire"]

HIGH_WATER_BYTES: Final = 65536
"""What came and was not read yet; with more of it the peer has to wait."""
RECORD_BYTES: Final = 16384
"""The most that a TLS record holds."""
NEVER: Final = float("inf")


class StreamProtocol(asyncio.Protocol):
    """What came in, and who waits for it.

    A wait for data has an end, and hardly ever comes to it. So the timer of one wait stays for those that follow, and
    looks when its time has come how long whoever waits then may go on.

    Attributes:
        waiter: Resolved when there is something to read; a result of False: time is over.
        room: Resolved when there is room for writing again, or something to read for one that `listens`.
    """

    __slots__ = (
        "_loop",
        "_timer",
        "_timer_at",
        "_until",
        "chunks",
        "error",
        "is_eof",
        "is_full",
        "is_lost",
        "is_paused",
        "listens",
        "room",
        "size",
        "transport",
        "waiter",
    )

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = self._until = 0.0  # by the loop's clock
        self.transport: asyncio.Transport | None = None
        self.chunks: deque[bytes] = deque()
        self.size = 0
        self.is_paused = False  # reading
        self.is_full = False  # writing
        self.is_eof = False
        self.is_lost = False
        self.error: Exception | None = None
        self.waiter: asyncio.Future[bool] | None = None
        self.room: asyncio.Future[bool] | None = None
        self.listens = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # of the kind that it was made as

    def data_received(self, data: bytes) -> None:
        self.chunks.append(data)
        self.size += len(data)
        waiter = self.waiter
        if waiter is not None:
            if not waiter.done():
                waiter.set_result(True)
        else:
            if self.listens:
                self._wake(self.room)
            if self.size > HIGH_WATER_BYTES and not self.is_paused and self.transport is not None:
                self.is_paused = True
                self.transport.pause_reading()

    def wait(self, left_s: float | None) -> "asyncio.Future[bool]":
        """Return a `waiter` for what comes next.

        Args:
            left_s: How long it may take; None: any time.
        """
        loop = self._loop
        if left_s is not None:
            until = self._until = loop.time() + left_s
            timer = self._timer
            if timer is None or self._timer_at > until:
                if timer is not None:
                    timer.cancel()
                self._timer_at = until
                self._timer = loop.call_at(until, self._look)
        else:
            self._until = NEVER
        waiter = self.waiter = loop.create_future()
        return waiter

    def _look(self) -> None:
        self._timer = None
        waiter, until = self.waiter, self._until
        if waiter is None or waiter.done() or until == NEVER:
            return
        if self._timer_at >= until:
            waiter.set_result(False)
        else:
            self._timer_at = until
            self._timer = self._loop.call_at(until, self._look)

    def eof_received(self) -> None:
        self.is_eof = True
        self._wake(self.waiter)
        if self.listens:
            self._wake(self.room)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_eof = self.is_lost = True
        if self.error is None:
            self.error = exc
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake(self.waiter)
        self._wake(self.room)

    def pause_writing(self) -> None:
        self.is_full = True

    def resume_writing(self) -> None:
        self.is_full = False
        self._wake(self.room)

    @staticmethod
    def _wake(waiter: "asyncio.Future[bool] | None") -> None:
        if waiter is not None and not waiter.done():
            waiter.set_result(True)


class TlsProtocol(StreamProtocol):
    """TLS over a transport that is connected; `shake_hands` comes first."""

    __slots__ = ("_incoming", "_is_open", "_outgoing", "_unsent", "tls")

    def __init__(self, transport: asyncio.Transport, context: ssl.SSLContext, server_hostname: str | None) -> None:
        """Take over a transport of which nothing was read yet.

        Args:
            context: Verifies the peer inside `do_handshake`.
        """
        StreamProtocol.__init__(self)
        self.transport = transport
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self._is_open = False
        self._unsent = b""  # what TLS could not take: it has to hear from the peer first
        transport.set_protocol(self)

    async def shake_hands(self) -> None:
        """Shake hands; nothing limits the time.

        Raises:
            OSError: The peer is not who it must be, does not speak TLS with us, or is gone.
        """
        while True:
            try:
                # When the peer is not who it must be, our last message is in the buffer already: it stays there, so that
                # the peer never has a connection.
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._flush()
            if not self.is_eof:
                try:
                    await self.wait(None)
                finally:
                    self.waiter = None
            if self.is_eof and not self._incoming.pending:
                raise self.error or ConnectionResetError("the connection was closed during the TLS handshake")
        self._is_open = True
        self._flush()
        self._pump()  # what came with the end of the handshake

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        if self._is_open:
            self._pump()
        else:
            self._wake(self.waiter)

    def _pump(self) -> None:
        """Hand on what has come."""
        incoming, tls = self._incoming, self.tls
        found: list[bytes] = []
        is_over = False
        try:
            # Asking in vain costs as much as reading a record.
            while incoming.pending or tls.pending():
                piece = tls.read(RECORD_BYTES)
                if not piece:
                    is_over = True
                    break
                found.append(piece)
        except ssl.SSLWantReadError:
            pass
        except OSError as error:
            self.error = error
        if found:
            StreamProtocol.data_received(self, found[0] if len(found) == 1 else b"".join(found))
        if self.error is not None:
            self._end()
        elif is_over:
            with contextlib.suppress(OSError):
                tls.unwrap()  # the peer may wait for our end
            self._end()
        elif self._unsent:
            waiting, self._unsent = self._unsent, b""
            self.send(waiting)
        elif self._outgoing.pending:
            self._flush()

    def _end(self) -> None:
        """There is nothing more to come."""
        self.eof_received()
        self._flush()
        if self.transport is not None:
            self.transport.close()

    def send(self, data: "bytes | memoryview[int]") -> None:
        """Encrypt data, and have the transport send it."""
        if self._unsent:
            self._unsent += data
            return
        write = self.tls.write
        try:
            sent = write(data)
            while sent < len(data):
                data = memoryview(data)[sent:]
                sent = write(data)
        except ssl.SSLWantReadError:
            self._unsent = bytes(data)
        except OSError as error:
            self.error = error
            self._end()
            return
        self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending and self.transport is not None:
            self.transport.write(self._outgoing.read())


class TlsWire:
    """What users of a transport see of one with TLS.

    Attributes:
        write: As of a transport.
    """

    __slots__ = ("_protocol", "_transport", "abort", "is_closing", "pause_reading", "resume_reading", "write")

    def __init__(self, transport: asyncio.Transport, protocol: TlsProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self.write = protocol.send
        self.abort = transport.abort
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As of asyncio's transports with TLS."""
        tls = self._protocol.tls
        match name:
            case "ssl_object":
                return tls
            case "sslcontext":
                return tls.context
            case "peercert":
                return tls.getpeercert()
            case "cipher":
                return tls.cipher()
            case "compression":
                return tls.compression()
            case _:
                return self._transport.get_extra_info(name, default)
