"""Which hosts a request is sent to: ring hash and Maglev over random clusters, by Envoy and by meshlib.

    python -m differential.hosts --clusters 100 --requests 10 --seed 7 [--subsets | --sessions | --named]

Nobody listens at the hosts: an attempt is refused at once, and retries go on, to other hosts where the route says so.
What is compared is the host of the last attempt, and the flags. Nothing is left to chance: each request has a hash, and
hosts are known by address, by name or by a key.
"""

import argparse
import http.client
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers.envoy import Envoy, reserve_port, socket_address
from peers.processes import poll
from peers.upstreams import LOOPBACK

from differential.command import arguments_of, compare
from differential.generate import TYPE, Json
from meshlib.call import Attempt, Call, Done
from meshlib.model.cluster import Cluster, StaticDiscovery
from meshlib.model.listener import ClientListener
from meshlib.model.outcome import Failure, FailureKind
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import RouteConfiguration
from meshlib.model.snapshot import ClusterConfig, Snapshot, TargetConfig
from meshlib.protos import from_dict
from meshlib.view import TargetView, build_view
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import CDS, RDS

CASE = "x-case"
SESSION = "x-session"
_POLICIES = "envoy.extensions.load_balancing_policies."
_LINE = "%REQ(X-CASE)% %RESPONSE_FLAGS% %UPSTREAM_HOST%\n"
PREVIOUS_HOSTS = {
    "name": "envoy.retry_host_predicates.previous_hosts",
    "typed_config": {"@type": TYPE + "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
}
_HEALTHS = ("HEALTHY", "UNKNOWN", "UNHEALTHY", "DEGRADED", "DRAINING", "TIMEOUT")
_SOON_S = 0.002

Decision = tuple[str, str, str]
"""Host of the last attempt, empty for none, flags, and what the answer says of a stateful session."""


@dataclass(frozen=True, slots=True)
class HostRequest:
    cluster: str
    path: str
    headers: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class HostReport:
    """
    Attributes:
        retried: Requests that were repeated until their route had no more retries.
        without_host: Requests that no host could take.
        marked: Answers that begin a session or move it.
        disagreements: As texts.
    """

    seed: int
    cases: int = 0
    retried: int = 0
    without_host: int = 0
    marked: int = 0
    disagreements: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.cases} cases, {len(self.disagreements)} disagreements; "
            f"{self.retried} with retries, {self.without_host} without a host"
        )


