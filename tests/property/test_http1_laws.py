"""Whatever a server sends, in whatever pieces, is read as h11 reads it."""

from typing import Any

import h11
import httpcore
from hypothesis import given
from hypothesis import strategies as st

from meshlib.clients.http1_response import ResponseReader

TOKENS = st.text("abcXYZ-_019", min_size=1, max_size=8).map(str.encode)
VALUES = st.sampled_from([b"", b"v", b"a, b", b"caf\xe9", b" x ", b"\t", b"a\0", b"a\nb: c", b"v" * 200])
NAMES = st.one_of(
    TOKENS,
    st.sampled_from([b"Content-Length", b"transfer-encoding", b"Connection", b"keep-alive", b"Upgrade", b"bad name"]),
)
KNOWN = st.sampled_from(
    [
        b"Content-Length: 0", b"content-length: 3", b"content-length: 7", b"content-length: x", b"content-length: 3, 3",
        b"Transfer-Encoding: chunked", b"transfer-encoding: Chunked", b"transfer-encoding: gzip",
        b"connection: close", b"Connection: keep-alive", b"Connection: Upgrade", b"keep-alive: timeout=5", b" folded",
    ]
)  # fmt: skip
LINES = st.one_of(KNOWN, st.tuples(NAMES, VALUES).map(lambda pair: b"%b: %b" % pair))
STATUS = st.sampled_from(
    [
        b"HTTP/1.1 200 OK", b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 100 Continue",
        b"HTTP/1.1 101 Switching Protocols", b"HTTP/1.0 200 OK", b"HTTP/1.1 500", b"HTTP/1.1 20", b"HTTP/2 200 OK", b"",
    ]
)  # fmt: skip
CHUNKS = st.sampled_from(
    [b"3\r\nabc\r\n", b"2;e=1\r\nab\r\n", b"0\r\n", b"\r\n", b"x: y\r\n", b"zz\r\n", b"3\r\nabcd\r\n"]
)
BODIES = st.one_of(st.binary(max_size=8), st.lists(CHUNKS, max_size=5).map(b"".join), st.just(b"3\r\nabc\r\n0\r\n\r\n"))
ENDS = st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n"])


@st.composite
def wires(draw: Any) -> bytes:
    end = draw(ENDS)
    head = b"".join(line + end for line in [draw(STATUS), *draw(st.lists(LINES, max_size=4))])
    return head + end + draw(BODIES)


def by_h11(method: bytes, parts: list[bytes]) -> Any:
    """Return status, reason, headers, body and whether the connection could be used again; None: no response."""
    judge = h11.Connection(h11.CLIENT, max_incomplete_event_size=100 * 1024)
    judge.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
    judge.send(h11.EndOfMessage())
    parts = [*parts, b""]
    head: Any = None
    body = b""
    try:
        while True:
            event = judge.next_event()
            if event is h11.NEED_DATA:
                judge.receive_data(parts.pop(0))
            elif isinstance(event, h11.Response) or getattr(event, "status_code", 0) == 101:
                head = (event.status_code, event.reason, event.headers.raw_items())
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage | h11.PAUSED):
                is_reusable = judge.their_state is h11.DONE and judge.our_state is h11.DONE
                # h11 would go on after the end of the connection, and with what came too early.
                return (*head, body, is_reusable and bool(parts) and not judge.trailing_data[0] and not any(parts))
            elif isinstance(event, h11.ConnectionClosed):
                return None
    except h11.RemoteProtocolError:
        return None


def by_us(method: bytes, parts: list[bytes]) -> Any:
    reader = ResponseReader()
    reader.begin(method, ())
    parts = [*parts, b""]
    try:
        head = None
        while head is None:
            head = reader.head(parts.pop(0))
        body = b"".join(reader.open_body())
        while not reader.is_complete:
            body += b"".join(reader.body(parts.pop(0)))
    except httpcore.RemoteProtocolError:
        return None
    return head.status, head.reason, head.headers, body, reader.is_reusable and not any(parts)


@given(wires(), st.sampled_from([b"GET", b"HEAD", b"POST"]), st.integers(1, 200))
def test_responses_are_read_as_by_h11(wire: bytes, method: bytes, size: int) -> None:
    parts = [wire[at : at + size] for at in range(0, len(wire), size)]
    assert by_h11(method, parts) == by_us(method, parts)
