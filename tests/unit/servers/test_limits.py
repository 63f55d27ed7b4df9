"""Filters that limit what comes in: they stand among those for authorization, and hear how a request ended."""

from typing import Any

import pytest

from meshlib.model.descriptors import LimitRule, RemoteAddress
from meshlib.model.filters import (
    AdaptiveConcurrency,
    AdmissionControl,
    DescriptorLimit,
    LimitFilter,
    ListedLimit,
    LocalRateLimit,
    TokenBucket,
)
from meshlib.model.headers import HeaderAdd
from meshlib.model.matcher import Fraction
from meshlib.model.request import Headers, RequestHead
from meshlib.servers.inbound import Inbound
from meshlib.servers.peer import ANONYMOUS

ALWAYS = Fraction(100)
ONE = TokenBucket(1, 1, 600.0)


def listed(config: LimitFilter, position: int = 0) -> ListedLimit:
    return ListedLimit("limit", config, position=position)


def begin(inbound: Inbound, path: str = "/users/7", *, remote: str = "10.0.0.1", is_grpc: bool = False) -> Any:
    head = RequestHead("POST" if is_grpc else "GET", "users", path, Headers(), is_grpc=is_grpc)
    return inbound.begin(head, ANONYMOUS, local=("127.0.0.1", 80), remote=remote)


def inbound_with(mesh: Any, *limits: ListedLimit, rbac: tuple[Any, ...] = (), prefix: str = "/") -> Inbound:
    mesh.rules(*rbac, limits=limits, prefix=prefix)
    return Inbound(mesh, kind="http")


def test_a_rate_limit_refuses_and_says_what_is_left(server_mesh: Any) -> None:
    config = LocalRateLimit(ONE, ALWAYS, ALWAYS, response_headers=(HeaderAdd("x-mine", "late"),), tells_limits=True)
    inbound = inbound_with(server_mesh, listed(config))
    first = begin(inbound)
    assert first.reply is None
    assert dict(first.response_headers)["x-ratelimit-remaining"] == "0"
    first.finish(200)
    reply = begin(inbound).reply
    assert (429, "RL", b"local_rate_limited", 14) == (reply.status, reply.flag, reply.body, reply.grpc_status)
    assert {("x-mine", "late"), ("x-ratelimit-limit", "1")} <= set(reply.headers)
    server_mesh.clock.advance(600.0)
    assert begin(inbound).reply is None


def test_grpc_may_be_told_that_a_resource_is_exhausted(server_mesh: Any) -> None:
    inbound = inbound_with(server_mesh, listed(LocalRateLimit(ONE, ALWAYS, ALWAYS, is_exhaustion=True)))
    begin(inbound, is_grpc=True)
    assert 8 == begin(inbound, is_grpc=True).reply.grpc_status


def test_callers_are_counted_by_their_addresses(server_mesh: Any) -> None:
    config = LocalRateLimit(
        TokenBucket(100, 1, 1.0),
        ALWAYS,
        ALWAYS,
        descriptors=(DescriptorLimit((("remote_address", ""),), ONE),),
        rules=(LimitRule((RemoteAddress(),)),),
    )
    inbound = inbound_with(server_mesh, listed(config))
    found = [begin(inbound, remote=remote).reply for remote in ("10.0.0.1", "10.0.0.2", "10.0.0.1")]
    assert [None, None, 429] == [None if reply is None else reply.status for reply in found]


@pytest.mark.parametrize(("position", "statuses"), [(0, [403, 429]), (1, [403, 403])])
def test_filters_run_in_their_order(server_mesh: Any, gateway_rules: Any, position: int, statuses: list[int]) -> None:
    limit = listed(LocalRateLimit(ONE, ALWAYS, ALWAYS), position)
    inbound = inbound_with(server_mesh, limit, rbac=(gateway_rules("GET"),))
    assert statuses == [begin(inbound).reply.status for _ in range(2)]


def test_a_request_without_a_route_is_limited_too(server_mesh: Any) -> None:
    inbound = inbound_with(server_mesh, listed(LocalRateLimit(ONE, ALWAYS, ALWAYS)), prefix="/other")
    assert [404, 429] == [begin(inbound).reply.status for _ in range(2)]


def test_what_is_counted_outlives_an_update_that_leaves_the_filter(server_mesh: Any) -> None:
    limit = listed(LocalRateLimit(ONE, ALWAYS, ALWAYS))
    inbound = inbound_with(server_mesh, limit)
    begin(inbound)
    server_mesh.rules(limits=(limit,))
    assert 429 == begin(inbound).reply.status
    server_mesh.rules(limits=(listed(LocalRateLimit(TokenBucket(2, 1, 600.0), ALWAYS, ALWAYS)),))
    assert begin(inbound).reply is None


def test_a_path_with_several_readings_counts_once(server_mesh: Any) -> None:
    inbound = inbound_with(server_mesh, listed(LocalRateLimit(TokenBucket(2, 1, 600.0), ALWAYS, ALWAYS)))
    assert [None, None] == [begin(inbound, "/a//../b").reply for _ in range(2)]


def test_concurrency_is_given_back_once(server_mesh: Any) -> None:
    inbound = inbound_with(server_mesh, listed(AdaptiveConcurrency(min_limit=1)))
    first = begin(inbound)
    refused = begin(inbound)
    assert (503, b"reached concurrency limit", 14) == (
        refused.reply.status, refused.reply.body, refused.reply.grpc_status,
    )  # fmt: skip
    refused.finish(503)
    assert 503 == begin(inbound).reply.status
    first.finish(200)
    first.finish(200)
    assert begin(inbound).reply is None
    assert 503 == begin(inbound).reply.status


def test_a_failing_application_is_spared(server_mesh: Any) -> None:
    inbound = inbound_with(server_mesh, listed(AdmissionControl(max_rejection=1.0)))
    statuses = []
    for _ in range(100):
        request = begin(inbound)
        statuses.append(0 if request.reply is None else request.reply.status)
        request.finish(500 if request.reply is None else request.reply.status)
    assert 50 < statuses.count(503) < 100
    healthy = inbound_with(server_mesh, listed(AdmissionControl()))
    for _ in range(50):
        request = begin(healthy)
        assert request.reply is None
        request.finish(200)


def test_servers_of_one_process_share_what_an_address_has(server_mesh: Any) -> None:
    """As the workers of an Envoy do; another address has its own, and so has another mesh."""
    limit = listed(LocalRateLimit(ONE, ALWAYS, ALWAYS))
    first = inbound_with(server_mesh, limit)
    second = Inbound(server_mesh, kind="grpc", address="127.0.0.1:80")
    assert begin(first).reply is None
    assert 429 == begin(second, is_grpc=True).reply.status

    server_mesh.rules(limits=(limit,), address="127.0.0.1:81")
    server_mesh.inbound("127.0.0.1:81").current = server_mesh.inbound("127.0.0.1:80").current
    assert begin(Inbound(server_mesh, kind="http", address="127.0.0.1:81")).reply is None
