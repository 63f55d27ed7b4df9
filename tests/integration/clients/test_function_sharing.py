"""Calls of a function that become one, and responses that are handed out again."""

import asyncio
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any

import anyio
import httpx
import pytest

from meshlib import ResponseCache
from meshlib.clients.collapse import Flights
from meshlib.clients.function import decorate
from meshlib.errors import DeadlineExceeded
from meshlib.model.endpoint import Endpoint
from meshlib.runtime.context import InboundContext, carry, entered

TIMEOUT_S = 10.0


class Work:
    """A function's body that tells how often it ran and stands still until it may go on."""

    def __init__(self) -> None:
        self.runs = 0
        self.started = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self, value: Any) -> Any:
        self.runs += 1
        self.started.release()
        assert self.go.wait(TIMEOUT_S)
        if isinstance(value, BaseException):
            raise value
        return [value]


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def stock(mesh, work):
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]})

    @decorate(mesh, "inventory", method="GET", collapse=True)
    def stock(endpoint: Endpoint, value: Any) -> Any:
        return work(value)

    return stock


def waiting(pool: ThreadPoolExecutor, function: Any, value: Any, count: int) -> list[Any]:
    """Start calls that have nobody to wait for but the one at work; they do so when this returns."""
    before = waiters()
    futures = [pool.submit(function, value) for _ in range(count)]
    end = time.monotonic() + TIMEOUT_S
    while waiters() < before + count:  # whoever came too late would run the work itself
        assert time.monotonic() < end
        time.sleep(0.002)
    return futures


def waiters() -> int:
    """Return how many threads wait for somebody else's result."""
    frames: Iterable[Any] = sys._current_frames().values()
    return sum(_waits(frame) for frame in frames)


def _waits(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is Future.result.__code__ and frame.f_back is not None:
            return frame.f_back.f_code is Flights.run.__code__
        frame = frame.f_back
    return False


def test_identical_calls_are_one_and_get_the_same_object(mesh, stock, work):
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(stock, "A")
        assert work.started.acquire(timeout=TIMEOUT_S)
        others = waiting(pool, stock, "A", 3)
        assert (1, 1) == mesh.held("c")
        work.go.set()
        results = [future.result(TIMEOUT_S) for future in (first, *others)]
    assert 1 == work.runs
    assert all(result is results[0] for result in results)
    assert ["A"] == stock("A")
    assert 2 == work.runs, "nothing is kept after the call"


def test_other_arguments_are_other_calls(stock, work):
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(stock, value) for value in ("A", "B", 1, True)]
        for _ in futures:
            assert work.started.acquire(timeout=TIMEOUT_S)
        work.go.set()
        assert [["A"], ["B"], [1], [True]] == [future.result(TIMEOUT_S) for future in futures]


def test_all_get_the_failure(stock, work):
    error = ValueError("broken")
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(stock, error)
        assert work.started.acquire(timeout=TIMEOUT_S)
        others = waiting(pool, stock, error, 2)
        work.go.set()
        assert [error] * 3 == [future.exception(TIMEOUT_S) for future in (first, *others)]
    assert 1 == work.runs


def test_function_that_calls_itself_does_not_wait_for_itself(mesh):
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]})
    depth: list[int] = []

    @decorate(mesh, "inventory", method="GET", collapse=True)
    def again(endpoint: Endpoint) -> int:
        depth.append(1)
        return len(depth) if len(depth) == 3 else again()

    assert 3 == again()


def test_waiting_ends_with_the_time_of_the_one_who_waits(mesh, work):
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]})

    @decorate(mesh, "inventory", method="GET", collapse=True)
    def stock(endpoint: Endpoint, value: Any) -> Any:
        return work(value)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(stock, "A")
        assert work.started.acquire(timeout=TIMEOUT_S)
        with entered(InboundContext(deadline=mesh.clock() + 0.05)):
            second = pool.submit(carry(stock), "A")
        assert isinstance(second.exception(TIMEOUT_S), DeadlineExceeded)
        work.go.set()
        assert ["A"] == first.result(TIMEOUT_S)
    assert 1 == work.runs


async def test_async_calls_are_one(mesh):
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]})
    runs: list[str] = []
    go = asyncio.Event()

    @decorate(mesh, "inventory", method="GET", collapse=True)
    async def stock(endpoint: Endpoint, sku: str) -> list[str]:
        runs.append(sku)
        await go.wait()
        return [sku]

    tasks = [asyncio.create_task(stock("A")) for _ in range(4)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert ["A"] == runs
    go.set()
    results = await asyncio.gather(*tasks)
    assert all(result is results[0] for result in results)
    assert (0, 0) == mesh.held("c")


async def test_when_the_first_is_cancelled_another_takes_its_place(mesh):
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]})
    runs: list[str] = []
    go = asyncio.Event()

    @decorate(mesh, "inventory", method="GET", collapse=True)
    async def stock(endpoint: Endpoint, sku: str) -> str:
        runs.append(sku)
        await go.wait()
        return sku

    first, *others = [asyncio.create_task(stock("A")) for _ in range(3)]
    for _ in range(10):
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    for _ in range(10):
        await asyncio.sleep(0)
    assert ["A", "A"] == runs
    go.set()
    assert ["A", "A"] == await asyncio.gather(*others)
    assert (0, 0) == mesh.held("c")


