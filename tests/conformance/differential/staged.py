"""One request whose upstream answers in stages, asked of a real Envoy and of meshlib: who ends it, how, and what stays of it."""

import asyncio
import json
import random
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from peers.envoy import Envoy, reserve_port, socket_address, static_cluster
from peers.processes import poll
from peers.staged import Arrival, Stage, StagedUpstream
from peers.upstreams import LOOPBACK

from differential.generate import TYPE, Json
from meshlib.clients.httpx_async import AsyncMeshTransport
from meshlib.clients.httpx_sync import MeshTransport
from meshlib.model.retry import Safety
from meshlib.model.route import RouteConfiguration
from meshlib.model.snapshot import ClusterConfig, Snapshot, TargetConfig
from meshlib.protos import from_dict
from meshlib.testing import mesh_source
from meshlib.view import build_view
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import CDS, LDS

__all__ = ["Case", "End", "ends"]

MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = {"name": "router", "typed_config": {"@type": f"{TYPE}envoy.extensions.filters.http.router.v3.Router"}}
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
PATIENCE_S = 8.0
"""How long a caller waits; whoever has no answer by then has status 0."""
Upload = None | bytes | Sequence[tuple[float, bytes]]


@dataclass(frozen=True)
class Case:
    """One request.

    Attributes:
        route: More of its action than the cluster.
        upload: The body: none, one that is in memory, or pieces with the seconds to wait before each.
        scripts: Stages of the first requests that an upstream gets.
        manager: More of the connection manager.
        cluster: More of the cluster.
        options: More of the cluster's protocol options.
        hosts: Endpoints of the cluster; what an attempt meets does not depend on which it goes to.
        reads_after_s: The caller looks at the body so long after the head.
    """

    route: Json
    scripts: Sequence[Sequence[Stage]] = ()
    method: str = "GET"
    upload: Upload = None
    headers: Mapping[str, str] = field(default_factory=dict)
    manager: Json = field(default_factory=dict)
    cluster: Json = field(default_factory=dict)
    options: Json = field(default_factory=dict)
    http2: bool = False
    reads_after_s: float = 0.0
    hosts: int = 1

    def upstream(self) -> StagedUpstream:
        return StagedUpstream(self.scripts, http2=self.http2, ports=self.hosts)


@dataclass(frozen=True)
class End:
    """
    Attributes:
        status: What the caller has, of a failure what Envoy would answer.
        is_whole: The body came to its end.
        attempts: Requests that the upstream saw.
        flags: As in Envoy's access log.
        counted: Results against the endpoint.
        failed: Requests that count as errors in load reports.
        is_reused: The next request goes over the last one's connection.
        told: What the attempts were told: their number, and whether they follow one that took too long.
        hosts: Endpoints that the attempts went to.
        recorded: Attempts by the record of the call.
    """

    status: int
    is_whole: bool
    attempts: int
    flags: frozenset[str]
    counted: int
    failed: int
    is_reused: bool
    told: tuple[tuple[str, ...], ...] = ()
    hosts: int = 1
    recorded: int = 0


TOLD = ("x-envoy-attempt-count", "x-envoy-is-timeout-retry", "x-envoy-expected-rq-timeout-ms", "content-length")


def cluster(name: str, case: Case, ports: Sequence[int], *, reports: bool) -> Json:
    roomy = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), 1000)
    protocol = {"http2_protocol_options": {}} if case.http2 else {"http_protocol_options": {}}
    fields: Json = {
        "circuit_breakers": {"thresholds": [roomy]},
        "outlier_detection": {
            "consecutive_5xx": 1,
            "enforcing_consecutive_5xx": 0,
            "interval": "600s",
            "consecutive_gateway_failure": 1000,
        },
        "typed_extension_protocol_options": {
            OPTIONS: {"@type": TYPE + OPTIONS, "explicit_http_config": protocol, **case.options}
        },
        **case.cluster,
    }
    if reports:
        fields["lrs_server"] = {"self": {}}
    return static_cluster(name, *(f"{LOOPBACK}:{port}" for port in ports), **fields)


def manager(name: str, case: Case, log: str = "") -> Json:
    action = {"cluster": name, **case.route}
    host = {"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": action}]}
    host |= {"include_request_attempt_count": True, "include_is_timeout_retry_header": True}
    result: Json = {"@type": TYPE + MANAGER, "stat_prefix": "m", "http_filters": [ROUTER], **case.manager}
    result["route_config"] = {"name": "r", "virtual_hosts": [host]}
    if log:
        fields = {
            "case": name,
            "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
            "flags": "%RESPONSE_FLAGS%",
            "path": "%REQ(:PATH)%",
            "details": "%RESPONSE_CODE_DETAILS%",
        }
        kind = "envoy.extensions.access_loggers.file.v3.FileAccessLog"
        written = {"@type": TYPE + kind, "path": log, "log_format": {"json_format": fields}}
        result["access_log"] = [{"name": "file", "typed_config": written}]
    return result


