"""my-service: a gRPC service; v1 runs on the synchronous server, v2 on grpc.aio."""

import asyncio
import json
import os
import signal
import threading
from concurrent import futures

import grpc
import grpc.aio

import meshlib
from meshlib.integrations import grpc_server

VERSION = os.environ.get("VERSION", "v1")
OPTIONS = {"service": "my-service", "labels": {"version": VERSION}, "service_account": "my-service", "ttl_s": 2}


def answer() -> bytes:
    return json.dumps({"service": "my-service", "version": VERSION, "pid": os.getpid()}).encode()


def get(request: bytes, context: grpc.ServicerContext) -> bytes:
    return answer()


async def get_async(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return answer()


def handlers(behaviour: object) -> grpc.GenericRpcHandler:
    # Generated stubs do this for you; the example does without a compiler step.
    return grpc.method_handlers_generic_handler(
        "canary.MyService", {"Get": grpc.unary_unary_rpc_method_handler(behaviour)}
    )


def serve_sync(mesh: meshlib.Mesh) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    pool = futures.ThreadPoolExecutor(max_workers=16)
    server = grpc.server(pool, interceptors=[grpc_server.interceptor(mesh, service="my-service")])
    server.add_generic_rpc_handlers((handlers(get),))
    with grpc_server.announced(server, mesh, **OPTIONS):
        server.start()
        stop.wait()
    server.stop(grace=1).wait()


async def serve_aio(mesh: meshlib.Mesh) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = grpc.aio.server(interceptors=[grpc_server.aio_interceptor(mesh, service="my-service")])
    server.add_generic_rpc_handlers((handlers(get_async),))
    async with grpc_server.aio_announced(server, mesh, **OPTIONS):
        await server.start()
        await stop.wait()
    await server.stop(grace=1)


if __name__ == "__main__":
    with meshlib.Mesh.from_env() as mesh:
        if VERSION == "v1":
            serve_sync(mesh)
        else:
            asyncio.run(serve_aio(mesh))
