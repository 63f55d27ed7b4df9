"""Both sides of combined cases: one Envoy and one meshlib, in front of the same scripted upstreams."""

import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path

import httpx
from peers.envoy import Envoy, reserve_port, socket_address
from peers.processes import poll
from peers.upstreams import LOOPBACK

from differential import subject
from differential.combination_cases import COPY_HOSTS, Ask, Case
from differential.decision import Pairs, comparable
from differential.generate import HEADER_FILTER, TYPE, Json
from differential.hosts import decoded
from differential.scripted import ScriptedUpstream
from differential.sessions import FILTER, SESSION_TYPE
from meshlib.clients.httpx_sync import MeshTransport
from meshlib.events import AttemptFinished, Event
from meshlib.model.cluster import AggregateDiscovery, Cluster, StaticDiscovery
from meshlib.model.endpoint import ClusterLoadAssignment
from meshlib.model.outcome import FailureKind
from meshlib.model.retry import Safety
from meshlib.model.route import RouteConfiguration
from meshlib.model.snapshot import ClusterConfig, Snapshot, TargetConfig
from meshlib.testing import mesh_source
from meshlib.view import build_view
from meshlib.xds.resources import CDS, RDS

__all__ = ["BY_HEADER", "End", "EnvoySide", "MeshlibSide", "Told", "snapshot_of"]

BY_HEADER = "x-case"
"""Its value says which request of which case it is, and on which side."""
_BODY = b"body"
_ROUTER = "envoy.extensions.filters.http.router.v3.Router"
_LOG_SOON = ("--file-flush-interval-msec", "10", "--file-flush-min-size-kb", "1")
_STILL_LOOKS = 3
_SAFETY = Safety(budget=None, one_layer=False)
"""What meshlib adds to Envoy's rules is on the list of differences, and is switched off here."""
_FILTERS = (
    {"name": FILTER, "typed_config": {"@type": SESSION_TYPE}},
    {
        "name": HEADER_FILTER,
        "typed_config": {
            "@type": TYPE + "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
            "mutations": {},
        },
    },
)


@dataclass(frozen=True, slots=True)
class Told:
    """What an upstream got."""

    host: str
    method: str
    path: str
    authority: str
    headers: Pairs


@dataclass(frozen=True, slots=True)
class End:
    """What came of one request.

    Attributes:
        status: Of a failure, what Envoy would answer.
        is_answered: By a response; else an exception was raised, which has neither headers nor a body.
        hosts: Address of each attempt that no limit kept back, those of the legs before internal redirects among them.
        told: To upstreams, attempt by attempt.
        copies: What upstreams got of copies.
        is_kept_back: The last attempt was not made, as a limit on requests was reached. Envoy alone says so.
    """

    status: int
    is_answered: bool
    flags: frozenset[str]
    hosts: tuple[str, ...]
    headers: Pairs
    body: str
    told: tuple[Told, ...] = ()
    copies: tuple[Told, ...] = ()
    is_kept_back: bool = False


