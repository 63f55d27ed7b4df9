"""A call that is cancelled at an await, whichever it is, leaves nothing behind: the coroutine is driven step by step."""

import asyncio
import gc
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import httpx
import pytest
import trio
import trustme

from meshlib.clients.connections_async import AsyncHttp1Pool
from meshlib.clients.httpx_async import AsyncMeshTransport
from meshlib.model.cluster import CircuitBreakers
from meshlib.model.matcher import StringKind, StringMatcher
from meshlib.model.retry import RetryPolicy
from meshlib.model.secret import ClientTls, SanMatcher, SanType, Secret, SecretRef, TrustedCa

RETRY = RetryPolicy(frozenset({"5xx", "connect-failure", "reset"}), num_retries=3, base_interval_s=0.001)
ONE = httpx.Limits(max_connections=1, keepalive_expiry=4.0)
Scenario = Callable[[httpx.AsyncClient], Awaitable[None]]


class Steps:
    """Awaits something, and does something else right before its n-th suspension."""

    def __init__(self, awaited: Awaitable[None], at: int, act: Callable[[], None]) -> None:
        self._awaited = awaited
        self._at = at
        self._act = act
        self.count = 0

    def __await__(self) -> Generator[Any, Any, None]:
        inner = self._awaited.__await__()
        send: Any = lambda: inner.send(None)  # noqa: E731 - it changes with what the loop answers
        while True:
            try:
                trap = send()
            except StopIteration:
                return
            if self.count == self._at:
                self._act()
            self.count += 1
            try:
                value = yield trap
            except BaseException as error:
                send = lambda error=error: inner.throw(error)  # noqa: E731
            else:
                send = lambda value=value: inner.send(value)  # noqa: E731


async def get(client: httpx.AsyncClient) -> None:
    assert (await client.get("http://checkout/")).status_code == 200


class Pieces:
    """A body that is made as it is sent. No generator: httpx would leave it unfinished, and trio complain of that."""

    def __init__(self) -> None:
        self._left = 3

    def __aiter__(self) -> "Pieces":
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        return b"x" * 200_000


async def put_in_pieces(client: httpx.AsyncClient) -> None:
    assert (await client.put("http://checkout/", content=Pieces())).status_code == 200


async def stream(client: httpx.AsyncClient) -> None:
    async with client.stream("GET", "http://checkout/") as response:
        async for _ in response.aiter_bytes():
            pass


async def leave_unread(client: httpx.AsyncClient) -> None:
    async with client.stream("GET", "http://checkout/"):
        pass


async def two_on_one_connection(client: httpx.AsyncClient) -> None:
    await get(client)
    await get(client)


