"""Weights out of load reports: gRPC's own client and meshlib share calls out the same way.

A server reports in both trailers: gRPC's client reads the binary one and hides it from applications, so that meshlib
reads the text.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack

import pytest
from peers.upstreams import LOOPBACK, GrpcUpstream
from peers.world import version_of

from meshlib.protos import from_dict

TYPE = "type.googleapis.com/"
POLICIES = f"{TYPE}envoy.extensions.load_balancing_policies."
METHOD = "/test.Greeter/Hello"
CALLS = 600


def documents(upstreams: Sequence[GrpcUpstream], **options: object) -> str:
    weighted = {"@type": f"{POLICIES}client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin", **options}
    inner = {"policies": [{"typed_extension_config": {"name": "p", "typed_config": weighted}}]}
    outer = {"@type": f"{POLICIES}wrr_locality.v3.WrrLocality", "endpoint_picking_policy": inner}
    router = {"@type": f"{TYPE}envoy.extensions.filters.http.router.v3.Router"}
    manager = {
        "@type": f"{TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "m",
        "rds": {"route_config_name": "weighted", "config_source": {"ads": {}}},
        "http_filters": [{"name": "router", "typed_config": router}],
    }
    routes = [{"match": {"prefix": ""}, "route": {"cluster": "weighted"}}]
    resources = [
        {
            "@type": f"{TYPE}envoy.config.listener.v3.Listener",
            "name": "weighted",
            "api_listener": {"api_listener": manager},
        },
        {
            "@type": f"{TYPE}envoy.config.route.v3.RouteConfiguration",
            "name": "weighted",
            "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": routes}],
        },
        {
            "@type": f"{TYPE}envoy.config.cluster.v3.Cluster",
            "name": "weighted",
            "type": "EDS",
            "eds_cluster_config": {"eds_config": {"ads": {}}},
            "load_balancing_policy": {"policies": [{"typed_extension_config": {"name": "p", "typed_config": outer}}]},
        },
        {
            "@type": f"{TYPE}envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": "weighted",
            "endpoints": [
                {
                    "locality": {"region": "r"},
                    "load_balancing_weight": 1,
                    "lb_endpoints": [
                        {"endpoint": {"address": {"socket_address": {"address": LOOPBACK, "port_value": one.port}}}}
                        for one in upstreams
                    ],
                }
            ],
        },
    ]
    return json.dumps({"resources": resources})


CASES = {
    "cpu": ({"cpu_utilization": 0.2, "rps_fractional": 100}, {"cpu_utilization": 0.8, "rps_fractional": 100}),
    "the application first": (
        {"application_utilization": 0.2, "cpu_utilization": 0.9, "rps_fractional": 100},
        {"application_utilization": 0.6, "cpu_utilization": 0.1, "rps_fractional": 100},
    ),
    "errors": (
        {"cpu_utilization": 0.5, "rps_fractional": 100, "eps": 50},
        {"cpu_utilization": 0.5, "rps_fractional": 100},
    ),
    "the mean for who reports nothing": (
        {"cpu_utilization": 0.5, "rps_fractional": 100},
        {"cpu_utilization": 0.5, "rps_fractional": 200},
        {"cpu_utilization": 0.5, "rps_fractional": 900},
        None,
    ),
    "weights are kept near the mean": (
        *({"cpu_utilization": 0.5, "rps_fractional": 1} for _ in range(2)),
        {"cpu_utilization": 0.5, "rps_fractional": 0.001},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_shares(make_world, case):
    with ExitStack() as stack:
        upstreams = [stack.enter_context(GrpcUpstream(f"v{number}")) for number in range(len(CASES[case]))]
        for upstream, fields in zip(upstreams, CASES[case], strict=True):
            if fields is not None:
                text = "TEXT " + ",".join(f"{name}:{value}" for name, value in fields.items())
                packed = from_dict("xds.data.orca.v3.OrcaLoadReport", fields).SerializeToString()
                upstream.trailers = (("endpoint-load-metrics-bin", packed), ("endpoint-load-metrics", text))
        options = {"blackout_period": "0s", "weight_update_period": "0.1s"}
        world = make_world({"weighted.yaml": documents(upstreams, **options)})
        world.start_mesh()
        world.start_grpcio()

        def by_meshlib(count: int) -> Counter[str]:
            return Counter(version_of(world.call_meshlib("weighted", METHOD)) for _ in range(count))

        def by_grpcio(count: int) -> Counter[str]:
            return Counter(world.grpcio.many(count, "xds:///weighted", METHOD))

        shares = []
        for ask in (by_grpcio, by_meshlib):
            # Everybody reports, and weights are worked out anew after that.
            ask(60)
            time.sleep(0.3)
            ask(60)
            counted = ask(CALLS)
            shares.append({upstream.version: counted[upstream.version] / CALLS for upstream in upstreams})
        assert shares[1] == pytest.approx(shares[0], abs=0.03), case
