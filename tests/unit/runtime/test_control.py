"""The control plane without its thread: what is given up, resolved and reported over time."""

from typing import Any

import pytest

from meshlib.events import CertificateRotated, Event
from meshlib.model.dns import DnsQuestion, DnsRecords
from meshlib.model.snapshot import ClusterConfig, ConfigFault, DemandKind, Snapshot, TargetConfig
from meshlib.protos import from_dict, message_class
from meshlib.runtime.ads import StreamEvents
from meshlib.runtime.control import ControlPlane
from meshlib.runtime.dns import Answered
from meshlib.runtime.pace import LONGEST_REST_S, Pace
from meshlib.runtime.pauses import TurnTaking
from meshlib.runtime.wanted import MAX_DEMANDS
from meshlib.testing import FakeClock, FixedRng
from meshlib.xds.decode_bootstrap import parse_bootstrap
from meshlib.xds.resources import CDS, LDS

RESPONSE = message_class("envoy.service.discovery.v3.DiscoveryResponse")
HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


class FakeStream:
    def send(self, data: bytes) -> None:
        pass

    def close(self) -> None:
        pass


class World:
    """Attributes:
    addresses: What each host name resolves to.
    """

    def __init__(self, pause: TurnTaking | None = None) -> None:
        self.clock = FakeClock()
        self.snapshots: list[Snapshot] = []
        self.events: list[Event] = []
        self.stream: StreamEvents | None = None
        self.addresses: dict[str, tuple[str, ...]] = {}
        bootstrap = parse_bootstrap(
            {"xds_servers": [{"server_uri": "s:1", "channel_creds": [{"type": "insecure"}]}]}, origin="test"
        )
        self.control = ControlPlane(
            bootstrap,
            self,
            clock=self.clock,
            wall_clock=lambda: 0.0,
            rng=FixedRng(0.5),
            emit=self.events.append,
            open_stream=self.open,
            pause=pause,
        )
        # Look-ups answer at once, on the thread of the test.
        self.control._lookups.start = self.look_up  # type: ignore[method-assign]
        self.control._begin()
        self.spin()

    def publish(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    def tick(self, now: float) -> None:
        pass

    def changed(self) -> None:
        pass

    def open(self, server: object, events: StreamEvents) -> FakeStream:
        self.stream = events
        return FakeStream()

    def look_up(self, question: DnsQuestion, answered: Answered) -> None:
        found = self.addresses.get(question.host)
        if found is None:
            answered(None, "no server answers")
        else:
            answered(DnsRecords(found), "")

    def spin(self) -> None:
        control = self.control
        while control._scheduler.run(block=False) or control._is_dirty:
            if control._is_dirty:
                control._settle()

    def pass_time(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.advance(1.0)
            self.spin()

    def answer(self, type_url: str, *resources: dict[str, Any], missing: str = "") -> None:
        """Have the server answer, after the transport took what was asked."""
        assert self.stream is not None
        for _ in range(5):
            self.stream.sent()
            self.spin()
        response = RESPONSE(type_url=type_url, version_info="1", nonce="n")
        for resource in resources:
            message = from_dict(type_url.rpartition("/")[2], resource)
            response.resources.add(type_url=type_url, value=message.SerializeToString())
        if missing:
            error = response.resource_errors.add()
            error.resource_name.name, error.error_detail.code = missing, 5
        self.stream.received(response.SerializeToString(), lambda: None)
        self.spin()


def listener(name: str, cluster: str) -> dict[str, Any]:
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster}}
    routes = {"name": "r", "virtual_hosts": [{"name": "h", "domains": ["*"], "routes": [route]}]}
    filters = [{"name": "router", "typed_config": {"@type": ROUTER}}]
    return {
        "name": name,
        "api_listener": {"api_listener": {"@type": HCM, "route_config": routes, "http_filters": filters}},
    }


