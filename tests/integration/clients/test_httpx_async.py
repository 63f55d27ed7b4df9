"""The async httpx transport against real servers."""

import asyncio
import contextlib
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator

import httpx
import pytest

from meshlib.clients.httpx_async import AsyncMeshTransport
from meshlib.errors import DeadlineExceeded, MeshError, RoutingError
from meshlib.model.cluster import CircuitBreakers, OutlierDetection
from meshlib.model.retry import RetryPolicy

RETRY = RetryPolicy(frozenset({"connect-failure", "reset", "gateway-error"}), num_retries=3, base_interval_s=0.001)


@pytest.fixture
async def client(mesh) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
        yield client


async def test_host_of_the_url_finds_the_service_and_is_sent_on(mesh, client, http_server):
    server = http_server(200, b"hello")
    mesh.serve("checkout", {"c": [server.address]})
    response = await client.post("http://checkout/orders?id=1", json={"n": 1})
    method, path, headers, body = server.requests[0]
    assert (response.status_code, response.text) == (200, "hello")
    assert (method, path, headers["host"], body) == ("POST", "/orders?id=1", "checkout", b'{"n":1}')
    assert response.extensions["mesh"].endpoint == server.address


async def test_requests_are_split_by_weight(mesh, client, http_server):
    old, new = http_server(200, b"v1"), http_server(200, b"v2")
    mesh.serve("checkout", {"v1": [old.address], "v2": [new.address]}, weights={"v1": 80, "v2": 20})
    seen = Counter([(await client.get("http://checkout/")).text for _ in range(200)])
    # Binomial(200, 0.2): mean 40, standard deviation 5.7; five of them are 28.
    assert abs(seen["v2"] - 40) < 28


async def test_retry_goes_to_another_endpoint_when_nobody_listens(mesh, client, http_server, dead_address):
    server = http_server()
    mesh.serve("checkout", {"c": [dead_address, server.address]}, retry=RETRY)
    responses = [await client.post("http://checkout/", json={}) for _ in range(4)]
    assert [response.status_code for response in responses] == [200] * 4
    assert max(response.extensions["mesh"].attempts for response in responses) > 1
    assert mesh.held("c") == (0, 0)


async def test_retry_after_503_repeats_a_safe_request(mesh, client, http_server):
    answers = iter([503, 200])

    def answer(handler, body):
        handler.send_response(next(answers))
        handler.send_header("content-length", "2")
        handler.end_headers()
        handler.wfile.write(b"ok")

    server = http_server(answer=answer)
    mesh.serve("checkout", {"c": [server.address]}, retry=RETRY)
    response = await client.put("http://checkout/", content=b"data")
    assert (response.status_code, response.extensions["mesh"].attempts) == (200, 2)
    assert [body for _, _, _, body in server.requests] == [b"data", b"data"]
    assert len(server.connections) == 1


async def test_generator_is_never_replayed(mesh, client, http_server):
    server = http_server(503)
    mesh.serve("checkout", {"c": [server.address]}, retry=RETRY)

    async def body():
        yield b"part 1,"
        yield b"part 2"

    response = await client.put("http://checkout/", content=body())
    assert (response.status_code, response.extensions["mesh"].attempts) == (503, 1)
    assert [sent for _, _, _, sent in server.requests] == [b"part 1,part 2"]


async def test_bodies_stream_in_both_directions(mesh, client, http_server):
    def answer(handler, body):
        handler.send_response(200)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    server = http_server(answer=answer)
    mesh.serve("checkout", {"c": [server.address]})

    async def pieces():
        for _ in range(32):
            yield b"x" * 65536

    async with client.stream("POST", "http://checkout/", content=pieces()) as response:
        assert mesh.held("c") == (1, 1)
        sizes = [len(part) async for part in response.aiter_raw()]
    assert sum(sizes) == 32 * 65536
    assert max(sizes) <= 65536
    assert mesh.held("c") == (0, 0)


async def test_connect_error_names_cluster_and_endpoints(mesh, client, dead_address):
    mesh.serve("checkout", {"c": [dead_address]}, retry=RETRY)
    with pytest.raises(httpx.ConnectError) as caught:
        await client.get("http://checkout/")
    record = caught.value.mesh
    assert isinstance(record, MeshError)
    assert (record.cluster, record.endpoints, record.attempts) == ("c", (dead_address,) * 4, 4)


async def test_unknown_host_is_an_error_or_goes_out_directly(mesh, client, http_server):
    server = http_server(200, b"outside")
    with pytest.raises(httpx.ConnectError, match='"unknown"') as caught:
        await client.get("http://elsewhere/")
    assert isinstance(caught.value.mesh, RoutingError)
    async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh, passthrough="unknown")) as direct:
        assert (await direct.get(f"http://{server.address}/")).text == "outside"
    assert mesh.events[-1].cluster == "PassthroughCluster"


async def test_mesh_answers_itself_as_a_response(mesh, client):
    mesh.serve("checkout", {"c": []})
    response = await client.get("http://checkout/")
    assert (response.status_code, response.extensions["mesh"].flag) == (503, "UH")


