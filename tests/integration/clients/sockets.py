"""Parts of scripted servers over raw sockets."""

import socket
import time
from typing import Final

__all__ = ["half_close"]

FIN_WAIT1: Final = 4
"""Of TCP_INFO: the peer has not been told yet that nothing more comes."""


def half_close(connection: socket.socket) -> None:
    """Stop sending, and return when the peer's system has been told: a busy one hears of it later."""
    connection.shutdown(socket.SHUT_WR)
    while connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == FIN_WAIT1:
        time.sleep(0.001)
