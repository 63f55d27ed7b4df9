"""Weights out of load reports (ORCA) over real gRPC and HTTP: in trailers, in headers and out of band."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import httpx
import pytest

from meshlib import Mesh
from meshlib.protos import from_dict, message_class
from meshlib.xds.resources import CDS, EDS

POLICY = "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin"
SECOND = {"blackout_period": "0s", "weight_update_period": "0.1s"}


class Backend:
    """A gRPC server that says how loaded it is.

    Attributes:
        used: Its utilisation.
        calls: Of `/test.Service/*`.
        streams: Of out-of-band reports that are open.
    """

    def __init__(self, used: float, *, reports: str) -> None:
        self.used = used
        self.calls = 0
        self.streams = 0
        self._reports = reports
        self._lock = threading.Lock()
        handlers = {
            "Unary": grpc.unary_unary_rpc_method_handler(self._unary),
            "Responses": grpc.unary_stream_rpc_method_handler(self._responses),
        }
        services = [grpc.method_handlers_generic_handler("test.Service", handlers)]
        if reports == "out of band":
            orca = {"StreamCoreMetrics": grpc.unary_stream_rpc_method_handler(self._core_metrics)}
            services.append(grpc.method_handlers_generic_handler("xds.service.orca.v3.OpenRcaService", orca))
        self._server = grpc.server(ThreadPoolExecutor(8), handlers=tuple(services))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _count(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            self.calls += 1
        if self._reports == "in trailers":
            text = f"TEXT cpu_utilization:{self.used},rps_fractional:100,named_metrics.queue:3"
            context.set_trailing_metadata((("endpoint-load-metrics", text),))

    def _unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self._count(context)
        return b"%d" % self.port

    def _responses(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        self._count(context)
        yield b"%d" % self.port

    def _core_metrics(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        asked = message_class("xds.service.orca.v3.OrcaLoadReportRequest").FromString(request)
        period_s = asked.report_interval.ToNanoseconds() / 1e9
        over = threading.Event()
        context.add_callback(over.set)
        with self._lock:
            self.streams += 1
        while not over.is_set():
            fields = {"application_utilization": self.used, "rps_fractional": 100.0}
            yield from_dict("xds.data.orca.v3.OrcaLoadReport", fields).SerializeToString()
            over.wait(period_s)
        with self._lock:
            self.streams -= 1

    def stop(self) -> None:
        self._server.stop(0).wait()


@pytest.fixture
def backends() -> Iterator[Callable[..., tuple[Backend, Backend]]]:
    """Two servers, used to 0.2 and 0.8."""
    made: list[Backend] = []

    def make(reports: str) -> tuple[Backend, Backend]:
        made.extend(Backend(used, reports=reports) for used in (0.2, 0.8))
        return made[0], made[1]

    yield make
    for backend in made:
        backend.stop()


def put(ads: Any, tools: Any, ports: list[int], **options: Any) -> None:
    entry = {"@type": f"type.googleapis.com/{POLICY}", **SECOND, **options}
    listed = {"policies": [{"typed_extension_config": {"name": "p", "typed_config": entry}}]}
    ads.put(CDS, {**tools.eds_cluster("checkout"), "load_balancing_policy": listed})
    ads.put(EDS, tools.load_assignment("checkout", *ports))


def share_of_first(ask: Callable[[], int], first: int, calls: int = 200) -> float:
    return Counter(ask() for _ in range(calls))[first] / calls


def wait_until(look: Callable[[], bool], timeout_s: float = 40.0) -> None:
    ends_at = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < ends_at
        time.sleep(0.05)


def settles(ask: Callable[[], int], first: int) -> None:
    """Wait until the first of two servers gets four fifths: with everything under load, reports may take a while."""
    wait_until(lambda: 0.77 <= share_of_first(ask, first) <= 0.83)


@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
def test_reports_in_trailers(ads: Any, tools: Any, backends: Any, kind: str) -> None:
    idle, busy = backends("in trailers")
    put(ads, tools, [idle.port, busy.port])
    with (
        Mesh.connect(ads.address, node_id="orders-1", state_dir="") as mesh,
        mesh.channel("xds:///checkout") as channel,
    ):
        if kind == "unary_unary":
            unary = channel.unary_unary("/test.Service/Unary")
            settles(lambda: int(unary(b"", timeout=10)), idle.port)
        else:
            stream = channel.unary_stream("/test.Service/Responses")
            settles(lambda: int(next(iter([*stream(b"", timeout=10)]))), idle.port)


async def test_reports_in_trailers_of_aio(ads: Any, tools: Any, backends: Any) -> None:
    idle, busy = backends("in trailers")
    put(ads, tools, [idle.port, busy.port])
    with Mesh.connect(ads.address, node_id="orders-1", state_dir="") as mesh:
        async with mesh.aio_channel("xds:///checkout") as channel:
            unary = channel.unary_unary("/test.Service/Unary")
            stream = channel.unary_stream("/test.Service/Responses")
            for _ in range(30):
                assert await unary(b"", timeout=10)
                assert [message async for message in stream(b"", timeout=10)]
        cluster = mesh.view.clusters["checkout"]
        known = {address: state.reported for address, state in cluster.states.items()}  # type: ignore[union-attr]
        weights = {address: one.weight for address, one in known.items() if one is not None}
        assert weights == {f"127.0.0.1:{idle.port}": 500.0, f"127.0.0.1:{busy.port}": 125.0}


def test_reports_out_of_band(ads: Any, tools: Any, backends: Any) -> None:
    idle, busy = backends("out of band")
    put(ads, tools, [idle.port, busy.port], enable_oob_load_report=True, oob_reporting_period="0.2s")
    with Mesh.connect(ads.address, node_id="orders-1", state_dir="") as mesh:
        with mesh.channel("xds:///checkout") as channel:
            unary = channel.unary_unary("/test.Service/Unary")
            settles(lambda: int(unary(b"", timeout=10)), idle.port)
            assert (idle.streams, busy.streams) == (1, 1)
            idle.used, busy.used = 0.8, 0.2
            settles(lambda: int(unary(b"", timeout=10)), busy.port)
        ads.put(EDS, tools.load_assignment("checkout", idle.port))
        wait_until(lambda: busy.streams == 0)
        assert idle.streams == 1
    wait_until(lambda: idle.streams == 0)


def test_endpoints_without_the_service_go_on_in_turns(ads: Any, tools: Any, backends: Any) -> None:
    idle, busy = backends("nowhere")
    put(ads, tools, [idle.port, busy.port], enable_oob_load_report=True)
    with (
        Mesh.connect(ads.address, node_id="orders-1", state_dir="") as mesh,
        mesh.channel("xds:///checkout") as channel,
    ):
        unary = channel.unary_unary("/test.Service/Unary")
        assert share_of_first(lambda: int(unary(b"", timeout=10)), idle.port) == 0.5


@pytest.fixture(params=["header", "trailer"])
def sites(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    """Two HTTP servers, used to 0.2 and 0.8, which say so in a header, or in a trailer."""
    servers = []
    in_trailer = request.param == "trailer"
    for used in (0.2, 0.8):

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else headers and body, written apart, arrive 40 ms apart
            text = f"TEXT cpu_utilization:{used},rps_fractional:100"

            def do_POST(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                body = str(self.server.server_address[1]).encode()
                self.send_response(200)
                if in_trailer:
                    self.send_header("transfer-encoding", "chunked")
                    self.send_header("trailer", "Endpoint-Load-Metrics")
                    self.end_headers()
                    last = f"0\r\nEndpoint-Load-Metrics: {self.text}\r\n\r\n".encode()
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(body), body) + last)
                    return
                self.send_header("endpoint-load-metrics", self.text)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        servers.append(server)
    yield [server.server_address[1] for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


def test_reports_of_http(ads: Any, tools: Any, sites: list[int]) -> None:
    put(ads, tools, sites)
    with Mesh.connect(ads.address, node_id="orders-1", state_dir="") as mesh:
        with httpx.Client(transport=mesh.httpx_transport()) as client:
            settles(lambda: int(client.get("http://checkout/").text), sites[0])


async def test_reports_of_async_http(ads: Any, tools: Any, sites: list[int]) -> None:
    put(ads, tools, sites)
    with Mesh.connect(ads.address, node_id="orders-1", state_dir="") as mesh:
        async with httpx.AsyncClient(transport=mesh.async_httpx_transport()) as client:
            for _ in range(30):
                assert (await client.get("http://checkout/")).status_code == 200
        cluster = mesh.view.clusters["checkout"]
        known = {address: state.reported for address, state in cluster.states.items()}  # type: ignore[union-attr]
        weights = {address: one.weight for address, one in known.items() if one is not None}
        assert weights == {f"127.0.0.1:{sites[0]}": 500.0, f"127.0.0.1:{sites[1]}": 125.0}


@pytest.fixture
def dead() -> Iterator[int]:
    """A port that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def first_of(ads: Any, tools: Any, *ports: int) -> None:
    entry = {"@type": "type.googleapis.com/envoy.extensions.load_balancing_policies.pick_first.v3.PickFirst"}
    listed = {"policies": [{"typed_extension_config": {"name": "p", "typed_config": entry}}]}
    ads.put(CDS, {**tools.eds_cluster("checkout"), "load_balancing_policy": listed})
    ads.put(EDS, tools.load_assignment("checkout", *ports))


