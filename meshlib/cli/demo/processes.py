"""The demo's operating-system processes: the management server, the services, and the clients they talk to."""

import contextlib
import json
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from meshlib.errors import MeshError

__all__ = ["ClientProcess", "DemoError", "World"]

CANARY = Path(__file__).parent / "canary"
DOCUMENTS = (
    "checkout-canary.yaml",
    "my-service-90-10.yaml",
    "user-service-canary.yaml",
    "user-service-authz.yaml",
    "destination-rules.yaml",
    "peer-authentication.yaml",
    "my-service-authz.yaml",
)
ACCOUNTS = ("checkout", "my-service", "user-service", "gateway", "auth-service", "stranger")
START_TIMEOUT_S = 45.0
CERT_TTL_S = (40.0, 120.0)
"""At least and at most: long enough to live through the outage of act 7, short enough to be renewed in act 5."""
CERT_TTL_PER_START = 20.0
"""A machine that takes three seconds instead of two to start all that issues tokens needs one and a half times as long for the
outage too, in which a client and the server are started."""
LOOPBACK = "127.0.0.1"


class DemoError(MeshError):
    """The demo could not be staged: a process did not start or died."""


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on. The server is started on the same ones again in act 7, so they are below those that
    systems give to whoever opens a connection meanwhile (from 32768 on by Linux, from 49152 by RFC 6335)."""
    found: list[int] = []
    for port in random.SystemRandom().sample(range(20_000, 32_768), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, port))
            found.append(port)
        if len(found) == count:
            return found
    raise DemoError("no ports are free between 20000 and 32767")


class World:
    """A folder with everything in it, and the processes started from it. A context manager: leaving ends them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config"
        self.state = folder / "xds-server"
        self.logs = folder / "logs"
        self.cert_ttl_s = CERT_TTL_S[0]
        self.xds_port, self.secure_port, self.admin_port = free_ports(3)
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self._clients: list[ClientProcess] = []
        for path in (self.config, self.state, self.logs):
            path.mkdir(mode=0o700)
        for name in DOCUMENTS:
            shutil.copyfile(CANARY / name, self.config / name)

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        for process in self.processes.values():
            process.terminate()
        deadline = time.monotonic() + 5
        for process in self.processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # --- the management server

    def start_server(self) -> None:
        """Start `xds-server` and wait until it is ready."""
        process = self._spawn(
            "xds-server",
            [
                *("-m", "xds_server", "serve", str(self.config)),
                *("--listen", f"{LOOPBACK}:{self.xds_port}"),
                *("--secure-listen", f"{LOOPBACK}:{self.secure_port}"),
                *("--admin", f"{LOOPBACK}:{self.admin_port}"),
                *("--state-dir", str(self.state), "--cert-ttl", f"{self.cert_ttl_s:.0f}s", "--debounce-ms", "20"),
            ],
            {},
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        ready = threading.Event()

        def read(stream: IO[str]) -> None:
            for line in stream:
                if line.startswith("xds-server ready"):
                    ready.set()

        threading.Thread(target=read, args=(process.stdout,), daemon=True).start()
        self._await("xds-server", ready.is_set)

    def issue_tokens(self) -> None:
        """Issue a token for each identity; the files are readable by their owner only.

        How long that takes says how slow the machine is, and so how long certificates are to live.
        """
        start = time.monotonic()
        commands = [
            [
                *(sys.executable, "-m", "xds_server", "token", "--state-dir", str(self.state)),
                *("--service-account", account, "--ttl", "1h", "--output", str(self._token(account))),
            ]
            for account in ACCOUNTS
        ]
        running = [
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for command in commands
        ]
        for process in running:
            _, error = process.communicate(timeout=START_TIMEOUT_S)
            if process.returncode != 0:
                raise DemoError(f"xds-server token failed: {error.strip()}")
        least, most = CERT_TTL_S
        self.cert_ttl_s = min(most, max(least, CERT_TTL_PER_START * (time.monotonic() - start)))

    @property
    def root_ca(self) -> Path:
        """The CA's certificate."""
        return self.state / "ca" / "root.pem"

    def private_file(self, name: str, content: bytes) -> Path:
        """Write a file that only its owner may read, and return its path."""
        path = self.folder / name
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(content)
        return path

    def _token(self, account: str) -> Path:
        return self.folder / f"{account}.token"

    def bootstrap(self, node: str, account: str) -> Path:
        """Write a bootstrap (gRPC's format) for a process and return its path."""
        path = self.folder / f"{node}.json"
        tls = {"type": "tls", "config": {"ca_certificate_file": str(self.root_ca)}}
        token = {"type": "jwt_token_file", "config": {"jwt_token_file": str(self._token(account))}}
        server = {
            "server_uri": f"{LOOPBACK}:{self.secure_port}",
            "channel_creds": [tls],
            "call_creds": [token],
            "server_features": ["xds_v3"],
        }
        path.write_text(
            json.dumps(
                {
                    "xds_servers": [server],
                    "node": {"id": node, "cluster": "demo"},
                    "server_listener_resource_name_template": "xds.istio.io/grpc/lds/inbound/%s",
                    "meshlib": {"registry_uri": f"http://{LOOPBACK}:{self.admin_port}"},
                }
            )
        )
        return path

    # --- services and clients

    def start_service(self, name: str, script: str, version: str, account: str) -> None:
        """Start one instance of a service; `name` is unique."""
        environment = self._environment(name, account) | {"VERSION": version}
        if script == "user_service":
            environment |= {
                "MESHLIB_SERVICE": account,
                "MESHLIB_LABELS": f"version={version}",
                "MESHLIB_SERVICE_ACCOUNT": account,
                "MESHLIB_TTL_S": "2",
            }
            command = [
                *("-m", "gunicorn", "-k", "meshlib.integrations.gunicorn.MeshWorker", "--bind", f"{LOOPBACK}:0"),
                *(
                    "--threads",
                    "16",
                    "--keep-alive",
                    "5",
                    "--no-control-socket",
                    "--log-level",
                    "warning",
                    "--chdir",
                    str(CANARY),
                    "user_service:application",
                ),
            ]
        else:
            command = [str(CANARY / f"{script}.py")]
        self._spawn(name, command, environment)

    def start_client(self, node: str, account: str, on_event: Callable[[dict[str, Any]], None]) -> "ClientProcess":
        """Start the client program under an identity."""
        process = self._spawn(
            f"client-{node}-{len(self._clients)}",
            [str(CANARY / "client.py")],
            self._environment(node, account),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        client = ClientProcess(process, on_event)
        self._clients.append(client)
        return client

    def _environment(self, node: str, account: str) -> dict[str, str]:
        return {
            "GRPC_XDS_BOOTSTRAP": str(self.bootstrap(node, account)),
            "MESHLIB_STATE_DIR": str(self.folder / "state" / node),
        }

    def _spawn(
        self, name: str, arguments: list[str], environment: Mapping[str, str], **streams: Any
    ) -> subprocess.Popen[str]:
        with open(self.logs / f"{name}.log", "a") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
                stderr=log,
                stdout=streams.pop("stdout", log),
                text=True,
                start_new_session=True,  # Ctrl-C is for the demo, which then ends the rest in order
                **streams,
            )
        self.processes[name] = process
        return process

    def kill(self, name: str) -> None:
        """End a process as a crash would, with SIGKILL."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def registrations(self) -> list[dict[str, Any]]:
        """Return the leases of the instances that are ready; one that is still starting gets no calls."""
        import httpx

        answer = httpx.get(
            f"http://{LOOPBACK}:{self.admin_port}/v1/registrations", timeout=5, trust_env=False
        ).raise_for_status()
        result = answer.json()
        return [entry for entry in result["registrations"] if entry["ready"]]

    def await_registrations(self, count: int) -> None:
        """Wait until so many instances are announced and ready."""
        self._await(f"{count} registrations", lambda: len(self.registrations()) == count)

    def _await(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not condition():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise DemoError(f"{name} ended with code {process.returncode}\n{self.tail(name)}")
            if time.monotonic() > deadline:
                raise DemoError(f"waited {START_TIMEOUT_S:.0f} s in vain for {what}\n{self.tail('xds-server')}")
            time.sleep(0.05)

    def tail(self, name: str, lines: int = 15) -> str:
        """Return the end of a process's log."""
        path = self.logs / f"{name}.log"
        return "\n".join(path.read_text().splitlines()[-lines:]) if path.exists() else ""

    def edit(self, document: str, *changes: tuple[str, str]) -> None:
        """Change a document as an editor would, by replacing the file."""
        path = self.config / document
        text = path.read_text()
        for old, new in changes:
            if old not in text:
                raise DemoError(f"{document}: {old!r} is not there to be changed")
            text = text.replace(old, new)
        self.write(document, text)

    def write(self, document: str, text: str) -> None:
        """Write a document in one step."""
        temporary = self.folder / f"{document}.new"
        temporary.write_text(text)
        temporary.replace(self.config / document)


class ClientProcess:
    """One running client program: commands go in, events come out."""

    def __init__(self, process: subprocess.Popen[str], on_event: Callable[[dict[str, Any]], None]) -> None:
        self._process = process
        self._on_event = on_event
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._done: dict[str, threading.Event] = {}
        self._ready = threading.Event()
        self._trouble = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            match event["event"]:
                case "ready":
                    self._ready.set()
                case "answer" | "explanation":
                    self._answers.put(event)
                case "done":
                    self._done.setdefault(event["name"], threading.Event()).set()
                case "error":
                    self._trouble = event["text"]
                case _:
                    self._on_event(event)

    def _send(self, command: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def wait_ready(self) -> None:
        if not self._ready.wait(START_TIMEOUT_S):
            raise DemoError("a client process did not start")

    def load(self, name: str, **options: Any) -> None:
        """Start a stream of calls."""
        self._done[name] = threading.Event()
        self._send({"op": "load", "name": name, **options})

    def stop(self, name: str, timeout_s: float = 30.0) -> None:
        """End a stream of calls after those under way."""
        self._send({"op": "stop", "name": name})
        self.wait_done(name, timeout_s)

    def wait_done(self, name: str, timeout_s: float) -> None:
        """Wait for the end of a stream of calls."""
        deadline = time.monotonic() + timeout_s
        while not self._done[name].wait(0.2):
            if self._trouble or self._process.poll() is not None:
                raise DemoError(f"the client program failed: {self._trouble or 'it ended'}")
            if time.monotonic() > deadline:
                raise DemoError(f"the load {name!r} did not end within {timeout_s:.0f} s")

    def call(
        self, kind: str, url: str, *, method: str = "GET", headers: dict[str, str] | None = None
    ) -> dict[str, Any]:
        """Make one call and return what came of it."""
        self._send({"op": "call", "kind": kind, "url": url, "method": method, "headers": headers or {}})
        return self._answer("answer")

    def explain(self, url: str) -> dict[str, Any]:
        """Return the client's own explanation of where a request would go."""
        self._send({"op": "explain", "url": url})
        return self._answer("explanation")

    def _answer(self, kind: str) -> dict[str, Any]:
        try:
            answer = self._answers.get(timeout=30)
        except queue.Empty:
            raise DemoError("a client process does not answer") from None
        if answer["event"] != kind:
            raise DemoError(f"expected {kind} from a client process, got {answer['event']}")
        return answer

    def close(self) -> None:
        """End the program and its pipes."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it is gone already
            self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        self._process.stdout.close()
