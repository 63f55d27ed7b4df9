"""A way of the relay to one endpoint, and one connection over it: its two sides, what flows between them, how either ends."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from meshlib.runtime.eyeballs import addresses_of, connect_first, connect_one, in_turns

__all__ = ["BUFFER_BYTES", "LINGER_S", "Link", "RelayRoute", "dial"]


# A peer that does not answer our close_notify, or a client that does not notice the end, must not hold a connection.
LINGER_S: Final = 2.0

BUFFER_BYTES: Final = 262144
"""As asyncio's transports read at most."""
FULL_RECORD: Final = 16384
"""Bytes of a TLS record at most (RFC 8446, section 5.1)."""


class RelayRoute:
    """One way to one endpoint under one TLS context.

    Attributes:
        target: What a gRPC channel dials: `unix:/path`.
        address: The endpoint, `host:port` or `unix:/path`.
        context: Verifies the peer inside `do_handshake`.
        dials: All addresses of the endpoint in the order in which they are tried; empty: just the one.
        last_error: Why the last connection to the endpoint failed; None after one that worked. Written by the relay's
            thread before gRPC notices.
        has_verified: A peer has been, over this route.
    """

    __slots__ = (
        "address",
        "connect_timeout_s",
        "context",
        "dials",
        "has_verified",
        "last_error",
        "listener",
        "path",
        "server_name",
        "target",
    )

    def __init__(
        self,
        path: str,
        listener: socket.socket,
        address: str,
        context: ssl.SSLContext,
        server_name: str,
        connect_timeout_s: float,
        dials: tuple[str, ...] = (),
    ) -> None:
        self.dials = dials
        self.path = path
        self.target = f"unix:{path}"
        self.listener = listener
        self.address = address
        self.context = context
        self.server_name = server_name
        self.connect_timeout_s = connect_timeout_s
        self.last_error: BaseException | None = None
        self.has_verified = False


