"""MeshMiddleware for any WSGI application."""

import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from contextvars import Context, copy_context
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from meshlib.integrations import default_mesh
from meshlib.model.request import Headers, RequestHead
from meshlib.servers.inbound import Inbound, InboundRequest
from meshlib.servers.paths import UNESCAPED
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
            address: `host:port` of the listener that applies; default: the one announced for the connection's address.
                Needed on servers other than gunicorn unless this process announces its address itself: their
                `SERVER_NAME` may come from the Host header, so it is never asked.
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
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [reply.body]
        response = _Response(request)

        def observed(line: str, headers: list[tuple[str, str]], *args: Any) -> Any:
            response.status = int(line[:3])
            return start_response(line, [*headers, *request.response_headers], *args)

        return response.begin(self.app, environ, observed)


class _Response:
    """The body of a response, made and iterated within the context of its request.

    The server may take it from wherever it likes: each step runs in one `Context` of its own, which is never current
    between two of them.
    """

    __slots__ = ("_body", "_context", "_iterator", "_scope", "status")

    def __init__(self, request: InboundRequest) -> None:
        self.status = 500
        self._context: Context = copy_context()
        self._scope = ExitStack()
        self._scope.callback(lambda: request.finish(self.status))
        self._context.run(self._scope.enter_context, request.entered())
        self._body: Iterable[bytes] = ()
        self._iterator: Iterator[bytes] = iter(())

    def begin(self, app: App, environ: Environ, start_response: StartResponse) -> "_Response":
        try:
            self._body = self._context.run(app, environ, start_response)
            self._iterator = self._context.run(iter, self._body)
        except BaseException as error:
            self.status = 500
            self._end(error)
            raise
        return self

    def __iter__(self) -> "_Response":
        return self

    def __next__(self) -> bytes:
        try:
            return self._context.run(next, self._iterator)
        except StopIteration:
            self._end(None)
            raise
        except BaseException as error:
            self._end(error)
            raise

    def close(self) -> None:
        """End the request; servers call it whether the body was sent or not."""
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        body, self._body = self._body, ()
        try:
            if hasattr(body, "close"):
                self._context.run(body.close)
        finally:
            # Spans are told of the error here; raising it is up to the caller.
            kind = type(error) if error is not None else None
            self._context.run(self._scope.pop_all().__exit__, kind, error, None)


def begin(inbound: Inbound, environ: Environ) -> InboundRequest:
    """Decide about the request of a WSGI environment."""
    local, remote = _connection(environ)
    if not inbound.is_known(local):
        inbound.wait_known(local)
    routed = (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1") or b"/"
    return inbound.begin(_head(environ), _peer(environ), local=local, remote=remote, routed=routed)


def _connection(environ: Environ) -> tuple[tuple[str, int], str]:
    """Return the local address and the remote IP address.

    The first is asked of the socket or not known: SERVER_NAME is the caller's Host header on several servers, and must
    not choose the listener. The second too, where there is a socket: REMOTE_ADDR may be what a PROXY line says.
    """
    connection = environ.get("gunicorn.socket")
    if connection is None:
        return ("", 0), environ.get("REMOTE_ADDR", "")
    try:
        name, peer = connection.getsockname(), connection.getpeername()
    except OSError:  # the client has gone already
        return ("", 0), ""
    if not isinstance(name, tuple):
        return ("", 0), ""  # a unix socket
    return (name[0], name[1]), peer[0]


def _head(environ: Environ) -> RequestHead:
    headers = [(key[5:].replace("_", "-").lower(), value) for key, value in environ.items() if key.startswith("HTTP_")]
    headers += [
        (key.replace("_", "-").lower(), environ[key]) for key in ("CONTENT_TYPE", "CONTENT_LENGTH") if environ.get(key)
    ]
    return RequestHead(
        environ["REQUEST_METHOD"],
        environ.get("HTTP_HOST", ""),
        _target(environ),
        Headers(headers),
        scheme=environ.get("wsgi.url_scheme", "http"),
    )


def _target(environ: Environ) -> str:
    # RAW_URI (gunicorn) and REQUEST_URI (uwsgi, mod_wsgi) are the target as sent; PATH_INFO has been decoded, and a rule
    # about paths must see what a proxy would see.
    target: str = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    if target.startswith("/") or target == "*":
        return target
    _, mark, rest = target.partition("://")
    if mark:  # absolute form: a proxy would look at its path (RFC 9112, section 3.2.2)
        authority = rest.partition("?")[0].partition("/")[0]
        rest = rest[len(authority) :]
        return rest if rest.startswith("/") else "/" + rest
    path = (
        quote((environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1"), safe=UNESCAPED) or "/"
    )
    query = environ.get("QUERY_STRING")
    return f"{path}?{query}" if query else path


def _peer(environ: Environ) -> Peer:
    connection = environ.get("gunicorn.socket")
    if isinstance(connection, ssl.SSLSocket) and (der := connection.getpeercert(binary_form=True)):
        return peer_of_der(der)
    return ANONYMOUS
