"""A way of the relay to one endpoint, and one connection over it: its two sides, what flows between them, how either ends."""

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from meshlib.runtime.eyeballs import addresses_of, connect_first, connect_one, in_turns

__all__ = ["LINGER_S", "Link", "RelayRoute", "dial"]


# A peer that does not answer our close_notify, or a client that does not notice the end, must not hold a connection.
LINGER_S: Final = 2.0


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
    """One client connection and its TLS connection."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        route: RelayRoute,
        client: socket.socket,
        forget: "Callable[[Link], None]",
    ) -> None:
        """Make a link of which neither side is there.

        Args:
            forget: Is told once when it has ended.
        """
        self.loop = loop
        self.route = route
        self.client = client
        self.upstream: socket.socket | None = None
        self.near = Side(self)
        self.far = Side(self)
        self.is_joined = False
        self.is_over = False
        self._forget = forget

    def join(self) -> None:
        """Both sides are there: let bytes flow."""
        self.is_joined = True
        self.route.last_error = None
        self.route.has_verified = True
        self.near.other = self.far
        self.far.other = self.near
        if self.far.is_done:
            self.ended(self.far, None)
            return
        self.far.resume()
        self.near.resume()

    def ended(self, side: "Side", error: BaseException | None) -> None:
        """One side says that no more bytes will come, or is gone."""
        if self.is_over:
            return
        first = not side.is_done
        side.is_done = True
        if not self.is_joined:
            return  # `_connect` is still busy with it, and reports it
        if side is self.far and not side.has_received:
            # TLS 1.3: a server that refuses our certificate says so after our side of the handshake is done.
            self.route.last_error = error or ConnectionError(
                f"{self.route.address} closed the connection before its first byte, as a peer does that refuses our certificate"
            )
        if self.near.is_done and self.far.is_done:
            self.drop()
        elif not first:
            return
        elif side is self.far:
            # What was received is still to be delivered; then gRPC closes its side.
            self.near.half_close()
            self.loop.call_later(LINGER_S, self.drop)
        else:
            # TLS cannot be half closed. gRPC has said all; closing flushes it.
            self.far.transport.close()
            self.loop.call_later(LINGER_S * 2, self.drop)

    def drop(self) -> None:
        """Close what is open, without waiting."""
        if self.is_over:
            return
        self.is_over = True
        for side, sock in ((self.near, self.client), (self.far, self.upstream)):
            if side.transport is not None:
                side.transport.abort()
            elif sock is not None:
                sock.close()
        self._forget(self)


class Side(asyncio.Protocol):
    """One end of a link: what it receives, the other one writes."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.other: Side | None = None
        self.transport: Any = None
        self.has_received = False
        self.is_done = False  # no more bytes come from here
        self.is_lost = False  # nothing can be written any more

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        # Nothing flows before both sides are there.
        transport.pause_reading()

    def resume(self) -> None:
        self.transport.resume_reading()

    def half_close(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self.transport.write_eof()

    def data_received(self, data: bytes) -> None:
        self.has_received = True
        other = self.other
        if other is not None and not other.is_lost:
            other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other is not None and not self.other.is_lost:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and not self.other.is_lost:
            self.other.transport.resume_reading()

    def eof_received(self) -> bool:
        self.link.ended(self, None)
        # The near side stays open for what the peer still has to say; a TLS transport closes itself whatever we return,
        # and complains about True.
        return self is self.link.near

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self.link.ended(self, exc)


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
