"""What `explain` says of a request is what then happens to it, for random routes, clusters and requests without chance."""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.admin.explain import Explanation, explain
from meshlib.call import Attempt, Call, Done, Sleep
from meshlib.model.cluster import CircuitBreakers, Cluster, EdsDiscovery
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, HealthStatus, Locality, LocalityEndpoints
from meshlib.model.headers import AppendAction, HeaderAdd, HeaderMutation
from meshlib.model.lb_policy import LeastRequest, Maglev, Random, RingHash, RoundRobin
from meshlib.model.matcher import Fraction, HeaderMatcher, PathKind, PathMatcher, StringKind, StringMatcher
from meshlib.model.outcome import LocalReply, Response
from meshlib.model.profile import HTTP
from meshlib.model.request import Headers, RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import (
    ClusterHeader,
    ClusterWeight,
    DirectResponse,
    HashPolicy,
    MirrorPolicy,
    Redirect,
    Route,
    RouteAction,
    RouteMatcher,
    SingleCluster,
    WeightedClusters,
)
from meshlib.model.snapshot import ClusterConfig, Snapshot
from meshlib.testing import SeededRng, builders, mesh_source

BUSY = Response(503)
ALL = Fraction(100)

GOOD = (HealthStatus.HEALTHY,) * 8
HEADER = HeaderMatcher("x-a", StringMatcher(StringKind.EXACT, "a"))
ADDED = HeaderMutation(
    request_add=(HeaderAdd("x-added", "%REQ(x-a)%!", AppendAction.OVERWRITE_IF_EXISTS_OR_ADD, False),)
)


