"""The call of a copy: what it has of the request that it copies, and what of its own."""

from collections.abc import Callable
from typing import Any

from meshlib.call import Attempt, Call, Done, mirror_call
from meshlib.events import HostEjected
from meshlib.model.cluster import Cluster, EdsDiscovery, OutlierDetection
from meshlib.model.endpoint import Endpoint
from meshlib.model.matcher import Fraction
from meshlib.model.outcome import Failure, FailureKind, LocalReply, Response
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import MirrorPolicy, RouteAction, SingleCluster
from meshlib.testing import merge, service

MakeDriver = Callable[..., Any]
POLICY = MirrorPolicy("copy", Fraction(100))
ACTION = RouteAction(SingleCluster("a"), mirrors=(POLICY,))
ONE_STRIKE = Cluster(
    "copy", EdsDiscovery("copy"), outlier_detection=OutlierDetection(consecutive_5xx=1, max_ejection_percent=100)
)


def copied(d: Any, headers: dict[str, str] | None = None) -> tuple[Call, Call]:
    """Start a call, and make its copy."""
    call = d.call(headers=headers)
    step = call.start(d.clock())
    assert isinstance(step, Attempt)
    (policy,) = call.match.mirrors
    copy = mirror_call(
        call,
        policy,
        step.head,
        rng=d.mesh.rng,
        now=d.clock(),
        timeout_s=None if call.deadline is None else call.deadline - d.clock(),
        hook=d.mesh.emit,
    )
    return call, copy


def snapshot(*endpoints: str, **options: Any) -> Any:
    return merge(service("a", "h:1", action=ACTION, **options), service("copy", *endpoints, template=ONE_STRIKE))


def test_copy_goes_to_the_mirror_under_its_own_name(driver: MakeDriver) -> None:
    _, copy = copied(driver(snapshot("m:1")))

    step = copy.start(1000.0)

    assert isinstance(step, Attempt)
    assert (step.endpoint.address, step.head.authority, step.head.path) == ("m:1", "a-shadow", "/x?y=1")
    assert step.head.headers.all("x-envoy-internal") == ("true",)


def test_copy_ends_with_the_time_of_the_request(driver: MakeDriver) -> None:
    d = driver(snapshot("m:1", timeout_s=3.0))
    _, copy = copied(d)

    step = copy.start(1001.0)

    assert isinstance(step, Attempt)
    assert step.timeout_s == 2.0


def test_copy_is_not_repeated(driver: MakeDriver) -> None:
    d = driver(snapshot("m:1", retry=RetryPolicy(frozenset({"5xx"}), num_retries=3)))
    _, copy = copied(d, {"x-envoy-retry-on": "5xx"})
    copy.start(1000.0)

    assert isinstance(copy.finished(Response(503), 1000.1), Done)


def test_copy_takes_a_permit_of_the_mirror_and_counts_against_its_endpoint(driver: MakeDriver) -> None:
    d = driver(snapshot("m:1"))
    call, copy = copied(d)
    copy.start(1000.0)
    breaker = d.mesh.cluster("copy").breaker
    assert breaker.active == 1

    copy.finished(Failure(FailureKind.CONNECT, False), 1000.1)
    copy.close(1000.1)

    assert breaker.active == 0
    assert d.mesh.cluster("copy").states["m:1"].is_ejected
    assert [type(event) for event in d.events] == [HostEjected], "a copy is no call of the application"
    call.close(1000.2)


def test_mirror_without_endpoints_costs_nothing(driver: MakeDriver) -> None:
    d = driver(snapshot())
    _, copy = copied(d)

    step = copy.start(1000.0)

    assert isinstance(step, Done)
    assert isinstance(step.result, LocalReply)
    assert step.flag == "UH"


def test_mirror_that_does_not_exist_costs_nothing(driver: MakeDriver) -> None:
    _, copy = copied(driver(service("a", "h:1", action=ACTION)))

    step = copy.start(1000.0)

    assert isinstance(step, Done)
    assert step.flag == "NC"


def test_mirrors_of_the_cluster_take_the_place_of_the_routes(driver: MakeDriver) -> None:
    own = Cluster("", EdsDiscovery(""), mirrors=(MirrorPolicy("other", Fraction(100)), MirrorPolicy("no", Fraction(0))))
    call = driver(merge(service("a", "h:1", action=ACTION, template=own), service("other", "m:1"))).call()
    call.start(1000.0)
    assert call.match is not None
    assert ["other"] == [mirror.cluster for mirror in call.match.mirrors]


def test_a_copy_has_the_host_from_before_the_endpoint_gave_its_own(driver: MakeDriver) -> None:
    action = RouteAction(SingleCluster("a"), mirrors=(POLICY,), auto_host_rewrite=True, append_x_forwarded_host=True)
    named = Endpoint("h:1", hostname="one.host")
    d = driver(merge(service("a", named, action=action), service("copy", "m:1")))
    call, copy = copied(d, {"x-forwarded-host": "before"})
    step = copy.start(1000.0)
    assert isinstance(step, Attempt)
    assert ("a-shadow", "before", None) == (
        step.head.authority,
        step.head.headers.get("x-forwarded-host"),
        step.head.headers.get("x-envoy-original-host"),
    )
    call.close(1000.0)
