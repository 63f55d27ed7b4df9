"""Random retry policies, timeouts and hedging over upstreams that follow a script: Envoy and meshlib make as many
attempts, tell the upstream the same of each, and end alike.

python -m differential.retries --cases 1000 --seed 7

Times are far enough apart for a busy machine: an attempt may take 0.3 s, a slow answer comes after 0.75 s. What differs
is tried again alone before it counts.
"""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from peers.envoy import Envoy, reserve_port, socket_address, static_cluster
from peers.processes import poll
from peers.upstreams import LOOPBACK, Step

from differential.command import arguments_of, compare
from differential.generate import TYPE, Json
from differential.scripted import Met, ScriptedUpstream
from meshlib.clients.httpx_sync import MeshTransport
from meshlib.model.cluster import CircuitBreakers, Cluster, EdsDiscovery
from meshlib.model.listener import ClientListener
from meshlib.model.retry import Safety
from meshlib.model.route import RouteConfiguration
from meshlib.model.snapshot import Snapshot, TargetConfig
from meshlib.protos import from_dict
from meshlib.testing import mesh_source
from meshlib.testing.builders import cluster
from meshlib.view import build_view
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import RDS

WORDS = (
    "5xx", "gateway-error", "connect-failure", "refused-stream", "retriable-4xx", "retriable-status-codes",
    "retriable-headers", "reset", "reset-before-request", "envoy-ratelimited", "unavailable", "made-up",
)  # fmt: skip
PER_TRY_S, SLOW_S = 0.3, 0.75
BATCH = 60
MAX_SHOWN = 3
HOSTS = {
    "plain": {},
    "told": {"include_request_attempt_count": True, "include_is_timeout_retry_header": True},
    "counted": {"include_attempt_count_in_response": True},
}
COMPARED = ("x-envoy-attempt-count", "x-envoy-is-timeout-retry", "x-envoy-original-url", "x-copied", "grpc-timeout")
LOCATIONS = (
    "http://{here}",
    "http://{here}",
    "http://{here}#part",
    "https://{here}",
    "http://nowhere/",
    "/relative",
    "",
)


@dataclass(frozen=True, slots=True)
class Case:
    """One request under one route, and what its upstream does."""

    number: int
    host: str
    action: Json
    headers: tuple[tuple[str, str], ...]
    script: tuple[Step, ...]

    @property
    def path(self) -> str:
        return f"/case/{self.number}/"

    def status(self, status: int, flags: frozenset[str]) -> int:
        """Return what is compared of a status: a failure of a request with gRPC's content type is a 200 in Envoy."""
        is_grpc = any(name == "content-type" for name, _ in self.headers)
        return 0 if is_grpc and flags - {"URX"} else status

    def to_json(self) -> Json:
        steps = ["reset" if step.is_reset else [step.status, step.delay_s, dict(step.headers)] for step in self.script]
        return {"host": self.host, "route": self.action, "headers": list(self.headers), "script": steps}


@dataclass(frozen=True, slots=True)
class End:
    """
    Attributes:
        status: Of a failure, what Envoy would answer.
        told: What the upstream heard of each attempt.
        count: `x-envoy-attempt-count` of the response; of a failure there is none here.
    """

    status: int
    attempts: int
    flags: frozenset[str]
    told: tuple[tuple[str, ...], ...]
    count: str | None = None


@dataclass(slots=True)
class Report:
    seed: int
    cases: int = 0
    disagreeing: int = 0
    again: int = 0
    met: Counter[str] = field(default_factory=Counter)
    disagreements: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        met = ", ".join(f"{name} {count}" for name, count in self.met.most_common())
        return (
            f"seed {self.seed}: {self.cases} cases, {self.disagreeing} disagreements, {self.again} tried again; {met}"
        )