async def test_pick_first_passes_over_who_cannot_be_reached(ads: Any, tools: Any, backends: Any, dead: int) -> None:
    one, other = backends("nowhere")
    first_of(ads, tools, dead, one.port, other.port)
    with Mesh.connect(ads.address, node_id="orders-1", state_dir="") as mesh:
        with mesh.channel("xds:///checkout") as channel:
            unary, stream = channel.unary_unary("/test.Service/Unary"), channel.unary_stream("/test.Service/Responses")
            assert {int(unary(b"", timeout=10)) for _ in range(10)} == {one.port}
            assert [int(message) for message in stream(b"", timeout=10)] == [one.port]
    with Mesh.connect(ads.address, node_id="orders-2", state_dir="") as mesh:
        async with mesh.aio_channel("xds:///checkout") as channel:
            assert int(await channel.unary_unary("/test.Service/Unary")(b"", timeout=10)) == one.port


def test_pick_first_of_http_passes_over_who_cannot_be_reached(
    ads: Any, tools: Any, sites: list[int], dead: int
) -> None:
    first_of(ads, tools, dead, *sites)
    with Mesh.connect(ads.address, node_id="orders-1", state_dir="") as mesh:
        with httpx.Client(transport=mesh.httpx_transport()) as client:
            # A POST too: nothing of it was sent.
            assert {int(client.post("http://checkout/").text) for _ in range(5)} == {sites[0]}


def test_a_fork_leaves_both_sides_with_reports(ads: Any, tools: Any, backends: Any, forking: Any) -> None:
    """Each has a stream of its own to each server; the parent's outlive the child."""
    idle, busy = backends("out of band")
    put(ads, tools, [idle.port, busy.port], enable_oob_load_report=True, oob_reporting_period="0.2s")
    with forking("reports", ads.address) as process:
        wait_until(lambda: (idle.streams, busy.streams) == (2, 2))
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "over\n"
        wait_until(lambda: (idle.streams, busy.streams) == (1, 1))
    assert process.returncode == 0