def dns_cluster(name: str, host: str) -> dict[str, Any]:
    address = {"socket_address": {"address": host, "port_value": 80}}
    endpoint = {"endpoint": {"address": address}}
    return {
        "name": name,
        "type": "STRICT_DNS",
        "dns_refresh_rate": "5s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }


def test_hosts_that_do_not_exist_are_given_up_after_a_minute_or_two_unless_kept() -> None:
    world = World()
    world.control.watch(targets=frozenset(("made-up",)))
    world.control.watch(targets=frozenset(("awaited",)), keep=True)
    world.spin()
    world.answer(LDS, missing="made-up")
    world.answer(LDS, missing="awaited")
    assert all(isinstance(target, ConfigFault) for target in world.snapshots[-1].targets.values())
    world.pass_time(125)
    assert world.control.targets == {"awaited"}
    assert list(world.control.snapshot.targets) == ["awaited"]


def test_names_of_a_dns_cluster_are_resolved_again_and_the_last_good_answer_is_kept() -> None:
    world = World()
    world.addresses["db.example"] = ("10.0.0.1",)
    world.control.watch(targets=frozenset(("shop",)))
    world.spin()
    world.answer(LDS, listener("shop", "db"))
    world.answer(CDS, dns_cluster("db", "db.example"))

    def addresses() -> list[str]:
        config = world.control.snapshot.clusters["db"]
        assert isinstance(config, ClusterConfig)
        return [endpoint.address for locality in config.assignment.localities for endpoint in locality.endpoints]

    assert isinstance(world.control.snapshot.targets["shop"], TargetConfig)
    assert addresses() == ["10.0.0.1:80"]
    world.addresses["db.example"] = ("10.0.0.2", "10.0.0.3")
    world.pass_time(6)
    assert addresses() == ["10.0.0.2:80", "10.0.0.3:80"]
    world.addresses.clear()
    world.pass_time(6)
    assert addresses() == ["10.0.0.2:80", "10.0.0.3:80"]
    world.addresses["db.example"] = ()
    world.pass_time(6)
    assert addresses() == []


def test_a_snapshot_is_published_once_per_change() -> None:
    world = World()
    world.control.watch(targets=frozenset(("shop",)))
    world.spin()
    world.answer(LDS, missing="shop")
    count = len(world.snapshots)
    world.pass_time(10)
    world.control.watch(targets=frozenset(("shop",)))
    world.spin()
    assert len(world.snapshots) == count


def test_what_goes_wrong_in_a_pass_leaves_the_last_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.control.watch(targets=frozenset(("shop",)))
    world.spin()
    world.answer(LDS, missing="shop")
    before = world.control.snapshot
    monkeypatch.setattr(world.control._closure, "resolve", lambda *_: 1 // 0)
    world.control._is_dirty = True
    with pytest.raises(ZeroDivisionError):
        world.control._settle()
    assert world.control.snapshot is before
    assert not [event for event in world.events if isinstance(event, CertificateRotated)]


def by_header(name: str) -> dict[str, Any]:
    found = listener(name, "x")
    route = found["api_listener"]["api_listener"]["route_config"]["virtual_hosts"][0]["routes"][0]
    route["route"] = {"cluster_header": "x-cluster"}
    return found


def waiting_for_a_header() -> World:
    world = World()
    world.control.watch(targets=frozenset(("shop",)))
    world.spin()
    world.answer(LDS, by_header("shop"))
    return world


def test_cluster_that_a_request_asked_for_is_subscribed_to_and_given_up_when_it_does_not_exist() -> None:
    world = waiting_for_a_header()
    demand = (DemandKind.CLUSTER, "made-up")
    world.control.demand("shop", [demand])
    world.spin()
    assert (CDS, "made-up") in {(entry.type_url, entry.name) for entry in world.control.entries()}
    world.answer(CDS, missing="made-up")
    target = world.control.snapshot.targets["shop"]
    assert isinstance(target, TargetConfig)
    assert target.answered == {demand}
    world.pass_time(125)
    target = world.control.snapshot.targets["shop"]
    assert isinstance(target, TargetConfig)
    assert (target.answered, world.control._asked.demands) == (frozenset(), {"shop": {}})
    assert not world.control.snapshot.clusters


def test_what_requests_ask_for_is_bounded_and_the_newest_is_kept() -> None:
    world = waiting_for_a_header()
    for index in range(MAX_DEMANDS + 10):
        world.control.demand("shop", [(DemandKind.CLUSTER, f"c{index}")])
    kept = list(world.control._asked.demands["shop"])
    assert len(kept) == MAX_DEMANDS
    assert (kept[0], kept[-1]) == ((DemandKind.CLUSTER, "c10"), (DemandKind.CLUSTER, f"c{MAX_DEMANDS + 9}"))


@pytest.mark.parametrize("name", ["*", "xdstp://a/b/*", "x" * 2000])
def test_requests_cannot_ask_for_what_is_no_resource(name: str) -> None:
    world = waiting_for_a_header()
    world.control.demand("shop", [(DemandKind.CLUSTER, name)])
    assert not world.control._asked.demands


def test_demands_go_with_their_target() -> None:
    world = World()
    world.control.watch(targets=frozenset(("made-up",)))
    world.control.demand("made-up", [(DemandKind.CLUSTER, "c")])
    world.spin()
    world.answer(LDS, missing="made-up")
    world.pass_time(125)
    assert not world.control._asked.demands


def test_name_whose_authority_nobody_knows_is_refused_at_once() -> None:
    world = World()
    world.control.watch(targets=frozenset(("shop",)))
    world.spin()
    found = listener("shop", "xdstp://nowhere/envoy.config.cluster.v3.Cluster/c")
    world.answer(LDS, found)
    (cluster,) = world.control.snapshot.clusters.values()
    assert isinstance(cluster, ConfigFault)
    assert 'authority "nowhere" not present in bootstrap config' in cluster.message


class SlowMachine(TurnTaking):
    """Everything that is computed takes long. Notes whether it may take its time."""

    def __init__(self) -> None:
        super().__init__(Pace())
        self.clock: FakeClock | None = None
        self.pressed: list[bool] = []

    def __call__(self) -> None:
        if self.clock is not None:
            self.clock.advance(LONGEST_REST_S)
        self.pressed.append(self.pace.is_pressed)


def test_an_update_that_follows_closely_takes_its_time_until_it_is_in_use() -> None:
    machine = SlowMachine()
    world = World(machine)
    world.control.watch(targets=frozenset(("t",)), keep=True)
    world.spin()
    machine.clock = world.clock
    world.answer(LDS, listener("t", "a"))
    assert not any(machine.pressed)
    world.answer(CDS, dns_cluster("a", "gone.example"))
    assert {} == world.control.waiting
    views = len(world.snapshots)
    machine.pressed.clear()
    # It comes at once after the one before, and to read it takes longer than it would have had to wait.
    world.answer(CDS, dns_cluster("a", "other.example"))
    assert len(world.snapshots) > views
    assert all(machine.pressed)
    machine.pressed.clear()
    world.control.watch(targets=frozenset(("new",)))
    world.spin()
    assert machine.pressed
    assert not any(machine.pressed)
