"""grpc-go's own xDS client, and a server that it governs, against the real xds-server."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from foreign.grpc_go import GoClient, GoServer
from peers.authority import Authority, Leaf
from peers.management import ManagementServer
from peers.ports import free_port
from peers.processes import poll
from peers.upstreams import GrpcUpstream

from meshlib import Mesh
from xds_server.bootstrap import Bootstrap

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "canary"
EVERY_FIELD = EXAMPLE.parents[1] / "tests" / "data" / "every-field.yaml"
ROUTES = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: echo}}
spec:
  host: echo
  subsets: [{{name: v1, labels: {{version: v1}}}}, {{name: v2, labels: {{version: v2}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: echo}}
spec:
  hosts: [echo]
  http:
  - match: [{{headers: {{canary: {{exact: "true"}}}}}}]
    route: [{{destination: {{host: echo, subset: v2}}}}]
  - route:
    - {{destination: {{host: echo, subset: v1}}, weight: {v1}}}
    - {{destination: {{host: echo, subset: v2}}, weight: {v2}}}
    retries: {{attempts: 2, perTryTimeout: 2s, retryOn: unavailable}}
"""
AUTHORIZATION = """\
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: echo}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/peers.Echo/Call]}}], when: [{key: "request.headers[who]", values: [nobody]}]}]
"""


STRICT = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: echo, namespace: default}
spec:
  rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/orders]}}]}]
"""


class World:
    """xds-server, and the bootstraps of its clients."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.server = stack.enter_context(ManagementServer(folder, {"echo.yaml": ROUTES.format(v1=100, v2=0)}))

    def bootstrap(self, node_id: str, leaf: Leaf | None = None) -> Path:
        """Write a bootstrap; with the certificate of a leaf and the roots of `root.pem`, if there is one."""
        path = self.folder / f"{node_id}.json"
        made = Bootstrap(node_id, "peers", self.server.admin.removeprefix("http://")).plaintext(self.server.listen)
        if leaf is not None:
            files = {name: str(self.folder / f"{node_id}.{name}") for name in ("certificate_file", "private_key_file")}
            Path(files["certificate_file"]).write_bytes(leaf.chain_pem)
            Path(files["private_key_file"]).write_bytes(leaf.key_pem)
            config = {**files, "ca_certificate_file": str(self.folder / "root.pem"), "refresh_interval": "60s"}
            made["certificate_providers"] = {"default": {"plugin_name": "file_watcher", "config": config}}
        path.write_text(json.dumps(made))
        return path

    def client(self, node_id: str = "go-1", leaf: Leaf | None = None) -> GoClient:
        return self.stack.enter_context(GoClient(node_id, self.bootstrap(node_id, leaf), self.folder))

    def upstream(self, version: str) -> GrpcUpstream:
        found = self.stack.enter_context(GrpcUpstream(version))
        self.register(version, found.port)
        return found

    def register(self, version: str, port: int, service: str = "echo", **fields: str) -> None:
        labels = {"version": version}
        self.server.register(
            f"{service}-{version}", service=service, port=port, protocol="grpc", labels=labels, **fields
        )


@pytest.fixture
def world(tmp_path: Path, stack: ExitStack) -> World:
    return World(tmp_path, stack)


def test_calls_follow_routes_and_their_changes(world: World) -> None:
    world.upstream("v1")
    world.upstream("v2")
    client = world.client()
    assert {"v1": 20} == client.many(20, "echo")
    assert {"v2": 5} == client.many(5, "echo", [("canary", "true")])
    world.server.wait_settled("go-1")
    world.server.write("echo.yaml", ROUTES.format(v1=50, v2=50))
    poll(lambda: len(client.many(20, "echo")) == 2, "both versions")
    world.server.write("echo.yaml", ROUTES.format(v1=0, v2=100))
    poll(lambda: client.many(20, "echo").keys() == {"v2"}, "the other version")
    world.server.wait_settled("go-1")
    assert 0 == world.server.rejection_count()


def test_instances_come_and_go_and_failures_are_retried(world: World) -> None:
    first = world.upstream("v1")
    client = world.client()
    assert {"v1": 3} == client.many(3, "echo")
    second = world.stack.enter_context(GrpcUpstream("v1b"))
    world.server.register("echo-v1b", service="echo", port=second.port, protocol="grpc", labels={"version": "v1"})
    poll(lambda: client.many(10, "echo").keys() == {"v1", "v1b"}, "the instance that came")
    first.close()
    poll(lambda: client.many(10, "echo").keys() == {"v1b"}, "calls to go around the instance that ended")
    world.server.wait_settled("go-1")
    assert 0 == world.server.rejection_count()


def test_an_unknown_service_fails_and_one_that_is_registered_later_is_found(world: World) -> None:
    client = world.client()
    assert "DeadlineExceeded" == client.call("later")[0]
    found = world.stack.enter_context(GrpcUpstream("v1"))
    world.register("v1", found.port, service="later")
    poll(lambda: client.call("later") == ("OK", "v1"), "the service")


