"""Outlier detection, health checks, the health that EDS tells and panic, all at once, by Envoy and by meshlib.

    python -m differential.ejections --clusters 8 --steps 60 --seed 7

A script of events is played to both: results of requests to certain hosts, results of health checks one by one, updates of
endpoints (hosts go, come back, change weight, health, metadata, priority, locality, name), and the end of all ejections.
After each event is compared what is known of each host, the counts of ejections, and where requests go.

Nothing is left to time: an ejection ends when a runtime key says so, checks wait for their answers, hosts are chosen by a
hash or, for the results of requests, by a session.
"""

import base64
import http.client
import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.envoy import Envoy, reserve_port, socket_address
from peers.processes import poll
from peers.upstreams import LOOPBACK, Step

from differential.command import arguments_of, compare
from differential.generate import TYPE, Json
from differential.held_checks import ANSWER, CHECK_PATH, HeldChecks
from differential.hosts import SESSION, decoded
from meshlib.call import Attempt, Call, Done
from meshlib.model.cluster import Cluster
from meshlib.model.endpoint import ClusterLoadAssignment
from meshlib.model.health import HttpProbe
from meshlib.model.listener import ClientListener
from meshlib.model.outcome import Response
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import RouteConfiguration
from meshlib.model.snapshot import ClusterConfig, Snapshot, TargetConfig
from meshlib.resilience.health_check import CheckFailure, CheckResult, judge_http
from meshlib.view import ClusterState, TargetView, View, build_view
from meshlib.xds.resources import CDS, EDS, RDS

IMMEDIATE = "x-envoy-immediate-health-check-fail"
_FILTER = "envoy.filters.http.stateful_session"
_SESSION_TYPE = f"{TYPE}envoy.extensions.filters.http.stateful_session.v3.StatefulSession"
_HEADER_STATE = f"{TYPE}envoy.extensions.http.stateful_session.header.v3.HeaderBasedSessionState"
_HEALTHS = ("HEALTHY", "UNKNOWN", "UNHEALTHY", "DEGRADED", "DRAINING", "TIMEOUT")
_FLAGS = (
    "failed_active_health_check",
    "failed_outlier_check",
    "failed_active_degraded_check",
    "pending_dynamic_removal",
)
_EJECTION_S = 3600
_WAIT_S = 3.0

Known = dict[str, tuple[object, ...]]
"""By address: the flags, whether it does not count as a host, EDS's health, weight and priority."""


@dataclass(slots=True)
class EjectionReport:
    """
    Attributes:
        ejections: Hosts that were taken out by outlier detection.
        unejected: Hosts that a check brought back.
        out: Events after which no host was healthy.
    """

    seed: int
    events: int = 0
    ejections: int = 0
    unejected: int = 0
    kept: int = 0
    out: int = 0
    disagreements: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.events} events, {len(self.disagreements)} disagreements; {self.ejections} ejections, "
            f"{self.unejected} ended by a check, {self.kept} kept, {self.out} with all out"
        )


@dataclass(slots=True)
class Host:
    address: str
    priority: int = 0
    zone: str = "a"
    weight: int = 1
    health: str = "HEALTHY"
    hostname: str = ""
    version: int = 0
    is_unchecked: bool = False

    def written(self) -> Json:
        endpoint: Json = {"address": socket_address(self.address), "hostname": self.hostname}
        if self.is_unchecked:
            endpoint["health_check_config"] = {"disable_active_health_check": True}
        return {
            "endpoint": endpoint,
            "health_status": self.health,
            "load_balancing_weight": self.weight,
            "metadata": {"filter_metadata": {"own": {"version": self.version}}},
        }


