"""The mesh of one process: what applications hold, ask and pass to their clients and servers."""

import asyncio
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from meshlib.admin.metrics import StandardMetrics
from meshlib.errors import BootstrapError
from meshlib.model.retry import DEFAULT_SAFETY, RetryBudget
from meshlib.options import check_type, entries
from meshlib.ports import Clock, Rng
from meshlib.runtime import clock as clocks
from meshlib.runtime.asking import FIRST_USE_TIMEOUT_S
from meshlib.runtime.engine import MeshEngine, read_text
from meshlib.runtime.server_link import OpenStream
from meshlib.xds.bootstrap import Bootstrap
from meshlib.xds.decode_bootstrap import load_bootstrap
from meshlib.xds.names import inbound_name

if TYPE_CHECKING:
    import grpc
    from opentelemetry.trace import TracerProvider

    from meshlib.admin.certificates import CertificateStatus
    from meshlib.admin.explain import Explanation
    from meshlib.admin.status import MeshStatus, ResourceStatus
    from meshlib.clients.filters import AsyncFilter, Filter
    from meshlib.clients.function import Decorator
    from meshlib.clients.httpx_async import AsyncMeshTransport
    from meshlib.clients.httpx_filters import AsyncFilteredTransport, FilteredTransport
    from meshlib.clients.httpx_sync import MeshTransport
    from meshlib.model.snapshot import InboundConfig
    from meshlib.runtime.inbound import InboundSubscription
    from meshlib.runtime.registration import Registration

__all__ = ["Mesh"]

_LOG = logging.getLogger(__name__)

INBOUND_TEMPLATE: Final = "xds.istio.io/grpc/lds/inbound/%s"


