"""The mesh of one process: started and stopped, asked for targets, and the place where configuration is published."""

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from meshlib.admin.metrics import StandardMetrics
from meshlib.errors import BootstrapError, MeshError, RoutingError, UnavailableError
from meshlib.events import Event, Hook
from meshlib.model.snapshot import ConfigFault, Snapshot
from meshlib.ports import Clock, Rng
from meshlib.runtime import clock as clocks
from meshlib.runtime import fork
from meshlib.runtime.control import ControlPlane
from meshlib.runtime.server_link import OpenStream
from meshlib.runtime.state_store import StateStore, default_directory
from meshlib.runtime.wait import Waiters
from meshlib.view import TargetView, View, build_view
from meshlib.xds.bootstrap import Bootstrap, load_bootstrap, parse_bootstrap
from meshlib.xds.names import inbound_name, listener_name

if TYPE_CHECKING:
    from collections.abc import Callable

    import grpc
    import httpx

    from meshlib.admin.explain import Explanation
    from meshlib.admin.status import MeshStatus, ResourceStatus
    from meshlib.runtime.inbound import InboundSubscription
    from meshlib.runtime.registration import Registration

__all__ = ["Mesh"]

_LOG = logging.getLogger(__name__)

FIRST_USE_TIMEOUT_S: Final = 15.0
"""Envoy's and gRPC's time for a first resource."""
INBOUND_TEMPLATE: Final = "xds.istio.io/grpc/lds/inbound/%s"
MAX_NAMES: Final = 10_000
"""Authorities whose listener name is remembered: a client that makes up host names must not grow without end."""


