"""Answers that routing gives itself, with Envoy's statuses, texts, flags and details.

A gRPC call gets what gRPC's own clients say where they differ from Envoy: UNAVAILABLE for whatever leads nowhere.
"""

from dataclasses import replace

from meshlib.model.outcome import LocalReply, grpc_status_of
from meshlib.model.request import Headers, RequestHead

__all__ = [
    "TEXT",
    "cluster_not_found",
    "finish_headers",
    "no_route",
    "no_virtual_host",
    "text_headers",
    "trailers_only",
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


def trailers_only(reply: LocalReply, head: RequestHead) -> LocalReply:
    """Return the mesh's own answer as a request with gRPC's content type gets it from Envoy; others get it as it is.

    HTTP 200, the status in `grpc-status` unless a mutation has put one there, the body percent-encoded in `grpc-message`.

    Source: Envoy, `Utility::prepareLocalReply`.
    """
    if not head.is_grpc or not head.profile.answers_itself or reply.is_trailers_only:
        return reply
    status = grpc_status_of(reply.status) if reply.grpc_status is None else reply.grpc_status
    replaced = {"content-type", "content-length"}
    headers = [item for item in reply.headers if item[0] not in replaced]
    headers.append(("content-type", "application/grpc"))
    if not any(name == "grpc-status" and value for name, value in headers):
        headers = [item for item in headers if item[0] != "grpc-status"]
        headers.append(("grpc-status", str(status)))
    if reply.body and head.method != "HEAD":
        headers = [item for item in headers if item[0] != "grpc-message"]
        headers.append(("grpc-message", _percent_encoded(reply.body)))
    return replace(reply, status=200, body=b"", headers=tuple(headers), grpc_status=status, is_trailers_only=True)


def _percent_encoded(text: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7E and byte != 0x25 else f"%{byte:02X}" for byte in text)


def no_virtual_host(head: RequestHead, routes: str) -> LocalReply:
    """No domain of the route configuration fits the authority: 404, `NR`."""
    if head.profile.answers_itself:
        return _NOT_FOUND
    text = f"could not find VirtualHost for {head.authority} in RouteConfiguration {routes}"
    return LocalReply(404, "NR", "route_not_found", text.encode(), grpc_status=UNAVAILABLE)


def no_route(head: RequestHead) -> LocalReply:
    """The virtual host has no route for the request: 404, `NR`."""
    if head.profile.answers_itself:
        return _NOT_FOUND
    text = b"No matching route found in xDS route config"
    return LocalReply(404, "NR", "route_not_found", text, grpc_status=UNAVAILABLE)


def cluster_not_found(head: RequestHead, cluster: str, status: int = 503) -> LocalReply:
    """The route names a cluster that does not exist: `NC`.

    Args:
        status: `cluster_not_found_response_code`.
    """
    if head.profile.answers_itself:
        return LocalReply(status, "NC", "cluster_not_found")
    text = f"xDS cluster {cluster!r} does not exist" if cluster else "the route names no xDS cluster"
    return LocalReply(status, "NC", "cluster_not_found", text.encode(), grpc_status=UNAVAILABLE)


def unusable_action(head: RequestHead, *, flag: str, status: int, details: str) -> LocalReply:
    """A gRPC call met a route that does not forward."""
    if head.profile.answers_itself:
        return LocalReply(status, flag, details)
    return LocalReply(status, flag, details, b"Matching route has inappropriate action", grpc_status=UNAVAILABLE)
