"""Addresses that the server listens on, written `host:port` or `[v6]:port`."""

import errno
import ipaddress
import socket
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Port 0 lets the system choose."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, option: str) -> "Address":
        """Read an address.

        Raises:
            ValueError: It is none; the text names the option it was given with.
        """
        host, _, port = text.rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            host = ""
        if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError(f"{option} must be host:port (IPv6: [host]:port), not {text!r}")
        return cls(host, int(port))

    def with_port(self, port: int) -> "Address":
        return Address(self.host, port)

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def bind(address: Address, option: str) -> socket.socket:
    """Return a bound TCP socket.

    Raises:
        OSError: The address cannot be used; the text names it, the reason and the option to change.
    """
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OSError(f"cannot listen on {address} ({option}): {error.strerror}") from error
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        # Two sockets may share a bound address until one listens, so this is what finds the port in use.
        sock.listen(128)
    except OSError as error:
        sock.close()
        hint = "; another process has it" if error.errno == errno.EADDRINUSE else ""
        raise OSError(error.errno, f"cannot listen on {address} ({option}): {error.strerror}{hint}") from error
    return sock


def check_free(address: Address, option: str) -> None:
    """Find out early, and in plain words, that an address cannot be used.

    Raises:
        OSError: As `bind`.
    """
    if address.port != 0:
        bind(address, option).close()
