"""Functions under the policy of a service."""

import asyncio
import socket
import time
import urllib.request
from urllib.error import HTTPError

import httpx
import pytest
import requests
import urllib3

from meshlib.clients.function import decorate
from meshlib.errors import DeadlineExceeded, UnavailableError
from meshlib.model.cluster import CircuitBreakers, OutlierDetection
from meshlib.model.endpoint import Endpoint
from meshlib.model.retry import RetryPolicy

RETRY = RetryPolicy(frozenset({"connect-failure", "reset", "5xx"}), num_retries=3, base_interval_s=0.001)


def dial(endpoint: Endpoint) -> str:
    with socket.create_connection((endpoint.host, endpoint.port), timeout=2):
        return endpoint.address


def test_function_gets_the_picked_endpoint_first(mesh):
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]})

    @decorate(mesh, "inventory")
    def stock(endpoint: Endpoint, sku: str, *, depth: int = 1) -> tuple[str, str, int]:
        return endpoint.address, sku, depth

    assert stock("A", depth=2) == ("10.0.0.1:80", "A", 2)
    assert mesh.held("c") == (0, 0)


def test_parameter_called_endpoint_gets_it_wherever_it_is(mesh):
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]})

    class Shop:
        @decorate(mesh, "inventory")
        def stock(self, endpoint: Endpoint, sku: str) -> tuple[str, str]:
            return endpoint.address, sku

    @decorate(mesh, "inventory")
    def by_name(sku: str, *, endpoint: Endpoint | None = None) -> tuple[str, str]:
        assert endpoint is not None
        return endpoint.address, sku

    assert Shop().stock("A") == ("10.0.0.1:80", "A")
    assert by_name("B") == ("10.0.0.1:80", "B")


def test_connect_failure_goes_to_another_endpoint(mesh, http_server, dead_address):
    server = http_server()
    mesh.serve("inventory", {"c": [dead_address, server.address]}, retry=RETRY)
    call = decorate(mesh, "inventory")(dial)
    assert [server.address] * 4 == [call() for _ in range(4)]


def by_requests(endpoint: Endpoint) -> str:
    return requests.post(f"http://{endpoint.address}/", b"x", timeout=5).text


def by_urllib(endpoint: Endpoint) -> str:
    with urllib.request.urlopen(f"http://{endpoint.address}/", b"x", timeout=5) as answer:
        return answer.read().decode()


def by_urllib3(endpoint: Endpoint) -> str:
    with urllib3.PoolManager(retries=False) as pool:
        return pool.request("POST", f"http://{endpoint.address}/").data.decode()


@pytest.mark.parametrize("function", [by_requests, by_urllib, by_urllib3])
def test_refused_connections_of_other_libraries_go_to_another_endpoint(mesh, http_server, dead_address, function):
    """A POST: only because nothing was sent. What is not found is an answer, that says nothing bad of the endpoint."""
    server = http_server()
    mesh.serve("inventory", {"c": [dead_address, server.address]}, retry=RETRY)
    call = decorate(mesh, "inventory")(function)
    assert ["ok"] * 4 == [call() for _ in range(4)]
    assert 4 == len(server.requests)


def by_requests_checked(endpoint: Endpoint) -> str:
    answer = requests.get(f"http://{endpoint.address}/", timeout=5)
    answer.raise_for_status()
    return answer.text


@pytest.mark.parametrize(("function", "kind"), [(by_requests_checked, requests.HTTPError), (by_urllib, HTTPError)])
def test_what_is_not_found_by_other_libraries_is_an_answer(mesh, http_server, function, kind):
    server = http_server(status=404)
    outlier = OutlierDetection(consecutive_5xx=1, max_ejection_percent=100)
    mesh.serve("inventory", {"c": [server.address]}, retry=RETRY, outlier_detection=outlier)
    call = decorate(mesh, "inventory", method="GET")(function)
    for _ in range(3):
        with pytest.raises(kind) as caught:
            call()
        if isinstance(caught.value, HTTPError):
            caught.value.close()
    assert 3 == len(server.requests), "none was repeated"
    assert not mesh.cluster("c").states[server.address].is_ejected


async def test_async_connect_failure_goes_to_another_endpoint(mesh, http_server, dead_address):
    server = http_server()
    mesh.serve("inventory", {"c": [dead_address, server.address]}, retry=RETRY)

    @decorate(mesh, "inventory")
    async def get(endpoint: Endpoint) -> str:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"http://{endpoint.address}/")).text

    assert [await get() for _ in range(3)] == ["ok"] * 3
    assert mesh.held("c") == (0, 0)


def test_last_exception_is_raised_with_a_note_of_the_mesh(mesh, dead_address):
    mesh.serve("inventory", {"c": [dead_address]}, retry=RETRY)
    with pytest.raises(ConnectionRefusedError) as caught:
        decorate(mesh, "inventory")(dial)()
    (note,) = caught.value.__notes__
    assert "cluster 'c'" in note
    assert "attempts 4" in note


