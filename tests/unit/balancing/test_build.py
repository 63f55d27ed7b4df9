from collections import Counter

from meshlib.balancing import EndpointState, Picker, build_picker
from meshlib.balancing.least_request import LeastRequestPicker
from meshlib.balancing.random_choice import RandomPicker
from meshlib.balancing.round_robin import RoundRobinPicker
from meshlib.model.cluster import Cluster, EdsDiscovery, LbPolicy, LeastRequest, Random, RoundRobin, StaticDiscovery
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, HealthStatus, Locality, LocalityEndpoints
from meshlib.model.snapshot import ClusterConfig
from meshlib.testing import SeededRng

HEALTHY, UNHEALTHY, DRAINING = HealthStatus.HEALTHY, HealthStatus.UNHEALTHY, HealthStatus.DRAINING


def group(
    *endpoints: tuple[str, HealthStatus] | str, weight: int | None = None, priority: int = 0, zone: str = ""
) -> LocalityEndpoints:
    made = tuple(
        Endpoint(f"{entry}:1") if isinstance(entry, str) else Endpoint(f"{entry[0]}:1", health=entry[1])
        for entry in endpoints
    )
    return LocalityEndpoints(Locality(zone=zone), made, weight=weight, priority=priority)


def config(*groups: LocalityEndpoints, cluster: Cluster | None = None) -> ClusterConfig:
    return ClusterConfig(cluster or Cluster("c", EdsDiscovery("c")), ClusterLoadAssignment("c", groups))


def build(config: ClusterConfig, *ejected: str) -> Picker:
    states = {
        endpoint.address: EndpointState(endpoint)
        for locality in config.assignment.localities
        for endpoint in locality.endpoints
    }
    for name in ejected:
        states[f"{name}:1"].is_ejected = True
    return build_picker(config, states)


def shares(picker: Picker, count: int = 100) -> dict[str | None, int]:
    rng = SeededRng(7)
    picked = (picker.pick(None, rng) for _ in range(count))
    return Counter(None if state is None else state.address.removesuffix(":1") for state in picked)


def test_policy_of_the_cluster_chooses() -> None:
    policies: list[tuple[LbPolicy, type]] = [
        (RoundRobin(), RoundRobinPicker),
        (LeastRequest(), LeastRequestPicker),
        (Random(), RandomPicker),
    ]
    for policy, expected in policies:
        assert expected is type(build(config(group("a", "b"), cluster=Cluster("c", EdsDiscovery("c"), policy))))


def test_no_endpoints_is_no_pick() -> None:
    assert shares(build(config()), 5) == {None: 5}
    assert shares(build(config(group())), 5) == {None: 5}


def test_unhealthy_draining_and_ejected_endpoints_are_left_out() -> None:
    picker = build(config(group("a", "b", ("sick", UNHEALTHY), ("leaving", DRAINING), "c", "d", "out")), "out")

    assert shares(picker) == {"a": 25, "b": 25, "c": 25, "d": 25}


def test_panic_uses_all_draining_and_ejected_ones_too() -> None:
    picker = build(config(group("a", ("sick", UNHEALTHY), ("leaving", DRAINING), "out")), "out")

    assert shares(picker) == {"a": 25, "sick": 25, "leaving": 25, "out": 25}


def test_threshold_of_zero_never_panics() -> None:
    cluster = Cluster("c", EdsDiscovery("c"), panic_threshold_percent=0.0)

    assert shares(build(config(group(("sick", UNHEALTHY)), cluster=cluster)), 10) == {None: 10}
    assert shares(build(config(group("a", *[(f"s{i}", UNHEALTHY) for i in range(9)]), cluster=cluster)), 10) == {
        "a": 10
    }


def test_load_spills_over_to_the_next_priority() -> None:
    picker = build(config(group("a", ("sick", UNHEALTHY)), group("b", "c", priority=1)))

    counted = shares(picker, 10_000)

    assert 6800 < counted["a"] < 7200
    assert {"a", "b", "c"} == counted.keys()


def test_gap_in_the_priorities_is_an_empty_priority() -> None:
    assert shares(build(config(group("b", priority=3))), 10) == {"b": 10}


def test_degraded_hosts_help_out() -> None:
    picker = build(config(group("a", "b", ("sick", UNHEALTHY), ("slow", HealthStatus.DEGRADED))))

    counted = shares(picker, 10_000)

    assert 2800 < counted["slow"] < 3200
    assert "sick" not in counted


def test_locality_weights_count_when_asked_for() -> None:
    groups = (group("a", "b", weight=1, zone="near"), group("c", weight=3, zone="far"))
    weighted = Cluster("c", EdsDiscovery("c"), locality_weighted=True)

    assert shares(build(config(*groups, cluster=weighted)), 160) == {"a": 20, "b": 20, "c": 120}
    assert shares(build(config(*groups)), 9) == {"a": 3, "b": 3, "c": 3}


def test_locality_without_weight_is_unused() -> None:
    cluster = Cluster("c", EdsDiscovery("c"), locality_weighted=True)

    assert shares(build(config(group("a"), group("b", weight=1, zone="z"), cluster=cluster)), 10) == {"b": 10}


def test_no_locality_with_weight_is_as_if_there_were_none() -> None:
    cluster = Cluster("c", EdsDiscovery("c"), locality_weighted=True)

    assert shares(build(config(group("a"), group("b", zone="z"), cluster=cluster)), 10) == {"a": 5, "b": 5}


def test_locality_weights_do_not_count_in_panic() -> None:
    cluster = Cluster("c", EdsDiscovery("c"), locality_weighted=True)
    groups = (group(("a", UNHEALTHY), weight=1), group(("b", UNHEALTHY), weight=9, zone="z"))

    assert shares(build(config(*groups, cluster=cluster)), 10) == {"a": 5, "b": 5}


def test_repeated_address_counts_once_except_in_a_static_cluster() -> None:
    groups = (group("a", "b"), group("a", zone="z"))
    static = Cluster("c", StaticDiscovery(ClusterLoadAssignment("c", groups)))

    assert shares(build(config(*groups)), 12) == {"a": 6, "b": 6}
    assert shares(build(config(*groups, cluster=static)), 12) == {"a": 8, "b": 4}
