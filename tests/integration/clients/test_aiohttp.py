"""`aiohttp` over the mesh, with the real library."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import trustme
from test_httpx_behaviours import answer

from meshlib.errors import DeadlineExceeded, IdentityError, MeshError, RoutingError
from meshlib.integrations.aiohttp import MeshMiddleware
from meshlib.model.matcher import PathKind, PathMatcher, StringKind, StringMatcher
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import HeaderAdd, HeaderMutation, Route, RouteAction, RouteMatcher, SingleCluster
from meshlib.model.secret import ClientTls, SanMatcher, SanType, Secret, SecretRef, TrustedCa

RETRY = RetryPolicy(frozenset({"5xx", "connect-failure", "reset"}), num_retries=3, base_interval_s=0.001)


@pytest.fixture
async def session(mesh: Any) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(middlewares=[MeshMiddleware(mesh)]) as session:
        yield session


@pytest.fixture
def server(mesh: Any, http_server: Any) -> Any:
    server = http_server(answer=answer)
    mesh.serve("checkout", {"c": [server.address]})
    return server


async def test_request_is_routed_and_otherwise_aiohttps(session: aiohttp.ClientSession, mesh: Any, server: Any) -> None:
    async with session.get("http://checkout/echo?a=b", headers={"X-Own": "1"}) as response:
        seen = await response.json(content_type=None)
    assert (response.status, seen["path"], seen["headers"]["host"]) == (200, "/echo?a=b", "checkout")
    assert (seen["headers"]["x-own"], str(response.url)) == ("1", "http://checkout/echo?a=b")
    assert ("c", server.address, 1) == (response.mesh.cluster, response.mesh.endpoint, response.mesh.attempts)
    assert mesh.held("c") == (0, 0)


async def test_bodies_cookies_redirects_and_authentication(session: aiohttp.ClientSession, server: Any) -> None:
    async with session.post("http://checkout/echo", json=[1]) as response:
        assert (await response.json(content_type=None))["body"] == "[1]"

    async def pieces() -> Any:
        yield b"made "
        yield b"later"

    async with session.post("http://checkout/echo", data=pieces()) as response:
        assert (await response.json(content_type=None))["body"] == "made later"
    async with session.get("http://checkout/redirect?to=/echo", headers={"authorization": "Basic abc"}) as response:
        seen = (await response.json(content_type=None))["headers"]
    assert ([one.status for one in response.history], seen["cookie"]) == ([302], "seen=redirect")
    assert seen["authorization"].startswith("Basic")
    async with session.get("http://checkout/gzip") as response:
        assert await response.read() == b"line one\nline two\n" * 100


async def test_permits_are_held_until_the_body_is_read(session: aiohttp.ClientSession, mesh: Any, server: Any) -> None:
    async with session.get("http://checkout/mebibytes?count=8") as response:
        assert mesh.held("c") == (1, 1)
        async for _ in response.content.iter_chunked(65536):
            pass
    assert mesh.held("c") == (0, 0)
    response = await session.get("http://checkout/mebibytes?count=8")
    response.close()
    assert mesh.held("c") == (0, 0)
    assert [event.status for event in mesh.events if type(event).__name__ == "CallFinished"] == [200, 200]


async def test_attempts_are_repeated(
    session: aiohttp.ClientSession, mesh: Any, http_server: Any, dead_address: str
) -> None:
    answers = iter([503, 200] * 4)

    def flaky(handler: Any, body: bytes) -> None:
        handler.send_response(next(answers))
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    server = http_server(answer=flaky)
    mesh.serve("checkout", {"c": [dead_address, server.address]}, retry=RETRY)
    for _ in range(4):
        async with session.put("http://checkout/", data=b"body") as response:
            assert (response.status, await response.read()) == (200, b"body")
            assert response.mesh.attempts > 1
    assert {body for _, _, _, body in server.requests} == {b"body"}
    assert mesh.held("c") == (0, 0)


async def test_routes_change_headers_and_paths(session: aiohttp.ClientSession, mesh: Any, server: Any) -> None:
    added = (HeaderAdd("x-added", "by the mesh"),)
    mutation = HeaderMutation(request_add=added, response_add=added)
    action = RouteAction(SingleCluster("c"), prefix_rewrite="/echo", host_rewrite_literal="other.example")
    route = Route(RouteMatcher(PathMatcher(PathKind.PREFIX, "/api")), action, mutation=mutation)
    mesh.serve("checkout", {"c": [server.address]}, route=route)
    async with session.get("http://checkout/api?y=1", headers={"X-Own": "1"}) as response:
        seen = await response.json(content_type=None)
    assert (seen["path"], seen["headers"]["host"]) == ("/echo?y=1", "other.example")
    assert (seen["headers"]["x-added"], seen["headers"]["x-own"]) == ("by the mesh", "1")
    assert response.headers["x-added"] == "by the mesh"


async def test_what_the_mesh_answers_is_a_response(session: aiohttp.ClientSession, mesh: Any) -> None:
    mesh.serve("checkout", {"c": []})
    async with session.get("http://checkout/") as response:
        assert (response.status, await response.text(), response.mesh.flag) == (503, "no healthy upstream", "UH")
    async with session.head("http://checkout/") as response:
        assert (response.status, await response.read()) == (503, b"")


async def test_errors_are_aiohttps(
    session: aiohttp.ClientSession, mesh: Any, raw_server: Any, dead_address: str
) -> None:
    mesh.serve("dead", {"c": [dead_address]})
    with pytest.raises(aiohttp.ClientConnectorError) as caught:
        await session.get("http://dead/")
    assert isinstance(caught.value.mesh, MeshError) and caught.value.mesh.endpoints == (dead_address,)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mesh.serve("silent", {"s": [f"127.0.0.1:{silent.getsockname()[1]}"]}, timeout_s=0.05)
        with pytest.raises(aiohttp.ServerTimeoutError) as slow:
            await session.get("http://silent/")
        assert isinstance(slow.value.mesh, DeadlineExceeded)
        mesh.serve("silent", {"s": [f"127.0.0.1:{silent.getsockname()[1]}"]}, timeout_s=0.0)
        with pytest.raises(TimeoutError):
            await session.get("http://silent/", timeout=aiohttp.ClientTimeout(total=0.05))
        assert mesh.held("s") == (0, 0)

    def hang_up(connection: socket.socket, number: int) -> None:
        connection.recv(65536)

    mesh.serve("cut", {"t": [raw_server(hang_up).address]})
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await session.post("http://cut/")
    with pytest.raises(aiohttp.ClientConnectionError) as unknown:
        await session.get("http://elsewhere/")
    assert isinstance(unknown.value.mesh, RoutingError)


async def test_tls_is_the_meshs(session: aiohttp.ClientSession, mesh: Any) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("checkout.test").configure_cert(context)
    received: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                received.append(await reader.readuntil(b"\r\n\r\n"))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except (OSError, EOFError):
            writer.close()

    secrets = {"root": Secret("root", TrustedCa(authority.cert_pem.bytes()))}

    def expecting(name: str) -> ClientTls:
        return ClientTls(
            None, SecretRef(sds_name="root"), (SanMatcher(SanType.DNS, StringMatcher(StringKind.EXACT, name)),)
        )

    async with await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        mesh.serve("checkout", {"c": [address]}, tls=expecting("checkout.test"), secrets=secrets)
        async with session.get("http://checkout/") as response:
            assert await response.text() == "ok"
        mesh.serve("checkout", {"c": [address]}, tls=expecting("someone.else"), secrets=secrets)
        with pytest.raises(aiohttp.ClientError) as caught:
            await session.get("http://checkout/")
        assert isinstance(caught.value.mesh, IdentityError)
        assert len(received) == 1, "the other one got no byte of the request"
        server.close()


async def test_ways_past_the_mesh(mesh: Any, server: Any) -> None:
    async with aiohttp.ClientSession(middlewares=[MeshMiddleware(mesh, passthrough="unknown")]) as session:
        async with session.get(f"http://{server.address}/echo") as response:
            assert response.status == 200
        assert mesh.events[-1].cluster == "PassthroughCluster"
        mesh.is_disabled = True
        async with session.get(f"http://{server.address}/echo") as response:
            assert response.status == 200


async def test_cancellation_gives_everything_back(session: aiohttp.ClientSession, mesh: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mesh.serve("silent", {"s": [f"127.0.0.1:{silent.getsockname()[1]}"]}, timeout_s=0.0)
        for turns in range(25):
            task = asyncio.create_task(session.get("http://silent/"))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert mesh.held("s") == (0, 0)
