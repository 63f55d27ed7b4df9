"""Responses are read as h11 reads them; where its judgement is needed, it is asked."""

from typing import Any

import httpcore
import pytest

from meshlib.clients import http1_response
from meshlib.clients.http1_response import ResponseReader

OK = b"HTTP/1.1 200 OK\r\n"


def read(wire: bytes, *, method: bytes = b"GET", size: int | None = None, switches: Any = ()) -> Any:
    """Read a response from a connection that ends after it; returns reader, head and pieces."""
    reader = ResponseReader()
    reader.begin(method, switches)
    size = size or max(1, len(wire))
    parts = [wire[at : at + size] for at in range(0, len(wire), size)]
    head = None
    while head is None:
        head = reader.head(parts.pop(0) if parts else b"")
    pieces = list(reader.open_body())
    while not reader.is_complete:
        pieces += reader.body(parts.pop(0) if parts else b"")
    if parts:
        reader.is_reusable = False
    return reader, head, pieces


@pytest.mark.parametrize("size", [1, 2, 7, None])
@pytest.mark.parametrize(
    ("wire", "body", "is_reusable"),
    [
        (OK + b"content-length: 5\r\n\r\nhello", b"hello", True),
        (OK + b"Content-Length: 0\r\n\r\n", b"", True),
        (OK + b"content-length: 5\r\nconnection: close\r\n\r\nhello", b"hello", False),
        (
            OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
            b"abc0123456789",
            True,
        ),
        (OK + b"\r\nuntil the end", b"until the end", False),
        (OK + b"x: folded\r\n line\r\ncontent-length: 2\r\n\r\nok", b"ok", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", b"", True),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok", False),
        (b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + OK + b"content-length: 2\r\n\r\nok", b"ok", True),
        (b"HTTP/1.1 100 Continue\n\n" + OK + b"content-length: 2\r\n\r\nok", b"ok", True),
        (OK + b"content-length: 2\r\ncontent-length: 2\r\n\r\nok", b"ok", True),
        (OK + b"content-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", b"", True),
        (OK.replace(b"\r\n", b"\n") + b"content-length: 2\n\nok", b"ok", True),
    ],
)
def test_body_and_fate_of_the_connection(wire: bytes, body: bytes, is_reusable: bool, size: int | None) -> None:
    reader, head, pieces = read(wire, size=size)
    assert (body, is_reusable) == (b"".join(pieces), reader.is_reusable)
    assert head.version in (b"HTTP/1.1", b"HTTP/1.0")


def test_head_keeps_names_as_sent() -> None:
    _, head, _ = read(b"HTTP/1.1 404 Not here\r\nX-Some: a, b \r\nset-cookie: c=d\r\ncontent-length: 0\r\n\r\n")
    assert (404, b"Not here") == (head.status, head.reason)
    assert [(b"X-Some", b"a, b"), (b"set-cookie", b"c=d"), (b"content-length", b"0")] == head.headers


def test_response_to_head_has_no_body() -> None:
    reader, _, pieces = read(OK + b"content-length: 5\r\n\r\n", method=b"HEAD")
    assert ([], True) == (pieces, reader.is_reusable)


@pytest.mark.parametrize("end", [b"\r\n", b"5\r\nhello\r\n"])
def test_bytes_after_the_end_are_never_the_next_response(end: bytes) -> None:
    reader, _, pieces = read(OK + b"content-length: 2\r\n\r\nok" + end)
    assert (b"ok", False) == (b"".join(pieces), reader.is_reusable)
    reader, _, pieces = read(OK + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + end)
    assert (b"", False) == (b"".join(pieces), reader.is_reusable)


@pytest.mark.parametrize("size", [1, None])
def test_trailers_fill_the_list_that_the_caller_has(size: int | None) -> None:
    wire = OK + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 12\r\ny: z\r\n\r\n"
    reader, _, pieces = read(wire, size=size)
    assert (b"ok", True) == (b"".join(pieces), reader.is_reusable)
    assert [(b"X-Sum", b"12"), (b"y", b"z")] == reader.trailers


