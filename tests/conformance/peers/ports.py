"""Ports for programs that have to be told theirs, or that come back to the one they had."""

import random
import socket
from collections.abc import Iterator
from pathlib import Path

LOOPBACK = "127.0.0.1"
_GIVEN_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")
_ROOM = 12_000


def free_port() -> int:
    """Return a port that nobody listens on, and that the system gives to nobody by itself.

    A port that was found by binding to 0 and let go again is in the range of which the system serves whoever opens a
    connection or binds to 0 next: it may be taken before the program that it is meant for has started. No port comes
    twice in a process; processes side by side begin in different places.
    """
    for port in _PORTS:
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def _ports() -> Iterator[int]:
    # Elsewhere than on Linux it begins at 49152 (RFC 6335, section 6).
    first_given_out = int(_GIVEN_OUT.read_text().split()[0]) if _GIVEN_OUT.exists() else 49152
    below = range(max(1024, first_given_out - _ROOM), first_given_out)
    # Where the system gives out all ports, any is as good as another.
    return iter(random.SystemRandom().sample(below or range(1024, 65536), len(below) or 64512))


_PORTS = _ports()