def test_the_example_is_accepted_whole(tmp_path: Path, stack: ExitStack) -> None:
    """All documents of the canary example as grpc-go is served them."""
    world = World(tmp_path, stack)
    for path in EXAMPLE.glob("*.yaml"):
        if path.name != "peer-authentication.yaml":
            world.server.write(path.name, path.read_text())
    for service in ("checkout", "my-service", "user-service"):
        for version in ("v1", "v2"):
            found = stack.enter_context(GrpcUpstream(version))
            world.register(version, found.port, service=service)
    client = world.client()
    for service in ("my-service", "user-service", "checkout"):
        assert "OK" == client.call(service)[0]
    world.server.wait_settled("go-1")
    assert {} == world.server.rejections()
    assert {"v2": 5} == client.many(5, "user-service", [("canary", "true")])


def test_a_server_of_grpc_go_serves_when_it_is_registered_and_authorizes(world: World) -> None:
    """grpc-go takes the listener of its address; meshlib and grpc-go call it."""
    port = free_port()
    server = world.stack.enter_context(GoServer("go-server", world.bootstrap("go-server-1"), port, world.folder))
    world.register("v1", port)
    server.wait_mode("SERVING")
    client = world.client()
    assert ("OK", "go-server") == client.call("echo")
    mesh = world.stack.enter_context(Mesh(str(world.bootstrap("meshlib-1")), state_dir=""))
    function = mesh.channel("xds:///echo").unary_unary("/peers.Echo/Call")
    assert "go-server" == json.loads(function(b"", timeout=20))["version"]
    assert ("OK", "go-server") == client.call("echo", [("who", "nobody")])
    world.server.write("authorization.yaml", AUTHORIZATION)
    poll(lambda: client.call("echo", [("who", "nobody")])[0] == "PermissionDenied", "the rule")
    assert ("OK", "go-server") == client.call("echo", [("who", "somebody")])
    with pytest.raises(grpc.RpcError) as caught:
        function(b"", timeout=20, metadata=[("who", "nobody")])
    assert grpc.StatusCode.PERMISSION_DENIED is caught.value.code()
    world.server.wait_settled("go-1", "go-server-1", "meshlib-1")
    assert 0 == world.server.rejection_count()


def test_mutual_tls_between_grpc_go_and_itself_as_xds_server_has_it(world: World) -> None:
    """Certificates come from files: STRICT is demanded and offered, and principals are told apart."""
    authority = Authority()
    (world.folder / "root.pem").write_bytes(authority.pem)

    def leaf(account: str) -> Leaf:
        return authority.issue(f"spiffe://cluster.local/ns/default/sa/{account}")

    world.server.write("strict.yaml", STRICT)
    port = free_port()
    bootstrap = world.bootstrap("go-server-1", leaf("echo"))
    server = world.stack.enter_context(GoServer("go-server", bootstrap, port, world.folder))
    world.register("v1", port, service_account="echo")
    server.wait_mode("SERVING")
    assert ("OK", "go-server") == world.client("go-orders", leaf("orders")).call("echo")
    assert "PermissionDenied" == world.client("go-stranger", leaf("stranger")).call("echo")[0]
    elsewhere = Authority("elsewhere").issue("spiffe://cluster.local/ns/default/sa/orders")
    assert "Unavailable" == world.client("go-elsewhere", elsewhere).call("echo")[0]
    world.register("v1", port, service_account="another")
    orders = world.client("go-orders-2", leaf("orders"))
    poll(lambda: orders.call("echo")[0] == "Unavailable", "the server's own name to count")
    world.server.wait_settled("go-server-1", "go-orders", "go-stranger")
    assert 0 == world.server.rejection_count()


def test_every_field_that_is_translated_is_accepted(tmp_path: Path, stack: ExitStack) -> None:
    """Listeners, routes, clusters and endpoints of a file with every field of Istio's documents that xds-server knows."""
    world = World(tmp_path, stack)
    text = EVERY_FIELD.read_text()
    world.server.write("every-field.yaml", text)
    for index, (service, version) in enumerate([("rich", "v1"), ("rich", "v2"), ("hashed", "v1")]):
        world.server.register(
            f"{service}-{version}",
            service=service,
            namespace="shop",
            port=9000 + index,
            protocol="grpc",
            labels={"version": version},
        )
    command = [sys.executable, "-m", "xds_server", "render", "--profile", "grpc", str(EVERY_FIELD)]
    rendered = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    names = sorted(rendered["type.googleapis.com/envoy.config.listener.v3.Listener"])
    clusters = rendered["type.googleapis.com/envoy.config.cluster.v3.Cluster"]
    assert {"rich.example.com", "api.example.net"} <= set(names)
    authority = Authority()
    (tmp_path / "root.pem").write_bytes(authority.pem)
    client = world.client("go-1", authority.issue("spiffe://cluster.local/ns/shop/sa/orders"))
    client.open([f"xds:///{name}" for name in names])
    wanted = {"Listener", "RouteConfiguration", "Cluster"}

    def all_accepted() -> bool:
        """grpc-go has a stream for each target."""
        streams = [one["types"] for one in world.server.status()["clients"]]
        assert {} == world.server.rejections()
        synced = [{kind for kind, state in types.items() if state["state"] == "SYNCED"} for types in streams]
        return len(streams) == len(names) and all(wanted <= kinds for kinds in synced)

    poll(all_accepted, "every stream to have accepted what it was sent")
    assert 0 == world.server.rejection_count()
    assert len(clusters) > 5
