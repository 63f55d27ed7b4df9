from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from meshlib.admin.explain import Explanation, explain
from meshlib.model.cluster import CircuitBreakers, Cluster, EdsDiscovery
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, HealthStatus, Locality, LocalityEndpoints
from meshlib.model.headers import HeaderAdd, HeaderMutation
from meshlib.model.lb_policy import LeastRequest, RingHash
from meshlib.model.matcher import Fraction, HeaderMatcher, PathKind, PathMatcher, StringKind, StringMatcher
from meshlib.model.request import RequestHead
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import (
    ClusterHeader,
    ClusterWeight,
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
from meshlib.testing import builders
from meshlib.view import TargetView, View, build_view
from meshlib.xds.resources import CDS, EDS, LDS, RDS

ROOT = PathMatcher(PathKind.PREFIX, "/")


class Source:
    """The part of a mesh that explanations are made of."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.view: View = build_view(snapshot, None, now=0.0)

    def clock(self) -> float:
        return 0.0

    def meet(self, target: TargetView, head: RequestHead, timeout_s: float | None = None) -> TargetView:
        return target

    def wait_target(self, authority: str, timeout_s: float | None = None) -> TargetView:
        found = self.view.targets[authority]
        assert isinstance(found, TargetView)
        return found


def explained(
    *routes: Route,
    clusters: Mapping[str, ClusterConfig] | None = None,
    method: str = "GET",
    path: str = "/a",
    headers: Mapping[str, str] | None = None,
    versions: Mapping[tuple[str, str], str] | None = None,
) -> Explanation:
    snapshot = Snapshot(
        targets={"shop": builders.target("shop", *routes)}, clusters=clusters or {}, versions=versions or {}, number=7
    )
    return explain(Source(snapshot), method, f"http://shop{path}", headers=headers)


def to(name: str, **fields: object) -> RouteAction:
    return replace(RouteAction(SingleCluster(name)), **fields)


def test_route_that_takes_it_and_why_the_others_do_not() -> None:
    canary = HeaderMatcher("x-user", StringMatcher(StringKind.EXACT, "ann"))
    found = explained(
        Route(RouteMatcher(PathMatcher(PathKind.PREFIX, "/b")), to("b"), name="other path"),
        Route(RouteMatcher(ROOT, headers=(canary,)), to("b"), name="canary"),
        Route(RouteMatcher(ROOT, fraction=Fraction(10)), to("b"), name="some"),
        Route(RouteMatcher(ROOT), to("a"), name="usual"),
        Route(RouteMatcher(ROOT), to("a"), name="never"),
        headers={"x-user": "bob"},
    )
    text = str(found)
    assert 'route 0 other path [path prefix "/b"]: not taken: the path is "/a"' in text
    assert 'wants header x-user exact "ann" (it is "bob")' in text
    assert "taken by 10 of 100 requests, by chance" in text
    assert "=> route 3 usual" in text
    assert "not reached" in text
    assert [policy.route for policy in found.policies] == ["route 2 some", "route 3 usual"]


def test_where_every_fact_was_written() -> None:
    origin = {"meshlib": {"config": "VirtualService default/shop", "source": "shop.yaml:12"}}
    made = {"meshlib": {"config": "DestinationRule default/shop", "source": "rules.yaml:3"}}
    cluster = builders.cluster("a", "127.0.0.1:1", template=Cluster("a", EdsDiscovery("a"), metadata=made))
    versions = {(LDS, "shop"): "1", (RDS, "shop"): "2", (CDS, "a"): "3", (EDS, "a"): "4"}
    found = explained(
        Route(RouteMatcher(ROOT), to("a"), name="r", metadata=origin), clusters={"a": cluster}, versions=versions
    )
    told = {(one.type, one.name): (one.version, one.config, one.source) for one in found.facts}
    assert told["LDS", "shop"] == ("1", "", "")
    assert told["route", "r"] == ("", "VirtualService default/shop", "shop.yaml:12")
    (shown,) = found.clusters
    assert [(one.type, one.version, one.source) for one in shown.facts] == [
        ("CDS", "3", "rules.yaml:3"),
        ("EDS", "4", ""),
    ]
    assert "route r from VirtualService default/shop (shop.yaml:12)" in str(found)
    assert "CDS a version 3 from DestinationRule default/shop (rules.yaml:3)" in str(found)
    assert found.to_dict()["facts"][-1]["source"] == "shop.yaml:12"


def test_what_goes_out() -> None:
    action = to("a", prefix_rewrite="/new", host_rewrite_literal="other", mirrors=(MirrorPolicy("m", Fraction(25)),))
    mutation = HeaderMutation(request_add=(HeaderAdd("x-new", "1"),), request_remove=("x-old",))
    route = Route(RouteMatcher(PathMatcher(PathKind.PREFIX, "/a")), action, mutation=mutation)
    found = explained(route, path="/a/1?q", headers={"x-old": "1"})
    assert found.sends == ("GET http://other/new/1?q (+x-envoy-original-host, +x-envoy-original-path, +x-new, -x-old)")
    assert found.policies[0].mirrors == (("m", 0.25),)
    assert "25 % copied to m" in str(found)


def test_timeouts_and_retries_as_they_would_be() -> None:
    retry = RetryPolicy(frozenset({"5xx", "reset"}), 3, per_try_timeout_s=1.0)
    route = Route(RouteMatcher(ROOT), to("a", timeout_s=5.0, retry=retry, idle_timeout_s=9.0))
    policy = explained(route, method="POST").policies[0]
    assert (policy.timeout_s, policy.per_try_timeout_s, policy.idle_s) == (5.0, 1.0, 9.0)
    assert (policy.retries, policy.retry_on, policy.repeats) == (3, ("5xx", "reset"), "unprocessed")
    assert explained(route, method="POST", headers={"idempotency-key": "1"}).policies[0].repeats == "all"
    asked = explained(route, headers={"x-envoy-upstream-rq-timeout-ms": "700", "x-envoy-max-retries": "1"}).policies[0]
    assert (asked.timeout_s, asked.per_try_timeout_s, asked.retries) == (0.7, None, 1)
    assert "waits of up to 0.025 s, doubling to 0.25 s" in policy.retry


def test_split_limits_and_every_endpoint() -> None:
    weighted = WeightedClusters((ClusterWeight("a", 3), ClusterWeight("b", 1)))
    limits = CircuitBreakers(max_requests=10, max_retries=2)
    template = Cluster("a", EdsDiscovery("a"), lb_policy=LeastRequest(), circuit_breakers=limits)
    first = LocalityEndpoints(
        Locality("r", "z1"),
        (Endpoint("127.0.0.1:1", weight=2), Endpoint("127.0.0.1:2", health=HealthStatus.DRAINING)),
        1,
    )
    second = LocalityEndpoints(Locality("r", "z2"), (Endpoint("127.0.0.1:3"),), 1, priority=1)
    config = ClusterConfig(template, ClusterLoadAssignment("a", (first, second)))
    snapshot_clusters = {"a": config, "b": builders.cluster("b")}
    found = explained(Route(RouteMatcher(ROOT), RouteAction(weighted)), clusters=snapshot_clusters)
    shown, empty = found.clusters
    assert (shown.share, empty.share, empty.status.state) == (0.75, 0.25, "empty")
    assert (shown.limits or {})["max_requests"] == 10
    assert (shown.used or {})["max_requests"] == 0
    assert shown.retries_left == 2
    assert shown.settings is not None and shown.settings["choice_count"] == 2
    assert [(one.address, one.state, one.score) for one in shown.endpoints] == [
        ("127.0.0.1:1", "unknown", 0.5),
        ("127.0.0.1:2", "draining", 1.0),
        ("127.0.0.1:3", "unknown", 1.0),
    ]
    assert [(one.load_percent, one.healthy, one.hosts) for one in shown.priorities] == [(100, 1, 2), (0, 1, 1)]
    text = str(found)
    assert "max_requests 0 of 10" in text
    assert "priority 1: 0 % of the load, 1 of 1 healthy" in text


def test_answers_of_the_mesh_and_clusters_that_a_header_names() -> None:
    redirect = explained(Route(RouteMatcher(ROOT), Redirect(https=True)))
    assert redirect.answer is not None
    assert (redirect.answer.status, redirect.answer.headers) == (301, (("location", "https://shop/a"),))
    assert redirect.sends == ""
    named = Route(RouteMatcher(ROOT), RouteAction(ClusterHeader("x-to")))
    found = explained(named, clusters={"a": builders.cluster("a", "127.0.0.1:1")}, headers={"x-to": "a"})
    assert [cluster.name for cluster in found.clusters] == ["a"]
    nobody = explained()
    assert nobody.answer is not None and nobody.answer.flag == "NR"


def test_keys_of_the_dictionary_stay() -> None:
    """Programs read it."""
    found = explained(
        Route(RouteMatcher(ROOT), to("a")), clusters={"a": builders.cluster("a", "127.0.0.1:1")}
    ).to_dict()
    assert set(found) == {
        "method", "url", "authority", "view", "error", "resources", "routes", "policies", "clusters", "facts", "sends",
        "answer",
    }  # fmt: skip
    assert {"name", "share", "status", "policy", "priorities", "endpoints", "limits", "used"} <= set(
        found["clusters"][0]
    )
    assert {"number", "name", "verdict", "reason", "leads_to", "clusters"} <= set(found["routes"]["steps"][0])


def test_policies_of_a_cluster_that_the_request_names() -> None:
    own = Cluster("a", EdsDiscovery("a"), retry=RetryPolicy(frozenset({"reset"}), 2))
    found = explained(
        Route(RouteMatcher(ROOT), RouteAction(ClusterHeader("X-Cluster"))),
        clusters={"a": ClusterConfig(own, ClusterLoadAssignment("a"))},
        headers={"x-cluster": "a"},
    )
    assert [(policy.retries, policy.retry_on) for policy in found.policies] == [(2, ("reset",))]


def test_each_cluster_of_a_split_has_policies_of_its_own() -> None:
    def cluster(name: str, **own: Any) -> ClusterConfig:
        return ClusterConfig(Cluster(name, EdsDiscovery(name), **own), ClusterLoadAssignment(name))

    whole = Fraction(100)
    split = WeightedClusters((ClusterWeight("a", 3), ClusterWeight("b", 1), ClusterWeight("gone", 1)))
    retry = RetryPolicy(frozenset({"5xx"}), 1)
    route = Route(
        RouteMatcher(ROOT), RouteAction(split, retry=retry, hash_policies=(HashPolicy("header", "x-r"),)), name="r"
    )
    own = {"retry": RetryPolicy(frozenset({"reset"}), 2), "mirrors": (MirrorPolicy("m", whole),)}
    hashes = RingHash(hash_policies=(HashPolicy("cookie", "c"),))
    clusters = {"a": cluster("a", **own), "b": cluster("b", max_stream_duration_s=2.0, lb_policy=hashes)}
    found = explained(route, clusters=clusters)
    assert [(one.cluster, one.retries, one.mirrors, one.hashes, one.cluster_s) for one in found.policies] == [
        ("a", 2, (("m", 1.0),), ("header x-r",), None),
        ("b", 1, (), ("cookie c",), 2.0),
        ("gone", 1, (), ("header x-r",), None),
    ]
    assert "route 0 r to b: " in str(found)
    assert "2 s by the cluster" in str(found)
    same = explained(route, clusters={"a": cluster("a"), "b": cluster("b")})
    assert [(one.cluster, one.retries) for one in same.policies] == [("", 1)]