class Cases:
    """Makes cases out of a seed."""

    def __init__(self, seed: str, *, has_grpc: bool) -> None:
        """Make it.

        Args:
            has_grpc: Requests of gRPC's content type are among them, and limits of the whole exchange.
        """
        self._random = random.Random(seed)
        self._has_grpc = has_grpc

    def _maybe(self, chance: float) -> bool:
        return self._random.random() < chance

    def _pick(self, *items: Any) -> Any:
        return self._random.choice(items)

    def _some(self, **fields: Any) -> Json:
        return {name: value for name, value in fields.items() if self._maybe(0.6)}

    def make(self, number: int) -> Case:
        action: Json = {"cluster": self._pick("up", "up", "up", "up", "up", "dead", "tight")}
        timeouts = [None, "5s", "0s", "0.45s"]
        if (timeout := self._pick(*timeouts)) is not None:
            action["timeout"] = timeout
        if self._maybe(0.9):
            action["retry_policy"] = self.policy()
        if self._maybe(0.35):
            action["hedge_policy"] = {"hedge_on_per_try_timeout": self._maybe(0.8)}
        if self._has_grpc and self._maybe(0.15):
            # Far from every other time: what is compared is what attempts are told.
            action["max_stream_duration"] = self._some(
                max_stream_duration="50s", grpc_timeout_header_max="40s", grpc_timeout_header_offset="1s"
            )
        if is_redirected := self._maybe(0.25):
            action["internal_redirect_policy"] = self.redirects()
            # Envoy takes it off twice then: see DIFFERENCES.md.
            action.get("max_stream_duration", {}).pop("grpc_timeout_header_offset", None)
        script = tuple(self.step(is_redirected) for _ in range(self._pick(0, 1, 2, 3, 4, 5)))
        return Case(number, self._pick(*HOSTS), action, tuple(self.headers()), script)

    def policy(self) -> Json:
        """Return a retry policy."""
        words = self._random.sample(WORDS, self._random.randrange(4))
        if self._maybe(0.8) and "5xx" not in words:
            words.append(self._pick("5xx", "5xx", "gateway-error", "reset", "retriable-4xx"))
        result: Json = {
            "retry_on": self._pick(",", ", ", ",,").join(words),
            "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.001s"},
        }
        if self._maybe(0.7):
            result["num_retries"] = self._pick(0, 1, 2, 3, 4)
        if self._maybe(0.5):
            result["per_try_timeout"] = f"{PER_TRY_S}s"
        elif self._maybe(0.2):
            result["per_try_idle_timeout"] = f"{PER_TRY_S}s"
        if self._maybe(0.4):
            result["retriable_status_codes"] = self._random.sample((404, 409, 429, 503), 2)
        if self._maybe(0.3):
            result["retriable_headers"] = [self._pick({"name": "x-again"}, {"name": ":status", "exact_match": "404"})]
        if self._maybe(0.15):
            result["retriable_request_headers"] = [{"name": "x-may"}]
        return result

    def headers(self) -> Iterator[tuple[str, str]]:
        """Make the headers by which a request may ask for retries and times."""
        chances: dict[str, tuple[float, tuple[str, ...]]] = {
            "x-may": (0.4, ("1",)),
            "x-envoy-retry-on": (0.25, ("5xx", "retriable-4xx, reset", "retriable-status-codes", "made-up", "")),
            "x-envoy-retry-grpc-on": (0.1, ("unavailable", "cancelled")),
            "x-envoy-max-retries": (0.2, ("0", "2", "x", "-1")),
            "x-envoy-retriable-status-codes": (0.15, ("404", "404, 429", "x,503")),
            "x-envoy-retriable-header-names": (0.1, ("x-again", "x-other, X-Again")),
            "x-envoy-upstream-rq-timeout-ms": (0.1, ("450", "0", "x", "5000")),
            "x-envoy-upstream-rq-per-try-timeout-ms": (0.1, ("300", "0", "x")),
            "x-envoy-upstream-rq-timeout-alt-response": (0.1, ("1", "")),
            "x-envoy-hedge-on-per-try-timeout": (0.15, ("true", "false", "True", "x")),
        }
        if self._has_grpc:
            chances["content-type"] = (0.2, ("application/grpc", "application/grpc+proto"))
            chances["grpc-timeout"] = (0.2, ("60S", "45000m", "30S", "x"))
        for name, (chance, values) in chances.items():
            if self._maybe(chance):
                yield name, self._pick(*values)

    def redirects(self) -> Json:
        """Return a policy of internal redirects."""
        result: Json = {}
        if self._maybe(0.7):
            result["max_internal_redirects"] = self._pick(0, 1, 2, 3)
        if self._maybe(0.7):
            result["redirect_response_codes"] = self._random.sample((301, 302, 303, 307, 308), 3)
        if self._maybe(0.3):
            result["allow_cross_scheme_redirect"] = True
        if self._maybe(0.4):
            result["response_headers_to_copy"] = ["x-copied"]
        if self._maybe(0.3):
            kind = self._pick("previous_routes.v3.PreviousRoutesConfig", "safe_cross_scheme.v3.SafeCrossSchemeConfig")
            config = {"@type": f"{TYPE}envoy.extensions.internal_redirect.{kind}"}
            result["predicates"] = [{"name": kind, "typed_config": config}]
        return result

    def step(self, is_redirected: bool = False, slow: float = 0.25, locations: Sequence[str] = LOCATIONS) -> Step:
        """Return what an upstream does with a request.

        Args:
            is_redirected: Redirects are among the answers.
            slow: How often an answer comes late.
            locations: Where redirects lead.
        """
        if self._maybe(0.15):
            return Step(is_reset=True)
        headers = []
        if is_redirected and self._maybe(0.6):
            if self._maybe(0.5):
                headers.append(("x-copied", self._pick("1", "2")))
            return Step(self._pick(301, 302, 302, 303, 307), headers=(*headers, ("location", self._pick(*locations))))
        for name, value in (("x-again", "1"), ("x-envoy-ratelimited", "true"), ("grpc-status", "14")):
            if self._maybe(0.12):
                headers.append((name, value))
        delay_s = SLOW_S if self._maybe(slow) else 0.0
        return Step(self._pick(200, 500, 502, 503, 503, 503, 504, 409, 404, 429), delay_s, headers=tuple(headers))


