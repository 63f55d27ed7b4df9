"""Answers that routing gives itself, with Envoy's statuses, texts, flags and details.

A gRPC call gets what gRPC's own clients say where they differ from Envoy: UNAVAILABLE for whatever leads nowhere.
"""

from meshlib.model.outcome import LocalReply
from meshlib.model.request import Headers, RequestHead

__all__ = [
    "TEXT",
    "cluster_not_found",
    "finish_headers",
    "no_route",
    "no_virtual_host",
    "text_headers",
    "unusable_action",
]

UNAVAILABLE = 14
TEXT = ("content-type", "text/plain")
_NOT_FOUND = LocalReply(404, "NR", "route_not_found")


def text_headers(body: bytes) -> tuple[tuple[str, str], ...]:
    """Return the headers of a local reply: a content type if there is a body."""
    return (TEXT,) if body else ()


def finish_headers(headers: Headers, body: bytes) -> tuple[tuple[str, str], ...]:
    """Return the headers of a local reply after the route's mutations, as Envoy sends them.

    Without a body there is no content type, whatever the mutations say; with one it is `text/plain` unless they do.
    """
    if not body:
        return tuple(entry for entry in headers.items if entry[0] not in ("content-type", "content-length"))
    return headers.items if "content-type" in headers else (*headers.items, TEXT)


def no_virtual_host(head: RequestHead, routes: str) -> LocalReply:
    """No domain of the route configuration fits the authority: 404, `NR`."""
    if not head.is_grpc:
        return _NOT_FOUND
    text = f"could not find VirtualHost for {head.authority} in RouteConfiguration {routes}"
    return LocalReply(404, "NR", "route_not_found", text.encode(), grpc_status=UNAVAILABLE)


def no_route(head: RequestHead) -> LocalReply:
    """The virtual host has no route for the request: 404, `NR`."""
    if not head.is_grpc:
        return _NOT_FOUND
    text = b"No matching route found in xDS route config"
    return LocalReply(404, "NR", "route_not_found", text, grpc_status=UNAVAILABLE)


def cluster_not_found(head: RequestHead, cluster: str, status: int = 503) -> LocalReply:
    """The route names a cluster that does not exist: `NC`.

    Args:
        status: `cluster_not_found_response_code`.
    """
    if not head.is_grpc:
        return LocalReply(status, "NC", "cluster_not_found")
    text = f"xDS cluster {cluster!r} does not exist" if cluster else "the route names no xDS cluster"
    return LocalReply(status, "NC", "cluster_not_found", text.encode(), grpc_status=UNAVAILABLE)


def unusable_action(head: RequestHead, *, flag: str, status: int, details: str) -> LocalReply:
    """A gRPC call met a route that does not forward."""
    body = b"Matching route has inappropriate action" if head.is_grpc else b""
    return LocalReply(status, flag, details, body, grpc_status=UNAVAILABLE if head.is_grpc else None)