@pytest.mark.parametrize("line", [b"timeout=5, max=100", b"max=100, TIMEOUT = 5", b'timeout="5"'])
def test_time_that_the_server_keeps_connections_is_learnt(line: bytes) -> None:
    reader, _, _ = read(OK + b"content-length: 0\r\nKeep-Alive: " + line + b"\r\n\r\n")
    assert reader.keep_alive_s == 5.0
    reader.begin(b"GET", ())
    assert reader.keep_alive_s == 5.0, "the server need not repeat it"


def test_switch_of_protocols_leaves_what_follows_to_it() -> None:
    reader = ResponseReader()
    reader.begin(b"GET", ((b"connection", b"upgrade"), (b"upgrade", b"echo")))
    head = reader.head(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\nfirst")
    assert head is not None and head.status == 101
    assert reader.leading_data == b"first"
    assert reader.open_body() == []
    assert (reader.is_complete, reader.is_reusable) == (True, False)


@pytest.mark.parametrize(
    ("wire", "text"),
    [
        (b"", "without sending a response"),
        (b"HTTP/1.1 200", "without sending a response"),
        (b"SMTP ready\r\n\r\n", "illegal"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "illegal"),
        (OK + b"no colon\r\n\r\n", "illegal header"),
        (OK + b"x: a\0b\r\n\r\n", "illegal header"),
        (OK + b"content-length: five\r\n\r\nhello", "Content-Length"),
        (OK + b"content-length: -1\r\n\r\nhello", "Content-Length"),
        (OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\nhello", "Content-Length"),
        (OK + b"transfer-encoding: gzip\r\n\r\nhello", "Transfer-Encoding"),
        (OK + b"content-length: 9\r\n\r\nhello", "received 5 bytes, expected 9"),
        (OK + b"transfer-encoding: chunked\r\n\r\n3\r\nab", "incomplete chunked read"),
        (OK + b"transfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", "chunk footer"),
        (OK + b"transfer-encoding: chunked\r\n\r\nxyz\r\n", "chunk header"),
        (OK + b"transfer-encoding: chunked\r\n\r\n0\r\nbad trailer\r\n\r\n", "trailer"),
        (OK + b"x: " + b"v" * 200_000 + b"\r\n\r\n", "too long"),
        (OK + b"x: y\r\n" * 40_000, "too long"),
        (OK + b"transfer-encoding: chunked\r\n\r\n1;" + b"x" * 200_000, "too long"),
    ],
)
def test_what_is_no_response_is_refused(wire: bytes, text: str) -> None:
    for size in (65536, 1000):
        with pytest.raises(httpcore.RemoteProtocolError, match=f"(?i){text}"):
            read(wire, size=size)


def test_head_that_comes_again_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_response, "_heads", {})
    wire = OK + b"keep-alive: timeout=7\r\ncontent-length: 2\r\n\r\nok"
    first, second = read(wire), read(wire)
    assert [wire.partition(b"\r\n\r\n")[0]] == list(http1_response._heads)
    assert first[1] is second[1]
    assert (7.0, [b"ok"], True) == (second[0].keep_alive_s, second[2], second[0].is_reusable)
    # To a HEAD the same head has no body.
    reader, head, pieces = read(wire.removesuffix(b"ok"), method=b"HEAD")
    assert (first[1], [], True) == (head, pieces, reader.is_reusable)


def test_heads_with_secrets_or_long_lines_are_not_kept_and_their_number_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http1_response, "_heads", {})
    read(OK + b"Set-Cookie: id=1\r\ncontent-length: 0\r\n\r\n")
    read(OK + b"x-long: %s\r\ncontent-length: 0\r\n\r\n" % (b"l" * 200))
    read(OK + b"".join(b"x-%d: 1\r\n" % number for number in range(200)) + b"content-length: 0\r\n\r\n")
    assert {} == http1_response._heads
    for number in range(300):
        read(OK + b"x-number: %d\r\ncontent-length: 0\r\n\r\n" % number)
    assert 0 < len(http1_response._heads) <= 256
