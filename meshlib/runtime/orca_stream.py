"""The stream on which one endpoint reports its load, on a connection of its own."""

import ssl
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import grpc

from meshlib.errors import IdentityError, MeshError
from meshlib.model.secret import ClientTls
from meshlib.runtime.dial import dial_target
from meshlib.runtime.own_channels import own_channel
from meshlib.runtime.relay import TlsRelay
from meshlib.runtime.relay_link import RelayRoute
from meshlib.runtime.tls import client_context
from meshlib.view import ClusterState, View

__all__ = ["OrcaStream"]

METHOD: Final = "/xds.service.orca.v3.OpenRcaService/StreamCoreMetrics"
MAX_MESSAGE: Final = 64 * 1024
"""Larger than any report that is read."""
KEEPALIVE_MS: Final = 60_000
"""A host that vanished without a word is noticed by this; its weight expires meanwhile."""


class OrcaStream:
    """A stream from its opening to its end, read by a thread of its own."""

    def __init__(
        self,
        view: View,
        cluster: ClusterState,
        address: str,
        tls: ClientTls | None,
        request: bytes,
        relay: TlsRelay,
        *,
        received: Callable[[bytes], None],
        ended: Callable[[bool], None],
    ) -> None:
        """Open it.

        Args:
            request: An OrcaLoadReportRequest.
            received: Called with each report, on the stream's thread.
            ended: Called when it has ended by itself, with whether the endpoint has no such service.

        Raises:
            IdentityError: What TLS needs is not there.
        """
        self._request = request
        self._relay = relay
        self._received = received
        self._ended = ended
        self._route: RelayRoute | None = None
        state = cluster.states.get(address)
        dials = () if state is None else state.endpoint.dials
        timeout_s = cluster.config.cluster.connect_timeout_s
        options = (
            ("grpc.default_authority", address.removeprefix("unix:").lstrip("/") or "localhost"),
            ("grpc.enable_http_proxy", 0),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.min_reconnect_backoff_ms", max(1, round(timeout_s * 1000))),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.max_receive_message_length", MAX_MESSAGE),
            # Two streams to one endpoint, of two clusters, are not to share a connection that one of them closes.
            ("grpc.use_local_subchannel_pool", 1),
        )
        self._tls = tls
        if tls is None:
            self._channel = own_channel(dial_target(address, dials), None, options)
        else:
            self._route = relay.open(
                address, _context(tls, view), server_name=tls.sni, connect_timeout_s=timeout_s, dials=dials
            )
            local = grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)
            self._channel = own_channel(self._route.target, local, options)
        self._lock = threading.Lock()
        self._cancel: Callable[[], object] | None = None  # guarded by the lock
        self._is_closed = False  # guarded by the lock
        self._thread = threading.Thread(target=self._run, name="meshlib-orca", daemon=True)
        self._thread.start()

    def is_outdated(self, view: View) -> bool:
        """Whether the certificate or the trust that the stream was opened with has been replaced."""
        if self._tls is None or self._route is None:
            return False
        try:
            return _context(self._tls, view) is not self._route.context
        except IdentityError:
            # Nothing to put in its place: the connection that was verified goes on.
            return False

    def close(self) -> None:
        """Give the stream up. `ended` is not called."""
        with self._lock:
            self._is_closed = True
            cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()

    def join(self) -> None:
        """After `close`: wait until the connection is closed."""
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        is_unimplemented = self._read()
        with self._lock:
            was_closed, self._is_closed, self._cancel = self._is_closed, True, None
        self._channel.close()
        if self._route is not None:
            self._relay.release(self._route)
        if not was_closed:
            self._ended(is_unimplemented)

    def _read(self) -> bool:
        """Deliver reports until the stream ends; return whether the endpoint does not have the service."""
        try:
            open_stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(METHOD)
            call = open_stream(self._request)
            with self._lock:
                if self._is_closed:
                    call.cancel()
                    return False
                self._cancel = call.cancel
            for data in call:
                self._received(data)
        except grpc.RpcError as error:
            code = getattr(error, "code", None)
            return callable(code) and code() is grpc.StatusCode.UNIMPLEMENTED
        except (MeshError, ValueError):
            # ValueError: grpcio's word for "this channel was closed meanwhile".
            return False
        return False


def _context(tls: ClientTls, view: View) -> ssl.SSLContext:
    wanted = replace(tls, alpn=("h2",)) if tls.alpn else tls
    return client_context(wanted, view.secrets, default_alpn=("h2",))
