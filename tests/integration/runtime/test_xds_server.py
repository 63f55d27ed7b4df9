"""A mesh against the real xds-server, in a process of its own, over both variants of the protocol, aggregated and not."""

import json
import logging
import multiprocessing
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import endpoints
from peers.ports import free_port

from meshlib import Mesh
from meshlib.errors import RoutingError
from meshlib.events import CertificateRotated, Event
from meshlib.model.secret import TlsCertificate
from meshlib.runtime.certificates import describe
from meshlib.runtime.registration import Registration
from meshlib.xds.stream_machine import DOES_NOT_EXIST_S

RULES = """\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: checkout}
spec:
  host: checkout
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
---
"""
SPLIT = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: checkout}
spec:
  hosts: [checkout]
  http:
  - route:
    - {destination: {host: checkout, subset: %s}}
"""
SPLIT_HALF = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: checkout}
spec:
  hosts: [checkout]
  http:
  - route:
    - {destination: {host: checkout, subset: v1}, weight: 50}
    - {destination: {host: checkout, subset: v2}, weight: 50}
"""


class Server:
    """Attributes:
    addresses: `xds`, `secure`, `admin` (without `http://`).
    """

    def __init__(self, directory: Path, variant: str, *options: str) -> None:
        self.directory = directory
        features = {"delta": "meshlib.delta", "separate": "meshlib.separate_streams"}
        self._features = [features[word] for word in variant.split() if word in features]
        self._options = options
        self.addresses = {name: f"127.0.0.1:{free_port()}" for name in ("xds", "secure", "admin")}
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        names = {"xds": "--listen", "secure": "--secure-listen", "admin": "--admin"}
        listen = [part for name, option in names.items() for part in (option, self.addresses[name])]
        command = ["serve", "config", "--state-dir", "state", "--debounce-ms", "20", *listen, *self._options]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "xds_server", *command],
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("xds-server ready"), line

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def bootstrap(self, node_id: str, service_account: str) -> Path:
        token, path = self.directory / f"{node_id}.token", self.directory / f"{node_id}.json"
        self._run("token", "--service-account", service_account, "--output", str(token))
        options = ["--secure", self.addresses["secure"], "--admin", self.addresses["admin"]]
        bootstrap = json.loads(self._run("bootstrap", "--node-id", node_id, *options, "--token-file", str(token)))
        bootstrap["xds_servers"][0]["server_features"] = self._features
        path.write_text(json.dumps(bootstrap))
        return path

    def connect(self, node_id: str) -> Mesh:
        """Return a mesh over the listener without TLS."""
        server = {"server_uri": self.addresses["xds"], "channel_creds": [{"type": "insecure"}]}
        server["server_features"] = self._features
        return Mesh({"xds_servers": [server], "node": {"id": node_id}}, state_dir="")

    def write(self, name: str, text: str) -> None:
        (self.directory / "config" / name).write_text(text)

    def _run(self, command: str, *options: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "xds_server", command, "--state-dir", "state", *options],
            cwd=self.directory,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout


