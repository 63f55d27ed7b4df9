"""A mesh against the real istiod, as one of its proxyless gRPC clients: services, routes and subsets from Istio's documents."""

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import yaml
from foreign.control_plane import bootstrap
from foreign.istiod import Istiod
from foreign.tls import TlsUpstream
from peers.authority import Authority, Leaf
from peers.processes import poll
from peers.upstreams import GrpcUpstream, HttpUpstream, Step

from meshlib import Mesh
from meshlib.errors import MeshError
from meshlib.events import Event, ResourceRejected
from meshlib.integrations import grpc_server

DOMAIN = "default.svc.cluster.local"
FORMS = {"sotw": (), "delta": ("meshlib.delta",)}


def document(kind: str, name: str, group: str = "networking.istio.io/v1", /, **spec: Any) -> str:
    metadata = {"name": name, "namespace": "default"}
    return yaml.safe_dump({"apiVersion": group, "kind": kind, "metadata": metadata, "spec": spec})


def service_entry(
    name: str, protocol: str, port: int, *instances: tuple[str, int], address: str = "127.0.0.1", account: str = ""
) -> str:
    """A service of Istio's registry: instances are (version, port)."""
    endpoints = [
        {
            "address": address,
            "ports": {"main": at},
            "labels": {"app": name, "version": version},
            "serviceAccount": account,
        }
        for version, at in instances
    ]
    ports = [{"number": port, "name": "main", "protocol": protocol}]
    return document(
        "ServiceEntry",
        name,
        hosts=[f"{name}.{DOMAIN}"],
        location="MESH_INTERNAL",
        resolution="STATIC",
        addresses=["240.0.0.1"],
        ports=ports,
        endpoints=endpoints,
    )


def subsets(name: str, **policy: Any) -> str:
    found = [{"name": version, "labels": {"version": version}} for version in ("v1", "v2")]
    more = {"trafficPolicy": policy} if policy else {}
    return document("DestinationRule", name, host=f"{name}.{DOMAIN}", subsets=found, **more)


def to(name: str, subset: str, weight: int = 100) -> dict[str, Any]:
    return {"destination": {"host": f"{name}.{DOMAIN}", "subset": subset}, "weight": weight}


def virtual_service(name: str, *http: dict[str, Any]) -> str:
    return document("VirtualService", name, hosts=[f"{name}.{DOMAIN}"], http=list(http))


@pytest.fixture(scope="module")
def upstreams() -> Iterator[dict[str, Any]]:
    with ExitStack() as stack:
        http = {version: stack.enter_context(HttpUpstream(version)) for version in ("v1", "v2")}
        rpc = {f"grpc-{version}": stack.enter_context(GrpcUpstream(version)) for version in ("v1", "v2")}
        yield {**http, **rpc}


@pytest.fixture(scope="module")
def istiod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Istiod]:
    with Istiod(tmp_path_factory.mktemp("istiod"), {}) as found:
        yield found


class Client:
    """A mesh that says it is a proxyless gRPC client of Istio."""

    def __init__(
        self,
        stack: ExitStack,
        istiod: Istiod,
        name: str,
        *features: str,
        ip: str = "127.0.0.200",
        providers: dict[str, Any] | None = None,
        **metadata: Any,
    ) -> None:
        """
        Args:
            providers: The bootstrap's certificate providers.
            ip: Of the workload; istiod knows by it which endpoint this is, and what labels it has.
        """
        node = {
            "id": f"sidecar~{ip}~{name}.default~{DOMAIN.partition('.')[0]}.svc.cluster.local",
            "metadata": {
                "GENERATOR": "grpc",
                "NAMESPACE": "default",
                "CLUSTER_ID": "peers",
                "INSTANCE_IPS": ip,
                "ISTIO_VERSION": "1.31.0",
                **metadata,
            },
        }
        self.rejected: list[ResourceRejected] = []
        document = {**bootstrap(istiod.listen, node, *features), "meshlib": {"default_port": 80}}
        document["certificate_providers"] = providers or {}
        document["server_listener_resource_name_template"] = "xds.istio.io/grpc/lds/inbound/%s"
        self.mesh = Mesh(document, state_dir="", first_use_timeout_s=20)
        self.mesh.add_hook(self._note)
        stack.enter_context(self.mesh)
        self.http = stack.enter_context(
            httpx.Client(transport=self.mesh.httpx_transport(), trust_env=False, timeout=30)
        )

    def _note(self, event: Event) -> None:
        if isinstance(event, ResourceRejected):
            self.rejected.append(event)

    def get(self, url: str, **headers: str) -> str:
        answer = self.http.get(url, headers=headers)
        answer.raise_for_status()
        return str(answer.json()["version"])

    def ask(self, url: str, **headers: str) -> str:
        """Return the version that answered, or what went wrong."""
        try:
            return self.get(url, **headers)
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"

    def call(self, service: str, **metadata: str) -> str:
        function = self.mesh.channel(f"xds:///{service}").unary_unary("/peers.Echo/Call")
        return str(json.loads(function(b"", timeout=30, metadata=list(metadata.items())))["version"])

    def check_accepted(self, istiod: Istiod) -> None:
        assert [] == self.rejected
        assert {} == istiod.rejections()
        assert {"ACKED"} == {one.state for one in self.mesh.dump()}, self.mesh.dump()


