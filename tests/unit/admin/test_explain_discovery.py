"""Explanations of what depends on the request: scopes, and clusters that headers name."""

from meshlib.admin.explain import explain
from meshlib.model.discovery import KeyFragment, ScopedRoutes
from meshlib.model.listener import ClientListener
from meshlib.model.route import ClusterHeader, RouteAction, RouteConfiguration, SingleCluster, VirtualHost
from meshlib.model.snapshot import ScopeConfig, Snapshot, TargetConfig
from meshlib.testing import mesh_source
from meshlib.testing.builders import any_path, cluster
from meshlib.xds.resources import RDS


def routes(name: str, action: RouteAction) -> RouteConfiguration:
    return RouteConfiguration(name, (VirtualHost("h", ("*",), (any_path(action, name=f"to-{name}"),)),))


def test_scope_of_a_request_and_where_it_leads() -> None:
    scoped = ScopedRoutes("tenants", (KeyFragment("x-tenant", index=0),))
    red = routes("red", RouteAction(SingleCluster("a"), timeout_s=3.0))
    scopes = (ScopeConfig("one", ("red",), red), ScopeConfig("two", ("blue",), None))
    config = TargetConfig(ClientListener("shop", scoped), RouteConfiguration("tenants", ()), scopes)
    snapshot = Snapshot({"shop": config}, clusters={"a": cluster("a", "10.0.0.1:80")}, versions={(RDS, "red"): "7"})
    mesh = mesh_source(snapshot)
    found = explain(mesh, "GET", "http://shop/", headers={"x-tenant": "red"})
    text = str(found)
    assert "scope one (key red)" in text
    assert found.resources["RDS red"] == "7"
    assert [one.name for one in found.clusters] == ["a"]
    assert "timeout 3 s" in text
    assert "scope two has no routes yet" in str(explain(mesh, "GET", "http://shop/", headers={"x-tenant": "blue"}))
    assert "lacks a part of the scope key" in str(explain(mesh, "GET", "http://shop/"))


def test_cluster_that_the_request_names() -> None:
    config = TargetConfig(ClientListener("shop", "r"), routes("r", RouteAction(ClusterHeader("x-cluster"))))
    snapshot = Snapshot({"shop": config}, clusters={"a": cluster("a", "10.0.0.1:80")})
    found = explain(mesh_source(snapshot), "GET", "http://shop/", headers={"x-cluster": "a"})
    assert [one.name for one in found.clusters] == ["a"]
