"""Whose name a gRPC call carries: `auto_host_rewrite` of servers that are trusted and others, beside gRPC's own client."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peers.grpcio import GrpcioClient
from peers.upstreams import LOOPBACK, GrpcUpstream
from peers.world import World

import meshlib

TYPE = "type.googleapis.com/"
METHOD = "/test.Greeter/Hello"
TRUSTED = "trusted_xds_server"

Json = dict[str, Any]


def resources(service: str, port: int, cluster: Json, *, host: str = LOOPBACK, hostname: str = "") -> list[Json]:
    """A listener with its routes, which take the authority from the endpoint, and a cluster of one endpoint."""
    router = {"@type": f"{TYPE}envoy.extensions.filters.http.router.v3.Router"}
    action = {"cluster": service, "auto_host_rewrite": True}
    manager = {
        "@type": f"{TYPE}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "m",
        "route_config": {
            "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": ""}, "route": action}]}]
        },
        "http_filters": [{"name": "router", "typed_config": router}],
    }
    endpoint: Json = {"address": {"socket_address": {"address": host, "port_value": port}}}
    if hostname:
        endpoint["hostname"] = hostname
    locality = {"locality": {"region": "r"}, "load_balancing_weight": 1, "lb_endpoints": [{"endpoint": endpoint}]}
    assignment = {"cluster_name": service, "endpoints": [locality]}
    made: list[Json] = [
        {
            "@type": f"{TYPE}envoy.config.listener.v3.Listener",
            "name": service,
            "api_listener": {"api_listener": manager},
        },
        {"@type": f"{TYPE}envoy.config.cluster.v3.Cluster", "name": service, **cluster},
    ]
    if cluster["type"] == "EDS":
        return [*made, {"@type": f"{TYPE}envoy.config.endpoint.v3.ClusterLoadAssignment", **assignment}]
    made[1]["load_assignment"] = assignment
    return made


@pytest.fixture
def upstream() -> Iterator[GrpcUpstream]:
    with GrpcUpstream("v1") as running:
        yield running


@pytest.fixture
def world(make_world: Callable[..., World], upstream: GrpcUpstream) -> World:
    eds = {"type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}}
    dns = {"type": "LOGICAL_DNS", "dns_lookup_family": "V4_ONLY"}
    return make_world(
        {
            "resources.yaml": json.dumps(
                {
                    "resources": [
                        *resources("named", upstream.port, eds, hostname="shop.example"),
                        *resources("nameless", upstream.port, eds),
                        *resources("dns", upstream.port, dns, host="localhost"),
                        *resources("named-dns", upstream.port, dns, host="localhost", hostname="shop.example"),
                        *resources("address-dns", upstream.port, dns),
                    ]
                }
            )
        }
    )


@pytest.mark.timeout(180)
@pytest.mark.parametrize("features", [(), (TRUSTED,)], ids=["untrusted", "trusted"])
def test_the_endpoints_name_becomes_the_authority_where_the_server_is_trusted(
    world: World, upstream: GrpcUpstream, tmp_path: Path, features: tuple[str, ...]
) -> None:
    server = {"server_uri": world.server.listen, "channel_creds": [{"type": "insecure"}]}
    bootstrap = {"xds_servers": [{**server, "server_features": list(features)}], "node": {"id": "n"}}
    path = tmp_path / "bootstrap.json"
    path.write_text(json.dumps(bootstrap))
    services = ("named", "nameless", "dns", "named-dns", "address-dns")

    def seen(call: Callable[[str], Any]) -> list[tuple[str, bool]]:
        upstream.seen.clear()
        for service in services:
            call(service)
        return [(one.authority, any(name.startswith("x-") for name, _ in one.headers)) for one in upstream.seen]

    with GrpcioClient("grpcio", world.server.listen, tmp_path, bootstrap=bootstrap) as client:
        theirs = seen(lambda service: client.call(f"xds:///{service}", METHOD))
    with meshlib.Mesh(path, state_dir="", first_use_timeout_s=30) as mesh:

        def call(service: str) -> None:
            with mesh.channel(f"xds:///{service}") as channel:
                channel.unary_unary(METHOD)(b"", timeout=30)

        ours = seen(call)
    names = {
        "named": "shop.example",
        "dns": f"localhost:{upstream.port}",
        "named-dns": f"localhost:{upstream.port}",
        "address-dns": f"{LOOPBACK}:{upstream.port}",
    }
    expected = [(names.get(service, service) if features else service, False) for service in services]
    assert expected == theirs
    assert expected == ours