# --- Envoy ---------------------------------------------------------------------------------------------------------


class Caller:
    """One HTTP/1.1 connection to Envoy, on which a body may still go out while the response comes."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._peer = socket.create_connection((host, int(port)))
        self._peer.settimeout(PATIENCE_S)
        self._buffer = b""

    def ask(self, case: Case, path: str) -> tuple[int, bool]:
        """Returns the status, and whether the body was whole."""
        with self._peer:
            sending = threading.Thread(target=self._send, args=(case, path), daemon=True)
            sending.start()
            try:
                status = 100
                try:
                    while status < 200:
                        head = self._until(b"\r\n\r\n").decode("latin-1").lower()
                        status = int(head.split(" ")[1])
                except EOFError:
                    return 0, False
                if case.reads_after_s:
                    time.sleep(case.reads_after_s)
                try:
                    self._read_body(case, status, head)
                except EOFError:
                    return status, False
                return status, True
            finally:
                with suppress(OSError):
                    self._peer.shutdown(socket.SHUT_RDWR)
                sending.join()

    def _send(self, case: Case, path: str) -> None:
        lines = [f"{case.method} {path} HTTP/1.1", "host: x", *(f"{k}: {v}" for k, v in case.headers.items())]
        upload = case.upload
        if isinstance(upload, bytes):
            lines.append(f"content-length: {len(upload)}")
        elif upload is not None:
            lines.append("transfer-encoding: chunked")
        try:
            self._peer.sendall("\r\n".join([*lines, "", ""]).encode())
            if isinstance(upload, bytes):
                self._peer.sendall(upload)
            elif upload is not None:
                for pause_s, piece in upload:
                    time.sleep(pause_s)
                    self._peer.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
                self._peer.sendall(b"0\r\n\r\n")
        except OSError:
            pass  # Envoy has closed the connection after its answer

    def _read_body(self, case: Case, status: int, head: str) -> None:
        if case.method == "HEAD" or status in (204, 304):
            return
        length = re.search(r"\r\ncontent-length: (\d+)", head)
        if length:
            size = int(length[1])
            while len(self._buffer) < size:
                self._more()
            return
        while True:
            size = int(self._until(b"\r\n"), 16)
            while len(self._buffer) < size + 2:
                self._more()
            self._buffer = self._buffer[size + 2 :]
            if not size:
                return

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._buffer:
            self._more()
        found, _, self._buffer = self._buffer.partition(mark)
        return found

    def _more(self) -> None:
        try:
            found = self._peer.recv(65536)
        except OSError:
            found = b""
        if not found:
            raise EOFError
        self._buffer += found


def by_envoy(cases: Mapping[str, Case], folder: Path) -> dict[str, End]:
    """Ask all of one Envoy, beside each other."""
    log = folder / "access.log"
    log.write_text("")
    with ExitStack() as stack:
        upstreams = {name: stack.enter_context(case.upstream()) for name, case in cases.items()}
        held = {name: stack.enter_context(reserve_port()) for name in cases}
        at = {name: f"{LOOPBACK}:{one.getsockname()[1]}" for name, one in held.items()}
        listeners = []
        for name, case in cases.items():
            chain = {"filters": [{"name": "m", "typed_config": manager(name, case, str(log))}]}
            listeners.append({"name": name, "address": socket_address(at[name]), "filter_chains": [chain]})
        clusters = [cluster(name, case, upstreams[name].ports, reports=False) for name, case in cases.items()]
        resources = {"listeners": listeners, "clusters": clusters}
        soon = ("--file-flush-interval-msec", "10", "--file-flush-min-size-kb", "1")
        envoy = stack.enter_context(Envoy("envoy", {"static_resources": resources}, folder, arguments=soon))
        for envoy.listen in at.values():
            envoy.wait_ready()
        with ThreadPoolExecutor(len(cases)) as pool:
            found = {
                name: pool.submit(_ask_envoy, envoy, at[name], name, case, upstreams[name], log)
                for name, case in cases.items()
            }
            return {name: one.result() for name, one in found.items()}


def _ask_envoy(envoy: Envoy, at: str, name: str, case: Case, upstream: StagedUpstream, log: Path) -> End:
    status, is_whole = Caller(at).ask(case, "/first")
    active = f"cluster.{name}.upstream_rq_active"
    poll(lambda: not envoy.stats(f"^{active}$").get(active), f"the end of {name}", every_s=0.05)
    entry = poll(lambda: _logged(log, name), f"{name} in the access log", every_s=0.05)
    detected = f"cluster.{name}.outlier_detection.ejections_detected_consecutive_5xx"
    counted = envoy.stats(f"^{detected}$").get(detected, 0)
    failed = _host_errors(envoy, name)
    seen = list(upstream.seen)
    Caller(at).ask(Case({}), "/again")
    is_reused = is_same_connection(upstream, seen)
    flags = frozenset((entry["flags"] or "-").split(",")) - {"-"}
    return End(
        status,
        is_whole,
        len(seen),
        flags,
        counted,
        failed,
        is_reused,
        *told_of(upstream, len(seen)),
        int(entry["attempts"]),
    )


def _host_errors(envoy: Envoy, name: str) -> int:
    for one in json.loads(envoy.admin("/clusters?format=json"))["cluster_statuses"]:
        if one["name"] == name:
            stats = [stat for host in one["host_statuses"] for stat in host["stats"]]
            return sum(int(stat.get("value", 0)) for stat in stats if stat["name"] == "rq_error")
    raise AssertionError(name)


def _logged(log: Path, name: str) -> Json | None:
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n") and (entry := json.loads(line))["case"] == name and entry["path"] == "/first":
            found: Json = entry
            return found
    return None


def is_same_connection(upstream: StagedUpstream, seen: Sequence[Arrival]) -> bool:
    """Whether the request after some was made over the connection of the last of them."""
    after = upstream.seen[len(seen) :]
    return bool(seen and after) and after[0].connection == seen[-1].connection


def told_of(upstream: StagedUpstream, count: int) -> tuple[tuple[tuple[str, ...], ...], int]:
    told = []
    for arrival in upstream.seen[:count]:
        values = [arrival.headers.get(name, "") for name in TOLD]
        values[2] = "some" if values[2] else ""
        told.append(tuple(values))
    return tuple(sorted(told)), len({arrival.port for arrival in upstream.seen[:count]})


# --- meshlib -------------------------------------------------------------------------------------------------------


def by_meshlib(cases: Mapping[str, Case], *, is_async: bool) -> dict[str, End]:
    """Ask all of one mesh, beside each other."""
    with ExitStack() as stack:
        upstreams = {name: stack.enter_context(case.upstream()) for name, case in cases.items()}
        targets, clusters = {}, {}
        for name, case in cases.items():
            api = {"name": name, "api_listener": {"api_listener": manager(name, case)}}
            listener = _decoded(LDS, "envoy.config.listener.v3.Listener", api)
            assert isinstance(listener.routes, RouteConfiguration)
            targets[name] = TargetConfig(listener, listener.routes)
            made = cluster(name, case, upstreams[name].ports, reports=True)
            config = _decoded(CDS, "envoy.config.cluster.v3.Cluster", made)
            clusters[name] = ClusterConfig(config, config.discovery.assignment)
        snapshot = Snapshot(targets=targets, clusters=clusters)
        mesh = mesh_source(snapshot, clock=time.monotonic, rng=random.Random(1), guard_unsafe=False)
        # What meshlib adds to Envoy's rules is on the list of differences, and is switched off here.
        safety = Safety(budget=None, one_layer=False)
        mesh._view = build_view(snapshot, None, now=time.monotonic(), safety=safety)
        ask = _ask_async if is_async else _ask_sync
        with ThreadPoolExecutor(len(cases)) as pool:
            found = {name: pool.submit(ask, mesh, name, case, upstreams[name]) for name, case in cases.items()}
            return {name: one.result() for name, one in found.items()}


def _decoded(type_url: str, kind: str, resource: Json) -> Any:
    found = decode_resource(type_url, from_dict(kind, resource).SerializeToString())
    assert () == found.errors, found.errors
    return found.value


def _ask_sync(mesh: Any, name: str, case: Case, upstream: StagedUpstream) -> End:
    def pieces() -> Iterator[bytes]:
        assert case.upload is not None and not isinstance(case.upload, bytes)
        for pause_s, piece in case.upload:
            time.sleep(pause_s)
            yield piece

    content = case.upload if case.upload is None or isinstance(case.upload, bytes) else pieces()
    with httpx.Client(transport=MeshTransport(mesh), timeout=PATIENCE_S) as client:
        url, start = f"http://{name}/first", time.monotonic()
        try:
            with client.stream(case.method, url, content=content, headers=dict(case.headers)) as answer:
                status, call = answer.status_code, _Ended(mesh, name, answer.extensions["mesh"].attempts)
                flags = answer.extensions["mesh"].flag
                if case.reads_after_s:
                    time.sleep(case.reads_after_s)
                is_whole = True
                try:
                    answer.read()
                except httpx.TransportError as error:
                    is_whole, flags = False, error.mesh.flag  # type: ignore[attr-defined]
        except httpx.TransportError as error:
            status, flags, is_whole, call = (
                _status_of(error, start),
                error.mesh.flag,
                True,
                _Ended(mesh, name, error.mesh.attempts),
            )  # type: ignore[attr-defined]
        found = call.given_back()
        seen = len(upstream.seen)
        with suppress(httpx.TransportError):
            client.get(f"http://{name}/again")
        return call.end(status, flags, is_whole, upstream, seen, found)


def _ask_async(mesh: Any, name: str, case: Case, upstream: StagedUpstream) -> End:
    return asyncio.run(_ask_awaiting(mesh, name, case, upstream))


async def _ask_awaiting(mesh: Any, name: str, case: Case, upstream: StagedUpstream) -> End:
    async def pieces() -> AsyncIterator[bytes]:
        assert case.upload is not None and not isinstance(case.upload, bytes)
        for pause_s, piece in case.upload:
            await asyncio.sleep(pause_s)
            yield piece

    content = case.upload if case.upload is None or isinstance(case.upload, bytes) else pieces()
    async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh), timeout=PATIENCE_S) as client:
        url, start = f"http://{name}/first", time.monotonic()
        try:
            async with client.stream(case.method, url, content=content, headers=dict(case.headers)) as answer:
                status, call = answer.status_code, _Ended(mesh, name, answer.extensions["mesh"].attempts)
                flags = answer.extensions["mesh"].flag
                if case.reads_after_s:
                    await asyncio.sleep(case.reads_after_s)
                is_whole = True
                try:
                    await answer.aread()
                except httpx.TransportError as error:
                    is_whole, flags = False, error.mesh.flag  # type: ignore[attr-defined]
        except httpx.TransportError as error:
            status, flags, is_whole, call = (
                _status_of(error, start),
                error.mesh.flag,
                True,
                _Ended(mesh, name, error.mesh.attempts),
            )  # type: ignore[attr-defined]
        found = call.given_back()
        seen = len(upstream.seen)
        with suppress(httpx.TransportError):
            await client.get(f"http://{name}/again")
        return call.end(status, flags, is_whole, upstream, seen, found)


def _status_of(error: httpx.TransportError, start: float) -> int:
    if time.monotonic() - start > PATIENCE_S - 0.2:
        return 0
    return 504 if isinstance(error, httpx.TimeoutException) else 503


class _Ended:
    """What a request has left behind."""

    def __init__(self, mesh: Any, name: str, attempts: int) -> None:
        self._cluster = mesh.cluster(name)
        self.attempts = attempts

    def given_back(self) -> tuple[int, int]:
        """Wait until nothing is held; returns results against the endpoint, and errors in load reports."""
        cluster = self._cluster
        poll(lambda: not cluster.breaker.active, "everything given back", every_s=0.05)
        assert 0 == cluster.breaker.retries
        failed = sum(one.failed for one in cluster.load.take(0.0).localities)
        return cluster.outlier.ejections_detected, failed

    def end(
        self, status: int, flags: str, is_whole: bool, upstream: StagedUpstream, count: int, found: tuple[int, int]
    ) -> End:
        seen = upstream.seen[:count]
        is_reused = is_same_connection(upstream, seen)
        split = frozenset(flags.split(",")) - {"-", ""}
        return End(status, is_whole, count, split, *found, is_reused, *told_of(upstream, count), self.attempts)


def ends(cases: Mapping[str, Case], folder: Path) -> dict[str, tuple[End, End, End]]:
    """Returns for each case what Envoy, the blocking and the async client of meshlib come to."""
    hosts = {f"case{number}": case for number, case in enumerate(cases.values())}
    with ThreadPoolExecutor(3) as pool:
        theirs = pool.submit(by_envoy, hosts, folder)
        ours = pool.submit(by_meshlib, hosts, is_async=False)
        awaited = pool.submit(by_meshlib, hosts, is_async=True)
        found = theirs.result(), ours.result(), awaited.result()
    return {name: (found[0][host], found[1][host], found[2][host]) for name, host in zip(cases, hosts, strict=True)}
