"""Mutual TLS with the certificates that the management server issues: a real Envoy and meshlib call meshlib's servers."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from peers.envoy import TYPE, Envoy, ads_bootstrap, reserve_port, socket_address, static_cluster, tls_socket
from peers.management import ManagementServer
from peers.processes import Child, poll
from peers.upstreams import LOOPBACK

import meshlib

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "canary"
SERVICES_START_S = 90.0


class SecureWorld:
    """The example with mutual TLS demanded, and two of its services."""

    def __init__(self, folder: Path, server: ManagementServer) -> None:
        self.folder = folder
        self.server = server
        self.tokens = {
            account: server.token(account) for account in ("checkout", "user-service", "gateway", "stranger")
        }

    def bootstrap(self, node_id: str, account: str) -> Path:
        """Have the server's command write a bootstrap."""
        path = self.folder / f"{node_id}.bootstrap.json"
        server = self.server
        command = [
            sys.executable,
            "-m",
            "xds_server",
            "bootstrap",
            "--state-dir",
            str(server.state),
            "--node-id",
            node_id,
        ]
        addresses = ["--secure", server.secure, "--admin", server.admin.removeprefix("http://")]
        options = [*addresses, "--token-file", str(self.tokens[account])]
        path.write_text(subprocess.run([*command, *options], check=True, capture_output=True, text=True).stdout)
        return path

    def environment(self, node_id: str, account: str, **more: str) -> dict[str, str]:
        bootstrap = str(self.bootstrap(node_id, account))
        return {**os.environ, "GRPC_XDS_BOOTSTRAP": bootstrap, "MESHLIB_STATE_DIR": "", "VERSION": "v1", **more}

    def address_of(self, service: str) -> str:
        (found,) = (one for one in self.registrations() if one["service"] == service)
        return f"{found['address']}:{found['port']}"

    def registrations(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = httpx.get(f"{self.server.admin}/v1/registrations", trust_env=False).json()[
            "registrations"
        ]
        return found

    def envoy_bootstrap(self, account: str, listen: str) -> dict[str, object]:
        secure = (self.server.root, self.tokens[account])
        return ads_bootstrap(self.server.secure, node_id=f"envoy-{account}", listen=listen, secure=secure)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutual-tls")
    documents = {path.name: path.read_text() for path in EXAMPLE.glob("*.yaml")}
    with ManagementServer(folder, documents, has_ca=True) as server:
        world = SecureWorld(folder, server)
        checkout = Child(
            "checkout",
            [sys.executable, str(EXAMPLE / "checkout.py")],
            folder,
            environment=world.environment("checkout-1", "checkout"),
        )
        environment = world.environment(
            "user-service-1",
            "user-service",
            MESHLIB_SERVICE="user-service",
            MESHLIB_LABELS="version=v2",
            MESHLIB_SERVICE_ACCOUNT="user-service",
        )
        worker = ["-k", "meshlib.integrations.gunicorn.MeshWorker", "--bind", f"{LOOPBACK}:0", "--no-control-socket"]
        command = [sys.executable, "-m", "gunicorn", *worker, "--chdir", str(EXAMPLE), "user_service:application"]
        with checkout, Child("user-service", command, folder, environment=environment) as users:

            def both_ready() -> bool:
                """Uvicorn is announced before it is ready, and nobody is sent there until it is."""
                checkout.check_alive()
                users.check_alive()
                return {"checkout", "user-service"} == {one["service"] for one in world.registrations() if one["ready"]}

            poll(both_ready, "both services to be registered as ready", timeout_s=SERVICES_START_S)
            yield world


@pytest.fixture
def start_envoy(world, tmp_path):
    """Return a context manager: a running Envoy with the identity of an account."""

    @contextmanager
    def start(account: str):
        with reserve_port() as held:
            listen = f"{LOOPBACK}:{held.getsockname()[1]}"
            with Envoy(f"envoy-{account}", world.envoy_bootstrap(account, listen), tmp_path) as envoy:
                envoy.listen = listen
                envoy.wait_ready()
                yield envoy

    return start


@pytest.fixture
def make_client(world):
    """Return a context manager: an httpx client in the mesh with the identity of an account."""

    @contextmanager
    def make(account: str):
        with meshlib.Mesh(world.bootstrap(f"client-{account}", account), state_dir="") as mesh:
            with httpx.Client(transport=mesh.httpx_transport(), timeout=20) as client:
                yield client

    return make


def test_envoy_calls_a_strict_service_with_the_certificate_it_was_sent(world, start_envoy):
    """1. Envoy fetches its certificate over the secure stream. 2. It calls. 3. The certificate is the account's."""
    with start_envoy("gateway") as envoy:
        answer = envoy.request("GET", "/", authority="checkout")
        assert (200, "v1") == (answer.status, json.loads(answer.body)["version"])
        certificates = json.loads(envoy.admin("/certs"))["certificates"]
        names = {
            name["uri"]
            for certificate in certificates
            for chain in certificate.get("cert_chain", [])
            for name in chain["subject_alt_names"]
            if "uri" in name
        }
        assert {"spiffe://cluster.local/ns/default/sa/gateway"} == names
        assert 0 == envoy.refused()
        assert [] == envoy.warming()
        world.server.wait_settled("envoy-gateway")


def test_meshlib_calls_a_strict_service(make_client):
    with make_client("gateway") as client:
        answer = client.get("http://checkout/")
        assert (200, "v1") == (answer.status_code, answer.json()["version"])


CANARY = ("canary", "true")  # leads to the one instance of user-service that runs here


@pytest.mark.parametrize(("account", "status"), [("gateway", 200), ("stranger", 403)])
def test_identity_decides_who_may_call_for_envoy_and_meshlib_alike(start_envoy, make_client, account, status):
    with start_envoy(account) as envoy:
        for method, expected in (("GET", status), ("POST", status), ("DELETE", 403)):
            answer = envoy.request(method, "/", authority="user-service", headers=[CANARY])
            assert (method, expected) == (method, answer.status), answer
    with make_client(account) as client:
        for method, expected in (("GET", status), ("POST", status), ("DELETE", 403)):
            assert expected == client.request(method, "http://user-service/", headers=[CANARY]).status_code


def test_envoy_without_a_certificate_is_refused(world, tmp_path):
    """In plaintext, and with TLS that trusts the right root but shows no certificate of its own."""
    address = world.address_of("checkout")
    trust = {"trusted_ca": {"filename": str(world.server.root)}}
    tls = tls_socket({"validation_context": trust, "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"}})
    clusters = {
        "plaintext": static_cluster("plaintext", address),
        "anonymous": static_cluster("anonymous", address, transport_socket=tls),
    }
    with reserve_port() as first, reserve_port() as second:
        ports = {name: held.getsockname()[1] for name, held in zip(clusters, (first, second), strict=True)}
        listeners = [static_listener(name, port) for name, port in ports.items()]
        resources = {"clusters": list(clusters.values()), "listeners": listeners}
        with Envoy("envoy-anonymous", {"static_resources": resources}, tmp_path) as envoy:
            for name, port in ports.items():
                envoy.listen = f"{LOOPBACK}:{port}"
                envoy.wait_ready()
                assert 503 == envoy.request("GET", "/", authority="checkout").status, name


