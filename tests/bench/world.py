"""What benchmarks run against: servers, an `xds-server` with their configuration, a mesh, and an Envoy if there is one."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "conformance"))

from peers.authority import Authority, Leaf
from peers.envoy import Envoy, ads_bootstrap, find_envoy, reserve_port

import meshlib

HERE = Path(__file__).parent
SERVICE = "bench"
SECURE = "bench-tls"
SECURE_GRPC = "bench-grpc-tls"
HTTP2 = "bench-http2"
CANARY = "bench-canary"
SPIFFE = "spiffe://cluster.local/ns/default/sa/bench"

# The issue of the goals: 3 endpoints, 10 routes, retries, circuit breaker, outlier detection.
CONFIGURATION = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {service}, namespace: default}}
spec:
  hosts: [{service}.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
  - {{number: 80, name: http, protocol: HTTP}}
  - {{number: 81, name: grpc, protocol: GRPC}}
  endpoints:
{endpoints}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: {service}, namespace: default}}
spec:
  host: {service}.default.svc.cluster.local
  trafficPolicy:
    connectionPool: {{tcp: {{maxConnections: 1000}}, http: {{http1MaxPendingRequests: 1000, http2MaxRequests: 1000, maxRetries: 3}}}}
    outlierDetection: {{consecutive5xxErrors: 5, interval: 10s, baseEjectionTime: 30s}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {service}, namespace: default}}
spec:
  hosts: [{service}.default.svc.cluster.local]
  http:
{routes}
"""
ROUTE = """  - match: [{{uri: {match}}}]
    route: [{{destination: {{host: {service}.default.svc.cluster.local}}}}]
    retries: {{attempts: 2, retryOn: "connect-failure,refused-stream,503"}}
    timeout: 10s
"""


@dataclass(frozen=True)
class World:
    """Attributes:
    http: Where the servers are without the mesh, as `host:port`.
    tls: The same with TLS.
    http2: The same for HTTP/2.
    grpc: The same for gRPC.
    grpc_tls: The same for gRPC with mutual TLS.
    xds: Where the management server is.
    envoy: Where an Envoy with the same configuration takes requests; empty: there is none.
    roots: File of the certificates by which the server with TLS is known; beside it `chain.pem` and `key.pem`.
    """

    mesh: meshlib.Mesh
    http: str
    tls: str
    http2: str
    grpc: str
    grpc_tls: str
    xds: str
    envoy: str
    roots: Path


def configuration(ports: Mapping[str, Any]) -> str:
    endpoints = [
        f"  - {{address: 127.0.0.1, ports: {{http: {port}, grpc: {ports['grpc']}}}}}" for port in ports["http"]
    ]
    matches = [f"{{prefix: /other-{number}/}}" for number in range(9)] + ["{prefix: /}"]
    routes = [ROUTE.format(match=match, service=SERVICE) for match in matches]
    return CONFIGURATION.format(service=SERVICE, endpoints="\n".join(endpoints), routes="".join(routes))


TYPES = "type.googleapis.com/envoy"


def listener(name: str, action: dict[str, Any]) -> dict[str, Any]:
    """Return the listener of a service, with its one route."""
    manager = f"{TYPES}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    route = {"match": {"prefix": "/"}, "route": {**action, "timeout": "10s"}}
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{TYPES}.extensions.filters.http.router.v3.Router"},
    }
    return {
        "@type": f"{TYPES}.config.listener.v3.Listener",
        "name": name,
        "api_listener": {
            "api_listener": {
                "@type": manager,
                "stat_prefix": name,
                "route_config": {
                    "name": name,
                    "virtual_hosts": [{"name": name, "domains": ["*"], "routes": [route]}],
                },
                "http_filters": [router],
            }
        },
    }


