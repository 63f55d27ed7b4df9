"""Hedged calls over real sockets, blocking and async."""

import asyncio
import contextvars
import socket
import threading
import time

import httpx
import pytest

from meshlib.clients.hedge_threads import HedgeThreads
from meshlib.clients.httpx_async import AsyncMeshTransport
from meshlib.clients.httpx_sync import MeshTransport
from meshlib.events import AttemptFinished
from meshlib.model.matcher import Fraction
from meshlib.model.retry import HedgePolicy, RetryPolicy
from meshlib.model.route import (
    FaultPolicy,
    FaultRateLimit,
    InternalRedirectPolicy,
    Route,
    RouteAction,
    SingleCluster,
)

from .conftest import ANY_PATH

SOON_S = 0.1


def hedged(retries: int = 2) -> Route:
    retry = RetryPolicy(frozenset({"5xx"}), retries, per_try_timeout_s=SOON_S, base_interval_s=0.001)
    action = RouteAction(SingleCluster("c"), timeout_s=50.0, retry=retry, hedge=HedgePolicy(on_per_try_timeout=True))
    return Route(ANY_PATH, action)


def send(mesh, *, method="GET", url="http://checkout/", is_async=False, **options) -> httpx.Response:
    async def asend() -> httpx.Response:
        async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
            return await client.request(method, url, **options)

    if is_async:
        return asyncio.run(asend())
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        return client.request(method, url, **options)


both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


