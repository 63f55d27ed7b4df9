"""A gunicorn worker class that makes a WSGI application a service of the mesh.

    MESHLIB_SERVICE=user-service MESHLIB_LABELS=version=v1 gunicorn -k meshlib.integrations.gunicorn.MeshWorker app:application

Environment:
    MESHLIB_SERVICE: name that clients call (required).
    MESHLIB_LABELS: `version=v1,tier=web`; for subsets and selectors.
    MESHLIB_NAMESPACE, MESHLIB_SERVICE_ACCOUNT: its identity; default `default` and none.
    MESHLIB_SERVICE_PORT: port that clients name; default 80.
    MESHLIB_TTL_S: lifetime of the lease in seconds; default 5.

Everything happens in the worker, after the fork: gunicorn's master has no threads of ours. Workers of one master share
the port and hence the lease; it ends with the last of them.
"""

import os
import ssl
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from meshlib.errors import ConfigError
from meshlib.integrations import default_mesh
from meshlib.runtime.tls import rotating_server_context
from meshlib.servers.announce import Announcement, announce

__all__ = ["MeshWorker"]

PLACEHOLDER = os.devnull
"""gunicorn turns TLS on by the name of a certificate file; the context comes from the mesh and never reads it."""


class MeshWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no annotations
    """gthread worker that announces its address and serves what its listener demands."""

    _announcement: Announcement | None = None

    def init_process(self) -> None:
        mesh = default_mesh()
        options = _options()
        address = _address(self.sockets)
        announcement = announce(mesh, address=address, **options)
        self._announcement = announcement
        if announcement.tls is not None:
            context = rotating_server_context(announcement.tls, lambda: mesh.view.secrets)

            def ssl_context(config: Any, default_factory: Any) -> ssl.SSLContext:
                return context

            self.cfg.set("ssl_context", ssl_context)
            self.cfg.set("certfile", PLACEHOLDER)
            self.cfg.set("do_handshake_on_connect", False)
        try:
            super().init_process()  # serves until told to stop
        finally:
            announcement.close()

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self._announcement is not None:
            self._announcement.close()
        super().handle_exit(sig, frame)


def _options() -> dict[str, Any]:
    service = os.environ.get("MESHLIB_SERVICE", "")
    if not service:
        raise ConfigError("MESHLIB_SERVICE is not set: MeshWorker needs the name that clients call this service by")
    labels = {}
    for part in filter(None, os.environ.get("MESHLIB_LABELS", "").split(",")):
        key, separator, value = part.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"MESHLIB_LABELS: {part!r} is not of the form name=value")
        labels[key.strip()] = value.strip()
    try:
        service_port = int(os.environ.get("MESHLIB_SERVICE_PORT", "80"))
        ttl_s = float(os.environ.get("MESHLIB_TTL_S", "5"))
    except ValueError as error:
        raise ConfigError(f"MESHLIB_SERVICE_PORT and MESHLIB_TTL_S must be numbers: {error}") from error
    return {
        "service": service,
        "labels": labels,
        "namespace": os.environ.get("MESHLIB_NAMESPACE", "default"),
        "service_account": os.environ.get("MESHLIB_SERVICE_ACCOUNT", ""),
        "service_port": service_port,
        "ttl_s": ttl_s,
    }


def _address(sockets: Any) -> str:
    for listener in sockets:
        name = listener.getsockname()
        if isinstance(name, tuple):
            host, port = name[0], name[1]
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    raise ConfigError("MeshWorker needs a TCP address to announce; gunicorn is bound to unix sockets only")
