"""Lines of the access log."""

import logging
from collections.abc import Callable

import pytest

from meshlib.events import CallFinished, Event, HostEjected, RequestServed
from meshlib.integrations.access_log import log_access
from meshlib.model.endpoint import Endpoint

ENDPOINT = Endpoint("127.0.0.1:8001")
CALL = CallFinished("http", "checkout", "GET", "default", "c1", ENDPOINT, 2, 0.0031, 200, None, "-", True)
SERVED = RequestServed("grpc", "checkout", "POST", "/shop.Checkout/Pay", "spiffe://a/b", 0.5, 200, 7, True)


class FakeMesh:
    def add_hook(self, hook: Callable[[Event], None]) -> None:
        self.hook = hook


@pytest.fixture
def hook() -> Callable[[Event], None]:
    mesh = FakeMesh()
    log_access(mesh)  # type: ignore[arg-type]
    return mesh.hook


def test_a_call_is_a_line(hook: Callable[[Event], None], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "meshlib.access"):
        hook(CALL)
    assert [
        "outbound http GET checkout status=200 duration_ms=3.1 flags=- cluster=c1 endpoint=127.0.0.1:8001 attempts=2 "
        "route=default"
    ] == caplog.messages
    assert 200 == caplog.records[0].mesh["status"]


def test_a_request_is_a_line(hook: Callable[[Event], None], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "meshlib.access"):
        hook(SERVED)
    assert [
        "inbound grpc POST /shop.Checkout/Pay status=7 duration_ms=500.0 denied=1 principal=spiffe://a/b"
    ] == caplog.messages


def test_a_path_cannot_forge_a_line_nor_tell_its_query(
    hook: Callable[[Event], None], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "meshlib.access"):
        hook(RequestServed("http", "", "GET", "/a\ninbound http GET /b?token=s3cret", "", 0.0, 200, None, False))
    assert "\n" not in caplog.messages[0]
    assert "s3cret" not in caplog.messages[0]


def test_other_events_and_a_logger_that_is_off_cost_no_line(
    hook: Callable[[Event], None], caplog: pytest.LogCaptureFixture
) -> None:
    hook(CALL)
    with caplog.at_level(logging.INFO, "meshlib.access"):
        hook(HostEjected("c1", ENDPOINT, "consecutive_5xx", 30.0))
    assert [] == caplog.messages