class HostGenerator:
    """Makes clusters with their routes, and requests, out of a seed."""

    primes: tuple[int, ...] = (2, 3, 11, 101, 1021, 65537)
    ring_sizes: tuple[int, ...] = (1, 2, 10, 100, 5000)
    has_default_sizes = True
    host_counts: tuple[int, ...] = (0, 1, 2, 3, 5, 9)
    filters: tuple[Json, ...] = ()

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)

    @staticmethod
    def is_same(one: Decision, other: Decision) -> bool:
        """Whether two decisions agree."""
        return one == other

    def _maybe(self, chance: float) -> bool:
        return self._random.random() < chance

    def _begin_cluster(self) -> None:
        self._host = 0

    def _address(self, host: int) -> str:
        """Return where a host is, by its number."""
        return f"127.77.0.{host}:9"

    def cluster(self, number: int | str) -> Json:
        """Return a Cluster in proto3 JSON."""
        name = f"c{number}"
        self._begin_cluster()
        self._healths = ("HEALTHY",) if self._maybe(0.4) else _HEALTHS
        self._is_weighted = self._maybe(0.6)
        is_localised = self._maybe(0.4)
        groups = []
        for priority in range(self._random.choice((1, 1, 2, 3))):
            for zone in self._random.sample(range(9), self._random.choice((1, 2, 3) if is_localised else (1,))):
                groups.append(self._group(priority, zone, is_localised))
        assignment: Json = {"cluster_name": name, "endpoints": groups}
        if self._maybe(0.3):
            assignment["policy"] = {"overprovisioning_factor": self._random.choice((100, 200))}
        if self._maybe(0.3):
            assignment.setdefault("policy", {})["weighted_priority_health"] = True
        common: Json = {}
        if self._maybe(0.4):
            common["healthy_panic_threshold"] = {"value": self._random.choice((0, 10, 90))}
        result: Json = {
            "name": name,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": assignment,
            "common_lb_config": common,
        }
        if self._maybe(0.5):
            result |= self._fields()
            if is_localised:
                common["locality_weighted_lb_config"] = {}
        else:
            entry = self._extension(is_localised)
            listed = [{"typed_extension_config": {"name": "p", "typed_config": entry}}]
            result["load_balancing_policy"] = {"policies": listed}
        return result

    def _group(self, priority: int, zone: int, is_localised: bool) -> Json:
        hosts = [self._endpoint() for _ in range(self._random.choice(self.host_counts))]
        weight = {"load_balancing_weight": self._random.randint(1, 9)} if is_localised and self._maybe(0.9) else {}
        return {"priority": priority, "locality": {"zone": str(zone)}, "lb_endpoints": hosts, **weight}

    def _endpoint(self) -> Json:
        self._host += 1
        endpoint: Json = {"address": socket_address(self._address(self._host))}
        # Each has a name of its own: hosts with equal keys stand in the order of their places in Envoy's memory.
        endpoint["hostname"] = f"host-{self._host}"
        result: Json = {"endpoint": endpoint, "health_status": self._random.choice(self._healths)}
        if self._is_weighted:
            result["load_balancing_weight"] = self._random.choice((1, 2, 3, 7, 50))
        if self._maybe(0.2):
            key: Any = self._random.choice((f"key-{self._host}", "", 5))
            result["metadata"] = {"filter_metadata": {"envoy.lb": {"hash_key": key}}}
        return result

    def _fields(self) -> Json:
        if self._maybe(0.5):
            table = (
                {"maglev_lb_config": {"table_size": self._random.choice(self.primes)}}
                if not self.has_default_sizes or self._maybe(0.8)
                else {}
            )
            return {"lb_policy": "MAGLEV", **table}
        function = {"hash_function": "MURMUR_HASH_2"} if self._maybe(0.3) else {}
        return {"lb_policy": "RING_HASH", "ring_hash_lb_config": {**self._sizes(), **function}}

    def _extension(self, is_localised: bool) -> Json:
        hashing: Json = {"use_hostname_for_hashing": True} if self._maybe(0.3) else {}
        if self._maybe(0.3):
            hashing["hash_policy"] = [{"header": {"header_name": "x-own"}}, {"header": {"header_name": "x-key"}}]
        common: Json = {"consistent_hashing_lb_config": hashing} if hashing else {}
        if is_localised:
            common["locality_weighted_lb_config"] = {}
        if self._maybe(0.5):
            return {
                "@type": f"{TYPE}{_POLICIES}maglev.v3.Maglev",
                "table_size": self._random.choice(self.primes),
                **common,
            }
        function = {"hash_function": self._random.choice(("XX_HASH", "MURMUR_HASH_2"))} if self._maybe(0.6) else {}
        return {"@type": f"{TYPE}{_POLICIES}ring_hash.v3.RingHash", **self._sizes(), **function, **common}

    def _sizes(self) -> Json:
        if self.has_default_sizes and self._maybe(0.3):
            return {}
        least = self._random.choice(self.ring_sizes)
        most = {"maximum_ring_size": least + self._random.choice((0, 1, 50))} if self._maybe(0.4) else {}
        return {"minimum_ring_size": least, **most}

    def _hash_policies(self) -> list[Json]:
        """Return hash policies; the last of them has the key that each request brings."""
        policies: list[Json] = []
        for _ in range(self._random.choice((0, 0, 1, 2))):
            policy = self._random.choice(
                (
                    {"header": {"header_name": "x-other"}},
                    {"cookie": {"name": "c"}},
                    {"query_parameter": {"name": "q"}},
                    {"header": {"header_name": "x-other", "regex_rewrite": _REWRITE}},
                )
            )
            policies.append({**policy, "terminal": self._maybe(0.3)})
        policies.append({"header": {"header_name": "x-key"}})
        return policies

    def route(self, cluster: str) -> Json:
        """Return the route to a cluster, by prefix."""
        action: Json = {"cluster": cluster, "hash_policy": self._hash_policies(), "timeout": "5s"}
        if self._maybe(0.6):
            action["retry_policy"] = {
                "retry_on": "connect-failure",
                "num_retries": self._random.choice((1, 2, 4)),
                "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.001s"},
            }
            if self._maybe(0.8):
                attempts = self._random.choice(("1", "2", "5"))
                action["retry_policy"] |= {
                    "retry_host_predicate": [PREVIOUS_HOSTS],
                    "host_selection_retry_max_attempts": attempts,
                }
        return {"match": {"prefix": f"/{cluster}/"}, "route": action}

    def request(self, cluster: str) -> HostRequest:
        """Return a request that surely has a hash."""
        headers = [("x-key", f"user-{self._random.randrange(10**6)}")]
        for name, value in (("x-other", "a"), ("x-other", "b-1"), ("x-own", "o"), ("cookie", "b=1; c=2")):
            if self._maybe(0.4):
                headers.append((name, value))
        query = self._random.choice(("", "?q=1", "?q=", "?r=1"))
        return HostRequest(cluster, f"/{cluster}/{query}", tuple(headers))


