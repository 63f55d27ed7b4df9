"""gRPC's own xDS client and meshlib: splits by weight, ejection by A50, and a cluster that does not exist."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from differential.grpc_profile import Judge
from peers.grpcio import GrpcioClient
from peers.upstreams import LOOPBACK, GrpcUpstream
from peers.world import World, version_of

import meshlib
from meshlib.protos import from_dict
from meshlib.xds.resources import LDS, RDS

TYPE = "type.googleapis.com/"
METHOD = "/test.Greeter/Hello"
SPLIT_CALLS, HEAVY, LIGHT = 600, 75, 25
INTERVAL_S = 2

Json = dict[str, Any]


def listener_and_routes(service: str, action: Json) -> list[Json]:
    router = {"@type": f"{TYPE}envoy.extensions.filters.http.router.v3.Router"}
    manager = {
        "@type": f"{TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "m",
        "rds": {"route_config_name": service, "config_source": {"ads": {}}},
        "http_filters": [{"name": "router", "typed_config": router}],
    }
    host = {"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": ""}, "route": action}]}
    return [
        {
            "@type": f"{TYPE}envoy.config.listener.v3.Listener",
            "name": service,
            "api_listener": {"api_listener": manager},
        },
        {"@type": f"{TYPE}envoy.config.route.v3.RouteConfiguration", "name": service, "virtual_hosts": [host]},
    ]


def cluster(name: str, *upstreams: GrpcUpstream, **fields: Any) -> list[Json]:
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": LOOPBACK, "port_value": one.port}}}}
        for one in upstreams
    ]
    locality = {"locality": {"region": "r"}, "load_balancing_weight": 1, "lb_endpoints": endpoints}
    return [
        {
            "@type": f"{TYPE}envoy.config.cluster.v3.Cluster",
            "name": name,
            "type": "EDS",
            "eds_cluster_config": {"eds_config": {"ads": {}}},
            **fields,
        },
        {
            "@type": f"{TYPE}envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": name,
            "endpoints": [locality],
        },
    ]


OUTLIERS = {
    # Nothing to gRPC; to Envoy the first failure would be enough.
    "consecutive_5xx": 1,
    "enforcing_consecutive_5xx": 100,
    "interval": f"{INTERVAL_S}s",
    "base_ejection_time": "600s",
    "max_ejection_percent": 50,
    "enforcing_success_rate": 0,
    "enforcing_failure_percentage": 100,
    "failure_percentage_threshold": 80,
    "failure_percentage_minimum_hosts": 3,
    "failure_percentage_request_volume": 5,
}
WEIGHTS = {"clusters": [{"name": "heavy", "weight": HEAVY}, {"name": "light", "weight": LIGHT}]}


@pytest.fixture
def upstreams() -> Iterator[dict[str, GrpcUpstream]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(GrpcUpstream(name)) for name in ("heavy", "light", "bad", "good", "fine")}


@pytest.fixture
def world(make_world: Callable[..., World], upstreams: dict[str, GrpcUpstream]) -> World:
    failing = [upstreams[name] for name in ("bad", "good", "fine")]
    resources = [
        *listener_and_routes("split", {"weighted_clusters": WEIGHTS}),
        *cluster("heavy", upstreams["heavy"]),
        *cluster("light", upstreams["light"]),
        *listener_and_routes("outliers", {"cluster": "outliers"}),
        *cluster("outliers", *failing, outlier_detection=OUTLIERS, lb_policy="ROUND_ROBIN"),
    ]
    made = make_world({"resources.yaml": json.dumps({"resources": resources})})
    made.start_mesh()
    made.start_grpcio()
    return made


def callers(world: World) -> dict[str, Callable[[str], tuple[str, str]]]:
    return {
        "grpcio": lambda service: world.call_grpcio(service, METHOD),
        "meshlib": lambda service: world.call_meshlib(service, METHOD),
    }


def test_both_clients_go_the_same_ways(world: World, upstreams: dict[str, GrpcUpstream]) -> None:
    """
    1. Shares of a split: five standard deviations are 0.09.
    2. A failing host goes on being called until the interval ends, whatever it answers in a row, and then no more.
    """
    for name, call in callers(world).items():
        counted = Counter(version_of(call("split")) for _ in range(SPLIT_CALLS))
        assert {"heavy", "light"} == set(counted), name
        assert counted["heavy"] / SPLIT_CALLS == pytest.approx(HEAVY / (HEAVY + LIGHT), abs=0.09), name

    upstreams["bad"].script.extend([grpc.StatusCode.UNAVAILABLE] * 100_000)
    for name, call in callers(world).items():
        call("outliers")  # the interval begins with the configuration
        before = len(upstreams["bad"].seen)
        codes = Counter(call("outliers")[0] for _ in range(60))
        assert {"OK", "UNAVAILABLE"} == set(codes), name
        assert len(upstreams["bad"].seen) - before == codes["UNAVAILABLE"], name
        assert 5 <= codes["UNAVAILABLE"] <= 21, name
        ends_at = time.monotonic() + 5 * INTERVAL_S
        while {"OK"} != {call("outliers")[0] for _ in range(12)}:
            assert time.monotonic() < ends_at, name
            time.sleep(0.1)
        assert {"OK"} == {call("outliers")[0] for _ in range(30)}, name


@dataclass(frozen=True)
class Lost:
    """A service whose route names a cluster that the server does not have."""

    name: str = "lost"

    def resources(self) -> dict[str, bytes]:
        listener, routes = (
            {name: value for name, value in resource.items() if name != "@type"}
            for resource in listener_and_routes(self.name, {"cluster": "nowhere"})
        )
        return {
            LDS: from_dict("envoy.config.listener.v3.Listener", listener).SerializeToString(),
            RDS: from_dict("envoy.config.route.v3.RouteConfiguration", routes).SerializeToString(),
        }


def test_cluster_that_does_not_exist(tmp_path: Path) -> None:
    """A route to it ends a call with UNAVAILABLE, at once, and its name is in the text."""
    with ExitStack() as stack:
        judge = stack.enter_context(Judge([Lost()]))
        grpcio = stack.enter_context(GrpcioClient("grpcio", judge.address, tmp_path))
        mesh = stack.enter_context(meshlib.Mesh.connect(judge.address, node_id="meshlib", state_dir=""))
        channel = mesh.channel("xds:///lost")
        stack.callback(channel.close)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(METHOD)(b"", timeout=20)
        ours = (caught.value.code().name, caught.value.details())
        for code, text in (grpcio.call("xds:///lost", METHOD, timeout_s=20), ours):
            assert "UNAVAILABLE" == code
            assert "nowhere" in text and "does not exist" in text, text
