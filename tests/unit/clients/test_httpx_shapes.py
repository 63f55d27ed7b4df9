"""What is remembered of requests with the same headers, and what is not."""

import httpx
import pytest

from meshlib.clients import httpx_shapes
from meshlib.clients.httpx_shapes import MAX_SHAPES, make_shape


def raw(*headers: tuple[str, str], content: bytes | None = None) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(httpx.Request("POST", "http://a/", headers=list(headers), content=content).headers.raw)


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(httpx_shapes, "known_shapes", {})


def test_headers_are_written_once_the_host_first() -> None:
    found = make_shape(raw(("X-User", "ann"), ("user-agent", "test"), content=b"body"))
    assert found is not None
    assert ("a", 4) == (found.authority, found.length)
    assert (("x-user", "ann"), ("user-agent", "test"), ("content-length", "4")) == found.headers.items
    # Names go out as all of the mesh's do, in lower case.
    assert b"host: a\r\nx-user: ann\r\nuser-agent: test\r\ncontent-length: 4\r\n" == found.lines
    assert [found] == list(httpx_shapes.known_shapes.values())


@pytest.mark.parametrize(
    "header",
    [
        ("authorization", "Bearer x"),
        ("cookie", "a=b"),
        ("proxy-authorization", "x"),
        ("x-token", "t" * 200),
        ("host", "h" * 200),
    ],
    ids=lambda header: header[0],
)
def test_secrets_and_long_values_are_not_kept(header: tuple[str, str]) -> None:
    found = make_shape(raw(header))
    assert found is not None and header[1].encode() in found.lines
    assert {} == httpx_shapes.known_shapes


@pytest.mark.parametrize(
    "headers",
    [
        [("content-type", "application/grpc")],
        [("content-type", "application/grpc+proto")],
        [("x-envoy-max-retries", "1")],
        [("grpc-timeout", "1S")],
        [("x-meshlib-attempt", "2")],
        [("host", "a"), ("host", "b")],
        [("transfer-encoding", "chunked")],
        [("connection", "close")],
        [("connection", "upgrade"), ("upgrade", "websocket")],
        [("content-length", "1"), ("content-length", "1")],
        [("x-bad", "a\nb")],
        [("bad name", "a")],
    ],
    ids=lambda headers: headers[-1][0] + "=" + headers[-1][1],
)
def test_what_needs_a_closer_look_has_no_shape(headers: list[tuple[str, str]]) -> None:
    assert make_shape(raw(*headers)) is None
    assert {} == httpx_shapes.known_shapes


def test_memory_is_bounded() -> None:
    for number in range(MAX_SHAPES + 5):
        assert make_shape(raw(("x-request-id", str(number)))) is not None
    assert 5 == len(httpx_shapes.known_shapes)
