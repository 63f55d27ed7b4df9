"""Active health checks: what a scripted service makes of its endpoint, by Envoy and by meshlib.

    python -m differential.checks --clusters 12 --steps 25 --seed 7

Each side checks a server of its own, and both servers answer by the same script: good and bad statuses, degraded and
immediate failure headers, wrong bodies, resets, and answers that come too late. What is compared is the events in
their order: when an endpoint is taken out and brought back, and each failure and success in between.
"""

import json
import random
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.envoy import Envoy, socket_address
from peers.processes import poll
from peers.upstreams import LOOPBACK, HttpUpstream, Step

from differential.command import arguments_of, compare
from differential.generate import TYPE, Json
from meshlib.events import Event, HealthChecked
from meshlib.model.cluster import Cluster, StaticDiscovery
from meshlib.model.snapshot import ClusterConfig, Snapshot
from meshlib.protos import from_dict
from meshlib.runtime.health_checks import HealthCheckRunner
from meshlib.view import View, build_view
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import CDS

Told = tuple[str, str, bool]
"""Event, type of failure, and whether it was the first check's."""

TIMEOUT_S = 2.0
_SINK = f"{TYPE}envoy.extensions.health_check.event_sinks.file.v3.HealthCheckEventFileSink"
_KINDS = {
    "eject_unhealthy_event": "eject_unhealthy",
    "add_healthy_event": "add_healthy",
    "health_check_failure_event": "health_check_failure",
    "successful_health_check_event": "successful_health_check",
    "degraded_healthy_host": "degraded_healthy_host",
    "no_longer_degraded_host": "no_longer_degraded_host",
}


@dataclass(frozen=True, slots=True)
class CheckCase:
    name: str
    check: Json
    script: tuple[Step, ...]


@dataclass(slots=True)
class CheckReport:
    """
    Attributes:
        ejections: Times that an endpoint was taken out after it had been in.
    """

    seed: int
    events: int = 0
    ejections: int = 0
    degraded: int = 0
    timeouts: int = 0
    disagreements: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.events} events, {len(self.disagreements)} disagreements; {self.ejections} "
            f"ejections, {self.degraded} degraded, {self.timeouts} timeouts"
        )


