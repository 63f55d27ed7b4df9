"""Typed use of every public entry point. Checked by mypy, never run."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import assert_type

import grpc
import grpc.aio
import httpx
from fastapi import FastAPI
from opentelemetry.metrics import get_meter
from prometheus_client import CollectorRegistry

import meshlib
from meshlib import integrations
from meshlib.admin.explain import Explanation
from meshlib.admin.status import MeshStatus, ResourceStatus
from meshlib.events import Event, HostEjected
from meshlib.integrations import (
    access_log,
    asgi,
    django,
    fastapi,
    grpc_server,
    gunicorn,
    opentelemetry,
    prometheus,
    uvicorn,
    wsgi,
)
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import RouteAction, SingleCluster
from meshlib.testing import (
    FakeClock,
    FakeMesh,
    FixedRng,
    SeededRng,
    Timer,
    any_path,
    assignment,
    cluster,
    lb_endpoints,
    merge,
    mesh_source,
    pick_many,
    service,
    split,
    target,
)

# --- making a mesh


def make_meshes(bootstrap: meshlib.Bootstrap, document: Mapping[str, object]) -> None:
    assert_type(meshlib.Mesh.from_env(), meshlib.Mesh)
    assert_type(meshlib.Mesh.from_env(state_dir="", guard_unsafe=False), meshlib.Mesh)
    assert_type(meshlib.Mesh.connect("127.0.0.1:18000", node_id="a", metadata={"NAMESPACE": "b"}), meshlib.Mesh)
    meshlib.Mesh(bootstrap)
    meshlib.Mesh(document, state_dir=Path("/var/lib/orders"), first_use_timeout_s=2.0)
    meshlib.Mesh("bootstrap.json", clock=FakeClock(), rng=SeededRng(7))


def life(mesh: meshlib.Mesh) -> None:
    mesh.start()
    with mesh as entered:
        assert_type(entered, meshlib.Mesh)
    mesh.close()


async def life_async(mesh: meshlib.Mesh) -> None:
    await mesh.astart()
    async with mesh as entered:
        assert_type(entered, meshlib.Mesh)
    await mesh.aclose()


# --- clients


def call_http(mesh: meshlib.Mesh) -> int:
    with httpx.Client(transport=mesh.httpx_transport(passthrough="unknown")) as client:
        return client.get("http://checkout/orders").status_code


async def call_http_async(mesh: meshlib.Mesh) -> int:
    async with httpx.AsyncClient(transport=mesh.async_httpx_transport(limits=httpx.Limits())) as client:
        return (await client.get("http://checkout/orders")).status_code


def call_grpc(mesh: meshlib.Mesh, own: grpc.Channel, interceptors: Sequence[grpc.aio.ClientInterceptor]) -> None:
    assert_type(mesh.channel("xds:///greeter", options=[("grpc.max_send_message_length", -1)]), grpc.Channel)
    assert_type(mesh.aio_channel("xds:///greeter"), grpc.aio.Channel)
    assert_type(mesh.aio_channel("xds:///greeter", interceptors=interceptors), grpc.aio.Channel)
    mesh.aio_channel("xds:///greeter", interceptors=[own])  # type: ignore[list-item]  # no interceptor
    assert_type(mesh.intercept(own, target="dns:///greeter:80"), grpc.Channel)


def decorate(mesh: meshlib.Mesh) -> None:
    @mesh.call("inventory", method="GET", fallback=0, timeout_s=0.5, path="/stock", ignore=(KeyError,))
    def in_stock(endpoint: meshlib.Endpoint, sku: str, *, minimum: int = 1) -> int:
        return len(endpoint.address + sku) - minimum

    assert_type(in_stock("ABC", minimum=2), int)
    in_stock(3)  # type: ignore[arg-type]  # the rest of the signature is kept
    in_stock("ABC", maximum=2)  # type: ignore[call-arg]


async def decorate_async(mesh: meshlib.Mesh) -> None:
    @mesh.call("inventory")
    async def in_stock(endpoint: meshlib.Endpoint, sku: str) -> int:
        return len(endpoint.address + sku)

    assert_type(await in_stock("ABC"), int)
    await in_stock()  # type: ignore[call-arg]


def hand_over(mesh: meshlib.Mesh) -> None:
    def work(sku: str, *, minimum: int = 1) -> int:
        return len(sku) - minimum

    assert_type(meshlib.carry(work)("ABC", minimum=2), int)
    with meshlib.ContextExecutor(max_workers=4) as pool:
        assert_type(pool.submit(work, "ABC", minimum=2), Future[int])
    request = assert_type(meshlib.current_request(), meshlib.InboundContext | None)
    if request is not None:
        assert_type(request.urgency, int)


# --- servers and announcing


def serve(mesh: meshlib.Mesh) -> None:
    app = FastAPI()
    app.add_middleware(fastapi.MeshMiddleware, mesh=mesh, service="checkout")
    uvicorn.run(app, mesh=mesh, service="checkout", labels={"version": "v1"}, port=8080, log_level="warning")
    uvicorn.MeshServer(uvicorn.MeshConfig(app, tls_context=None), lambda: None)


def serve_any(mesh: meshlib.Mesh, asgi_app: asgi.App, wsgi_app: wsgi.App) -> None:
    asgi.MeshMiddleware(asgi_app, mesh=mesh, address="127.0.0.1:8080")
    wsgi.MeshMiddleware(wsgi_app, mesh=mesh)
    assert_type(django.MeshMiddleware.async_capable, bool)
    gunicorn.MeshWorker  # noqa: B018 - gunicorn makes it


def serve_grpc(mesh: meshlib.Mesh, server: grpc.Server) -> None:
    assert_type(grpc_server.interceptor(mesh, service="greeter"), grpc.ServerInterceptor)
    with grpc_server.announced(server, mesh, service="greeter", ttl_s=2.0) as address:
        assert_type(address, str)


async def serve_grpc_async(mesh: meshlib.Mesh, server: grpc.aio.Server) -> None:
    assert_type(grpc_server.aio_interceptor(mesh), grpc.aio.ServerInterceptor)
    async with grpc_server.aio_announced(server, mesh, service="greeter") as address:
        assert_type(address, str)


def announce(mesh: meshlib.Mesh) -> None:
    mesh.register(service="checkout", address="10.0.0.7:8080", labels={"version": "v1"}, weight=2).close()
    mesh.inbound("10.0.0.7:8080").wait_ready(5.0)


# --- questions, events, exporters


def ask(mesh: meshlib.Mesh) -> str:
    mesh.wait_ready("checkout", "users:8080", timeout_s=5)
    explanation = mesh.explain("GET", "http://checkout/orders", headers={"x-user": "ann"}, timeout_s=1)
    assert_type(explanation, Explanation)
    assert_type(mesh.status(), MeshStatus)
    assert_type(mesh.dump(), tuple[ResourceStatus, ...])
    assert_type(mesh.bootstrap, meshlib.Bootstrap)
    return str(explanation)


def watch(event: Event) -> None:
    if isinstance(event, HostEjected):
        logging.info("%s: %s for %s s", event.cluster, event.endpoint.address, event.ejection_time_s)


def export(mesh: meshlib.Mesh, registry: CollectorRegistry) -> None:
    mesh.add_hook(watch)
    access_log.log_access(mesh)
    opentelemetry.export_metrics(mesh, meter=get_meter("orders"))
    registry.register(prometheus.MeshCollector(mesh))
    server = prometheus.serve(mesh, port=0)
    assert_type(server, prometheus.MetricsServer)
    assert_type(server.port, int)
    server.close()
    integrations.set_default_mesh(mesh)
    assert_type(integrations.default_mesh(), meshlib.Mesh)


# --- errors


def errors(mesh: meshlib.Mesh) -> tuple[str, int] | None:
    try:
        mesh.wait_ready("checkout")
    except (meshlib.BootstrapError, meshlib.ResourceError, meshlib.ConfigError) as error:
        return error.resource, error.attempts
    except (meshlib.RoutingError, meshlib.UnavailableError, meshlib.DeadlineExceeded, meshlib.IdentityError) as error:
        assert_type(error.endpoints, tuple[str, ...])
        return error.cluster, error.attempts
    except meshlib.MeshError as error:
        return error.flag, 0
    return None


# --- load balancing


@meshlib.register_lb_policy("typing.First")
class First(meshlib.LbPolicy):
    uses_hash = True

    def __init__(self, config: Mapping[str, object]) -> None:
        self.config = config

    def pick(self, endpoints: Sequence[meshlib.LbEndpoint], request: meshlib.LbRequest) -> meshlib.LbEndpoint | None:
        assert_type(request.hash, int | None)
        return endpoints[int(request.rng.random() * len(endpoints))] if request.now else endpoints[0]

    def record(self, endpoint: meshlib.LbEndpoint, result: meshlib.LbResult) -> None:
        assert_type(result.load, meshlib.LoadReport | None)
        assert_type(endpoint.endpoint.weight, int)


def balancing() -> None:
    endpoints = lb_endpoints("127.0.0.1:1", meshlib.Endpoint("127.0.0.1:2"))
    assert_type(pick_many(First({}), endpoints, 10), Counter[str])


# --- meshlib.testing


def fakes() -> None:
    clock = FakeClock(now=5.0)
    assert_type(clock.call_later(1.0, lambda: None), Timer)
    clock.advance(1.0)
    options = cluster("checkout").cluster
    retry = RetryPolicy(frozenset({"5xx"}), num_retries=2)
    snapshot = merge(
        service("checkout", "127.0.0.1:1", meshlib.Endpoint("127.0.0.1:2", weight=3), timeout_s=2.0, retry=retry),
        split("users", {"v1": (80, ["127.0.0.1:3"]), "v2": (20, ["127.0.0.1:4"])}),
    )
    mesh = mesh_source(snapshot, clock=clock, rng=FixedRng(0.0, 0.5))
    assert_type(mesh, FakeMesh)
    mesh.publish(service("checkout", "127.0.0.1:1", template=options))
    assert_type(mesh.events, list[Event])
    assignment("checkout", ["127.0.0.1:1"])
    target("checkout", any_path(RouteAction(SingleCluster("checkout")), prefix="/orders"))
