"""A cluster's limits on connections and on those who wait for one, as Envoy has them."""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from typing import Any

import httpx

from meshlib.clients.httpx_async import AsyncMeshTransport
from meshlib.clients.httpx_sync import MeshTransport
from meshlib.model.cluster import CircuitBreakers, OutlierDetection
from meshlib.model.retry import RetryPolicy

RETRY = RetryPolicy(frozenset({"5xx", "connect-failure", "reset"}), num_retries=3, base_interval_s=0.001)
Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


class Gate:
    """Holds answers back until it is opened; counts who is at it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.arrived = threading.Semaphore(0)

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        self.arrived.release()
        self.open.wait(20)
        handler.send_response(200)
        handler.send_header("content-length", "2")
        handler.end_headers()
        handler.wfile.write(b"ok")


def counts(mesh: Any) -> tuple[int, int]:
    breaker = mesh.cluster("c").breaker
    return breaker.connections, breaker.pending


def wait_until(look: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not look():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_request_waits_for_a_connection_that_the_cluster_allows(mesh, http_server):
    gate = Gate()
    server = http_server(answer=gate.answer)
    mesh.serve("checkout", {"c": [server.address]}, circuit_breakers=CircuitBreakers(max_connections=1))
    with httpx.Client(transport=MeshTransport(mesh)) as client, ThreadPoolExecutor(3) as pool:
        calls = [pool.submit(client.get, "http://checkout/") for _ in range(3)]
        assert gate.arrived.acquire(timeout=30)
        assert not gate.arrived.acquire(timeout=0.1), "the others wait for the one connection"
        wait_until(lambda: counts(mesh) == (1, 2))
        gate.open.set()
        assert [call.result(30).status_code for call in calls] == [200] * 3
        assert counts(mesh) == (1, 0)
    assert len(server.connections) == 1
    assert counts(mesh) == (0, 0)


def test_host_without_a_connection_may_always_open_one(mesh, http_server):
    gates = Gate(), Gate()
    servers = [http_server(answer=gate.answer) for gate in gates]
    addresses = [server.address for server in servers]
    mesh.serve("checkout", {"c": addresses}, circuit_breakers=CircuitBreakers(max_connections=1))
    with httpx.Client(transport=MeshTransport(mesh)) as client, ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(client.get, "http://checkout/") for _ in range(2)]
        assert all(gate.arrived.acquire(timeout=30) for gate in gates)
        assert counts(mesh) == (2, 0)
        for gate in gates:
            gate.open.set()
        assert [call.result(30).status_code for call in calls] == [200] * 2


def test_too_many_who_wait_get_an_overflow_that_is_not_retried(mesh, http_server):
    gate = Gate()
    server = http_server(answer=gate.answer)
    limits = CircuitBreakers(max_connections=1, max_pending_requests=1)
    rules = OutlierDetection(consecutive_5xx=1, max_ejection_percent=100)
    mesh.serve("checkout", {"c": [server.address]}, circuit_breakers=limits, outlier_detection=rules, retry=RETRY)
    with httpx.Client(transport=MeshTransport(mesh)) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.get, "http://checkout/")
        assert gate.arrived.acquire(timeout=30)
        second = pool.submit(client.get, "http://checkout/")
        while counts(mesh) != (1, 1):
            assert not second.done()
        response = client.get("http://checkout/")
        assert (response.status_code, response.headers["x-envoy-overloaded"]) == (503, "true")
        assert (response.extensions["mesh"].flag, response.extensions["mesh"].attempts) == ("UO", 1)
        gate.open.set()
        assert [call.result(30).status_code for call in (first, second)] == [200] * 2
    assert not mesh.cluster("c").states[server.address].is_ejected
    assert (mesh.held("c"), counts(mesh)) == ((0, 0), (0, 0))


def test_nobody_may_wait_at_all(mesh, http_server):
    """A new connection is waited for, too: with a limit of 0 only what is open already can be used."""
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]})
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        assert client.get("http://checkout/").status_code == 200
        mesh.serve("checkout", {"c": [server.address]}, circuit_breakers=CircuitBreakers(max_pending_requests=0))
        assert client.get("http://checkout/").status_code == 200
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        assert client.get("http://checkout/").extensions["mesh"].flag == "UO"


def test_connections_that_fail_are_not_counted(mesh, dead_address):
    mesh.serve("checkout", {"c": [dead_address]})
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        for _ in range(2):
            try:
                client.get("http://checkout/")
            except httpx.ConnectError:
                continue
            raise AssertionError("nobody listens there")
        assert counts(mesh) == (0, 0)


async def test_async_requests_wait_and_overflow_alike(mesh, http_server):
    gate = Gate()
    server = http_server(answer=gate.answer)
    limits = CircuitBreakers(max_connections=1, max_pending_requests=2)
    mesh.serve("checkout", {"c": [server.address]}, circuit_breakers=limits)
    async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
        first = asyncio.create_task(client.get("http://checkout/"))
        assert await asyncio.to_thread(gate.arrived.acquire, timeout=30)
        waiting = [asyncio.create_task(client.get("http://checkout/")) for _ in range(2)]
        while counts(mesh) != (1, 2):
            await asyncio.sleep(0)
        assert (await client.get("http://checkout/")).extensions["mesh"].flag == "UO"
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        assert counts(mesh) == (1, 1)
        gate.open.set()
        assert [(await call).status_code for call in (first, waiting[1])] == [200] * 2
    assert len(server.connections) == 1
    assert (mesh.held("c"), counts(mesh)) == ((0, 0), (0, 0))


def test_connections_to_one_endpoint_are_limited_and_others_have_their_own(mesh, http_server):
    gates = Gate(), Gate()
    servers = [http_server(answer=gate.answer) for gate in gates]
    limits = CircuitBreakers(max_connections_per_host=1)
    mesh.serve("checkout", {"c": [server.address for server in servers]}, circuit_breakers=limits)
    with httpx.Client(transport=MeshTransport(mesh)) as client, ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(client.get, "http://checkout/") for _ in range(4)]
        assert all(gate.arrived.acquire(timeout=30) for gate in gates)
        assert not any(gate.arrived.acquire(timeout=0.1) for gate in gates), "the second of each waits"
        wait_until(lambda: counts(mesh) == (2, 2))
        for gate in gates:
            gate.open.set()
        assert [call.result(30).status_code for call in calls] == [200] * 4
    assert [len(server.connections) for server in servers] == [1, 1]


async def test_connections_to_one_endpoint_are_limited_in_the_async_client(mesh, http_server):
    gate = Gate()
    server = http_server(answer=gate.answer)
    limits = CircuitBreakers(max_connections_per_host=1)
    mesh.serve("checkout", {"c": [server.address]}, circuit_breakers=limits)
    async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
        calls = [asyncio.create_task(client.get("http://checkout/")) for _ in range(3)]
        assert await asyncio.to_thread(gate.arrived.acquire, timeout=30)
        assert not await asyncio.to_thread(gate.arrived.acquire, timeout=0.1)
        gate.open.set()
        assert [(await call).status_code for call in calls] == [200] * 3
    assert len(server.connections) == 1
