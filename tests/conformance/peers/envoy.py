"""A real Envoy as a process, with or without the management server behind it."""

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from peers.processes import Child, poll
from peers.upstreams import LOOPBACK, Answer, answer_of

TYPE = "type.googleapis.com/"
_ROOT = Path(__file__).resolve().parents[3]
_H2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}


def find_envoy() -> str:
    """Return the path of the binary: `$ENVOY_BIN`, else the one that `make envoy` installs."""
    if given := os.environ.get("ENVOY_BIN"):
        if os.access(given, os.X_OK):
            return given
        pytest.fail(f"ENVOY_BIN={given} is not a program", pytrace=False)
    found = sorted((_ROOT / ".venv-envoy").glob("lib/python*/site-packages/envoy/_bin/envoy"))
    if not found:
        pytest.fail(
            "these tests talk to a real Envoy 1.40, which is not installed: run `make envoy` (or set ENVOY_BIN)",
            pytrace=False,
        )
    return str(found[-1])


class Envoy(Child):
    """One Envoy on loopback.

    Attributes:
        listen: `host:port` of its outbound listener; empty when the bootstrap has other ones.
    """

    def __init__(self, name: str, bootstrap: dict[str, Any], folder: Path, *, arguments: Sequence[str] = ()) -> None:
        config = folder / f"{name}.json"
        config.write_text(json.dumps({"admin": {"address": socket_address(f"{LOOPBACK}:0")}, **bootstrap}, indent=1))
        config.chmod(0o600)
        admin = folder / f"{name}.admin"
        command = [find_envoy(), "-c", str(config), "--admin-address-path", str(admin)]
        options = ["--disable-hot-restart", "--concurrency", "1", "-l", "warning", "--drain-time-s", "1", *arguments]
        super().__init__(name, [*command, *options], folder)
        self.listen = ""
        self._http = httpx.Client(trust_env=False, timeout=30)
        try:
            self._admin = "http://" + poll(lambda: self._written(admin), "Envoy's admin address")
            poll(lambda: self.admin("/ready"), "Envoy to be up")
        except BaseException:
            self.stop()
            raise

    def _written(self, path: Path) -> str:
        self.check_alive()
        return path.read_text() if path.exists() else ""

    def stop(self) -> None:
        self._http.close()
        super().stop()

    # What it says of itself.

    def admin(self, path: str) -> str:
        try:
            return self._http.get(self._admin + path).text
        except httpx.ConnectError:
            return ""

    def stats(self, pattern: str) -> dict[str, int]:
        """Return the counters and gauges whose name matches a regex."""
        found = json.loads(self.admin(f"/stats?format=json&filter={pattern}"))["stats"]
        return {one["name"]: one["value"] for one in found if "name" in one}

    def change_runtime(self, values: Mapping[str, str]) -> None:
        """Set runtime keys, where the bootstrap has an admin layer; empty: the value is the configuration's again."""
        self._http.post(f"{self._admin}/runtime_modify", params=dict(values)).raise_for_status()

    def config_dump(self, resource: str = "") -> list[dict[str, Any]]:
        """Return the dump, or one kind of resource in it."""
        dump = json.loads(self.admin("/config_dump" + (f"?resource={resource}" if resource else "?include_eds")))
        found: list[dict[str, Any]] = dump.get("configs", [])
        return found

    def error_states(self) -> list[str]:
        """Return every refusal that its dump shows."""
        return list(_errors(self.config_dump()))

    def refused(self) -> int:
        """Return how many updates it has refused."""
        return sum(self.stats("update_rejected$").values())

    def warming(self) -> list[str]:
        """Return the clusters and listeners that wait for something."""
        clusters = self.config_dump("dynamic_warming_clusters")
        listeners = self.config_dump("dynamic_listeners")
        return [one["cluster"]["name"] for one in clusters] + [
            one["name"] for one in listeners if "active_state" not in one or "warming_state" in one
        ]

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Wait until it listens."""

        host, _, port = self.listen.rpartition(":")

        def is_listening() -> bool:
            self.check_alive()
            with socket.socket() as probe:
                return probe.connect_ex((host, int(port))) == 0

        try:
            poll(is_listening, "Envoy's listener", timeout_s=timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; refused {self.error_states()}; {self.tail(5)}") from None

    # Requests through it.

    def request(
        self,
        method: str,
        path: str,
        *,
        authority: str,
        headers: Sequence[tuple[str, str]] = (),
        content: bytes | None = None,
        listen: str = "",
    ) -> Answer:
        """Send a request as an application behind this proxy would."""
        start = time.monotonic()
        answer = self._http.request(
            method, f"http://{listen or self.listen}{path}", headers=[("host", authority), *headers], content=content
        )
        return answer_of(answer.status_code, dict(answer.headers), answer.text, time.monotonic() - start)

    def channel(self, authority: str) -> grpc.Channel:
        """Open a gRPC channel through it."""
        return grpc.insecure_channel(
            self.listen, options=[("grpc.default_authority", authority), ("grpc.use_local_subchannel_pool", 1)]
        )


def ads_bootstrap(server: str, *, node_id: str, listen: str, secure: tuple[Path, Path] | None = None) -> dict[str, Any]:
    """Return a bootstrap that takes everything from a management server over one aggregated stream.

    Args:
        listen: Where it is to listen, as the management server learns from its metadata.
        secure: Files of the server's root certificate and of the node's token; None: plaintext.
    """
    cluster = static_cluster("xds", server, typed_extension_protocol_options=_H2)
    service: dict[str, Any] = {"envoy_grpc": {"cluster_name": "xds"}}
    if secure is not None:
        root, token = secure
        cluster["transport_socket"] = tls_socket({"validation_context": {"trusted_ca": {"filename": str(root)}}})
        service["initial_metadata"] = [{"key": "authorization", "value": f"Bearer {token.read_text().strip()}"}]
    source = {"ads": {}, "resource_api_version": "V3"}
    return {
        "node": {"id": node_id, "cluster": "conformance", "metadata": {"OUTBOUND_LISTEN": listen}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [service],
            },
            "cds_config": source,
            "lds_config": source,
        },
        "static_resources": {"clusters": [cluster]},
    }


def static_cluster(name: str, *addresses: str, **fields: Any) -> dict[str, Any]:
    endpoints = [{"endpoint": {"address": socket_address(address)}} for address in addresses]
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]}
    return {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": assignment, **fields}


def tls_socket(common: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a client's TLS transport socket."""
    name = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    config = {"@type": TYPE + name, "common_tls_context": common, **fields}
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}


def socket_address(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def reserve_port() -> socket.socket:
    """Return a bound socket that keeps a port from others while Envoy, which shares ports, listens on it."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind((LOOPBACK, 0))
    return held


def _errors(value: Any) -> Any:
    if isinstance(value, dict):
        if "error_state" in value:
            yield value["error_state"].get("details", "?")
        for item in value.values():
            yield from _errors(item)
    elif isinstance(value, list):
        for item in value:
            yield from _errors(item)