async def test_who_waits_can_be_cancelled_alone(mesh):
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]})
    go = asyncio.Event()

    @decorate(mesh, "inventory", method="GET", collapse=True)
    async def stock(endpoint: Endpoint) -> str:
        await go.wait()
        return "done"

    first, second = asyncio.create_task(stock()), asyncio.create_task(stock())
    for _ in range(10):
        await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    go.set()
    assert "done" == await first


def test_functions_are_shared_on_trio_too(mesh):
    trio = pytest.importorskip("trio")
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]})
    runs: list[int] = []

    @decorate(mesh, "inventory", method="GET", collapse=True)
    async def stock(endpoint: Endpoint) -> str:
        runs.append(1)
        await anyio.sleep(0.01)
        return "done"

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(stock)

    trio.run(main)
    assert [1] == runs


class Shop:
    """An upstream as seen by a function: what it answers, and how often it was asked."""

    def __init__(self, **headers: str) -> None:
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.asked: list[dict[str, str] | None] = []
        self.error: Exception | None = None

    def get(self, headers: dict[str, str] | None = None) -> httpx.Response:
        self.asked.append(headers)
        if self.error is not None:
            raise self.error
        request = httpx.Request("GET", "http://inventory/", headers=headers)
        return httpx.Response(200, headers=self.headers, content=b"%d" % len(self.asked), request=request)


def cached(mesh, shop: Shop, cache: ResponseCache, **options: Any) -> Any:
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]})

    @decorate(mesh, "inventory", method="GET", cache=cache, **options)
    def stock(endpoint: Endpoint, sku: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return shop.get(headers)

    return stock


def test_fresh_responses_are_handed_out_again(mesh):
    shop, cache = Shop(cache_control="max-age=60"), ResponseCache()
    stock = cached(mesh, shop, cache)
    assert ["1", "1", "2"] == [stock("A").text, stock("A").text, stock("B").text]
    assert (2, 1) == (cache.statistics().entries, cache.statistics().hits)


def test_headers_among_the_arguments_tell_calls_apart(mesh):
    shop = Shop(cache_control="max-age=60", vary="accept-language")
    stock = cached(mesh, shop, ResponseCache())
    languages = [{"accept-language": name} for name in ("de", "en", "de")]
    assert ["1", "2", "1"] == [stock("A", one).text for one in languages]
    assert "1" == stock("A", headers={"accept-language": "de"}).text, "the same argument, given by name"
    assert "1" == stock(headers={"accept-language": "de"}, sku="A").text


def test_caller_may_insist(mesh):
    shop = Shop(cache_control="max-age=60")
    stock = cached(mesh, shop, ResponseCache())
    insist = {"Cache-Control": "no-cache"}
    assert ["1", "2"] == [stock("A", headers=insist).text for _ in range(2)]


def test_old_response_stands_in_for_a_failure(mesh):
    shop = Shop(cache_control="max-age=0, stale-if-error=60")
    stock = cached(mesh, shop, ResponseCache(), fallback="nothing")
    assert "1" == stock("A").text
    shop.error = ConnectionRefusedError(111, "refused")
    assert "1" == stock("A").text
    assert "nothing" == stock("B")


def test_answers_of_the_service_are_no_failures(mesh):
    shop = Shop(cache_control="max-age=0, stale-if-error=60")
    stock = cached(mesh, shop, ResponseCache(), ignore=(KeyError,))
    stock("A")
    shop.error = KeyError("A")
    with pytest.raises(KeyError):
        stock("A")


async def test_async_functions_use_the_cache_and_collapse(mesh):
    shop = Shop(cache_control="max-age=60")
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]})

    @decorate(mesh, "inventory", method="GET", cache=ResponseCache(), collapse=True)
    async def stock(endpoint: Endpoint, sku: str) -> httpx.Response:
        await asyncio.sleep(0)
        return shop.get()

    first = await asyncio.gather(stock("A"), stock("A"))
    assert ["1", "1", "1"] == [response.text for response in (*first, await stock("A"))]
    shop.error = ConnectionRefusedError(111, "refused")
    with pytest.raises(ConnectionRefusedError):
        await stock("B")


def test_own_key_tells_calls_apart(mesh):
    shop = Shop(cache_control="max-age=60")
    stock = cached(mesh, shop, ResponseCache(), key=lambda sku, headers=None: sku.lower())
    assert ["1", "1"] == [stock("A").text, stock("a").text]


def test_arguments_that_cannot_be_told_apart_are_a_clear_error(mesh):
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]})

    @decorate(mesh, "inventory", method="GET", collapse=True)
    def stock(endpoint: Endpoint, sku: Any) -> int:
        return 1

    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

    assert 1 == stock({"a": [1, {2}], "b": bytearray(b"x")})
    with pytest.raises(TypeError, match=r"stock: calls with these arguments cannot be told apart.*key="):
        stock(Unhashable())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"collapse": True}, "collapse=True needs method='GET'"),
        ({"method": "HEAD", "cache": ResponseCache()}, "cache= needs method='GET'"),
        ({"method": "GET", "key": lambda: 0}, "key= has no effect"),
    ],
)
def test_options_that_make_no_sense_are_refused(mesh, options, text):
    with pytest.raises(ValueError, match=text):
        decorate(mesh, "inventory", **options)(lambda endpoint: None)
