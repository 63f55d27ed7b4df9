"""Upstreams that follow a script for each request; `{here}` in its headers is the host and path of the request."""

import contextlib
import selectors
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Self

from peers.upstreams import LOOPBACK, Step

__all__ = ["Met", "ScriptedUpstream"]

_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Met:
    """A request as it came.

    Attributes:
        host: IP address that it came to.
    """

    host: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = False
    timeout = 0  # it is asked when somebody has come

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's would ask for the name of each address

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients go away in the middle


class ScriptedUpstream:
    """HTTP/1.1 servers, all at one port; what no script speaks of is answered 200.

    Attributes:
        address: Of the first.
        port: Of all.
    """

    def __init__(self, hosts: Sequence[str] = (LOOPBACK,), known_by: str = "", copies: Sequence[str] = ()) -> None:
        """Listen.

        Args:
            hosts: IP addresses.
            known_by: The header that says which script a request follows; empty: its path does.
            copies: Those of the hosts that get copies of requests: these follow no script.
        """
        self._lock = threading.Lock()
        self._scripts: dict[str, deque[Step]] = {}
        self._seen: dict[str, list[Met]] = {}
        self._copies = frozenset(copies)
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = 30

            def handle_any(self) -> None:
                self.rfile.read(int(self.headers.get("content-length") or 0))
                path = self.requestline.split(" ")[1]  # `self.path` has leading slashes made one
                key = self.headers.get(known_by, "") if known_by else path
                headers = tuple((name.lower(), value) for name, value in self.headers.items())
                step = upstream._next(key, Met(self.connection.getsockname()[0], self.command, path, headers))
                if step.delay_s:
                    time.sleep(step.delay_s)
                if step.is_reset:
                    self.close_connection = True
                    return
                self.send_response_only(step.status)
                here = f"{self.headers.get('host')}{path}"
                for name, value in step.headers:
                    self.send_header(name, value.replace("{here}", here))
                self.send_header("content-length", "2")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(b"ok")

            do_GET = do_POST = do_PUT = do_HEAD = handle_any

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._servers = _listen(hosts, Handler)
        self.port = int(self._servers[0].server_address[1])
        self.address = f"{hosts[0]}:{self.port}"
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            for server in self._servers:
                selector.register(server, selectors.EVENT_READ, server)
            while not self._is_over.is_set():
                for key, _ in selector.select(_LOOK_S):
                    key.data.handle_request()

    def expect(self, key: str, script: Sequence[Step]) -> None:
        """Say how the next requests of a key are answered."""
        with self._lock:
            self._scripts[key] = deque(script)
            self._seen[key] = []

    def take(self, key: str) -> list[Met]:
        """Return the requests of a key, in the order in which they came."""
        with self._lock:
            return self._seen.pop(key)

    def _next(self, key: str, met: Met) -> Step:
        with self._lock:
            if key in self._seen:
                self._seen[key].append(met)
            script = None if met.host in self._copies else self._scripts.get(key)
            return script.popleft() if script else Step()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        for server in self._servers:
            server.server_close()


def _listen(hosts: Sequence[str], handler: type[BaseHTTPRequestHandler]) -> list[_Server]:
    """Listen at one port of all hosts."""
    while True:
        servers = [_Server((hosts[0], 0), handler)]
        port = servers[0].server_address[1]
        with contextlib.suppress(OSError):  # another process has it at another host
            for host in hosts[1:]:
                servers.append(_Server((host, port), handler))
            return servers
        for server in servers:
            server.server_close()
