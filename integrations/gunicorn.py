"""A gunicorn worker class that makes a WSGI application a service of the mesh.

    MESHLIB_SERVICE=user-service MESHLIB_LABELS=version=v1 gunicorn -k meshlib.integrations.gunicorn.MeshWorker app:application

Environment:
    MESHLIB_SERVICE: name that clients call (required).
    MESHLIB_LABELS: `version=v1,tier=web`; for subsets and selectors.
    MESHLIB_NAMESPACE, MESHLIB_SERVICE_ACCOUNT: its identity; default `default` and none.
    MESHLIB_SERVICE_PORT: port that clients name; default 80.
    MESHLIB_TTL_S: lifetime of the lease in seconds; default 5.
    MESHLIB_ADVERTISE: host or `host:port` as clients reach it; needed when bound to all addresses.
    MESHLIB_DRAIN_S: how long to go on accepting after leaving the registry; default 1 second.
    MESHLIB_START_TIMEOUT_S: how long to wait for the listener of the address; default 15 seconds.

Everything happens in the worker, after the fork: gunicorn's master has no threads of ours. Workers of one master share
the port and hence the lease (`meshlib.servers.crew`): each renews it, and the last one to be told to stop ends it, so
that reloads, `max_requests` and a worker's death leave the instance registered. After that the worker goes on accepting
for a moment, for clients that have not heard of it yet. A worker announces itself when its application is loaded.
"""

import os
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.workers.gthread import ThreadWorker

from meshlib.errors import ConfigError, MeshError
from meshlib.integrations import default_mesh
from meshlib.runtime.tls_rotation import rotating_server_context
from meshlib.servers.addresses import join
from meshlib.servers.announce import DRAIN_S, LISTENER_TIMEOUT_S, Announcement, announce
from meshlib.servers.crew import Crew
from meshlib.servers.mixed import begins_with_tls

__all__ = ["MeshWorker"]

PLACEHOLDER = os.devnull
"""gunicorn turns TLS on by the name of a certificate file; the context comes from the mesh and never reads it."""
CERTIFICATE_SETTINGS = ("certfile", "keyfile", "ca_certs")
NOTIFY_S = 0.5
BOOT_S = 30.0
"""gunicorn's default `timeout`: how long a worker may take to load the application. Without a `timeout` it may take any
time, but a lease that nobody renews has to end."""