def _no_cookies() -> CookieJar:
    """Return a jar that keeps nothing: each request brings its own."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=()))


def _routes(cases: Sequence[Case]) -> Json:
    return {"name": "combinations", "virtual_hosts": [case.host for case in cases]}


def met_of(up: ScriptedUpstream, mark: str) -> tuple[tuple[Told, ...], tuple[Told, ...]]:
    """Return what upstreams got of a request, and of its copies."""
    found: tuple[list[Told], list[Told]] = ([], [])
    for one in up.take(mark):
        authority = next((value for name, value in one.headers if name == "host"), "")
        told = Told(one.host, one.method, one.path, authority, comparable(one.headers))
        found[one.host in COPY_HOSTS].append(told)
    return tuple(found[0]), tuple(sorted(found[1], key=str))


class EnvoySide:
    """A real Envoy for some cases."""

    def __init__(self, cases: Sequence[Case], up: ScriptedUpstream, folder: Path) -> None:
        self._logs = folder / "access.log", folder / "attempts.log"
        for log in self._logs:
            log.write_text("")
        self._held = reserve_port()
        port = self._held.getsockname()[1]
        try:
            self._envoy = Envoy("envoy", self._bootstrap(cases, port), folder, arguments=_LOG_SOON)
        except BaseException:
            self._held.close()
            raise
        self._envoy.listen = f"{LOOPBACK}:{port}"
        limits = httpx.Limits(max_connections=200)
        self._http = httpx.Client(trust_env=False, timeout=20, limits=limits, cookies=_no_cookies())
        self._envoy.wait_ready()

    def close(self) -> None:
        self._http.close()
        self._envoy.stop()
        self._held.close()

    def ask(self, case: Case, ask: Ask, mark: str) -> tuple[int, Pairs, str]:
        """Send a request; returns status, headers and body of the answer."""
        headers = [("host", case.domain), *ask.headers, (BY_HEADER, mark)]
        body = _BODY if ask.method == "POST" else None
        answer = self._http.request(ask.method, f"http://{self._envoy.listen}{ask.path}", headers=headers, content=body)
        return answer.status_code, _answered(answer), answer.text

    def ends(self, answers: dict[str, tuple[int, Pairs, str]]) -> dict[str, End]:
        """Return what came of requests, by their marks."""
        logged: dict[str, Json] = {}

        def is_complete() -> bool:
            for entry in self._entries(0):
                if entry["details"] != "internal_redirect":
                    logged[entry["case"]] = entry
            return answers.keys() <= logged.keys()

        poll(is_complete, "lines of the access log", every_s=0.04)
        self._await_attempts()
        hosts: dict[str, list[str]] = {}
        for entry in self._entries(1):
            host = entry["host"] or ""
            if host and host.partition(":")[0] not in COPY_HOSTS:
                hosts.setdefault(entry["case"], []).append(host)
        found = {}
        for mark, (status, headers, body) in answers.items():
            flags = frozenset((logged[mark]["flags"] or "-").split(",")) - {"-"}
            tried = hosts.get(mark, [])
            is_kept_back = "{overflow}" in (logged[mark]["details"] or "")
            if is_kept_back and logged[mark]["host"]:
                tried = tried[:-1]
            found[mark] = End(status, True, flags, tuple(tried), headers, body, is_kept_back=is_kept_back)
        return found

    def _await_attempts(self) -> None:
        """Wait until the log of attempts, a file with a time of its own to be written, grows no more."""
        size, looks = -1, 0
        while looks < _STILL_LOOKS:
            time.sleep(0.04)
            before, size = size, self._logs[1].stat().st_size
            looks = looks + 1 if size == before else 0

    def _entries(self, number: int) -> list[Json]:
        lines = self._logs[number].read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _bootstrap(self, cases: Sequence[Case], port: int) -> Json:
        logs = [
            {
                "name": "file",
                "typed_config": {
                    "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    "path": str(log),
                    "log_format": {
                        "json_format": {
                            "case": f"%REQ({BY_HEADER})%",
                            "flags": "%RESPONSE_FLAGS%",
                            "details": "%RESPONSE_CODE_DETAILS%",
                            "host": "%UPSTREAM_HOST%",
                        }
                    },
                },
            }
            for log in self._logs
        ]
        router = {"name": "router", "typed_config": {"@type": TYPE + _ROUTER, "upstream_log": [logs[1]]}}
        manager = {
            "@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "combinations",
            # The caller is trusted, as one in the same process is.
            "use_remote_address": True,
            "internal_address_config": {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]},
            "route_config": _routes(cases) | {"validate_clusters": False},
            "http_filters": [*_FILTERS, router],
            "access_log": [logs[0]],
        }
        listener = {
            "name": "combinations",
            "address": socket_address(f"{LOOPBACK}:{port}"),
            "filter_chains": [{"filters": [{"name": "manager", "typed_config": manager}]}],
        }
        clusters = [cluster for case in cases for cluster in case.clusters]
        return {
            "node": {"id": "combinations", "cluster": "conformance"},
            "static_resources": {"listeners": [listener], "clusters": clusters},
        }


def snapshot_of(cases: Sequence[Case]) -> Snapshot:
    """Return what meshlib makes of the resources of some cases; each is a target of its own."""
    targets = {}
    listener = subject.listener({"http_filters": [*_FILTERS, subject.ROUTER]})
    for case in cases:
        kind = "envoy.config.route.v3.RouteConfiguration"
        routes: RouteConfiguration = decoded(RDS, kind, _routes([case]), RouteConfiguration)
        targets[case.domain] = TargetConfig(listener, routes)
    configs = {}
    for one in (cluster for case in cases for cluster in case.clusters):
        cluster: Cluster = decoded(CDS, "envoy.config.cluster.v3.Cluster", one, Cluster)
        if isinstance(cluster.discovery, AggregateDiscovery):
            nothing = ClusterLoadAssignment(cluster.name)
            configs[cluster.name] = ClusterConfig(cluster, nothing, leaves=cluster.discovery.clusters)
        else:
            assert isinstance(cluster.discovery, StaticDiscovery)
            configs[cluster.name] = ClusterConfig(cluster, cluster.discovery.assignment)
    return Snapshot(targets, clusters=configs, number=1)


class MeshlibSide:
    """meshlib's blocking transport for some cases."""

    def __init__(self, cases: Sequence[Case]) -> None:
        snapshot = snapshot_of(cases)
        self._mesh = mesh_source(snapshot, clock=time.monotonic, rng=random.Random(1), guard_unsafe=False)
        self._mesh._view = build_view(
            snapshot, None, now=time.monotonic(), wall_offset_s=time.time() - time.monotonic(), safety=_SAFETY
        )
        # Events say which call they are of by the thread that makes it: copies have none of their own.
        self._own = threading.local()
        self._mesh.emit = self._note  # type: ignore[method-assign]
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        transport = MeshTransport(self._mesh, limits=limits)
        self._http = httpx.Client(transport=transport, timeout=20, cookies=_no_cookies())

    def _note(self, event: Event) -> None:
        if isinstance(event, AttemptFinished) and event.failure != FailureKind.OVERFLOW.value:
            self._own.hosts.append(event.endpoint.address)

    def close(self) -> None:
        self._http.close()

    def ask(self, case: Case, ask: Ask, mark: str) -> End:
        """Send a request."""
        hosts: list[str] = []
        self._own.hosts = hosts
        headers = [*ask.headers, (BY_HEADER, mark)]
        body = _BODY if ask.method == "POST" else None
        try:
            answer = self._http.request(ask.method, f"http://{case.domain}{ask.path}", headers=headers, content=body)
        except httpx.TransportError as error:
            status = 504 if isinstance(error, httpx.TimeoutException) else 503
            flag = error.mesh.flag  # type: ignore[attr-defined]
            return End(status, False, _flags(flag), tuple(hosts), (), "")
        flags = _flags(answer.extensions["mesh"].flag)
        return End(answer.status_code, True, flags, tuple(hosts), _answered(answer), answer.text)


def _flags(text: str) -> frozenset[str]:
    return frozenset(text.split(",")) - {"-", ""}


def _answered(answer: httpx.Response) -> Pairs:
    return comparable((name.lower(), value) for name, value in answer.headers.multi_items())
