"""Run an ASGI application on uvicorn as a service of the mesh: TLS, rotation and identity included.

meshlib.integrations.uvicorn.run(app, mesh=mesh, service="checkout", labels={"version": "v1"})
"""

import asyncio
import contextlib
import signal
import socket
import ssl
from collections.abc import Mapping
from typing import Any

import uvicorn
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from meshlib.runtime.tls import rotating_server_context
from meshlib.servers.announce import announce
from meshlib.servers.source import ServerSource

__all__ = ["MeshConfig", "MeshServer", "run"]

DRAIN_S = 0.3
"""How long to go on accepting after leaving the registry: the time an update needs to reach every client."""


def _protocol(base: Any) -> Any:
    """Return an HTTP protocol class that adds the ASGI TLS extension, which uvicorn itself lacks."""

    class MeshProtocol(base):  # type: ignore[misc]  # the base depends on what is installed
        app: Any

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            tls = transport.get_extra_info("ssl_object")
            if tls is None:
                return
            app = self.app
            extension = _extension(tls)

            async def with_tls(scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] != "lifespan":
                    scope.setdefault("extensions", {})["tls"] = extension
                await app(scope, receive, send)

            self.app = with_tls

    return MeshProtocol


def _extension(tls: ssl.SSLObject) -> dict[str, Any]:
    """Return the `tls` extension of the ASGI specification (version 0.2)."""
    der = tls.getpeercert(binary_form=True)
    return {
        "server_cert": None,
        "client_cert_chain": [ssl.DER_cert_to_PEM_cert(der)] if der else [],
        "client_cert_name": None,
        "client_cert_error": None,
        "tls_version": {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}.get(tls.version() or ""),
        "cipher_suite": None,
    }


class MeshConfig(uvicorn.Config):
    """A uvicorn configuration whose TLS comes from the mesh. All of uvicorn's own options remain."""

    def __init__(self, app: Any, *, tls_context: ssl.SSLContext | None, **options: Any) -> None:
        """
        Args:
            app: The application.
            tls_context: None: plaintext.
            **options: uvicorn's.
        """
        super().__init__(app, **options)
        self._tls_context = tls_context

    @property
    def is_ssl(self) -> bool:
        return self._tls_context is not None

    def load(self) -> None:
        """Load the application, and take the context as it is. Called by uvicorn."""
        # The base class would build a context from files; ours follows rotation.
        context, self._tls_context = self._tls_context, None
        try:
            super().load()
        finally:
            self._tls_context = context
        self.ssl = context
        if self.http == "auto":
            self.http_protocol_class = _protocol(AutoHTTPProtocol)
        else:
            self.http_protocol_class = _protocol(self.http_protocol_class)


class MeshServer(uvicorn.Server):
    """Leaves the registry first, goes on serving for a moment, then shuts down."""

    def __init__(self, config: uvicorn.Config, leave: Any) -> None:
        super().__init__(config)
        self._leave = leave

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Leave, drain and stop. Called by uvicorn."""
        await asyncio.to_thread(self._leave)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0 if self.force_exit else DRAIN_S)
        await super().shutdown(sockets)


def run(
    app: Any,
    *,
    mesh: ServerSource,
    service: str,
    host: str = "127.0.0.1",
    port: int = 0,
    labels: Mapping[str, str] | None = None,
    namespace: str = "default",
    service_account: str = "",
    service_port: int = 80,
    weight: int = 1,
    ttl_s: float = 5.0,
    **options: Any,
) -> None:
    """Serve an application until SIGTERM or SIGINT.

    Args:
        app: An ASGI application, normally with `MeshMiddleware`.
        mesh: The mesh to join.
        service: Name that clients call.
        host: Address to listen on, as clients reach it.
        port: 0: a free one.
        labels: For subsets and selectors.
        namespace: Of the service.
        service_account: Its identity.
        service_port: Port that clients name.
        weight: Load-balancing weight.
        ttl_s: Lifetime of the lease in seconds.
        **options: uvicorn's own, e.g. `log_level="warning"`.

    Raises:
        OSError: The port is taken.
        UnavailableError: The registry or the listener was not there in time.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(options.get("backlog", 2048))
        number = listening.getsockname()[1]
        address = f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
        with announce(
            mesh,
            service=service,
            address=address,
            labels=labels,
            namespace=namespace,
            service_account=service_account,
            service_port=service_port,
            weight=weight,
            ttl_s=ttl_s,
        ) as announcement:
            context = None
            if announcement.tls is not None:
                context = rotating_server_context(announcement.tls, lambda: mesh.view.secrets)
            # One signal asks for the drain; uvicorn's own handler forces the exit on a second one.
            signal.siginterrupt(signal.SIGTERM, False)
            MeshServer(MeshConfig(app, tls_context=context, **options), announcement.close).run(sockets=[listening])
