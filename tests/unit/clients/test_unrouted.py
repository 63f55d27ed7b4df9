"""Calls to what the mesh does not know are in metrics and access logs like any other."""

import aiohttp
import grpc
import grpc.aio
import httpx
import pytest

from meshlib.clients.function import decorate
from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_sync import MeshChannel
from meshlib.clients.httpx_async import AsyncMeshTransport
from meshlib.clients.httpx_sync import MeshTransport
from meshlib.errors import DeadlineExceeded, RoutingError, UnavailableError
from meshlib.events import CallFinished
from meshlib.integrations.aiohttp import MeshMiddleware
from meshlib.testing import FakeMesh, mesh_source, service


class SlowMesh(FakeMesh):
    """A mesh that says after two seconds that it does not know."""

    error: type[Exception] = RoutingError

    def target(self, authority):
        return None

    def wait_target(self, authority, timeout_s=None, *, fails_fast=False):
        self.clock.advance(2.0)
        raise self.error(f"no service {authority!r}")


@pytest.fixture
def mesh():
    made = mesh_source(service("checkout", "10.0.0.1:80"))
    made.__class__ = SlowMesh
    return made


def only_event(mesh) -> CallFinished:
    (event,) = mesh.events
    assert isinstance(event, CallFinished)
    return event


def facts(event: CallFinished) -> tuple[object, ...]:
    assert ("", "", None, 0, 0) == (event.route, event.cluster, event.endpoint, event.attempts, event.status)
    return event.kind, event.target, event.method, event.grpc_status, event.flag, event.duration_s


def test_blocking_httpx(mesh):
    with httpx.Client(transport=MeshTransport(mesh)) as client, pytest.raises(httpx.ConnectError):
        client.put("http://nobody/")
    assert ("http", "nobody", "PUT", None, "NR", 2.0) == facts(only_event(mesh))


async def test_async_httpx(mesh):
    async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://nobody/")
    assert ("http", "nobody", "GET", None, "NR", 2.0) == facts(only_event(mesh))


async def test_aiohttp(mesh):
    async with aiohttp.ClientSession(middlewares=[MeshMiddleware(mesh)]) as session:
        with pytest.raises(aiohttp.ClientConnectionError):
            await session.get("http://nobody/")
    assert ("http", "nobody", "GET", None, "NR", 2.0) == facts(only_event(mesh))


def test_what_is_known_at_once_took_no_time(mesh):
    mesh.__class__ = FakeMesh
    with httpx.Client(transport=MeshTransport(mesh)) as client, pytest.raises(httpx.ConnectError):
        client.get("http://nobody/")
    assert ("http", "nobody", "GET", None, "NR", 0.0) == facts(only_event(mesh))


def test_what_is_not_ready_has_no_flag(mesh):
    mesh.error = UnavailableError
    with httpx.Client(transport=MeshTransport(mesh)) as client, pytest.raises(httpx.ConnectError):
        client.get("http://checkout/")
    assert ("http", "checkout", "GET", None, "-", 2.0) == facts(only_event(mesh))


async def test_functions(mesh):
    @decorate(mesh, "nobody", fallback="none")
    async def waiting(endpoint) -> str:
        return "some"

    assert await waiting() == "none"
    assert ("http", "nobody", "POST", None, "NR", 2.0) == facts(only_event(mesh))

    mesh.events.clear()
    mesh.error = UnavailableError

    @decorate(mesh, "nobody", timeout_s=2.0)
    def late(endpoint) -> None: ...

    with pytest.raises(DeadlineExceeded):
        late()
    assert ("http", "nobody", "POST", None, "UT", 2.0) == facts(only_event(mesh))


def test_blocking_grpc(mesh):
    with MeshChannel(mesh, "xds:///nobody") as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/p.S/M")(b"")
    assert ("grpc", "nobody", "/p.S/M", 14, "NR", 2.0) == facts(only_event(mesh))


async def test_async_grpc(mesh):
    async with AioMeshChannel(mesh, "xds:///nobody") as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary("/p.S/M")(b"")
    assert ("grpc", "nobody", "/p.S/M", 14, "NR", 2.0) == facts(only_event(mesh))