async def test_route_timeout_ends_an_attempt_that_trickles(mesh, client, raw_server):
    def trickle(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:  # until the client leaves
            connection.sendall(b"x")
            time.sleep(0.02)

    server = raw_server(trickle)
    mesh.serve("checkout", {"c": [server.address]}, timeout_s=0.2)
    with pytest.raises(httpx.ReadTimeout) as caught:
        await client.get("http://checkout/")
    assert isinstance(caught.value.mesh, DeadlineExceeded)
    assert mesh.held("c") == (0, 0)


async def test_safe_request_survives_a_dying_keep_alive_connection(mesh, client, raw_server):
    def die_on_second_request(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        connection.recv(65536)

    server = raw_server(die_on_second_request)
    mesh.serve("checkout", {"c": [server.address]})
    responses = [await client.get("http://checkout/") for _ in range(4)]
    assert [(r.status_code, r.extensions["mesh"].attempts) for r in responses] == [(200, 1)] * 4


async def test_limit_of_requests_is_answered_by_the_mesh(mesh, client, http_server):
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]}, circuit_breakers=CircuitBreakers(max_requests=1))
    async with client.stream("GET", "http://checkout/"):
        response = await client.get("http://checkout/")
    assert (response.status_code, response.extensions["mesh"].flag) == (503, "UO")


async def test_many_at_once(mesh, client, http_server):
    servers = [http_server(), http_server()]
    mesh.serve("checkout", {"c": [server.address for server in servers]})
    responses = await asyncio.gather(*(client.get("http://checkout/") for _ in range(100)))
    assert [response.status_code for response in responses] == [200] * 100
    assert mesh.held("c") == (0, 0)


@pytest.mark.parametrize("steps", range(40))
async def test_cancellation_at_any_await_releases_everything(mesh, http_server, dead_address, steps):
    """Let a call that retries run for some turns of the event loop, then cancel it; the next call works."""
    server = http_server()
    mesh.serve("checkout", {"c": [dead_address, server.address]}, retry=RETRY)
    transport = AsyncMeshTransport(mesh, limits=httpx.Limits(max_connections=1, keepalive_expiry=4.0))
    async with httpx.AsyncClient(transport=transport) as client:
        task = asyncio.create_task(client.get("http://checkout/"))
        for _ in range(steps):
            if task.done():
                break
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            assert (await task).status_code == 200
        assert mesh.held("c") == (0, 0)
        assert (await client.get("http://checkout/")).status_code == 200
    assert mesh.held("c") == (0, 0)


async def test_cancellation_while_waiting_for_headers_and_body(mesh, client, raw_server):
    def half(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        if number % 2:
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
        connection.recv(65536)  # until the client leaves

    server = raw_server(half)
    mesh.serve("checkout", {"c": [server.address]}, timeout_s=0.0)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.get("http://checkout/", timeout=None)
        assert mesh.held("c") == (0, 0)


async def test_backoff_is_cancelled_too(mesh, client, dead_address):
    retry = RetryPolicy(frozenset({"connect-failure"}), num_retries=1, base_interval_s=3600.0, max_interval_s=3600.0)
    mesh.serve("checkout", {"c": [dead_address]}, retry=retry, timeout_s=0.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await client.get("http://checkout/")
    assert (mesh.held("c"), mesh.cluster("c").breaker.retries) == ((0, 0), 0)


async def test_waiting_for_a_connection_is_in_order_and_may_be_cancelled(mesh, http_server):
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]})
    transport = AsyncMeshTransport(mesh, limits=httpx.Limits(max_connections=1, keepalive_expiry=4.0))
    async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(10, pool=5)) as client:
        async with client.stream("GET", "http://checkout/"):
            waiting = [asyncio.create_task(client.get("http://checkout/")) for _ in range(3)]
            await asyncio.sleep(0.05)
            assert mesh.held("c") == (4, 4)
            waiting[0].cancel()
            await asyncio.wait([waiting[0]])
            with pytest.raises(httpx.PoolTimeout):
                await client.get("http://checkout/", timeout=httpx.Timeout(10, pool=0.05))
        assert [(await task).status_code for task in waiting[1:]] == [200, 200]
    assert len(server.connections) == 2  # one, whose response was left unread, and one for the rest
    assert mesh.held("c") == (0, 0)


async def test_connection_lost_in_the_body_counts_against_the_endpoint(mesh, client, raw_server):
    def handle(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 500 Oops\r\ncontent-length: 9\r\n\r\nxyz")

    server = raw_server(handle)
    rules = OutlierDetection(consecutive_5xx=2, max_ejection_percent=100)
    mesh.serve("checkout", {"c": [server.address]}, outlier_detection=rules)
    with pytest.raises(httpx.RemoteProtocolError) as caught:
        await client.get("http://checkout/")
    assert caught.value.mesh.flag == "UC"
    assert mesh.cluster("c").states[server.address].is_ejected
