"""MeshMiddleware for any WSGI application."""

import ssl
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any

from meshlib.integrations import default_mesh
from meshlib.model.request import Headers, RequestHead
from meshlib.servers.inbound import Inbound, InboundRequest
from meshlib.servers.peer import ANONYMOUS, Peer, peer_of_der
from meshlib.servers.source import ServerSource

__all__ = ["MeshMiddleware", "begin"]

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
App = Callable[[Environ, StartResponse], Iterable[bytes]]


class MeshMiddleware:
    """Guards a WSGI application with the mesh's inbound listener.

    The caller's certificate is read from the connection, which gunicorn's sync and gthread workers expose
    (`gunicorn.socket`); on servers that don't, callers are anonymous and STRICT listeners refuse them.
    """

    def __init__(
        self, app: App, *, mesh: ServerSource | None = None, address: str | None = None, service: str = ""
    ) -> None:
        """
        Args:
            app: The application.
            mesh: Default: the process-wide one.
            address: `host:port` of the listener that applies; default: the address of each connection.
            service: Name of this service in reports.
        """
        self.app = app
        self._inbound = Inbound(
            mesh if mesh is not None else default_mesh(), kind="http", address=address, service=service
        )

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        request = begin(self._inbound, environ)
        if request.reply is not None:
            reply = request.reply
            headers = [("content-length", str(len(reply.body))), *reply.headers]
            start_response(f"{reply.status} {HTTPStatus(reply.status).phrase}", headers)
            request.finish(reply.status)
            return [reply.body]
        return _serve(self.app, request, environ, start_response)


def _serve(app: App, request: InboundRequest, environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """Run the application and hand its body through, within the request's context."""
    status = 500

    def observed(line: str, *args: Any) -> Any:
        nonlocal status
        status = int(line[:3])
        return start_response(line, *args)

    body: Iterable[bytes] = ()
    try:
        with request.entered():
            body = app(environ, observed)
            yield from body
    finally:
        if hasattr(body, "close"):
            body.close()
        request.finish(status)


def begin(inbound: Inbound, environ: Environ) -> InboundRequest:
    """Decide about the request of a WSGI environment."""
    local = _local(environ)
    if not inbound.is_known(local):
        inbound.wait_known(local)
    return inbound.begin(_head(environ), _peer(environ), local=local, remote=environ.get("REMOTE_ADDR", ""))


def _local(environ: Environ) -> tuple[str, int]:
    connection = environ.get("gunicorn.socket")
    if connection is not None:
        name = connection.getsockname()
        return (name[0], name[1]) if isinstance(name, tuple) else ("", 0)
    try:
        return (environ["SERVER_NAME"], int(environ["SERVER_PORT"]))
    except (KeyError, ValueError):
        return ("", 0)


def _head(environ: Environ) -> RequestHead:
    headers = [(key[5:].replace("_", "-").lower(), value) for key, value in environ.items() if key.startswith("HTTP_")]
    headers += [
        (key.replace("_", "-").lower(), environ[key]) for key in ("CONTENT_TYPE", "CONTENT_LENGTH") if environ.get(key)
    ]
    # RAW_URI (gunicorn) and REQUEST_URI (uwsgi, mod_wsgi) are the target as sent; PATH_INFO has been decoded, and a rule
    # about paths must see what a proxy would see.
    path = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if not path or not path.startswith("/"):
        path = (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")) or "/"
        if query := environ.get("QUERY_STRING"):
            path = f"{path}?{query}"
    return RequestHead(
        environ["REQUEST_METHOD"],
        environ.get("HTTP_HOST", ""),
        path,
        Headers(headers),
        scheme=environ.get("wsgi.url_scheme", "http"),
    )


def _peer(environ: Environ) -> Peer:
    connection = environ.get("gunicorn.socket")
    if isinstance(connection, ssl.SSLSocket) and (der := connection.getpeercert(binary_form=True)):
        return peer_of_der(der)
    return ANONYMOUS
