"""A real server on ephemeral ports, its state changed in memory, and a scripted client that speaks raw ADS."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from meshlib.protos import from_any, from_dict, message_class
from xds_server import ordering
from xds_server.addresses import Address
from xds_server.app import App, Config, Source
from xds_server.model import Compiled, Finding

REQUEST = "envoy.service.discovery.v3.DiscoveryRequest"


class MemorySource:
    """Resources that a test sets; instances and documents play no part."""

    def __init__(self) -> None:
        self.resources: dict[str, dict[str, Any]] = {}
        self.findings: tuple[Finding, ...] = ()
        self._changed = asyncio.Event()

    def set(self, *messages: Any) -> None:
        """Replace everything by these messages."""
        self.resources = {}
        for message in messages:
            type_url = "type.googleapis.com/" + message.DESCRIPTOR.full_name
            name = message.cluster_name if type_url == ordering.EDS else message.name
            self.resources.setdefault(type_url, {})[name] = message

    def publish(self) -> None:
        self._changed.set()

    async def watch(self) -> AsyncIterator[None]:
        while True:
            await self._changed.wait()
            self._changed.clear()
            yield None

    def as_source(self) -> Source:
        return Source(
            load=lambda: ((), self.findings),
            watch=self.watch,
            compile_group=lambda documents, instances, group: Compiled(dict(self.resources)),
        )


class AnyClient:
    """One stream, message by message."""

    METHOD = ""
    RESPONSE = ""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        node: dict[str, Any],
        metadata: Sequence[tuple[str, str]] = (),
        method: str = "",
    ) -> None:
        self._node: dict[str, Any] | None = node
        self.call = channel.stream_stream(
            f"/envoy.service.{method or self.METHOD}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_class(self.RESPONSE).FromString,
        )(metadata=tuple(metadata))

    async def _send(self, request: Any, error: str | None) -> None:
        if self._node is not None:
            request.node.CopyFrom(from_dict("envoy.config.core.v3.Node", self._node))
            self._node = None  # once is enough
        if error is not None:
            request.error_detail.code = 13
            request.error_detail.message = error
        await self.call.write(request)

    async def response(self, timeout_s: float = 30.0) -> Any:
        message = await asyncio.wait_for(self.call.read(), timeout_s)
        assert message is not grpc.aio.EOF, f"stream ended: {await self.call.code()} {await self.call.details()}"
        return message


class RawClient(AnyClient):
    """One state-of-the-world stream."""

    METHOD = "discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
    RESPONSE = "envoy.service.discovery.v3.DiscoveryResponse"

    async def ask(self, type_url: str, *names: str, nonce: str = "", error: str | None = None) -> None:
        request = message_class(REQUEST)(type_url=type_url, resource_names=names, response_nonce=nonce)
        await self._send(request, error)

    async def ack(self, response: Any, *names: str, error: str | None = None) -> None:
        await self.ask(response.type_url, *names, nonce=response.nonce, error=error)


class DeltaClient(AnyClient):
    """One incremental stream."""

    METHOD = "discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
    RESPONSE = "envoy.service.discovery.v3.DeltaDiscoveryResponse"

    async def ask(
        self,
        type_url: str,
        *changes: str,
        nonce: str = "",
        error: str | None = None,
        initial: dict[str, str] | None = None,
    ) -> None:
        """Send a request; `+a` subscribes to a, `-a` unsubscribes."""
        request = message_class("envoy.service.discovery.v3.DeltaDiscoveryRequest")(
            type_url=type_url,
            resource_names_subscribe=[each[1:] for each in changes if each[0] == "+"],
            resource_names_unsubscribe=[each[1:] for each in changes if each[0] == "-"],
            initial_resource_versions=initial or {},
            response_nonce=nonce,
        )
        await self._send(request, error)

    async def ack(self, response: Any, *changes: str, error: str | None = None) -> None:
        await self.ask(response.type_url, *changes, nonce=response.nonce, error=error)


def resources_of(response: Any) -> list[Any]:
    """Return the messages in a response."""
    return [from_any(packed) for packed in response.resources]


@pytest.fixture
def unpack() -> Callable[[Any], list[Any]]:
    return resources_of


@pytest.fixture
def source() -> MemorySource:
    return MemorySource()


@pytest.fixture
def run_server(tmp_path: Path, source: MemorySource) -> Callable[..., Any]:
    """Return a context manager that runs a server with the memory source; ports are ephemeral."""

    @asynccontextmanager
    async def run(**config: Any) -> AsyncIterator[App]:
        anywhere = Address("127.0.0.1", 0)
        settings: dict[str, Any] = {"paths": (), "listen": anywhere, "admin": anywhere, "quiet_s": 0.0, **config}
        app = App(Config(**settings), source.as_source())
        await app.start()
        try:
            yield app
        finally:
            await app.stop(drain_s=0.0)

    return run


@pytest.fixture
def connect() -> Callable[..., Any]:
    """Return a context manager that opens a stream to an address."""

    @asynccontextmanager
    async def open_stream(
        address: Address,
        *,
        node: dict[str, Any] | None = None,
        root: bytes | None = None,
        token: str | None = None,
        variant: type[AnyClient] = RawClient,
        method: str = "",
        options: Sequence[tuple[str, Any]] = (),
    ) -> AsyncIterator[AnyClient]:
        if root is None:
            channel = grpc.aio.insecure_channel(str(address), options=list(options))
        else:
            channel = grpc.aio.secure_channel(str(address), grpc.ssl_channel_credentials(root))
        async with channel:
            metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
            client = variant(channel, node or {"id": "raw-1", "user_agent_name": "meshlib"}, metadata, method)
            try:
                yield client
            finally:
                client.call.cancel()

    return open_stream


@pytest.fixture
def connect_delta(connect: Callable[..., Any]) -> Callable[..., Any]:
    """Return a context manager that opens an incremental stream to an address."""
    return partial(connect, variant=DeltaClient)


@pytest.fixture
def eds_cluster() -> Callable[..., Any]:
    def make(name: str, connect_timeout: str = "1s", **fields: Any) -> Any:
        value = {
            "name": name,
            "type": "EDS",
            "connect_timeout": connect_timeout,
            "eds_cluster_config": {"eds_config": {"ads": {}, "resource_api_version": "V3"}},
            **fields,
        }
        return from_dict("envoy.config.cluster.v3.Cluster", value)

    return make


@pytest.fixture
def assignment() -> Callable[..., Any]:
    def make(name: str, *ports: int) -> Any:
        endpoints = [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
            for port in ports
        ]
        localities = [{"load_balancing_weight": 1, "lb_endpoints": endpoints, "locality": {"region": "r"}}]
        value = {"cluster_name": name, "endpoints": localities if ports else []}
        return from_dict("envoy.config.endpoint.v3.ClusterLoadAssignment", value)

    return make


@pytest.fixture
def route() -> Callable[..., Any]:
    def make(name: str, cluster: str) -> Any:
        rule = {"match": {"prefix": "/"}, "route": {"cluster": cluster}}
        hosts = [{"name": "all", "domains": ["*"], "routes": [rule]}]
        return from_dict("envoy.config.route.v3.RouteConfiguration", {"name": name, "virtual_hosts": hosts})

    return make


@pytest.fixture
def api_listener() -> Callable[..., Any]:
    def make(name: str, route_name: str) -> Any:
        manager = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "rds": {"route_config_name": route_name, "config_source": {"ads": {}, "resource_api_version": "V3"}},
            "http_filters": [
                {
                    "name": "router",
                    "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                }
            ],
        }
        return from_dict("envoy.config.listener.v3.Listener", {"name": name, "api_listener": {"api_listener": manager}})

    return make