@pytest.fixture
def flaky(http_server: Any) -> Any:
    """A server that refuses what is no retry, so that each call has two attempts, however the one before it ended."""

    def answer(handler: Any, body: bytes) -> None:
        is_retry = "x-meshlib-attempt" in handler.headers
        content = b"y" * 100_000 if is_retry else b"busy"
        handler.send_response(200 if is_retry else 503)
        handler.send_header("content-length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return http_server(answer=answer)


async def asyncio_run(awaited: Awaitable[None], at: int) -> int | None:
    """Run with a cancellation at a step; returns how many there were, or None when it was cancelled."""
    task: asyncio.Task[None] | None = None
    steps = Steps(awaited, at, lambda: task and task.cancel())

    async def body() -> None:
        await steps

    task = asyncio.create_task(body())
    try:
        await task
    except asyncio.CancelledError:
        return None
    return steps.count


async def trio_run(awaited: Awaitable[None], at: int) -> int | None:
    with trio.CancelScope() as scope:
        steps = Steps(awaited, at, scope.cancel)
        await steps
    return None if scope.cancelled_caught else steps.count


async def cancel_everywhere(mesh: Any, run: Any, scenario: Scenario, address: str) -> None:
    at, count = 0, 1
    while at < count + 1:
        transport = AsyncMeshTransport(mesh, limits=ONE)
        async with httpx.AsyncClient(transport=transport, timeout=10) as client:
            found = await run(scenario(client), at)
            assert mesh.held("c") == (0, 0), f"at step {at}"
            assert mesh.cluster("c").breaker.retries == 0
            assert mesh.cluster("c").breaker.pending == 0
            # With a limit of one connection, a lost one would be missed.
            await scenario(client)
            pools = [lease.pool for lease in transport._pools._leases]
            own = [pool for pool in pools if isinstance(pool, AsyncHttp1Pool)]
            assert all(len(pool._open) == len(pool._idle) for pool in own), f"at step {at}"
        assert mesh.cluster("c").breaker.connections == 0, f"at step {at}"
        if found is not None and found <= at:
            break  # it ended before the step: that was the last one
        count = max(count, at + 1)
        at += 1
    assert at > 3, "there was something to cancel"
    gc.collect()


SCENARIOS = [get, put_in_pieces, stream, leave_unread, two_on_one_connection]


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_asyncio(scenario: Scenario, mesh: Any, http_server: Any, dead_address: str) -> None:
    server = http_server(200, b"z" * 100_000)
    mesh.serve("checkout", {"c": [dead_address, server.address]}, retry=RETRY)
    await cancel_everywhere(mesh, asyncio_run, scenario, server.address)


@pytest.mark.parametrize("scenario", [get, stream])
async def test_asyncio_with_retries_of_responses(scenario: Scenario, mesh: Any, flaky: Any) -> None:
    mesh.serve("checkout", {"c": [flaky.address]}, retry=RETRY)
    await cancel_everywhere(mesh, asyncio_run, scenario, flaky.address)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_trio(scenario: Scenario, mesh: Any, http_server: Any, dead_address: str) -> None:
    server = http_server(200, b"z" * 100_000)
    mesh.serve("checkout", {"c": [dead_address, server.address]}, retry=RETRY)
    trio.run(cancel_everywhere, mesh, trio_run, scenario, server.address)


async def test_tls(mesh: Any) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        except (OSError, EOFError):
            writer.close()

    tls = ClientTls(
        None, SecretRef(sds_name="root"), (SanMatcher(SanType.DNS, StringMatcher(StringKind.EXACT, "localhost")),)
    )
    async with await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        secrets = {"root": Secret("root", TrustedCa(authority.cert_pem.bytes()))}
        mesh.serve("checkout", {"c": [address]}, tls=tls, secrets=secrets)
        await cancel_everywhere(mesh, asyncio_run, get, address)
        server.close()


async def http2_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    state.initiate_connection()
    try:
        while True:
            writer.write(state.data_to_send())
            data = await reader.read(65536)
            if not data:
                break
            for event in state.receive_data(data):
                if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                    state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                if isinstance(event, h2.events.StreamEnded):
                    state.send_headers(event.stream_id, [(":status", "200"), ("content-length", "9000")])
                    state.send_data(event.stream_id, b"x" * 9000, end_stream=True)
    except (OSError, h2.exceptions.ProtocolError):
        pass
    finally:
        writer.close()


@pytest.mark.parametrize("scenario", [get, put_in_pieces, stream, two_on_one_connection])
async def test_http2(scenario: Scenario, mesh: Any) -> None:
    async with await asyncio.start_server(http2_server, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        mesh.serve("checkout", {"c": [address]}, http2=True)
        await cancel_everywhere(mesh, asyncio_run, scenario, address)
        server.close()


async def test_names_with_several_addresses(mesh: Any, http_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = http_server(200, b"ok")
    host, _, port = server.address.rpartition(":")
    loop = asyncio.get_running_loop()

    async def resolve(name: str, port: int, **options: Any) -> Any:
        await asyncio.sleep(0)
        return [(2, 1, 6, "", (address, port)) for address in ("127.0.0.9", host)]

    monkeypatch.setattr(loop, "getaddrinfo", resolve)
    mesh.serve("checkout", {"c": [f"several.test:{port}"]}, circuit_breakers=CircuitBreakers(max_connections=5))
    before = threading.active_count()
    await cancel_everywhere(mesh, asyncio_run, get, server.address)
    end = time.monotonic() + 30
    while threading.active_count() > before + 1:  # of the test's server, for the most part
        assert time.monotonic() < end, threading.enumerate()
        await asyncio.sleep(0.01)
