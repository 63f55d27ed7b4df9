"""go-control-plane's server as a process, and resources for it."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from peers.processes import Child, poll

from foreign.programs import program

ADS = {"ads": {}, "resource_api_version": "V3"}
KINDS = "type.googleapis.com/"
LDS = f"{KINDS}envoy.config.listener.v3.Listener"
RDS = f"{KINDS}envoy.config.route.v3.RouteConfiguration"
CDS = f"{KINDS}envoy.config.cluster.v3.Cluster"
EDS = f"{KINDS}envoy.config.endpoint.v3.ClusterLoadAssignment"
HCM = f"{KINDS}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = f"{KINDS}envoy.extensions.filters.http.router.v3.Router"


@dataclass(frozen=True, slots=True)
class Said:
    """A request or a response, as the server's callbacks saw it.

    Attributes:
        names: Asked for (incrementally: subscribed to), or sent incrementally.
        removed: Unsubscribed from, or told to be gone.
        count: Resources in a response.
        error: Of a refusal.
    """

    stream: int
    kind: str
    type: str
    node: str
    version: str
    nonce: str
    names: tuple[str, ...]
    removed: tuple[str, ...]
    count: int
    error: str
    incremental: bool


class ControlPlane(Child):
    """A management server made of go-control-plane's caches and stream handlers.

    Attributes:
        listen: Address of xDS; the same after a restart.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self._options = options
        self._folder = folder
        self._count = 0
        self.listen = "127.0.0.1:0"
        self._start()

    def _start(self) -> None:
        command = [program("controlplane"), "-listen", self.listen, *self._options]
        pipe = subprocess.PIPE
        super().__init__("go-control-plane", command, self._folder, stdin=pipe, stdout=pipe)
        line = self.stdout.readline()
        assert line, f"go-control-plane did not start:\n{self.tail()}"
        told = json.loads(line)
        self.listen = told["xds"]
        self._http = httpx.Client(base_url=told["control"], trust_env=False, timeout=30)

    def stop(self) -> None:
        self._http.close()
        super().stop()

    def restart(self) -> None:
        """End it, which empties its cache and its log, and start it at the same address."""
        self.stop()
        self._start()

    def put(self, *resources: dict[str, Any], version: str = "", ttl_s: Mapping[str, float] | None = None) -> None:
        """Serve exactly these resources.

        Args:
            version: Of all of them; empty: the next number.
            ttl_s: Times to live, by type URL; a snapshot cache knows them.
        """
        self._count += 1
        body = {"version": version or str(self._count), "resources": resources, "ttl_s": ttl_s or {}}
        answer = self._http.put("/resources", json=body)
        assert 200 == answer.status_code, answer.text

    def said(self, type_url: str = "", *, kind: str = "") -> list[Said]:
        """Return what went over the streams, in order."""
        found = [
            Said(**{**one, "names": tuple(one["names"] or ()), "removed": tuple(one["removed"] or ())})
            for one in self._http.get("/log").json()
        ]
        return [one for one in found if type_url in ("", one.type) and kind in ("", one.kind)]

    def refusals(self) -> list[Said]:
        return [one for one in self.said(kind="request") if one.error]

    def wait_acknowledged(self) -> None:
        """Wait until the last response of each type of each stream was answered."""

        def open_responses() -> list[Said]:
            said = self.said()
            answered = {(one.stream, one.type, one.nonce) for one in said if one.kind == "request"}
            last = {(one.stream, one.type): one for one in said if one.kind == "response"}
            return [one for one in last.values() if (one.stream, one.type, one.nonce) not in answered]

        poll(lambda: not open_responses(), "every response to be answered", every_s=0.1)


def listener(name: str, routes: str = "", *filters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return a listener; without the name of routes, `fields` say where they are."""
    rds = {"rds": {"route_config_name": routes, "config_source": ADS}} if routes else {}
    router = {"name": "router", "typed_config": {"@type": ROUTER}}
    manager = {"@type": HCM, "stat_prefix": name, "http_filters": [*filters, router], **rds, **fields}
    return {"@type": LDS, "name": name, "api_listener": {"api_listener": manager}}


def routes(name: str, *found: dict[str, Any]) -> dict[str, Any]:
    return {"@type": RDS, "name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": list(found)}]}


def to(cluster: str, prefix: str = "/") -> dict[str, Any]:
    return {"match": {"prefix": prefix}, "route": {"cluster": cluster}}


def cluster(name: str, **fields: Any) -> dict[str, Any]:
    return {"@type": CDS, "name": name, "type": "EDS", "eds_cluster_config": {"eds_config": ADS}, **fields}


def endpoints(name: str, *ports: int) -> dict[str, Any]:
    hosts = [
        {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}} for port in ports
    ]
    locality = {"locality": {"region": "here"}, "load_balancing_weight": 1, "lb_endpoints": hosts}
    return {"@type": EDS, "cluster_name": name, "endpoints": [locality]}


def service(name: str, *ports: int) -> list[dict[str, Any]]:
    """Return the four resources of a service whose cluster bears its name."""
    return [listener(name, name), routes(name, to(name)), cluster(name), endpoints(name, *ports)]


def bootstrap(server: str, node: dict[str, Any], *features: str) -> dict[str, Any]:
    servers = [{"server_uri": server, "channel_creds": [{"type": "insecure"}], "server_features": list(features)}]
    return {"xds_servers": servers, "node": node}