def configuration(cases: list[Case]) -> Json:
    """Return the routes of some cases: one route each, in every virtual host."""
    hosts = []
    for name, fields in HOSTS.items():
        routes = [
            {"name": str(case.number), "match": {"prefix": case.path}, "route": case.action}
            for case in cases
            if case.host == name
        ]
        hosts.append({"name": name, "domains": [name], "routes": routes, **fields})
    return {"name": "differential", "virtual_hosts": hosts}


class EnvoySide:
    """A real Envoy for some cases."""

    def __init__(self, cases: list[Case], up: ScriptedUpstream, folder: Path) -> None:
        self._up = up
        self._log = folder / "access.log"
        self._log.write_text("")
        self._held = reserve_port()
        port = self._held.getsockname()[1]
        self._envoy = Envoy("envoy", self._bootstrap(cases, port), folder, arguments=_LOG_SOON)
        self._envoy.listen = f"{LOOPBACK}:{port}"
        self._envoy.wait_ready()
        self._http = httpx.Client(trust_env=False, timeout=20, limits=httpx.Limits(max_connections=200))

    def close(self) -> None:
        self._http.close()
        self._envoy.stop()
        self._held.close()

    def run(self, case: Case, mark: str) -> End:
        path = case.path + mark
        self._up.expect(path, case.script)
        headers = [("host", case.host), *case.headers, ("x-case", mark)]
        answer = self._http.get(f"http://{self._envoy.listen}{path}", headers=headers)
        entry = poll(lambda: self._logged(mark), "a line of the access log", every_s=0.04)
        flags = frozenset((entry["flags"] or "-").split(",")) - {"-"}
        told = _told(self._up.take(path), mark, leaves_old=True)
        status = case.status(answer.status_code, flags)
        return End(status, int(entry["attempts"]), flags, told, answer.headers.get(COMPARED[0]))

    def _logged(self, mark: str) -> Json | None:
        for line in self._log.read_text().splitlines(keepends=True):
            if not line.endswith("\n"):
                break
            entry = json.loads(line)
            if entry["case"] == mark and entry["details"] != "internal_redirect":
                found: Json = entry
                return found
        return None

    def _bootstrap(self, cases: list[Case], port: int) -> Json:
        fields = {
            "case": "%REQ(X-CASE)%",
            "flags": "%RESPONSE_FLAGS%",
            "details": "%RESPONSE_CODE_DETAILS%",
            "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        }
        log = {
            "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(self._log),
            "log_format": {"json_format": fields},
        }
        manager = {
            "@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "differential",
            # The caller is trusted, as one in the same process is.
            "use_remote_address": True,
            "internal_address_config": {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]},
            "route_config": configuration(cases),
            "http_filters": [
                {
                    "name": "router",
                    "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"},
                }
            ],
            "access_log": [{"name": "file", "typed_config": log}],
        }
        filters = [{"name": "manager", "typed_config": manager}]
        listener = {
            "name": "differential",
            "address": socket_address(f"{LOOPBACK}:{port}"),
            "filter_chains": [{"filters": filters}],
        }
        limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests", "max_retries"), 10000)
        roomy = {"thresholds": [limits]}
        clusters = [
            static_cluster("up", self._up.address, circuit_breakers=roomy),
            static_cluster("dead", _DEAD, circuit_breakers=roomy),
            static_cluster("tight", self._up.address, circuit_breakers={"thresholds": [{**limits, "max_retries": 0}]}),
        ]
        for one in clusters:
            # As meshlib's transport below: an answer that never comes must not meet a connection from before.
            one["typed_extension_protocol_options"] = {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "common_http_protocol_options": {"max_requests_per_connection": 1},
                    "explicit_http_config": {"http_protocol_options": {}},
                }
            }
        return {
            "node": {"id": "differential", "cluster": "conformance"},
            "static_resources": {"listeners": [listener], "clusters": clusters},
        }