Connect = Callable[..., Client]


@pytest.fixture
def connect(stack: ExitStack, istiod: Istiod) -> Connect:
    return lambda name, *features, **more: Client(stack, istiod, name, *features, **more)


def test_a_service_entry_is_called_over_http_and_grpc(
    istiod: Istiod, connect: Connect, upstreams: dict[str, Any]
) -> None:
    checkout, billing = "checkout", "billing"
    istiod.write("checkout.yaml", service_entry(checkout, "HTTP", 8080, ("v1", upstreams["v1"].port)))
    istiod.write("billing.yaml", service_entry(billing, "GRPC", 7070, ("v1", upstreams["grpc-v1"].port)))
    client = connect("orders-1")
    poll(lambda: client.ask(f"http://{checkout}.{DOMAIN}:8080/orders") == "v1", "the service")
    assert "v1" == client.call(f"{billing}.{DOMAIN}:7070")
    assert "v1" == client.get(f"http://{checkout}.default:8080/"), "short names are found as well"
    client.check_accepted(istiod)


def test_port_80_may_be_left_out(istiod: Istiod, connect: Connect, upstreams: dict[str, Any]) -> None:
    """istiod's listeners have their ports in their names, and httpx takes a port 80 out of a URL."""
    istiod.write("usual.yaml", service_entry("usual", "HTTP", 80, ("v1", upstreams["v1"].port)))
    istiod.write("usual-grpc.yaml", service_entry("usual-grpc", "GRPC", 80, ("v1", upstreams["grpc-v1"].port)))
    client = connect("orders-2")
    poll(lambda: client.ask(f"http://usual.{DOMAIN}/") == "v1", "the service")
    assert "v1" == client.get(f"http://usual.{DOMAIN}:80/")
    assert "v1" == client.get("http://usual.default/")
    assert "v1" == client.call(f"usual-grpc.{DOMAIN}")
    client.check_accepted(istiod)


def test_routes_and_subsets_follow_their_documents(istiod: Istiod, connect: Connect, upstreams: dict[str, Any]) -> None:
    """A canary by header, weights, a rewrite, then other weights; endpoints come and go."""
    ports = {version: upstreams[version].port for version in ("v1", "v2")}
    shop = "shop"
    url = f"http://{shop}.{DOMAIN}:8080"
    istiod.write("shop.yaml", service_entry(shop, "HTTP", 8080, *ports.items()))
    istiod.write("shop-subsets.yaml", subsets(shop, loadBalancer={"simple": "LEAST_REQUEST"}))
    canary = {"match": [{"headers": {"canary": {"exact": "true"}}}], "route": [to(shop, "v2")]}
    rewritten = {"match": [{"uri": {"prefix": "/old/"}}], "rewrite": {"uri": "/new/"}, "route": [to(shop, "v2")]}
    istiod.write("shop-routes.yaml", virtual_service(shop, canary, rewritten, {"route": [to(shop, "v1")]}))
    client = connect("orders-3")
    poll(lambda: client.ask(f"{url}/", canary="true") == "v2", "the routes")
    assert ({"v1"}, {"v2"}) == (
        {client.get(f"{url}/") for _ in range(5)},
        {client.get(f"{url}/", canary="true") for _ in range(5)},
    )
    assert "/new/one" == client.http.get(f"{url}/old/one").json()["path"]

    istiod.write("shop-routes.yaml", virtual_service(shop, {"route": [to(shop, "v1", 50), to(shop, "v2", 50)]}))
    poll(lambda: {client.get(f"{url}/") for _ in range(20)} == {"v1", "v2"}, "both versions")
    istiod.write("shop-routes.yaml", virtual_service(shop, {"route": [to(shop, "v2")]}))
    poll(lambda: {client.get(f"{url}/") for _ in range(10)} == {"v2"}, "the other version")
    istiod.write("shop.yaml", service_entry(shop, "HTTP", 8080, ("v2", ports["v1"])))
    poll(lambda: {client.get(f"{url}/") for _ in range(10)} == {"v1"}, "another endpoint in the same subset")
    client.check_accepted(istiod)


