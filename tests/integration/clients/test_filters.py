"""One chain of filters in every client."""

from typing import Any

import aiohttp
import grpc
import httpx
import pytest
import requests
from httpx_drivers import Driver, opened
from test_httpx_behaviours import answer

from meshlib import AsyncFilter, Filter, FilterAnswer, FilterRequest, FilterResponse
from meshlib.clients.grpc_filters import filtered_channel
from meshlib.clients.httpx_filters import AsyncFilteredTransport, FilteredTransport
from meshlib.integrations.aiohttp import MeshMiddleware
from meshlib.integrations.requests import MeshAdapter
from meshlib.model.matcher import PathKind, PathMatcher, StringKind, StringMatcher
from meshlib.model.route import Route, RouteAction, RouteMatcher, SingleCluster


class Tenant(Filter):
    """Rewrites, answers, and notes what comes back."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_request(self, request: FilterRequest) -> FilterAnswer | None:
        if request.path == "/secret":
            return FilterAnswer(403, (("x-by", "filter"),), b"not for you")
        request.headers["X-Tenant"] = "acme"
        request.path = request.path.replace("/old", "/echo")
        request.state["at"] = request.service
        return None

    def on_response(self, request: FilterRequest, response: FilterResponse) -> None:
        self.heard.append((request.state.get("at"), response.status, getattr(response.mesh, "cluster", None)))
        response.headers["X-Filtered"] = "yes"

    def on_error(self, request: FilterRequest, error: BaseException) -> None:
        self.heard.append(type(error).__name__)


class Late(AsyncFilter):
    async def on_request(self, request: FilterRequest) -> FilterAnswer | None:
        request.headers["x-late"] = request.headers["x-tenant"]
        return None


def transport_of(driver: Driver, filters: Any) -> Any:
    inner = driver.transport()
    return AsyncFilteredTransport(inner, filters) if driver.is_async else FilteredTransport(inner, filters)


@pytest.mark.parametrize("name", ["sync", "asyncio", "trio"])
def test_httpx(name: str, mesh: Any, http_server: Any, dead_address: str) -> None:
    server = http_server(answer=answer)
    mesh.serve("checkout", {"c": [server.address]})
    mesh.serve("dead", {"d": [dead_address]})
    tenant = Tenant()
    with opened(name, mesh) as driver:
        filters = [tenant, Late()] if driver.is_async else [tenant]
        client = driver.client(transport=transport_of(driver, filters))
        response = client.post("http://checkout/old?a=b", content=driver.pieces([b"abc"]))
        seen = response.json()
        assert (seen["path"], seen["headers"]["x-tenant"], seen["body"]) == ("/echo?a=b", "acme", "abc")
        assert (response.headers["x-filtered"], str(response.request.url)) == ("yes", "http://checkout/old?a=b")
        assert seen["headers"].get("x-late") == ("acme" if driver.is_async else None)
        assert client.get("http://checkout/gzip").text.startswith("line one")
        response = client.get("http://checkout/secret")
        assert (response.status_code, response.text, response.headers["x-by"]) == (403, "not for you", "filter")
        with pytest.raises(httpx.ConnectError):
            client.get("http://dead/")
        if not driver.is_async:
            with pytest.raises(TypeError):
                transport_of(driver, [Late()])
        with client.stream("GET", "http://checkout/chunked") as streamed:
            assert streamed.read() == b"one\ntwo\nthree"
    assert tenant.heard == [
        ("checkout", 200, "c"), ("checkout", 200, "c"), (None, 403, ""), "ConnectError", ("checkout", 200, "c"),
    ]  # fmt: skip
    assert mesh.held("c") == (0, 0)


def test_headers_that_a_filter_writes_are_routed_by(mesh: Any, http_server: Any) -> None:
    from meshlib.model.matcher import HeaderMatcher

    server = http_server(answer=answer)
    matcher = HeaderMatcher("x-tenant", StringMatcher(StringKind.EXACT, "acme"))
    route = Route(RouteMatcher(PathMatcher(PathKind.PREFIX, "/"), headers=(matcher,)), RouteAction(SingleCluster("c")))
    mesh.serve("checkout", {"c": [server.address]}, route=route)
    with opened("sync", mesh) as driver:
        assert driver.client().get("http://checkout/echo").status_code == 404
        assert driver.client(transport=transport_of(driver, [Tenant()])).get("http://checkout/echo").status_code == 200


def test_requests(mesh: Any, http_server: Any) -> None:
    server = http_server(answer=answer)
    mesh.serve("checkout", {"c": [server.address]})
    tenant = Tenant()
    with requests.Session() as session:
        session.mount("http://", MeshAdapter(mesh, filters=[tenant]))
        response = session.get("http://checkout/old")
        assert (response.json()["headers"]["x-tenant"], response.headers["x-filtered"]) == ("acme", "yes")
        assert session.get("http://checkout/secret").text == "not for you"
    assert tenant.heard == [("checkout", 200, "c"), (None, 403, "")]


async def test_aiohttp(mesh: Any, http_server: Any) -> None:
    server = http_server(answer=answer)
    mesh.serve("checkout", {"c": [server.address]})
    tenant = Tenant()
    async with aiohttp.ClientSession(middlewares=[MeshMiddleware(mesh, filters=[tenant, Late()])]) as session:
        async with session.post("http://checkout/old?a=b", data=b"abc") as response:
            seen = await response.json(content_type=None)
        assert (seen["path"], seen["headers"]["x-late"], seen["body"]) == ("/echo?a=b", "acme", "abc")
        assert response.headers["x-filtered"] == "yes"
        async with session.get("http://checkout/secret") as response:
            assert (response.status, await response.text()) == (403, "not for you")
    assert tenant.heard == [("checkout", 200, "c"), (None, 403, "")]


def test_grpc_channels() -> None:
    from concurrent.futures import ThreadPoolExecutor

    seen: list[Any] = []

    def echo(request: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append(dict(context.invocation_metadata())["x-tenant"])
        context.set_trailing_metadata((("x-t", "u"),))
        if request == b"fail":
            context.abort(grpc.StatusCode.NOT_FOUND, "nothing")
        return request

    class Metadata(Tenant):
        def on_request(self, request: FilterRequest) -> FilterAnswer | None:
            if request.path == "/a.B/Secret":
                return FilterAnswer(7, (), b"not for you")
            return super().on_request(request)

        def on_response(self, request: FilterRequest, response: FilterResponse) -> None:
            self.heard.append((request.path, response.status, response.headers.get("x-t")))

    handlers = {
        "Get": grpc.unary_unary_rpc_method_handler(echo),
        "List": grpc.unary_stream_rpc_method_handler(lambda request, context: iter([echo(request, context)])),
    }
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    tenant = Metadata()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as plain:
            channel = filtered_channel(plain, "checkout", [tenant])
            assert channel.unary_unary("/a.B/Get")(b"1", timeout=10) == b"1"
            assert list(channel.unary_stream("/a.B/List")(b"2", timeout=10)) == [b"2"]
            with pytest.raises(grpc.RpcError) as failed:
                channel.unary_unary("/a.B/Get")(b"fail", timeout=10)
            assert failed.value.code() is grpc.StatusCode.NOT_FOUND
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary("/a.B/Secret")(b"3", timeout=10)
            assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.PERMISSION_DENIED, "not for you")
    finally:
        server.stop(None).wait(5)
    assert seen == ["acme"] * 3
    assert sorted(tenant.heard) == [
        ("/a.B/Get", 0, "u"),
        ("/a.B/Get", 5, "u"),
        ("/a.B/List", 0, "u"),
        ("/a.B/Secret", 7, None),
    ]
