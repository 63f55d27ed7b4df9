"""Load reports over real gRPC: to the server that the cluster came from, on its connection."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from meshlib import Mesh
from meshlib.call import Call
from meshlib.model.outcome import Failure, FailureKind, Response
from meshlib.model.request import Headers, RequestHead
from meshlib.protos import message_class
from meshlib.view import TargetView
from meshlib.xds.resources import CDS

SERVICE = "envoy.service.load_stats.v3.LoadReportingService"
REQUEST = message_class("envoy.service.load_stats.v3.LoadStatsRequest")
RESPONSE = message_class("envoy.service.load_stats.v3.LoadStatsResponse")


class LoadServer:
    """Asks for every cluster once a second.

    Attributes:
        requests: Every message, with the peer that it came from.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.changed = threading.Condition()

    def handler(self) -> grpc.GenericRpcHandler:
        method = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE, {"StreamLoadStats": method})

    def _stream(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        is_first = True
        try:
            for data in messages:
                with self.changed:
                    self.requests.append((context.peer(), REQUEST.FromString(data)))
                    self.changed.notify_all()
                if is_first:
                    is_first = False
                    response = RESPONSE(send_all_clusters=True)
                    response.load_reporting_interval.FromNanoseconds(100_000_000)  # below the floor
                    yield response.SerializeToString()
        except grpc.RpcError:
            pass

    def wait_for(self, look: Callable[[], bool], timeout_s: float = 40.0) -> None:
        with self.changed:
            assert self.changed.wait_for(look, timeout_s), self.requests

    def total(self, field: str) -> int:
        return sum(
            getattr(locality, field)
            for _, request in self.requests
            for stats in request.cluster_stats
            for locality in stats.upstream_locality_stats
        )


@pytest.fixture
def loads(ads: Any, tools: Any) -> LoadServer:
    """The server of `ads` takes load reports, and wants them of `checkout`."""
    server = LoadServer()
    ads.stop()
    ads.more_handlers = (server.handler(),)
    ads.start()
    ads.put(CDS, {**tools.eds_cluster("checkout"), "lrs_server": {"self": {}}})
    return server


def make_calls(mesh: Mesh, target: TargetView, good: int, bad: int) -> None:
    for index in range(good + bad):
        now = mesh.clock()
        call = Call(target, RequestHead("GET", "checkout", "/", Headers.of({})), rng=mesh.rng, now=now)
        call.start(now)
        call.finished(Response(200) if index < good else Failure(FailureKind.RESET, True), now)
        call.close(now)


def test_load_is_reported_on_the_connection_of_the_discovery_stream(ads: Any, loads: LoadServer) -> None:
    with Mesh.connect(ads.address, node_id="orders-1", state_dir="") as mesh:
        target = mesh.wait_target("checkout", 30.0)
        loads.wait_for(lambda: bool(loads.requests))
        peer, hello = loads.requests[0]
        assert "orders-1" == hello.node.id
        assert not hello.cluster_stats
        started = time.monotonic()
        make_calls(mesh, target, good=3, bad=2)
        loads.wait_for(lambda: loads.total("total_issued_requests") == 5)
        assert (3, 2) == (loads.total("total_successful_requests"), loads.total("total_error_requests"))
        assert "here" == loads.requests[-1][1].cluster_stats[0].upstream_locality_stats[0].locality.region
        assert {peer} == {one for one, _ in loads.requests}
        count = len(loads.requests)
        time.sleep(2.5)
        assert len(loads.requests) <= count + 1, "zeros are told once"
        assert len(loads.requests) <= 3 + time.monotonic() - started


def test_what_endpoints_say_of_themselves_goes_along(ads: Any, loads: LoadServer, tools: Any) -> None:
    options = {"lrs_server": {"self": {}}, "lrs_report_endpoint_metrics": ["named_metrics.queue", "cpu_utilization"]}
    ads.put(CDS, {**tools.eds_cluster("checkout"), **options})
    text = "TEXT cpu_utilization:0.5,mem_utilization:0.1,named_metrics.queue:3,named_metrics.other:1"
    with Mesh.connect(ads.address, node_id="orders-1", state_dir="") as mesh:
        target = mesh.wait_target("checkout", 30.0)
        loads.wait_for(lambda: bool(loads.requests))
        for _ in range(2):
            now = mesh.clock()
            call = Call(target, RequestHead("GET", "checkout", "/", Headers.of({})), rng=mesh.rng, now=now)
            call.start(now)
            call.finished(Response(200, Headers((("endpoint-load-metrics", text),))), now)
            call.close(now)
        loads.wait_for(lambda: loads.total("total_issued_requests") == 2)
    (locality,) = [
        one
        for _, request in loads.requests
        for stats in request.cluster_stats
        for one in stats.upstream_locality_stats
        if one.total_issued_requests
    ]
    assert [("named_metrics.queue", 2, 6.0)] == [
        (one.metric_name, one.num_requests_finished_with_metric, one.total_metric_value)
        for one in locality.load_metric_stats
    ]
    cpu = locality.cpu_utilization
    assert (2, 1.0) == (cpu.num_requests_finished_with_metric, cpu.total_metric_value)
    assert not locality.HasField("mem_utilization")


def test_reports_go_on_after_the_server_was_away_and_lose_nothing(ads: Any, loads: LoadServer) -> None:
    with Mesh.connect(ads.address, node_id="orders-1", state_dir="") as mesh:
        target = mesh.wait_target("checkout", 30.0)
        loads.wait_for(lambda: bool(loads.requests))
        make_calls(mesh, target, good=1, bad=0)
        loads.wait_for(lambda: loads.total("total_issued_requests") == 1)
        ads.stop()
        make_calls(mesh, target, good=2, bad=0)
        ads.start()
        loads.wait_for(lambda: loads.total("total_issued_requests") == 3, 40.0)


def test_a_server_without_load_reporting_is_no_harm(ads: Any, tools: Any) -> None:
    ads.put(CDS, {**tools.eds_cluster("checkout"), "lrs_server": {"self": {}}})
    with Mesh.connect(ads.address, node_id="orders-1", state_dir="") as mesh:
        target = mesh.wait_target("checkout", 30.0)
        make_calls(mesh, target, good=1, bad=0)
        time.sleep(0.5)
        assert "connected" == mesh.status().connection


def test_nobody_is_told_what_nobody_asked_for(ads: Any, loads: LoadServer, tools: Any) -> None:
    ads.put(CDS, tools.eds_cluster("checkout"))
    with Mesh.connect(ads.address, node_id="orders-1", state_dir="") as mesh:
        make_calls(mesh, mesh.wait_target("checkout", 30.0), good=1, bad=0)
        time.sleep(0.5)
        assert not loads.requests
