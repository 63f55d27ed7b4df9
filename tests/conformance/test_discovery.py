"""Scopes, virtual hosts and clusters on demand, discovered filters, runtime values and single endpoints: the same native
documents of the real xds-server lead a real Envoy and meshlib to the same answers, and neither refuses any of them."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from peers.envoy import TYPE, Envoy, ads_bootstrap, reserve_port, socket_address
from peers.management import ManagementServer
from peers.processes import poll
from peers.upstreams import LOOPBACK, HttpUpstream

from meshlib import Mesh

ADS = {"ads": {}, "resource_api_version": "V3"}
FILTERS = "envoy.extensions.filters.http."
FAULT = f"{FILTERS}fault.v3.HTTPFault"
RUNTIME = "envoy.service.runtime.v3.Runtime"
HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
LAYERS = {
    "layers": [
        {"name": "base", "static_layer": {"canary": 100}},
        {"name": "live", "rtds_layer": {"name": "rollout", "rtds_config": ADS}},
    ]
}
BOTH = pytest.mark.parametrize("variant", ["GRPC", "DELTA_GRPC"], indirect=True)
DELTA = pytest.mark.parametrize("variant", ["DELTA_GRPC"], indirect=True)


def typed(kind: str, /, **fields: Any) -> dict[str, Any]:
    return {"@type": TYPE + kind, **fields}


def named(name: str, resource: dict[str, Any]) -> dict[str, Any]:
    return typed("envoy.service.discovery.v3.Resource", name=name, resource=resource)


ROUTER = {"name": "router", "typed_config": typed(f"{FILTERS}router.v3.Router")}


def host(name: str, action: dict[str, Any], *domains: str, **match: Any) -> dict[str, Any]:
    return {
        "name": name,
        "domains": list(domains or ("*",)),
        "routes": [{"match": {"prefix": "/", **match}, "route": action}],
    }


def routes(name: str, *hosts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return typed("envoy.config.route.v3.RouteConfiguration", name=name, virtual_hosts=list(hosts), **fields)


class World:
    """One management server; Envoy and meshlib behind the same connection manager, each at a listener of its kind."""

    def __init__(self, folder: Path, variant: str, stack: ExitStack) -> None:
        self._stack = stack
        self._folder = folder
        self._variant = variant
        self._listen = f"{LOOPBACK}:{stack.enter_context(reserve_port()).getsockname()[1]}"
        self._upstreams: dict[str, HttpUpstream] = {}
        self.server: ManagementServer | None = None

    def listeners(self, *filters: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
        manager = typed(HCM, stat_prefix="shop", http_filters=[*filters, ROUTER], **fields)
        chain = {"filters": [{"name": "http", "typed_config": manager}]}
        kind = "envoy.config.listener.v3.Listener"
        return [
            typed(kind, name="shop", api_listener={"api_listener": manager}),
            typed(kind, name="front", address=socket_address(self._listen), filter_chains=[chain]),
        ]

    def endpoint(self, name: str) -> dict[str, Any]:
        if name not in self._upstreams:
            self._upstreams[name] = self._stack.enter_context(HttpUpstream(name))
        return {
            "endpoint": {"address": socket_address(f"{LOOPBACK}:{self._upstreams[name].port}")},
            "load_balancing_weight": 1,
        }

    def clusters(self, *names: str) -> list[dict[str, Any]]:
        found = []
        for name in names:
            config = {"eds_config": ADS}
            found.append(typed("envoy.config.cluster.v3.Cluster", name=name, type="EDS", eds_cluster_config=config))
            endpoints = [{"locality": {"zone": "z"}, "lb_endpoints": [self.endpoint(name)]}]
            found.append(
                typed("envoy.config.endpoint.v3.ClusterLoadAssignment", cluster_name=name, endpoints=endpoints)
            )
        return found

    def serve(self, *resources: dict[str, Any]) -> None:
        if not any(one["@type"] == TYPE + RUNTIME for one in resources):
            # Of the bootstrap's layer: where nobody says that there is none, Envoy waits 15 s for it before it starts.
            resources = (*resources, typed(RUNTIME, name="rollout"))
        text = json.dumps({"resources": list(resources)})
        if self.server is not None:
            self.server.write("resources.yaml", text)
            return
        self.server = self._stack.enter_context(ManagementServer(self._folder, {"resources.yaml": text}))
        held = self._stack.enter_context(reserve_port())
        outbound = f"{LOOPBACK}:{held.getsockname()[1]}"
        bootstrap = ads_bootstrap(self.server.listen, node_id="envoy-1", listen=outbound)
        bootstrap["dynamic_resources"]["ads_config"]["api_type"] = self._variant
        bootstrap["layered_runtime"] = LAYERS
        self.envoy = self._stack.enter_context(Envoy("envoy", bootstrap, self._folder))
        self.envoy.listen = self._listen
        self.envoy.wait_ready()
        features = ["meshlib.delta"] if self._variant == "DELTA_GRPC" else []
        server = {
            "server_uri": self.server.listen,
            "channel_creds": [{"type": "insecure"}],
            "server_features": features,
        }
        self.mesh = self._stack.enter_context(
            Mesh(
                {
                    "xds_servers": [server],
                    "node": {"id": "meshlib-1"},
                    "authorities": {"edge": {}},
                    "meshlib": {"layered_runtime": LAYERS},
                },
                state_dir="",
            )
        )
        self.client = self._stack.enter_context(
            httpx.Client(transport=self.mesh.httpx_transport(), timeout=30, trust_env=False)
        )

    def ask(self, authority: str = "shop", **headers: str) -> list[str]:
        """Return what Envoy and meshlib answer: the version, or the status."""
        items = [(name.replace("_", "-"), value) for name, value in headers.items()]
        through = self.envoy.request("GET", "/", authority=authority, headers=items)
        direct = self.client.get("http://shop/", headers=[("host", authority), *items])
        version = json.loads(direct.text)["version"] if direct.status_code == 200 else ""
        return [through.version or str(through.status), version or str(direct.status_code)]

    def until(self, expected: str, ask: Callable[[], list[str]]) -> None:
        """Wait until both answer so, then require it of one more request each."""
        poll(lambda: ask() == [expected] * 2, f"both to answer {expected}, not {ask()}", timeout_s=20.0)

    def check(self) -> None:
        """Require that nobody refused anything."""
        assert self.server is not None
        assert {} == self.server.rejections()
        assert [] == self.envoy.error_states()
        assert 0 == self.envoy.refused()
        assert [] == [one for one in self.mesh.dump() if one.state == "NACKED"]


@pytest.fixture
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(tmp_path: Path, variant: str) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, variant, stack)


def scope(name: str, *key: str, **fields: Any) -> dict[str, Any]:
    fragments = [{"string_key": part} for part in key]
    return typed("envoy.config.route.v3.ScopedRouteConfiguration", name=name, key={"fragments": fragments}, **fields)


@BOTH
def test_scopes(world: World) -> None:
    """Keys of every kind of fragment, requests that lack one, and a scope that comes and goes."""
    extractors = [
        {"name": "x-tenant", "element_separator": ",", "index": 1},
        {"name": "x-tags", "element_separator": ";", "element": {"separator": "=", "key": "zone"}},
    ]
    scoped = {
        "name": "scopes",
        "scope_key_builder": {"fragments": [{"header_value_extractor": one} for one in extractors]},
        "rds_config_source": ADS,
        "scoped_rds": {"scoped_rds_config_source": ADS},
    }
    base = [
        *world.listeners(scoped_routes=scoped),
        routes("ra", host("all", {"cluster": "a"})),
        routes("rb", host("all", {"cluster": "b"})),
        *world.clusters("a", "b"),
    ]
    one = scope("one", "red", "east", route_configuration_name="ra")
    two = scope("two", "blue", "west", route_configuration_name="rb")
    world.serve(*base, one, two)
    for tenant, tags, expected in (
        ("x,red", "zone=east", "a"),
        ("x,blue,y", "a=b;zone=west;zone=east", "b"),
        ("x,red", "zone=west", "404"),
        ("red", "zone=east", "404"),
        ("x,red", "zone", "404"),
        ("x,red", "zone=east=", "404"),
        ("x,Red", "zone=east", "404"),
    ):
        assert world.ask(x_tenant=tenant, x_tags=tags) == [expected] * 2, (tenant, tags)
    assert world.ask() == ["404"] * 2
    world.serve(*base, scope("one", "red", "east", route_configuration_name="rb"))
    world.until("b", lambda: world.ask(x_tenant="x,red", x_tags="zone=east"))
    world.until("404", lambda: world.ask(x_tenant="x,blue", x_tags="zone=west"))
    world.check()


@DELTA
def test_virtual_hosts_on_demand(world: World) -> None:
    on_demand = {"name": "on_demand", "typed_config": typed(f"{FILTERS}on_demand.v3.OnDemand")}
    base = [
        *world.listeners(on_demand, rds={"route_config_name": "r", "config_source": ADS}),
        routes(
            "r", host("base", {"cluster": "a"}, "shop"), vhds={"config_source": {**ADS, "initial_fetch_timeout": "1s"}}
        ),
        *world.clusters("a", "b", "c"),
    ]

    def virtual_host(cluster: str) -> dict[str, Any]:
        inner = typed("envoy.config.route.v3.VirtualHost", **host("more", {"cluster": cluster}, "more.example"))
        return named("r/more", inner)

    world.serve(*base, virtual_host("b"))
    assert world.ask() == ["a", "a"]
    assert world.ask("more.example") == ["b", "b"]
    assert world.ask("none.example") == ["404", "404"]
    world.serve(*base, virtual_host("c"))
    world.until("c", lambda: world.ask("more.example"))
    world.check()


@BOTH
def test_clusters_on_demand(world: World) -> None:
    """Envoy subscribes to all clusters, so there is nothing left to ask for: the answers must be the same all the same."""
    odcds = {"source": ADS, "timeout": "2s"}
    on_demand = {"name": "on_demand", "typed_config": typed(f"{FILTERS}on_demand.v3.OnDemand", odcds=odcds)}
    table = {"name": "r", "virtual_hosts": [host("all", {"cluster_header": "x-cluster"})]}
    world.serve(*world.listeners(on_demand, route_config=table), *world.clusters("a", "b"))
    assert [world.ask(x_cluster=name) for name in ("a", "b")] == [["a", "a"], ["b", "b"]]
    assert world.ask(x_cluster="none") == ["503", "503"]
    assert world.ask() == ["503", "503"]
    world.check()
    assert {one.name for one in world.mesh.dump() if one.type == "CDS"} == {"a", "b", "none"}


@BOTH
def test_discovered_filters(world: World) -> None:
    def fault(status: int) -> dict[str, Any]:
        return typed(FAULT, abort={"http_status": status, "percentage": {"numerator": 100}})

    def extension(status: int) -> dict[str, Any]:
        return typed("envoy.config.core.v3.TypedExtensionConfig", name="faults", typed_config=fault(status))

    discovery = {"config_source": ADS, "type_urls": [TYPE + FAULT], "default_config": fault(418)}
    faults = {"name": "faults", "config_discovery": discovery}
    table = {"name": "r", "virtual_hosts": [host("all", {"cluster": "a"})]}
    base = [*world.listeners(faults, route_config=table), *world.clusters("a")]
    world.serve(*base, extension(501))
    world.until("501", world.ask)
    world.serve(*base, extension(502))
    world.until("502", world.ask)
    world.check()


@BOTH
def test_runtime_values(world: World) -> None:
    """A static layer, then values of the server's layer in each form, for routes, weights and faults."""
    canary = host(
        "all", {"cluster": "a"}, runtime_fraction={"default_value": {"numerator": 0}, "runtime_key": "canary"}
    )
    weights = {
        "clusters": [{"name": "b", "weight": 100}, {"name": "c", "weight": 0}],
        "runtime_key_prefix": "split",
    }
    canary["routes"].append({"match": {"prefix": "/"}, "route": {"weighted_clusters": weights}})
    fault = typed(FAULT, abort={"http_status": 501, "percentage": {"numerator": 0}})
    faults = {"name": "faults", "typed_config": fault}
    table = {"name": "r", "virtual_hosts": [canary]}
    base = [*world.listeners(faults, route_config=table), *world.clusters("a", "b", "c")]

    def runtime(**layer: Any) -> dict[str, Any]:
        return typed(RUNTIME, name="rollout", layer=layer)

    world.serve(*base, runtime())
    assert world.ask() == ["a", "a"]
    for layer, expected in (
        ({"canary": 0}, "b"),
        ({"canary": {"numerator": 1_000_000, "denominator": "MILLION"}}, "a"),
        ({"canary": 0, "split": {"b": 0, "c": 100}}, "c"),
        ({"canary": "0"}, "b"),
        ({"canary": 500}, "a"),
        ({"canary": 0, "fault": {"http": {"abort": {"abort_percent": 100}}}}, "501"),
    ):
        world.serve(*base, runtime(**layer))
        world.until(expected, world.ask)
    world.check()


@DELTA
def test_endpoints_one_by_one(world: World) -> None:
    base = "xdstp://edge/envoy.config.endpoint.v3.LbEndpoint/shop/"
    config = {"leds_config": ADS, "leds_collection_name": f"{base}*"}
    table = {"name": "r", "virtual_hosts": [host("all", {"cluster": "a"})]}
    resources = [
        *world.listeners(route_config=table),
        world.clusters("a")[0],
        typed(
            "envoy.config.endpoint.v3.ClusterLoadAssignment",
            cluster_name="a",
            endpoints=[{"locality": {"zone": "z"}, "leds_cluster_locality_config": config}],
        ),
    ]

    def member(name: str) -> dict[str, Any]:
        return named(base + name, typed("envoy.config.endpoint.v3.LbEndpoint", **world.endpoint(name)))

    world.serve(*resources, member("x"))
    world.until("x", world.ask)
    world.serve(*resources, member("y"))
    world.until("y", world.ask)
    world.check()