def cluster(name: str, *addresses: str, **options: Any) -> dict[str, Any]:
    """Return a cluster whose endpoints are known."""
    endpoints = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        endpoints.append({"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}})
    return {
        "@type": f"{TYPES}.config.cluster.v3.Cluster",
        "name": name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        **options,
    }


def http2_service(name: str, address: str) -> list[dict[str, Any]]:
    """Return a service that speaks HTTP/2, as native resources."""
    protocols = {
        "@type": f"{TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    options = {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": protocols}
    made = cluster(name, address, typed_extension_protocol_options=options)
    return [listener(name, {"cluster": name}), made]


def canary_service(name: str, *addresses: str) -> list[dict[str, Any]]:
    """Return a service a fifth of whose requests goes to the last endpoint, as native resources."""
    clusters = [{"name": f"{name}-old", "weight": 80}, {"name": f"{name}-new", "weight": 20}]
    return [
        listener(name, {"weighted_clusters": {"clusters": clusters}}),
        cluster(f"{name}-old", *addresses[:-1]),
        cluster(f"{name}-new", addresses[-1]),
    ]


def secure_service(name: str, address: str, authority: Authority, leaf: Leaf) -> list[dict[str, Any]]:
    """Return a service that is reached over mutual TLS, as native resources."""
    host_names = [{"san_type": "URI", "matcher": {"exact": SPIFFE}}]
    common = {
        "tls_certificates": [
            {
                "certificate_chain": {"inline_string": leaf.chain_pem.decode()},
                "private_key": {"inline_string": leaf.key_pem.decode()},
            }
        ],
        "validation_context": {
            "trusted_ca": {"inline_string": authority.pem.decode()},
            "match_typed_subject_alt_names": host_names,
        },
    }
    context = f"{TYPES}.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    socket = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {"@type": context, "common_tls_context": common},
    }
    return [listener(name, {"cluster": name}), cluster(name, address, transport_socket=socket)]


@contextmanager
def process(*command: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a program; gives its first line, and ends it."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running, running.stdout.readline()
        finally:
            running.terminate()


@contextmanager
def world(*, with_envoy: bool) -> Iterator[World]:
    """Start the servers and a mesh that knows them."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        authority = Authority()
        leaf = authority.issue(SPIFFE, dns=["localhost"], ips=["127.0.0.1"])
        for name, content in (("ca", authority.pem), ("chain", leaf.chain_pem), ("key", leaf.key_pem)):
            (folder / f"{name}.pem").write_bytes(content)
        _, line = stack.enter_context(process(sys.executable, str(HERE / "upstream.py"), str(folder)))
        ports = json.loads(line)
        found = (ports["http"][0], ports["tls"][0], ports["http2"][0], ports["grpc"], ports["grpc_tls"])
        http, tls, http2, grpc, grpc_tls = (f"127.0.0.1:{port}" for port in found)
        (folder / "mesh").mkdir()
        (folder / "mesh" / "bench.yaml").write_text(configuration(ports))
        native = (
            *secure_service(SECURE, tls, authority, leaf),
            *secure_service(SECURE_GRPC, grpc_tls, authority, leaf),
            *http2_service(HTTP2, http2),
            *canary_service(CANARY, *(f"127.0.0.1:{port}" for port in ports["http"])),
        )
        for number, resource in enumerate(native):
            (folder / "mesh" / f"native-{number}.json").write_text(json.dumps(resource))
        command = (sys.executable, "-m", "xds_server", "serve", str(folder / "mesh"), "--listen", "127.0.0.1:0")
        _, line = stack.enter_context(process(*command, "--admin", "127.0.0.1:0", "--log-level", "error"))
        words = dict(word.partition("=")[::2] for word in line.split())
        mesh = stack.enter_context(meshlib.Mesh.connect(words["xds"], node_id="bench", state_dir=""))
        mesh.wait_ready(SERVICE, f"{SERVICE}:81", SECURE, SECURE_GRPC, HTTP2, CANARY, timeout_s=10)
        envoy = _envoy(stack, words["xds"], folder) if with_envoy else ""
        yield World(mesh, http, tls, http2, grpc, grpc_tls, words["xds"], envoy, folder / "ca.pem")


def _envoy(stack: ExitStack, server: str, folder: Path) -> str:
    try:
        find_envoy()
    except BaseException as error:  # pytest's, which is none of `Exception`
        print(f"without the pairs through an Envoy: {error}")
        return ""
    held = stack.enter_context(reserve_port())
    listen = f"127.0.0.1:{held.getsockname()[1]}"
    envoy = Envoy("envoy", ads_bootstrap(server, node_id="bench-envoy", listen=listen), folder)
    stack.callback(envoy.stop)
    envoy.listen = listen
    envoy.wait_ready()
    return listen
