"""Servers at a thousand addresses, in a process of their own: prints the ports of gRPC and of HTTP/1.1 as JSON.

They answer every request with the same. They end with their standard input.
"""

import asyncio
import json
import socket
import sys
from concurrent import futures
from pathlib import Path

import grpc
import grpc.aio

sys.path.append(str(Path(__file__).parents[1]))

from upstream import BODY, Http

from scale.resources import ADDRESSES, address


class Anything(grpc.GenericRpcHandler):
    """Takes every method."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(lambda request, context: BODY)


async def main() -> None:
    loop = asyncio.get_running_loop()
    addresses = ["127.0.0.1", *map(address, range(ADDRESSES))]
    first = socket.create_server((addresses[0], 0))
    port = first.getsockname()[1]
    sockets = [first, *(socket.create_server((host, port), backlog=64) for host in addresses[1:])]
    servers = [await loop.create_server(Http, sock=each) for each in sockets]
    grpc_server = grpc.server(futures.ThreadPoolExecutor(4))
    grpc_server.add_generic_rpc_handlers((Anything(),))
    grpc_port = grpc_server.add_insecure_port("127.0.0.1:0")
    for host in addresses[1:]:
        assert grpc_server.add_insecure_port(f"{host}:{grpc_port}") == grpc_port
    grpc_server.start()
    print(json.dumps({"grpc": grpc_port, "http": port}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for server in servers:
        server.close()
    grpc_server.stop(None).wait(5)


if __name__ == "__main__":
    asyncio.run(main())
