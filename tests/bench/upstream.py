"""The servers that benchmarks call, in a process of their own: `python upstream.py` prints their ports as JSON.

They do as little as a server can, so that what is measured is the client. HTTP/1.1 over asyncio, without a framework;
gRPC over grpcio, with bytes for messages. They end with their standard input.
"""

import asyncio
import json
import sys
from concurrent import futures

import grpc

BODY = b'{"id": 1, "state": "open", "items": ["a", "b", "c"]}'
RESPONSE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Http(asyncio.Protocol):
    """Answers every request head with the same response; requests have no body."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data
        *heads, self._buffer = data.split(b"\r\n\r\n")
        if heads:
            self._transport.write(RESPONSE * len(heads))


def start_grpc() -> tuple[grpc.Server, int]:
    handlers = {"Get": grpc.unary_unary_rpc_method_handler(lambda request, context: BODY)}
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Orders", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


async def main() -> None:
    loop = asyncio.get_running_loop()
    http = await loop.create_server(Http, "127.0.0.1", 0, backlog=512)
    grpc_server, grpc_port = start_grpc()
    print(json.dumps({"http": http.sockets[0].getsockname()[1], "grpc": grpc_port}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    http.close()
    grpc_server.stop(None).wait(5)


if __name__ == "__main__":
    asyncio.run(main())
