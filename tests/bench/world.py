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
    grpc: The same for gRPC.
    grpc_tls: The same for gRPC with mutual TLS.
    xds: Where the management server is.
    envoy: Where an Envoy with the same configuration takes requests; empty: there is none.
    roots: File of the certificates by which the server with TLS is known; beside it `chain.pem` and `key.pem`.
    """

    mesh: meshlib.Mesh
    http: str
    tls: str
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


def secure_service(name: str, address: str, authority: Authority, leaf: Leaf) -> list[dict[str, Any]]:
    """Return a service that is reached over mutual TLS, as native resources."""
    host, _, port = address.rpartition(":")
    types = "type.googleapis.com/envoy"
    manager = f"{types}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    route = {"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "10s"}}
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{types}.extensions.filters.http.router.v3.Router"},
    }
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
    context = f"{types}.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    endpoint = {"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}}
    return [
        {
            "@type": f"{types}.config.listener.v3.Listener",
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
        },
        {
            "@type": f"{types}.config.cluster.v3.Cluster",
            "name": name,
            "type": "STATIC",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {"@type": context, "common_tls_context": common},
            },
        },
    ]


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
        found = (ports["http"][0], ports["tls"][0], ports["grpc"], ports["grpc_tls"])
        http, tls, grpc, grpc_tls = (f"127.0.0.1:{port}" for port in found)
        (folder / "mesh").mkdir()
        (folder / "mesh" / "bench.yaml").write_text(configuration(ports))
        secure = (
            *secure_service(SECURE, tls, authority, leaf),
            *secure_service(SECURE_GRPC, grpc_tls, authority, leaf),
        )
        for number, resource in enumerate(secure):
            (folder / "mesh" / f"tls-{number}.json").write_text(json.dumps(resource))
        command = (sys.executable, "-m", "xds_server", "serve", str(folder / "mesh"), "--listen", "127.0.0.1:0")
        _, line = stack.enter_context(process(*command, "--admin", "127.0.0.1:0", "--log-level", "error"))
        words = dict(word.partition("=")[::2] for word in line.split())
        mesh = stack.enter_context(meshlib.Mesh.connect(words["xds"], node_id="bench", state_dir=""))
        mesh.wait_ready(SERVICE, f"{SERVICE}:81", SECURE, SECURE_GRPC, timeout_s=10)
        envoy = _envoy(stack, words["xds"], folder) if with_envoy else ""
        yield World(mesh, http, tls, grpc, grpc_tls, words["xds"], envoy, folder / "ca.pem")


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
