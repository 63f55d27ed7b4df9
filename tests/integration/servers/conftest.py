"""A real management server, real services in processes of their own, and meshed clients in this one."""

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from peers.ports import free_port

from meshlib import Mesh
from xds_server.ca import CertificateAuthority
from xds_server.identity import Identity
from xds_server.tokens import Tokens

PROGRAMS = Path(__file__).parent / "programs"
POLICY = """\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: guarded, namespace: default}
spec:
  selector: {matchLabels: {app: guarded}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/gateway]}}]
    to: [{operation: {methods: [GET, HEAD, POST]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: guarded-paths, namespace: default}
spec:
  selector: {matchLabels: {app: guarded}}
  action: DENY
  rules:
  - to: [{operation: {paths: ["/admin*", "/test.Greeter/Secret", "/test.Greeter/Nothing"]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: by-address, namespace: plain}
spec:
  selector: {matchLabels: {app: by-address}}
  action: DENY
  rules:
  - from: [{source: {notIpBlocks: [127.0.0.0/8]}}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: mixed}
spec: {mtls: {mode: PERMISSIVE}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: mixed, namespace: mixed}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/mixed/sa/gateway]}}]
  - from: [{source: {ipBlocks: [127.0.0.0/8]}}]
    to: [{operation: {paths: ["/open", "/test.Greeter/UnaryUnary"]}}]
---
"""


START_S = 60.0
"""How long a program may take to be ready: that is importing, for the most part, and on a busy machine several start at once."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fixtures start several programs, which counts as time of the first test that has them."""
    for item in items:
        if Path(__file__).parent in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(4 * START_S))


def eventually(look: Callable[[], Any], what: str | Callable[[], str], timeout_s: float = 40.0) -> Any:
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen in time: {what if isinstance(what, str) else what()}")
        time.sleep(0.02)
    return found


