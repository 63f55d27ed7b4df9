"""An upstream that follows a script for each path; `{here}` in its headers is the host and path of the request."""

import threading
import time
from collections import deque
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from peers.upstreams import LOOPBACK, Step

__all__ = ["ScriptedUpstream"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients go away in the middle


class ScriptedUpstream:
    """An HTTP/1.1 server on a thread; what no script speaks of is answered 200."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scripts: dict[str, deque[Step]] = {}
        self._seen: dict[str, list[dict[str, str]]] = {}
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True
            timeout = 30

            def do_GET(self) -> None:
                step = upstream._next(self.path, {name.lower(): value for name, value in self.headers.items()})
                if step.delay_s:
                    time.sleep(step.delay_s)
                if step.is_reset:
                    self.close_connection = True
                    return
                self.send_response_only(step.status)
                here = f"{self.headers.get('host')}{self.path}"
                for name, value in step.headers:
                    self.send_header(name, value.replace("{here}", here))
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Server((LOOPBACK, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.address = f"{LOOPBACK}:{self._server.server_address[1]}"

    def expect(self, path: str, script: Sequence[Step]) -> None:
        """Say how the next requests for a path are answered."""
        with self._lock:
            self._scripts[path] = deque(script)
            self._seen[path] = []

    def take(self, path: str) -> list[dict[str, str]]:
        """Return the headers of the requests for a path, in the order in which they came."""
        with self._lock:
            return self._seen.pop(path)

    def _next(self, path: str, headers: dict[str, str]) -> Step:
        with self._lock:
            if path in self._seen:
                self._seen[path].append(headers)
            script = self._scripts.get(path)
            return script.popleft() if script else Step()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
