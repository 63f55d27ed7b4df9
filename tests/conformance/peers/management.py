"""The management server under test, as a process."""

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from peers.processes import Child, poll

START_S = 90.0


class ManagementServer(Child):
    """A running `xds-server` over a folder of documents.

    Attributes:
        documents: The folder; files written with `write` are followed.
        listen: Address of plaintext xDS.
        secure: Address of xDS over TLS; `off` without a state folder.
        admin: URL of its HTTP side.
    """

    def __init__(self, folder: Path, documents: Mapping[str, str], *, has_ca: bool = False) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.documents = folder / "documents"
        self.documents.mkdir()
        for name, text in documents.items():
            self.write(name, text)
        anywhere = "127.0.0.1:0"
        secure = ["--secure-listen", anywhere, "--state-dir", str(self.state)] if has_ca else []
        command = [sys.executable, "-m", "xds_server", "serve", str(self.documents)]
        options = ["--listen", anywhere, "--admin", anywhere, "--debounce-ms", "20", *secure]
        super().__init__("xds-server", [*command, *options], folder, stdout=subprocess.PIPE)
        line = self.stdout.readline()
        if not line.startswith("xds-server ready: "):
            self.stop()
            raise AssertionError(f"xds-server did not start: {line}\n{self.tail()}")
        ready = dict(re.findall(r"(\w+)=(\S+)", line))
        self.listen, self.secure, self.admin = ready["xds"], ready["secure"], ready["admin"]
        self._http = httpx.Client(base_url=self.admin, trust_env=False, timeout=30)

    def stop(self) -> None:
        if hasattr(self, "_http"):
            self._http.close()
        super().stop()

    def write(self, name: str, text: str) -> None:
        """Write a document in one step, as an editor does."""
        temporary = self.folder / f"{name}.new"
        temporary.write_text(text)
        temporary.replace(self.documents / name)

    def register(self, instance_id: str, *, token: str = "", **body: Any) -> None:
        """Register an instance for the rest of the test."""
        body = {"address": "127.0.0.1", "ttl_s": 3600, **body}
        headers = {"authorization": f"Bearer {token}"} if token else {}
        answer = self._http.put(f"/v1/registrations/{instance_id}", json=body, headers=headers)
        assert 200 == answer.status_code, answer.text

    def token(self, service_account: str) -> Path:
        """Make a token for a service account and return its file."""
        path = self.folder / f"{service_account}.token"
        command = [sys.executable, "-m", "xds_server", "token", "--state-dir", str(self.state)]
        options = ["--service-account", service_account, "--output", str(path)]
        subprocess.run([*command, *options], check=True, timeout=START_S)
        return path

    @property
    def root(self) -> Path:
        """The certificate of its authority."""
        return self.state / "ca" / "root.pem"

    def status(self) -> dict[str, Any]:
        result: dict[str, Any] = self._http.get("/v1/status").json()
        return result

    def findings(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._http.get("/v1/findings").json()["findings"]
        return found

    def client(self, node_id: str) -> dict[str, Any]:
        """Return what it knows of a client; empty: not connected."""
        clients: list[dict[str, Any]] = self.status()["clients"]
        return next((one for one in clients if one["node_id"] == node_id), {})

    def rejections(self) -> dict[str, str]:
        """Return each refusal that a client has not taken back yet, by `node/type`."""
        return {
            f"{client['node_id']}/{kind}": state["last_error"]
            for client in self.status()["clients"]
            for kind, state in client["types"].items()
            if state["last_error"]
        }

    def rejection_count(self) -> int:
        """Return how often the connected clients have refused something."""
        clients = self.status()["clients"]
        return sum(state["rejections"] for client in clients for state in client["types"].values())

    def wait_settled(self, *node_ids: str, timeout_s: float = 60.0) -> None:
        """Wait until these clients are connected and have accepted what they were sent, all of it.

        Raises:
            AssertionError: One refused something, or did not answer in time.
        """

        def settled() -> bool:
            states = {}
            for node_id in node_ids:
                types = self.client(node_id).get("types", {})
                states[node_id] = {kind: state["state"] for kind, state in types.items()}
            open_ends = {
                node_id: kinds for node_id, kinds in states.items() if not kinds or set(kinds.values()) != {"SYNCED"}
            }
            self.last_open = open_ends
            return not open_ends

        try:
            poll(settled, "all clients to accept", timeout_s=timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.last_open}; {json.dumps(self.rejections())}") from None
