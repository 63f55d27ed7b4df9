"""Every server adapter makes a SERVER span below the caller's, which is current for the application."""

import asyncio
import gc
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import django.conf
import grpc
import grpc.aio
import pytest
from django.http import HttpRequest, HttpResponse
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from meshlib import Mesh
from meshlib.events import RequestServed
from meshlib.integrations import asgi, grpc_server, wsgi
from meshlib.integrations import django as django_adapter

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
BOOTSTRAP = {"xds_servers": [{"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "insecure"}]}]}
METHOD = "/test.Echo/Call"


class Seen:
    """Attributes:
    spans: Those that ended.
    inside: The span that was current in the application.
    """

    def __init__(self) -> None:
        self.spans = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.mesh = Mesh(BOOTSTRAP, state_dir="", tracer_provider=self.provider)
        self.inside = 0

    def look(self) -> None:
        self.inside = trace.get_current_span().get_span_context().span_id

    def check(self, name: str) -> None:
        (span,) = self.spans.get_finished_spans()
        assert (name, SpanKind.SERVER, self.inside) == (span.name, span.kind, span.context.span_id)
        assert span.parent is not None
        assert (int(TRACE, 16), PARENT[36:52]) == (span.context.trace_id, trace.format_span_id(span.parent.span_id))


@pytest.fixture
def seen() -> Seen:
    return Seen()


async def test_asgi(seen: Seen) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.look()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def send(message: Any) -> None:
        pass

    headers = [(b"traceparent", PARENT.encode())]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "server": ("127.0.0.1", 80)}
    await asgi.MeshMiddleware(app, mesh=seen.mesh)(scope, send, send)  # type: ignore[arg-type]  # receives nothing
    seen.check("GET")


def environ() -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/",
        "HTTP_TRACEPARENT": PARENT,
        "SERVER_NAME": "h",
        "SERVER_PORT": "1",
    }


def test_wsgi(seen: Seen) -> None:
    def app(environ: Any, start_response: Callable[..., Any]) -> list[bytes]:
        seen.look()
        start_response("200 OK", [])
        return [b"a", b"b"]

    response: Any = wsgi.MeshMiddleware(app, mesh=seen.mesh)(environ(), lambda *_: None)
    assert [b"a", b"b"] == list(response)
    response.close()
    seen.check("GET")


@pytest.fixture
def django_settings(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    if not django.conf.settings.configured:
        django.conf.settings.configure()
    monkeypatch.setattr(django_adapter, "settings", SimpleNamespace(MESHLIB={"mesh": seen.mesh}))


@pytest.mark.usefixtures("django_settings")
def test_django(seen: Seen) -> None:
    def view(request: HttpRequest) -> HttpResponse:
        seen.look()
        return HttpResponse(b"")

    request = HttpRequest()
    request.META = environ()
    django_adapter.MeshMiddleware(view)(request)
    seen.check("GET")


@pytest.mark.usefixtures("django_settings")
async def test_django_async(seen: Seen) -> None:
    async def view(request: HttpRequest) -> HttpResponse:
        seen.look()
        return HttpResponse(b"")

    request: Any = HttpRequest()
    headers = [(b"traceparent", PARENT.encode())]
    request.scope = {"type": "http", "method": "GET", "path": "/", "headers": headers}
    await django_adapter.MeshMiddleware(view)(request)  # type: ignore[misc]
    seen.check("GET")


async def test_grpc_aio(seen: Seen) -> None:
    """Unary and streaming; a client that leaves in the middle of a stream ends the span too."""

    async def unary(request: bytes, context: Any) -> bytes:
        seen.look()
        return b""

    async def stream(request: bytes, context: Any) -> Any:
        seen.look()
        for _ in range(1000):
            yield b"x"

    handlers = {
        "Call": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.unary_stream_rpc_method_handler(stream),
    }
    server = grpc.aio.server(interceptors=[grpc_server.aio_interceptor(seen.mesh)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    metadata = (("traceparent", PARENT),)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await channel.unary_unary(METHOD)(b"", metadata=metadata)
            seen.check("test.Echo/Call")
            seen.spans.clear()
            async for _ in channel.unary_stream("/test.Echo/Stream")(b"", metadata=metadata):
                pass
            seen.check("test.Echo/Stream")
            seen.spans.clear()
            call = channel.unary_stream("/test.Echo/Stream")(b"", metadata=metadata)
            await call.read()
            call.cancel()
    finally:
        await server.stop(1)
    async with asyncio.timeout(10):
        while not seen.spans.get_finished_spans():  # stop() does not wait for the tasks of RPCs that were cancelled
            await asyncio.sleep(0.001)
    seen.check("test.Echo/Stream")


async def test_grpc_aio_caller_leaves(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    """The end of a stream is reported when its caller leaves, and the handler closed in its own context.

    1. The caller leaves in the middle of a stream, with nobody to collect garbage.
    2. Its end is reported as cancelled, and the handler's `finally` has run with its trace current.
    3. Garbage is collected at last: no complaint about tokens of other contexts.
    """
    served = asyncio.Queue[RequestServed]()
    closed = asyncio.Queue[int]()
    seen.mesh.add_hook(lambda event: served.put_nowait(event) if isinstance(event, RequestServed) else None)

    async def stream(request: bytes, context: Any) -> Any:
        seen.look()
        try:
            while True:
                yield b"x" * 1000
        finally:
            await asyncio.sleep(0)
            closed.put_nowait(trace.get_current_span().get_span_context().span_id)

    handlers = {"Stream": grpc.unary_stream_rpc_method_handler(stream)}
    server = grpc.aio.server(interceptors=[grpc_server.aio_interceptor(seen.mesh)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    gc.disable()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            for _ in range(5):
                call = channel.unary_stream("/test.Echo/Stream")(b"", metadata=(("traceparent", PARENT),))
                await call.read()
                call.cancel()
                event = await asyncio.wait_for(served.get(), 20)
                assert (1, False) == (event.grpc_status, event.denied)
                seen.check("test.Echo/Stream")
                assert seen.inside == await asyncio.wait_for(closed.get(), 20)
                seen.spans.clear()
        gc.collect()
        await asyncio.sleep(0)
    finally:
        gc.enable()
        await server.stop(1)
    assert served.empty() and closed.empty()
    # grpc.aio's poller complains of its own wake-ups under load.
    assert [] == [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR and one.name != "asyncio"]


def test_grpc(seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    """A client that leaves in the middle of a stream ends the span, and leaves no trouble in the log."""
    from concurrent import futures

    def stream(request: bytes, context: Any) -> Any:
        seen.look()
        while context.is_active():
            yield b"x" * 10000

    pool = futures.ThreadPoolExecutor(2)
    server = grpc.server(pool, interceptors=[grpc_server.interceptor(seen.mesh)])
    handlers = {"Stream": grpc.unary_stream_rpc_method_handler(stream)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_stream("/test.Echo/Stream")(b"", metadata=(("traceparent", PARENT),))
        next(call)
        call.cancel()
    server.stop(2).wait(5)
    pool.shutdown()  # the server does not wait for the handler's thread, where the span ends
    seen.check("test.Echo/Stream")
    assert [] == [record for record in caplog.records if "context" in record.getMessage()]