_REWRITE = {"pattern": {"regex": "([a-z])-?.*"}, "substitution": "\\1"}


def ask_envoy(
    clusters: Sequence[Json],
    routes: Sequence[Json],
    requests: Sequence[HostRequest],
    folder: Path,
    filters: Sequence[Json] = (),
    extra: Json | None = None,
) -> list[Decision]:
    """Return where a real Envoy sends the requests.

    Args:
        extra: Put into the bootstrap.
    """
    log = folder / "access.log"
    with reserve_port() as held:
        port = held.getsockname()[1]
        bootstrap = _bootstrap(clusters, routes, port, log, filters)
        for name, value in (extra or {}).items():
            bootstrap[name] = {**bootstrap.get(name, {}), **value}
        envoy = Envoy("hosts", bootstrap, folder, arguments=_LOG_SOON)
        try:
            envoy.listen = f"{LOOPBACK}:{port}"
            envoy.wait_ready()
            connection = http.client.HTTPConnection(LOOPBACK, port, timeout=20)
            marks = [_send(connection, str(number), request) for number, request in enumerate(requests)]
            connection.close()
            logged = _read(log, len(requests))
        finally:
            envoy.stop()
    return [(*logged[str(number)], mark) for number, mark in enumerate(marks)]


def _send(connection: http.client.HTTPConnection, case: str, request: HostRequest) -> str:
    """Send a request; returns what the answer says of a stateful session."""
    connection.putrequest("GET", request.path, skip_host=True, skip_accept_encoding=True)
    for name, value in (("host", "hosts"), *request.headers, (CASE, case)):
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    response.read()
    return response.getheader("set-cookie") or response.getheader(SESSION) or ""


def _read(log: Path, count: int) -> dict[str, tuple[str, str]]:
    poll(lambda: log.exists() and log.read_text().count("\n") >= count, "the access log", every_s=_SOON_S)
    found = {}
    for line in log.read_text().splitlines():
        case, flags, host = line.split(" ")
        found[case] = ("" if host == "-" else host, "" if flags == "-" else flags)
    return found


def _bootstrap(clusters: Sequence[Json], routes: Sequence[Json], port: int, log: Path, filters: Sequence[Json]) -> Json:
    access = {
        "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "path": str(log),
        "log_format": {"text_format_source": {"inline_string": _LINE}},
    }
    router = {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"}
    manager = {
        "@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "hosts",
        "use_remote_address": True,
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]},
        "route_config": _routes(routes),
        "http_filters": [*filters, {"name": "router", "typed_config": router}],
        "access_log": [{"name": "file", "typed_config": access}],
    }
    listener = {
        "name": "hosts",
        "address": socket_address(f"{LOOPBACK}:{port}"),
        "filter_chains": [{"filters": [{"name": "manager", "typed_config": manager}]}],
    }
    return {
        "node": {"id": "hosts", "cluster": "conformance"},
        "static_resources": {"listeners": [listener], "clusters": list(clusters)},
    }


_LOG_SOON = ("--file-flush-interval-msec", "10", "--file-flush-min-size-kb", "1")


def _routes(routes: Sequence[Json]) -> Json:
    return {"name": "hosts", "virtual_hosts": [{"name": "hosts", "domains": ["*"], "routes": list(routes)}]}