class Process:
    """A program with its output.

    Attributes:
        lines: Of stdout and stderr so far.
    """

    def __init__(self, command: list[str], environment: dict[str, str], cwd: Path | None = None) -> None:
        self.started_at = time.monotonic()
        self.lines: list[str] = []
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MESHLIB", "GRPC"))}
        self._process = subprocess.Popen(
            [sys.executable, *command],
            env=inherited | environment,
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for the end; returns the exit code."""
        code = self._process.wait(timeout_s)
        self._reader.join(10)
        return code

    def end(self) -> None:
        """End it if it runs, with its children."""
        if self.is_running:
            self.send(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


def is_listening(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.settimeout(5)
        return probe.connect_ex((host.strip("[]"), int(port))) == 0


class ManagementServer:
    """`xds-server`, with what is needed to be a client or a service of it."""

    def __init__(self, folder: Path, cert_ttl: str) -> None:
        self.folder = folder
        self.state = folder / "state"
        self._cert_ttl = cert_ttl
        self._addresses = {name: f"127.0.0.1:{free_port()}" for name in ("xds", "secure", "admin")}
        self._process: Process | None = None
        (folder / "config").mkdir()
        (folder / "config" / "policy.yaml").write_text(POLICY)

    def start(self) -> None:
        """Start it, at the same addresses as before."""
        names = {"xds": "--listen", "secure": "--secure-listen", "admin": "--admin"}
        listen = [part for name, option in names.items() for part in (option, self._addresses[name])]
        command = ["-m", "xds_server", "serve", "config", "--state-dir", "state", "--debounce-ms", "20"]
        process = Process([*command, "--cert-ttl", self._cert_ttl, *listen], {}, self.folder)
        self._process = process

        def look() -> list[str]:
            assert process.is_running, process.output
            return [line for line in process.lines if line.startswith("xds-server ready")]

        eventually(look, lambda: f"xds-server is ready: {process.output}", START_S)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send(signal.SIGKILL)
            self._process.wait()
            self._process.end()
            self._process = None

    @property
    def admin(self) -> str:
        return f"http://{self._addresses['admin']}"

    @property
    def secure(self) -> str:
        return self._addresses["secure"]

    @property
    def root(self) -> Path:
        return self.state / "ca" / "root.pem"

    def bootstrap(self, node: str, account: str, namespace: str = "default", **changes: Any) -> dict[str, Any]:
        token = self.folder / f"{namespace}-{account}.token"
        if not token.exists():
            issued = Tokens.open(self.state).issue(Identity(namespace, account), timedelta(hours=1))
            with open(os.open(token, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(issued)
        creds = {"type": "tls", "config": {"ca_certificate_file": str(self.root)}}
        call_creds = {"type": "jwt_token_file", "config": {"jwt_token_file": str(token)}}
        return {
            "xds_servers": [
                {
                    "server_uri": self.secure,
                    "channel_creds": [creds],
                    "call_creds": [call_creds],
                    "server_features": ["xds_v3"],
                }
            ],
            "node": {"id": node},
            "server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%s",
            "meshlib": {"registry_uri": self.admin},
        } | changes

    def instances(self, service: str) -> list[str]:
        """Addresses that are registered and ready."""
        answer = httpx.get(f"{self.admin}/v1/registrations", trust_env=False).json()["registrations"]
        return sorted(f"{one['address']}:{one['port']}" for one in answer if one["service"] == service and one["ready"])

    def leases(self, service: str) -> list[str]:
        answer = httpx.get(f"{self.admin}/v1/registrations", trust_env=False).json()["registrations"]
        return sorted(one["id"] for one in answer if one["service"] == service)

    def lifetimes(self, service: str) -> dict[str, float]:
        """How long each lease lives without a renewal, in seconds."""
        answer = httpx.get(f"{self.admin}/v1/registrations", trust_env=False).json()["registrations"]
        return {one["id"]: one["ttl_s"] for one in answer if one["service"] == service}

    def client_context(self, account: str | None, trust_domain: str = "cluster.local") -> ssl.SSLContext:
        """TLS as a client without meshlib speaks it; None: without a certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.load_verify_locations(self.root)
        if account is not None:
            now = datetime.now(UTC)
            authority = CertificateAuthority.open(self.state, "cluster.local", now)
            authority = CertificateAuthority(authority._root, authority._key, trust_domain)
            leaf = authority.issue_svid(Identity("default", account), timedelta(hours=1), now)
            path = self.folder / f"{account}.{trust_domain}.pem"
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(leaf.private_key_pem + leaf.certificate_pem)
            context.load_cert_chain(path)
        return context


class World:
    """A management server, and services and clients made for one test or module; all end with it."""

    def __init__(self, server: ManagementServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self._processes: list[Process] = []
        self._meshes: list[Mesh] = []
        self._count = 0

    def environment(
        self, service: str, namespace: str, bootstrap: dict[str, Any] | None, state_dir: str
    ) -> dict[str, str]:
        self._count += 1
        given = bootstrap or self.server.bootstrap(f"{service}-{self._count}", service, namespace)
        return {
            "GRPC_XDS_BOOTSTRAP_CONFIG": json.dumps(given),
            "MESHLIB_STATE_DIR": state_dir,
            "PYTHONUNBUFFERED": "1",
        }

    def start(
        self,
        program: str,
        run: str,
        service: str,
        *,
        namespace: str = "default",
        bootstrap: dict[str, Any] | None = None,
        state_dir: str = "",
        environment: dict[str, str] | None = None,
        **options: Any,
    ) -> Process:
        """Start a program; returns at once."""
        asked = {"service": service, "namespace": namespace, "service_account": service, "ttl_s": 5.0} | options
        variables = self.environment(service, namespace, bootstrap, state_dir)
        variables |= {"RUN": run, "OPTIONS": json.dumps(asked), **(environment or {})}
        process = Process([str(PROGRAMS / f"{program}.py")], variables)
        self._processes.append(process)
        return process

    def gunicorn(
        self, service: str, *options: str, run: str = "django", namespace: str = "default", **environment: str
    ) -> Process:
        """Start gunicorn with the Django site; returns at once."""
        variables = self.environment(service, namespace, None, "")
        variables |= {
            "RUN": run,
            "MESHLIB_SERVICE": service,
            "MESHLIB_NAMESPACE": namespace,
            "MESHLIB_SERVICE_ACCOUNT": service,
            "MESHLIB_TTL_S": "5",
            **environment,
        }
        command = ["-m", "gunicorn", "-k", "meshlib.integrations.gunicorn.MeshWorker", "--chdir", str(PROGRAMS)]
        command += ["--no-control-socket", "--threads", "8", "--bind", "127.0.0.1:0", *options]
        process = Process([*command, "site_django:application"], variables)
        self._processes.append(process)
        return process

    def other_server(self, *command: str, service: str, namespace: str, port: int) -> Process:
        """Start a server of the `web` application that is none of the mesh's; it registers itself. Returns at once."""
        variables = self.environment(service, namespace, None, "")
        options = {"service": service, "namespace": namespace, "service_account": service}
        variables |= {"RUN": "bare", "PORT": str(port), "OPTIONS": json.dumps(options), "PYTHONPATH": str(PROGRAMS)}
        process = Process(["-m", *command], variables, self.folder)
        self._processes.append(process)
        return process

    def wait_serving(self, service: str, count: int = 1) -> list[str]:
        """Wait until so many instances are registered and connections are taken; returns their addresses."""

        def look() -> list[str]:
            found = self.server.instances(service)
            dead = [process.output for process in self._processes if not process.is_running]
            assert not dead or len(found) >= count, dead
            return found if len(found) == count and all(map(is_listening, found)) else []

        found: list[str] = eventually(look, f"{count} instances of {service}", START_S)
        return found

    def mesh(self, account: str, *services: str, namespace: str = "default") -> Mesh:
        """A mesh for calls to services, which are known when this returns."""
        self._count += 1
        mesh = Mesh(self.server.bootstrap(f"client-{self._count}", account, namespace), state_dir="")
        self._meshes.append(mesh)
        if services:
            mesh.wait_ready(*services, timeout_s=START_S)
        return mesh

    def client(self, account: str, *services: str, namespace: str = "default") -> httpx.Client:
        """A client whose transport is such a mesh's."""
        return httpx.Client(transport=self.mesh(account, *services, namespace=namespace).httpx_transport(), timeout=10)

    def close(self) -> None:
        for mesh in self._meshes:
            mesh.close()
        for process in self._processes:
            if process.is_running:
                process.send(signal.SIGTERM)
        for process in self._processes:
            process.end()


class Load:
    """Calls without a pause, from some threads, until it is left.

    Attributes:
        answers: What calls returned.
        failures: What went wrong.
    """

    def __init__(self, call: Callable[[], Any], threads: int = 4) -> None:
        self.answers: list[Any] = []
        self.failures: list[str] = []
        self._call = call
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(self._call())
            except Exception as error:
                self.failures.append(f"{type(error).__name__}: {error}")
            time.sleep(0.005)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        eventually(lambda: len(self.answers) >= 5 or self.failures, "first answers")
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ManagementServer]:
    """One for all tests that leave it running; certificates live for ten seconds."""
    result = ManagementServer(tmp_path_factory.mktemp("xds"), "10s")
    try:
        result.start()
        yield result
    finally:
        result.stop()


@pytest.fixture
def world(server: ManagementServer, tmp_path: Path) -> Iterator[World]:
    result = World(server, tmp_path)
    yield result
    result.close()


@pytest.fixture(scope="module")
def shared_world(server: ManagementServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """For services that several tests of a module only call."""
    result = World(server, tmp_path_factory.mktemp("world"))
    yield result
    result.close()


@pytest.fixture(scope="session")
def make_world() -> type[World]:
    return World


@pytest.fixture
def own_world(tmp_path: Path) -> Iterator[World]:
    """With a management server of its own, that the test may stop; certificates live for an hour."""
    (tmp_path / "xds").mkdir()
    server = ManagementServer(tmp_path / "xds", "1h")
    server.start()
    result = World(server, tmp_path)
    yield result
    result.close()
    server.stop()


@pytest.fixture
def load() -> type[Load]:
    return Load


@pytest.fixture
def wait_for() -> Callable[..., Any]:
    return eventually


@pytest.fixture
def port() -> int:
    return free_port()
