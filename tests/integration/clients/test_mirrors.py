"""Copies of requests against real servers: they arrive, and the caller knows nothing of them."""

import asyncio
import io
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from meshlib.clients.httpx_async import AsyncMeshTransport
from meshlib.clients.httpx_sync import MeshTransport
from meshlib.events import CallFinished, RequestMirrored
from meshlib.model.matcher import Fraction, PathKind, PathMatcher
from meshlib.model.route import MirrorPolicy, Route, RouteAction, RouteMatcher, SingleCluster

ANY_PATH = RouteMatcher(PathMatcher(PathKind.PREFIX, "/"))


def serve(mesh: Any, main: str, *mirrors: str, share: int = 100, timeout_s: float = 2.0) -> None:
    """Publish `checkout` with one mirror `copy`, which has the endpoints `mirrors`."""
    policy = MirrorPolicy("copy", Fraction(share))
    action = RouteAction(SingleCluster("c"), timeout_s=timeout_s, mirrors=(policy,))
    mesh.serve("checkout", {"c": [main], "copy": list(mirrors)}, route=Route(ANY_PATH, action))


def mirrored(mesh: Any) -> list[RequestMirrored]:
    return [event for event in mesh.events if isinstance(event, RequestMirrored)]


def test_copy_arrives_with_its_body_and_the_caller_gets_its_own_answer(mesh, http_server):
    main, copy = http_server(200, b"main"), http_server(500, b"copy")
    serve(mesh, main.address, copy.address)
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        response = client.post("http://checkout/orders?id=1", json={"n": 1}, headers={"X-User": "ann"})
        assert (response.status_code, response.text) == (200, "main")
    [(method, path, headers, body)] = copy.requests
    assert (method, path, body) == ("POST", "/orders?id=1", b'{"n":1}')
    assert (headers["host"], headers["x-user"], headers["x-envoy-internal"]) == ("checkout-shadow", "ann", "true")
    assert main.requests[0][2]["host"] == "checkout"
    [event] = mirrored(mesh)
    assert (event.target, event.cluster, event.status, event.failure) == ("checkout", "copy", 500, "")
    assert event.endpoint is not None
    assert event.endpoint.address == copy.address
    assert len([event for event in mesh.events if isinstance(event, CallFinished)]) == 1
    assert mesh.held("copy") == (0, 0)


async def test_copy_arrives_from_the_async_transport_too(mesh, http_server):
    main, copy = http_server(200, b"main"), http_server(500, b"copy")
    serve(mesh, main.address, copy.address)
    async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
        response = await client.post("http://checkout/", content=b"abc")
        assert (response.status_code, response.text) == (200, "main")
    [(method, _, headers, body)] = copy.requests
    assert (method, headers["host"], body) == ("POST", "checkout-shadow", b"abc")
    assert [event.status for event in mirrored(mesh)] == [500]
    assert mesh.held("copy") == (0, 0)


def test_mirror_that_is_dead_or_slow_costs_the_caller_nothing(mesh, http_server, raw_server, dead_address):
    """All answers are there while the slow copies still wait."""
    over = threading.Event()
    main, slow = http_server(), raw_server(lambda connection, number: over.wait(60))
    serve(mesh, main.address, dead_address, slow.address, timeout_s=50.0)
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        assert [client.get("http://checkout/").status_code for _ in range(4)] == [200] * 4
        assert {event.failure for event in mirrored(mesh)} <= {"connect"}
        over.set()
    assert sorted(event.failure for event in mirrored(mesh)) == ["connect", "connect", "reset", "reset"]
    assert mesh.held("copy") == (0, 0)


def test_mirrors_have_the_time_of_the_route(mesh, http_server, raw_server, dead_address):
    over = threading.Event()
    main, slow = http_server(), raw_server(lambda connection, number: over.wait(60))
    serve(mesh, main.address, dead_address, slow.address, timeout_s=0.3)
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        for _ in range(4):
            client.get("http://checkout/")
    over.set()
    assert sorted(event.failure for event in mirrored(mesh)) == ["connect", "connect", "timeout", "timeout"]
    assert mesh.held("copy") == (0, 0)


async def test_closing_the_async_transport_cancels_what_does_not_end(mesh, http_server, raw_server):
    over = threading.Event()
    main, slow = http_server(), raw_server(lambda connection, number: over.wait(20))
    serve(mesh, main.address, slow.address, timeout_s=30.0)
    async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
        await client.get("http://checkout/")
    over.set()
    assert [event.failure for event in mirrored(mesh)] == ["cancelled"]
    assert mesh.held("copy") == (0, 0)
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("body", ["generator", "file"])
def test_body_that_cannot_be_sent_twice_is_not_copied(mesh, http_server, body):
    main, copy = http_server(), http_server()
    serve(mesh, main.address, copy.address)
    options: dict[str, Any] = (
        {"content": iter([b"a", b"b"])} if body == "generator" else {"files": {"f": io.BytesIO(b"ab")}}
    )
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        assert client.post("http://checkout/", **options).status_code == 200
    assert copy.requests == []
    assert [event.failure for event in mirrored(mesh)] == ["body"]


def test_share_of_nothing_copies_nothing(mesh, http_server):
    main, copy = http_server(), http_server()
    serve(mesh, main.address, copy.address, share=0)
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        client.get("http://checkout/")
    assert (copy.requests, mirrored(mesh)) == ([], [])


def test_too_many_copies_are_dropped_and_counted(
    mesh: Any, http_server: Callable[..., Any], raw_server: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshlib.clients.mirrors.MAX_COPIES", 3)
    over = threading.Event()
    main, slow = http_server(), raw_server(lambda connection, number: over.wait(20))
    serve(mesh, main.address, slow.address)
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        for _ in range(5):
            assert client.get("http://checkout/").status_code == 200
        assert [event.failure for event in mirrored(mesh)] == ["overflow"] * 2
        over.set()
    assert len(mirrored(mesh)) == 5
