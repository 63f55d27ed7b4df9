"""httpx2 over the mesh, with the real library: the same code translates nothing but classes."""

import socket
from typing import Any

import httpx2
import pytest
from test_httpx_behaviours import answer

from meshlib.clients.httpx_async import AsyncMeshTransport
from meshlib.clients.httpx_sync import MeshTransport
from meshlib.errors import MeshError
from meshlib.integrations import httpx2 as adapter
from meshlib.model.retry import RetryPolicy

RETRY = RetryPolicy(frozenset({"5xx", "connect-failure", "reset"}), num_retries=3, base_interval_s=0.001)


class Transports:
    """What the adapter asks of a `Mesh`."""

    def __init__(self, mesh: Any) -> None:
        self._mesh = mesh

    def httpx_transport(self, **options: Any) -> MeshTransport:
        return MeshTransport(self._mesh, **options)

    def async_httpx_transport(self, **options: Any) -> AsyncMeshTransport:
        return AsyncMeshTransport(self._mesh, **options)


def truncate(connection: socket.socket, number: int) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf")


def test_blocking(mesh: Any, http_server: Any, raw_server: Any, dead_address: str) -> None:
    server = http_server(answer=answer)
    mesh.serve("checkout", {"c": [dead_address, server.address]}, retry=RETRY)
    mesh.serve("dead", {"d": [dead_address]})
    mesh.serve("cut", {"t": [raw_server(truncate).address]})
    made: Any = Transports(mesh)
    with httpx2.Client(transport=adapter.mesh_transport(made)) as client:
        for _ in range(3):
            response = client.post("http://checkout/echo?a=b", json=[1], headers={"x-own": "1"})
            seen = response.json()
            assert (seen["path"], seen["body"], seen["headers"]["x-own"]) == ("/echo?a=b", "[1]", "1")
        assert response.extensions["mesh"].cluster == "c"
        assert client.post("http://checkout/echo", content=iter([b"made ", b"later"])).json()["body"] == "made later"
        assert client.get("http://checkout/redirect?to=/gzip", follow_redirects=True).text.startswith("line one")
        with client.stream("GET", "http://checkout/chunked") as streamed:
            assert b"".join(streamed.iter_raw()) == b"one\ntwo\nthree"
        with pytest.raises(httpx2.ConnectError) as caught:
            client.get("http://dead/")
        assert isinstance(caught.value.mesh, MeshError) and caught.value.request.url == "http://dead/"
        with pytest.raises(httpx2.RemoteProtocolError):
            client.get("http://cut/")
    assert mesh.held("c") == (0, 0)


async def test_async(mesh: Any, http_server: Any, raw_server: Any, dead_address: str) -> None:
    server = http_server(answer=answer)
    mesh.serve("checkout", {"c": [dead_address, server.address]}, retry=RETRY)
    mesh.serve("dead", {"d": [dead_address]})
    mesh.serve("cut", {"t": [raw_server(truncate).address]})
    made: Any = Transports(mesh)

    async def pieces() -> Any:
        yield b"made "
        yield b"later"

    async with httpx2.AsyncClient(transport=adapter.async_mesh_transport(made)) as client:
        for _ in range(3):
            seen = (await client.post("http://checkout/echo?a=b", json=[1])).json()
            assert (seen["path"], seen["body"]) == ("/echo?a=b", "[1]")
        mesh.serve("checkout", {"c": [server.address]}, retry=RETRY)
        assert (await client.post("http://checkout/echo", content=pieces())).json()["body"] == "made later"
        async with client.stream("GET", "http://checkout/chunked") as streamed:
            assert b"".join([piece async for piece in streamed.aiter_raw()]) == b"one\ntwo\nthree"
        with pytest.raises(httpx2.ConnectError) as caught:
            await client.get("http://dead/")
        assert isinstance(caught.value.mesh, MeshError)
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.get("http://cut/")
    assert mesh.held("c") == (0, 0)