def ask_meshlib(
    clusters: Sequence[Json], routes: Sequence[Json], requests: Sequence[HostRequest], *, has_sessions: bool = False
) -> list[Decision]:
    """Return where meshlib sends the requests."""
    table = decoded(RDS, "envoy.config.route.v3.RouteConfiguration", _routes(routes), RouteConfiguration)
    configs = {}
    for one in clusters:
        cluster = decoded(CDS, "envoy.config.cluster.v3.Cluster", one, Cluster)
        assert isinstance(cluster.discovery, StaticDiscovery)
        configs[cluster.name] = ClusterConfig(cluster, cluster.discovery.assignment)
    target = TargetConfig(ClientListener("hosts", table, has_session_filter=has_sessions), table)
    wall_offset_s = time.time() - time.monotonic()
    view = build_view(Snapshot({"hosts": target}, clusters=configs), None, now=0.0, wall_offset_s=wall_offset_s)
    made = view.targets["hosts"]
    assert isinstance(made, TargetView)
    return [_decide(made, request) for request in requests]


def decoded(type_url: str, kind: str, fields: Json, expected: type[Any]) -> Any:
    """Return a resource as the client has it."""
    found = decode_resource(type_url, from_dict(kind, fields).SerializeToString())
    assert isinstance(found.value, expected), found.errors
    return found.value


def _decide(target: TargetView, request: HostRequest) -> Decision:
    head = RequestHead("GET", "hosts", request.path, Headers(request.headers))
    now = time.monotonic()
    call = Call(target, head, rng=random.Random(0), now=now)
    step = call.start(now)
    while not isinstance(step, Done):
        step = (
            call.finished(Failure(FailureKind.CONNECT, request_sent=False), now)
            if isinstance(step, Attempt)
            else call.slept(now)
        )
    call.close(now)
    # Envoy marks its own answers too, if it tried a host before.
    headers = call.session_headers(Headers())
    mark = headers.get("set-cookie") or headers.get(SESSION) or ""
    return "" if call.endpoint is None else call.endpoint.address, call.flag, mark


def run(
    seed: int, clusters: int, requests: int, folder: Path, *, kind: type[HostGenerator] = HostGenerator
) -> HostReport:
    """Compare where requests go.

    Args:
        kind: Makes the cases.
    """
    generator, report = kind(seed), HostReport(seed)
    made = [generator.cluster(number) for number in range(clusters)]
    routes = [generator.route(one["name"]) for one in made]
    asked = [generator.request(one["name"]) for one in made for _ in range(requests)]
    answers = zip(
        asked,
        ask_envoy(made, routes, asked, folder, kind.filters),
        ask_meshlib(made, routes, asked, has_sessions=bool(kind.filters)),
        strict=True,
    )
    by_name = {one["name"]: (one, route) for one, route in zip(made, routes, strict=True)}
    for request, envoy, meshlib in answers:
        report.cases += 1
        report.retried += "URX" in envoy[1]
        report.without_host += not envoy[0]
        report.marked += bool(envoy[2])
        if not kind.is_same(envoy, meshlib):
            cluster, route = by_name[request.cluster]
            told = {"envoy, meshlib": [envoy, meshlib], "headers": request.headers, "cluster": cluster, "route": route}
            report.disagreements.append(json.dumps(told))
    return report


def main() -> int:
    parser = arguments_of("differential.hosts", "meshlib's hosts with Envoy's")
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--requests", type=int, default=10, help="for each cluster")
    parser.add_argument("--subsets", action="store_true", help="of clusters with subsets")
    parser.add_argument("--named", action="store_true", help="of requests that name their hosts")
    parser.add_argument("--sessions", action="store_true", help="of stateful sessions")

    def run_kind(given: argparse.Namespace, seed: int, folder: Path) -> HostReport:
        kind = HostGenerator
        if given.subsets:
            from differential.subsets import SubsetGenerator as kind
        elif given.named:
            from differential.named import NamedGenerator as kind
        elif given.sessions:
            from differential.sessions import SessionGenerator as kind
        return run(seed, given.clusters, given.requests, folder, kind=kind)

    return compare(parser, run_kind)


if __name__ == "__main__":
    sys.exit(main())