def test_timeouts_retries_and_faults_of_a_virtual_service(
    istiod: Istiod, connect: Connect, upstreams: dict[str, Any]
) -> None:
    slow = "slow"
    url = f"http://{slow}.{DOMAIN}:8080"
    istiod.write("slow.yaml", service_entry(slow, "HTTP", 8080, ("v1", upstreams["v1"].port)))
    route = [{"destination": {"host": f"{slow}.{DOMAIN}"}}]
    abort = {"fault": {"abort": {"percentage": {"value": 100}, "httpStatus": 418}}, "route": route}
    istiod.write(
        "slow-routes.yaml",
        virtual_service(
            slow,
            {"match": [{"uri": {"prefix": "/fault"}}], **abort},
            {"match": [{"uri": {"prefix": "/retry"}}], "retries": {"attempts": 2, "retryOn": "5xx"}, "route": route},
            {"timeout": "0.5s", "route": route},
        ),
    )
    client = connect("orders-4")
    poll(lambda: "418" in client.ask(f"{url}/fault"), "the fault")
    upstreams["v1"].script.extend([Step(status=503), Step(status=503)])
    assert "v1" == client.get(f"{url}/retry")
    upstreams["v1"].script.append(Step(delay_s=2))
    with pytest.raises(httpx.TimeoutException):
        client.get(f"{url}/")
    client.check_accepted(istiod)


def test_a_service_that_is_removed_is_gone_and_comes_back(
    istiod: Istiod, connect: Connect, upstreams: dict[str, Any]
) -> None:
    brief = "brief"
    url = f"http://{brief}.{DOMAIN}:8080/"
    entry = service_entry(brief, "HTTP", 8080, ("v1", upstreams["v1"].port))
    istiod.write("brief.yaml", entry)
    client = connect("orders-5")
    poll(lambda: client.ask(url) == "v1", "the service")
    (istiod.documents / "brief.yaml").unlink()
    poll(lambda: "is not in the mesh" in client.ask(url), "the service to be gone")
    istiod.write("brief.yaml", entry)
    poll(lambda: client.ask(url) == "v1", "the service to be back", timeout_s=40)
    assert {} == istiod.rejections()


def test_calls_go_on_while_istiod_restarts(istiod: Istiod, connect: Connect, upstreams: dict[str, Any]) -> None:
    ports = {version: upstreams[version].port for version in ("v1", "v2")}
    steady = "steady"
    url = f"http://{steady}.{DOMAIN}:8080/"
    istiod.write("steady.yaml", service_entry(steady, "HTTP", 8080, ("v1", ports["v1"])))
    client = connect("orders-6")
    poll(lambda: client.ask(url) == "v1", "the service")
    istiod.restart()
    assert "v1" == client.get(url)
    istiod.write("steady.yaml", service_entry(steady, "HTTP", 8080, ("v2", ports["v2"])))
    poll(lambda: client.get(url) == "v2", "news after the restart", timeout_s=60)
    client.check_accepted(istiod)


def test_a_server_takes_its_rules_from_an_authorization_policy(
    istiod: Istiod, connect: Connect, stack: ExitStack
) -> None:
    """Steps: 1. nothing is forbidden; 2. a rule denies what it says, and no more; 3. the rule goes."""
    guarded, ip = "guarded", "127.0.0.201"
    client = connect("guarded-1", ip=ip, LABELS={"app": guarded, "version": "v1"})
    with socket.create_server((ip, 0)) as taken:
        address = f"{ip}:{taken.getsockname()[1]}"
    port = int(address.rpartition(":")[2])
    istiod.write("guarded.yaml", service_entry(guarded, "GRPC", 7070, ("v1", port), address=ip))
    server = grpc.server(ThreadPoolExecutor(4), interceptors=[grpc_server.interceptor(client.mesh, address=address)])
    echo = grpc.unary_unary_rpc_method_handler(lambda request, context: b'{"version": "guarded"}')
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("peers.Echo", {"Call": echo}),))
    assert port == server.add_insecure_port(address)
    server.start()
    stack.callback(lambda: server.stop(None).wait())
    caller = connect("orders-9")

    def ask(who: str) -> str:
        try:
            return caller.call(f"{guarded}.{DOMAIN}:7070", who=who)
        except grpc.RpcError as error:
            return str(error.code().name)

    poll(lambda: ask("nobody") == "guarded", "the server to have its listener")
    policy = istiod.documents / "guarded-policy.yaml"
    istiod.write(
        policy.name,
        document(
            "AuthorizationPolicy",
            guarded,
            "security.istio.io/v1",
            selector={"matchLabels": {"app": guarded}},
            action="DENY",
            rules=[{"when": [{"key": "request.headers[who]", "values": ["nobody"]}]}],
        ),
    )
    poll(lambda: ask("nobody") == "PERMISSION_DENIED", "the rule")
    assert "guarded" == ask("somebody")
    policy.unlink()
    poll(lambda: ask("nobody") == "guarded", "the rule to be gone")
    client.check_accepted(istiod)
    caller.check_accepted(istiod)


