"""How many requests go to which host when zones matter: an Envoy with a local cluster, and meshlib, side by side.

    python -m differential.zones --worlds 4 --clusters 10 --requests 1000 --seed 7

A world is a local cluster with a node in one of its zones (or in none). Its clusters have hosts in several zones, in all
states of health, and any options of zone aware routing. Nobody listens at the hosts, so that every request ends at once.
"""

import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

from peers.envoy import socket_address

from differential import hosts
from differential.command import arguments_of, compare
from differential.generate import TYPE, Json
from differential.hosts import HostRequest
from meshlib.model.cluster import Cluster, StaticDiscovery
from meshlib.model.endpoint import Locality
from meshlib.model.snapshot import ClusterConfig, HomePlace, Snapshot
from meshlib.testing import SeededRng
from meshlib.view import ClusterState, build_view
from meshlib.xds.resources import CDS

__all__ = ["ZoneReport", "run"]

SIGMAS = 5
LOCAL = "local"
_POLICIES = "envoy.extensions.load_balancing_policies."
_ZONES = "abcd"
_HEALTHS = ("HEALTHY", "HEALTHY", "HEALTHY", "UNKNOWN", "UNHEALTHY", "DEGRADED", "DRAINING")


@dataclass(slots=True)
class ZoneReport:
    """
    Attributes:
        split: Clusters whose own zone gets neither all nor just its share of the hosts.
        disagreements: As texts.
    """

    seed: int
    cases: int = 0
    split: int = 0
    disagreements: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.cases} clusters, {len(self.disagreements)} disagreements; {self.split} split"


