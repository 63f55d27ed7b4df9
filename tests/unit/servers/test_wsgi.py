"""MeshMiddleware for WSGI."""

import contextvars
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from meshlib.integrations.wsgi import MeshMiddleware
from meshlib.model.filters import ListedLimit, LocalRateLimit, TokenBucket
from meshlib.model.matcher import Fraction
from meshlib.runtime.context import current_request, remaining_s


def environ(**changes: Any) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/users/a b",
        "RAW_URI": "/users/a%20b?x=1",
        "QUERY_STRING": "x=1",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "80",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "users",
        "wsgi.url_scheme": "http",
        "gunicorn.socket": Connection(),
    } | changes


class Connection:
    """What gunicorn shows of a connection."""

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 80)

    def getpeername(self) -> tuple[str, int]:
        return ("127.0.0.1", 5)


class Recorder:
    status = ""
    headers: Any = ()

    def __call__(self, status: str, headers: Any, *rest: Any) -> Any:
        self.status = status
        self.headers = headers


def test_request_passes_within_its_context(server_mesh: Any) -> None:
    server_mesh.rules()
    remaining: list[float | None] = []

    def app(environ: Any, start: Any) -> Iterator[bytes]:
        start("201 Created", [])
        remaining.append(remaining_s(server_mesh.clock()))
        yield b"hello"

    recorder = Recorder()
    middleware = MeshMiddleware(app, mesh=server_mesh, service="users")
    body = b"".join(middleware(environ(HTTP_X_ENVOY_EXPECTED_RQ_TIMEOUT_MS="900"), recorder))
    assert (b"hello", "201 Created") == (body, recorder.status)
    assert [0.9] == [round(value or 0, 6) for value in remaining]
    (event,) = server_mesh.served
    assert ("/users/a%20b?x=1", 201) == (event.path, event.status)
    assert current_request() is None


def test_refusal_never_reaches_the_application(server_mesh: Any, gateway_rules: Any) -> None:
    server_mesh.rules(gateway_rules("GET"))

    def app(environ: Any, start: Any) -> Iterable[bytes]:
        raise AssertionError("called")

    recorder = Recorder()
    body = b"".join(MeshMiddleware(app, mesh=server_mesh)(environ(), recorder))
    assert (b"RBAC: access denied", "403 Forbidden") == (body, recorder.status)


def test_body_is_closed_and_the_end_reported_when_the_client_goes(server_mesh: Any) -> None:
    server_mesh.rules()
    closed: list[bool] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield b"a"
            yield b"b"

        def close(self) -> None:
            closed.append(True)

    def app(environ: Any, start: Any) -> Iterable[bytes]:
        start("200 OK", [])
        return Body()

    body: Any = MeshMiddleware(app, mesh=server_mesh)(environ(), Recorder())
    assert b"a" == next(iter(body))
    body.close()
    assert [True] == closed
    assert [200] == [event.status for event in server_mesh.served]


def test_error_of_the_application_is_reported(server_mesh: Any) -> None:
    server_mesh.rules()

    def app(environ: Any, start: Any) -> Iterable[bytes]:
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        b"".join(MeshMiddleware(app, mesh=server_mesh)(environ(), Recorder()))
    assert [500] == [event.status for event in server_mesh.served]


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({}, "/users/a%20b?x=1"),
        ({"RAW_URI": ""}, "/users/a%20b?x=1"),
        ({"RAW_URI": "", "QUERY_STRING": ""}, "/users/a%20b"),
        ({"RAW_URI": "http://evil/x?y"}, "/x?y"),
        ({"RAW_URI": "http://evil?y"}, "/?y"),
    ],
)
def test_path_is_what_was_sent_where_the_server_tells(server_mesh: Any, changes: dict[str, str], path: str) -> None:
    server_mesh.rules()

    def app(environ: Any, start: Any) -> Iterable[bytes]:
        start("200 OK", [])
        return []

    b"".join(MeshMiddleware(app, mesh=server_mesh)(environ(**changes), Recorder()))
    assert [path] == [event.path for event in server_mesh.served]


def test_the_host_header_does_not_choose_the_listener(server_mesh: Any) -> None:
    """Servers other than gunicorn may make SERVER_NAME and SERVER_PORT of it."""
    server_mesh.rules(address="10.0.0.9:80")
    recorder = Recorder()
    spoofed = environ(SERVER_NAME="10.0.0.9", **{"gunicorn.socket": None})
    body = b"".join(MeshMiddleware(lambda *_: [], mesh=server_mesh)(spoofed, recorder))
    assert recorder.status == "503 Service Unavailable"
    assert b"pass `address=`" in body
    assert [] == [name for name in server_mesh.handles if name != "10.0.0.9:80"]


def test_a_unix_socket_is_guarded_by_the_announced_listener(server_mesh: Any, gateway_rules: Any) -> None:
    server_mesh.rules(gateway_rules("GET"), address="10.0.0.1:80")
    server_mesh.default_inbound_address = "10.0.0.1:80"

    class Unix:
        def getsockname(self) -> str:
            return "/run/app.sock"

        getpeername = getsockname

    recorder = Recorder()
    b"".join(MeshMiddleware(lambda *_: [], mesh=server_mesh)(environ(**{"gunicorn.socket": Unix()}), recorder))
    assert "403 Forbidden" == recorder.status


def test_body_is_made_within_the_context_wherever_it_is_taken(server_mesh: Any) -> None:
    server_mesh.rules()
    seen: list[bool] = []

    def app(environ: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", [])
        for _ in range(3):
            seen.append(current_request() is not None)
            yield b"x"

    body: Any = MeshMiddleware(app, mesh=server_mesh)(environ(), Recorder())
    steps = iter(body)
    for _ in range(3):  # each step in a context of its own, as on servers that hand bodies to threads
        contextvars.Context().run(next, steps)
    assert current_request() is None
    assert [True, True, True] == seen
    body.close()
    assert [200] == [event.status for event in server_mesh.served]


def test_refusal_of_head_has_no_body(server_mesh: Any, gateway_rules: Any) -> None:
    server_mesh.rules(gateway_rules("GET"))
    assert [] == list(MeshMiddleware(lambda *_: [], mesh=server_mesh)(environ(REQUEST_METHOD="HEAD"), Recorder()))


def test_a_path_that_the_server_made_up_must_be_allowed_too(server_mesh: Any) -> None:
    """What the application routes on counts as well as what was sent."""
    server_mesh.rules(prefix="/users")
    recorder = Recorder()
    b"".join(MeshMiddleware(lambda *_: [], mesh=server_mesh)(environ(PATH_INFO="/admin"), recorder))
    assert "404 Not Found" == recorder.status


def test_what_a_limit_says_goes_to_the_caller(server_mesh: Any) -> None:
    limit = LocalRateLimit(TokenBucket(1, 1, 600.0), Fraction(100), Fraction(100), tells_limits=True)
    server_mesh.rules(limits=(ListedLimit("limit", limit),))

    def app(environ: Any, start: Any) -> Iterable[bytes]:
        start("200 OK", [("x-own", "1")])
        return [b"hello"]

    middleware = MeshMiddleware(app, mesh=server_mesh)
    for status, body in (("200 OK", b"hello"), ("429 Too Many Requests", b"local_rate_limited")):
        recorder = Recorder()
        assert body == b"".join(middleware(environ(), recorder))
        assert status == recorder.status
        assert ("x-ratelimit-remaining", "0") in recorder.headers