class CheckGenerator:
    """Makes checks with their scripts out of a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def _maybe(self, chance: float) -> bool:
        return self._random.random() < chance

    def case(self, number: int, steps: int) -> CheckCase:
        http: Json = {"path": "/healthz"}
        if self._maybe(0.4):
            http["expected_statuses"] = [{"start": 200, "end": 201}, {"start": 206, "end": 400}]
        if self._maybe(0.6):
            http["retriable_statuses"] = [{"start": 500, "end": 503}]
        if self._maybe(0.3):
            http["service_name_matcher"] = {"prefix": "lo"}
        check = {
            "timeout": f"{TIMEOUT_S}s",
            "interval": "0.02s",
            "no_traffic_interval": "0.02s",
            "unhealthy_threshold": self._random.choice((1, 2, 3)),
            "healthy_threshold": self._random.choice((1, 2, 3)),
            "reuse_connection": False,
            "http_health_check": http,
        }
        for name in ("always_log_health_check_failures", "always_log_health_check_success"):
            if self._maybe(0.7):
                check[name] = True
        return CheckCase(f"c{number}", check, tuple(self._step() for _ in range(steps)))

    def _step(self) -> Step:
        name = ("x-envoy-upstream-healthchecked-cluster", self._random.choice(("locations", "local", "other")))
        headers = [name] if self._maybe(0.7) else []
        if self._maybe(0.15):
            headers.append(("x-envoy-degraded", ""))
        if self._maybe(0.15):
            headers.append(("x-envoy-immediate-health-check-fail", "true"))
        if self._maybe(0.04):
            return Step(delay_s=TIMEOUT_S * 1.6)
        if self._maybe(0.12):
            return Step(is_reset=True)
        return Step(self._random.choice((200, 200, 200, 200, 206, 301, 404, 500, 502, 503)), headers=tuple(headers))


def _cluster(case: CheckCase, address: str, log: Path | None) -> Json:
    check = dict(case.check)
    if log is not None:
        sink = {"@type": _SINK, "event_log_path": str(log)}
        check["event_logger"] = [{"name": "file", "typed_config": sink}]
    endpoint = {"endpoint": {"address": socket_address(address)}}
    return {
        "name": case.name,
        "type": "STATIC",
        "load_assignment": {"cluster_name": case.name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "health_checks": [check],
    }


def _serve(stack: ExitStack, cases: Sequence[CheckCase]) -> list[HttpUpstream]:
    upstreams = []
    for case in cases:
        upstream = stack.enter_context(HttpUpstream(case.name))
        # Whoever comes after the script gets this, for ever.
        upstream.usual = Step(headers=(("x-envoy-upstream-healthchecked-cluster", "local"),))
        upstream.script.extend(case.script)
        upstreams.append(upstream)
    return upstreams


def _until_over(cases: Sequence[CheckCase], upstreams: Sequence[HttpUpstream]) -> None:
    """Wait until every script is over, and the thresholds after it too."""
    longest = max(len(case.script) for case in cases) + 8
    poll(lambda: all(len(upstream.seen) >= longest for upstream in upstreams), "the scripts to end", timeout_s=150)
    time.sleep(0.2)


def ask_envoy(cases: Sequence[CheckCase], folder: Path) -> list[list[Told]]:
    """Return what a real Envoy tells of the checks."""
    with ExitStack() as stack:
        upstreams = _serve(stack, cases)
        logs = [folder / f"{case.name}.log" for case in cases]
        pairs = zip(cases, upstreams, logs, strict=True)
        clusters = [_cluster(case, f"{LOOPBACK}:{upstream.port}", log) for case, upstream, log in pairs]
        bootstrap = {"node": {"id": "checks", "cluster": "c"}, "static_resources": {"clusters": clusters}}
        envoy = Envoy("checks", bootstrap, folder, arguments=("--file-flush-interval-msec", "20"))
        try:
            _until_over(cases, upstreams)
            time.sleep(0.3)
        finally:
            envoy.stop()
        return [[_told(json.loads(line)) for line in log.read_text().splitlines()] for log in logs]


def _told(line: Json) -> Told:
    kind = next(name for name in _KINDS if name in line)
    # A success after an ejection tells no type, the default one is not written.
    failure = line[kind].get("failure_type", "ACTIVE") if kind in _FAILING else ""
    return _KINDS[kind], failure, bool(line[kind].get("first_check", False))


_FAILING = ("eject_unhealthy_event", "health_check_failure_event")


def ask_meshlib(cases: Sequence[CheckCase]) -> list[list[Told]]:
    """Return what meshlib tells of the checks."""
    told: dict[str, list[Told]] = {case.name: [] for case in cases}
    lock = threading.Lock()

    def hear(event: Event) -> None:
        if isinstance(event, HealthChecked):
            # Envoy says of these two alone whether they are the first check's.
            is_first = event.is_first and event.change in ("add_healthy", "health_check_failure")
            with lock:
                told[event.cluster].append((event.change, event.failure, is_first))

    with ExitStack() as stack:
        upstreams = _serve(stack, cases)
        configs = {}
        for case, upstream in zip(cases, upstreams, strict=True):
            packed = from_dict("envoy.config.cluster.v3.Cluster", _cluster(case, f"{LOOPBACK}:{upstream.port}", None))
            decoded = decode_resource(CDS, packed.SerializeToString())
            assert isinstance(decoded.value, Cluster), decoded.errors
            assert isinstance(decoded.value.discovery, StaticDiscovery)
            configs[case.name] = ClusterConfig(decoded.value, decoded.value.discovery.assignment)
        view: View = build_view(Snapshot(clusters=configs), None, now=0.0)
        runner = HealthCheckRunner(
            lambda: view, clock=time.monotonic, rng=random.Random(0), emit=hear, changed=lambda: None
        )
        runner.step()
        try:
            _until_over(cases, upstreams)
        finally:
            runner.close()
    with lock:
        return [list(told[case.name]) for case in cases]


def run(seed: int, clusters: int, steps: int, folder: Path) -> CheckReport:
    """Compare the two."""
    generator, report = CheckGenerator(seed), CheckReport(seed)
    cases = [generator.case(number, steps) for number in range(clusters)]
    for case, envoy, meshlib in zip(cases, ask_envoy(cases, folder), ask_meshlib(cases), strict=True):
        # After the script each goes on for as long as it is looked at.
        size = min(len(envoy), len(meshlib))
        report.events += size
        report.ejections += sum(kind == "eject_unhealthy" for kind, _, _ in envoy)
        report.degraded += sum(kind == "degraded_healthy_host" for kind, _, _ in envoy)
        report.timeouts += sum(failure == "NETWORK_TIMEOUT" for _, failure, _ in envoy)
        if envoy[:size] != meshlib[:size]:
            first = next(index for index in range(size) if envoy[index] != meshlib[index])
            shown: dict[str, Any] = {
                "case": case.name,
                "check": case.check,
                "at": first,
                "envoy": envoy[: first + 3],
                "meshlib": meshlib[: first + 3],
                "script": [str(step) for step in case.script],
            }
            report.disagreements.append(json.dumps(shown))
    return report


def main() -> int:
    parser = arguments_of("differential.checks", "health checks with Envoy's")
    parser.add_argument("--clusters", type=int, default=12)
    parser.add_argument("--steps", type=int, default=25, help="of each script")
    return compare(parser, lambda given, seed, folder: run(seed, given.clusters, given.steps, folder))


if __name__ == "__main__":
    sys.exit(main())
