"""Requests that name their endpoints (the `override_host` policy) go there, one endpoint an attempt."""

from collections.abc import Callable
from typing import Any

import pytest

from meshlib.call import Attempt, Done
from meshlib.call.named import named_endpoints
from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.endpoint import Endpoint, HealthStatus
from meshlib.model.outcome import Failure, FailureKind
from meshlib.model.request import Headers
from meshlib.model.retry import RetryPolicy
from meshlib.testing import service

MakeDriver = Callable[..., Any]
REFUSED = Failure(FailureKind.CONNECT, False)
HOSTS = tuple(f"h:{number}" for number in range(1, 9))
NAMED = Cluster("", EdsDiscovery(""), named_by=("x-pick", "x-more"))


def tried(call: Any) -> list[str]:
    """Let every attempt fail; returns where they went."""
    step, found = call.start(1000.0), []
    while not isinstance(step, Done):
        if isinstance(step, Attempt):
            found.append(step.endpoint.address)
            step = call.finished(REFUSED, 1000.0)
        else:
            step = call.slept(1000.0)
    call.close(1000.0)
    return found


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, []),
        ({"x-pick": "h:2"}, ["h:2"]),
        ({"x-pick": " h:2 ,, h:1,h:2"}, ["h:2", "h:1", "h:2"]),
        ({"x-more": "h:3", "x-pick": "h:2", "x-other": "h:4"}, ["h:2", "h:3"]),
        ({"x-pick": "/run/s"}, ["unix:/run/s"]),
    ],
)
def test_names_are_read_header_by_header(headers: dict[str, str], expected: list[str]) -> None:
    assert expected == named_endpoints(Headers.of(headers), NAMED.named_by)


def test_only_the_first_entry_of_a_header_counts() -> None:
    assert ["h:1"] == named_endpoints(Headers((("x-pick", "h:1"), ("x-pick", "h:2"))), ("x-pick",))


def test_each_attempt_goes_to_the_next_name_that_the_cluster_has_and_then_the_policy_chooses(
    driver: MakeDriver,
) -> None:
    d = driver(service("a", *HOSTS, template=NAMED, retry=RetryPolicy(frozenset({"connect-failure"}), num_retries=3)))
    assert ["h:7", "h:5", "h:1", "h:2"] == tried(d.call(headers={"x-pick": "h:7,nobody:1,h:5"}))


def test_health_does_not_matter_to_who_is_named(driver: MakeDriver) -> None:
    endpoints = (Endpoint("h:1"), Endpoint("h:2", health=HealthStatus.UNHEALTHY), Endpoint("h:3"))
    d = driver(service("a", *endpoints, template=NAMED))
    assert ["h:2"] == tried(d.call(headers={"x-pick": "h:2"}))


def test_a_cluster_without_the_policy_takes_no_orders(driver: MakeDriver) -> None:
    d = driver(service("a", *HOSTS))
    assert ["h:1"] == tried(d.call(headers={"x-pick": "h:7"}))
