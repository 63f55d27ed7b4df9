"""MeshMiddleware for ASGI."""

from typing import Any

import pytest

from meshlib.integrations.asgi import MeshMiddleware
from meshlib.model.filters import ListedLimit, LocalRateLimit, TokenBucket
from meshlib.model.matcher import Fraction
from meshlib.runtime.context import current_request


def scope(method: str = "GET", pem: str | None = None, kind: str = "http", **changes: Any) -> dict[str, Any]:
    result: dict[str, Any] = {
        "type": kind,
        "method": method,
        "scheme": "http",
        "path": "/users/a b",
        "raw_path": b"/users/a%20b",
        "query_string": b"x=1",
        "headers": [(b"host", b"users"), (b"x-envoy-expected-rq-timeout-ms", b"900")],
        "client": ("127.0.0.1", 5),
        "server": ("127.0.0.1", 80),
    }
    if pem is not None:
        result["extensions"] = {"tls": {"client_cert_chain": [pem], "client_cert_error": None}}
    return result | changes


class App:
    def __init__(self, status: int = 200, error: Exception | None = None) -> None:
        self.status = status
        self.error = error
        self.calls = 0
        self.principal = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        if scope["type"] == "lifespan":
            return
        context = current_request()
        assert context is not None
        self.principal = context.principal
        if self.error is not None:
            raise self.error
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})


async def call(middleware: MeshMiddleware, request: dict[str, Any]) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    await middleware(request, receive, send)
    return sent


async def test_request_passes_with_the_callers_identity(server_mesh: Any, gateway_rules: Any, gateway_pem: str) -> None:
    server_mesh.rules(gateway_rules("GET"))
    app = App()
    sent = await call(MeshMiddleware(app, mesh=server_mesh, service="users"), scope(pem=gateway_pem))
    assert [200, b"hello"] == [sent[0]["status"], sent[1]["body"]]
    assert "spiffe://cluster.local/ns/default/sa/gateway" == app.principal
    (event,) = server_mesh.served
    assert ("users", "GET", "/users/a%20b?x=1", 200) == (event.service, event.method, event.path, event.status)


async def test_refusal_never_reaches_the_application(server_mesh: Any, gateway_rules: Any, gateway_pem: str) -> None:
    server_mesh.rules(gateway_rules("GET"))
    app = App()
    sent = await call(MeshMiddleware(app, mesh=server_mesh), scope("DELETE", gateway_pem))
    assert [403, b"RBAC: access denied"] == [sent[0]["status"], sent[1]["body"]]
    assert 0 == app.calls
    assert [True] == [event.denied for event in server_mesh.served]


async def test_certificate_that_the_server_did_not_accept_counts_for_nothing(
    server_mesh: Any, gateway_rules: Any, gateway_pem: str
) -> None:
    server_mesh.rules(gateway_rules("GET"))
    tls = {"client_cert_chain": [gateway_pem], "client_cert_error": "expired"}
    sent = await call(MeshMiddleware(App(), mesh=server_mesh), scope(extensions={"tls": tls}))
    assert 403 == sent[0]["status"]


async def test_first_request_waits_for_its_listener(server_mesh: Any) -> None:
    server_mesh.inbound("127.0.0.1:80").on_wait = lambda: server_mesh.rules()
    sent = await call(MeshMiddleware(App(), mesh=server_mesh), scope())
    assert 200 == sent[0]["status"]


async def test_error_of_the_application_is_reported_as_500(server_mesh: Any) -> None:
    server_mesh.rules()
    with pytest.raises(ValueError, match="boom"):
        await call(MeshMiddleware(App(error=ValueError("boom")), mesh=server_mesh), scope())
    assert [500] == [event.status for event in server_mesh.served]
    assert current_request() is None


async def test_websocket_is_refused_with_policy_violation(server_mesh: Any, gateway_rules: Any) -> None:
    server_mesh.rules(gateway_rules("GET"))
    request = scope(kind="websocket")
    del request["method"]
    sent = await call(MeshMiddleware(App(), mesh=server_mesh), request)
    assert [("websocket.close", 1008)] == [(message["type"], message["code"]) for message in sent]


async def test_lifespan_passes_untouched(server_mesh: Any) -> None:
    app = App()
    await call(MeshMiddleware(app, mesh=server_mesh), {"type": "lifespan"})
    assert 1 == app.calls
    assert [] == server_mesh.served


async def test_given_address_beats_the_connections(server_mesh: Any) -> None:
    server_mesh.rules(address="10.0.0.1:8080")
    sent = await call(MeshMiddleware(App(), mesh=server_mesh, address="10.0.0.1:8080"), scope())
    assert 200 == sent[0]["status"]


async def test_what_a_limit_says_goes_to_the_caller(server_mesh: Any) -> None:
    limit = LocalRateLimit(TokenBucket(1, 1, 600.0), Fraction(100), Fraction(100), tells_limits=True)
    server_mesh.rules(limits=(ListedLimit("limit", limit),))
    app = App()
    middleware = MeshMiddleware(app, mesh=server_mesh)
    left = (b"x-ratelimit-remaining", b"0")
    for status, body in ((200, b"hello"), (429, b"local_rate_limited")):
        sent = await call(middleware, scope())
        assert [status, body] == [sent[0]["status"], sent[1]["body"]]
        assert left in sent[0]["headers"]
    assert 1 == app.calls
