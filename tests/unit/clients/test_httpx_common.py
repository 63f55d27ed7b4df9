import io

import httpcore
import httpx
import pytest

from meshlib.clients.httpx_common import (
    MeshRecord,
    authority_of,
    head_of,
    is_replayable,
    is_small,
    local_response,
    response_of,
)
from meshlib.model.outcome import LocalReply

RECORD = MeshRecord("c", "", 0, "NR")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"content": b"bytes"}, True),
        ({"content": "text"}, True),
        ({"json": {"a": 1}}, True),
        ({"data": {"a": "1"}}, True),
        ({"files": {"f": b"bytes"}}, True),
        ({"files": {"f": io.BytesIO(b"file")}}, True),
        ({"content": io.BytesIO(b"file")}, False),
        ({"content": iter([b"part"])}, False),
        ({"content": (part for part in [b"part"])}, False),
        ({"content": [b"list"]}, False),
    ],
)
def test_only_bodies_that_httpx_can_repeat_are_replayable(options, expected):
    assert is_replayable(httpx.Request("POST", "http://checkout/", **options)) is expected


def test_multipart_of_a_pipe_is_not_replayable():
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    assert not is_replayable(httpx.Request("POST", "http://checkout/", files={"f": Pipe(b"x")}))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://checkout/a", "checkout"),
        ("http://checkout:80/a", "checkout"),
        ("http://checkout:8080/a", "checkout:8080"),
        ("http://[::1]:8080/", "[::1]:8080"),
        ("http://user:secret@checkout/a", "checkout"),
    ],
)
def test_authority_is_host_and_port_as_written(url, expected):
    assert authority_of(httpx.Request("GET", url)) == expected


def test_head_has_lower_case_names_and_the_host_apart():
    request = httpx.Request(
        "GET", "http://checkout/a?b=%20c", headers=[("X-Two", "1"), ("X-Two", "2"), ("Host", "shop")]
    )
    head = head_of(request, "checkout")
    assert (head.method, head.authority, head.path, head.is_grpc) == ("GET", "shop", "/a?b=%20c", False)
    assert head.headers.all("x-two") == ("1", "2")
    assert "host" not in head.headers


def test_bytes_of_header_values_survive():
    request = httpx.Request("GET", "http://checkout/", headers={"x-name": "J\u00fcrgen".encode()})
    value = head_of(request, "checkout").headers.get("x-name")
    assert value is not None
    assert value.encode("latin-1") == "J\u00fcrgen".encode()


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("application/grpc", True),
        ("application/grpc+proto", True),
        ("application/grpc-web", False),
        ("text/plain", False),
    ],
)
def test_grpc_is_known_by_its_content_type(content_type, expected):
    request = httpx.Request("POST", "http://checkout/", headers={"content-type": content_type})
    assert head_of(request, "checkout").is_grpc is expected


def test_local_reply_looks_as_envoys():
    request = httpx.Request("GET", "http://checkout/")
    response = local_response(LocalReply(503, "UH", "no_healthy_upstream", b"no healthy upstream"), request, RECORD)
    assert response.status_code == 503
    assert response.headers.multi_items() == [("content-type", "text/plain"), ("content-length", "19")]
    assert response.extensions["mesh"] is RECORD


def test_local_reply_to_head_keeps_the_length_and_drops_the_body():
    response = local_response(LocalReply(418, "", "", b"teapot"), httpx.Request("HEAD", "http://checkout/"), RECORD)
    assert (response.read(), response.headers["content-length"]) == (b"", "6")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"Content-Length", b"100")], True),
        ([(b"content-length", b"100000")], False),
        ([(b"transfer-encoding", b"chunked")], False),
    ],
)
def test_only_short_responses_are_read_to_their_end(headers, expected):
    assert is_small(httpcore.Response(503, headers=headers)) is expected


def test_one_look_at_a_response_finds_what_an_index_would():
    raw = httpcore.Response(200, headers=[(b"X-A", b"1"), (b"x-a", b"2"), (b"Grpc-Status", b"14")])
    for name in ("x-a", "grpc-status", "x-b", ""):
        assert response_of(raw).headers.find(name) == response_of(raw).headers.get(name)
