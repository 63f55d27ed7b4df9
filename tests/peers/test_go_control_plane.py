"""A mesh against the real go-control-plane, over every form of stream."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from foreign import control_plane as xds
from foreign.control_plane import ControlPlane
from foreign.mesh import FORMS, Client
from peers.processes import poll

from meshlib.errors import MeshError

Connect = Callable[..., Client]


def test_services_are_found_and_called(server: ControlPlane, connect: Connect, upstreams: dict[str, int]) -> None:
    server.put(*xds.service("checkout", upstreams["v1"]), *xds.service("billing", upstreams["grpc"]))
    client = connect(server)
    assert "v1" == client.get("http://checkout/orders")
    assert "grpc" == client.call("billing")
    server.wait_acknowledged()
    assert [] == server.refusals()
    assert {"ACKED"} == {resource.state for resource in client.mesh.dump()}


def test_updates_are_used_as_they_come(server: ControlPlane, connect: Connect, upstreams: dict[str, int]) -> None:
    """Other endpoints, a route to another cluster, and back; a change of one service is none of another.

    The cluster goes a snapshot later than the route to it: the cache answers for the types in any order.
    """
    v1, v2 = upstreams["v1"], upstreams["v2"]
    billing = xds.service("billing", v1)
    server.put(*xds.service("checkout", v1), *billing)
    client = connect(server)
    assert {"v1"} == client.answers("http://checkout/") == client.answers("http://billing/")

    server.put(*xds.service("checkout", v2), *billing)
    poll(lambda: client.get("http://checkout/") == "v2", "other endpoints")
    server.put(*xds.service("checkout", v1, v2), *billing)
    poll(lambda: client.answers("http://checkout/") == {"v1", "v2"}, "both endpoints")

    canary = [xds.cluster("canary"), xds.endpoints("canary", v2)]
    split = xds.routes("checkout", xds.to("canary", "/new"), xds.to("checkout"))
    server.put(xds.listener("checkout", "checkout"), split, *xds.service("checkout", v1)[2:], *canary, *billing)
    poll(lambda: client.get("http://checkout/new") == "v2", "another cluster")
    poll(lambda: client.answers("http://checkout/old") == {"v1"}, "the endpoints beside it")
    server.put(*xds.service("checkout", v1), *canary, *billing)
    poll(lambda: client.get("http://checkout/new") == "v1", "the route to be gone")
    server.put(*xds.service("checkout", v1), *billing)
    server.wait_acknowledged()
    assert {"v1"} == client.answers("http://checkout/new")
    assert {"v1"} == client.answers("http://billing/")

    server.wait_acknowledged()
    assert [] == server.refusals()


def test_what_is_removed_is_gone_and_comes_back(
    server: ControlPlane, connect: Connect, upstreams: dict[str, int]
) -> None:
    other = xds.service("billing", upstreams["v2"])
    server.put(*xds.service("checkout", upstreams["v1"]), *other)
    client = connect(server)
    assert {"v1"} == client.answers("http://checkout/")
    server.put(*other)

    assert "checkout" in poll(lambda: client.refusal("http://checkout/"), "the service to be gone")
    assert "v2" == client.get("http://billing/")
    server.put(*xds.service("checkout", upstreams["v1"]), *other)
    poll(lambda: not client.refusal("http://checkout/"), "the service to be back")
    assert {"v1"} == client.answers("http://checkout/")
    assert [] == server.refusals()


def test_a_bad_resource_is_refused_once_and_the_last_good_one_stays(
    server: ControlPlane, connect: Connect, upstreams: dict[str, int]
) -> None:
    """The server answers a refusal with the same again at once; the client must not race with it."""
    server.put(*xds.service("checkout", upstreams["v1"]), *xds.service("billing", upstreams["v2"]))
    client = connect(server)
    assert {"v1"} == client.answers("http://checkout/")
    assert "v2" == client.get("http://billing/")

    bad = xds.cluster("checkout", lb_policy="RING_HASH", ring_hash_lb_config={"minimum_ring_size": 9_000_000})
    good = xds.service("checkout", upstreams["v1"])
    server.put(good[0], good[1], bad, good[3], *xds.service("billing", upstreams["v1"]))
    refused = poll(server.refusals, "a refusal")
    assert "ring_hash" in refused[0].error
    assert "checkout" in refused[0].error
    poll(lambda: client.get("http://billing/") == "v1", "the good one beside it")
    assert {"v1"} == client.answers("http://checkout/")
    states = {one.name: one for one in client.mesh.dump() if one.type == "CDS"}
    assert ("NACKED", "ACKED") == (states["checkout"].state, states["billing"].state)
    assert len(server.refusals()) < 20

    server.put(*xds.service("checkout", upstreams["v2"]), *xds.service("billing", upstreams["v1"]))
    poll(lambda: client.get("http://checkout/") == "v2", "the good one after it")
    assert {"ACKED"} == {one.state for one in client.mesh.dump()}


def test_calls_go_on_while_the_server_restarts(
    server: ControlPlane, connect: Connect, upstreams: dict[str, int]
) -> None:
    """It comes back empty, and later with other endpoints.

    An empty linear cache tells incremental clients at once that all they held is gone; `ignore_resource_deletion` is for that.
    """
    server.put(*xds.service("checkout", upstreams["v1"]), version="7")
    client = connect(server, "ignore_resource_deletion")
    assert {"v1"} == client.answers("http://checkout/")
    server.stop()
    assert {"v1"} == client.answers("http://checkout/")
    server.restart()
    poll(lambda: server.said(kind="request"), "the client to be back", timeout_s=60)
    assert {"v1"} == client.answers("http://checkout/")
    server.put(*xds.service("checkout", upstreams["v2"]), version="6")
    poll(lambda: client.get("http://checkout/") == "v2", "news under a lower version")
    assert [] == server.refusals()


def test_a_server_that_comes_back_empty_takes_back_what_it_gave_when_it_says_so(
    tmp_path: Path, stack: ExitStack, upstreams: dict[str, int]
) -> None:
    server = stack.enter_context(ControlPlane(tmp_path, "-cache", "linear"))
    server.put(*xds.service("checkout", upstreams["v1"]))
    client = Client(stack, server, "meshlib.delta")
    assert {"v1"} == client.answers("http://checkout/")
    server.restart()
    gone = poll(
        lambda: [one for one in server.said(xds.LDS, kind="response") if one.removed], "the removal", timeout_s=60
    )
    assert ("checkout",) == gone[0].removed
    poll(lambda: client.refusal("http://checkout/"), "the service to be gone")


def test_a_snapshot_without_what_it_refers_to_leaves_the_last_whole_one_in_use(
    server: ControlPlane, connect: Connect, upstreams: dict[str, int]
) -> None:
    """A route leads to a cluster that comes later, and a new service has no endpoints at first."""
    good = xds.service("checkout", upstreams["v1"])
    server.put(*good)
    client = connect(server)
    assert {"v1"} == client.answers("http://checkout/")
    server.put(good[0], xds.routes("checkout", xds.to("later")), *good[2:])
    server.wait_acknowledged()
    assert {"v1"} == client.answers("http://checkout/")
    server.put(good[0], xds.routes("checkout", xds.to("later")), xds.cluster("later"), *good[2:])
    server.wait_acknowledged()
    assert {"v1"} == client.answers("http://checkout/")
    late = [xds.cluster("later"), xds.endpoints("later", upstreams["v2"])]
    server.put(good[0], xds.routes("checkout", xds.to("later")), *late, *good[2:])
    poll(lambda: client.get("http://checkout/") == "v2", "the whole")
    assert [] == server.refusals()


@pytest.fixture
def strict(tmp_path: Path, stack: ExitStack) -> ControlPlane:
    """A snapshot cache in ADS mode: it answers a request by name only when all that exist of the type are named."""
    return stack.enter_context(ControlPlane(tmp_path, "-cache", "ads"))


def test_ads_mode_holds_back_services_until_all_are_named(
    strict: ControlPlane, stack: ExitStack, upstreams: dict[str, int]
) -> None:
    strict.put(*xds.service("checkout", upstreams["v1"]), *xds.service("billing", upstreams["v2"]))
    client = Client(stack, strict)
    with pytest.raises(MeshError, match="waiting for LDS resource checkout"):
        client.mesh.wait_ready("checkout", timeout_s=2)
    client.mesh.wait_ready("checkout", "billing", timeout_s=10)
    assert ("v1", "v2") == (client.get("http://checkout/"), client.get("http://billing/"))
    assert [] == strict.refusals()


@pytest.mark.parametrize("form", ["delta", "delta separate"])
def test_ads_mode_serves_incremental_clients_name_by_name(
    strict: ControlPlane, stack: ExitStack, upstreams: dict[str, int], form: str
) -> None:
    strict.put(*xds.service("checkout", upstreams["v1"]), *xds.service("billing", upstreams["v2"]))
    client = Client(stack, strict, *FORMS[form])
    assert "v1" == client.get("http://checkout/")
    assert not any("billing" in one.names for one in strict.said(kind="request"))
