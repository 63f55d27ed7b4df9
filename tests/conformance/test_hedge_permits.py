"""What hedged attempts take of a cluster's limits, in a real Envoy and here.

Each attempt in flight is one of `max_requests`; of `max_retries` a call holds one, however many of its attempts run, as the
slot goes from each retry to the next. A hedge that finds no room gives it back, and so does an attempt that takes too
long when there may be no other. One case is one call over a slow upstream; all have clusters of their own in one
Envoy.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from differential.generate import TYPE
from peers.envoy import Envoy, reserve_port, socket_address, static_cluster
from peers.processes import poll
from peers.upstreams import LOOPBACK, HttpUpstream, Step

from meshlib.clients.httpx_sync import MeshTransport
from meshlib.model.route import RouteConfiguration
from meshlib.model.snapshot import ClusterConfig, Snapshot, TargetConfig
from meshlib.protos import from_dict
from meshlib.testing import mesh_source
from meshlib.xds.decode import decode_resource
from meshlib.xds.resources import CDS, LDS

pytestmark = pytest.mark.envoy

Json = dict[str, Any]
MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = {"name": "router", "typed_config": {"@type": f"{TYPE}envoy.extensions.filters.http.router.v3.Router"}}
MANY, SLOW_S, PATIENCE_S = 100, 4.0, 0.3


@dataclass(frozen=True)
class Case:
    """Limits of the cluster, how many attempts they leave of four, and how many of the retries are held in between."""

    max_requests: int = MANY
    max_retries: int = MANY
    attempts: int = 4
    retries: int = 1


CASES = {
    "room": Case(),
    "one-retry": Case(max_retries=1),
    "no-retry": Case(max_retries=0, attempts=1, retries=0),
    "two-requests": Case(max_requests=2, attempts=2),
}


@dataclass(frozen=True)
class End:
    """
    Attributes:
        seen: What the upstream got.
        held: Requests and retries that the cluster counted most of the time: when there could be no further attempt.
        retries: That it counted at the same time, at most.
    """

    status: int
    seen: int
    held: tuple[int, int]
    retries: int


def routes() -> Json:
    policy = {"retry_on": "5xx", "num_retries": 3, "per_try_timeout": f"{PATIENCE_S}s"}
    hedge = {"hedge_on_per_try_timeout": True}
    action = {"retry_policy": policy, "hedge_policy": hedge, "timeout": "30s"}
    entries = [{"match": {"path": f"/{name}"}, "route": {"cluster": name, **action}} for name in CASES]
    return {"name": "r", "virtual_hosts": [{"name": "v", "domains": ["*"], "routes": entries}]}


def cluster(name: str, case: Case, port: int) -> Json:
    limits = {"max_requests": case.max_requests, "max_retries": case.max_retries, "track_remaining": True}
    return static_cluster(name, f"{LOOPBACK}:{port}", circuit_breakers={"thresholds": [limits]})


def manager() -> Json:
    return {"@type": f"{TYPE}{MANAGER}", "stat_prefix": "m", "route_config": routes(), "http_filters": [ROUTER]}


@pytest.fixture
def upstreams() -> Iterator[dict[str, HttpUpstream]]:
    yield from slow_upstreams()


@pytest.fixture
def beside() -> Iterator[dict[str, HttpUpstream]]:
    yield from slow_upstreams()


def slow_upstreams() -> Iterator[dict[str, HttpUpstream]]:
    found = {name: HttpUpstream(name) for name in CASES}
    for upstream in found.values():
        upstream.usual = Step(delay_s=SLOW_S)
    yield found
    for upstream in found.values():
        upstream.close()


@pytest.fixture
def envoy(tmp_path: Path, upstreams: dict[str, HttpUpstream]) -> Iterator[Envoy]:
    with reserve_port() as held:
        address = f"{LOOPBACK}:{held.getsockname()[1]}"
        chain = {"filters": [{"name": "manager", "typed_config": manager()}]}
        listener = {"name": "l", "address": socket_address(address), "filter_chains": [chain]}
        clusters = [cluster(name, case, upstreams[name].port) for name, case in CASES.items()]
        resources = {"listeners": [listener], "clusters": clusters}
        with Envoy("envoy", {"static_resources": resources}, tmp_path) as found:
            found.listen = address
            found.wait_ready()
            yield found


def decoded(type_url: str, kind: str, resource: Json) -> Any:
    found = decode_resource(type_url, from_dict(kind, resource).SerializeToString())
    assert () == found.errors
    return found.value


@pytest.fixture
def mesh(beside: dict[str, HttpUpstream]) -> Any:
    listener = decoded(
        LDS, "envoy.config.listener.v3.Listener", {"name": "l", "api_listener": {"api_listener": manager()}}
    )
    assert isinstance(listener.routes, RouteConfiguration)
    clusters = {}
    for name, case in CASES.items():
        made = decoded(CDS, "envoy.config.cluster.v3.Cluster", cluster(name, case, beside[name].port))
        clusters[name] = ClusterConfig(made, made.discovery.assignment)
    snapshot = Snapshot(targets={"l": TargetConfig(listener, listener.routes)}, clusters=clusters)
    return mesh_source(snapshot, clock=time.monotonic)


def play(upstream: HttpUpstream, ask: Any, held: Any) -> End:
    """Make the call, and look again and again at what is held."""
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    found: Counter[tuple[int, int]] = Counter()
    while thread.is_alive():
        found[held()] += 1
        time.sleep(0.05)
    thread.join()
    return End(answers[0], len(upstream.seen), found.most_common(1)[0][0], max(retries for _, retries in found))


def by_envoy(envoy: Envoy, name: str, upstream: HttpUpstream) -> End:
    case = CASES[name]
    prefix = f"cluster.{name}.circuit_breakers.default.remaining"

    def held() -> tuple[int, int]:
        stats = envoy.stats(prefix)
        return case.max_requests - stats[f"{prefix}_rq"], case.max_retries - stats[f"{prefix}_retries"]

    with httpx.Client(trust_env=False, timeout=60) as client:
        found = play(upstream, lambda: client.get(f"http://{envoy.listen}/{name}").status_code, held)
    poll(lambda: held() == (0, 0), "everything given back")
    return found


def by_meshlib(mesh: Any, name: str, upstream: HttpUpstream) -> End:
    breaker = mesh.cluster(name).breaker

    def held() -> tuple[int, int]:
        return breaker.active, breaker.retries

    with httpx.Client(transport=MeshTransport(mesh), timeout=60) as client:
        found = play(upstream, lambda: client.get(f"http://l/{name}").status_code, held)
    poll(lambda: held() == (0, 0), "everything given back")
    return found


def test_hedges_take_the_same_of_the_limits(
    envoy: Envoy, mesh: Any, upstreams: dict[str, HttpUpstream], beside: dict[str, HttpUpstream]
) -> None:
    """All cases at the same time, each with an upstream of its own on either side."""
    with ThreadPoolExecutor(2 * len(CASES)) as pool:
        theirs = {name: pool.submit(by_envoy, envoy, name, upstreams[name]) for name in CASES}
        ours = {name: pool.submit(by_meshlib, mesh, name, beside[name]) for name in CASES}
        expected = {name: End(200, case.attempts, (case.attempts, 0), case.retries) for name, case in CASES.items()}
        assert expected == {name: end.result() for name, end in theirs.items()}
        assert expected == {name: end.result() for name, end in ours.items()}
