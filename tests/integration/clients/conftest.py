"""A mesh without a control plane, and servers that do what a test asks of them."""

import random
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from meshlib.errors import RoutingError
from meshlib.events import Event
from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, Locality, LocalityEndpoints
from meshlib.model.listener import ClientListener
from meshlib.model.matcher import PathKind, PathMatcher
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import (
    ClusterWeight,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatcher,
    SingleCluster,
    VirtualHost,
    WeightedClusters,
)
from meshlib.model.secret import Secret
from meshlib.model.snapshot import ClusterConfig, Snapshot, TargetConfig
from meshlib.runtime.tracing import Tracing
from meshlib.view import ClusterState, TargetView, View, build_view

ANY_PATH = RouteMatcher(PathMatcher(PathKind.PREFIX, "/"))


def as_endpoint(one: str | Endpoint) -> Endpoint:
    return Endpoint(one) if isinstance(one, str) else one


class FakeMesh:
    """A `MeshSource` whose view the test sets."""

    def __init__(self) -> None:
        self.clock = time.monotonic
        self.rng = random.Random(7)
        self.guard_unsafe = True
        self.is_disabled = False
        self.tracing = Tracing()
        self.events: list[Event] = []
        self._snapshot = Snapshot()
        self.view: View = build_view(self._snapshot, None, now=self.clock())

    def target(self, authority: str) -> TargetView | None:
        found = self.view.targets.get(authority)
        if found is None:
            raise RoutingError(f"no service {authority!r}", flag="NR")
        assert isinstance(found, TargetView)
        return found

    def wait_target(self, authority: str, timeout_s: float | None = None, *, fails_fast: bool = False) -> TargetView:
        found = self.target(authority)
        assert found is not None
        return found

    async def wait_target_async(
        self, authority: str, timeout_s: float | None = None, *, fails_fast: bool = False
    ) -> TargetView:
        return self.wait_target(authority)

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def serve(
        self,
        name: str,
        clusters: Mapping[str, list[str] | list[Endpoint]],
        *,
        weights: Mapping[str, int] | None = None,
        retry: RetryPolicy | None = None,
        timeout_s: float | None = None,
        route: Route | None = None,
        secrets: Mapping[str, Secret] | None = None,
        **options: Any,
    ) -> None:
        """Publish one service: clusters by name with their addresses, and one route to them."""
        action = RouteAction(
            SingleCluster(next(iter(clusters)))
            if weights is None
            else WeightedClusters(tuple(ClusterWeight(cluster, weight) for cluster, weight in weights.items())),
            timeout_s=timeout_s,
            retry=retry,
        )
        routes = RouteConfiguration(name, (VirtualHost(name, ("*",), (route or Route(ANY_PATH, action),)),))
        configs = {
            cluster: ClusterConfig(
                Cluster(cluster, EdsDiscovery(cluster), **options),
                ClusterLoadAssignment(
                    cluster,
                    (LocalityEndpoints(Locality(), tuple(as_endpoint(one) for one in addresses), weight=1),),
                ),
            )
            for cluster, addresses in clusters.items()
        }
        old = self._snapshot
        self._snapshot = Snapshot(
            targets={**old.targets, name: TargetConfig(ClientListener(name, routes, has_fault_filter=True), routes)},
            clusters={**old.clusters, **configs},
            secrets={**old.secrets, **(secrets or {})},
            number=old.number + 1,
        )
        self.view = build_view(self._snapshot, self.view, now=self.clock())

    def cluster(self, name: str) -> ClusterState:
        found = self.view.clusters[name]
        assert isinstance(found, ClusterState)
        return found

    def held(self, name: str) -> tuple[int, int]:
        """Permits and endpoint counts that calls hold right now."""
        cluster = self.cluster(name)
        return cluster.breaker.active, sum(state.active for state in cluster.states.values())


@pytest.fixture
def mesh() -> FakeMesh:
    """A mesh that knows nothing yet."""
    return FakeMesh()


class HttpServer:
    """An HTTP/1.1 server on a thread.

    Attributes:
        address: `host:port`.
        requests: (method, path, headers, body) of each request, in order.
    """

    def __init__(self, answer: "Callable[[BaseHTTPRequestHandler, bytes], None]") -> None:
        requests: list[tuple[str, str, dict[str, str], bytes]] = []
        connections: list[int] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20
            disable_nagle_algorithm = True  # else headers and body, written apart, arrive 40 ms apart

            def setup(self) -> None:
                connections.append(1)
                super().setup()

            def handle_any(self) -> None:
                if self.headers.get("transfer-encoding", "") == "chunked":
                    body = b"".join(iter(self.read_chunk, b""))
                else:
                    body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                requests.append((self.command, self.path, headers, body))
                answer(self, body)

            def read_chunk(self) -> bytes:
                size = int(self.rfile.readline(), 16)
                data = self.rfile.read(size)
                self.rfile.readline()
                return data

            do_GET = do_POST = do_PUT = do_HEAD = handle_any

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # clients of these tests leave in the middle on purpose

        self.requests = requests
        self.connections = connections
        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
    """Answer with a body of known length."""
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)
        handler.wfile.flush()


@pytest.fixture
def http_server() -> Iterator[Callable[..., HttpServer]]:
    """Start servers: `http_server(status, body)`, or `http_server(answer=function)`."""
    servers: list[HttpServer] = []

    def start(status: int = 200, body: bytes = b"ok", answer: Any = None) -> HttpServer:
        server = HttpServer(answer or (lambda handler, sent: reply(handler, status, body)))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


class RawServer:
    """A TCP server whose connections a test's function handles one by one, each on a thread."""

    def __init__(self, handle: Callable[[socket.socket, int], None]) -> None:
        count = iter(range(1_000_000))

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                self.request.settimeout(20)
                with suppress(OSError):  # the client left
                    handle(self.request, next(count))

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def raw_server() -> Iterator[Callable[[Callable[[socket.socket, int], None]], RawServer]]:
    """Start servers that speak whatever the test makes them."""
    servers: list[RawServer] = []

    def start(handle: Callable[[socket.socket, int], None]) -> RawServer:
        server = RawServer(handle)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def dead_address() -> Iterator[str]:
    """An address where nobody listens, for as long as the test runs."""
    with dead() as address:
        yield address


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that does not answer: its queue of connections is full."""
    with ExitStack() as stack:
        held = stack.enter_context(socket.socket())
        held.bind(("127.0.0.1", 0))
        held.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(held.getsockname())
        yield f"127.0.0.1:{held.getsockname()[1]}"


@contextmanager
def dead() -> Iterator[str]:
    """Hold a port without listening."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"