class ZoneGenerator:
    """Makes worlds out of a seed."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._host = 0

    def _maybe(self, chance: float) -> bool:
        return self._random.random() < chance

    def _groups(self, sizes: tuple[int, ...], *, healths: tuple[str, ...], priority: int = 0) -> list[Json]:
        zones = self._random.sample(_ZONES, self._random.choice((1, 2, 2, 3, 3, 4)))
        return [
            {
                "priority": priority,
                "locality": {"region": "r", "zone": zone},
                "lb_endpoints": [self._endpoint(healths) for _ in range(self._random.choice(sizes))],
            }
            for zone in zones
        ]

    def _endpoint(self, healths: tuple[str, ...]) -> Json:
        self._host += 1
        address = socket_address(f"127.77.{self._host >> 8}.{self._host & 255}:9")
        weight = {"load_balancing_weight": self._random.choice((1, 2, 5))} if self._maybe(0.3) else {}
        return {"endpoint": {"address": address}, "health_status": self._random.choice(healths), **weight}

    def local(self) -> Json:
        """Return the local cluster."""
        healths = ("HEALTHY",) if self._maybe(0.7) else _HEALTHS
        assignment = {"cluster_name": LOCAL, "endpoints": self._groups((0, 1, 2, 3, 5), healths=healths)}
        return {"name": LOCAL, "type": "STATIC", "connect_timeout": "1s", "load_assignment": assignment}

    def cluster(self, number: int) -> Json:
        """Return a cluster to call."""
        healths = ("HEALTHY",) if self._maybe(0.5) else _HEALTHS
        groups = self._groups((1, 2, 3, 4), healths=healths)
        if self._maybe(0.2):
            groups += self._groups((1, 2), healths=("HEALTHY",), priority=1)
        name = f"c{number}"
        result: Json = {
            "name": name,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": name, "endpoints": groups},
            "common_lb_config": {},
        }
        if self._maybe(0.3):
            result["common_lb_config"]["healthy_panic_threshold"] = {"value": self._random.choice((0, 20, 80))}
        zones: Json = {"min_cluster_size": self._random.choice((1, 1, 3, 7))} if self._maybe(0.8) else {}
        if self._maybe(0.3):
            zones["routing_enabled"] = {"value": self._random.choice((0, 30, 49.5))}
        if self._maybe(0.2):
            zones["fail_traffic_on_panic"] = True
        if self._maybe(0.3):
            policy = self._random.choice(("ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"))
            if zones or self._maybe(0.5):
                result["common_lb_config"]["zone_aware_lb_config"] = zones
            return {**result, "lb_policy": policy}
        if self._maybe(0.3):
            zones["force_local_zone"] = self._random.choice(({}, {"min_size": 2}, {"min_size": 3}))
        if self._maybe(0.3):
            zones["locality_basis"] = "HEALTHY_HOSTS_WEIGHT"
        kind = self._random.choice(("round_robin.v3.RoundRobin", "least_request.v3.LeastRequest", "random.v3.Random"))
        typed: Json = {"@type": f"{TYPE}{_POLICIES}{kind}"}
        if zones or self._maybe(0.5):
            typed["locality_lb_config"] = {"zone_aware_lb_config": zones}
        listed = [{"typed_extension_config": {"name": "p", "typed_config": typed}}]
        return {**result, "load_balancing_policy": {"policies": listed}}

    def place(self) -> Json:
        """Return the locality of the node; empty: it does not say."""
        return {} if self._maybe(0.1) else {"region": "r", "zone": self._random.choice(_ZONES)}


def _ask_envoy(made: list[Json], local: Json, place: Json, count: int, folder: Path) -> dict[str, Counter[str]]:
    routes = [{"match": {"prefix": f"/{one['name']}/"}, "route": {"cluster": one["name"]}} for one in made]
    requests = [HostRequest(one["name"], f"/{one['name']}/", ()) for one in made for _ in range(count)]
    node = {"locality": place} if place else {}
    extra = {"node": node, "cluster_manager": {"local_cluster_name": LOCAL}}
    answers = hosts.ask_envoy([*made, local], routes, requests, folder, extra=extra)
    found: dict[str, Counter[str]] = {one["name"]: Counter() for one in made}
    for request, answer in zip(requests, answers, strict=True):
        found[request.cluster][answer[0]] += 1
    return found


def _ask_meshlib(made: list[Json], local: Json, place: Json, count: int, seed: int) -> dict[str, Counter[str]]:
    configs = {}
    for one in (*made, local):
        cluster = hosts.decoded(CDS, "envoy.config.cluster.v3.Cluster", one, Cluster)
        assert isinstance(cluster.discovery, StaticDiscovery)
        configs[cluster.name] = ClusterConfig(cluster, cluster.discovery.assignment)
    home = HomePlace(LOCAL, Locality(place["region"], place["zone"])) if place else None
    view = build_view(Snapshot(clusters=configs, home=home), None, now=0.0)
    rng, found = SeededRng(seed), {}
    for one in made:
        state = view.clusters[one["name"]]
        assert isinstance(state, ClusterState)
        picks = (state.picker.pick(None, rng) for _ in range(count))
        found[one["name"]] = Counter("" if pick is None else pick.address for pick in picks)
    return found


def run(seed: int, worlds: int, clusters: int, requests: int, folder: Path) -> ZoneReport:
    """Compare how many of the requests to each cluster end at each host.

    Args:
        requests: To each cluster.
    """
    report = ZoneReport(seed)
    for world in range(worlds):
        generator = ZoneGenerator(f"{seed}/{world}")
        local, place = generator.local(), generator.place()
        made = [generator.cluster(number) for number in range(clusters)]
        inside = folder / str(world)
        inside.mkdir()
        envoy = _ask_envoy(made, local, place, requests, inside)
        ours = _ask_meshlib(made, local, place, requests, seed)
        for one in made:
            name = one["name"]
            report.cases += 1
            report.split += _is_split(one, place, ours[name])
            if not _is_alike(envoy[name], ours[name], requests):
                told: Any = {
                    "envoy": envoy[name],
                    "meshlib": ours[name],
                    "place": place,
                    "cluster": one,
                    "local": local,
                }
                report.disagreements.append(str(told))
    return report


def _is_alike(one: Counter[str], other: Counter[str], count: int) -> bool:
    for host in {*one, *other}:
        share = (one[host] + other[host]) / (2 * count)
        # One more: rotations begin at any place.
        if abs(one[host] - other[host]) > SIGMAS * sqrt(2 * count * share * (1 - share)) + 1:
            return False
    return True


def _is_split(cluster: Json, place: Json, found: Counter[str]) -> bool:
    sizes, own = [], 0
    for group in cluster["load_assignment"]["endpoints"]:
        addresses = [_address(endpoint) for endpoint in group["lb_endpoints"]]
        counted = sum(found[address] for address in addresses)
        sizes.append((len(addresses), counted))
        own += counted if group["locality"] == place else 0
    return 0 < own < sum(counted for _, counted in sizes)


def _address(endpoint: Json) -> str:
    place = endpoint["endpoint"]["address"]["socket_address"]
    return f"{place['address']}:{place['port_value']}"


def main() -> int:
    parser = arguments_of("differential.zones", "meshlib's zones with Envoy's")
    parser.add_argument("--worlds", type=int, default=4)
    parser.add_argument("--clusters", type=int, default=10, help="of each world")
    parser.add_argument("--requests", type=int, default=1000, help="to each cluster")
    return compare(parser, lambda given, seed, folder: run(seed, given.worlds, given.clusters, given.requests, folder))


if __name__ == "__main__":
    sys.exit(main())
