"""Run an ASGI application on uvicorn as a service of the mesh: TLS, rotation and identity included.

    meshlib.integrations.uvicorn.run(app, mesh=mesh, service="checkout", labels={"version": "v1"})

One process, one address. For several processes behind one address use gunicorn (`meshlib.integrations.gunicorn`), or
start several of these: the mesh balances between them.
"""

import asyncio
import math
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import uvicorn

from meshlib.errors import ConfigError
from meshlib.integrations.asgi import CONNECTION
from meshlib.runtime.tls_rotation import rotating_server_context
from meshlib.servers.addresses import join, listen
from meshlib.servers.announce import DRAIN_S, LISTENER_TIMEOUT_S, announce
from meshlib.servers.mixed import MixedServer
from meshlib.servers.source import ServerSource

__all__ = ["MeshConfig", "MeshServer", "run"]

POLL_S = 0.1
GOODBYE_S = 0.2
"""How long a connection without a request may take to close; by then it has been told."""

REFUSED = {
    "workers": "one process serves one address; start several processes, or use meshlib.integrations.gunicorn",
    "reload": "a reloaded process could not keep its address; use `uvicorn --reload` without the mesh while developing",
    "uds": "clients reach a service of the mesh by TCP",
    "fd": "pass host and port",
    "ssl_context_factory": "the listener of the mesh decides on TLS",
    "http2": "the mesh calls HTTP services over HTTP/1.1",
    **dict.fromkeys(
        ("ssl_keyfile", "ssl_certfile", "ssl_keyfile_password", "ssl_ca_certs"),
        "certificates come from the mesh",
    ),
}
"""Options of uvicorn's that contradict what `run` does, and why."""


def _protocol(base: Any) -> Any:
    """Return a protocol class that adds what a scope lacks: the ASGI TLS extension, and the connection's addresses."""

    class MeshProtocol(base):  # type: ignore[misc]  # the base depends on what is installed
        app: Any
        transport: Any

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            connection = {
                "server": transport.get_extra_info("sockname"),
                "client": transport.get_extra_info("peername"),
            }
            extensions: dict[str, Any] = {CONNECTION: connection}
            tls = transport.get_extra_info("ssl_object")
            if tls is not None:
                extensions["tls"] = _extension(tls)
            app = self.app

            async def with_extensions(scope: Any, receive: Any, send: Any) -> None:
                if scope["type"] != "lifespan":
                    scope.setdefault("extensions", {}).update(extensions)
                await app(scope, receive, send)

            self.app = with_extensions

        def shutdown(self) -> None:
            super().shutdown()
            transport = self.transport
            if transport.is_closing():
                # An idle connection. asyncio now waits up to 30 s for the client's part of the TLS goodbye, and clients
                # do not read from idle connections.
                asyncio.get_running_loop().call_later(GOODBYE_S, transport.abort)

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

    def __init__(
        self, app: Any, *, tls_context: ssl.SSLContext | None, takes_plaintext: bool = False, **options: Any
    ) -> None:
        """
        Args:
            app: The application.
            tls_context: None: plaintext.
            takes_plaintext: Beside TLS, on the same port.
            **options: uvicorn's.
        """
        super().__init__(app, **options)
        self._tls_context = tls_context
        self.takes_plaintext = takes_plaintext and tls_context is not None

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
        self.http_protocol_class = _protocol(self.http_protocol_class)
        if self.ws_protocol_class is not None:
            self.ws_protocol_class = _protocol(self.ws_protocol_class)


class MeshServer(uvicorn.Server):
    """Is announced as ready when the application has started; leaves the registry before it shuts down."""

    def __init__(
        self,
        config: uvicorn.Config,
        leave: Callable[[], None],
        *,
        started: Callable[[], None] = lambda: None,
        drain_s: float = DRAIN_S,
    ) -> None:
        """
        Args:
            config: A `MeshConfig`.
            leave: Takes the instance out of the registry; may block.
            started: Called when requests can be answered; must not block.
            drain_s: How long to go on accepting after that.
        """
        super().__init__(config)
        self._leave = leave
        self._started = started
        self._drain_s = drain_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; afterwards clients may choose the instance."""
        config = self.config
        if sockets and isinstance(config, MeshConfig) and config.takes_plaintext:
            await super().startup([])
            context = config.ssl
            assert context is not None
            self.servers = [MixedServer(one, self._protocol, context, config.backlog) for one in sockets]  # type: ignore[misc]
        else:
            await super().startup(sockets)
        self._started()

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn makes them in `startup`."""
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Leave, drain and stop. Called by uvicorn."""
        await asyncio.to_thread(self._leave)
        # A second SIGINT ends the wait, as it ends uvicorn's own.
        for _ in range(math.ceil(self._drain_s / POLL_S)):
            if self.force_exit:
                break
            await asyncio.sleep(POLL_S)
        await super().shutdown(sockets)
        # uvicorn raises the signal again when all is done. The caller still has a mesh to close; it gets control back.
        self._captured_signals.clear()


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
    advertise: str | None = None,
    drain_s: float = DRAIN_S,
    start_timeout_s: float = LISTENER_TIMEOUT_S,
    **options: Any,
) -> None:
    """Serve an application until SIGTERM or SIGINT.

    Returns when the last request is answered; it must run in the main thread, which is where signals arrive.

    Args:
        app: An ASGI application, normally with `MeshMiddleware`; or its import string.
        mesh: The mesh to join.
        service: Name that clients call.
        host: Address to listen on.
        port: 0: a free one.
        labels: For subsets and selectors.
        namespace: Of the service.
        service_account: Its identity.
        service_port: Port that clients name.
        weight: Load-balancing weight.
        ttl_s: Lifetime of the lease in seconds.
        advertise: Host or `host:port` as clients reach it, where it is not the one listened on.
        drain_s: How long to go on serving after leaving the registry, in seconds.
        start_timeout_s: How long to wait for the listener of the address, in seconds.
        **options: uvicorn's own, e.g. `log_level="warning"`.

    Raises:
        ConfigError: An option that cannot work here, a thread that is not the main one, or an instance that the
            registry refuses.
        OSError: The port is taken.
        UnavailableError: The listener was not there in time.
    """
    _check(options)
    backlog = options.setdefault("backlog", 2048)
    with _sigterm_as_exit(), listen(host, port, backlog) as listening:
        with announce(
            mesh,
            service=service,
            address=join(*listening.getsockname()[:2]),
            advertise=advertise,
            labels=labels,
            namespace=namespace,
            service_account=service_account,
            service_port=service_port,
            weight=weight,
            ttl_s=ttl_s,
            ready=False,
            timeout_s=start_timeout_s,
        ) as announcement:
            context = None
            if announcement.tls is not None:
                context = rotating_server_context(announcement.tls, announcement.secrets)
            config = MeshConfig(app, tls_context=context, takes_plaintext=announcement.takes_plaintext, **options)
            server = MeshServer(config, announcement.close, started=announcement.set_ready, drain_s=drain_s)
            server.run(sockets=[listening])


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Have a SIGTERM that comes before uvicorn listens to it end the process in order, so that no lease is left."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(0)

    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:  # the application's own
        yield
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _check(options: Mapping[str, Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError(
            "meshlib.integrations.uvicorn.run must be called in the main thread: it ends with SIGTERM or SIGINT; "
            "elsewhere use announce() with MeshServer, and set its `should_exit`"
        )
    for name, reason in REFUSED.items():
        if options.get(name) and not (name == "workers" and options[name] == 1):
            raise ConfigError(f"meshlib.integrations.uvicorn.run: option {name!r} cannot be used: {reason}")