class Mesh:
    """One process's part in the mesh. Creation does no I/O; the first use starts it, or `start`.

    Attributes:
        clock: Monotonic seconds.
        guard_unsafe: Repeat requests that may have been processed only when that is safe.
        is_disabled: `MESHLIB_DISABLE=1`: clients send everything directly, no management server is asked.
        metrics: The standard metrics, aggregated as calls end.
        default_inbound_address: The first announced address: it applies where a server adapter cannot tell the local
            address of a connection.
    """

    def __init__(
        self,
        bootstrap: "Bootstrap | Mapping[str, Any] | str | os.PathLike[str]",
        *,
        state_dir: "str | os.PathLike[str] | None" = None,
        guard_unsafe: bool = True,
        first_use_timeout_s: float = FIRST_USE_TIMEOUT_S,
        clock: Clock = clocks.monotonic,
        rng: Rng | None = None,
        open_stream: OpenStream | None = None,
    ) -> None:
        """Make a mesh.

        Args:
            bootstrap: Where the management server is and who we are: a `Bootstrap`, a dict in gRPC's bootstrap format,
                or the path of a file in it (read at the start).
            state_dir: Where the last good configuration is kept, private keys included; empty: nowhere. None:
                `MESHLIB_STATE_DIR`, else `meshlib` in the user's cache directory.
            guard_unsafe: False also repeats requests that may have been processed and are not idempotent.
            first_use_timeout_s: How long the first use of a service may wait for its configuration.
            clock: Monotonic seconds.
            rng: Chance, for weights and jitter; None: one of its own.
            open_stream: Opens the stream to the management server; None: over gRPC.

        Raises:
            BootstrapError: The dict is not a valid bootstrap.
        """
        # Fixed at creation.
        self.clock = clock
        self.rng = rng if rng is not None else clocks.system_rng()
        self.guard_unsafe = guard_unsafe
        self.is_disabled = os.environ.get("MESHLIB_DISABLE", "") == "1"
        self._first_use_timeout_s = first_use_timeout_s
        self._state_dir = _state_directory(state_dir)
        self._open_stream = open_stream
        # Guarded by the lock.
        self._lock = threading.Lock()
        self._bootstrap: Bootstrap | None = None
        self._path: Path | None = None
        if isinstance(bootstrap, Bootstrap):
            self._bootstrap = bootstrap
        elif isinstance(bootstrap, Mapping):
            self._bootstrap = parse_bootstrap(bootstrap, origin="dict")
        else:
            self._path = Path(bootstrap)
        self._control: ControlPlane | None = None
        self._is_closed = False
        self.metrics = StandardMetrics()
        self.default_inbound_address: str | None = None
        self._hooks: tuple[Hook, ...] = (self.metrics,)
        self._bad_hooks: set[int] = set()
        # One assignment each, read by everyone.
        self._is_dormant = True
        self._needs_rebuild = False
        self._view = View(Snapshot(), {}, {})
        self._names: dict[str, str] = {}
        self._waiters = Waiters()

    @classmethod
    def from_env(cls, **options: Any) -> "Mesh":
        """Make a mesh of the bootstrap that `GRPC_XDS_BOOTSTRAP` or `GRPC_XDS_BOOTSTRAP_CONFIG` names.

        Args:
            **options: As for `Mesh`.

        Raises:
            BootstrapError: Neither is set, or what they name is not valid. Not with `MESHLIB_DISABLE=1`, which must
                help when the bootstrap is what is broken.
        """
        try:
            return cls(load_bootstrap(os.environ, _read_text), **options)
        except BootstrapError:
            if os.environ.get("MESHLIB_DISABLE", "") != "1":
                raise
            _LOG.warning("MESHLIB_DISABLE=1: going on without a valid bootstrap", exc_info=True)
            return cls({"xds_servers": [_insecure_server("disabled.invalid:0")]}, **options)

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        node_id: str,
        registry_uri: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> "Mesh":
        """Make a mesh that talks to a management server in plaintext: the short form, for a laptop.

        Args:
            address: `host:port` of the management server.
            node_id: Name of this process.
            registry_uri: Where instances register, `http://host:port`.
            metadata: The node's metadata.
            **options: As for `Mesh`.
        """
        bootstrap: dict[str, Any] = {
            "xds_servers": [_insecure_server(address)],
            "node": {"id": node_id, "metadata": dict(metadata or {})},
            "server_listener_resource_name_template": INBOUND_TEMPLATE,
        }
        if registry_uri is not None:
            bootstrap["meshlib"] = {"registry_uri": registry_uri}
        return cls(bootstrap, **options)

    # Life.

    def start(self) -> None:
        """Connect in the background; returns at once. Called by the first use otherwise. May follow `close`.

        Raises:
            BootstrapError: The bootstrap file cannot be read or is not valid.
            ConfigError: The bootstrap asks for what is not supported.
        """
        if self.is_disabled:
            self._is_dormant = False
            return
        with self._lock:
            if self._needs_rebuild:
                # After a fork: the states in the old view belong to calls and locks of another process.
                self._view = build_view(self._view.snapshot, None, now=self.clock())
                self._needs_rebuild = False
            control = self._control
            if control is None:
                control = self._control = self._make_control(self._loaded())
                fork.register(self)
            self._is_closed = False
            control.start()
            self._is_dormant = False

    def close(self) -> None:
        """End the stream and the thread, and write the copy on disk. Safe to call twice."""
        with self._lock:
            control = self._control
            self._is_closed = self._is_dormant = True
        if control is not None:
            control.close()
        self._waiters.notify()

    async def astart(self) -> None:
        """As `start`."""
        self.start()

    async def aclose(self) -> None:
        """As `close`, without blocking the loop."""
        import asyncio

        await asyncio.to_thread(self.close)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        await self.astart()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        state = "disabled" if self.is_disabled else "closed" if self._is_closed else repr(self._view)
        return f"<Mesh {state}>"

    @property
    def bootstrap(self) -> Bootstrap:
        """The bootstrap; reads its file the first time.

        Raises:
            BootstrapError: The file cannot be read or is not valid.
        """
        with self._lock:
            return self._loaded()

    # What clients and servers ask.

    @property
    def view(self) -> View:
        """The current view; read it once per call."""
        if self._is_dormant:
            self._wake()
        return self._view

    def target(self, authority: str) -> TargetView | None:
        """Return the target of an authority if it is known and usable right now; never blocks.

        Raises:
            RoutingError: The management server says that it does not exist.
            UnavailableError: Its configuration cannot be used, or the mesh is closed.
        """
        if self._is_dormant:
            self._wake()
        name = self._names.get(authority)
        return self._usable(self._name(authority) if name is None else name)

    def wait_target(self, authority: str, timeout_s: float | None = None) -> TargetView:
        """Subscribe to a target if need be, and wait until it is usable; None: the mesh's default time.

        Raises:
            RoutingError: The management server says that it does not exist.
            UnavailableError: It was not there in time; the text says what is missing and how the server is.
        """
        name, timeout_s = self._subscribe(authority, timeout_s)
        found = self._waiters.wait(lambda: self._usable(name), timeout_s, self.clock)
        if found is None:
            raise self.not_ready(f"service {authority!r}", name, timeout_s)
        return found

    async def wait_target_async(self, authority: str, timeout_s: float | None = None) -> TargetView:
        """As `wait_target`, without blocking the event loop."""
        name, timeout_s = self._subscribe(authority, timeout_s)
        found = await self._waiters.wait_async(lambda: self._usable(name), timeout_s, self.clock)
        if found is None:
            raise self.not_ready(f"service {authority!r}", name, timeout_s)
        return found

    def wait_ready(self, *services: str, timeout_s: float | None = None) -> None:
        """Subscribe to services and wait until all of them are usable, so that no first call has to.

        Services that do not exist yet are waited for too: processes of a mesh start in any order.

        Args:
            *services: As written in URLs and targets, e.g. `checkout` or `checkout:8080`. None given: all that were
                used so far.
            timeout_s: For all of them together; None: the mesh's default.

        Raises:
            RoutingError: The time is over, and one does not exist.
            UnavailableError: One was not there in time, or cannot be used.
        """
        limit_s = self._first_use_timeout_s if timeout_s is None else timeout_s
        deadline = self.clock() + limit_s
        for service in services:
            self._subscribe(service, None)
        names = [self._name(service) for service in services] or sorted(self._running().targets)
        for name in names:
            remaining_s = max(0.0, deadline - self.clock())
            found = self._waiters.wait(lambda name=name: self._ready(name), remaining_s, self.clock)  # type: ignore[misc]
            if found is None and self._usable(name) is None:
                raise self.not_ready(f"target {name!r}", name, limit_s)

    def emit(self, event: Event) -> None:
        """Hand an event to the hooks; never raises."""
        for hook in self._hooks:
            try:
                hook(event)
            except Exception:
                if id(hook) not in self._bad_hooks:
                    self._bad_hooks.add(id(hook))
                    _LOG.exception("hook %r failed; further failures of it are not reported", hook)

    def add_hook(self, hook: Hook) -> None:
        """Have a function called with every event. It runs where the event happens, so it must be quick."""
        with self._lock:
            self._hooks = (*self._hooks, hook)

    # Incoming requests.

    @property
    def has_inbound(self) -> bool:
        """Whether the mesh governs incoming requests: the bootstrap says how a server's listener is called."""
        return not self.is_disabled and self.bootstrap.server_listener_resource_name_template is not None

    def inbound(self, address: str) -> "InboundSubscription":
        """Subscribe to what applies to requests that come in at an address.

        Args:
            address: `IP:port` as listened on.

        Raises:
            ConfigError: The bootstrap has no `server_listener_resource_name_template`.
        """
        from meshlib.runtime.inbound import InboundSubscription

        if self.is_disabled:
            return InboundSubscription(self, address, address)
        name = inbound_name(self.bootstrap, address)
        self._running().watch(inbound=frozenset((name,)))
        return InboundSubscription(self, address, name)

    def register(
        self,
        *,
        service: str,
        address: str,
        namespace: str = "default",
        labels: Mapping[str, str] | None = None,
        service_account: str = "",
        protocol: str = "http",
        service_port: int = 80,
        weight: int = 1,
        ttl_s: float = 5.0,
    ) -> "Registration":
        """Announce an instance of a service, and keep on announcing it until `close` on what is returned.

        The first announcement is made before this returns; while the server is away it goes on in the background.

        Args:
            service: Name without namespace.
            address: `IP:port` where the instance listens.
            namespace: Of the service.
            labels: E.g. `{"version": "v1"}`; subsets choose by them.
            service_account: Who the instance is; empty: nobody.
            protocol: `http` or `grpc`.
            service_port: The port by which callers know the service.
            weight: Share of load, at least 1.
            ttl_s: How long an instance that says nothing any more counts as alive.

        Raises:
            ConfigError: The bootstrap has no `meshlib.registry_uri`, or the server refuses the announcement.
        """
        from meshlib.runtime.registration import Instance, Registration

        instance = Instance(
            service=service,
            address=address,
            namespace=namespace,
            labels=dict(labels or {}),
            service_account=service_account,
            protocol=protocol,
            service_port=service_port,
            weight=weight,
            ttl_s=ttl_s,
        )
        bootstrap = self.bootstrap
        registration = Registration(instance, bootstrap, rng=self.rng)
        registration.start()
        return registration

    # Clients.

    def httpx_transport(self, **options: Any) -> "httpx.BaseTransport":
        """Return a transport for `httpx.Client`.

        Args:
            **options: As for `meshlib.clients.httpx_sync.MeshTransport`.
        """
        from meshlib.clients.httpx_sync import MeshTransport

        return MeshTransport(self, **options)

    def async_httpx_transport(self, **options: Any) -> "httpx.AsyncBaseTransport":
        """Return a transport for `httpx.AsyncClient`.

        Args:
            **options: As for `meshlib.clients.httpx_async.AsyncMeshTransport`.
        """
        from meshlib.clients.httpx_async import AsyncMeshTransport

        return AsyncMeshTransport(self, **options)

    def channel(self, target: str, options: Any = None) -> "grpc.Channel":
        """Return a channel to a service, e.g. `xds:///checkout`."""
        from meshlib.clients.grpc_sync import MeshChannel

        return MeshChannel(self, target, options=options)

    def aio_channel(self, target: str, options: Any = None) -> "grpc.aio.Channel":
        """Return an asyncio channel to a service, e.g. `xds:///checkout`."""
        from meshlib.clients.grpc_aio import AioMeshChannel

        return AioMeshChannel(self, target, options=options)

    def intercept(self, channel: "grpc.Channel", **options: Any) -> "grpc.Channel":
        """Return a channel that applies the mesh's policy to calls over a channel which the application made.

        Args:
            channel: Goes on choosing the connections.
            **options: As for `meshlib.clients.grpc_intercept.intercept`.
        """
        from meshlib.clients.grpc_intercept import intercept

        return intercept(self, channel, **options)

    def call(self, service: str, **options: Any) -> "Callable[..., Any]":
        """Return a decorator that runs a function, sync or async, under the policy of a service.

        Args:
            service: As in a URL.
            **options: As for `meshlib.clients.function.decorate`.
        """
        from meshlib.clients.function import decorate

        return decorate(self, service, **options)

    # Questions.

    def explain(
        self, method: str, url: str, *, headers: Mapping[str, str] | None = None, timeout_s: float | None = None
    ) -> "Explanation":
        """Say where a request would go, and why.

        Args:
            method: HTTP method; for gRPC `POST` with the path `/package.Service/Method`.
            url: As a client would write it, `xds:///service/package.Service/Method` included.
            headers: Those that routes may look at.
            timeout_s: How long to wait for a service not used yet; None: the mesh's default.
        """
        from meshlib.admin.explain import explain

        return explain(self, method, url, headers=headers, timeout_s=timeout_s)

    def status(self) -> "MeshStatus":
        """Return how the connection, targets, clusters, endpoints and certificates are. No secrets."""
        from meshlib.admin.status import mesh_status

        return mesh_status(self, self._control)

    def dump(self) -> "tuple[ResourceStatus, ...]":
        """Return every resource with its state, version, error and age. No secrets."""
        from meshlib.admin.status import resource_statuses

        return resource_statuses(self, self._control)

    # For the control thread.

    def publish(self, snapshot: Snapshot) -> None:
        """Take a snapshot into use. Called by the control thread."""
        self._view = build_view(snapshot, self._view, now=self.clock())

    def tick(self, now: float) -> None:
        """Do periodic work. Called by the control thread."""
        for event in self._view.sweep(now, self.rng):
            self.emit(event)

    def changed(self) -> None:
        """Have everyone who waits look again. Called by the control thread."""
        self._waiters.notify()

    # Fork.

    def before_fork(self) -> None:
        """Stand still. Called by the fork hooks."""
        if self._control is not None:
            self._control.before_fork()

    def after_fork_in_parent(self) -> None:
        """Go on. Called by the fork hooks."""
        if self._control is not None:
            self._control.after_fork_in_parent()

    def after_fork_in_child(self) -> None:
        """Start again on first use. Called by the fork hooks."""
        self._lock = threading.Lock()
        self._waiters = Waiters()
        self._is_dormant = True
        self._needs_rebuild = True
        if self._control is not None:
            self._control.after_fork_in_child()

    # Parts of the above.

    def _wake(self) -> None:
        if self._is_closed:
            raise UnavailableError("the mesh is closed")
        self.start()

    def _running(self) -> ControlPlane:
        if self._is_dormant:
            self._wake()
        if self._control is None:
            raise UnavailableError("the mesh is disabled (MESHLIB_DISABLE=1): it knows no services")
        return self._control

    def _name(self, authority: str) -> str:
        # gRPC targets with an authority of their own (`xds://authority/name`) come as they are.
        xds_authority, _, path = authority.removeprefix("xds://").partition("/")
        if path and authority.startswith("xds://"):
            name = listener_name(self.bootstrap, path, xds_authority=xds_authority)
        else:
            name = listener_name(self.bootstrap, authority)
        self._names[authority] = name
        if len(self._names) > MAX_NAMES:
            self._names = {authority: name}
        return name

    def _ready(self, name: str) -> TargetView | None:
        found = self._view.targets.get(name)
        return None if isinstance(found, ConfigFault) else found

    def _usable(self, name: str) -> TargetView | None:
        found = self._view.targets.get(name)
        if isinstance(found, ConfigFault):
            if found.is_absent:
                raise RoutingError(found.message, flag="NR", resource=name)
            raise UnavailableError(found.message, resource=name)
        return found

    def _subscribe(self, authority: str, timeout_s: float | None) -> tuple[str, float]:
        control = self._running()
        name = self._name(authority)
        control.watch(targets=frozenset((name,)))
        return name, self._first_use_timeout_s if timeout_s is None else timeout_s

    def not_ready(self, what: str, name: str, timeout_s: float) -> MeshError:
        """Return the error for something that was waited for in vain: what is missing, and how the server is."""
        control = self._control
        if self._is_closed or control is None:
            return UnavailableError("the mesh is closed", resource=name)
        missing = ", ".join(control.waiting.get(name, (f"LDS resource {name}",)))
        return UnavailableError(
            f"{what} is not ready after {timeout_s:g} s: waiting for {missing}; "
            f"{control.connection.describe(self.clock())}",
            resource=name,
        )

    def _loaded(self) -> Bootstrap:
        """Return the bootstrap; the lock is held."""
        if self._bootstrap is None:
            assert self._path is not None
            try:
                text = _read_text(str(self._path))
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or str(error)
                raise BootstrapError(f"bootstrap {self._path}: cannot be read: {reason}") from error
            self._bootstrap = parse_bootstrap(text, origin=str(self._path))
        return self._bootstrap

    def _make_control(self, bootstrap: Bootstrap) -> ControlPlane:
        store = None
        if self._state_dir is not None:
            store = StateStore(self._state_dir, bootstrap.node, bootstrap.servers[0])
        return ControlPlane(
            bootstrap,
            self,
            clock=self.clock,
            wall_clock=clocks.wall,
            rng=self.rng,
            emit=self.emit,
            store=store,
            open_stream=self._open_stream,
        )


def _read_text(path: str) -> str:
    return Path(path).read_text("utf-8")


def _insecure_server(uri: str) -> dict[str, Any]:
    return {"server_uri": uri, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}


def _state_directory(given: "str | os.PathLike[str] | None") -> Path | None:
    """Return where the copy goes; None: nowhere."""
    if given is None:
        given = os.environ.get("MESHLIB_STATE_DIR")
    if given is None:
        return default_directory()
    return Path(given) if os.fspath(given) else None