class Hanging:
    """Answers nothing, and notes when the peer gives up."""

    def __init__(self) -> None:
        self.left = threading.Event()

    def __call__(self, connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        connection.settimeout(30.0)
        try:
            if connection.recv(1) == b"":
                self.left.set()
        except OSError:
            self.left.set()


@both
def test_quick_answer_beside_a_slow_endpoint_wins(mesh, raw_server, http_server, is_async):
    hanging = Hanging()
    slow, quick = raw_server(hanging), http_server(200, b"quick")
    mesh.serve("checkout", {"c": [slow.address, quick.address]}, route=hedged(9))
    began = time.monotonic()
    texts = [send(mesh, is_async=is_async).text for _ in range(4)]

    assert texts == ["quick"] * 4
    assert time.monotonic() - began < 40.0
    assert hanging.left.wait(30.0)  # the slow one was not left waiting
    assert mesh.held("c") == (0, 0)
    assert mesh.cluster("c").breaker.retries == 0
    assert {e.failure for e in mesh.events if isinstance(e, AttemptFinished)} >= {"", "cancelled"}


@both
def test_record_names_the_endpoint_that_answered(mesh, raw_server, http_server, is_async):
    beside = threading.Event()

    def answer_late(connection: socket.socket, number: int) -> None:
        connection.recv(65536)
        if number:
            beside.set()
        beside.wait(30)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate")

    late = raw_server(answer_late)
    mesh.serve("checkout", {"c": [late.address]}, route=hedged())
    response = send(mesh, is_async=is_async)

    record = response.extensions["mesh"]
    assert (response.text, record.endpoint) == ("late", late.address)
    assert record.attempts > 1
    assert mesh.held("c") == (0, 0)


@both
def test_body_is_sent_by_each_attempt(mesh, http_server, raw_server, is_async):
    quick = http_server(200, b"ok")
    mesh.serve("checkout", {"c": [raw_server(Hanging()).address, quick.address]}, route=hedged(9))
    for _ in range(2):
        assert send(mesh, method="PUT", is_async=is_async, content=b"x" * 100_000).text == "ok"
    whole = [request for request in quick.requests if len(request[3]) == 100_000]
    assert len(whole) >= 2, "what is shorter belongs to an attempt that lost while it was sending"


@both
def test_body_that_cannot_be_sent_twice_is_not_hedged(mesh, raw_server, is_async):
    seen = []

    def answer_late(connection: socket.socket, number: int) -> None:
        seen.append(number)
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += connection.recv(65536)
        time.sleep(SOON_S * 3)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    mesh.serve("checkout", {"c": [raw_server(answer_late).address]}, route=hedged())

    async def pieces():
        yield b"x"

    content = pieces() if is_async else iter([b"x"])
    assert send(mesh, method="PUT", is_async=is_async, content=content).text == "ok"
    assert len(seen) == 1


@both
def test_all_fail_together_at_the_deadline(mesh, raw_server, is_async):
    retry = RetryPolicy(frozenset({"5xx"}), 3, per_try_timeout_s=SOON_S, base_interval_s=0.001)
    action = RouteAction(SingleCluster("c"), timeout_s=2.0, retry=retry, hedge=HedgePolicy(on_per_try_timeout=True))
    mesh.serve("checkout", {"c": [raw_server(Hanging()).address]}, route=Route(ANY_PATH, action))
    with pytest.raises(httpx.ReadTimeout) as caught:
        send(mesh, is_async=is_async)
    record = caught.value.mesh
    assert "UT" in record.flag
    assert record.attempts > 1
    assert mesh.held("c") == (0, 0)


@both
def test_trouble_of_an_attempt_is_raised_as_it_is(mesh, http_server, is_async):
    mesh.serve("checkout", {"c": [http_server().address]}, route=hedged())
    with pytest.raises(httpx.ConnectError, match="https"):
        send(mesh, url="https://checkout/", is_async=is_async)
    assert mesh.held("c") == (0, 0)


@pytest.mark.parametrize("after_s", [0.0, SOON_S / 2, SOON_S * 1.2, SOON_S * 2.5])
def test_cancelling_the_caller_ends_all_attempts(mesh, raw_server, after_s):
    hangings = [Hanging(), Hanging()]
    mesh.serve("checkout", {"c": [raw_server(hanging).address for hanging in hangings]}, route=hedged(9))

    async def main() -> None:
        async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
            task = asyncio.create_task(client.get("http://checkout/"))
            await asyncio.sleep(after_s)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert mesh.held("c") == (0, 0)
            assert mesh.cluster("c").breaker.retries == 0

    asyncio.run(main())


def test_without_threads_calls_are_made_as_if_there_was_no_hedging(mesh, http_server):
    mesh.serve("checkout", {"c": [http_server(200, b"ok").address]}, route=hedged())
    transport = MeshTransport(mesh)
    transport._threads = HedgeThreads(0)
    with httpx.Client(transport=transport) as client:
        assert client.get("http://checkout/").text == "ok"
    assert mesh.held("c") == (0, 0)


def test_attempts_see_the_context_of_their_caller(mesh, http_server):
    seen = []
    value = contextvars.ContextVar("value", default="")
    value.set("mine")
    mesh.serve("checkout", {"c": [http_server(200, b"ok").address]}, route=hedged())
    with httpx.Client(transport=MeshTransport(mesh)) as client:
        client.get("http://checkout/", extensions={"trace": lambda name, info: seen.append(value.get())})
    assert set(seen) == {"mine"}


def test_threads_are_bounded_and_used_again():
    threads = HedgeThreads(2)
    go, begun = threading.Event(), threading.Semaphore(0)

    def work() -> None:
        begun.release()
        go.wait(10)

    assert [threads.submit(work) for _ in range(3)] == [True, True, False]
    for _ in range(2):
        assert begun.acquire(timeout=10)
    go.set()
    done = threading.Event()
    deadline = time.monotonic() + 10
    while not threads.submit(done.set):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert done.wait(10)
    threads.close()
    assert threads.submit(work) is False


@both
def test_body_comes_no_faster_than_an_injected_fault_lets_it(mesh, http_server, is_async):
    limit = FaultRateLimit(16, Fraction(100))
    route = Route(ANY_PATH, RouteAction(SingleCluster("c")), fault=FaultPolicy(rate_limit=limit))
    mesh.serve("checkout", {"c": [http_server(200, b"x" * 8192).address]}, route=route)
    began = time.monotonic()
    assert send(mesh, is_async=is_async).content == b"x" * 8192
    assert time.monotonic() - began > 0.3  # 8 KiB at 16 KiB/s, the first sixteenth of a second free
    assert mesh.held("c") == (0, 0)


@both
def test_redirects_that_are_the_meshs_business_are_followed(mesh, http_server, is_async):
    def answer(handler, body):
        path = handler.path
        handler.send_response(303 if path == "/" else 200)
        if path == "/":
            handler.send_header("location", "http://checkout/next?a=1")
        handler.send_header("content-length", "4")
        handler.end_headers()
        handler.wfile.write(b"done")

    server = http_server(answer=answer)
    policy = InternalRedirectPolicy(codes=frozenset({303}))
    mesh.serve(
        "checkout",
        {"c": [server.address]},
        route=Route(ANY_PATH, RouteAction(SingleCluster("c"), internal_redirect=policy)),
    )
    response = send(mesh, method="PUT", is_async=is_async, content=b"body")
    assert (response.status_code, response.text) == (200, "done")
    seen = [(method, path, body) for method, path, _, body in server.requests]
    assert seen == [("PUT", "/", b"body"), ("GET", "/next?a=1", b"")]
    assert server.requests[1][2]["x-envoy-original-url"] == "http://checkout/"
    assert mesh.held("c") == (0, 0)


def test_cancelling_at_any_await_leaves_nothing_behind(mesh, raw_server, http_server):
    """One more turn of the loop each time, from before the first byte to the winner's body."""
    quick = http_server(200, b"quick")
    retry = RetryPolicy(frozenset({"5xx"}), 3, per_try_timeout_s=0.002, base_interval_s=0.001)
    action = RouteAction(SingleCluster("c"), timeout_s=50.0, retry=retry, hedge=HedgePolicy(on_per_try_timeout=True))
    mesh.serve("checkout", {"c": [raw_server(Hanging()).address, quick.address]}, route=Route(ANY_PATH, action))

    async def main() -> tuple[int, int]:
        cancelled = finished = 0
        async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
            for turns in range(60):
                task = asyncio.create_task(client.get("http://checkout/"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                if turns % 3 == 2:
                    await asyncio.sleep(0.001 * turns / 8)
                task.cancel()
                try:
                    await task
                    finished += 1
                except asyncio.CancelledError:
                    cancelled += 1
                assert mesh.held("c") == (0, 0), turns
                assert mesh.cluster("c").breaker.retries == 0
                assert asyncio.all_tasks() == {asyncio.current_task()}
        return cancelled, finished

    cancelled, _ = asyncio.run(main())
    assert cancelled
