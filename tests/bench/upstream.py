"""The servers that benchmarks call, in a process of their own: `python upstream.py [FOLDER]` prints their ports as JSON.

They do as little as a server can, so that what is measured is the client. HTTP/1.1 over asyncio, without a framework, on
three ports, and one with TLS when a folder has `ca.pem`, `chain.pem` and `key.pem`; HTTP/2 without TLS; gRPC over grpcio,
with bytes for messages, with and without TLS. They end with their standard input.
"""

import asyncio
import json
import ssl
import sys
from concurrent import futures
from pathlib import Path

import grpc
import h2.config
import h2.connection
import h2.events

BODY = b'{"id": 1, "state": "open", "items": ["a", "b", "c"]}'
MIB = b"x" * 1048576


def response(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


SMALL, BIG = response(BODY), response(MIB)


class Http(asyncio.Protocol):
    """Answers every request, once its body is there: paths that begin with `/big` with 1 MiB, others with little."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0  # of a request body
        self._answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        while data:
            if self._left:
                taken = min(self._left, len(data))
                self._left -= taken
                data = data[taken:]
            else:
                self._head += data
                head, end, data = self._head.partition(b"\r\n\r\n")
                if not end:
                    return
                self._head = b""
                self._answer = BIG if b" /big" in head[:16] else SMALL
                _, _, length = head.lower().partition(b"\r\ncontent-length: ")
                self._left = int(length.partition(b"\r\n")[0] or b"0")
            if not self._left:
                self._transport.write(self._answer)


class Http2(asyncio.Protocol):
    """Answers every request with little, once its body is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self._state.initiate_connection()
        transport.write(self._state.data_to_send())

    def data_received(self, data: bytes) -> None:
        state = self._state
        for event in state.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                length = str(len(BODY))
                headers = [(":status", "200"), ("content-type", "application/json"), ("content-length", length)]
                state.send_headers(event.stream_id, headers)
                state.send_data(event.stream_id, BODY, end_stream=True)
        self._transport.write(state.data_to_send())


def start_grpc(folder: Path | None) -> tuple[grpc.Server, dict[str, int]]:
    """Start a server of `/bench.Orders/{Get,List}`; with a folder also with mutual TLS."""
    handlers = {
        "Get": grpc.unary_unary_rpc_method_handler(lambda request, context: BODY),
        "List": grpc.unary_stream_rpc_method_handler(lambda request, context: iter([BODY] * int(request))),
    }
    server = grpc.server(futures.ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Orders", handlers),))
    ports = {"grpc": server.add_insecure_port("127.0.0.1:0")}
    if folder is not None:
        pair = ((folder / "key.pem").read_bytes(), (folder / "chain.pem").read_bytes())
        credentials = grpc.ssl_server_credentials([pair], (folder / "ca.pem").read_bytes(), require_client_auth=True)
        ports["grpc_tls"] = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return server, ports


def tls_context(folder: Path) -> ssl.SSLContext:
    """Return a context that takes clients with a certificate and without."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.pem"))
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


async def main() -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Http, "127.0.0.1", 0, backlog=512) for _ in range(3)]
    ports = {"http": [server.sockets[0].getsockname()[1] for server in servers]}
    servers.append(await loop.create_server(Http2, "127.0.0.1", 0, backlog=512))
    ports["http2"] = [servers[-1].sockets[0].getsockname()[1]]
    if sys.argv[1:]:
        secure = await loop.create_server(Http, "127.0.0.1", 0, backlog=512, ssl=tls_context(Path(sys.argv[1])))
        servers.append(secure)
        ports["tls"] = [secure.sockets[0].getsockname()[1]]
    grpc_server, grpc_ports = start_grpc(Path(sys.argv[1]) if sys.argv[1:] else None)
    print(json.dumps({**ports, **grpc_ports}), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for server in servers:
        server.close()
    grpc_server.stop(None).wait(5)


if __name__ == "__main__":
    asyncio.run(main())
