"""MeshMiddleware for Django: add it to `MIDDLEWARE`, first of all.

Settings (all optional), as a dict `MESHLIB`:
    mesh: a `Mesh`, or a callable that returns one; default: the process-wide one, from the environment.
    address: `host:port` of the listener that applies; default: the one announced for the connection's address (see
        `meshlib.integrations.wsgi.MeshMiddleware` for servers other than gunicorn).
    service: name of this service in reports.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse

from meshlib.errors import ConfigError
from meshlib.integrations import asgi, default_mesh, wsgi
from meshlib.model.outcome import LocalReply
from meshlib.servers.inbound import Inbound, InboundRequest

__all__ = ["MeshMiddleware"]

OPTIONS = {"mesh", "address", "service"}


class MeshMiddleware:
    """Identity, authorization, deadline, trace context and reports for Django, under WSGI and ASGI.

    Views find the caller's SPIFFE id as `request.mesh_principal` (empty: not authenticated).
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        options: dict[str, Any] = getattr(settings, "MESHLIB", {})
        if unknown := set(options) - OPTIONS:
            raise ConfigError(f"settings.MESHLIB: unknown option {sorted(unknown)[0]!r}; known are {sorted(OPTIONS)}")
        mesh = options.get("mesh")
        if mesh is None:
            mesh = default_mesh()
        elif callable(mesh):
            mesh = mesh()
        self._inbound = Inbound(mesh, kind="http", address=options.get("address"), service=options.get("service", ""))
        self._is_async = iscoroutinefunction(get_response)
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if self._is_async:
            return self._acall(request)
        inbound = wsgi.begin(self._inbound, request.META)
        if inbound.reply is not None:
            inbound.finish(inbound.reply.status)
            return _refusal(inbound.reply)
        request.mesh_principal = inbound.context.principal
        try:
            with inbound.entered():
                response: HttpResponseBase = self.get_response(request)
        except BaseException:
            inbound.finish(500)
            raise
        return _observed(response, inbound)

    async def _acall(self, request: Any) -> HttpResponseBase:
        inbound = await asgi.begin(self._inbound, request.scope)
        if inbound.reply is not None:
            inbound.finish(inbound.reply.status)
            return _refusal(inbound.reply)
        request.mesh_principal = inbound.context.principal
        try:
            with inbound.entered():
                response: HttpResponseBase = await self.get_response(request)
        except BaseException:
            inbound.finish(500)
            raise
        return _observed(response, inbound)


def _observed(response: HttpResponseBase, inbound: InboundRequest) -> HttpResponseBase:
    """Have a streamed body made within the request's context, and the end reported when it has come to its end."""
    for name, value in inbound.response_headers:
        response[name] = value
    # A file is not made while it is sent, and servers send it without looking inside.
    if not isinstance(response, StreamingHttpResponse) or getattr(response, "file_to_stream", None) is not None:
        inbound.finish(response.status_code)
    elif response.is_async:
        response.streaming_content = _AsyncStream(response.streaming_content, inbound, response.status_code)
    else:
        response.streaming_content = _Stream(response.streaming_content, inbound, response.status_code)
    return response


class _Stream:
    """A body of Django's own kind: an iterator whose `close` the response calls."""

    def __init__(self, body: Any, inbound: InboundRequest, status: int) -> None:
        self._body = iter(body)
        self._inbound = inbound
        self._status = status

    def __iter__(self) -> "_Stream":
        return self

    def __next__(self) -> bytes:
        with self._inbound.entered():
            chunk: bytes | None = next(self._body, None)
        if chunk is None:  # outside of the context, for which StopIteration would be an error
            raise StopIteration
        return chunk

    def close(self) -> None:
        self._inbound.finish(self._status)


class _AsyncStream:
    """As `_Stream`."""

    def __init__(self, body: Any, inbound: InboundRequest, status: int) -> None:
        self._body = aiter(body)
        self._inbound = inbound
        self._status = status

    def __aiter__(self) -> "_AsyncStream":
        return self

    async def __anext__(self) -> bytes:
        with self._inbound.entered():
            chunk: bytes | None = await anext(self._body, None)
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    async def aclose(self) -> None:
        if hasattr(self._body, "aclose"):
            await self._body.aclose()

    def close(self) -> None:
        self._inbound.finish(self._status)


def _refusal(reply: LocalReply) -> HttpResponse:
    return HttpResponse(reply.body, status=reply.status, headers=dict(reply.headers))