class Link:
    """One client connection and its TLS connection: bytes go from one to the other as they are ready.

    What one side cannot take yet is kept, and nothing more is read for it until it has: a buffer's worth at most. asyncio's
    own TLS transport, which does the same, takes three times the byte codes.

    Attributes:
        client: gRPC's connection.
        upstream: To the endpoint; a `ssl.SSLSocket` from the handshake on. None: not dialled yet.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        route: RelayRoute,
        client: socket.socket,
        buffer: bytearray,
        forget: "Callable[[Link], None]",
    ) -> None:
        """Make a link of which neither side is there.

        Args:
            buffer: To receive into; all links of a loop may share one.
            forget: Is told once when it has ended.
        """
        self.loop = loop
        self.route = route
        self.client = client
        self.upstream: socket.socket | None = None
        self.is_over = False
        self._tls: Any = None  # the upstream, once it is one
        self._buffer = memoryview(buffer)
        self._forget = forget
        self._to_far = b""  # received from gRPC, and not taken by TLS yet
        self._to_near = b""
        self._has_received = False
        self._is_near_done = False  # no more bytes come from there
        self._is_far_done = False

    async def shake_hands(self) -> str | None:
        """Make the dialled connection one of TLS; returns the protocol that ALPN has chosen.

        Raises:
            OSError: The peer is not who it must be, or does not speak TLS with us.
        """
        assert self.upstream is not None
        tls = self._tls = self.upstream = self.route.context.wrap_socket(
            self.upstream, server_hostname=self.route.server_name or None, do_handshake_on_connect=False
        )
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._ready(tls, self.loop.add_reader, self.loop.remove_reader)
            except ssl.SSLWantWriteError:
                await self._ready(tls, self.loop.add_writer, self.loop.remove_writer)
            else:
                return tls.selected_alpn_protocol()

    async def _ready(self, sock: socket.socket, add: Callable[..., Any], remove: Callable[..., Any]) -> None:
        future = self.loop.create_future()
        number = sock.fileno()
        add(number, _wake, future)
        try:
            await future
        finally:
            remove(number)

    def join(self) -> None:
        """Both sides are there: let bytes flow."""
        self.route.last_error = None
        self.route.has_verified = True
        self.loop.add_reader(self.client, self._from_near)
        self.loop.add_reader(self._tls.fileno(), self._from_far)
        self._from_far()  # what came with the end of the handshake is no news to the loop

    # From gRPC to the peer.

    def _from_near(self) -> None:
        try:
            count = self.client.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.drop()
            return
        if count:
            self._send_far(self._buffer[:count])
        else:
            self._is_near_done = True
            self.loop.remove_reader(self.client)
            self._close_far()

    def _send_far(self, data: memoryview) -> None:
        if self._is_far_done:
            return
        write = self._tls.write
        while data:
            try:
                data = data[write(data) :]
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError) as wants:
                was_waiting, self._to_far = bool(self._to_far), bytes(data)
                if not was_waiting:
                    self.loop.remove_reader(self.client)
                if isinstance(wants, ssl.SSLWantWriteError):
                    self.loop.add_writer(self._tls.fileno(), self._far_writable)
                return  # else with the next that comes from there
            except OSError as error:
                self._far_ended(error)
                return
        if self._to_far:
            self._to_far = b""
            if self._is_near_done:
                self._close_far()
            else:
                self.loop.add_reader(self.client, self._from_near)

    def _far_writable(self) -> None:
        self.loop.remove_writer(self._tls.fileno())
        if self._to_far:
            self._send_far(memoryview(self._to_far))
        else:
            self._from_far()  # TLS had something to say before it could read on

    def _close_far(self) -> None:
        """gRPC has said all; TLS cannot be half closed, so that is the end of both."""
        if self._to_far or self.is_over:
            return
        if self._is_far_done:
            self.drop()
            return
        with contextlib.suppress(OSError):
            self._tls.unwrap()  # says so; that the peer has not answered yet is an error
        with contextlib.suppress(OSError):
            self._tls.shutdown(socket.SHUT_WR)
        # Closed with bytes that nobody has read, the connection would be reset, and what was sent last might be lost.
        self.loop.add_reader(self._tls.fileno(), self._discard)
        self.loop.call_later(LINGER_S, self.drop)

    def _discard(self) -> None:
        try:
            if self._tls.recv_into(self._buffer):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self.drop()

    # From the peer to gRPC.

    def _from_far(self) -> None:
        read, buffer, count, is_more = self._tls.read, self._buffer, 0, True
        is_ending, error = False, None
        if self._to_near or self._is_far_done or self.is_over:
            return
        while is_more and count < len(buffer):
            try:
                got = read(len(buffer) - count, buffer[count:])
            except ssl.SSLWantReadError:
                break
            except ssl.SSLWantWriteError:
                self.loop.add_writer(self._tls.fileno(), self._far_writable)
                break
            except OSError as raised:
                error, got = raised, 0
            if not got:
                is_ending = True
                break
            count += got
            # A full record is one of many as a rule; asking in vain costs as much as reading one.
            is_more = got >= FULL_RECORD or self._tls.pending() > 0
        if count:
            self._has_received = True
            self._send_near(buffer[:count])
        if is_ending:
            self._far_ended(error)
        elif self._to_far and not self.is_over:
            self._send_far(memoryview(self._to_far))

    def _send_near(self, data: memoryview) -> None:
        try:
            data = data[self.client.send(data) :]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.drop()
            return
        if data:
            if not self._to_near:
                self.loop.remove_reader(self._tls.fileno())
                self.loop.add_writer(self.client, self._near_writable)
            self._to_near = bytes(data)

    def _near_writable(self) -> None:
        waiting, self._to_near = self._to_near, b""
        try:
            sent = self.client.send(waiting)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.drop()
            return
        self._to_near = waiting[sent:]
        if self._to_near:
            return
        self.loop.remove_writer(self.client)
        if self._is_far_done:
            self._half_close_near()
        elif not self._is_near_done:
            self.loop.add_reader(self._tls.fileno(), self._from_far)
            self._from_far()

    def _far_ended(self, error: BaseException | None) -> None:
        """The peer sends nothing any more."""
        if self._is_far_done or self.is_over:
            return
        self._is_far_done = True
        self._to_far = b""
        number = self._tls.fileno()
        self.loop.remove_reader(number)
        self.loop.remove_writer(number)
        if error is None:
            with contextlib.suppress(OSError):
                self._tls.unwrap()  # the peer may wait for our end
        if not self._has_received:
            # TLS 1.3: a server that refuses our certificate says so after our side of the handshake is done.
            self.route.last_error = error or ConnectionError(
                f"{self.route.address} closed the connection before its first byte, as a peer does that refuses our certificate"
            )
        if self._is_near_done:
            self.drop()
            return
        self.loop.call_later(LINGER_S, self.drop)
        if not self._to_near:
            self._half_close_near()

    def _half_close_near(self) -> None:
        """What was received is delivered; gRPC closes its side then."""
        with contextlib.suppress(OSError):
            self.client.shutdown(socket.SHUT_WR)
        self.loop.add_reader(self.client, self._await_near)

    def _await_near(self) -> None:
        try:
            if self.client.recv_into(self._buffer):
                return  # nobody takes it any more
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self.drop()

    def drop(self) -> None:
        """Close what is open, without waiting."""
        if self.is_over:
            return
        self.is_over = True
        for sock in (self.client, self.upstream):
            if sock is not None and sock.fileno() != -1:
                self.loop.remove_reader(sock.fileno())
                self.loop.remove_writer(sock.fileno())
                sock.close()
        self._forget(self)


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


async def dial(loop: asyncio.AbstractEventLoop, address: str, dials: tuple[str, ...] = ()) -> socket.socket:
    """Return a connected, non-blocking socket; we keep it, so that a forked child can close its copy."""
    if address.startswith("unix:"):
        return await connect_one(loop, (socket.AF_UNIX, socket.SOCK_STREAM, 0, "", address[5:]))
    host, _, port = address.rpartition(":")
    try:
        # Endpoints are addresses as a rule, and the resolver costs a thread.
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        found: Any = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        return await connect_first(loop, in_turns(found))
    return await connect_first(loop, addresses_of(dials or (address,)))
