"""Addresses of sockets as the mesh names them: `host:port`, IPv6 in brackets."""

import socket
from ipaddress import IPv6Address, ip_address
from typing import Final

__all__ = ["ANY", "advertised", "is_any", "join", "listen", "plain_ip"]

ANY: Final = ("0.0.0.0", "::")
"""What a socket is bound to that takes connections at every address of the machine."""


def join(host: str, port: int) -> str:
    """Return `host:port`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def plain_ip(host: str) -> str:
    """Return an IPv4 address that a dual-stack socket shows as `::ffff:a.b.c.d` in its own form, without IPv6 zone."""
    if ":" not in host:
        return host
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    return str(address.ipv4_mapped or address) if isinstance(address, IPv6Address) else str(address)


def is_any(host: str) -> bool:
    """Whether nobody can connect to this address: it means every address of the machine."""
    return plain_ip(host) in ANY


def advertised(listening: str, advertise: str | None) -> str:
    """Return the address to announce.

    Args:
        listening: `host:port` of the socket.
        advertise: Host, or `host:port`, as clients reach it; None: the socket's.

    Raises:
        ValueError: It cannot be told how clients reach the socket.
    """
    host, _, port = listening.rpartition(":")
    if advertise is None:
        if is_any(host.strip("[]")):
            raise ValueError(
                f"{listening} is every address of this machine; say with `advertise` which one clients use"
            )
        return listening
    given_host, separator, given_port = advertise.rpartition(":")
    if advertise.endswith("]") or not separator or (":" in given_host and not advertise.startswith("[")):
        given_host, given_port = advertise, port
    bare = given_host.strip("[]")
    if not given_port.isdecimal() or not 0 < int(given_port) < 65536 or not bare or is_any(bare):
        raise ValueError(f"advertise must be an IP address or IP:port, not {advertise!r}")
    return join(bare, int(given_port))


def listen(host: str, port: int, backlog: int, *, shares_port: bool = False) -> socket.socket:
    """Return a socket that takes connections.

    Args:
        shares_port: Other sockets of this user may have the same port.

    Raises:
        OSError: It cannot; the text names the address.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise OSError(error.errno, f"cannot listen on {join(host, port)}: {error.strerror}") from error
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shares_port:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
        listening.listen(backlog)
    except OSError as error:
        listening.close()
        raise OSError(error.errno, f"cannot listen on {join(host, port)}: {error.strerror}") from error
    return listening
