"""Scopes, virtual hosts and clusters on demand, single endpoints, discovered filters and runtime values from the real
xds-server, in a process of its own, to real requests: each type over every variant of the protocol that carries it."""

import asyncio
import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from peers.ports import free_port

from meshlib import Mesh
from meshlib.errors import MeshError

ADS = {"ads": {}, "resource_api_version": "V3"}
HCM = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
FAULT = "envoy.extensions.filters.http.fault.v3.HTTPFault"
ALL = pytest.mark.parametrize("variant", ["sotw", "delta", "sotw separate", "delta separate"], indirect=True)
DELTA = pytest.mark.parametrize("variant", ["delta", "delta separate"], indirect=True)
FEATURES = {"delta": "meshlib.delta", "separate": "meshlib.separate_streams"}


def typed(kind: str, /, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/{kind}", **fields}


def named(name: str, resource: dict[str, Any]) -> dict[str, Any]:
    return typed("envoy.service.discovery.v3.Resource", name=name, resource=resource)


ROUTER = {"name": "router", "typed_config": typed("envoy.extensions.filters.http.router.v3.Router")}


def listener(name: str, *filters: dict[str, Any], **routes: Any) -> dict[str, Any]:
    manager = typed(HCM, stat_prefix=name, http_filters=[*filters, ROUTER], **routes)
    return typed("envoy.config.listener.v3.Listener", name=name, api_listener={"api_listener": manager})


def host(name: str, action: dict[str, Any], *domains: str, **match: Any) -> dict[str, Any]:
    route = {"match": {"prefix": "/", **match}, "route": action}
    return {"name": name, "domains": list(domains or ("*",)), "routes": [route]}


def routes(name: str, *hosts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return typed("envoy.config.route.v3.RouteConfiguration", name=name, virtual_hosts=list(hosts), **fields)


def inline(*hosts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"name": "inline", "virtual_hosts": list(hosts), **fields}


def rds(name: str) -> dict[str, Any]:
    return {"route_config_name": name, "config_source": ADS}


def eds_cluster(name: str) -> dict[str, Any]:
    return typed("envoy.config.cluster.v3.Cluster", name=name, type="EDS", eds_cluster_config={"eds_config": ADS})


class Upstreams:
    """HTTP servers that answer with their names."""

    def __init__(self) -> None:
        self._servers: dict[str, ThreadingHTTPServer] = {}

    def port(self, name: str) -> int:
        if name not in self._servers:

            class Handler(BaseHTTPRequestHandler):
                def do_GET(self) -> None:
                    self.send_response(200)
                    self.send_header("content-length", str(len(name)))
                    self.end_headers()
                    self.wfile.write(name.encode())

                def log_message(self, *args: object) -> None:
                    pass

            server = self._servers[name] = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return int(self._servers[name].server_address[1])

    def cluster(self, name: str) -> list[dict[str, Any]]:
        """Return a cluster with one endpoint, and its endpoints."""
        cluster = eds_cluster(name)
        found = {"locality": {"zone": "z"}, "lb_endpoints": [self.endpoint(name)]}
        return [cluster, typed("envoy.config.endpoint.v3.ClusterLoadAssignment", cluster_name=name, endpoints=[found])]

    def endpoint(self, name: str) -> dict[str, Any]:
        address = {"socket_address": {"address": "127.0.0.1", "port_value": self.port(name)}}
        return {"endpoint": {"address": address}, "load_balancing_weight": 1}

    def stop(self) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()


class ManagementServer:
    """The real one, in a process of its own. It keeps nothing but what was published last, so tests can share it."""

    def __init__(self, directory: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self._file = directory / "resources.yaml"
        self._process: subprocess.Popen[str] | None = None
        self._admin = ""
        self._count = 0

    def serve(self, resources: list[dict[str, Any]]) -> None:
        """Publish exactly these resources; returns when they are."""
        self._count += 1
        marker = typed("envoy.service.runtime.v3.Runtime", name=f"published-{self._count}")
        self._file.with_suffix(".new").write_text(json.dumps({"resources": [*resources, marker]}))
        self._file.with_suffix(".new").rename(self._file)
        if self._process is None:
            self._start()
        until(lambda: f'"{marker["name"]}"' in self._published())

    def _published(self) -> str:
        with urllib.request.urlopen(f"{self._admin}/v1/resources", timeout=10) as response:
            return str(response.read(), "utf-8")

    def _start(self) -> None:
        options = ["--listen", self.address, "--admin", "127.0.0.1:0", "--debounce-ms", "20"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "xds_server", "serve", str(self._file), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = re.search(r" admin=(\S+)", line)
        assert found, line
        self._admin = found[1]

    def cut(self) -> None:
        """End it; the next `serve` starts it again at its address."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


class World:
    """The management server, a mesh and a client of it."""

    def __init__(self, server: ManagementServer, variant: str) -> None:
        self.upstreams = Upstreams()
        self._server = server
        self._features = [FEATURES[word] for word in variant.split() if word in FEATURES]
        self._meshes: list[Mesh] = []
        self._clients: list[httpx.Client] = []

    def serve(self, *resources: dict[str, Any]) -> None:
        """Publish exactly these resources; returns when they are."""
        self._server.serve(list(resources))

    def cut(self) -> None:
        """End the management server."""
        self._server.cut()

    def mesh(self, *features: str, state_dir: Path | str = "", **bootstrap: Any) -> Mesh:
        server = {
            "server_uri": self._server.address,
            "channel_creds": [{"type": "insecure"}],
            "server_features": [*self._features, *features],
        }
        mesh = Mesh({"xds_servers": [server], "node": {"id": "n"}, **bootstrap}, state_dir=state_dir)
        self._meshes.append(mesh)
        return mesh

    def client(self, mesh: Mesh) -> httpx.Client:
        client = httpx.Client(transport=mesh.httpx_transport())
        self._clients.append(client)
        return client

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        for mesh in self._meshes:
            mesh.close()
        self.upstreams.stop()


@pytest.fixture(scope="module")
def management_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagementServer]:
    found = ManagementServer(tmp_path_factory.mktemp("xds"))
    yield found
    found.cut()


@pytest.fixture
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def world(management_server: ManagementServer, variant: str) -> Iterator[World]:
    found = World(management_server, variant)
    yield found
    found.stop()


def until(look: Callable[[], bool], timeout_s: float = 40.0) -> None:
    """Wait until something is so."""
    ends_at = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < ends_at, "it did not happen in time"
        time.sleep(0.02)


def held(mesh: Mesh, kind: str) -> set[str]:
    return {resource.name for resource in mesh.dump() if resource.type == kind}


def scope(name: str, key: str, routes: str, **fields: Any) -> dict[str, Any]:
    return typed(
        "envoy.config.route.v3.ScopedRouteConfiguration",
        name=name,
        key={"fragments": [{"string_key": key}]},
        route_configuration_name=routes,
        **fields,
    )


SCOPED = {
    "scoped_routes": {
        "name": "by-tenant",
        "scope_key_builder": {"fragments": [{"header_value_extractor": {"name": "x-tenant", "index": 0}}]},
        "rds_config_source": ADS,
        "scoped_rds": {"scoped_rds_config_source": ADS},
    }
}


@ALL
def test_scopes(world: World) -> None:
    """Steps: 1. each tenant has its routes, others none; 2. a new scope comes; 3. one leaves."""
    ups = world.upstreams
    base = [
        listener("shop", **SCOPED),
        routes("red", host("all", {"cluster": "red"})),
        routes("blue", host("all", {"cluster": "blue"})),
        *ups.cluster("red"),
        *ups.cluster("blue"),
    ]
    one, two = scope("one", "red", "red"), scope("two", "blue", "blue", on_demand=True)
    world.serve(*base, one)
    client = world.client(world.mesh())

    def ask(tenant: str) -> str:
        found = client.get("http://shop/", headers={"x-tenant": tenant})
        return found.text if found.status_code == 200 else str(found.status_code)

    assert [ask("red"), ask("blue")] == ["red", "404"]
    assert client.get("http://shop/").status_code == 404
    world.serve(*base, one, two)
    until(lambda: ask("blue") == "blue")
    world.serve(*base, two)
    until(lambda: ask("red") == "404")
    assert ask("blue") == "blue"


@DELTA
def test_virtual_hosts_on_demand(world: World) -> None:
    """Steps: 1. a request brings its virtual host, by any of its domains; 2. an unknown one is 404 at once; 3. it comes
    to be; 4. a change of a virtual host arrives; 5. one that is removed is 404 again."""
    ups = world.upstreams
    base = [
        listener("shop", rds=rds("r/1")),
        routes("r/1", host("base", {"cluster": "base"}, "shop"), vhds={"config_source": ADS}),
        *ups.cluster("base"),
        *ups.cluster("a"),
        *ups.cluster("b"),
    ]

    def virtual_host(name: str, cluster: str, *domains: str) -> dict[str, Any]:
        return named(
            f"r/1/{name}", typed("envoy.config.route.v3.VirtualHost", **host(name, {"cluster": cluster}, *domains))
        )

    world.serve(*base, virtual_host("first", "a", "a.example", "*.a.example"))
    mesh = world.mesh()
    client = world.client(mesh)

    def ask(authority: str) -> str:
        found = client.get("http://shop/", headers={"host": authority})
        return found.text if found.status_code == 200 else str(found.status_code)

    assert ask("shop") == "base"
    assert held(mesh, "VHDS") == set()
    assert [ask("a.example"), ask("X.a.example")] == ["a", "a"]
    assert ask("b.example") == "404"
    unknown = {resource.state for resource in mesh.dump() if resource.name == "r/1/b.example"}
    assert unknown == {"DOES_NOT_EXIST"}, "the server said that there is none, so nobody waited for the time to end"
    world.serve(*base, virtual_host("first", "a", "a.example", "*.a.example"), virtual_host("second", "b", "b.example"))
    until(lambda: ask("b.example") == "b")
    world.serve(*base, virtual_host("first", "b", "a.example"), virtual_host("second", "b", "b.example"))
    until(lambda: ask("a.example") == "b")
    world.serve(*base, virtual_host("second", "b", "b.example"))
    until(lambda: ask("a.example") == "404")
    assert ask("b.example") == "b"


@ALL
def test_clusters_that_headers_name(world: World) -> None:
    ups = world.upstreams
    clusters = [part for name in ("a", "b", "c") for part in ups.cluster(name)]
    world.serve(listener("shop", route_config=inline(host("all", {"cluster_header": "x-cluster"}))), *clusters)
    mesh = world.mesh()
    client = world.client(mesh)

    def ask(cluster: str) -> str:
        found = client.get("http://shop/", headers={"x-cluster": cluster})
        return found.text if found.status_code == 200 else str(found.status_code)

    assert [ask("a"), ask("b"), ask("none"), ask("a")] == ["a", "b", "503", "a"]
    assert held(mesh, "CDS") == {"a", "b", "none"}
    assert client.get("http://shop/").status_code == 503


@ALL
def test_only_clusters_in_use_are_held_with_the_filter_for_it(world: World) -> None:
    ups = world.upstreams
    hosts = [host(f"h{index}", {"cluster": f"c{index}"}, f"c{index}") for index in range(50)]
    on_demand = typed("envoy.extensions.filters.http.on_demand.v3.OnDemand", odcds={"source": ADS, "timeout": "10s"})
    clusters = [eds_cluster(f"c{index}") for index in range(50)]
    endpoints = [ups.cluster(f"c{index}")[1] for index in (1, 2)]
    empty = [
        typed("envoy.config.endpoint.v3.ClusterLoadAssignment", cluster_name=f"c{index}")
        for index in range(50)
        if index not in (1, 2)
    ]
    shop = listener("shop", {"name": "od", "typed_config": on_demand}, route_config=inline(*hosts))
    world.serve(shop, *clusters, *endpoints, *empty)
    mesh = world.mesh()
    client = world.client(mesh)
    for name in ("c1", "c2"):
        assert client.get("http://shop/", headers={"host": name}).text == name
    assert held(mesh, "CDS") == held(mesh, "EDS") == {"c1", "c2"}


@DELTA
def test_endpoints_one_by_one(world: World) -> None:
    """Steps: 1. the members of a glob are endpoints; 2. one comes; 3. one goes; 4. all go, and are back."""
    ups = world.upstreams
    base = "xdstp://edge/envoy.config.endpoint.v3.LbEndpoint/shop/"
    config = {"leds_config": ADS, "leds_collection_name": f"{base}*"}
    resources = [
        listener("shop", route_config=inline(host("all", {"cluster": "c"}))),
        ups.cluster("c")[0],
        typed(
            "envoy.config.endpoint.v3.ClusterLoadAssignment",
            cluster_name="c",
            endpoints=[{"locality": {"zone": "z"}, "leds_cluster_locality_config": config}],
        ),
    ]

    def member(name: str) -> dict[str, Any]:
        return named(base + name, typed("envoy.config.endpoint.v3.LbEndpoint", **ups.endpoint(name)))

    elsewhere = named(f"{base}deeper/z", typed("envoy.config.endpoint.v3.LbEndpoint", **ups.endpoint("z")))
    world.serve(*resources, member("a"), elsewhere)
    mesh = world.mesh(authorities={"edge": {}})
    client = world.client(mesh)

    def answers() -> set[str]:
        found = [client.get("http://shop/") for _ in range(12)]
        return {one.text if one.status_code == 200 else str(one.status_code) for one in found}

    assert answers() == {"a"}
    world.serve(*resources, member("a"), member("b"))
    until(lambda: answers() == {"a", "b"})
    world.serve(*resources, member("b"))
    until(lambda: answers() == {"b"})
    world.serve(*resources)
    until(lambda: answers() == {"503"})
    world.serve(*resources, member("a"))
    until(lambda: answers() == {"a"})


@ALL
def test_filters_that_are_discovered(world: World) -> None:
    """Steps: 1. the listener has its faults from the resource; 2. a change; 3. without it, the default."""
    ups = world.upstreams

    def fault(status: int) -> dict[str, Any]:
        return typed(FAULT, abort={"http_status": status, "percentage": {"numerator": 100}})

    discovery = {"config_source": ADS, "type_urls": [f"type.googleapis.com/{FAULT}"], "default_config": fault(418)}
    base = [
        listener(
            "shop",
            {"name": "faults", "config_discovery": discovery},
            route_config=inline(host("all", {"cluster": "c"})),
        ),
        *ups.cluster("c"),
    ]

    def extension(status: int) -> dict[str, Any]:
        return typed("envoy.config.core.v3.TypedExtensionConfig", name="faults", typed_config=fault(status))

    world.serve(*base, extension(501))
    client = world.client(world.mesh())
    assert client.get("http://shop/").status_code == 501
    world.serve(*base, extension(502))
    until(lambda: client.get("http://shop/").status_code == 502)


@ALL
def test_default_of_a_filter_that_does_not_exist(world: World) -> None:
    discovery = {
        "config_source": ADS,
        "type_urls": [f"type.googleapis.com/{FAULT}"],
        "default_config": typed(FAULT, abort={"http_status": 418, "percentage": {"numerator": 100}}),
    }
    faults = {"name": "faults", "config_discovery": discovery}
    world.serve(
        listener("shop", faults, route_config=inline(host("all", {"cluster": "c"}))), *world.upstreams.cluster("c")
    )
    client = world.client(world.mesh())
    assert client.get("http://shop/").status_code == 418


@ALL
def test_runtime_values(world: World) -> None:
    """Steps: 1. a static layer counts; 2. the server's layer counts more, and its changes arrive."""
    ups = world.upstreams
    canary = host(
        "all", {"cluster": "new"}, runtime_fraction={"default_value": {"numerator": 0}, "runtime_key": "canary"}
    )
    canary["routes"].append({"match": {"prefix": "/"}, "route": {"cluster": "old"}})
    base = [listener("shop", route_config=inline(canary)), *ups.cluster("old"), *ups.cluster("new")]
    layers = [
        {"name": "base", "static_layer": {"canary": 100}},
        {"name": "live", "rtds_layer": {"name": "rollout", "rtds_config": {"ads": {}}}},
    ]

    def runtime(**layer: Any) -> dict[str, Any]:
        return typed("envoy.service.runtime.v3.Runtime", name="rollout", layer=layer)

    world.serve(*base, runtime(other=1))
    client = world.client(world.mesh(meshlib={"layered_runtime": {"layers": layers}}))
    assert client.get("http://shop/").text == "new"
    world.serve(*base, runtime(canary=0))
    until(lambda: client.get("http://shop/").text == "old")
    world.serve(*base, runtime(canary={"numerator": 100}))
    until(lambda: client.get("http://shop/").text == "new")


@ALL
def test_all_listeners_and_clusters_on_request(world: World) -> None:
    """Steps: 1. all are held before anything is used; 2. what is removed is given up; 3. named ones are used."""
    ups = world.upstreams
    shop = listener("shop", route_config=inline(host("all", {"cluster": "a"})))
    clusters = [part for name in ("a", "b") for part in ups.cluster(name)]
    world.serve(shop, *clusters)
    mesh = world.mesh("meshlib.wildcard_lds", "meshlib.wildcard_cds")
    mesh.start()
    until(lambda: held(mesh, "CDS") - {"*"} == {"a", "b"} and held(mesh, "LDS") - {"*"} == {"shop"})
    assert held(mesh, "EDS") == set()
    client = world.client(mesh)
    assert client.get("http://shop/").text == "a"
    world.serve(shop, *ups.cluster("a"))
    until(lambda: held(mesh, "CDS") - {"*"} == {"a"})
    with pytest.raises(MeshError):
        mesh.wait_target("other", 5.0)
    assert client.get("http://shop/").text == "a"


@pytest.mark.parametrize("variant", ["sotw"], indirect=True)
def test_virtual_hosts_without_the_incremental_variant_say_what_to_do(world: World) -> None:
    base = routes("r", vhds={"config_source": ADS})
    world.serve(listener("shop", rds=rds("r")), base)
    mesh = world.mesh()
    client = world.client(mesh)
    mesh.wait_ready("shop")
    assert client.get("http://shop/").status_code == 404
    (refused,) = [resource for resource in mesh.dump() if resource.type == "VHDS"]
    assert (refused.name, "meshlib.delta" in refused.error) == ("r/shop", True)


@pytest.mark.parametrize("variant", ["delta"], indirect=True)
def test_scopes_and_virtual_hosts_are_there_without_the_server_after_a_restart(world: World, tmp_path: Path) -> None:
    """What requests asked for once is on disk, and serves a new process while no server answers."""
    ups = world.upstreams
    more = typed("envoy.config.route.v3.VirtualHost", **host("more", {"cluster": "b"}, "more.example"))
    world.serve(
        listener("shop", **SCOPED),
        scope("one", "red", "r"),
        routes("r", host("base", {"cluster": "a"}, "shop"), vhds={"config_source": ADS}),
        named("r/more", more),
        *ups.cluster("a"),
        *ups.cluster("b"),
    )
    headers = {"x-tenant": "red", "host": "more.example"}
    for is_up in (True, False):
        mesh = world.mesh(state_dir=tmp_path / "state")
        client = world.client(mesh)
        assert client.get("http://shop/", headers={"x-tenant": "red"}).text == "a"
        assert client.get("http://shop/", headers=headers).text == "b"
        assert all(resource.is_from_disk is not is_up for resource in mesh.dump() if resource.type in ("SRDS", "VHDS"))
        mesh.close()
        world.cut()


@ALL
async def test_waiting_for_a_cluster_holds_no_event_loop(world: World) -> None:
    """Clusters that do not come keep their requests waiting, and only those."""
    ups = world.upstreams
    on_demand = typed("envoy.extensions.filters.http.on_demand.v3.OnDemand", odcds={"source": ADS, "timeout": "1s"})
    shop = listener(
        "shop",
        {"name": "od", "typed_config": on_demand},
        route_config=inline(host("all", {"cluster_header": "x-cluster"})),
    )
    world.serve(shop, *ups.cluster("a"))
    mesh = world.mesh()
    async with httpx.AsyncClient(transport=mesh.async_httpx_transport()) as client:
        assert (await client.get("http://shop/", headers={"x-cluster": "a"})).text == "a"
        world.cut()  # from now on nobody answers for a cluster
        waiting = [
            asyncio.create_task(client.get("http://shop/", headers={"x-cluster": f"c{index}"})) for index in range(20)
        ]
        await asyncio.sleep(0)
        served = 0
        while not all(task.done() for task in waiting):
            assert (await client.get("http://shop/", headers={"x-cluster": "a"})).text == "a"
            served += 1
        assert served > 1, "the loop went on: held, it would serve one, when all is over"
        assert {task.result().status_code for task in waiting} == {503}


GRPC_METHOD = "/shop.Shop/Get"


@pytest.fixture
def grpc_port() -> Iterator[int]:
    """The port of a gRPC server."""
    handler = grpc.unary_unary_rpc_method_handler(lambda request, context: b"grpc")
    server = grpc.server(ThreadPoolExecutor(4), options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Shop", {"Get": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None)


@pytest.mark.parametrize("variant", ["sotw"], indirect=True)
async def test_grpc_calls_wait_for_what_they_need_too(world: World, grpc_port: int) -> None:
    """Blocking and asyncio channels, and channels of the application's own."""
    cluster, endpoints = world.upstreams.cluster("g")
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    cluster["typed_extension_protocol_options"] = {
        options: typed(options, explicit_http_config={"http2_protocol_options": {}})
    }
    address = endpoints["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
    address["socket_address"]["port_value"] = grpc_port
    names = [f"g{index}" for index in range(4)]
    shop = listener("shop", route_config=inline(host("all", {"cluster_header": "x-cluster"})))
    copies = [{**cluster, "name": name} for name in names]
    world.serve(shop, *copies, *({**endpoints, "cluster_name": name} for name in names))
    mesh = world.mesh()
    with mesh.channel("xds:///shop") as channel:
        call: Any = channel.unary_unary(GRPC_METHOD)
        assert call(b"", metadata=(("x-cluster", "g0"),), timeout=10) == b"grpc"
        with pytest.raises(grpc.RpcError) as raised:
            call(b"", metadata=(("x-cluster", "none"),), timeout=10)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    async with mesh.aio_channel("xds:///shop") as aio:
        method: Any = aio.unary_unary(GRPC_METHOD)
        assert await method(b"", metadata=(("x-cluster", "g1"),), timeout=10) == b"grpc"
        stream: Any = aio.unary_stream(GRPC_METHOD)
        with pytest.raises(grpc.RpcError) as raised:
            async for _ in stream(b"", metadata=(("x-cluster", "none"),), timeout=10):
                pass
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as plain:
        own: Any = mesh.intercept(plain, target="shop").unary_unary(GRPC_METHOD)
        assert own(b"", metadata=(("x-cluster", "g2"),), timeout=10) == b"grpc"

    @mesh.call("shop")
    def plain_function(endpoint: Any) -> str:
        return "never"

    with pytest.raises(MeshError):
        plain_function()


@DELTA
def test_what_changed_while_the_server_was_away_is_taken_over(world: World) -> None:
    """Scopes, members of a glob and unasked clusters: of each one goes and one comes while nobody is connected."""
    ups = world.upstreams
    base = "xdstp://edge/envoy.config.endpoint.v3.LbEndpoint/shop/"
    config = {"leds_config": ADS, "leds_collection_name": f"{base}*"}
    fixed = [
        listener("shop", **SCOPED),
        routes("r", host("all", {"cluster": "c"})),
        eds_cluster("c"),
        typed(
            "envoy.config.endpoint.v3.ClusterLoadAssignment",
            cluster_name="c",
            endpoints=[{"locality": {"zone": "z"}, "leds_cluster_locality_config": config}],
        ),
    ]

    def member(name: str) -> dict[str, Any]:
        return named(base + name, typed("envoy.config.endpoint.v3.LbEndpoint", **ups.endpoint(name)))

    world.serve(*fixed, scope("one", "red", "r"), member("a"), *ups.cluster("old"))
    mesh = world.mesh("meshlib.wildcard_cds", authorities={"edge": {}})
    client = world.client(mesh)

    def ask(tenant: str) -> str:
        found = client.get("http://shop/", headers={"x-tenant": tenant})
        return found.text if found.status_code == 200 else str(found.status_code)

    assert [ask("red"), ask("blue")] == ["a", "404"]
    until(lambda: "old" in held(mesh, "CDS"))
    world.cut()
    assert ask("red") == "a", "what is known stays in use"
    world.serve(*fixed, scope("two", "blue", "r"), member("b"), *ups.cluster("new"))
    until(lambda: [ask("red"), ask("blue")] == ["404", "b"])
    until(lambda: held(mesh, "CDS") - {"*"} == {"c", "new"})
    assert held(mesh, "LEDS") == {f"{base}*", f"{base}b"}


@pytest.mark.parametrize("variant", ["sotw", "delta"], indirect=True)
def test_limits_that_are_discovered(world: World) -> None:
    """Steps: 1. the default without warming, which lets nobody pass twice; 2. the resource; 3. it is switched off."""
    limit = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
    always = {"default_value": {"numerator": 100}}

    def limiter(tokens: int, status: int, **fields: Any) -> dict[str, Any]:
        bucket = {"max_tokens": tokens, "fill_interval": "600s"}
        shares = {"filter_enabled": always, "filter_enforced": always, **fields}
        return typed(limit, stat_prefix="l", token_bucket=bucket, status={"code": status}, **shares)

    def extension(config: dict[str, Any]) -> dict[str, Any]:
        return typed("envoy.config.core.v3.TypedExtensionConfig", name="limiter", typed_config=config)

    discovery = {
        "config_source": ADS,
        "type_urls": [f"type.googleapis.com/{limit}"],
        "default_config": limiter(1, 429),
        "apply_default_config_without_warming": True,
    }
    filters = {"name": "limiter", "config_discovery": discovery}
    base = [
        listener("shop", filters, route_config=inline(host("all", {"cluster": "c"}))),
        *world.upstreams.cluster("c"),
    ]
    world.serve(*base)
    client = world.client(world.mesh())
    assert [client.get("http://shop/").status_code for _ in range(2)] == [200, 429]
    world.serve(*base, extension(limiter(1, 503)))
    until(lambda: client.get("http://shop/").status_code == 503)
    world.serve(*base, extension(limiter(1, 503, filter_enforced={"default_value": {"numerator": 0}})))
    until(lambda: client.get("http://shop/").status_code == 200)
