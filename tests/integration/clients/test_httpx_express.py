"""HTTP requests that go well without a `Call`, and those that begin so and go on with one, end as all others do.

First come tests of this folder once more, with a mesh whose requests go that way from the first one on. Then two meshes are
compared by what servers, callers and metrics see.
"""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from httpx_drivers import opened

from meshlib.admin.metrics import StandardMetrics
from meshlib.call import Call
from meshlib.clients import httpx_express
from meshlib.clients.httpx_async import AsyncMeshTransport
from meshlib.errors import IdentityError
from meshlib.events import Event
from meshlib.model.cluster import CircuitBreakers
from meshlib.model.headers import NO_MUTATION, HeaderAdd, HeaderMutation
from meshlib.model.matcher import PathKind, PathMatcher
from meshlib.model.profile import HTTP
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import InternalRedirectPolicy, Route, RouteAction, RouteMatcher, SingleCluster
from meshlib.runtime.context import InboundContext, entered
from meshlib.view import TargetView, View

from . import (
    test_cancellation,
    test_connection_life,
    test_connection_limits,
    test_faults,
    test_httpx_behaviours,
    test_mtls,
)
from .conftest import FakeMesh
from .test_mtls import CHECKOUT, ORDERS, Authority, exactly, expecting

RETRY = RetryPolicy(frozenset({"connect-failure", "reset", "gateway-error"}), num_retries=2, base_interval_s=0.001)
authority, tls_server, flaky = test_mtls.authority, test_mtls.tls_server, test_cancellation.flaky
driver = test_connection_life.driver
DRIVERS = ["sync", "asyncio", "uvloop", "trio"]


class ExpressMesh(FakeMesh):
    """A mesh whose calls a meter counts. Routes have their ways before the first request."""

    def __init__(self, *, is_express: bool = True) -> None:
        super().__init__()
        self.is_express = is_express
        self._meter: Any = StandardMetrics()

    def _express(self, target: TargetView) -> tuple[View, StandardMetrics | None] | None:
        is_same = self.view.targets.get(target.name) is target
        return (self.view, self._meter) if self.is_express and is_same else None

    def emit(self, event: Event) -> None:
        super().emit(event)
        if self._meter is not None:
            self._meter(event)

    def serve(self, name: str, clusters: Any, **options: Any) -> None:
        super().serve(name, clusters, **options)
        target = self.target(name)
        assert target is not None
        head = RequestHead("GET", name, "/", Headers(), profile=HTTP)
        call = Call(target, head, rng=self.rng, now=self.clock())
        call.start(self.clock())
        call.close(self.clock())


@pytest.fixture
def mesh() -> ExpressMesh:
    return ExpressMesh()


class Taken:
    """Counts the requests that ended without a `Call`."""

    def __init__(self) -> None:
        self.count = 0


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    found, ended = Taken(), httpx_express.Begun.ended

    def counted(self: httpx_express.Begun, status: int) -> None:
        found.count += 1
        ended(self, status)

    monkeypatch.setattr(httpx_express.Begun, "ended", counted)
    return found


# Once more.


@pytest.mark.parametrize("name", ["sync", "asyncio", "trio"])
@pytest.mark.parametrize("row", test_httpx_behaviours.TABLE, ids=lambda row: row.__name__)
def test_behaviour(row: Any, name: str, mesh: ExpressMesh, http_server: Any) -> None:
    test_httpx_behaviours.test_behaviour(row, name, mesh, http_server)


