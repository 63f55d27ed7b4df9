"""Zone aware routing: how much stays at home, and when zones do not matter. The numbers are Envoy's."""

from collections import Counter

import pytest

from meshlib.balancing import EndpointState, build_picker
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.zone_aware import HomeZones, ZoneSplit, zone_split
from meshlib.model.cluster import Cluster, EdsDiscovery, PickFirst
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, HealthStatus, Locality, LocalityEndpoints
from meshlib.model.lb_policy import LbPolicy, RoundRobin, ZoneAware
from meshlib.model.snapshot import ClusterConfig
from meshlib.testing import SeededRng

A, B, C = (Locality("r", zone) for zone in "abc")
SMALL = ZoneAware(min_cluster_size=1)


class Home:
    """A local cluster of so many hosts by zone, with us in zone a."""

    def __init__(self, hosts: dict[Locality, int], *, own: Locality = A, usable_percent: float = 100.0) -> None:
        self.own = own
        self.known: HomeZones | None = HomeZones(own, hosts, hosts, hosts, usable_percent)

    def zones(self) -> HomeZones | None:
        return self.known


def hosts(zones: dict[Locality, int], *, out: int = 0) -> list[tuple[Locality, tuple[EndpointState, ...]]]:
    made = []
    for zone, count in zones.items():
        states = tuple(EndpointState(Endpoint(f"{zone.zone}{number}:1")) for number in range(count))
        made.append((zone, states))
    for state in made[0][1][:out]:
        state.is_ejected = True
    return made


def split(
    config: ZoneAware, theirs: dict[Locality, int], ours: dict[Locality, int], **options: int
) -> ZoneSplit | None:
    known = Home(ours).known
    assert known is not None
    return zone_split(config, hosts(theirs, **options), known)


@pytest.mark.parametrize(
    ("theirs", "ours", "own", "beyond"),
    [
        ({A: 3, B: 3}, {A: 1, B: 1}, 10_000, (0, 0)),
        ({A: 3, B: 3}, {A: 1, B: 2}, 10_000, (0, 0)),
        ({A: 3, B: 3}, {A: 2, B: 1}, 7500, (0, 1667)),  # "3/3 upstream, 2/1 local -> 75 % own zone"
        ({A: 2, B: 3}, {A: 2, B: 1}, 6000, (0, 2667)),  # "2/3 -> 60 %"
        ({A: 2, B: 6, C: 2}, {A: 4, B: 4, C: 2}, 5000, (0, 2000, 2000)),
        ({B: 3, C: 3}, {A: 2, B: 2}, 0, (0, 5000)),  # nobody at home: those with more hosts than callers
    ],
)
def test_share_that_stays_and_where_the_rest_goes(
    theirs: dict[Locality, int], ours: dict[Locality, int], own: int, beyond: tuple[int, ...]
) -> None:
    found = split(SMALL, theirs, ours)
    assert found is not None
    assert (own, beyond) == (found.own, found.beyond)


@pytest.mark.parametrize(
    ("config", "theirs", "ours"),
    [
        (ZoneAware(), {A: 3, B: 2}, {A: 1, B: 1}),  # 5 hosts, and the default is 6
        (SMALL, {A: 3}, {A: 1, B: 1}),
        (SMALL, {A: 3, B: 3}, {A: 4}),
        (SMALL, {A: 3, B: 3}, {B: 1, C: 1}),
        (SMALL, {A: 3, B: 3}, {}),
    ],
    ids=["small cluster", "one zone", "callers in one zone", "nobody of us", "no callers"],
)
def test_zones_do_not_matter(config: ZoneAware, theirs: dict[Locality, int], ours: dict[Locality, int]) -> None:
    assert split(config, theirs, ours) is None


def test_hosts_that_are_out_count_for_nothing() -> None:
    found = split(SMALL, {A: 3, B: 3}, {A: 1, B: 1}, out=2)
    assert found is not None
    assert 5000 == found.own
    assert split(ZoneAware(), {A: 3, B: 3}, {A: 1, B: 1}, out=1) is None


@pytest.mark.parametrize(("fewest", "own"), [(1, 10_000), (2, 10_000), (3, 6000)])
def test_forced_zone_takes_all_when_it_has_hosts_enough(fewest: int, own: int) -> None:
    found = split(ZoneAware(min_cluster_size=1, force_min_hosts=fewest), {A: 2, B: 3}, {A: 2, B: 1})
    assert found is not None
    assert own == found.own
    assert split(ZoneAware(min_cluster_size=1, force_min_hosts=1), {A: 2, B: 3}, {A: 2}) is not None