def test_exception_after_sending_is_not_repeated_unless_the_method_says_so(mesh):
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]}, retry=RETRY)
    tries: list[str] = []

    def fail(endpoint: Endpoint) -> None:
        tries.append(endpoint.address)
        raise ConnectionResetError("gone")

    with pytest.raises(ConnectionResetError):
        decorate(mesh, "inventory")(fail)()
    assert len(tries) == 1
    with pytest.raises(ConnectionResetError):
        decorate(mesh, "inventory", method="GET")(fail)()
    assert len(tries) == 5


def test_fallback_value_and_function_replace_failures(mesh, dead_address):
    mesh.serve("inventory", {"c": [dead_address]}, retry=RETRY)

    def stock(endpoint: Endpoint, sku: str) -> str:
        return dial(endpoint)

    assert decorate(mesh, "inventory", fallback="none")(stock)("A") == "none"
    assert decorate(mesh, "inventory", fallback=lambda sku: f"cached {sku}")(stock)("A") == "cached A"


async def test_async_fallback_is_awaited(mesh, dead_address):
    mesh.serve("inventory", {"c": [dead_address]})

    async def cached(sku: str) -> str:
        return f"cached {sku}"

    @decorate(mesh, "inventory", fallback=cached)
    async def stock(endpoint: Endpoint, sku: str) -> str:
        raise ConnectionRefusedError(111, "refused")

    assert await stock("A") == "cached A"


def test_unknown_service_falls_back_too(mesh):
    assert decorate(mesh, "nowhere", fallback=7)(dial)() == 7


def test_no_endpoint_raises_the_error_of_the_mesh(mesh):
    mesh.serve("inventory", {"c": []})
    with pytest.raises(UnavailableError) as caught:
        decorate(mesh, "inventory")(dial)()
    assert caught.value.flag == "UH"


def test_ignored_exceptions_are_answers(mesh):
    """A missing key is no fault of the endpoint: it is not ejected, and neither retry nor fallback apply."""
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]}, retry=RETRY, outlier_detection=OutlierDetection(consecutive_5xx=1))
    tries: list[str] = []

    @decorate(mesh, "inventory", method="GET", fallback=0, ignore=(KeyError,))
    def stock(endpoint: Endpoint, sku: str) -> int:
        tries.append(sku)
        raise KeyError(sku)

    with pytest.raises(KeyError):
        stock("A")
    assert tries == ["A"]
    assert not mesh.cluster("c").states["10.0.0.1:80"].is_ejected


def test_exceptions_count_against_the_endpoint(mesh):
    outlier = OutlierDetection(consecutive_5xx=3, max_ejection_percent=100)
    mesh.serve("inventory", {"c": ["10.0.0.1:80", "10.0.0.2:80"]}, outlier_detection=outlier)

    @decorate(mesh, "inventory")
    def stock(endpoint: Endpoint) -> str:
        if endpoint.address == "10.0.0.1:80":
            raise ValueError("bad answer")
        return endpoint.address

    for _ in range(8):
        try:
            stock()
        except ValueError:
            continue
    assert mesh.cluster("c").states["10.0.0.1:80"].is_ejected


async def test_slow_coroutine_is_cancelled_when_its_time_is_over(mesh):
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]})
    cancelled = asyncio.Event()

    @decorate(mesh, "inventory", timeout_s=0.05)
    async def slow(endpoint: Endpoint) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    start = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await slow()
    assert time.monotonic() - start < 25
    assert cancelled.is_set()
    assert mesh.held("c") == (0, 0)


def test_blocking_function_is_told_its_time(mesh):
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]})

    @decorate(mesh, "inventory", timeout_s=10.0)
    def stock(endpoint: Endpoint, *, timeout_s: float | None = None) -> float | None:
        return timeout_s

    told = stock()
    assert told is not None
    assert 5.0 < told <= 10.0


async def test_cancelling_the_caller_releases_what_is_held(mesh):
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]})
    running = asyncio.Event()

    @decorate(mesh, "inventory")
    async def wait(endpoint: Endpoint) -> None:
        running.set()
        await asyncio.sleep(30)

    task = asyncio.create_task(wait())
    await running.wait()
    assert mesh.held("c") == (1, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert mesh.held("c") == (0, 0)


def test_limit_of_requests_applies(mesh):
    mesh.serve("inventory", {"c": ["10.0.0.1:80"]}, circuit_breakers=CircuitBreakers(max_requests=1))

    @decorate(mesh, "inventory", fallback="full")
    def inner(endpoint: Endpoint) -> str:
        return "taken"

    @decorate(mesh, "inventory")
    def outer(endpoint: Endpoint) -> str:
        return inner()

    assert outer() == "full"


def test_disabled_mesh_calls_the_name_of_the_service(mesh):
    mesh.is_disabled = True
    assert decorate(mesh, "inventory")(lambda endpoint: endpoint.address)() == "inventory:80"


def test_generator_functions_are_refused(mesh):
    def numbers(endpoint: Endpoint):
        yield 1

    with pytest.raises(TypeError, match="generator"):
        decorate(mesh, "inventory")(numbers)