@pytest.fixture(params=["sotw", "delta", "separate", "separate delta"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    (tmp_path / "config").mkdir()
    result = Server(tmp_path, request.param, "--cert-ttl", "8s")
    result.write("rules.yaml", RULES)
    result.write("split.yaml", SPLIT % "v1")
    result.start()
    yield result
    result.stop()


def eventually(look: Callable[[], bool], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


def ports(mesh: Mesh, subset: str) -> list[int]:
    return endpoints.ports(mesh, f"outbound|80|{subset}|checkout.default.svc.cluster.local")


def saved(folder: Path) -> bytes:
    """Return what a mesh has saved, which it does now and then."""
    return b"".join(zlib.decompress(file.read_bytes().partition(b"\n")[2]) for file in folder.glob("*.state"))


def test_a_service_announces_itself_and_is_found_with_its_identity(server: Server, tmp_path: Path) -> None:
    """Registration, inbound listener with mTLS, routes, endpoints; then rotation, a change, and the server's restart."""
    events: list[Event] = []
    with Mesh(server.bootstrap("checkout-1", "checkout"), state_dir=tmp_path / "disk") as mesh:
        mesh.add_hook(events.append)
        registration = mesh.register(
            service="checkout", address="127.0.0.1:9001", labels={"version": "v1"}, service_account="checkout"
        )
        inbound = mesh.inbound("127.0.0.1:9001").wait_ready(30.0)
        assert inbound.listener.tls is not None
        assert inbound.listener.tls.require_client_certificate
        mesh.wait_ready("checkout", timeout_s=30)
        eventually(lambda: ports(mesh, "v1") == [9001])
        leaf = mesh.view.secrets["default"].value
        assert isinstance(leaf, TlsCertificate)
        facts = describe(leaf.chain_pem)
        assert facts is not None
        assert facts.spiffe_id == "spiffe://cluster.local/ns/default/sa/checkout"
        text = str(mesh.explain("GET", "http://checkout/orders"))
        assert "mTLS, peer is URI exact spiffe://cluster.local/ns/default/sa/checkout" in text
        assert "127.0.0.1:9001: unknown" in text
        status = str(mesh.status()) + repr(mesh.dump()) + repr(mesh.view.snapshot)
        assert "PRIVATE KEY" not in status

        eventually(lambda: any(isinstance(event, CertificateRotated) for event in events))

        eventually(lambda: b"outbound|80||checkout.default.svc.cluster.local" in saved(tmp_path / "disk"))
        server.stop()
        with Mesh(tmp_path / "checkout-1.json", state_dir=tmp_path / "disk") as newcomer:
            newcomer.wait_ready("checkout", timeout_s=30)
            assert ports(newcomer, "v1") == [9001]
        server.write("split.yaml", SPLIT % "v2")
        server.start()
        eventually(lambda: "outbound|80|v2|checkout.default.svc.cluster.local" in mesh.view.clusters, 30.0)
        registration.close()


def test_a_host_that_is_not_in_the_mesh_is_known_at_once(server: Server) -> None:
    with server.connect("n") as mesh:
        start = time.monotonic()
        with pytest.raises(RoutingError, match="does not exist"):
            mesh.wait_target("nowhere.example.com", 30.0)
        assert time.monotonic() - start < DOES_NOT_EXIST_S, "the server said so"


def _child(mesh: Mesh, ready: Any, answer: Any) -> None:
    ready.set()
    eventually(lambda: "outbound|80|v2|checkout.default.svc.cluster.local" in mesh.view.clusters)
    answer.put(mesh.target("checkout") is not None)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forked_workers_get_updates_and_so_does_their_parent(server: Server) -> None:
    context = multiprocessing.get_context("fork")
    with server.connect("n") as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        answer = context.Queue()
        ready = [context.Event() for _ in range(3)]
        children = [context.Process(target=_child, args=(mesh, event, answer)) for event in ready]
        for child in children:
            child.start()
        for event in ready:
            assert event.wait(30.0)
        server.write("split.yaml", SPLIT % "v2")
        assert [answer.get(timeout=40.0) for _ in children] == [True] * 3
        for child in children:
            child.join(30.0)
            assert child.exitcode == 0
        eventually(lambda: "outbound|80|v2|checkout.default.svc.cluster.local" in mesh.view.clusters)


def test_a_split_an_update_a_removal_and_a_restart_reach_the_mesh(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps: all to v1; half of it to v2; one more instance of v1, and its end; the server restarts with other rules."""

    def clusters() -> set[str]:
        return {
            name.split("|")[2] for name in mesh.view.clusters if name.endswith("|checkout.default.svc.cluster.local")
        }

    def register(port: int, version: str) -> Registration:
        return mesh.register(
            service="checkout",
            address=f"127.0.0.1:{port}",
            labels={"version": version},
            service_account="checkout",
        )

    caplog.set_level(logging.INFO, "meshlib")
    with Mesh(server.bootstrap("checkout-1", "checkout"), state_dir="") as mesh:
        kept = [register(9001, "v1"), register(9002, "v2")]
        mesh.wait_ready("checkout", timeout_s=30)
        eventually(lambda: ports(mesh, "v1") == [9001])
        assert clusters() == {"v1"}
        server.write("split.yaml", SPLIT_HALF)
        eventually(lambda: ports(mesh, "v2") == [9002])
        assert clusters() == {"v1", "v2"}
        more = register(9003, "v1")
        eventually(lambda: ports(mesh, "v1") == [9001, 9003])
        more.close()
        eventually(lambda: ports(mesh, "v1") == [9001])
        server.stop()
        assert ports(mesh, "v1") == [9001]
        server.write("split.yaml", SPLIT % "v2")
        server.start()
        eventually(lambda: clusters() == {"v2"}, 30.0)
        eventually(lambda: ports(mesh, "v2") == [9002])
        assert mesh.status().connection == "connected"
        for registration in kept:
            registration.close()
    assert "does not know incremental xDS" not in caplog.text
