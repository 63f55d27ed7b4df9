"""A mesh with two management servers over real gRPC: the first dies, the second serves, the first comes back."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from peers.endpoints import ports

from meshlib import Mesh
from meshlib.xds.resources import CDS, EDS


def eventually(look: Callable[[], bool], timeout_s: float = 40.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not look():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def server(ads: Any) -> dict[str, Any]:
    return {"server_uri": ads.address, "channel_creds": [{"type": "insecure"}]}


@pytest.fixture
def second(ads: Any, tools: Any) -> Iterator[Any]:
    """Another server, where `checkout` is at port 2."""
    other = type(ads)()
    other.start()
    tools.put_service(other, "checkout", 2)
    yield other
    other.stop()


def connect(*servers: Any, **more: Any) -> Mesh:
    bootstrap = {"xds_servers": [server(one) for one in servers], "node": {"id": "orders-1"}, **more}
    return Mesh(bootstrap, state_dir="")


def test_the_second_server_serves_while_the_first_is_away_from_the_start(ads: Any, second: Any) -> None:
    ads.stop()
    with connect(ads, second) as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        assert [2] == ports(mesh)
        assert second.address == mesh.status().server_uri
        ads.start()
        eventually(lambda: ports(mesh) == [1])
        eventually(lambda: mesh.status().server_uri == ads.address)
        eventually(lambda: not second._streams)


def test_a_first_server_that_dies_is_not_missed_until_something_new_is_wanted(
    ads: Any, second: Any, tools: Any
) -> None:
    tools.put_service(second, "cart", 3)
    with connect(ads, second) as mesh:
        mesh.wait_ready("checkout", timeout_s=30)
        assert [1] == ports(mesh)
        ads.stop()
        time.sleep(1.5)
        assert not second.requests
        assert [1] == ports(mesh)
        mesh.wait_ready("cart", timeout_s=30)
        assert [3] == ports(mesh, "cart")
        eventually(lambda: ports(mesh) == [2])
        # Back again: everything is read from the first server, and the second hears no more.
        tools.put_service(ads, "cart", 4)
        ads.start()
        eventually(lambda: ports(mesh, "cart") == [4] and ports(mesh) == [1])
        eventually(lambda: not second._streams)
        assert 1 == second._count


def test_without_any_server_the_error_names_them_all(ads: Any, second: Any) -> None:
    ads.stop()
    second.stop()
    with connect(ads, second) as mesh:
        with pytest.raises(Exception, match=f"{ads.address} does not answer.*{second.address}"):
            mesh.wait_target("checkout", 1.5)


def test_clusters_of_another_authority_come_from_its_server(ads: Any, second: Any, tools: Any) -> None:
    cluster = "xdstp://far/envoy.config.cluster.v3.Cluster/cart?b=2&a=1"
    canonical = "xdstp://far/envoy.config.cluster.v3.Cluster/cart?a=1&b=2"
    endpoints = "xdstp://far/envoy.config.endpoint.v3.ClusterLoadAssignment/cart"
    tools.put_service(ads, "cart", 9)
    ads.put("type.googleapis.com/envoy.config.route.v3.RouteConfiguration", tools.route_config("cart", cluster))
    config = tools.eds_cluster(canonical)
    config["eds_cluster_config"]["service_name"] = endpoints
    second.put(CDS, config)
    second.put(EDS, tools.load_assignment(endpoints, 7))
    with connect(ads, authorities={"far": {"xds_servers": [server(second)]}}) as mesh:
        mesh.wait_ready("cart", timeout_s=30)
        assert [7] == ports(mesh, canonical) or [7] == ports(mesh, cluster)
        assert [[canonical]] == [list(request.resource_names) for request in second.of_type(CDS)][:1]
        assert "far" not in str([request.resource_names for _, request in ads.requests])
