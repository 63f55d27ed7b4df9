"""httpx2 over the mesh, with the real library: the same code translates nothing but classes."""

import asyncio
import socket
import time
from typing import Any

import h2.config
import h2.connection
import h2.events
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


class Http2:
    """Answers with trailers and says goodbye after the second of three requests; the third is answered wrongly."""

    def __init__(self) -> None:
        self.connections = 0
        self._count = 0

    def handle(self, connection: socket.socket, number: int) -> None:
        self.connections += 1
        state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        state.initiate_connection()
        connection.sendall(state.data_to_send())
        while data := connection.recv(65536):
            for event in state.receive_data(data):
                if isinstance(event, h2.events.StreamEnded):
                    self._count += 1
                    length = "9" if self._count % 3 == 0 else "2"
                    state.send_headers(event.stream_id, [(":status", "200"), ("content-length", length)])
                    state.send_data(event.stream_id, b"ok")
                    state.send_headers(event.stream_id, [("x-sum", "1")], end_stream=True)
                    if self._count % 3 == 2:
                        state.close_connection()
            connection.sendall(state.data_to_send())


def test_http2(mesh: Any, raw_server: Any) -> None:
    """The same connections as httpx's."""
    server = Http2()
    mesh.serve("checkout", {"c": [raw_server(server.handle).address]}, timeout_s=0.0, http2=True)
    transport = adapter.mesh_transport(Transports(mesh))  # type: ignore[arg-type]
    with httpx2.Client(transport=transport) as client:
        for _ in range(2):
            response = client.post("http://checkout/")
            assert ("ok", [(b"x-sum", b"1")]) == (response.text, response.extensions["trailers"])
            time.sleep(0.03)
        assert server.connections == 1
        with pytest.raises(httpx2.RemoteProtocolError):
            client.post("http://checkout/")
        assert "ok" == client.post("http://checkout/").text
    assert server.connections == 2
    assert mesh.held("c") == (0, 0)


async def test_http2_async(mesh: Any, raw_server: Any) -> None:
    server = Http2()
    mesh.serve("checkout", {"c": [raw_server(server.handle).address]}, timeout_s=0.0, http2=True)
    transport = adapter.async_mesh_transport(Transports(mesh))  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport) as client:
        for _ in range(2):
            response = await client.post("http://checkout/")
            assert ("ok", [(b"x-sum", b"1")]) == (response.text, response.extensions["trailers"])
            await asyncio.sleep(0.03)
        assert server.connections == 1
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.post("http://checkout/")
        assert "ok" == (await client.post("http://checkout/")).text
    assert server.connections == 2
    assert mesh.held("c") == (0, 0)
