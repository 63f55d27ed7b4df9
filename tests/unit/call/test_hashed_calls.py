"""Calls to clusters that hash: the same hash for all attempts, and a cookie for callers without one."""

from collections.abc import Callable
from typing import Any

import pytest

from meshlib.call import Attempt
from meshlib.model.cluster import Cluster, EdsDiscovery, LbPolicy, Maglev, RingHash, RoundRobin
from meshlib.model.outcome import Failure, FailureKind, Response
from meshlib.model.request import Headers
from meshlib.model.retry import RetryPolicy
from meshlib.model.route import HashPolicy, MadeCookie, RouteAction, SingleCluster
from meshlib.model.snapshot import Snapshot
from meshlib.testing import SeededRng, service

MakeDriver = Callable[..., Any]
REFUSED = Failure(FailureKind.CONNECT, False)
HOSTS = tuple(f"h:{number}" for number in range(1, 9))
KEY = HashPolicy("header", "x-key")
COOKIE = HashPolicy("cookie", "s", made=MadeCookie(60))


def hashing(policy: LbPolicy, *policies: HashPolicy, avoid: bool = False) -> Snapshot:
    retry = RetryPolicy(frozenset({"connect-failure"}), num_retries=1, avoid_previous_hosts=avoid)
    action = RouteAction(SingleCluster("a"), hash_policies=policies)
    template = Cluster("", EdsDiscovery(""), policy)
    return service("a", *HOSTS, retry=retry, action=action, template=template)


def host(call: Any) -> str:
    step = call.start(1000.0)
    assert isinstance(step, Attempt)
    return step.endpoint.address


@pytest.mark.parametrize("policy", [RingHash(), Maglev(251)])
def test_a_key_stays_with_its_host(driver: MakeDriver, policy: LbPolicy) -> None:
    d = driver(hashing(policy, KEY), SeededRng(1))

    found = {key: {host(d.call(headers={"x-key": str(key)})) for _ in range(4)} for key in range(30)}

    assert {1} == {len(hosts) for hosts in found.values()}
    assert len(set().union(*found.values())) > 4


@pytest.mark.parametrize(("avoid", "hosts"), [(False, 1), (True, 2)])
def test_a_retry_has_the_same_hash(driver: MakeDriver, avoid: bool, hosts: int) -> None:
    call = driver(hashing(Maglev(251), KEY, avoid=avoid), SeededRng(1)).call(headers={"x-key": "k"})
    host(call)
    step = call.finished(REFUSED, 1000.0)
    if not isinstance(step, Attempt):
        call.slept(1001.0)

    assert hosts == len(set(call.endpoints))


def test_the_cookie_that_is_made_leads_back_to_the_host(driver: MakeDriver) -> None:
    d = driver(hashing(RingHash(), COOKIE), SeededRng(1))
    call = d.call()
    first = host(call)
    call.finished(Response(200), 1000.0)

    (line,) = call.response_headers(Response(200).headers).all("set-cookie")
    again = d.call(headers={"cookie": line.partition(";")[0]})

    assert first == host(again) == host(d.call()), "callers without cookies stay together too"
    assert () == again.response_headers(Response(200).headers).all("set-cookie")


def test_no_cookie_is_made_for_a_cluster_that_does_not_hash(driver: MakeDriver) -> None:
    call = driver(hashing(RoundRobin(), COOKIE)).call()
    host(call)

    assert () == call.response_headers(Response(200).headers).all("set-cookie")


def test_the_clusters_own_hash_policy_counts_instead_of_the_routes(driver: MakeDriver) -> None:
    own = RingHash(hash_policies=(HashPolicy("header", "x-own"),))
    d = driver(hashing(own, KEY), SeededRng(1))

    found = {host(d.call(headers={"x-key": str(key), "x-own": "o"})) for key in range(20)}

    assert 1 == len(found)


@pytest.mark.parametrize("brings", [(KEY,), ()])
def test_policies_of_the_cluster_take_the_place_of_the_routes(driver: MakeDriver, brings: Any) -> None:
    other = HashPolicy("header", "x-other")
    plain = driver(hashing(Maglev(251), other), SeededRng(1))
    own = Cluster("", EdsDiscovery(""), Maglev(251), hash_policies=(other,))
    action = RouteAction(SingleCluster("a"), hash_policies=brings)
    d = driver(service("a", *HOSTS, action=action, template=own), SeededRng(1))
    for number in range(20):
        headers = {"x-other": str(number), "x-key": "same"}
        assert host(d.call(headers=headers)) == host(plain.call(headers=headers))


def test_a_cluster_makes_cookies_too(driver: MakeDriver) -> None:
    own = Cluster("", EdsDiscovery(""), Maglev(251), hash_policies=(COOKIE,))
    call = driver(service("a", *HOSTS, template=own), SeededRng(1)).call()
    host(call)
    call.finished(Response(200), 1000.0)
    assert call.response_headers(Headers()).get("set-cookie") is not None
