"""A caller that begins a TLS connection and says nothing."""

import socket
import ssl
import time

import pytest
import trustme

from meshlib.runtime import tls_context
from meshlib.runtime.tls_context import MeshContext


def test_silent_caller_does_not_hold_a_thread_of_a_blocking_server(monkeypatch):
    monkeypatch.setattr(tls_context, "HANDSHAKE_TIMEOUT_S", 0.1)
    context = MeshContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("x.example").configure_cert(context)
    ours, theirs = socket.socketpair()
    began = time.monotonic()
    with theirs, ours, context.wrap_socket(ours, server_side=True, do_handshake_on_connect=False) as connection:
        with pytest.raises(TimeoutError):
            connection.do_handshake()
        assert connection.gettimeout() is None
    assert time.monotonic() - began < 5.0
