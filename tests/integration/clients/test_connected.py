"""What formats say of the connection over which a response came, in every client."""

from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from httpx_drivers import DRIVERS, opened
from test_http2_sharing import Echo

from meshlib.integrations.aiohttp import MeshMiddleware
from meshlib.model.headers import HeaderAdd, HeaderMutation
from meshlib.model.matcher import PathKind, PathMatcher
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import Route, RouteAction, RouteMatcher, SingleCluster

FORMATS = "%UPSTREAM_PROTOCOL%;%UPSTREAM_LOCAL_ADDRESS%;%UPSTREAM_HOSTS_ATTEMPTED%;%METADATA(CLUSTER:ns:k)%"
MUTATION = HeaderMutation(response_add=(HeaderAdd("x-over", FORMATS),))
RETRY = RetryPolicy(frozenset({"connect-failure"}), num_retries=3)
ROUTE = Route(
    RouteMatcher(PathMatcher(PathKind.PREFIX, "/")), RouteAction(SingleCluster("c"), retry=RETRY), mutation=MUTATION
)
METADATA = {"ns": {"k": "v"}}
MESHED = [name for name in DRIVERS if not name.startswith("plain")]


@pytest.fixture(params=MESHED)
def driver(request: pytest.FixtureRequest, mesh: Any) -> Iterator[Any]:
    with opened(request.param, mesh) as made:
        yield made


def test_http_1(driver: Any, mesh: Any, http_server: Any, dead_address: str) -> None:
    server = http_server()
    mesh.serve("checkout", {"c": [dead_address, server.address]}, route=ROUTE, metadata=METADATA)
    client = driver.client()
    for _ in range(4):  # whichever endpoint comes first
        protocol, local, reached, metadata = client.get("http://checkout/").headers["x-over"].split(";")
        assert ("HTTP/1.1", server.address, "v") == (protocol, reached, metadata)
        assert local.startswith("127.0.0.1:") and local != server.address


def test_http_2(driver: Any, mesh: Any, raw_server: Any) -> None:
    server = raw_server(Echo().handle)
    mesh.serve("checkout", {"c": [server.address]}, route=ROUTE, http2=True)
    protocol, local, reached, _ = driver.client().get("http://checkout/").headers["x-over"].split(";")
    assert ("HTTP/2", server.address) == (protocol, reached)
    assert local.startswith("127.0.0.1:")


async def test_aiohttp(mesh: Any, http_server: Any) -> None:
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]}, route=ROUTE)
    session = aiohttp.ClientSession(middlewares=[MeshMiddleware(mesh)])
    async with session, session.get("http://checkout/") as response:
        protocol, _, reached, _ = response.headers["x-over"].split(";")
    assert ("HTTP/1.1", server.address) == (protocol, reached)
