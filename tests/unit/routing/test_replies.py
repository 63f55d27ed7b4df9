import pytest

from meshlib.model.outcome import LocalReply
from meshlib.model.profile import HTTP as HTTP_PROFILE
from meshlib.model.request import Headers, RequestHead
from meshlib.routing.replies import (
    cluster_not_found,
    finish_headers,
    no_route,
    no_virtual_host,
    trailers_only,
    unusable_action,
)

HTTP = RequestHead("GET", "svc", "/", Headers())
GRPC = RequestHead("POST", "svc", "/p.S/M", Headers(), is_grpc=True)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (no_virtual_host(HTTP, "rc"), LocalReply(404, "NR", "route_not_found")),
        (no_route(HTTP), LocalReply(404, "NR", "route_not_found")),
        (cluster_not_found(HTTP, "c"), LocalReply(503, "NC", "cluster_not_found")),
        (cluster_not_found(HTTP, "c", 404), LocalReply(404, "NC", "cluster_not_found")),
        (unusable_action(HTTP, flag="NC", status=503, details="d"), LocalReply(503, "NC", "d")),
        (
            no_virtual_host(GRPC, "rc"),
            LocalReply(404, "NR", "route_not_found", b"could not find VirtualHost for svc in RouteConfiguration rc", grpc_status=14),
        ),
        (no_route(GRPC), LocalReply(404, "NR", "route_not_found", b"No matching route found in xDS route config", grpc_status=14)),
        (cluster_not_found(GRPC, "c"), LocalReply(503, "NC", "cluster_not_found", b"xDS cluster 'c' does not exist", grpc_status=14)),
        (cluster_not_found(GRPC, ""), LocalReply(503, "NC", "cluster_not_found", b"the route names no xDS cluster", grpc_status=14)),
    ],
)  # fmt: skip
def test_reply(reply: LocalReply, expected: LocalReply) -> None:
    assert reply == expected


@pytest.mark.parametrize(("method", "message"), [("POST", "a%25"), ("HEAD", None)])
def test_an_answer_to_head_has_no_message(method: str, message: str | None) -> None:
    head = RequestHead(method, "svc", "/", Headers(), is_grpc=True, profile=HTTP_PROFILE)
    found = trailers_only(LocalReply(503, "UH", "no_healthy_upstream", b"a%"), head)
    assert dict(found.headers).get("grpc-message") == message
    assert dict(found.headers)["grpc-status"] == "14"


def test_content_type_follows_the_body() -> None:
    typed = Headers((("content-type", "a/b"), ("x", "1")))
    assert finish_headers(typed, b"") == (("x", "1"),)
    assert finish_headers(typed, b"x") == (("content-type", "a/b"), ("x", "1"))
    assert finish_headers(Headers(), b"x") == (("content-type", "text/plain"),)
