"""MeshMiddleware for WSGI."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from meshlib.integrations.wsgi import MeshMiddleware
from meshlib.runtime.context import current, remaining_s


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
    } | changes


class Recorder:
    status = ""

    def __call__(self, status: str, headers: Any, *rest: Any) -> Any:
        self.status = status


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
    assert current() is None


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
        ({"RAW_URI": ""}, "/users/a b?x=1"),
        ({"RAW_URI": "", "QUERY_STRING": ""}, "/users/a b"),
        ({"RAW_URI": "http://evil/x"}, "/users/a b?x=1"),
    ],
)
def test_path_is_what_was_sent_where_the_server_tells(server_mesh: Any, changes: dict[str, str], path: str) -> None:
    server_mesh.rules()

    def app(environ: Any, start: Any) -> Iterable[bytes]:
        start("200 OK", [])
        return []

    b"".join(MeshMiddleware(app, mesh=server_mesh)(environ(**changes), Recorder()))
    assert [path] == [event.path for event in server_mesh.served]
