"""Active health checks over real connections: every kind of probe, and a mesh that follows them."""

import asyncio
import json
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from peers.upstreams import refusing_port

from meshlib import Mesh
from meshlib.events import Event, HealthChecked
from meshlib.model.health import GrpcProbe, HttpProbe, Probe, TcpProbe
from meshlib.resilience.health_check import CheckFailure, CheckResult
from meshlib.runtime.health_probes import ProbeTarget, run_probe
from meshlib.xds.resources import CDS, EDS


def eventually(look: Callable[[], bool], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def probe(what: Probe, port: int, *, timeout_s: float = 10.0) -> CheckResult:
    target = ProbeTarget(f"127.0.0.1:{port}", None, "", "svc")

    async def run() -> CheckResult:
        async with asyncio.timeout(timeout_s):
            return await run_probe(what, target)

    return asyncio.run(run())


class Service:
    """An HTTP/1.1 server that says how it is, and who it is.

    Attributes:
        status: Of `/healthz`.
        asked: Heads of the checks so far.
    """

    def __init__(self) -> None:
        self.status = 200
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else headers and body, written apart, arrive 40 ms apart
            timeout = 20

            def do_GET(self) -> None:
                is_check = self.path == "/healthz"
                if is_check:
                    body = self.rfile.read(int(self.headers.get("content-length") or 0))
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    service.asked.append((self.command, headers, body))
                content = b"alive and well" if is_check else str(service.port).encode()
                self.send_response_only(service.status if is_check else 200)
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def services() -> Iterator[list[Service]]:
    made = [Service(), Service()]
    yield made
    for service in made:
        service.close()


def test_http_probe_sends_what_it_is_told(services: list[Service]) -> None:
    service = services[0]
    what = HttpProbe(
        "/healthz", method="POST", send=b"hello", receive=(b"alive", b"well"), headers=(("x-a", "1"), ("x-b", "2"))
    )
    assert CheckResult() == probe(what, service.port)
    method, headers, body = service.asked[0]
    assert ("POST", b"hello") == (method, body)
    assert {"host": "svc", "user-agent": "Envoy/HC", "x-a": "1", "x-b": "2"}.items() <= headers.items()
    service.status = 503
    assert "status 503" == probe(what, service.port).reason


@pytest.mark.parametrize("what", [HttpProbe("/"), HttpProbe("/", http2=True), TcpProbe(), GrpcProbe()])
def test_nobody_there_is_a_failure_of_the_network(what: Probe) -> None:
    with refusing_port() as port:
        assert CheckFailure.NETWORK is probe(what, port).failure


@contextmanager
def talker(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that does something with each connection, then closes it."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                answer(connection)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield int(listening.getsockname()[1])
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(30)  # before its number is given to another socket, on which it would accept
        listening.close()


def test_tcp_probe_wants_its_parts_in_order() -> None:
    def answer(connection: socket.socket) -> None:
        if connection.recv(16) == b"PING":
            connection.sendall(b"+PO")
            time.sleep(0.02)
            connection.sendall(b"NG!")

    with talker(answer) as port:
        assert CheckResult() == probe(TcpProbe(b"PING", (b"PONG", b"!")), port)
        assert CheckFailure.NETWORK is probe(TcpProbe(b"PING", (b"!", b"PONG")), port).failure
        assert CheckResult() == probe(TcpProbe(), port), "a connection is enough"


@pytest.mark.parametrize("what", [HttpProbe("/"), HttpProbe("/", http2=True), GrpcProbe()])
@pytest.mark.parametrize("said", [b"", b"\x00nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort"])
def test_nonsense_is_a_failure_of_the_network(what: Probe, said: bytes) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(said)

    with talker(answer) as port:
        assert CheckFailure.NETWORK is probe(what, port).failure


def test_grpc_probe_asks_the_health_service() -> None:
    asked: list[bytes] = []
    said: list[bytes | grpc.StatusCode] = []

    def check(request: bytes, context: grpc.ServicerContext) -> bytes:
        asked.append(request)
        answer = said.pop(0)
        if isinstance(answer, grpc.StatusCode):
            context.abort(answer, "no")
        return answer  # type: ignore[return-value]

    handler = grpc.method_handlers_generic_handler(
        "grpc.health.v1.Health", {"Check": grpc.unary_unary_rpc_method_handler(check)}
    )
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        for answer, is_good in (
            (b"\x08\x01", True),
            (b"\x08\x02", False),
            (b"", False),
            (b"\x08\x03", False),
            (grpc.StatusCode.NOT_FOUND, False),
            (grpc.StatusCode.UNAVAILABLE, False),
        ):
            said.append(answer)
            found = probe(GrpcProbe("a.B"), port)
            assert (None if is_good else CheckFailure.ACTIVE) is found.failure, (answer, found)
    finally:
        server.stop(0).wait()
    assert {b"\x0a\x03a.B"} == set(asked)


CHECK: dict[str, Any] = {
    "timeout": "5s",
    "interval": "0.05s",
    "no_traffic_interval": "0.05s",
    "unhealthy_threshold": 2,
    "healthy_threshold": 1,
    "http_health_check": {"path": "/healthz"},
}


def checked(tools: Any, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = tools.eds_cluster("checkout")
    return {**made, "health_checks": [{**CHECK, **fields}]}


def hits(client: httpx.Client, count: int = 12) -> set[int]:
    return {int(client.get("http://checkout/").text) for _ in range(count)}


def test_requests_follow_the_checks(ads: Any, tools: Any, services: list[Service]) -> None:
    one, two = services
    two.status = 503
    ads.put(CDS, checked(tools))
    ads.put(EDS, tools.load_assignment("checkout", one.port, two.port))
    events: list[Event] = []
    with Mesh.connect(ads.address, node_id="n", state_dir="") as mesh:
        mesh.add_hook(events.append)
        with httpx.Client(transport=mesh.httpx_transport()) as client:
            mesh.wait_ready("checkout", timeout_s=30)
            assert one.asked and two.asked, "ready means that all have been checked"
            assert {one.port} == hits(client)
            two.status = 200
            eventually(lambda: hits(client) == {one.port, two.port})
            one.status = 500
            eventually(lambda: hits(client) == {two.port})
    told = [(event.change, event.endpoint.port) for event in events if isinstance(event, HealthChecked)]
    assert ("health_check_failure", two.port) in told
    assert ("add_healthy", two.port) in told
    assert ("eject_unhealthy", one.port) in told


def test_endpoints_say_where_they_are_checked(ads: Any, tools: Any, services: list[Service]) -> None:
    one, two = services
    assignment = tools.load_assignment("checkout", one.port)
    endpoint = assignment["endpoints"][0]["lb_endpoints"][0]["endpoint"]
    endpoint["health_check_config"] = {"port_value": two.port, "hostname": "own"}
    ads.put(CDS, checked(tools))
    ads.put(EDS, assignment)
    with Mesh.connect(ads.address, node_id="n", state_dir="") as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        assert [] == one.asked
        assert "own" == two.asked[0][1]["host"]


def test_checks_end_with_the_mesh_and_with_their_endpoints(ads: Any, tools: Any, services: list[Service]) -> None:
    one, two = services
    ads.put(CDS, {**checked(tools), "ignore_health_on_host_removal": True})
    ads.put(EDS, tools.load_assignment("checkout", one.port, two.port))
    mesh = Mesh.connect(ads.address, node_id="n", state_dir="")
    with mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        ads.put(EDS, tools.load_assignment("checkout", one.port))
        eventually(lambda: len(mesh.view.clusters["checkout"].states) == 1)  # type: ignore[union-attr]
        eventually(lambda: _rests(two))
        count = len(one.asked)
        eventually(lambda: len(one.asked) > count)
    assert not any(thread.name == "meshlib-health" for thread in threading.enumerate())
    assert _rests(one)


def _rests(service: Service) -> bool:
    count = len(service.asked)
    time.sleep(0.3)
    return len(service.asked) == count


def _in_child(mesh: Mesh, queue: Any) -> None:
    with httpx.Client(transport=mesh.httpx_transport()) as client:
        queue.put(sorted(hits(client)))
    mesh.close()


def test_both_sides_of_a_fork_go_on_checking(ads: Any, tools: Any, services: list[Service]) -> None:
    one, two = services
    two.status = 503
    ads.put(CDS, checked(tools))
    ads.put(EDS, tools.load_assignment("checkout", one.port, two.port))
    context = multiprocessing.get_context("fork")
    with Mesh.connect(ads.address, node_id="n", state_dir="") as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        queue = context.Queue()
        child = context.Process(target=_in_child, args=(mesh, queue))
        child.start()
        found = queue.get(timeout=30)
        child.join(30)
        assert [one.port] == found
        count = len(one.asked)
        eventually(lambda: len(one.asked) > count)


NATIVE = """\
"@type": type.googleapis.com/envoy.config.listener.v3.Listener
name: checkout
api_listener:
  api_listener:
    "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
    stat_prefix: checkout
    route_config:
      name: checkout
      virtual_hosts:
      - name: checkout
        domains: ["*"]
        routes:
        - match: {prefix: /}
          route:
            cluster: checkout
            metadata_match: {filter_metadata: {envoy.lb: {version: v2}}}
    http_filters:
    - name: envoy.filters.http.stateful_session
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.filters.http.stateful_session.v3.StatefulSession
        session_state:
          name: envoy.http.stateful_session.cookie
          typed_config:
            "@type": type.googleapis.com/envoy.extensions.http.stateful_session.cookie.v3.CookieBasedSessionState
            cookie: {name: session, path: /, ttl: 60s}
    - name: router
      typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
---
"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
name: checkout
type: EDS
eds_cluster_config: {eds_config: {ads: {}}}
lb_subset_config:
  fallback_policy: NO_FALLBACK
  subset_selectors: [{keys: [version]}]
health_checks:
- timeout: 5s
  interval: 0.05s
  no_traffic_interval: 0.05s
  unhealthy_threshold: 2
  healthy_threshold: 1
  http_health_check: {path: /healthz}
---
"@type": type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment
cluster_name: checkout
endpoints:
- locality: {region: here}
  lb_endpoints:
"""
ENDPOINT = """\
  - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %d}}}
    metadata: {filter_metadata: {envoy.lb: {version: %s}}}
"""


def test_subsets_sessions_and_checks_out_of_native_files_of_xds_server(tmp_path: Path) -> None:
    services = [Service() for _ in range(4)]
    old, *new = services
    new[2].status = 500
    (tmp_path / "config").mkdir()
    endpoints = [ENDPOINT % (old.port, "v1"), *(ENDPOINT % (service.port, "v2") for service in new)]
    (tmp_path / "config" / "all.yaml").write_text(NATIVE + "".join(endpoints))
    command = [sys.executable, "-m", "xds_server", "serve", "config", "--listen", "127.0.0.1:0", "--admin"]
    process = subprocess.Popen(
        [*command, "127.0.0.1:0", "--state-dir", "state", "--secure-listen", "127.0.0.1:0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = next(word.removeprefix("xds=") for word in line.split() if word.startswith("xds="))
        with Mesh.connect(address, node_id="n", state_dir="") as mesh:
            mesh.wait_ready("checkout", timeout_s=30)
            healthy = {service.port for service in new[:2]}
            with httpx.Client(transport=mesh.httpx_transport()) as client:
                # The client keeps the cookie, so it stays with its first endpoint.
                (mine,) = hits(client)
                assert mine in healthy
                assert "session" in client.cookies
            with httpx.Client(transport=mesh.httpx_transport()) as client:
                found = set()
                for _ in range(8):
                    found.add(int(client.get("http://checkout/").text))
                    client.cookies.clear()
                assert healthy == found, json.dumps(sorted(found))
    finally:
        process.kill()
        process.communicate()
        for service in services:
            service.close()
