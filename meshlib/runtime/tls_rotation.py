"""Contexts of servers that follow their secrets while they run."""

import ssl
from collections.abc import Callable, Mapping
from typing import Any

from meshlib.errors import IdentityError
from meshlib.identity.verify import PeerRule
from meshlib.model.secret import Secret, ServerTls
from meshlib.ports import WallClock
from meshlib.runtime.clock import wall as system_wall
from meshlib.runtime.tls import server_context
from meshlib.runtime.tls_context import MeshContext

__all__ = ["RotatingServerContext", "rotating_server_context"]


class RotatingServerContext:
    """A server's context whose certificate and trust follow the secrets.

    Servers take one context for their lifetime. This one wraps every connection with the context of the moment, so that
    a new certificate, or a CA taken away, counts from the next connection on. Running connections stay.

    Attributes:
        context: For the server.
    """

    def __init__(
        self,
        tls: ServerTls,
        secrets: Callable[[], Mapping[str, Secret]],
        *,
        default_alpn: tuple[str, ...] = ("http/1.1",),
        wall: WallClock = system_wall,
    ) -> None:
        """Make the first context.

        Raises:
            IdentityError: It cannot be made now.
        """

        def current() -> MeshContext:
            return server_context(tls, secrets(), default_alpn=default_alpn, wall=wall)

        first = current()
        front = _Front(ssl.PROTOCOL_TLS_SERVER)
        front.verify_mode = first.verify_mode
        front.minimum_version = first.minimum_version
        front.forbid_tickets()
        front.rule = _NOBODY
        front.current = current
        self.context: ssl.SSLContext = front


class _Front(MeshContext):
    """Stands for the context of the moment. By itself it has no certificate, and lets nobody in."""

    current: Callable[[], MeshContext]

    def wrap_socket(self, sock: Any, *args: Any, **options: Any) -> ssl.SSLSocket:
        """As in `ssl`, by the context of the moment."""
        try:
            context = self.current()
        except IdentityError:
            # Servers close a connection whose handshake fails; one that cannot even begin might leak, or end them.
            return super().wrap_socket(sock, *args, **options)
        return context.wrap_socket(sock, *args, **options)

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **options: Any) -> ssl.SSLObject:
        """As in `ssl`, by the context of the moment."""
        try:
            context = self.current()
        except IdentityError:
            return super().wrap_bio(incoming, outgoing, *args, **options)
        return context.wrap_bio(incoming, outgoing, *args, **options)


_NOBODY = PeerRule(lambda names: False, "nobody: there is no usable certificate here")


def rotating_server_context(
    tls: ServerTls,
    secrets: Callable[[], Mapping[str, Secret]],
    *,
    default_alpn: tuple[str, ...] = ("http/1.1",),
    wall: WallClock = system_wall,
) -> ssl.SSLContext:
    """Return a context for a server that follows rotation; see `RotatingServerContext`."""
    return RotatingServerContext(tls, secrets, default_alpn=default_alpn, wall=wall).context
