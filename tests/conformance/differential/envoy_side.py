"""Envoy's side: one process for the whole run, whose routes come from a file that is replaced for each configuration."""

import http.client
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peers.envoy import Envoy, reserve_port, socket_address, static_cluster
from peers.processes import poll
from peers.upstreams import LOOPBACK, HttpUpstream, Step

from differential.decision import Decision, Outcome, Refusal, comparable
from differential.generate import HEADER_FILTER, LISTENER_PORT, TYPE, Json, Request

UPSTREAM_HEADERS = (("x-up", "1"), ("x-set", "up"), ("content-type", "application/json"))
ENDPOINT_HOSTNAME = "endpoint.host"
ENDPOINT_ADDRESS = "127.0.0.1:1"
CLUSTER_METADATA: Json = {"a": {"ns": {"k": "of a", "o": {"n": 1.0}}}, "b": {}}
"""What formats may say of clusters."""
_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_FIELDS = {
    "case": "%REQ(X-CASE)%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "flags": "%RESPONSE_FLAGS%",
    "route": "%ROUTE_NAME%",
    "cluster": "%UPSTREAM_CLUSTER_RAW%",
    "started_us": "%START_TIME(%s%6f)%",
}
# Set by Envoy when an upstream answered.
_FORWARDED = "via_upstream"