test_trailers = test_httpx_behaviours.test_trailers_are_there_once_the_body_is_read
test_takeover = test_httpx_behaviours.test_connection_can_be_taken_over_by_another_protocol
test_cancelled_asyncio = test_cancellation.test_asyncio
test_cancelled_retries = test_cancellation.test_asyncio_with_retries_of_responses
test_cancelled_tls = test_cancellation.test_tls
test_cancelled_trio = test_cancellation.test_trio
test_resets = test_faults.test_reset_is_repeated_where_the_route_says_so
test_slow_servers = test_faults.test_slow_servers_are_given_up_when_the_time_of_the_call_is_over
test_half_open_peers = test_faults.test_half_open_peers_are_found_out
test_early_answers = test_faults.test_answer_before_the_request_is_read_is_given
test_no_http = test_faults.test_what_is_no_http_is_refused
test_longer_bodies = test_faults.test_body_longer_than_declared_ends_where_declared
test_resent = test_connection_life.test_request_that_a_dead_connection_took_nothing_of_is_sent_again
test_not_resent = test_connection_life.test_post_that_may_have_been_processed_is_not_sent_again
test_endpoints_gone = test_connection_life.test_connections_of_an_endpoint_that_is_gone_are_let_go
test_requests_per_connection = test_connection_life.test_connections_carry_no_more_requests_than_allowed
test_unix_sockets = test_connection_life.test_unix_sockets
test_pending_overflow = test_connection_limits.test_too_many_who_wait_get_an_overflow_that_is_not_retried
test_pending_overflow_async = test_connection_limits.test_async_requests_wait_and_overflow_alike
test_identities = test_mtls.test_wrong_identity_gets_no_application_byte
test_identities_async = test_mtls.test_wrong_identity_gets_no_application_byte_async
test_missing_secrets = test_mtls.test_missing_secret_is_an_error_and_never_plaintext
test_expired = test_mtls.test_expired_certificate_of_ours_is_never_used
test_rotation = test_mtls.test_rotation_moves_to_new_connections_without_a_failed_call


# Compared.


def get(client: Any) -> Any:
    return client.get("http://checkout/orders?id=1", headers={"X-User": "ann", "Cookie": "a=b"})


def post(client: Any) -> Any:
    return client.post("http://checkout/", json={"card": 1})


def asking(client: Any) -> Any:
    return client.get("http://checkout/", headers={"x-envoy-upstream-rq-timeout-ms": "7000"})


def https(client: Any) -> Any:
    return client.get("https://checkout/")


def sent_to(server: Any) -> list[Any]:
    """Return what has reached a server. What retries say of the time left depends on the machine."""
    requests = []
    for method, path, headers, body in server.requests:
        if "x-meshlib-attempt" in headers:
            del headers["x-envoy-expected-rq-timeout-ms"]
        requests.append((method, path, headers, body))
    return requests


def compare(
    name: str, calls: Callable[[Any, ExpressMesh], Iterator[Callable[[], Any]]], addresses: Callable[[], list[str]]
) -> list[list[Any]]:
    """Make the same requests with either mesh; returns what their callers see, and what they were counted as.

    Args:
        calls: Publishes the service, and gives the requests.
        addresses: Names the endpoints anew, which differ.
    """
    seen = []
    for is_express in (True, False):
        mesh = ExpressMesh(is_express=is_express)
        found: list[Any] = []
        with opened(name, mesh) as driver:
            for call in calls(driver, mesh):
                try:
                    response = call()
                    found += [response.status_code, response.text]
                    found += [item for item in response.headers.multi_items() if item[0] != "date"]
                    found += [response.headers.encoding, sorted(response.extensions), response.extensions["mesh"]]
                except httpx.TransportError as error:
                    record: Any = error.mesh  # type: ignore[attr-defined]
                    found += [type(error), str(error), type(record), record.flag, record.endpoints, record.attempts]
                assert mesh.held("c") == (0, 0)
                found.append(sorted((sample.labels, sample.count) for sample in mesh._meter.requests()))
                found.append(sorted(mesh._meter.attempts().items()))
        text = [repr(what) for what in found]
        for number, address in enumerate(addresses()):
            text = [what.replace(address, f"endpoint {number}") for what in text]
        seen.append(text)
    return seen


@pytest.mark.parametrize("name", DRIVERS)
@pytest.mark.parametrize("ask", [get, post, asking, https], ids=lambda ask: ask.__name__)
def test_answers_come_to_the_same(name: str, ask: Callable[[Any], Any], taken: Taken, http_server: Any) -> None:
    """Good and bad ones, with retries; and what reaches the server."""
    servers: list[Any] = []

    def calls(driver: Any, mesh: ExpressMesh) -> Iterator[Callable[[], Any]]:
        left = iter([200, 404, 503, 200, 503, 503, 503, 500, 204, 200, 200])

        def answer(handler: Any, body: bytes) -> None:
            status = next(left)
            handler.send_response(status)
            if status != 204:
                handler.send_header("content-length", "5")
            handler.end_headers()
            if status != 204:
                handler.wfile.write(b"hello")

        servers.append(http_server(answer=answer))
        mesh.serve("checkout", {"c": [servers[-1].address]}, retry=RETRY)
        client = driver.client()
        for _ in range(7):
            yield lambda: ask(client)

    express, general = compare(name, calls, lambda: [server.address for server in servers[-1:]])
    assert express == general
    assert sent_to(servers[0]) == sent_to(servers[1])
    assert (taken.count > 2) == (ask in (get, post))


