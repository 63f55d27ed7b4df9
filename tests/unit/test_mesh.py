"""A mesh before and without its control thread."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshlib import Bootstrap, Mesh
from meshlib.errors import BootstrapError, ConfigError, RoutingError, UnavailableError
from meshlib.events import ControlPlaneConnected
from meshlib.model.listener import ClientListener
from meshlib.model.matcher import Fraction, PathKind, PathMatcher
from meshlib.model.request import Headers, RequestHead
from meshlib.model.route import (
    ClusterHeader,
    MirrorPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatcher,
    SingleCluster,
    VirtualHost,
)
from meshlib.model.snapshot import ConfigFault, Demand, DemandKind, Snapshot, TargetConfig
from meshlib.runtime.asking import MAX_PARKED
from meshlib.testing.builders import merge, service
from meshlib.view import TargetView
from meshlib.xds.decode_bootstrap import parse_bootstrap

BOOTSTRAP: dict[str, Any] = {
    "xds_servers": [{"server_uri": "127.0.0.1:1", "channel_creds": [{"type": "insecure"}]}],
    "node": {"id": "n"},
}


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MESHLIB_DISABLE", "MESHLIB_STATE_DIR", "GRPC_XDS_BOOTSTRAP", "GRPC_XDS_BOOTSTRAP_CONFIG"):
        monkeypatch.delenv(name, raising=False)


def offline(**options: Any) -> Mesh:
    """A mesh that is taken to run already, so that nothing is started."""
    mesh = Mesh(BOOTSTRAP, state_dir="", **options)
    mesh._is_dormant = False
    return mesh


def test_a_bootstrap_may_be_a_value_a_dict_or_a_path(tmp_path: Path) -> None:
    value = parse_bootstrap(BOOTSTRAP, origin="test")
    file = tmp_path / "bootstrap.json"
    file.write_text(
        '{"xds_servers":[{"server_uri":"127.0.0.1:1","channel_creds":[{"type":"insecure"}]}],"node":{"id":"n"}}'
    )
    for form in (value, BOOTSTRAP, str(file), file):
        mesh = Mesh(form)
        assert isinstance(mesh.bootstrap, Bootstrap)
        assert mesh.bootstrap == value


def test_a_path_is_read_at_the_start_and_named_when_it_cannot_be(tmp_path: Path) -> None:
    mesh = Mesh(tmp_path / "none.json")
    with pytest.raises(BootstrapError, match=r"bootstrap .*none\.json: cannot be read: No such file"):
        mesh.start()


def test_a_dict_that_is_no_bootstrap_is_refused_at_once() -> None:
    with pytest.raises(BootstrapError, match="xds_servers"):
        Mesh({"node": {}})


def test_from_env_wants_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BootstrapError, match="GRPC_XDS_BOOTSTRAP or GRPC_XDS_BOOTSTRAP_CONFIG"):
        Mesh.from_env()
    monkeypatch.setenv("GRPC_XDS_BOOTSTRAP_CONFIG", "{")
    with pytest.raises(BootstrapError, match="GRPC_XDS_BOOTSTRAP_CONFIG"):
        Mesh.from_env()


def test_disabling_helps_also_when_the_bootstrap_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESHLIB_DISABLE", "1")
    monkeypatch.setenv("GRPC_XDS_BOOTSTRAP_CONFIG", "{")
    with Mesh.from_env() as mesh:
        assert mesh.is_disabled
        assert not mesh.has_inbound
        assert mesh.target("checkout") is None
        assert mesh.inbound("127.0.0.1:80").current is None
        assert mesh.status().connection == "disabled"
        with pytest.raises(UnavailableError, match="MESHLIB_DISABLE=1"):
            mesh.wait_target("checkout")


def test_a_server_listener_needs_its_template() -> None:
    with pytest.raises(ConfigError, match="server_listener_resource_name_template"):
        Mesh(BOOTSTRAP).inbound("127.0.0.1:80")


def test_targets_are_found_by_authority() -> None:
    mesh = offline()
    mesh.publish(service("checkout", "127.0.0.1:8001"))
    found = mesh.target("checkout")
    assert found is not None
    assert found.name == "checkout"
    assert mesh.target("other") is None


def test_a_target_with_an_authority_of_its_own_takes_that_template() -> None:
    template = "xdstp://east/envoy.config.listener.v3.Listener/%s"
    mesh = Mesh(
        {**BOOTSTRAP, "authorities": {"east": {"client_listener_resource_name_template": template}}}, state_dir=""
    )
    assert mesh._name("xds://east/checkout") == "xdstp://east/envoy.config.listener.v3.Listener/checkout"
    assert mesh._name("checkout") == "checkout"


def test_faults_are_errors() -> None:
    mesh = offline()
    faults = {
        "absent": ConfigFault("LDS: absent", "LDS resource absent: does not exist", is_absent=True),
        "broken": ConfigFault("RDS: r", "RDS resource r: invalid"),
    }
    mesh.publish(Snapshot(targets=faults))
    with pytest.raises(RoutingError, match="LDS resource absent: does not exist"):
        mesh.target("absent")
    with pytest.raises(UnavailableError, match="RDS resource r: invalid"):
        mesh.target("broken")


def test_routes_that_cannot_be_compiled_cost_their_own_target_only() -> None:
    mesh = offline()
    route = Route(RouteMatcher(PathMatcher(PathKind.REGEX, "(")), RouteAction(SingleCluster("a")))
    routes = RouteConfiguration("bad", (VirtualHost("h", ("*",), (route,)),))
    good = service("checkout", "127.0.0.1:8001")
    bad = Snapshot(targets={"bad": TargetConfig(next(iter(good.targets.values())).listener, routes)})  # type: ignore[union-attr]
    mesh.publish(merge(good, bad))
    assert mesh.target("checkout") is not None
    with pytest.raises(UnavailableError, match="target 'bad' cannot be used: bad: virtual host 'h', route 0"):
        mesh.target("bad")


def test_a_hook_that_fails_is_contained_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    mesh = offline()
    heard: list[object] = []
    mesh.add_hook(lambda event: [][0])
    mesh.add_hook(heard.append)
    with caplog.at_level(logging.ERROR):
        mesh.emit(ControlPlaneConnected("a"))
        mesh.emit(ControlPlaneConnected("b"))
    assert heard == [ControlPlaneConnected("a"), ControlPlaneConnected("b")]
    assert len(caplog.records) == 1


def test_authorities_that_are_made_up_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshlib.runtime.asking.MAX_NAMES", 10)
    mesh = offline()
    for number in range(100):
        mesh.target(f"host-{number}")
    assert len(mesh._names) <= 10


def test_explain_names_routes_clusters_and_endpoints() -> None:
    mesh = offline()
    mesh.publish(service("checkout", "127.0.0.1:8001"))
    mesh.wait_target = lambda authority, timeout_s=None: mesh.target(authority)  # type: ignore[method-assign,assignment,return-value]
    found = mesh.explain("get", "http://user:secret@checkout/orders?x=1", headers={"authorization": "Bearer secret"})
    text = str(found)
    assert "GET http://checkout/orders?x=1" in text
    assert "127.0.0.1:8001: unknown" in text
    assert "secret" not in text + repr(found.to_dict())
    assert found.to_dict()["clusters"][0]["status"]["endpoints"][0]["address"] == "127.0.0.1:8001"
    assert "GRPC" not in text
    grpc = mesh.explain("POST", "xds:///checkout/pkg.Service/Method")
    assert (grpc.authority, grpc.error) == ("checkout", "")


def test_explain_refuses_other_urls() -> None:
    with pytest.raises(ConfigError, match="is neither an http:// or https:// URL nor an xds: target"):
        offline().explain("GET", "ftp://checkout/")


# What requests need on demand.


def on_demand(*answered: Demand) -> Snapshot:
    route = Route(RouteMatcher(PathMatcher(PathKind.PREFIX, "/")), RouteAction(ClusterHeader("x-cluster")))
    routes = RouteConfiguration("r", (VirtualHost("h", ("*",), (route,)),))
    return Snapshot({"shop": TargetConfig(ClientListener("shop", routes), routes, None, frozenset(answered))})


ROOT = RouteMatcher(PathMatcher(PathKind.PREFIX, "/"))
REQUEST = RequestHead("GET", "shop", "/", Headers([("x-cluster", "c")]))
DEMAND = (DemandKind.CLUSTER, "c")


class FakeControl:
    """Notes what is asked for, and lets it happen."""

    def __init__(self, mesh: Mesh, *snapshots: Snapshot) -> None:
        self.mesh = mesh
        self.snapshots = list(snapshots)
        self.asked: list[Demand] = []

    def demand(self, target: str, demands: Iterable[Demand]) -> None:
        self.asked += demands
        if self.snapshots:
            self.mesh.publish(self.snapshots.pop(0))


def meeting(*snapshots: Snapshot, **options: Any) -> tuple[Mesh, FakeControl]:
    mesh = offline(**options)
    mesh.publish(on_demand())
    control = FakeControl(mesh, *snapshots)
    mesh._control = control  # type: ignore[assignment]
    return mesh, control


def shop_of(mesh: Mesh) -> TargetView:
    found = mesh.target("shop")
    assert found is not None
    assert found.has_demands
    return found


def test_request_waits_for_what_it_needs() -> None:
    mesh, control = meeting(on_demand(DEMAND))
    found = mesh.meet(shop_of(mesh), REQUEST)
    assert (control.asked, found.config.answered) == ([DEMAND], {DEMAND})
    assert mesh.meet(found, REQUEST) is found
    assert control.asked == [DEMAND]
    assert not mesh._parked


async def test_task_waits_for_what_it_needs() -> None:
    mesh, control = meeting(on_demand(DEMAND))
    found = await mesh.meet_async(shop_of(mesh), REQUEST)
    assert (control.asked, found.config.answered, mesh._parked) == ([DEMAND], {DEMAND}, [])


def test_request_goes_on_with_what_there_is_when_its_time_is_over() -> None:
    mesh, control = meeting()
    before = shop_of(mesh)
    assert mesh.meet(before, REQUEST, timeout_s=0.0) is before
    assert set(control.asked) == {DEMAND}
    assert not mesh._parked


def test_cluster_of_a_copy_is_asked_for_and_not_waited_for() -> None:
    mirrors = (MirrorPolicy("", Fraction(100), cluster_header="x-mirror"),)
    action = RouteAction(SingleCluster("a"), mirrors=mirrors)
    routes = RouteConfiguration("r", (VirtualHost("h", ("*",), (Route(ROOT, action),)),))
    mesh, control = meeting()
    mesh.publish(Snapshot({"shop": TargetConfig(ClientListener("shop", routes), routes)}))
    before = shop_of(mesh)
    assert mesh.meet(before, RequestHead("GET", "shop", "/", Headers([("x-mirror", "m")]))) is before
    assert control.asked == [(DemandKind.CLUSTER, "m")]


def test_only_so_many_requests_wait() -> None:
    mesh, control = meeting()
    mesh._parked.extend([None] * MAX_PARKED)
    before = shop_of(mesh)
    assert mesh.meet(before, REQUEST) is before
    assert control.asked == [DEMAND], "it is asked for all the same"


def test_target_that_is_gone_meanwhile_is_an_error() -> None:
    gone = Snapshot({"shop": ConfigFault("LDS: shop", "LDS resource shop: was removed", is_absent=True)})
    mesh, _ = meeting(gone)
    with pytest.raises(RoutingError, match="was removed"):
        mesh.meet(shop_of(mesh), REQUEST)


def test_grpc_channels_compress_as_they_are_told() -> None:
    mesh = offline()
    with mesh.channel("xds:///checkout", None, grpc.Compression.Gzip) as channel:
        assert channel._invoker._compression is grpc.Compression.Gzip  # type: ignore[attr-defined]  # ours
    aio = mesh.aio_channel("xds:///checkout", compression=grpc.Compression.Deflate)
    assert aio._invoker._compression is grpc.Compression.Deflate  # type: ignore[attr-defined]  # ours
