"""How an endpoint's address is written for a gRPC channel."""

__all__ = ["dial_target"]


def dial_target(address: str) -> str:
    """Return what a channel dials for an endpoint's address; IP addresses bypass the resolver."""
    if address.startswith("unix:"):
        return address
    host = address.rpartition(":")[0]
    if host.startswith("["):
        return f"ipv6:{address}"
    if host.replace(".", "").isdigit():
        return f"ipv4:{address}"
    return f"dns:///{address}"
