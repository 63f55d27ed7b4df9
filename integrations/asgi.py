"""MeshMiddleware for any ASGI application: identity, authorization, deadline, trace context, reports."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import quote

from meshlib.integrations import default_mesh
from meshlib.model.outcome import LocalReply
from meshlib.model.request import Headers, RequestHead
from meshlib.servers.inbound import Inbound, InboundRequest
from meshlib.servers.paths import UNESCAPED
from meshlib.servers.peer import ANONYMOUS, Peer, peer_of_pem
from meshlib.servers.source import ServerSource

__all__ = ["CONNECTION", "MeshMiddleware", "begin"]

CONNECTION = "meshlib.connection"
"""Name of the scope's extension with the addresses of the connection itself, as `server` and `client`."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class MeshMiddleware:
    """Guards an ASGI application with the mesh's inbound listener.

    The caller's certificate is read from the ASGI TLS extension (`meshlib.integrations.uvicorn` provides it). Where the
    bootstrap has no `server_listener_resource_name_template` the mesh says nothing about inbound requests: then only
    deadline, trace context and reports remain.
    """

    def __init__(
        self, app: App, *, mesh: ServerSource | None = None, address: str | None = None, service: str = ""
    ) -> None:
        """
        Args:
            app: The application.
            mesh: Default: the process-wide one.
            address: `host:port` of the listener that applies; default: the one announced for the connection's address.
                Set it where this process announces nothing and the server takes `scope["server"]` from a header.
            service: Name of this service in reports.
        """
        self.app = app
        self._inbound = Inbound(
            mesh if mesh is not None else default_mesh(), kind="http", address=address, service=service
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        request = await begin(self._inbound, scope)
        if request.reply is not None:
            await _refuse(scope, receive, send, request.reply)
            request.finish(request.reply.status)
            return
        status = 500

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if request.response_headers:
                    message = {**message, "headers": [*message.get("headers", ()), *_raw(request.response_headers)]}
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)

        try:
            with request.entered():
                await self.app(scope, receive, observed)
        finally:
            request.finish(status)


async def begin(inbound: Inbound, scope: Scope) -> InboundRequest:
    """Decide about the request of an ASGI scope."""
    # Our own server's word for the connection comes first: uvicorn lets X-Forwarded-For replace `client`.
    connection = (scope.get("extensions") or {}).get(CONNECTION) or scope
    local = _address(connection.get("server"))
    if not inbound.is_known(local):
        await asyncio.to_thread(inbound.wait_known, local)
    remote = (connection.get("client") or ("", 0))[0]
    # `errors` as servers decode: what is no UTF-8 stays distinct from what is.
    routed = scope["path"].encode("utf-8", "surrogateescape")
    return inbound.begin(_head(scope), _peer(scope), local=local, remote=remote, routed=routed)


def _address(server: Any) -> tuple[str, int]:
    if not server:
        return ("", 0)
    return (server[0], server[1] or 0)  # a unix socket has no port


def _head(scope: Scope) -> RequestHead:
    headers = Headers((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
    raw: bytes = scope.get("raw_path") or quote(scope["path"], safe=UNESCAPED, errors="surrogateescape").encode()
    path = raw.partition(b"?")[0].decode("latin-1")
    if query := scope.get("query_string"):
        path = f"{path}?{query.decode('latin-1')}"
    return RequestHead(
        scope.get("method", "GET"), headers.get("host") or "", path, headers, scheme=scope.get("scheme", "http")
    )


def _peer(scope: Scope) -> Peer:
    tls = (scope.get("extensions") or {}).get("tls")
    if not tls or tls.get("client_cert_error") or not tls.get("client_cert_chain"):
        return ANONYMOUS
    return peer_of_pem(tls["client_cert_chain"][0])


def _raw(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


async def _refuse(scope: Scope, receive: Receive, send: Send, reply: LocalReply) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": reply.body.decode("utf-8", "replace")[:120]})
        return
    headers = [
        (b"content-length", str(len(reply.body)).encode()),
        *_raw(reply.headers),
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})