class Worlds:
    """Makes snapshots and requests; each is as likely as the others, which smallest examples are not."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def _pick(self, *items: Any) -> Any:
        return self._random.choice(items)

    def _retry(self) -> RetryPolicy:
        words = self._pick("5xx", "5xx", "gateway-error", "retriable-4xx", "")
        return RetryPolicy(
            frozenset({words} - {""}), self._random.randrange(4), per_try_timeout_s=self._pick(None, 0.5, 40.0)
        )

    def _matcher(self) -> RouteMatcher:
        return RouteMatcher(
            PathMatcher(self._pick(PathKind.PREFIX, PathKind.PREFIX, PathKind.PATH), self._pick("/", "/a", "/a/b")),
            self._pick((), (), (HEADER,)),
            fraction=self._pick(None, None, Fraction(0), Fraction(100)),
        )

    def _action(self) -> Any:
        if self._random.random() < 0.15:
            return self._pick(DirectResponse(404, b"x"), Redirect(https=True), Redirect())
        split = tuple(ClusterWeight(name, self._random.randrange(1, 4)) for name in ("a", "b"))
        return RouteAction(
            self._pick(
                *map(SingleCluster, ("a", "b", "a", "b", "gone")),
                ClusterHeader("x-cluster"),
                WeightedClusters(split, header_name="x-weight"),
            ),
            timeout_s=self._pick(None, 0.0, 0.25, 60.0),
            max_stream_duration_s=self._pick(None, None, 0.0, 7.0),
            idle_timeout_s=self._pick(None, None, 3.0),
            retry=self._pick(None, self._retry(), self._retry()),
            prefix_rewrite=self._pick("", "/new"),
            host_rewrite_literal=self._pick("", "other"),
            hash_policies=self._pick((), (HashPolicy("header", "x-a"),)),
            mirrors=self._pick((), (), (MirrorPolicy("m", ALL),)),
        )

    def _cluster(self, name: str) -> ClusterConfig:
        groups = tuple(
            LocalityEndpoints(
                Locality(str(number)),
                tuple(
                    Endpoint(f"{name}.{number}:{host + 1}", health=self._pick(*HealthStatus, *GOOD))
                    for host in range(self._random.randrange(4))
                ),
                priority=number,
                weight=1,
            )
            for number in range(self._pick(1, 2, 3))
        )
        options: Any = {
            "panic_threshold_percent": self._pick(0.0, 50.0, 100.0),
            "retry": self._pick(None, None, None, self._retry()),
            "hash_policies": self._pick((), (), (HashPolicy("header", "x-own"),)),
            "mirrors": self._pick((), (), (MirrorPolicy("m" + name, ALL),)),
            "max_stream_duration_s": self._pick(None, None, 0.125),
            "circuit_breakers": self._pick(*[CircuitBreakers()] * 5, CircuitBreakers(max_requests=0)),
        }
        policy = self._pick(RoundRobin(), LeastRequest(), Random(), RingHash(), Maglev(101))
        return ClusterConfig(Cluster(name, EdsDiscovery(name), policy, **options), ClusterLoadAssignment(name, groups))

    def snapshot(self) -> Snapshot:
        routes = [
            Route(self._matcher(), self._action(), name=f"r{number}", mutation=self._pick(HeaderMutation(), ADDED))
            for number in range(self._random.randrange(5))
        ]
        clusters = {name: self._cluster(name) for name in ("a", "b")}
        return Snapshot(targets={"shop": builders.target("shop", *routes)}, clusters=clusters, number=1)

    def request(self) -> tuple[str, str, dict[str, str]]:
        headers = {"x-weight": str(self._random.randrange(10)), "x-cluster": self._pick("a", "b", "gone")}
        if self._random.random() < 0.5:
            headers["x-own"] = self._pick("a", "b")
        if self._random.random() < 0.7:
            headers["x-a"] = self._pick("", "a", "b")
        return self._pick("GET", "POST"), self._pick("/", "/a", "/a/b?q=1", "/c"), headers


def least(*limits: float | None) -> float | None:
    return min((limit for limit in limits if limit), default=None)


def check_answer(found: Explanation, call: Call, result: object) -> None:
    """An answer of the mesh is foretold; what comes of clusters is told with them."""
    assert isinstance(result, LocalReply)
    if found.answer is not None:
        told = (found.answer.status, found.answer.flag, found.answer.headers)
        assert told == (result.status, result.flag, result.headers)
        return
    (cluster,) = [one for one in found.clusters if one.name == call.cluster_name] or [None]
    match result.flag:
        case "NC":
            assert cluster is None or not cluster.endpoints
        case "UO":
            assert cluster is not None and cluster.limits is not None
            assert cluster.limits["max_requests"] == 0
        case "UH":
            assert cluster is not None
            # Load that leads nowhere: what is there for it cannot be used. Rings have no degraded hosts.
            hashes = cluster.policy.startswith(("RingHash", "Maglev"))
            usable = [
                one.hosts if one.is_panicking else one.healthy if hashes else one.healthy + one.degraded
                for one in cluster.priorities
            ]
            loads = [one.load_percent for one in cluster.priorities]
            assert not sum(loads) or any(load and not hosts for load, hosts in zip(loads, usable, strict=True))
        case flag:
            raise AssertionError(flag)


@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_what_is_explained_is_what_happens(seed: int) -> None:
    worlds = Worlds(seed)
    snapshot, (method, path, headers) = worlds.snapshot(), worlds.request()
    mesh = mesh_source(snapshot, rng=SeededRng(seed))
    found = explain(mesh, method, f"http://shop{path}", headers=headers)
    head = RequestHead(method, "shop", path, Headers.of(headers), profile=HTTP)
    target = mesh.target("shop")
    call = Call(target, head, rng=mesh.rng, now=0.0)
    step = call.start(0.0)
    assert str(found)
    if isinstance(step, Done):
        check_answer(found, call, step.result)
        return
    assert isinstance(step, Attempt) and call.match is not None
    assert found.answer is None and not found.error
    assert found.routes is not None and found.routes.chosen is not None
    assert found.routes.chosen.name == call.match.route_name

    # Where it goes, and as what.
    cluster = next(one for one in found.clusters if one.name == call.cluster_name)
    assert cluster.share > 0
    out = call.sent_head
    assert found.sends.split(" (")[0] == f"{out.method} {out.scheme}://{out.authority}{out.path}"
    place = next(one for one in cluster.endpoints if one.address == step.endpoint.address)
    priority = cluster.priorities[place.priority]
    assert priority.load_percent > 0
    assert priority.is_panicking or place.state in ("unknown", "healthy", "degraded")

    # For how long, and how often.
    (policy,) = [
        one
        for one in found.policies
        if one.route.endswith(f" {call.match.route_name}") and one.cluster in ("", call.cluster_name)
    ]
    limit_s = least(policy.timeout_s, policy.per_try_timeout_s, policy.stream_s, policy.idle_s)
    assert step.timeout_s == least(limit_s, policy.cluster_s)
    assert policy.mirrors == tuple((one.cluster, 1.0) for one in call.match.mirrors)
    is_hashed = any(f"header {name}" in policy.hashes for name in headers)
    if is_hashed and cluster.policy.startswith(("RingHash", "Maglev")):
        # What is hashed decides: the same request goes to the same endpoint, whatever chance says.
        for other in range(3):
            again = Call(target, head, rng=SeededRng(other), now=0.0)
            second = again.start(0.0)
            assert isinstance(second, Attempt)
            assert second.endpoint == step.endpoint
            again.close(0.0)
    is_repeated = policy.repeats == "all" and {"5xx", "gateway-error"} & set(policy.retry_on)
    now = 0.0
    while not isinstance(step, Done):
        step = call.slept(now) if isinstance(step, Sleep) else call.finished(BUSY, now)
    call.close(now)
    expected = policy.retries if is_repeated else 0
    assert call.attempts == expected + 1 or call.flag in ("UH", "UO")