_LOG_SOON = ("--file-flush-interval-msec", "10", "--file-flush-min-size-kb", "1")
_DEAD = f"{LOOPBACK}:1"


class MeshlibSide:
    """meshlib's blocking transport for some cases."""

    def __init__(self, cases: list[Case], up: ScriptedUpstream) -> None:
        self._up = up
        message = from_dict("envoy.config.route.v3.RouteConfiguration", configuration(cases))
        decoded = decode_resource(RDS, message.SerializeToString())
        assert not decoded.errors, decoded.errors
        routes = decoded.value
        assert isinstance(routes, RouteConfiguration)
        roomy = CircuitBreakers(10_000, 10_000, 10_000, 10_000)
        tight = CircuitBreakers(10_000, 10_000, 10_000, 0)
        places = {"up": (up.address, roomy), "dead": (_DEAD, roomy), "tight": (up.address, tight)}
        snapshot = Snapshot(
            targets={name: TargetConfig(ClientListener(name, routes), routes) for name in HOSTS},
            clusters={
                name: cluster(name, address, template=Cluster(name, EdsDiscovery(name), circuit_breakers=limits))
                for name, (address, limits) in places.items()
            },
            number=1,
        )
        # What meshlib adds to Envoy's rules is on the list of differences, and is switched off here.
        self._mesh = mesh_source(snapshot, clock=time.monotonic, rng=random.Random(1), guard_unsafe=False)
        safety = Safety(budget=None, one_layer=False)
        self._mesh._view = build_view(snapshot, None, now=time.monotonic(), safety=safety)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._http = httpx.Client(transport=MeshTransport(self._mesh, limits=limits), timeout=20)

    def close(self) -> None:
        self._http.close()

    def run(self, case: Case, mark: str) -> End:
        path = case.path + mark
        self._up.expect(path, case.script)
        count = None
        try:
            answer = self._http.get(f"http://{case.host}{path}", headers=list(case.headers))
        except httpx.TransportError as error:
            record = error.mesh  # type: ignore[attr-defined]
            status = 504 if isinstance(error, httpx.TimeoutException) else 503
            attempts, flag = record.attempts, record.flag
        else:
            status, count = answer.status_code, answer.headers.get(COMPARED[0])
            record = answer.extensions["mesh"]
            attempts, flag = record.attempts, record.flag
        flags = frozenset(flag.split(",")) - {"-", ""}
        return End(case.status(status, flags), attempts, flags, _told(self._up.take(path), mark), count)


