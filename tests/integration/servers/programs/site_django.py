"""A Django site: WSGI for gunicorn, ASGI for uvicorn (`RUN=asgi` serves it)."""

import json
import os
import time
from collections.abc import AsyncIterator, Iterator

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path, re_path

from meshlib.integrations import default_mesh
from meshlib.runtime.context import current_request

while os.path.exists(os.environ.get("LOADS_WHILE", "")):
    time.sleep(0.02)  # an application that takes its time

settings.configure(
    SECRET_KEY=os.urandom(32).hex(),
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["meshlib.integrations.django.MeshMiddleware"],
    MESHLIB={"service": "site"},
)


def place() -> bytes:
    return b"in context\n" if current_request() is not None else b"outside\n"


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def body() -> Iterator[bytes]:
        for _ in range(3):
            yield place()

    async def async_body() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield place()

    return StreamingHttpResponse(body() if os.environ.get("RUN") != "asgi" else async_body())


def slow(request: HttpRequest) -> JsonResponse:
    time.sleep(0.5)
    return JsonResponse({"pid": os.getpid()})


def boom(request: HttpRequest) -> HttpResponse:
    raise ValueError("boom")


def answer(request: HttpRequest) -> JsonResponse:
    principal = getattr(request, "mesh_principal", None)
    return JsonResponse({"pid": os.getpid(), "principal": principal, "path": request.path, "scheme": request.scheme})


urlpatterns = [path("stream", stream), path("slow", slow), path("boom", boom), re_path(r"^.*$", answer)]
application = get_wsgi_application()


def plain(environ: dict[str, object], start_response: object) -> list[bytes]:
    """A WSGI application without a framework; the middleware is added below."""
    start_response("200 OK", [("content-type", "application/json")])  # type: ignore[operator]
    return [json.dumps({"pid": os.getpid(), "path": environ["PATH_INFO"]}).encode()]


if os.environ.get("RUN") == "plain":
    from meshlib.integrations.wsgi import MeshMiddleware

    application = MeshMiddleware(plain)

if __name__ == "__main__":
    from meshlib.integrations import uvicorn

    with default_mesh() as mesh:
        options = json.loads(os.environ["OPTIONS"])
        uvicorn.run(get_asgi_application(), mesh=mesh, log_level="warning", lifespan="off", **options)
