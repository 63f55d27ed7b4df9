"""Two services, `front` and `back`, in a mesh with a real xds-server; each speaks HTTP and gRPC on 127.0.0.1.

`back` answers what it saw of a request. `front` hands a request on to `back` through the mesh, by the client that the
request names, and answers what came back.
"""

import asyncio
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import uvicorn
from peers.endpoints import ports

from meshlib import Mesh
from meshlib.integrations import grpc_server
from meshlib.integrations.asgi import MeshMiddleware
from meshlib.runtime.context import current_request, remaining_s
from meshlib.servers.announce import announce

RULES = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: back}
spec:
  hosts: [back]
  http:
  - route: [{destination: {host: back}}]
    timeout: 10s
    retries: {attempts: 2, retryOn: "5xx,unavailable"}
"""
METHOD = "/test.Echo/Call"
THINKING_S = 0.2
"""What `front` uses up of the time that its caller gives, if it gives any."""


class Back:
    """Attributes:
    refusals: So many requests are refused as unavailable.
    seen: How many came.
    """

    def __init__(self) -> None:
        self.refusals = 0
        self.seen = 0

    def report(self, headers: dict[str, str], clock: Callable[[], float]) -> bytes:
        context = current_request()
        assert context is not None
        return json.dumps(
            {"headers": headers, "remaining_s": remaining_s(clock()), "attempt": context.attempt}
        ).encode()

    def refuses(self) -> bool:
        self.seen += 1
        self.refusals -= 1
        return self.refusals >= 0


class Stage:
    """What a test talks to.

    Attributes:
        front_url: Of `front`'s HTTP server.
        front_grpc: Address of its gRPC server.
    """

    def __init__(self, back_mesh: Mesh, front_mesh: Mesh) -> None:
        self.back = Back()
        self.back_mesh = back_mesh
        self.front_mesh = front_mesh
        self.front_url = ""
        self.front_grpc = ""

    # back

    async def back_http(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        status = 503 if self.back.refuses() else 200
        body = self.back.report(headers, self.back_mesh.clock)
        await send(
            {"type": "http.response.start", "status": status, "headers": [(b"content-length", b"%d" % len(body))]}
        )
        await send({"type": "http.response.body", "body": body})

    def back_rpc(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if self.back.refuses():
            context.abort(grpc.StatusCode.UNAVAILABLE, "asked to refuse")
        headers = {item.key: item.value for item in context.invocation_metadata() if isinstance(item.value, str)}
        return self.back.report(headers, self.back_mesh.clock)

    # front: asyncio over HTTP, threads over gRPC

    async def front_http(self, scope: Any, receive: Any, send: Any) -> None:
        mesh = self.front_mesh
        if remaining_s(mesh.clock()) is not None:
            await asyncio.sleep(THINKING_S)
        if scope["path"] == "/http":
            async with httpx.AsyncClient(transport=mesh.async_httpx_transport()) as client:
                body = (await client.get("http://back/orders/7")).content
        else:
            async with mesh.aio_channel("xds:///back:81") as channel:
                body = await channel.unary_unary(METHOD)(b"")
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})

    def front_rpc(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        mesh = self.front_mesh
        if remaining_s(mesh.clock()) is not None:
            time.sleep(THINKING_S)
        if request == b"http":
            with httpx.Client(transport=mesh.httpx_transport()) as client:
                return client.get("http://back/orders/7").content
        with mesh.channel("xds:///back:81") as channel:
            body: bytes = channel.unary_unary(METHOD)(b"")
            return body


def ask(stage: Stage, way_in: str, way_out: str, headers: dict[str, str], *, timeout_s: float | None = None) -> Any:
    """Send a request to `front` past the mesh, which hands it on; return what `back` saw.

    Args:
        way_in: `asgi` or `grpc`.
        way_out: `http` or `grpc`.
        timeout_s: What the caller allows.
    """
    if way_in == "asgi":
        if timeout_s is not None:
            headers = {**headers, "x-envoy-expected-rq-timeout-ms": str(int(timeout_s * 1000))}
        return httpx.get(f"{stage.front_url}/{way_out}", headers=headers, timeout=20).json()
    with grpc.insecure_channel(stage.front_grpc) as channel:
        return json.loads(
            channel.unary_unary(METHOD)(way_out.encode(), timeout=timeout_s, metadata=tuple(headers.items()))
        )


@contextmanager
def http_server(app: Any) -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield listening
        finally:
            server.should_exit = True
            thread.join(10)


def grpc_on(mesh: Mesh, method: Any, service: str) -> grpc.Server:
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(method)}
    server = grpc.server(futures.ThreadPoolExecutor(8), interceptors=[grpc_server.interceptor(mesh, service=service)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    return server


@contextmanager
def xds_server(folder: Path) -> Iterator[tuple[str, str]]:
    """Run one; returns its xDS and its admin address."""
    (folder / "rules.yaml").write_text(RULES)
    command = ["serve", "rules.yaml", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--debounce-ms", "20"]
    process = subprocess.Popen(
        [sys.executable, "-m", "xds_server", *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"xds=(\S+).*admin=(\S+)", process.stdout.readline())
        assert found is not None
        yield found[1], found[2]
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with ExitStack() as stack:
        xds, registry = stack.enter_context(xds_server(tmp_path_factory.mktemp("stage")))

        def mesh(app: str, version: str) -> Mesh:
            metadata = {"LABELS": {"app": app, "version": version}, "NAMESPACE": "default"}
            made = Mesh.connect(xds, node_id=app, registry_uri=registry, metadata=metadata, state_dir="")
            return stack.enter_context(made)

        result = Stage(mesh("back", "v1"), mesh("front", "v7"))
        back = stack.enter_context(http_server(MeshMiddleware(result.back_http, mesh=result.back_mesh, service="back")))
        address = f"127.0.0.1:{back.getsockname()[1]}"
        stack.enter_context(announce(result.back_mesh, service="back", address=address))
        rpc = grpc_on(result.back_mesh, result.back_rpc, "back")
        stack.enter_context(grpc_server.announced(rpc, result.back_mesh, service="back", service_port=81))
        rpc.start()
        stack.callback(lambda: rpc.stop(0).wait(5))

        front = stack.enter_context(
            http_server(MeshMiddleware(result.front_http, mesh=result.front_mesh, service="front"))
        )
        result.front_url = f"http://127.0.0.1:{front.getsockname()[1]}"
        stack.enter_context(
            announce(result.front_mesh, service="front", address=result.front_url.removeprefix("http://"))
        )
        rpc = grpc_on(result.front_mesh, result.front_rpc, "front")
        result.front_grpc = stack.enter_context(
            grpc_server.announced(rpc, result.front_mesh, service="front", service_port=81)
        )
        rpc.start()
        stack.callback(lambda: rpc.stop(0).wait(5))
        _wait_endpoints(result.front_mesh)
        yield result


def _wait_endpoints(mesh: Mesh) -> None:
    mesh.wait_ready("back", "back:81", timeout_s=30)
    deadline = time.monotonic() + 40
    while not all(ports(mesh, f"outbound|{port}||back.default.svc.cluster.local") for port in (80, 81)):
        assert time.monotonic() < deadline, str(mesh.status())
        time.sleep(0.02)


@pytest.fixture
def asking(stage: Stage) -> Callable[..., Any]:
    """`ask` with the stage filled in."""
    return lambda *args, **options: ask(stage, *args, **options)