def test_stream_without_a_token_gets_no_certificate(world, tmp_path):
    """On the plaintext listener Envoy learns of the services, and waits for a certificate that is not given to it."""
    with reserve_port() as held:
        listen = f"{LOOPBACK}:{held.getsockname()[1]}"
        bootstrap = ads_bootstrap(world.server.listen, node_id="envoy-nobody", listen=listen)
        with Envoy("envoy-nobody", bootstrap, tmp_path) as envoy:

            def secrets() -> dict[str, Any]:
                found: dict[str, Any] = world.server.client("envoy-nobody").get("types", {}).get("Secret", {})
                return found

            # It asks for one after the other.
            poll(lambda: {"default", "ROOTCA"} == set(secrets().get("names", ())), "Envoy to ask for secrets")
            assert 0 == secrets()["resources"]
            assert not envoy.admin("/ready").startswith("LIVE")
            dump = json.dumps(envoy.config_dump())
            assert "BEGIN CERTIFICATE" not in dump
            assert "private_key" not in dump


def static_listener(cluster: str, port: int) -> dict[str, object]:
    """Return a listener that sends everything to one cluster."""
    host = {"name": cluster, "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}
    router = {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"}
    manager = {
        "@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": cluster,
        "route_config": {"name": cluster, "virtual_hosts": [host]},
        "http_filters": [{"name": "router", "typed_config": router}],
    }
    chain = {"filters": [{"name": "manager", "typed_config": manager}]}
    return {"name": cluster, "address": socket_address(f"{LOOPBACK}:{port}"), "filter_chains": [chain]}
