"""Long computations let others go first: they call `pause` often enough."""

from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.endpoint import ClusterLoadAssignment
from meshlib.model.snapshot import ClusterConfig, Snapshot
from meshlib.protos import message_class
from meshlib.view import build_view
from meshlib.xds.cache import ResourceCache
from meshlib.xds.decode import decode_resource
from meshlib.xds.delta import new_machine
from meshlib.xds.resources import EDS
from meshlib.xds.wire import AnyBytes, DiscoveryResponse


class Pauses:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def big(count: int) -> bytes:
    message = message_class("envoy.config.endpoint.v3.ClusterLoadAssignment")(cluster_name="s")
    locality = message.endpoints.add()
    for index in range(count):
        address = locality.lb_endpoints.add().endpoint.address.socket_address
        address.address, address.port_value = f"10.0.{index >> 8}.{index & 255}", 80
    data: bytes = message.SerializeToString()
    return data


def test_ten_thousand_endpoints_are_decoded_and_taken_over_in_slices() -> None:
    pause = Pauses()
    assignment = decode_resource(EDS, big(10_000), pause).value
    assert isinstance(assignment, ClusterLoadAssignment)
    assert pause.count > 150
    pause.count = 0
    config = ClusterConfig(Cluster("s", EdsDiscovery("s")), assignment)
    empty = build_view(
        Snapshot(clusters={"s": ClusterConfig(config.cluster, ClusterLoadAssignment("s"))}), None, now=0.0
    )
    build_view(Snapshot(clusters={"s": config}), empty, now=0.0, pause=pause)
    assert pause.count > 40


def test_the_machines_pause_at_every_resource() -> None:
    for features in (frozenset[str](), frozenset(("meshlib.delta",))):
        pause = Pauses()
        machine = new_machine(ResourceCache(), features, pause=pause)
        assert machine._decode(EDS, big(1)).value is not None
        assert pause.count


def test_a_response_is_applied_whole_whatever_the_pauses() -> None:
    pause = Pauses()
    cache = ResourceCache()
    machine = new_machine(cache, frozenset(), pause=pause)
    machine.want({EDS: frozenset("s")})
    machine.opened()
    machine.sent()
    machine.received(DiscoveryResponse(EDS, "1", "n", (AnyBytes(EDS, big(300)),)), 0.0)  # type: ignore[union-attr]
    found = cache.value(EDS, "s")
    assert isinstance(found, ClusterLoadAssignment)
    assert 300 == len(found.localities[0].endpoints)
    assert pause.count > 4
