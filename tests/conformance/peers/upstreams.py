"""Servers behind the mesh. They say who they are and what reached them, and fail when a test tells them to."""

import json
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import grpc

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Seen:
    """A request as an upstream got it; header names are in lower case."""

    method: str
    path: str
    authority: str
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """How one request is answered.

    Attributes:
        delay_s: Before the answer.
        is_reset: Close the connection instead of answering.
    """

    status: int = 200
    delay_s: float = 0.0
    is_reset: bool = False
    headers: tuple[tuple[str, str], ...] = ()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients which go away in the middle are part of some tests


class HttpUpstream:
    """An HTTP/1.1 server on a thread.

    Attributes:
        seen: What reached it, in order.
        script: How the next requests are answered, one entry each; then `usual` again.
    """

    def __init__(self, version: str, *, address: str = LOOPBACK, port: int = 0) -> None:
        self.version = version
        self.seen: list[Seen] = []
        self.script: deque[Step] = deque()
        self.usual = Step()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = 30

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                headers = tuple((name.lower(), value) for name, value in self.headers.items())
                path = self.requestline.split(" ")[1]  # `self.path` has leading slashes made one
                found = Seen(self.command, path, self.headers.get("host", ""), headers)
                upstream.seen.append(found)
                try:
                    step = upstream.script.popleft()
                except IndexError:
                    step = upstream.usual
                if step.delay_s:
                    time.sleep(step.delay_s)
                if step.is_reset:
                    self.close_connection = True
                    return
                told = {"version": upstream.version, "body_bytes": len(body), **_as_json(found)}
                content = json.dumps(told).encode() if self.command != "HEAD" else b""
                self.send_response_only(step.status)
                for name, value in step.headers:
                    self.send_header(name, value)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_OPTIONS = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Server((address, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class GrpcUpstream(grpc.GenericRpcHandler):
    """A gRPC server that knows every method; requests and responses are bytes.

    Attributes:
        seen: What reached it, in order.
        script: The status codes that the next calls end with, one each.
        trailers: Of every call.
    """

    def __init__(self, version: str) -> None:
        self.version = version
        self.seen: list[Seen] = []
        self.script: deque[grpc.StatusCode] = deque()
        self.trailers: tuple[tuple[str, str | bytes], ...] = ()
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=[self])
        self.port = self._server.add_insecure_port(f"{LOOPBACK}:0")
        self._server.start()

    def service(self, details: Any) -> Any:
        def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
            headers = tuple((name, value) for name, value in context.invocation_metadata() if isinstance(value, str))
            # gRPC hands the authority over to nobody but its own code.
            host: bytes = getattr(context, "_rpc_event").call_details.host  # noqa: B009
            found = Seen("POST", details.method, host.decode(), headers)
            self.seen.append(found)
            if self.trailers:
                context.set_trailing_metadata(self.trailers)
            if self.script:
                context.abort(self.script.popleft(), f"{self.version} was told to")
            return json.dumps({"version": self.version, **_as_json(found)}).encode()

        return grpc.unary_unary_rpc_method_handler(answer)

    def close(self) -> None:
        self._server.stop(None).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _as_json(seen: Seen) -> dict[str, Any]:
    return {"method": seen.method, "path": seen.path, "authority": seen.authority, "headers": seen.headers}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, in words which HTTP and gRPC share.

    Attributes:
        status: HTTP status.
        version: Of the upstream that answered; empty: no upstream did.
        seen: What the upstream got.
        flag: Envoy's response flags where the client tells them.
    """

    status: int
    version: str = ""
    seen: Seen | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    elapsed_s: float = 0.0
    flag: str = ""


def answer_of(status: int, headers: dict[str, str], body: str, elapsed_s: float, flag: str = "") -> Answer:
    """Read what an upstream said of itself out of a body, if an upstream made it."""
    try:
        told = json.loads(body)
        seen = Seen(told["method"], told["path"], told["authority"], tuple((k, v) for k, v in told["headers"]))
        return Answer(status, told["version"], seen, headers, body, elapsed_s, flag)
    except (ValueError, KeyError, TypeError):
        return Answer(status, "", None, headers, body, elapsed_s, flag)


@contextmanager
def refusing_port() -> Iterator[int]:
    """Give a port that nobody listens on, and that nobody else can take meanwhile."""
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        yield taken.getsockname()[1]
