"""A gRPC service with a method of each arity, and some that go wrong; RUN is `sync` or `aio`.

Prints a line for each call that has ended: `ended METHOD CODE`.
"""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from typing import Any

import grpc
import grpc.aio

import meshlib
from meshlib.events import RequestServed
from meshlib.integrations import grpc_server
from meshlib.runtime.context import current_request

OPTIONS = json.loads(os.environ["OPTIONS"])
GRACE_S = 3


def place() -> bytes:
    inbound = current_request()
    return inbound.principal.encode() if inbound is not None else b"outside"


def unary_unary(request: bytes, context: Any) -> bytes:
    return place()


def unary_stream(request: bytes, context: Any) -> Iterator[bytes]:
    for _ in range(3):
        yield place()


def stream_unary(requests: Iterator[bytes], context: Any) -> bytes:
    return str(len(list(requests))).encode()


def stream_stream(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
    for request in requests:
        yield request + place()


def abort(request: bytes, context: Any) -> bytes:
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")
    raise AssertionError("abort returned")


def fail(request: bytes, context: Any) -> bytes:
    raise ValueError("boom")


def endless(request: bytes, context: Any) -> Iterator[bytes]:
    while True:
        yield b"more"
        time.sleep(0.02)


def slow(request: bytes, context: Any) -> bytes:
    time.sleep(0.5)
    return b""


async def a_unary_unary(request: bytes, context: Any) -> bytes:
    return place()


async def a_unary_stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
    for _ in range(3):
        yield place()


async def a_stream_unary(requests: AsyncIterator[bytes], context: Any) -> bytes:
    return str(len([request async for request in requests])).encode()


async def a_stream_stream(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    async for request in requests:
        yield request + place()


async def a_read_write(unused: Any, context: Any) -> None:
    while (request := await context.read()) is not grpc.aio.EOF:
        await context.write(request + place())


async def a_abort(request: bytes, context: Any) -> bytes:
    await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")
    raise AssertionError("abort returned")


async def a_fail(request: bytes, context: Any) -> bytes:
    raise ValueError("boom")


async def a_endless(request: bytes, context: Any) -> AsyncIterator[bytes]:
    while True:
        yield b"more"
        await asyncio.sleep(0.02)


async def a_slow(request: bytes, context: Any) -> bytes:
    await asyncio.sleep(0.5)
    return b""


def handlers(prefix: str) -> grpc.GenericRpcHandler:
    have = globals()
    methods = {
        "UnaryUnary": grpc.unary_unary_rpc_method_handler(have[prefix + "unary_unary"]),
        "UnaryStream": grpc.unary_stream_rpc_method_handler(have[prefix + "unary_stream"]),
        "StreamUnary": grpc.stream_unary_rpc_method_handler(have[prefix + "stream_unary"]),
        "StreamStream": grpc.stream_stream_rpc_method_handler(have[prefix + "stream_stream"]),
        "Abort": grpc.unary_unary_rpc_method_handler(have[prefix + "abort"]),
        "Fail": grpc.unary_unary_rpc_method_handler(have[prefix + "fail"]),
        "Endless": grpc.unary_stream_rpc_method_handler(have[prefix + "endless"]),
        "EndlessToo": grpc.unary_stream_rpc_method_handler(have[prefix + "endless"]),
        "Slow": grpc.unary_unary_rpc_method_handler(have[prefix + "slow"]),
        "Secret": grpc.unary_unary_rpc_method_handler(have[prefix + "unary_unary"]),
    }
    if prefix:
        methods["ReadWrite"] = grpc.stream_stream_rpc_method_handler(a_read_write)
        methods["Plain"] = grpc.unary_unary_rpc_method_handler(unary_unary)  # a plain function on an asyncio server
    return grpc.method_handlers_generic_handler("test.Greeter", methods)


def serve_sync(mesh: meshlib.Mesh) -> None:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    server = grpc.server(futures.ThreadPoolExecutor(16), interceptors=[grpc_server.interceptor(mesh)])
    server.add_generic_rpc_handlers((handlers(""),))
    with grpc_server.announced(server, mesh, **OPTIONS):
        server.start()
        stop.wait()
    server.stop(GRACE_S).wait()


async def serve_aio(mesh: meshlib.Mesh) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = grpc.aio.server(interceptors=[grpc_server.aio_interceptor(mesh)])
    server.add_generic_rpc_handlers((handlers("a_"),))
    async with grpc_server.aio_announced(server, mesh, **OPTIONS):
        await server.start()
        await stop.wait()
    await server.stop(GRACE_S)


def report(event: object) -> None:
    if isinstance(event, RequestServed):
        print(f"ended {event.path.rpartition('/')[2]} {event.grpc_status}", flush=True)


if __name__ == "__main__":
    with meshlib.Mesh.from_env() as mesh:
        mesh.add_hook(report)
        if os.environ["RUN"] == "sync":
            serve_sync(mesh)
        else:
            asyncio.run(serve_aio(mesh))