class Mesh(MeshEngine):
    """One process's part in the mesh. Creation does no I/O; the first use starts it, or `start`.

    Attributes:
        clock: Monotonic seconds.
        guard_unsafe: Repeat requests that may have been processed only when that is safe.
        handed_on: Names of the request headers that go on to the calls made while serving a request.
        is_disabled: `MESHLIB_DISABLE=1`: clients send everything directly, no management server is asked.
        metrics: The standard metrics, aggregated as calls end.
        tracing: Makes spans.
        default_inbound_address: The first announced address: it applies where a server adapter cannot tell the local
            address of a connection.
        announced_addresses: The address announced for each that this process listens on, as `host:port`.
        leaving_addresses: What applies at addresses that were announced and are no more, while requests still come.
    """

    def __init__(
        self,
        bootstrap: "Bootstrap | Mapping[str, Any] | str | os.PathLike[str]",
        *,
        state_dir: "str | os.PathLike[str] | None" = None,
        guard_unsafe: bool = True,
        retry_budget: RetryBudget | None = DEFAULT_SAFETY.budget,
        one_retry_layer: bool = True,
        hand_on: Iterable[str] = (),
        first_use_timeout_s: float = FIRST_USE_TIMEOUT_S,
        clock: Clock = clocks.monotonic,
        rng: Rng | None = None,
        open_stream: OpenStream | None = None,
        tracer_provider: "TracerProvider | None" = None,
    ) -> None:
        """Make a mesh.

        Args:
            bootstrap: Where the management server is and who we are: a `Bootstrap`, a dict in gRPC's bootstrap format,
                or the path of a file in it (read at the start).
            state_dir: Where the last good configuration is kept, private keys included; empty: nowhere. None:
                `MESHLIB_STATE_DIR`, else `meshlib` in the user's cache directory.
            guard_unsafe: False also repeats requests that may have been processed and are not idempotent.
            retry_budget: How many retries and hedges this process may make to each cluster, beyond what the policies and
                circuit breakers say; None: as many as those allow.
            one_retry_layer: Retries carry the header `x-meshlib-attempt`, and calls made while serving a request that is
                itself a retry are only repeated when they reached nobody. False: neither.
            hand_on: Request headers, beside those of traces and `priority`, that go on as they came to the calls made
                while serving the request: `("x-end-user",)`. `x-forwarded-client-cert` is the caller's identity as its
                certificate proved it (`URI=spiffe://...`), whatever the caller wrote there.
            first_use_timeout_s: How long the first use of a service may wait for its configuration.
            clock: Monotonic seconds.
            rng: Chance, for weights and jitter; None: one of its own.
            open_stream: Opens the stream to the management server; None: over gRPC.
            tracer_provider: Who takes spans; None: OpenTelemetry's global provider, as soon as there is one.

        Raises:
            BootstrapError: The dict is not a valid bootstrap.
            TypeError: An option is of another type than it must be.
            ValueError: Its value is none that it can have.
        """
        super().__init__(
            bootstrap,
            state_dir=state_dir,
            guard_unsafe=guard_unsafe,
            retry_budget=retry_budget,
            one_retry_layer=one_retry_layer,
            hand_on=hand_on,
            first_use_timeout_s=first_use_timeout_s,
            clock=clock,
            rng=rng,
            open_stream=open_stream,
            tracer_provider=tracer_provider,
        )
        self.metrics = StandardMetrics()
        self.default_inbound_address: str | None = None
        self.announced_addresses: dict[str, str] = {}
        self.leaving_addresses: dict[str, InboundConfig] = {}
        # What counts for the filters of an address; of the servers that listen there.
        self._inbound_limiters: dict[str, Any] = {}
        self.forwarded: dict[str, str] = {}
        self.add_hook(self.metrics)
        if self._bootstrap is not None:
            self._identify(self._bootstrap)

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
            return cls(load_bootstrap(os.environ, read_text), **options)
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
        check_type("metadata", metadata, Mapping, none=True)
        bootstrap: dict[str, Any] = {
            "xds_servers": [_insecure_server(address)],
            "node": {"id": node_id, "metadata": dict(metadata or {})},
            "server_listener_resource_name_template": INBOUND_TEMPLATE,
        }
        if registry_uri is not None:
            bootstrap["meshlib"] = {"registry_uri": registry_uri}
        return cls(bootstrap, **options)

    def _loaded(self) -> Bootstrap:
        was_known = self._bootstrap is not None
        bootstrap = super()._loaded()
        if not was_known:
            self._identify(bootstrap)
        return bootstrap

    def _identify(self, bootstrap: Bootstrap) -> None:
        """Name this workload in metrics as Istio's agent writes it into the node: LABELS and NAMESPACE."""
        node = bootstrap.node
        labels = node.metadata.get("LABELS")
        known: Mapping[str, Any] = labels if isinstance(labels, Mapping) else {}
        self.metrics.identify(
            app=str(known.get("app") or node.cluster),
            version=str(known.get("version") or ""),
            namespace=str(node.metadata.get("NAMESPACE") or ""),
        )

    # Life.

    def close(self) -> None:
        """End the stream, the thread and gRPC's endpoint channels, and write the copy on disk. Safe to call twice."""
        super().close()
        # Only when a gRPC channel was made: closing must not load a client that nobody used.
        if (channels := sys.modules.get("meshlib.clients.grpc_channels")) is not None:
            channels.close_channels(self)

    async def astart(self) -> None:
        """As `start`."""
        self.start()

    async def aclose(self) -> None:
        """As `close`, without blocking the loop."""
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
        lease_id: str | None = None,
        ready: bool = True,
        when_listening: bool = False,
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
            lease_id: Name of the lease; None: a new one. Processes that share an address share its lease.
            ready: Clients may choose it; else not before `set_ready` on what is returned. What applies to its address is
                known either way.
            when_listening: Clients may choose it as soon as `address` takes connections from this process, which is tried
                in the background ten times a second: for servers that call the application before they listen. Not
                for an address that cannot be reached from here.

        Raises:
            ConfigError: The bootstrap has no `meshlib.registry_uri`, the server refuses the announcement, or
                `when_listening` comes with `ready=False`.
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
            ready=ready,
            when_listening=when_listening,
        )
        bootstrap = self.bootstrap
        self.metrics.identify(app=service, version=instance.labels.get("version", ""), namespace=namespace)
        registration = Registration(instance, bootstrap, rng=self.rng, lease_id=lease_id)
        registration.start()
        return registration

    def deregister(self, *, service: str, address: str, lease_id: str, **options: Any) -> None:
        """End a lease that another process has made; never raises for a server that is away.

        Args:
            service: As registered, like all that follow.
            address: `IP:port`.
            lease_id: Name of the lease.
            **options: As for `register`.

        Raises:
            ConfigError: The bootstrap has no `meshlib.registry_uri`.
        """
        from meshlib.runtime.registration import Instance, Registration

        instance = Instance(service=service, address=address, **options)
        Registration(instance, self.bootstrap, rng=self.rng, lease_id=lease_id).withdraw()

    # Clients.

    def httpx_transport(
        self, *, filters: "Iterable[Filter | AsyncFilter]" = (), **options: Any
    ) -> "MeshTransport | FilteredTransport":
        """Return a transport for `httpx.Client`.

        Args:
            filters: The application's own code around each call, in order.
            **options: As for `meshlib.clients.httpx_sync.MeshTransport`.

        Raises:
            TypeError: A filter is async.
        """
        from meshlib.clients.httpx_filters import FilteredTransport
        from meshlib.clients.httpx_sync import MeshTransport

        transport = MeshTransport(self, **options)
        chosen = entries("filters", filters, "filters")
        return FilteredTransport(transport, chosen) if chosen else transport

    def async_httpx_transport(
        self, *, filters: "Iterable[Filter | AsyncFilter]" = (), **options: Any
    ) -> "AsyncMeshTransport | AsyncFilteredTransport":
        """Return a transport for `httpx.AsyncClient`.

        Args:
            filters: The application's own code around each call, in order.
            **options: As for `meshlib.clients.httpx_async.AsyncMeshTransport`.
        """
        from meshlib.clients.httpx_async import AsyncMeshTransport
        from meshlib.clients.httpx_filters import AsyncFilteredTransport

        transport = AsyncMeshTransport(self, **options)
        chosen = entries("filters", filters, "filters")
        return AsyncFilteredTransport(transport, chosen) if chosen else transport

    def channel(
        self,
        target: str,
        options: Any = None,
        compression: "grpc.Compression | None" = None,
        *,
        filters: "Iterable[Filter | AsyncFilter]" = (),
    ) -> "grpc.Channel":
        """Return a channel to a service, e.g. `xds:///checkout`.

        Args:
            compression: As of `grpc.insecure_channel`.
            filters: The application's own code around each call, in order.

        Raises:
            TypeError: A filter is async.
        """
        from meshlib.clients.grpc_sync import MeshChannel

        channel = MeshChannel(self, target, options=options, compression=compression)
        chosen = entries("filters", filters, "filters")
        if not chosen:
            return channel
        from meshlib.clients.grpc_filters import filtered_channel

        return filtered_channel(channel, target.removeprefix("xds:").lstrip("/"), chosen)

    def aio_channel(
        self,
        target: str,
        options: Any = None,
        compression: "grpc.Compression | None" = None,
        interceptors: "Iterable[grpc.aio.ClientInterceptor] | None" = None,
        *,
        filters: "Iterable[Filter | AsyncFilter]" = (),
    ) -> "grpc.aio.Channel":
        """Return an asyncio channel to a service, e.g. `xds:///checkout`.

        Args:
            compression: As of `grpc.aio.insecure_channel`.
            interceptors: As of `grpc.aio.insecure_channel`, in order: once per call, before its filters and the mesh.
            filters: The application's own code around each call, in order.

        Raises:
            TypeError: A filter is none at all.
            ValueError: An interceptor is none of grpc.aio's.
        """
        from meshlib.clients.grpc_aio import AioMeshChannel

        chosen, brought = (
            entries("filters", filters, "filters"),
            entries("interceptors", interceptors or (), "interceptors"),
        )
        if not chosen and not brought:
            return AioMeshChannel(self, target, options=options, compression=compression)
        from meshlib.clients.filters import AsyncFilterChain
        from meshlib.clients.grpc_aio_brought import InterceptedAioChannel, by_kind
        from meshlib.clients.grpc_aio_filters import FilteredAioChannel

        chain, kinds = AsyncFilterChain(chosen), by_kind(brought)  # they refuse what is none
        channel: grpc.aio.Channel = AioMeshChannel(self, target, options=options, compression=compression)
        if chosen:
            channel = FilteredAioChannel(channel, target.removeprefix("xds:").lstrip("/"), chain)
        return InterceptedAioChannel(channel, kinds) if brought else channel

    def intercept(self, channel: "grpc.Channel", **options: Any) -> "grpc.Channel":
        """Return a channel that applies the mesh's policy to calls over a channel which the application made.

        Args:
            channel: Goes on choosing the connections.
            **options: As for `meshlib.clients.grpc_intercept.intercept`.
        """
        from meshlib.clients.grpc_intercept import intercept

        return intercept(self, channel, **options)

    def call(self, service: str, **options: Any) -> "Decorator":
        """Return a decorator that runs a function, sync or async, under the policy of a service.

        The decorated function has the signature of the function, without the endpoint if that is its first parameter.

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
        check_type("explain: method", method, str)
        check_type("explain: url", url, str)
        from meshlib.admin.explain import explain

        return explain(self, method, url, headers=headers, timeout_s=timeout_s)

    def status(self) -> "MeshStatus":
        """Return how the connection, targets, clusters, endpoints and certificates are. No secrets."""
        from meshlib.admin.status import GrpcTls, mesh_status

        # Only when a gRPC channel was made.
        channels = sys.modules.get("meshlib.clients.grpc_channels")
        tls = None if channels is None else channels.tls_status(self)
        return mesh_status(self, self._control, None if tls is None else GrpcTls(*tls))

    def certificates(self) -> "tuple[CertificateStatus, ...]":
        """Return the certificates and roots in use: names, issuer, source, and how long they are good. No secrets."""
        from meshlib.admin.certificates import certificate_statuses

        return certificate_statuses(self, self._control)

    def dump(self) -> "tuple[ResourceStatus, ...]":
        """Return every resource with its state, version, error and age. No secrets."""
        from meshlib.admin.status import resource_statuses

        return resource_statuses(self, self._control)


def _insecure_server(uri: str) -> dict[str, Any]:
    return {"server_uri": uri, "channel_creds": [{"type": "insecure"}], "server_features": ["xds_v3"]}