@dataclass(slots=True)
class Case:
    """One cluster with its script so far.

    Attributes:
        hosts: Those that EDS names.
        gone: Those that it has named.
        played: The events, for people.
        is_off: There was a disagreement, after which nothing can be compared.
    """

    name: str
    cluster: Json
    policy: Json
    hosts: list[Host]
    gone: list[Host] = field(default_factory=list)
    played: list[str] = field(default_factory=list)
    is_off: bool = False

    def assignment(self) -> Json:
        groups: dict[tuple[int, str], list[Json]] = {}
        for host in self.hosts:
            groups.setdefault((host.priority, host.zone), []).append(host.written())
        endpoints = [
            {"priority": priority, "locality": {"zone": zone}, "load_balancing_weight": 1, "lb_endpoints": made}
            for (priority, zone), made in groups.items()
        ]
        return {"cluster_name": self.name, "endpoints": endpoints, "policy": self.policy}


class EjectionGenerator:
    """Makes clusters and events out of a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def maybe(self, chance: float) -> bool:
        return self.random.random() < chance

    def case(self, number: int, open_: Callable[[str, Step | None], str]) -> Case:
        """Make a cluster.

        Args:
            open_: Starts a service at an IP address, with the answer to its first check; returns `ip:port`.
        """
        pick = self.random.choice
        has_checks = self.maybe(0.75)
        cluster: Json = {
            "name": f"c{number}",
            "connect_timeout": "5s",
            "lb_policy": "MAGLEV",
            "maglev_lb_config": {"table_size": 101},
            "common_lb_config": {
                "update_merge_window": "0s",
                "healthy_panic_threshold": {"value": pick((0, 30, 50, 50, 100))},
                "override_host_status": {"statuses": list(_HEALTHS)},
                "ignore_new_hosts_until_first_hc": self.maybe(0.4),
            },
            "ignore_health_on_host_removal": self.maybe(0.3),
            "close_connections_on_host_health_failure": self.maybe(0.3),
        }
        if has_checks:
            cluster["health_checks"] = [
                {
                    "timeout": "3600s",
                    "interval": "0.001s",
                    "no_traffic_interval": "0.001s",
                    "reuse_connection": False,
                    "unhealthy_threshold": pick((1, 2)),
                    "healthy_threshold": pick((1, 2, 3)),
                    "http_health_check": {"path": CHECK_PATH, "retriable_statuses": [{"start": 503, "end": 504}]},
                }
            ]
        if not has_checks or self.maybe(0.9):
            cluster["outlier_detection"] = {
                "interval": "0.05s",
                "base_ejection_time": f"{_EJECTION_S}s",
                "consecutive_5xx": pick((1, 2, 3)),
                "consecutive_gateway_failure": pick((1, 2)),
                "enforcing_consecutive_gateway_failure": pick((0, 100)),
                "max_ejection_percent": pick((10, 34, 50, 67, 100, 100)),
                "always_eject_one_host": self.maybe(0.4),
                "successful_active_health_check_uneject_host": self.maybe(0.6),
            }
        policy: Json = {}
        if self.maybe(0.4):
            policy["overprovisioning_factor"] = pick((100, 120, 200))
        if self.maybe(0.3):
            policy["weighted_priority_health"] = True
        hosts = []
        priorities = pick((1, 1, 2, 3))
        for index in range(self.random.randrange(2, 7)):
            address = open_(f"127.79.{number}.{index + 1}", self.check() if has_checks else None)
            host = Host(
                address, min(index, priorities - 1) if index < priorities else self.random.randrange(priorities)
            )
            host.health = pick(("HEALTHY", "HEALTHY", "HEALTHY", "HEALTHY", "UNKNOWN", *_HEALTHS))
            host.weight = pick((1, 1, 2, 3))
            hosts.append(host)
        return Case(f"c{number}", cluster, policy, hosts)

    def check(self) -> Step:
        """Make the answer to a check."""
        if self.maybe(0.6):
            return Step(headers=(("x-envoy-degraded", ""),) if self.maybe(0.15) else ())
        if self.maybe(0.2):
            return Step(is_reset=True)
        return Step(self.random.choice((500, 503)), headers=((IMMEDIATE, "true"),) if self.maybe(0.2) else ())

    def change(self, case: Case) -> str:
        """Change the endpoints of a cluster; returns what was done."""
        pick = self.random.choice
        kinds = (
            "remove",
            "remove",
            "return",
            "return",
            "weight",
            "health",
            "health",
            "metadata",
            "priority",
            "zone",
            "unchecked",
        )
        kind = pick(kinds)
        if kind == "return" or not case.hosts:
            if not case.gone:
                return "nothing"
            host = case.gone.pop(self.random.randrange(len(case.gone)))
            case.hosts.append(host)
            _close_gaps(case.hosts)
            return f"return {host.address}"
        host = pick(case.hosts)
        if "health_checks" in case.cluster and not case.cluster["ignore_health_on_host_removal"]:
            # Envoy would have the host twice, as it was and made anew, until the old one fails: DIFFERENCES.md.
            kind = {"zone": "priority", "unchecked": "health"}.get(kind, kind)
            can_rename = False
        else:
            can_rename = self.maybe(0.4)
        if kind == "remove":
            case.hosts.remove(host)
            case.gone.append(host)
        elif kind == "weight":
            host.weight = pick((1, 2, 3))
        elif kind == "health":
            before, host.health = host.health, pick(("HEALTHY", "HEALTHY", *_HEALTHS))
            # Envoy sorts hosts anew only if one has become better or worse, or for other metadata: DIFFERENCES.md.
            host.version += "DRAINING" in (before, host.health)
        elif kind == "metadata":
            host.version += 1
            if can_rename:
                host.hostname = pick(("", "one", "two"))
        elif kind == "priority":
            used = {one.priority for one in case.hosts if one is not host}
            host.priority = pick(sorted(used)) if used else 0
            _close_gaps(case.hosts)
        elif kind == "zone":
            host.zone = pick(("a", "b"))
        elif kind == "unchecked":
            host.is_unchecked = not host.is_unchecked
        if kind == "remove":
            _close_gaps(case.hosts)
        return f"{kind} {host}"


def _close_gaps(hosts: list[Host]) -> None:
    """Number the priorities anew: a gap is refused."""
    numbers = {old: new for new, old in enumerate(sorted({host.priority for host in hosts}))}
    for host in hosts:
        host.priority = numbers[host.priority]


_ROUTE = {
    "match": {"prefix": "/"},
    "route": {"cluster_header": "x-cluster", "timeout": "30s", "hash_policy": [{"header": {"header_name": "x-key"}}]},
}


def _table() -> Json:
    state = {"name": "envoy.http.stateful_session.header", "typed_config": {"@type": _HEADER_STATE, "name": SESSION}}
    packed = {"@type": _SESSION_TYPE + "PerRoute", "stateful_session": {"session_state": state, "strict": True}}
    route = {**_ROUTE, "typed_per_filter_config": {_FILTER: packed}}
    return {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route]}]}


class EnvoySide:
    """A real Envoy, which reads each cluster's endpoints from a file."""

    def __init__(self, cases: list[Case], folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        for case in cases:
            (folder / case.name).mkdir()
            self._write(case)
        held = stack.enter_context(reserve_port())
        port = held.getsockname()[1]
        self._envoy = Envoy("ejections", self._bootstrap(cases, port), folder)
        stack.callback(self._envoy.stop)
        self._envoy.listen = f"{LOOPBACK}:{port}"
        self._envoy.wait_ready()
        self._connection = http.client.HTTPConnection(LOOPBACK, port, timeout=30)
        stack.callback(self._connection.close)

    def _write(self, case: Case) -> None:
        body = {"@type": TYPE + "envoy.config.endpoint.v3.ClusterLoadAssignment", **case.assignment()}
        new = self._folder / case.name / "new"
        new.write_text(json.dumps({"version_info": str(time.monotonic()), "resources": [body]}))
        new.rename(self._folder / case.name / "eds.json")

    def _bootstrap(self, cases: list[Case], port: int) -> Json:
        router = {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"}
        manager = {
            "@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "ejections",
            "route_config": _table(),
            "http_filters": [
                {"name": _FILTER, "typed_config": {"@type": _SESSION_TYPE}},
                {"name": "router", "typed_config": router},
            ],
        }
        listener = {
            "name": "ejections",
            "address": socket_address(f"{LOOPBACK}:{port}"),
            "filter_chains": [{"filters": [{"name": "manager", "typed_config": manager}]}],
        }
        clusters = []
        for case in cases:
            folder = self._folder / case.name
            watched = {"path": str(folder / "eds.json"), "watched_directory": {"path": str(folder)}}
            source = {"eds_config": {"resource_api_version": "V3", "path_config_source": watched}}
            clusters.append({"type": "EDS", "eds_cluster_config": source, **case.cluster})
        return {
            "node": {"id": "ejections", "cluster": "conformance"},
            "layered_runtime": {"layers": [{"name": "admin", "admin_layer": {}}]},
            "static_resources": {"listeners": [listener], "clusters": clusters},
        }

    def update(self, case: Case) -> None:
        name = f"cluster.{case.name}.update_success"
        before = self._envoy.stats(f"^{name}$")[name]
        self._write(case)
        poll(lambda: self._envoy.stats(f"^{name}$")[name] > before, "EDS", every_s=0.003)

    def settle(self) -> None:
        """Have its main thread take in what its worker has told it: another failure that came before would not be counted."""
        for _ in range(2):
            self._envoy.admin("/ready")

    def uneject(self, cases: list[Case]) -> None:
        """End all ejections."""
        self._envoy.change_runtime({"outlier_detection.base_ejection_time_ms": "0"})
        poll(
            lambda: not any(flags[1] for case in cases for flags in self.known(case)[0].values()),
            "the end of ejections",
            every_s=0.01,
        )
        self._envoy.change_runtime({"outlier_detection.base_ejection_time_ms": ""})

    def ask(self, case: Case, headers: Json) -> tuple[int, str]:
        """Make a request; returns the status, and the address of the host that it went to."""
        self._connection.request("GET", "/", headers={"x-cluster": case.name, **headers})
        response = self._connection.getresponse()
        response.read()
        said = response.getheader(SESSION)
        return response.status, base64.b64decode(said).decode() if said else ""

    def known(self, case: Case) -> tuple[Known, tuple[int, ...]]:
        """Return what it knows of the hosts, and how many it has ejected, ever and now, and would not."""
        found: Known = {}
        for cluster in json.loads(self._envoy.admin("/clusters?format=json"))["cluster_statuses"]:
            if cluster["name"] != case.name:
                continue
            for host in cluster.get("host_statuses", []):
                where = host["address"]["socket_address"]
                health = host["health_status"]
                flags = tuple(bool(health.get(name)) for name in _FLAGS)
                is_held_out = bool(health.get("pending_active_hc") or health.get("excluded_via_immediate_hc_fail"))
                rest = (is_held_out, host.get("weight", 1), host.get("priority", 0))
                found[f"{where['address']}:{where['port_value']}"] = (*flags, *rest)
        if "outlier_detection" not in case.cluster:
            return found, ()
        root = f"cluster.{case.name}.outlier_detection."
        stats = self._envoy.stats(f"^{root}ejections_(active|overflow)$".replace(".", "\\."))
        return found, (stats[root + "ejections_active"], stats[root + "ejections_overflow"])


class MeshlibSide:
    """The same with meshlib's core: no sockets, no time but ours."""

    def __init__(self, cases: list[Case]) -> None:
        table = decoded(RDS, "envoy.config.route.v3.RouteConfiguration", _table(), RouteConfiguration)
        self._target = TargetConfig(ClientListener("t", table, has_session_filter=True), table)
        self._cases = cases
        self._now = 0.0
        self._rng = random.Random(0)
        self._clusters = {}
        for case in cases:
            fields = {"type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}, **case.cluster}
            self._clusters[case.name] = decoded(CDS, "envoy.config.cluster.v3.Cluster", fields, Cluster)
        self._configs = {case.name: self._config(case) for case in cases}
        self._view: View | None = None
        self._publish()

    def _config(self, case: Case) -> ClusterConfig:
        kind = "envoy.config.endpoint.v3.ClusterLoadAssignment"
        return ClusterConfig(self._clusters[case.name], decoded(EDS, kind, case.assignment(), ClusterLoadAssignment))

    def _publish(self) -> None:
        snapshot = Snapshot({"t": self._target}, clusters=dict(self._configs), number=1)
        self._view = build_view(snapshot, self._view, now=self._now)

    def state(self, case: Case) -> ClusterState:
        assert self._view is not None
        found = self._view.clusters[case.name]
        assert isinstance(found, ClusterState), found
        return found

    def update(self, case: Case) -> None:
        self._configs[case.name] = self._config(case)
        self._publish()

    def uneject(self) -> None:
        assert self._view is not None
        self._now += 10 * _EJECTION_S
        self._view.sweep(self._now, self._rng)

    def check(self, case: Case, address: str, step: Step) -> None:
        state, host = self.state(case), self.state(case).states[address]
        assert state.checks is not None
        probe = state.checks.config.probe
        assert isinstance(probe, HttpProbe)
        result = CheckResult(CheckFailure.NETWORK)
        if not step.is_reset:
            result = judge_http(probe, step.status, Headers(step.headers), b"")
        state.check_ended(host, result, self._now, self._rng)

    def ask(self, case: Case, headers: Json, status: int, named: str) -> tuple[int, str]:
        assert self._view is not None
        target = self._view.targets["t"]
        assert isinstance(target, TargetView)
        pairs = tuple({"x-cluster": case.name, **headers}.items())
        call = Call(target, RequestHead("GET", "t", "/", Headers(pairs)), rng=self._rng, now=self._now)
        step = call.start(self._now)
        while not isinstance(step, Done):
            assert isinstance(step, Attempt), step
            answer = ((named, "true"),) if named else ()
            step = call.finished(Response(status, Headers(answer)), self._now)
        call.close(self._now)
        if call.endpoint is None:
            return 503, ""
        return status, call.endpoint.address

    def known(self, case: Case) -> tuple[Known, tuple[int, ...]]:
        cluster = self.state(case)
        found: Known = {}
        named = {host.address for host in case.hosts}
        for group in cluster.config.assignment.localities:
            for endpoint in group.endpoints:
                state = cluster.states[endpoint.address]
                flags = (state.is_failed, state.is_ejected, state.is_marked_degraded, state.address not in named)
                found[state.address] = (*flags, state.is_held_out, endpoint.weight, group.priority)
        detector = cluster.outlier
        return found, () if detector is None else (detector.ejections_active, detector.ejections_overflow)


class Play:
    """The events, played to both sides."""

    def __init__(self, generator: EjectionGenerator, envoy: EnvoySide, held: HeldChecks, cases: list[Case]) -> None:
        self._generator = generator
        self._envoy = envoy
        self._held = held
        self._cases = cases
        self.meshlib = MeshlibSide(cases)

    def begin(self, steps: dict[str, Step]) -> None:
        """Take in the first round of checks, with which Envoy has begun."""
        for case in self._cases:
            if "health_checks" in case.cluster:
                for host in case.hosts:
                    self.meshlib.check(case, host.address, steps[host.address])

    def event(self, case: Case) -> None:
        pick = self._generator.random.choice
        states = self.meshlib.state(case).states
        kind = pick(("request", "request", "check", "check", "change", "ask"))
        checks = self.meshlib.state(case).checks
        if kind == "check" and checks is not None and checks.addresses:
            self._check(case, pick(sorted(checks.addresses)), self._generator.check())
        elif kind == "change":
            case.played.append(self._generator.change(case))
            self._envoy.update(case)
            self.meshlib.update(case)
        elif kind == "ask":
            self._ask(case)
        elif states:
            address, status = pick(sorted(states)), pick((200, 500, 500, 500, 503, 503))
            named = IMMEDIATE if self._generator.maybe(0.05) else ""
            for _ in range(pick((1, 1, 2, 3))):
                self._request(case, address, status, named)

    def _check(self, case: Case, address: str, step: Step) -> None:
        case.played.append(f"check {address} {step}")
        before = self._held.arrived(address)
        if not self._held.release(address, step):
            case.is_off = True
            case.played.append("envoy does not check it")
            return
        self.meshlib.check(case, address, step)
        # Envoy has taken in one when the next one comes; none comes to a host that is gone.
        ends_at = time.monotonic() + 1
        while (
            address in self.meshlib.state(case).states
            and self._held.arrived(address) <= before
            and time.monotonic() < ends_at
        ):
            time.sleep(0.002)

    def _request(self, case: Case, address: str, status: int, named: str) -> None:
        case.played.append(f"request {address} {status} {named}")
        session = base64.b64encode(address.encode()).decode()
        envoy = self._envoy.ask(case, {SESSION: session, ANSWER: f"{status} {named}".strip()})
        meshlib = self.meshlib.ask(case, {SESSION: session}, status, named)
        if status >= 500:
            self._envoy.settle()
        assert envoy[0] == meshlib[0] and meshlib[1] == address, (case, envoy, meshlib)

    def _ask(self, case: Case) -> None:
        time.sleep(0.02)  # its worker hears of changes a little later than its main thread
        for _ in range(3):
            key = str(self._generator.random.randrange(10**6))
            case.played.append(f"ask {key}")
            envoy = self._envoy.ask(case, {"x-key": key})
            meshlib = self.meshlib.ask(case, {"x-key": key}, 200, "")
            if envoy != meshlib:
                case.is_off = True
                case.played.append(f"envoy {envoy} meshlib {meshlib}")
                case.played.append(f"envoy {self._envoy.known(case)}")
                case.played.append(f"meshlib {self.meshlib.known(case)}")
                return

    def uneject(self) -> None:
        for case in self._cases:
            case.played.append("all ejections end")
        self._envoy.uneject(self._cases)
        self.meshlib.uneject()

    def agree(self, case: Case) -> bool:
        """Whether both know the same, now or soon: Envoy's threads tell each other."""
        meshlib = self.meshlib.known(case)
        ends_at = time.monotonic() + _WAIT_S
        while (envoy := self._envoy.known(case)) != meshlib:
            if time.monotonic() > ends_at:
                case.played.append(f"envoy {envoy}")
                case.played.append(f"meshlib {meshlib}")
                return False
            time.sleep(0.005)
        return True


def run(seed: int, clusters: int, steps: int, folder: Path) -> EjectionReport:
    """Compare the two."""
    generator, report = EjectionGenerator(seed), EjectionReport(seed)
    with ExitStack() as stack:
        held = stack.enter_context(HeldChecks())
        first: dict[str, Step] = {}

        def open_(host: str, step: Step | None) -> str:
            address = held.open(host, step)
            if step is not None:
                first[address] = step
            return address

        cases = [generator.case(number, open_) for number in range(clusters)]
        play = Play(generator, EnvoySide(cases, folder, stack), held, cases)
        play.begin(first)
        for step in range(steps):
            for case in cases:
                if case.is_off:
                    continue
                before = _ejected(play, case)
                play.event(case)
                _count(report, play, case, before)
                if case.is_off or not play.agree(case):
                    case.is_off = True
                    shown: Any = {
                        "case": case.cluster,
                        "eds": case.assignment(),
                        "policy": case.policy,
                        "played": case.played,
                    }
                    report.disagreements.append(json.dumps(shown, indent=1))
            if step % 10 == 9:
                play.uneject()
    return report


def _ejected(play: Play, case: Case) -> set[str]:
    return {state.address for state in play.meshlib.state(case).states.values() if state.is_ejected}


def _count(report: EjectionReport, play: Play, case: Case, before: set[str]) -> None:
    states, after = play.meshlib.state(case).states, _ejected(play, case)
    report.events += 1
    report.ejections += len(after - before)
    report.unejected += case.played[-1].startswith("check") and len(before - after)
    report.kept += bool(states.keys() - {host.address for host in case.hosts})
    report.out += not any(state.is_healthy for state in states.values())


def main() -> int:
    parser = arguments_of("differential.ejections", "what becomes of hosts with Envoy's")
    parser.add_argument("--clusters", type=int, default=8)
    parser.add_argument("--steps", type=int, default=60, help="for each cluster")
    return compare(parser, lambda given, seed, folder: run(seed, given.clusters, given.steps, folder))


if __name__ == "__main__":
    sys.exit(main())