def test_zones_can_be_compared_by_weight() -> None:
    zones = [(A, (EndpointState(Endpoint("a:1", weight=3)),)), (B, (EndpointState(Endpoint("b:1")),))]
    known = HomeZones(A, {A: 1, B: 1}, {A: 1, B: 1}, {A: 1, B: 9}, 100.0)
    by_number = zone_split(SMALL, zones, known)
    by_weight = zone_split(ZoneAware(min_cluster_size=1, by_weight=True), list(reversed(zones)), known)
    assert by_number is not None and by_weight is not None
    assert (10_000, (7500, 7500)) != (by_number.own, by_weight.beyond)
    assert 10_000 == by_number.own


def cluster(zones: dict[Locality, int], policy: LbPolicy | None = None, **options: object) -> ClusterConfig:
    groups = tuple(
        LocalityEndpoints(zone, tuple(Endpoint(f"{zone.zone}{number}:1") for number in range(count)))
        for zone, count in zones.items()
    )
    made = Cluster("c", EdsDiscovery("c"), policy or RoundRobin(), **{"zone_aware": SMALL, **options})  # type: ignore[arg-type]
    return ClusterConfig(made, ClusterLoadAssignment("c", groups))


def shares(config: ClusterConfig, home: Home | None, count: int = 4000) -> dict[str, float]:
    states = {one.address: EndpointState(one) for group in config.assignment.localities for one in group.endpoints}
    picker, rng = build_picker(config, states, memory=PolicyMemory(home=home)), SeededRng(3)
    found = Counter(pick.address[0] if (pick := picker.pick(None, rng)) else "" for _ in range(count))
    return {zone: round(part / count, 2) for zone, part in sorted(found.items())}


def test_picks_follow_the_shares_and_hosts_of_a_zone_take_turns() -> None:
    config = cluster({B: 3, A: 3})
    assert {"a": 0.5, "b": 0.5} == shares(config, None)
    assert {"a": pytest.approx(0.75, abs=0.03), "b": pytest.approx(0.25, abs=0.03)} == shares(
        config, Home({A: 2, B: 1})
    )


@pytest.mark.parametrize(
    ("options", "usable", "expected"),
    [
        ({"zone_aware": ZoneAware(0, 1)}, 100.0, {"a": 0.5, "b": 0.5}),
        ({"zone_aware": ZoneAware(50, 1)}, 100.0, {"a": 0.75, "b": 0.25}),
        ({}, 40.0, {"a": 0.5, "b": 0.5}),
        ({"fails_on_panic": True}, 40.0, {"": 1.0}),
        ({"locality_weighted": True}, 100.0, {"a": 1.0}),  # no locality has a weight: as if it were not there
    ],
    ids=["switched off", "for half of the requests", "panic at home", "panic at home that fails", "without weights"],
)
def test_when_zones_are_not_asked(options: dict[str, object], usable: float, expected: dict[str, float]) -> None:
    found = shares(cluster({A: 3, B: 3}, **options), Home({A: 1, B: 1}, usable_percent=usable))
    assert {zone: pytest.approx(share, abs=0.03) for zone, share in expected.items()} == found


def test_pick_first_has_no_zones() -> None:
    assert {"b": 1.0} == shares(cluster({B: 2, A: 2}, PickFirst()), Home({A: 1, B: 1}))


def test_what_is_known_of_the_local_cluster_may_change_at_any_time() -> None:
    home = Home({A: 1, B: 1})
    config = cluster({A: 3, B: 3})
    states = {one.address: EndpointState(one) for group in config.assignment.localities for one in group.endpoints}
    picker, rng = build_picker(config, states, memory=PolicyMemory(home=home)), SeededRng(3)

    def zones() -> set[str]:
        picks = [picker.pick(None, rng) for _ in range(40)]
        return {pick.address[0] for pick in picks if pick is not None}

    assert {"a"} == zones()
    home.known = None
    assert {"a", "b"} == zones()
    home.known = Home({A: 1, B: 2}).known
    assert {"a"} == zones()


def test_draining_hosts_of_a_zone_are_not_chosen() -> None:
    near = (Endpoint("a0:1"), Endpoint("a1:1", health=HealthStatus.DRAINING))
    groups = (LocalityEndpoints(A, near), LocalityEndpoints(B, (Endpoint("b0:1"),)))
    config = ClusterConfig(Cluster("c", EdsDiscovery("c"), zone_aware=SMALL), ClusterLoadAssignment("c", groups))
    states = {one.address: EndpointState(one) for group in groups for one in group.endpoints}
    picker, rng = build_picker(config, states, memory=PolicyMemory(home=Home({A: 1, B: 1}))), SeededRng(3)
    picks = [picker.pick(None, rng) for _ in range(50)]
    assert {"a0:1"} == {pick.address for pick in picks if pick is not None}
