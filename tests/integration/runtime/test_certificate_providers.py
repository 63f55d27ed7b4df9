"""Certificates of the bootstrap's providers, from the files or the SPIFFE Workload API to the handshake of a call."""

import json
import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from peers.authority import Authority, Leaf, bundle_map
from peers.endpoints import ports
from peers.recorder import Recorder
from peers.workload_api import WorkloadApi

from meshlib import Mesh
from meshlib.admin import csds
from meshlib.errors import ConfigError
from meshlib.integrations import opentelemetry, prometheus
from meshlib.model.secret import SecretRef, ServerTls
from meshlib.runtime.tls import server_context
from meshlib.xds.resources import CDS, EDS

TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3."
CHECKOUT, ORDERS = "spiffe://a.example/ns/default/sa/checkout", "spiffe://a.example/ns/default/sa/orders"
ORDERS_2, FOREIGN = "spiffe://a.example/ns/default/sa/orders-2", "spiffe://b.example/ns/default/sa/checkout"


def eventually(look: Callable[[], Any], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def serving(leaf: Leaf, *roots: Authority) -> ssl.SSLContext:
    """A server that shows a certificate and demands one of these roots'."""
    bundle = b"".join(one.pem for one in roots)
    trust = SecretRef(inline=roots[0].trusted.__class__(bundle))
    tls = ServerTls(SecretRef(inline=leaf.value), trust, require_client_certificate=True)
    return server_context(tls, {})


def replace_file(path: Path, content: bytes | str) -> None:
    """As those do who issue certificates: a reader sees the old file or the new one."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(new, path)


@pytest.fixture
def put_cluster(ads: Any) -> Callable[..., None]:
    """Publish `checkout` at an address, with the certificate provider `p` and names that its certificate may have."""

    def put(address: str, *names: str) -> None:
        host, _, port = address.rpartition(":")
        validation = {
            "ca_certificate_provider_instance": {"instance_name": "p"},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": name}} for name in names],
        }
        common = {"tls_certificate_provider_instance": {"instance_name": "p"}, "validation_context": validation}
        socket = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {"@type": TYPE + "UpstreamTlsContext", "common_tls_context": common},
        }
        cluster = {
            "name": "checkout",
            "type": "EDS",
            "eds_cluster_config": {"eds_config": {"ads": {}}, "service_name": "checkout"},
            "transport_socket": socket,
        }
        endpoint = {"address": {"socket_address": {"address": host, "port_value": int(port)}}}
        assignment = {
            "cluster_name": "checkout",
            "endpoints": [{"locality": {}, "load_balancing_weight": 1, "lb_endpoints": [{"endpoint": endpoint}]}],
        }
        ads.put(CDS, cluster)
        ads.put(EDS, assignment)

    return put


@pytest.fixture
def connect(ads: Any) -> Iterator[Callable[[dict[str, Any]], Mesh]]:
    """Start meshes with a provider `p`."""
    meshes: list[Mesh] = []

    def start(provider: dict[str, Any]) -> Mesh:
        servers = [{"server_uri": ads.address, "channel_creds": [{"type": "insecure"}]}]
        bootstrap = {"xds_servers": servers, "node": {"id": "n"}, "certificate_providers": {"p": provider}}
        meshes.append(Mesh(bootstrap, state_dir=""))
        meshes[-1].start()
        return meshes[-1]

    yield start
    for mesh in meshes:
        mesh.close()


class Load:
    """Calls without pause, on several threads; every answer and every failure is kept."""

    def __init__(self, mesh: Mesh, threads: int = 3) -> None:
        self.answers: list[str] = []
        self.failures: list[Exception] = []
        self._client = httpx.Client(transport=mesh.httpx_transport(), timeout=20)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work) for _ in range(threads)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(self._client.get("http://checkout/").text)
            except httpx.HTTPError as error:
                self.failures.append(error)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._client.close()

    def wait(self, name: str, count: int = 20) -> None:
        """Wait until that many of the latest answers are a caller's name."""
        eventually(lambda: len(self.answers) >= count and set(self.answers[-count:]) == {name})


def test_files_are_followed_with_certificate_and_roots_replaced_under_load(ads, put_cluster, connect, tmp_path):
    """1. Both sides under the first root. 2. Our roots grow by the second. 3. Ours, and the server's certificate, are of
    the second. 4. The first root is taken away. No call fails."""
    first, second = Authority("first"), Authority("second")
    certificate, key, roots = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "roots.pem"
    leaf = first.issue(ORDERS)
    for path, content in ((certificate, leaf.chain_pem), (key, leaf.key_pem), (roots, first.pem)):
        replace_file(path, content)
    context = serving(first.issue(CHECKOUT), first, second)
    with Recorder(lambda: context) as server:
        put_cluster(server.address, CHECKOUT)
        files = {"certificate_file": str(certificate), "private_key_file": str(key), "ca_certificate_file": str(roots)}
        mesh = connect({"plugin_name": "file_watcher", "config": {**files, "refresh_interval": "0.1s"}})
        with Load(mesh) as load:
            load.wait(ORDERS)
            replace_file(roots, first.pem + second.pem)
            eventually(lambda: mesh.view.secrets["provider:p:ca"].value.ca_pem == first.pem + second.pem)
            context = serving(second.issue(CHECKOUT), first, second)
            leaf = second.issue(ORDERS_2)
            # Torn for a moment: the key of one with the certificate of the other is never used.
            replace_file(key, leaf.key_pem)
            time.sleep(0.3)
            replace_file(certificate, leaf.chain_pem)
            load.wait(ORDERS_2)
            replace_file(roots, second.pem)
            eventually(lambda: mesh.view.secrets["provider:p:ca"].value.ca_pem == second.pem)
            load.wait(ORDERS_2)
        assert [] == load.failures
        assert {ORDERS, ORDERS_2} == set(load.answers)


def test_a_bundle_map_says_which_roots_speak_for_whom(ads, put_cluster, connect, tmp_path):
    """A federated domain is added while the mesh runs; another domain's CA never vouches for a name of ours."""
    own, foreign = Authority("root"), Authority("root")
    leaf, bundles = own.issue(ORDERS), tmp_path / "bundles.json"
    (tmp_path / "cert.pem").write_bytes(leaf.chain_pem)
    (tmp_path / "key.pem").write_bytes(leaf.key_pem)
    replace_file(bundles, bundle_map({"a.example": [own]}))
    config = {
        "certificate_file": str(tmp_path / "cert.pem"),
        "private_key_file": str(tmp_path / "key.pem"),
        "spiffe_trust_bundle_map_file": str(bundles),
        "refresh_interval": "0.1s",
    }
    mesh = connect({"plugin_name": "file_watcher", "config": config})
    friend, impostor = serving(foreign.issue(FOREIGN), own), serving(foreign.issue(CHECKOUT), own)
    with Recorder(friend) as one, Recorder(impostor) as other:
        with httpx.Client(transport=mesh.httpx_transport(), timeout=20) as client:
            put_cluster(one.address, CHECKOUT, FOREIGN)
            with pytest.raises(httpx.ConnectError):
                client.get("http://checkout/")
            replace_file(bundles, bundle_map({"a.example": [own], "b.example": [foreign]}))
            eventually(lambda: len(mesh.view.secrets["provider:p:ca"].value.bundles) == 2)
            assert ORDERS == client.get("http://checkout/").text
            put_cluster(other.address, CHECKOUT, FOREIGN)
            eventually(lambda: ports(mesh) == [int(other.address.rpartition(":")[2])])
            with pytest.raises(httpx.ConnectError, match=r"not issued by trust domain a\.example"):
                client.post("http://checkout/", json={"card": "4111"})
        assert b"" == other.received


def test_the_workload_api_is_followed_under_load(ads, put_cluster, connect, tmp_path):
    """1. The cluster waits for the first answer. 2. A federated peer is accepted. 3. Certificate and roots rotate.
    4. The agent restarts. No call fails."""
    own, foreign, next_own = Authority("root"), Authority("root"), Authority("next")
    roots = {"a.example": [own], "b.example": [foreign]}
    context = serving(foreign.issue(FOREIGN), own, next_own)
    with WorkloadApi(tmp_path) as api, Recorder(lambda: context) as server:
        put_cluster(server.address, FOREIGN)
        mesh = connect({"plugin_name": "spiffe_workload_api", "config": {"endpoint_socket": api.address}})
        timer = threading.Timer(0.5, lambda: api.serve("a.example", own.issue(ORDERS), roots))
        timer.start()
        mesh.wait_ready("checkout", timeout_s=30)
        with Load(mesh) as load:
            load.wait(ORDERS)
            api.serve("a.example", next_own.issue(ORDERS_2), {**roots, "a.example": [own, next_own]})
            load.wait(ORDERS_2)
            api.cut()
            api.serve("a.example", own.issue(ORDERS), roots)
            load.wait(ORDERS)
        assert [] == load.failures
    assert len(api.metadata) >= 2
    assert {"true"} == {found["workload.spiffe.io"] for found in api.metadata}
    assert "PRIVATE" not in json.dumps(mesh.status().to_dict())


def test_whom_the_workload_api_revokes_is_refused(ads, put_cluster, connect, tmp_path):
    """1. A federated domain has no list: its peers are let in. 2. The peer's own certificate is revoked: it gets no byte,
    by httpx and by gRPC. 3. The agent takes that back."""
    own, foreign = Authority("root"), Authority("foreign")
    roots = {"a.example": [own], "b.example": [foreign]}
    leaf, mine = foreign.issue(FOREIGN), own.issue(ORDERS)
    with WorkloadApi(tmp_path) as api, Recorder(serving(leaf, own)) as server:
        api.serve("a.example", mine, roots, crls=[own.revoke()])
        put_cluster(server.address, FOREIGN)
        mesh = connect({"plugin_name": "spiffe_workload_api", "config": {"endpoint_socket": api.address}})
        with httpx.Client(transport=mesh.httpx_transport(), timeout=20) as client:
            assert ORDERS == client.get("http://checkout/").text
            received = server.received
            before = mesh.view
            api.serve("a.example", mine, roots, crls=[own.revoke(), foreign.revoke(leaf)])
            eventually(lambda: mesh.view is not before)
            with pytest.raises(httpx.ConnectError, match="has been revoked"):
                client.post("http://checkout/", json={"card": "4111"})
            with mesh.channel("xds:///checkout") as channel, pytest.raises(grpc.RpcError, match="has been revoked"):
                channel.unary_unary("/test.Service/Unary")(b"4111", timeout=20)
            assert received == server.received
            before = mesh.view
            api.serve("a.example", mine, roots, crls=[foreign.revoke()])
            eventually(lambda: mesh.view is not before)
            assert ORDERS == client.get("http://checkout/").text


def test_a_revocation_list_that_cannot_be_read_is_a_problem_and_changes_nothing(ads, put_cluster, connect, tmp_path):
    own = Authority()
    with WorkloadApi(tmp_path) as api, Recorder(serving(own.issue(CHECKOUT), own)) as server:
        api.serve("a.example", own.issue(ORDERS), {"a.example": [own]})
        put_cluster(server.address, CHECKOUT)
        mesh = connect({"plugin_name": "spiffe_workload_api", "config": {"endpoint_socket": api.address}})
        with httpx.Client(transport=mesh.httpx_transport(), timeout=20) as client:
            assert ORDERS == client.get("http://checkout/").text
            api.serve("a.example", own.issue(ORDERS_2), {"a.example": [own]}, raw_crls=[b"junk"])
            eventually(lambda: "revocation list" in mesh.status().problems.get("certificate provider p", ""))
            assert ORDERS == client.get("http://checkout/").text


def test_an_identity_may_be_chosen(ads, put_cluster, connect, tmp_path):
    own = Authority()
    with WorkloadApi(tmp_path) as api, Recorder(serving(own.issue(CHECKOUT), own)) as server:
        api.serve("a.example", own.issue(ORDERS), {"a.example": [own]}, (ORDERS_2, own.issue(ORDERS_2)))
        put_cluster(server.address, CHECKOUT)
        config = {"endpoint_socket": api.address, "spiffe_id": ORDERS_2}
        mesh = connect({"plugin_name": "spiffe_workload_api", "config": config})
        with httpx.Client(transport=mesh.httpx_transport(), timeout=20) as client:
            assert ORDERS_2 == client.get("http://checkout/").text


def test_an_agent_that_is_not_there_yet_is_found_later(ads, put_cluster, connect, tmp_path):
    own = Authority()
    mesh = connect({"plugin_name": "spiffe_workload_api", "config": {"endpoint_socket": f"unix://{tmp_path}/api.sock"}})
    place = "certificate provider p"
    eventually(lambda: "does not exist" in mesh.status().problems.get(place, ""))
    with WorkloadApi(tmp_path) as api, Recorder(serving(own.issue(CHECKOUT), own)) as server:
        api.serve("a.example", own.issue(ORDERS), {"a.example": [own]})
        put_cluster(server.address, CHECKOUT)
        with httpx.Client(transport=mesh.httpx_transport(), timeout=20) as client:
            eventually(lambda: place not in mesh.status().problems)
            assert ORDERS == client.get("http://checkout/").text


def test_without_the_library_it_says_what_to_install(ads, connect, monkeypatch):
    monkeypatch.setattr("meshlib.runtime.workload_api.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"meshlib-xds\[spiffe\]"):
        connect({"plugin_name": "spiffe_workload_api"})


def test_certificates_are_seen_from_everywhere(ads, put_cluster, connect, tmp_path):
    """By the mesh itself, in both kinds of metrics, and by `meshctl cert` from another process over CSDS."""
    own = Authority()
    leaf = own.issue(ORDERS)
    with WorkloadApi(tmp_path) as api, Recorder(serving(own.issue(CHECKOUT), own)) as server:
        api.serve("a.example", leaf, {"a.example": [own]})
        put_cluster(server.address, CHECKOUT)
        mesh = connect({"plugin_name": "spiffe_workload_api", "config": {"endpoint_socket": api.address}})
        mesh.wait_ready("checkout", timeout_s=30)
        certificate, roots = mesh.certificates()[1], mesh.certificates()[0]
        expires_at = leaf.certificate.not_valid_after_utc.timestamp()
        assert ("provider p", ORDERS, expires_at) == (certificate.source, certificate.spiffe_id, certificate.expires_at)
        assert (("a.example",), 1) == (roots.trust_domains, roots.certificates)
        assert f"certificate provider:p:certificate: {ORDERS}" in str(mesh.status())

        labels = {"name": certificate.name, "kind": "certificate", "source": "provider p", "spiffe_id": ORDERS}
        name = "meshlib_certificate_expiry_timestamp_seconds"
        scraped = {
            (family.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in prometheus.MeshCollector(mesh).collect()
            for sample in family.samples
        }
        assert expires_at == scraped[name, tuple(sorted(labels.items()))]
        reader = InMemoryMetricReader()
        provider = MeterProvider(metric_readers=[reader])
        opentelemetry.export_metrics(mesh, meter=provider.get_meter("test"))
        points = [
            (dict(point.attributes), point.value)
            for resource in reader.get_metrics_data().resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]
        provider.shutdown()
        assert (labels, expires_at) in points

        admin = grpc.server(ThreadPoolExecutor(2))
        csds.add_to_server(mesh, admin)
        port = admin.add_insecure_port("127.0.0.1:0")
        admin.start()
        try:
            command = [sys.executable, "-m", "meshlib.cli", "cert", "--csds", f"127.0.0.1:{port}", "--json"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        finally:
            admin.stop(None).wait()
    assert "" == done.stderr
    found = {one["name"]: one for one in json.loads(done.stdout)}
    told = found["provider:p:certificate"]
    assert (ORDERS, "provider p", expires_at) == (told["spiffe_id"], told["source"], told["expires_at"])
    assert told["age_s"] >= 0
    assert ["a.example"] == found["provider:p:ca"]["trust_domains"]
    assert "PRIVATE" not in done.stdout