class EnvoySide:
    """Asks a real Envoy. Use as a context manager.

    Attributes:
        managers: As given.
    """

    def __init__(self, folder: Path, clusters: Sequence[Json] = (), managers: Sequence[Json] = ({},)) -> None:
        """Start nothing yet.

        Args:
            folder: For its files.
            clusters: Beside `a` and `b`.
            managers: What connection managers have beside the usual; each has a port of its own.
        """
        self._folder = folder
        self._clusters = clusters
        self.managers = managers
        self._routes = folder / "routes.json"
        self._log = folder / "access.log"
        self._log.touch()
        self._version = 0
        self._case = 0
        self._position = 0

    def __enter__(self) -> "EnvoySide":
        self._upstreams = {name: HttpUpstream(name) for name in ("a", "b")}
        for upstream in self._upstreams.values():
            upstream.usual = Step(headers=UPSTREAM_HEADERS[:-1])
        self._held = [reserve_port() for _ in self.managers]
        self._ports = [held.getsockname()[1] for held in self._held]
        self._write({"name": "differential"})
        self._envoy = Envoy("envoy", self._bootstrap(), self._folder, arguments=_LOG_SOON)
        for port in self._ports:
            self._envoy.listen = f"{LOOPBACK}:{port}"
            self._envoy.wait_ready()
        self._connections = [http.client.HTTPConnection(LOOPBACK, port, timeout=20) for port in self._ports]
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()
        self._envoy.stop()
        for held in self._held:
            held.close()
        for upstream in self._upstreams.values():
            upstream.close()

    def decide(self, configuration: Json, requests: Sequence[Request]) -> Outcome:
        """Return what Envoy does."""
        if refusal := self.install(configuration):
            return refusal
        answers = [self._send(request) for request in requests]
        logged = self._logged({answer["case"] for answer in answers})
        return [
            _decision(request, answer, logged[answer["case"]])
            for request, answer in zip(requests, answers, strict=True)
        ]

    def install(self, configuration: Json) -> Refusal | None:
        """Give Envoy a configuration; None: it took it."""
        before = self._counters()
        self._write(configuration)

        def changed() -> bool:
            return self._counters() != before

        poll(changed, "Envoy to read the routes", every_s=_SOON_S)
        if self._counters()[0] > before[0]:
            return None
        told = self._envoy.reason("rejected: ", "update failure: ", every_s=_SOON_S)
        return Refusal(told.removeprefix("rejected: "))

    def _counters(self) -> tuple[int, int]:
        """Return how many configurations it has taken, and how many refused."""
        found = self._envoy.stats("rds[.]differential[.]update_(success|rejected|failure)$")
        prefix = "http.differential.rds.differential.update_"
        return found.get(prefix + "success", 0), found.get(prefix + "rejected", 0) + found.get(prefix + "failure", 0)

    def _write(self, configuration: Json) -> None:
        self._version += 1
        resource = {"@type": TYPE + "envoy.config.route.v3.RouteConfiguration", **configuration}
        content = {"version_info": str(self._version), "resources": [resource]}
        temporary = self._folder / "routes.new"
        temporary.write_text(json.dumps(content))
        temporary.replace(self._routes)

    def _send(self, request: Request) -> dict[str, Any]:
        self._case += 1
        case = str(self._case)
        connection = self._connections[request.manager]
        connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
        own = f":{self._ports[request.manager]}"
        connection.putheader("host", request.authority.replace(LISTENER_PORT, own))
        for name, value in request.headers:
            connection.putheader(name, value)
        connection.putheader("x-case", case)
        if request.method in ("POST", "PUT"):
            connection.putheader("content-length", "0")
        connection.endheaders()
        response = connection.getresponse()
        headers = [(name.lower(), self._without_ports(value, own)) for name, value in response.getheaders()]
        body = self._without_ports(response.read().decode(), own)
        return {"case": case, "status": response.status, "headers": headers, "body": body}

    def _without_ports(self, text: str, own: str) -> str:
        """Return a text in which upstreams and listener stand at addresses that both sides know."""
        for upstream in self._upstreams.values():
            text = text.replace(f"{LOOPBACK}:{upstream.port}", ENDPOINT_ADDRESS)
        return text.replace(own, LISTENER_PORT)

    def _logged(self, cases: set[str]) -> dict[str, dict[str, Any]]:
        """Return the lines of the access log for some requests."""
        found: dict[str, dict[str, Any]] = {}

        def complete() -> bool:
            with self._log.open() as log:
                log.seek(self._position)
                while (line := log.readline()).endswith("\n"):
                    self._position = log.tell()
                    entry = json.loads(line)
                    found[entry["case"]] = entry
            return cases <= found.keys()

        poll(complete, "lines of the access log", every_s=_SOON_S)
        return found

    def _bootstrap(self) -> Json:
        filters = [
            _filter("envoy.filters.http.fault", "envoy.extensions.filters.http.fault.v3.HTTPFault"),
            _filter(HEADER_FILTER, "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation", mutations={}),
            _filter("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router"),
        ]
        log = {
            "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(self._log),
            "log_format": {"json_format": _FIELDS},
        }
        source = {
            "resource_api_version": "V3",
            "path_config_source": {"path": str(self._routes), "watched_directory": {"path": str(self._folder)}},
        }
        manager = {
            "@type": TYPE + _MANAGER,
            "stat_prefix": "differential",
            # The caller is trusted, as one in the same process is.
            "use_remote_address": True,
            "internal_address_config": {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]},
            "rds": {"route_config_name": "differential", "config_source": source},
            "http_filters": filters,
            "access_log": [{"name": "file", "typed_config": log}],
        }
        listeners = [
            {
                "name": f"differential.{number}",
                "address": socket_address(f"{LOOPBACK}:{port}"),
                "filter_chains": [{"filters": [{"name": "manager", "typed_config": {**manager, **extra}}]}],
            }
            for number, (port, extra) in enumerate(zip(self._ports, self.managers, strict=True))
        ]
        clusters = [static_cluster(name, f"{LOOPBACK}:{up.port}") for name, up in self._upstreams.items()]
        for cluster in clusters:
            cluster["metadata"] = {"filter_metadata": CLUSTER_METADATA[cluster["name"]]}
        endpoint = clusters[0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        endpoint["hostname"] = ENDPOINT_HOSTNAME
        return {
            "node": {"id": "differential", "cluster": "conformance"},
            "static_resources": {"listeners": listeners, "clusters": [*clusters, *self._clusters]},
        }


_SOON_S = 0.002
_LOG_SOON = ("--file-flush-interval-msec", "10", "--file-flush-min-size-kb", "1")


def _filter(name: str, kind: str, **fields: Any) -> Json:
    return {"name": name, "typed_config": {"@type": TYPE + kind, **fields}}


def _decision(request: Request, answer: dict[str, Any], logged: dict[str, Any]) -> Decision:
    details = logged["details"] or ""
    route = logged["route"] or ""
    flags = logged["flags"] or ""
    started_us = int(logged["started_us"])
    if details == _FORWARDED:
        seen = json.loads(answer["body"])
        return Decision(
            status=answer["status"],
            route=route,
            cluster=logged["cluster"] or "",
            path=seen["path"],
            authority=seen["authority"],
            request_headers=comparable((name, value) for name, value in seen["headers"]),
            headers=comparable(answer["headers"]),
            started_us=started_us,
        )
    return Decision(
        answer["status"],
        details,
        "" if flags == "-" else flags,
        route,
        headers=comparable(answer["headers"]),
        body=answer["body"],
        started_us=started_us,
    )