class MeshWorker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no annotations
    """gthread worker that announces its address and serves what its listener demands."""

    # Of the master, before any fork: its workers inherit the memory that they share.
    _crew: Crew | None = None

    def __init__(self, age: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(age, *args, **kwargs)
        if MeshWorker._crew is None:
            MeshWorker._crew = Crew()
        self._berth = MeshWorker._crew.reserve(age)
        self._announcement: Announcement | None = None
        self._is_announcing = False
        self._is_leaving = False

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        """Refuse what contradicts the mesh; called in the master, before the first worker."""
        super().check_config(cfg, log)
        _options()
        for name in CERTIFICATE_SETTINGS:
            if getattr(cfg, name):
                raise ConfigError(
                    f"MeshWorker: {name} cannot be set: the mesh decides on TLS and brings the certificates"
                )
        if cfg.reuse_port:
            raise ConfigError("MeshWorker: reuse_port cannot be used: the workers share one socket and one lease")

    def init_process(self) -> None:
        crew = MeshWorker._crew
        assert crew is not None
        crew.board(self._berth)
        try:
            super().init_process()  # ends in run(), which serves until told to stop
        finally:
            # The master replaces a worker that has served its max_requests, or was told to reload.
            is_replaced = self.booted and not self._is_leaving and os.getppid() == self.ppid
            self._leave(is_replaced=is_replaced)

    def run(self) -> None:
        if self._is_leaving:
            return  # told to stop while the application was loaded
        self.booted = False  # a worker that cannot be announced has not booted: the master gives up, too
        try:
            with self._notifying():
                self._announce()
        except (MeshError, OSError) as error:
            self.log.error("%s", error)
            raise SystemExit(Arbiter.WORKER_BOOT_ERROR) from error
        self.booted = True
        super().run()

    def enqueue_req(self, conn: Any) -> None:
        """As gthread's; connections may speak TLS or not."""
        announcement = self._announcement
        if announcement is not None and announcement.takes_plaintext and not isinstance(conn.cfg, _MixedConfig):
            conn.cfg = _MixedConfig(conn.cfg, conn)
        super().enqueue_req(conn)

    def _announce(self) -> None:
        assert MeshWorker._crew is not None
        mesh = default_mesh()
        options = _options()
        del options["drain_s"]
        self._is_announcing = True
        self._announcement = announcement = announce(
            mesh, address=_address(self.sockets), lease_id=MeshWorker._crew.lease_id(options["service"]), **options
        )
        self._is_announcing = False
        MeshWorker._crew.board(self._berth, renews=True)
        if announcement.tls is not None:
            context = rotating_server_context(announcement.tls, announcement.secrets)

            def ssl_context(config: Any, default_factory: Any) -> ssl.SSLContext:
                return context

            self.cfg.set("ssl_context", ssl_context)
            self.cfg.set("certfile", PLACEHOLDER)
            self.cfg.set("do_handshake_on_connect", False)

    @contextmanager
    def _notifying(self) -> Iterator[None]:
        """Tell the master that we are alive: it kills workers that are silent for longer than its `timeout`."""
        done = threading.Event()

        def notify() -> None:
            while not done.wait(NOTIFY_S):
                with suppress(OSError, ValueError):
                    self.notify()

        thread = threading.Thread(target=notify, name="meshlib-notify", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self._is_announcing:
            raise SystemExit(0)
        if not self._is_leaving:
            self._is_leaving = True
            # The main thread goes on accepting meanwhile.
            threading.Thread(target=self._drain, args=(sig,), name="meshlib-drain", daemon=True).start()

    def handle_quit(self, sig: int, frame: Any) -> None:
        self._is_leaving = True
        super().handle_quit(sig, frame)

    def _drain(self, sig: int) -> None:
        try:
            if self._leave():
                time.sleep(_options()["drain_s"])
        finally:
            super().handle_exit(sig, None)

    def _leave(self, *, is_replaced: bool = False) -> bool:
        """Give up our part in the lease; returns whether the instance is out."""
        crew = MeshWorker._crew
        assert crew is not None
        if self._announcement is not None:
            return self._announcement.leave(crew, self._berth, handover_s=self._handover_s(), is_replaced=is_replaced)
        # Not announced yet, but the lease may be held for us.
        is_last = crew.leave(self._berth)
        if is_last:
            with suppress(MeshError, OSError):
                service = _options()["service"]
                default_mesh().deregister(
                    service=service, address=_address(self.sockets), lease_id=crew.lease_id(service)
                )
        return is_last

    def _handover_s(self) -> float:
        """Return how long workers that are loading may take until they renew the lease: the master kills slower ones."""
        return float(self.cfg.timeout or BOOT_S) + float(_options()["timeout_s"])


class _MixedConfig:
    """gunicorn's configuration for one connection of a port with plaintext and TLS.

    gunicorn asks for `is_ssl` when it is about to read from the connection: whether to wrap the socket, and for the scheme
    of requests.
    """

    def __init__(self, shared: Any, connection: Any) -> None:
        self._shared = shared
        self._connection = connection
        self._is_ssl: bool | None = None

    @property
    def is_ssl(self) -> bool:
        """Whether the connection begins with TLS; waits for its first byte."""
        if self._is_ssl is None:
            self._is_ssl = begins_with_tls(self._connection.sock)
        return self._is_ssl

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shared, name)


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
    return {
        "service": service,
        "labels": labels,
        "namespace": os.environ.get("MESHLIB_NAMESPACE", "default"),
        "service_account": os.environ.get("MESHLIB_SERVICE_ACCOUNT", ""),
        "service_port": int(_number("MESHLIB_SERVICE_PORT", 80)),
        "ttl_s": _number("MESHLIB_TTL_S", 5),
        "advertise": os.environ.get("MESHLIB_ADVERTISE") or None,
        "timeout_s": _number("MESHLIB_START_TIMEOUT_S", LISTENER_TIMEOUT_S),
        "drain_s": _number("MESHLIB_DRAIN_S", DRAIN_S),
    }


def _number(name: str, default: float) -> float:
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1e6:
        raise ConfigError(f"{name} must be a number from 0, not {text!r}")
    return value


def _address(sockets: Any) -> str:
    """Return the one TCP address that gunicorn listens on."""
    names = [name for name in (listener.getsockname() for listener in sockets) if isinstance(name, tuple)]
    if not names:
        raise ConfigError("MeshWorker needs a TCP address to announce; gunicorn is bound to unix sockets only")
    if len(names) > 1:
        bound = ", ".join(join(*name[:2]) for name in names)
        raise ConfigError(f"MeshWorker announces one address, and gunicorn is bound to {len(names)}: {bound}")
    return join(*names[0][:2])