SENDS = HeaderMutation(request_remove=("cookie",), request_add=(HeaderAdd("x-path", "%REQ(:PATH)%"),))
ANSWERS = HeaderMutation(response_add=(HeaderAdd("x-code", "%RESPONSE_CODE%"),))


@pytest.mark.parametrize("name", DRIVERS)
@pytest.mark.parametrize(
    ("mutation", "options"),
    [
        (SENDS, {"host_rewrite_literal": "inner", "prefix_rewrite": "/new/"}),
        (ANSWERS, {}),
        (NO_MUTATION, {"internal_redirect": InternalRedirectPolicy(max_redirects=2)}),
    ],
    ids=["requests", "answers", "redirects"],
)
def test_routes_that_change_something_come_to_the_same(
    name: str, mutation: HeaderMutation, options: dict[str, Any], taken: Taken, http_server: Any
) -> None:
    """A response that has to be changed, or looked into, is the general machine's business from there on."""
    servers: list[Any] = []

    def calls(driver: Any, mesh: ExpressMesh) -> Iterator[Callable[[], Any]]:
        left = iter([200, 302, 503, 200, 404])

        def answer(handler: Any, body: bytes) -> None:
            status = next(left, 200)
            handler.send_response(status)
            if status == 302:
                handler.send_header("location", "http://checkout/elsewhere")
            handler.send_header("content-length", "5")
            handler.end_headers()
            handler.wfile.write(b"hello")

        servers.append(http_server(answer=answer))
        action = RouteAction(SingleCluster("c"), retry=RETRY, **options)
        path = RouteMatcher(PathMatcher(PathKind.PREFIX, "/"))
        mesh.serve("checkout", {"c": [servers[-1].address]}, route=Route(path, action, mutation=mutation))
        client = driver.client()
        for _ in range(4):
            yield lambda: get(client)

    express, general = compare(name, calls, lambda: [server.address for server in servers[-1:]])
    assert express == general
    assert sent_to(servers[0]) == sent_to(servers[1])
    assert (taken.count > 2) == (mutation is SENDS)


@pytest.mark.parametrize("name", DRIVERS)
@pytest.mark.parametrize("wire", [test_faults.LENGTH, test_faults.CHUNKED], ids=["length", "chunked"])
def test_responses_that_break_off_come_to_the_same(name: str, wire: bytes, raw_server: Any) -> None:
    addresses: list[str] = []

    def calls(driver: Any, mesh: ExpressMesh) -> Iterator[Callable[[], Any]]:
        lengths = iter([len(wire), len(wire) - 3, 30, len(wire), len(wire) - 1, len(wire)])

        def serve(connection: socket.socket, number: int) -> None:
            while test_faults.read_request(connection):
                length = next(lengths)
                connection.sendall(wire[:length])
                if length < len(wire):
                    if length % 2:
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
            connection.close()

        addresses[:] = [raw_server(serve).address]
        mesh.serve("checkout", {"c": addresses})
        client = driver.client()
        for _ in range(6):
            yield lambda: get(client)

    express, general = compare(name, calls, lambda: addresses)
    assert express == general


