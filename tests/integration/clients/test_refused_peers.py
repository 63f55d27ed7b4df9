"""Servers that must not be talked to get no byte of a request: httpx sync and async over HTTP/1.1 and HTTP/2, requests, aiohttp,
gRPC sync and aio."""

import asyncio
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import grpc
import httpx
import pytest
import requests
from peers.bad_peers import BAD_PEERS, GOOD, OURS, BadPeer, named
from peers.recorder import Recorder

from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_channels import close_channels
from meshlib.clients.grpc_sync import MeshChannel
from meshlib.clients.httpx_async import AsyncMeshTransport
from meshlib.clients.httpx_sync import MeshTransport
from meshlib.errors import IdentityError
from meshlib.integrations.aiohttp import MeshMiddleware
from meshlib.integrations.requests import MeshAdapter
from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.secret import ClientTls, Secret, SecretRef
from meshlib.model.snapshot import Snapshot
from meshlib.runtime.tls_context import load_identity
from meshlib.testing.builders import cluster, service
from meshlib.testing.source import mesh_source

URL, METHOD = "http://checkout/", "/test.Service/Unary"


def showing(peer: BadPeer) -> ssl.SSLContext:
    """A server that asks for nothing and speaks whatever it is offered."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_identity(context, peer.leaf.chain_pem, peer.leaf.key_pem)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def source(address: str, peer: BadPeer, *, http2: bool = False) -> Any:
    """A mesh with one service, `checkout`, which must be who it says."""
    made = mesh_source(Snapshot(), clock=time.monotonic, rng=random.Random(7))
    tls = ClientTls(SecretRef(sds_name="default"), SecretRef(sds_name="ROOTCA"), named(), **peer.fields)
    template = Cluster("checkout", EdsDiscovery("checkout"), tls=tls, http2=http2)
    secrets = {"default": OURS.secret(), "ROOTCA": Secret("ROOTCA", peer.trust)}
    clusters = {"checkout": cluster("checkout", address, template=template)}
    made.publish(replace(service("checkout", address), clusters=clusters, secrets=secrets))
    return made


async def by_httpx(mesh: Any) -> None:
    def call() -> None:
        with httpx.Client(transport=MeshTransport(mesh), timeout=20) as client:
            with pytest.raises(httpx.ConnectError) as caught:
                client.post(URL, json={"card": "4111"})
        assert isinstance(caught.value.mesh, IdentityError)  # type: ignore[attr-defined]

    await asyncio.to_thread(call)


async def by_async_httpx(mesh: Any) -> None:
    async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh), timeout=20) as client:
        with pytest.raises(httpx.ConnectError) as caught:
            await client.post(URL, json={"card": "4111"})
    assert isinstance(caught.value.mesh, IdentityError)  # type: ignore[attr-defined]


async def by_requests(mesh: Any) -> None:
    def call() -> None:
        with requests.Session() as session:
            session.mount("http://", MeshAdapter(mesh))
            with pytest.raises(requests.ConnectionError) as caught:
                session.post(URL, json={"card": "4111"}, timeout=20)
        assert isinstance(caught.value.mesh, IdentityError)  # type: ignore[attr-defined]

    await asyncio.to_thread(call)


async def by_aiohttp(mesh: Any) -> None:
    async with aiohttp.ClientSession(middlewares=[MeshMiddleware(mesh)]) as session:
        with pytest.raises(aiohttp.ClientConnectionError) as caught:
            await session.post(URL, json={"card": "4111"})
    assert isinstance(caught.value.mesh, IdentityError)  # type: ignore[attr-defined]


async def by_grpc(mesh: Any) -> None:
    def call() -> None:
        with MeshChannel(mesh, "xds:///checkout") as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(METHOD)(b"4111", timeout=20)
        assert grpc.StatusCode.UNAVAILABLE is caught.value.code()

    await asyncio.to_thread(call)


async def by_grpc_aio(mesh: Any) -> None:
    async with AioMeshChannel(mesh, "xds:///checkout") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            await channel.unary_unary(METHOD)(b"4111", timeout=20)
    assert grpc.StatusCode.UNAVAILABLE is caught.value.code()


CALLERS = pytest.mark.parametrize("call", [by_httpx, by_async_httpx, by_requests, by_aiohttp, by_grpc, by_grpc_aio])


@CALLERS
@pytest.mark.parametrize("peer", BAD_PEERS.values(), ids=BAD_PEERS.keys())
async def test_a_peer_that_must_be_refused_gets_no_byte(call: Callable[[Any], Awaitable[None]], peer: BadPeer) -> None:
    with Recorder(showing(peer)) as server:
        mesh = source(server.address, peer)
        try:
            await call(mesh)
        finally:
            close_channels(mesh)
    assert b"" == server.received


@pytest.mark.parametrize("call", [by_httpx, by_async_httpx])
@pytest.mark.parametrize("peer", BAD_PEERS.values(), ids=BAD_PEERS.keys())
async def test_nor_over_http2(call: Callable[[Any], Awaitable[None]], peer: BadPeer) -> None:
    with Recorder(showing(peer)) as server:
        await call(source(server.address, peer, http2=True))
        await asyncio.sleep(0)  # the loop closes what is given up; the server waits for that
    assert b"" == server.received


@pytest.mark.parametrize("peer", BAD_PEERS.values(), ids=BAD_PEERS.keys())
def test_the_same_settings_let_a_good_peer_in(peer: BadPeer) -> None:
    """Else the tests above would prove nothing."""
    good = BadPeer(GOOD, peer.trust, peer.fields)
    with Recorder(showing(good)) as server:
        with httpx.Client(transport=MeshTransport(source(server.address, good)), timeout=20) as client:
            assert "nobody" == client.get(URL).text
    assert server.received.startswith(b"GET / HTTP/1.1\r\n")
