"""How an endpoint's addresses are written for a gRPC channel."""

from typing import Final

__all__ = ["dial_target"]

_MAPPED: Final = "::ffff:"


def dial_target(address: str, dials: tuple[str, ...] = ()) -> str:
    """Return what a channel dials for an endpoint; IP addresses bypass the resolver.

    Args:
        address: Its own.
        dials: All of them in the order in which they are tried; empty: just the one. A target has addresses of one
            family, so where there are both, IPv4 addresses are written as IPv6 ones that mean them.
    """
    if dials:
        if all(dial.startswith("[") for dial in dials):
            return "ipv6:" + ",".join(dials)
        if not any(dial.startswith("[") for dial in dials):
            return "ipv4:" + ",".join(dials)
        return "ipv6:" + ",".join(dial if dial.startswith("[") else _mapped(dial) for dial in dials)
    if address.startswith("unix:"):
        return address
    host = address.rpartition(":")[0]
    if host.startswith("["):
        return f"ipv6:{address}"
    if host.replace(".", "").isdigit():
        return f"ipv4:{address}"
    return f"dns:///{address}"


def _mapped(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"[{_MAPPED}{host}]:{port}"
