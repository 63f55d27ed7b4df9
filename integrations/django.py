"""MeshMiddleware for Django: add it to `MIDDLEWARE`, first of all.

Settings (all optional), as a dict `MESHLIB`:
    mesh: a `Mesh`, or a callable that returns one; default: the process-wide one, from the environment.
    address: `host:port` of the listener that applies; default: the address of each connection.
    service: name of this service in reports.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from meshlib.errors import ConfigError
from meshlib.integrations import asgi, default_mesh, wsgi
from meshlib.model.outcome import LocalReply
from meshlib.servers.inbound import Inbound

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
        status = 500
        try:
            with inbound.entered():
                response: HttpResponseBase = self.get_response(request)
            status = response.status_code
            return response
        finally:
            inbound.finish(status)

    async def _acall(self, request: Any) -> HttpResponseBase:
        inbound = await asgi.begin(self._inbound, request.scope)
        if inbound.reply is not None:
            inbound.finish(inbound.reply.status)
            return _refusal(inbound.reply)
        request.mesh_principal = inbound.context.principal
        status = 500
        try:
            with inbound.entered():
                response: HttpResponseBase = await self.get_response(request)
            status = response.status_code
            return response
        finally:
            inbound.finish(status)


def _refusal(reply: LocalReply) -> HttpResponse:
    return HttpResponse(reply.body, status=reply.status, headers=dict(reply.headers))
