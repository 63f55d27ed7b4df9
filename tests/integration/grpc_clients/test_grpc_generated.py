"""Code made by protoc works on mesh channels as on grpcio's: all arities, metadata, deadlines, rich errors."""

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2  # type: ignore[import-untyped]  # ships no stubs
from grpc_status import rpc_status  # type: ignore[import-untyped]  # ships no stubs

from meshlib.clients.grpc_aio import AioMeshChannel
from meshlib.clients.grpc_sync import MeshChannel

PROTO = """
syntax = "proto3";
package meshlib.test;
message Order { string name = 1; int32 count = 2; }
message Reply { string text = 1; }
service Orders {
  rpc Get(Order) returns (Reply);
  rpc List(Order) returns (stream Reply);
  rpc Sum(stream Order) returns (Reply);
  rpc Chat(stream Order) returns (stream Reply);
}
"""


class Generated(NamedTuple):
    """The two modules that protoc makes."""

    pb2: Any
    grpc: Any


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Generated]:
    """Compile the service."""
    from grpc_tools import protoc  # type: ignore[import-untyped]  # ships no stubs

    folder = tmp_path_factory.mktemp("generated")
    Path(folder, "meshlib_orders.proto").write_text(PROTO)
    options = [f"-I{folder}", f"--python_out={folder}", f"--grpc_python_out={folder}", "meshlib_orders.proto"]
    assert 0 == protoc.main(["protoc", *options])
    sys.path.insert(0, str(folder))
    yield Generated(importlib.import_module("meshlib_orders_pb2"), importlib.import_module("meshlib_orders_pb2_grpc"))
    sys.path.remove(str(folder))


@pytest.fixture
def address(generated: Generated) -> Iterator[str]:
    """A server of the service."""
    reply = generated.pb2.Reply

    class Servicer(generated.grpc.OrdersServicer):  # type: ignore[misc,name-defined]  # made at run time
        def Get(self, request: Any, context: Any) -> Any:
            if request.name == "broken":
                detail = any_pb2.Any()
                detail.Pack(error_details_pb2.ErrorInfo(reason="BROKEN", domain="orders"))
                status = status_pb2.Status(code=code_pb2.FAILED_PRECONDITION, message="it is broken", details=[detail])
                context.abort_with_status(rpc_status.to_status(status))
            if request.name == "slow":
                context.add_callback(lambda: None)
                for _ in range(200):
                    if not context.is_active():
                        break
                    __import__("time").sleep(0.01)
            sent = dict(context.invocation_metadata())
            context.send_initial_metadata((("first", "1"),))
            context.set_trailing_metadata((("last-bin", b"\x02"),))
            return reply(text=f"{request.name} {sent.get('who', '')}{sent.get('grpc-encoding', '')}")

        def List(self, request: Any, context: Any) -> Any:
            for number in range(request.count):
                yield reply(text=f"{request.name} {number}")

        def Sum(self, requests: Any, context: Any) -> Any:
            return reply(text=str(sum(one.count for one in requests)))

        def Chat(self, requests: Any, context: Any) -> Any:
            for one in requests:
                yield reply(text=one.name)

    pool = futures.ThreadPoolExecutor(8)
    server = grpc.server(pool)
    generated.grpc.add_OrdersServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait(5)
    pool.shutdown()


def test_generated_stubs(generated: Generated, address: str, mesh: Any) -> None:
    mesh.serve(address)
    order = generated.pb2.Order
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        stub = generated.grpc.OrdersStub(channel)
        assert "tea " == stub.Get(order(name="tea")).text
        response, call = stub.Get.with_call(order(name="tea"), metadata=(("who", "me"),), timeout=5)
        assert "tea me" == response.text
        assert ("first", "1") in call.initial_metadata()
        assert ("last-bin", b"\x02") in call.trailing_metadata()
        assert "tea " == stub.Get.future(order(name="tea")).result(5).text
        assert ["tea 0", "tea 1"] == [one.text for one in stub.List(order(name="tea", count=2))]
        orders = [order(name=str(number), count=number) for number in range(4)]
        assert "6" == stub.Sum(iter(orders)).text
        assert ["0", "1", "2", "3"] == [one.text for one in stub.Chat(iter(orders))]
        assert "tea " == stub.Get(order(name="tea"), compression=grpc.Compression.Gzip).text
        assert "tea " == stub.Get(order(name="tea"), wait_for_ready=True, timeout=5).text


def test_errors_of_generated_stubs(generated: Generated, address: str, mesh: Any) -> None:
    mesh.serve(address)
    order = generated.pb2.Order
    with MeshChannel(mesh.source, "xds:///checkout") as channel:
        stub = generated.grpc.OrdersStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Get(order(name="broken"))
        assert grpc.StatusCode.FAILED_PRECONDITION is caught.value.code()
        status = rpc_status.from_call(caught.value)
        info = error_details_pb2.ErrorInfo()
        status.details[0].Unpack(info)
        assert ("it is broken", "BROKEN") == (status.message, info.reason)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Get(order(name="slow"), timeout=0.05)
        assert grpc.StatusCode.DEADLINE_EXCEEDED is caught.value.code()
        future = stub.Get.future(order(name="slow"))
        assert future.cancel()
        with pytest.raises(grpc.FutureCancelledError):
            future.result(5)
    assert 0 == mesh.active


async def test_generated_stubs_for_aio(generated: Generated, address: str, mesh: Any) -> None:
    mesh.serve(address)
    order = generated.pb2.Order

    async def orders() -> AsyncIterator[Any]:
        for number in range(4):
            yield order(name=str(number), count=number)

    async with AioMeshChannel(mesh.source, "xds:///checkout") as channel:
        stub = generated.grpc.OrdersStub(channel)
        call = stub.Get(order(name="tea"), metadata=(("who", "me"),), timeout=5)
        assert "tea me" == (await call).text
        assert ("first", "1") in tuple(await call.initial_metadata())
        assert ("last-bin", b"\x02") in tuple(await call.trailing_metadata())
        assert ["tea 0", "tea 1"] == [one.text async for one in stub.List(order(name="tea", count=2))]
        assert "6" == (await stub.Sum(orders())).text
        assert ["0", "1", "2", "3"] == [one.text async for one in stub.Chat(orders())]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Get(order(name="broken"))
        status = await _status(stub.Get(order(name="broken")))
        assert grpc.StatusCode.FAILED_PRECONDITION is caught.value.code()
        assert "it is broken" == status.message
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Get(order(name="slow"), timeout=0.05)
        assert grpc.StatusCode.DEADLINE_EXCEEDED is caught.value.code()
        slow = stub.Get(order(name="slow"))
        await asyncio.sleep(0.01)
        assert slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
    assert 0 == mesh.active


async def _status(call: Any) -> Any:
    return await rpc_status.aio.from_call(call) if hasattr(rpc_status, "aio") else await _from_trailers(call)


async def _from_trailers(call: Any) -> Any:
    trailers = dict(tuple(await call.trailing_metadata()))
    return status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