@pytest.mark.parametrize("name", DRIVERS)
@pytest.mark.parametrize("case", ["dead", "overflow", "nowhere", "tls"])
def test_requests_that_reach_nobody_come_to_the_same(
    name: str, case: str, http_server: Any, dead_address: str, authority: Authority
) -> None:
    server = http_server()

    def calls(driver: Any, mesh: ExpressMesh) -> Iterator[Callable[[], Any]]:
        where, options = [server.address], {}
        match case:
            case "dead":
                where = [dead_address, server.address]
                options = {"retry": RETRY}
            case "overflow":
                options = {"circuit_breakers": CircuitBreakers(max_requests=0)}
            case "nowhere":
                where = []
            case _:
                options = {"tls": expecting(exactly(CHECKOUT))}  # without a secret
        mesh.serve("checkout", {"c": where}, **options)
        client = driver.client()
        for _ in range(4):
            yield lambda: get(client)

    express, general = compare(name, calls, lambda: [server.address, dead_address])
    assert express == general


@pytest.mark.parametrize("name", ["sync", "asyncio"])
def test_what_is_being_served_has_its_say(name: str, mesh: ExpressMesh, http_server: Any, taken: Taken) -> None:
    """Its deadline holds, and some of its headers go on."""
    server = http_server()
    mesh.serve("checkout", {"c": [server.address]})
    with opened(name, mesh) as driver:
        client = driver.client()
        with entered(InboundContext(mesh.clock() + 5, handed_on=(("x-request-id", "7"),))):
            get(client)
        get(client)
        with entered(InboundContext(mesh.clock() - 1)), pytest.raises(httpx.ReadTimeout):
            get(client)
    first, second = (headers for _, _, headers, _ in server.requests)
    assert ("7", None) == (first.get("x-request-id"), second.get("x-request-id"))
    assert int(first["x-envoy-expected-rq-timeout-ms"]) <= 5000
    assert "15000" == second["x-envoy-expected-rq-timeout-ms"]
    assert (taken.count, mesh.held("c")) == (2, (0, 0))


@pytest.mark.parametrize("name", ["sync", "asyncio"])
def test_hooks_hear_of_everything(name: str, http_server: Any, taken: Taken) -> None:
    seen = []
    server = http_server(404, b"no")
    for is_express in (True, False):
        mesh = ExpressMesh(is_express=is_express)
        mesh._meter = None  # somebody takes events
        with opened(name, mesh) as driver:
            mesh.serve("checkout", {"c": [server.address]})
            mesh.events.clear()
            get(driver.client())
        seen.append([replace(event, duration_s=0.0) for event in mesh.events])  # type: ignore[type-var]
    assert seen[0] == seen[1]
    assert ["AttemptFinished", "CallFinished"] == [type(event).__name__ for event in seen[0]]
    assert taken.count == 1


@pytest.mark.parametrize("name", ["sync", "asyncio"])
def test_certificate_that_has_expired_meanwhile_is_not_used(
    name: str, mesh: ExpressMesh, authority: Authority, tls_server: Any, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = tls_server(authority.issue(CHECKOUT))
    secrets = {"default": authority.issue(ORDERS), "ROOTCA": authority.root}
    mesh.serve("checkout", {"c": [server.address]}, tls=expecting(exactly(CHECKOUT)), secrets=secrets)

    def expired(*arguments: Any, **options: Any) -> Any:
        raise IdentityError("expired")

    with opened(name, mesh) as driver:
        client = driver.client()
        assert ORDERS == get(client).text
        assert ORDERS == get(client).text
        assert (taken.count, server.handshakes) == (2, 1)
        monkeypatch.setattr("meshlib.clients.httpx_common.client_context", expired)
        monkeypatch.setattr("meshlib.clients.httpx_express.wall", lambda: 1e11)
        with pytest.raises(httpx.ConnectError) as caught:
            get(client)
    assert isinstance(caught.value.mesh, IdentityError)  # type: ignore[attr-defined]
    assert (mesh.held("c"), taken.count) == ((0, 0), 2)


async def test_requests_at_once_share_connections_and_are_counted(
    mesh: ExpressMesh, http_server: Any, taken: Taken
) -> None:
    server = http_server(200, b"ok")
    mesh.serve("checkout", {"c": [server.address]})
    async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh), timeout=30) as client:
        for _ in range(3):
            found = await asyncio.gather(*(client.get("http://checkout/") for _ in range(20)))
            assert [200] * 20 == [one.status_code for one in found]
    assert (taken.count, mesh.held("c"), mesh.cluster("c").breaker.connections) == (60, (0, 0), 0)
    assert {("c", "2xx"): 60} == mesh._meter.attempts()
