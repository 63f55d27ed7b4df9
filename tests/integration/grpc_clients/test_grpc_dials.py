"""Endpoints with several addresses: a channel uses the first that answers, in plaintext and through the relay."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest

from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_channels import channels_of
from meshlib.clients.grpc_errors import MeshRpcError
from meshlib.clients.grpc_sync import MeshChannel
from meshlib.model.endpoint import Endpoint

CHECKOUT = "spiffe://cluster.local/ns/default/sa/checkout"
ORDERS = "spiffe://cluster.local/ns/default/sa/orders"
UNARY = "/test.Service/Unary"


@pytest.fixture
def refusing() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that does not answer: its queue of connections is full."""
    with ExitStack() as stack:
        held = stack.enter_context(socket.socket())
        held.bind(("127.0.0.1", 0))
        held.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(held.getsockname())
        yield f"127.0.0.1:{held.getsockname()[1]}"


def endpoint(*addresses: str) -> Endpoint:
    return Endpoint(addresses[0], dials=addresses)


@pytest.mark.parametrize("first", ["refusing", "silent", "other family"])
def test_the_first_address_that_answers_is_used(
    server: Any, mesh: Any, first: str, request: pytest.FixtureRequest
) -> None:
    one = server()
    bad = request.getfixturevalue("refusing" if first == "other family" else first)
    if first == "other family":
        bad = f"[::1]:{bad.rpartition(':')[2]}"
    mesh.serve(endpoint(bad, one.address))
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        began = time.monotonic()
        assert b"%d x" % one.port == channel.unary_unary(UNARY)(b"x", timeout=20)
        assert time.monotonic() - began < 15.0
        assert {"channels": 1, "active": 0} == channels_of(mesh.source).sync.statistics()


@pytest.mark.parametrize("first", ["refusing", "silent"])
async def test_the_first_address_that_answers_is_used_from_aio(
    server: Any, mesh: Any, first: str, request: pytest.FixtureRequest
) -> None:
    one = server()
    mesh.serve(endpoint(request.getfixturevalue(first), one.address))
    async with AioMeshChannel(mesh.source, "xds:///checkout") as channel:
        assert b"%d x" % one.port == await channel.unary_unary(UNARY)(b"x", timeout=20)


@pytest.mark.parametrize("first", ["refusing", "silent"])
def test_the_relay_uses_the_first_address_that_answers(
    server: Any, mesh: Any, authority: Any, first: str, request: pytest.FixtureRequest
) -> None:
    one = server(authority.server_credentials(CHECKOUT))
    mesh.serve_tls(endpoint(request.getfixturevalue(first), one.address), authority, authority.issue(ORDERS))
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        assert b"%d x" % one.port == channel.unary_unary(UNARY)(b"x", timeout=20)


def test_when_none_answers_the_endpoint_has_failed_once_and_nothing_was_sent(
    server: Any, mesh: Any, refusing: str
) -> None:
    """So it is tried again elsewhere, also where only what surely was not sent may be."""
    mesh.serve(endpoint(refusing, refusing.replace("127.0.0.1", "127.0.0.2"), f"[::1]:{refusing.rpartition(':')[2]}"))
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        with pytest.raises(MeshRpcError) as caught:
            channel.unary_unary(UNARY)(b"x", timeout=20)
        error = caught.value
        assert grpc.StatusCode.UNAVAILABLE is error.code()
        assert ((refusing,), "UF") == (error.mesh.endpoints, error.mesh.flag)


def test_a_changed_list_is_another_channel_and_the_old_one_is_closed(server: Any, mesh: Any, refusing: str) -> None:
    one, two = server(), server()
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        for used in (one, two):
            mesh.serve(endpoint(refusing, used.address))
            assert b"%d x" % used.port == channel.unary_unary(UNARY)(b"x", timeout=20)
            assert 1 == channels_of(mesh.source).sync.statistics()["channels"]