def _told(seen: list[Met], mark: str, *, leaves_old: bool = False) -> tuple[tuple[str, ...], ...]:
    """Return what the upstream heard of each attempt; hedges may come in any order.

    Args:
        leaves_old: The first attempt after a redirect may carry what the leg before it was told (Envoy's alone).
    """
    found = []
    for met in seen:
        headers = dict(met.headers)
        told = [headers.get(name, "").replace(mark, "*") for name in COMPARED]
        if leaves_old and told[0] == "1" and told[2]:
            told[1] = ""
        found.append(tuple(told))
    return tuple(sorted(found, key=str))


def is_same(envoy: End, meshlib: End) -> bool:
    """Whether two ends are one; a failure is an exception here, which has no headers."""
    if (envoy.status, envoy.attempts, envoy.flags, envoy.told) != (
        meshlib.status,
        meshlib.attempts,
        meshlib.flags,
        meshlib.told,
    ):
        return False
    return envoy.count == meshlib.count or meshlib.count is None


def run(seed: int, count: int, folder: Path, *, has_grpc: bool = True) -> Report:
    """Compare random cases.

    Args:
        has_grpc: As for `Cases`.
    """
    report = Report(seed)
    for start in range(0, count, BATCH):
        makers = Cases(f"{seed}/{start}", has_grpc=has_grpc)
        cases = [makers.make(number) for number in range(start, min(start + BATCH, count))]
        place = folder / str(start)
        place.mkdir()
        with ScriptedUpstream() as up:
            envoy, meshlib = EnvoySide(cases, up, place), MeshlibSide(cases, up)
            try:
                _run_batch(report, cases, envoy, meshlib)
            finally:
                meshlib.close()
                envoy.close()
    return report


def _run_batch(report: Report, cases: list[Case], envoy: EnvoySide, meshlib: MeshlibSide) -> None:
    def both(case: Case, prefix: str) -> tuple[End, End]:
        return envoy.run(case, f"{prefix}e{case.number}"), meshlib.run(case, f"{prefix}m{case.number}")

    with ThreadPoolExecutor(16) as pool:
        ends = list(pool.map(lambda case: both(case, ""), cases))
    for case, (one, other) in zip(cases, ends, strict=True):
        report.cases += 1
        report.met[f"{one.status}"] += 1
        report.met[f"{one.attempts} attempts"] += 1
        for flag in one.flags:
            report.met[flag] += 1
        for attempt in range(2):
            if is_same(one, other):
                break
            report.again += 1
            one, other = both(case, f"again{attempt}")
        if not is_same(one, other):
            report.disagreeing += 1
            if len(report.disagreements) < MAX_SHOWN:
                told = {"case": case.to_json(), "envoy": str(one), "meshlib": str(other)}
                report.disagreements.append(json.dumps(told))


def main() -> int:
    parser = arguments_of("differential.retries", "meshlib's retries with Envoy's")
    parser.add_argument("--cases", type=int, default=300)
    return compare(parser, lambda given, seed, folder: run(seed, given.cases, folder))


if __name__ == "__main__":
    sys.exit(main())