def test_istio_mutual_takes_certificates_from_the_bootstraps_provider(
    istiod: Istiod, connect: Connect, stack: ExitStack, tmp_path: Path
) -> None:
    """Steps: 1. a DestinationRule turns mutual TLS on; 2. the endpoint has another service account than its certificate."""
    root = Authority()

    def leaf(account: str) -> Leaf:
        return root.issue(f"spiffe://cluster.local/ns/default/sa/{account}")

    (tmp_path / "upstream").mkdir()
    upstream = stack.enter_context(TlsUpstream("tls", tmp_path / "upstream", leaf("secure"), root))
    istiod.write("secure.yaml", service_entry("secure", "HTTP", 8080, ("v1", upstream.port), account="secure"))
    istiod.write("secure-rule.yaml", subsets("secure", tls={"mode": "ISTIO_MUTUAL"}))
    mine = leaf("orders")
    files = {"ca_certificate_file": root.pem, "certificate_file": mine.chain_pem, "private_key_file": mine.key_pem}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    config = {name: str(tmp_path / name) for name in files}
    providers = {"default": {"plugin_name": "file_watcher", "config": config}}
    client = connect("orders-12", providers=providers)
    url = f"http://secure.{DOMAIN}:8080/"
    poll(lambda: client.ask(url) == "tls", "the service", timeout_s=40)
    istiod.write("secure.yaml", service_entry("secure", "HTTP", 8080, ("v1", upstream.port), account="another"))
    poll(lambda: "spiffe://cluster.local/ns/default/sa/secure" in client.ask(url), "the name to be refused")
    client.check_accepted(istiod)


def test_incrementally_istiod_forgets_names_that_clients_asked_for_earlier(
    istiod: Istiod, connect: Connect, upstreams: dict[str, Any]
) -> None:
    """Its generator for gRPC was made for clients of the other variant: a name asked for later takes the place of earlier ones.

    When this test fails, istiod has learnt it, and the how-to guide must say so.
    """
    ports = {version: upstreams[version].port for version in ("v1", "v2")}
    urls = {}
    for name in ("early", "late"):
        urls[name] = f"http://{name}.{DOMAIN}:8080/"
        istiod.write(f"{name}.yaml", service_entry(name, "HTTP", 8080, ("v1", ports["v1"])))
    poll(lambda: len(istiod.debug("configz")) >= 2, "the documents")
    clients = {form: connect(f"orders-{form}", *features) for form, features in FORMS.items()}
    for client in clients.values():
        poll(lambda client=client: client.ask(urls["early"]) == "v1", "the first service")
        poll(lambda client=client: client.ask(urls["late"]) == "v1", "the second service")
    (istiod.documents / "early.yaml").unlink()
    poll(lambda: "is not in the mesh" in clients["sotw"].ask(urls["early"]), "the removal")
    istiod.write("late.yaml", service_entry("late", "HTTP", 8080, ("v2", ports["v2"])))
    for client in clients.values():
        poll(lambda client=client: client.ask(urls["late"]) == "v2", "news after the removal")
    states = {(one.type, one.name): one.state for one in clients["delta"].mesh.dump()}
    assert "ACKED" == states["LDS", f"early.{DOMAIN}:8080"], "nobody has told this client"
    assert {} == istiod.rejections()


def test_a_node_that_says_it_is_a_sidecar_is_sent_what_it_cannot_use(
    istiod: Istiod, connect: Connect, upstreams: dict[str, Any]
) -> None:
    """istiod sends sidecars all listeners of theirs, whatever is asked for. They are refused, and the name never comes."""
    aside = "aside"
    istiod.write("aside.yaml", service_entry(aside, "HTTP", 8080, ("v1", upstreams["v1"].port)))
    client = connect("orders-7", GENERATOR="")
    with pytest.raises(MeshError, match=rf"LDS resource {aside}\.default\.svc\.cluster\.local:8080"):
        client.mesh.wait_ready(f"{aside}.{DOMAIN}:8080", timeout_s=5)
    refused = istiod.last_errors("orders-7.default")
    assert {"type.googleapis.com/envoy.config.listener.v3.Listener"} == set(refused)
    assert [] == client.rejected, "nothing that was asked for is among them"
