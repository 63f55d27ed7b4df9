"""The real istiod as a process: its configuration is a folder, its Kubernetes cluster is empty."""

import json
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from peers.ports import free_port
from peers.processes import Child, poll

from foreign.kubernetes_api import KubernetesApi
from foreign.programs import program

MESH = """\
ingressControllerMode: "OFF"
defaultConfig: {discoveryAddress: "127.0.0.1:15010"}
"""
START_S = 120.0


class Istiod(Child):
    """Attributes:
    listen: Address of plaintext xDS.
    documents: The folder; files written with `write` are followed.
    """

    def __init__(self, folder: Path, documents: dict[str, str]) -> None:
        self.folder = folder
        self.documents = folder / "istio"
        self.documents.mkdir()
        for name, text in documents.items():
            self.write(name, text)
        self._stack = ExitStack()
        api = self._stack.enter_context(KubernetesApi())
        (folder / "kubeconfig.json").write_text(json.dumps(_kubeconfig(api.url)))
        (folder / "mesh.yaml").write_text(MESH)
        self._grpc, self._http, self._monitoring = (free_port() for _ in range(3))
        self.listen = f"127.0.0.1:{self._grpc}"
        self._start()

    def _start(self) -> None:
        addresses = [
            f"--grpcAddr={self.listen}",
            f"--httpAddr=127.0.0.1:{self._http}",
            f"--monitoringAddr=127.0.0.1:{self._monitoring}",
            "--secureGRPCAddr=",
            "--httpsAddr=",
        ]
        sources = [
            f"--configDir={self.documents}",
            f"--meshConfig={self.folder / 'mesh.yaml'}",
            f"--networksConfig={self.folder / 'none'}",
            "--registries=Kubernetes",
            f"--kubeconfig={self.folder / 'kubeconfig.json'}",
            "--clusterID=peers",
            "--ctrlz_port=0",
        ]
        environment = {
            **os.environ,
            "POD_NAME": "istiod-1",
            "POD_NAMESPACE": "istio-system",
            "ENABLE_LEADER_ELECTION": "false",
            "VALIDATION_WEBHOOK_CONFIG_NAME": "",
            "INJECTION_WEBHOOK_CONFIG_NAME": "",
        }
        super().__init__(
            "istiod",
            [program("pilot-discovery"), "discovery", *addresses, *sources],
            self.folder,
            environment=environment,
        )
        try:
            poll(self._is_ready, "istiod to be ready", timeout_s=START_S, every_s=0.2)
        except AssertionError as error:
            super().stop()
            raise AssertionError(f"{error}\n{self.tail()}") from error

    def _is_ready(self) -> bool:
        self.check_alive()
        try:
            return httpx.get(f"http://127.0.0.1:{self._http}/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        super().stop()
        self._stack.close()

    def restart(self) -> None:
        """End it and start it at the same addresses, with the same folder."""
        super().stop()
        self._start()

    def write(self, name: str, text: str) -> None:
        """Write a document in one step."""
        temporary = self.folder / f"{name}.new"
        temporary.write_text(text)
        temporary.replace(self.documents / name)

    def debug(self, page: str) -> Any:
        """Return a page of its debugging interface."""
        return httpx.get(f"http://127.0.0.1:{self._http}/debug/{page}", trust_env=False, timeout=20).json()

    def last_errors(self, proxy: str) -> dict[str, str]:
        """Return what a connected client (`name.namespace`) refused last, by type URL."""
        (found,) = (one for one in self.debug("syncz") if one["proxy"] == proxy)
        resources = found.get("resources") or {}
        return {kind: one["lastError"] for kind, one in resources.items() if one.get("lastError")}

    def rejections(self) -> dict[str, float]:
        """Return what its clients have refused since it started, by the labels of its metric."""
        text = httpx.get(f"http://127.0.0.1:{self._monitoring}/metrics", trust_env=False, timeout=20).text
        found = [line.rpartition(" ") for line in text.splitlines() if line.startswith("pilot_total_xds_rejects")]
        return {labels: float(count) for labels, _, count in found}


def _kubeconfig(url: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "peers",
        "clusters": [{"name": "peers", "cluster": {"server": url}}],
        "users": [{"name": "peers", "user": {"token": "none"}}],
        "contexts": [{"name": "peers", "context": {"cluster": "peers", "user": "peers"}}],
    }
