from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from meshlib.balancing import EndpointState, Picker, build_picker
from meshlib.model.cluster import Cluster, EdsDiscovery, RingHash, RoundRobin
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, HealthStatus, Locality, LocalityEndpoints
from meshlib.model.snapshot import ClusterConfig
from meshlib.model.subset import MatchCriteria, SubsetConfig, SubsetFallback, SubsetSelector
from meshlib.testing import SeededRng

RNG = SeededRng(1)
VERSION = SubsetSelector(("version",))


def host(name: str, health: HealthStatus = HealthStatus.HEALTHY, **metadata: Any) -> Endpoint:
    return Endpoint(f"{name}:1", health=health, metadata={"envoy.lb": metadata})


def group(*endpoints: Endpoint, zone: str = "", weight: int = 1, priority: int = 0) -> LocalityEndpoints:
    return LocalityEndpoints(Locality(zone=zone), endpoints, weight, priority)


def picker(subsets: SubsetConfig, *groups: LocalityEndpoints, template: Cluster | None = None) -> Picker:
    base = template or Cluster("c", EdsDiscovery("c"))
    config = ClusterConfig(replace(base, subsets=subsets), ClusterLoadAssignment("c", groups))
    return build_picker(config, {one.address: EndpointState(one) for entry in groups for one in entry.endpoints})


def asked(**criteria: Any) -> MatchCriteria:
    return MatchCriteria.of(criteria)


def picks(found: Picker, criteria: MatchCriteria | None, count: int = 60) -> set[str]:
    inner = found.within(criteria)
    states: Iterable[EndpointState | None] = (inner.pick(None, RNG) for _ in range(count))
    return {"nobody" if state is None else state.address.removesuffix(":1") for state in states}


PLAIN = (host("a", version="v1", stage="prod"), host("b", version="v1", stage="dev"), host("c", version="v2"))


def test_criteria_choose_the_endpoints_that_have_them() -> None:
    found = picker(SubsetConfig((VERSION,)), group(*PLAIN))
    assert found.has_subsets
    assert {"a", "b"} == picks(found, asked(version="v1"))
    assert {"c"} == picks(found, asked(version="v2"))


def test_the_same_criteria_lead_to_the_same_picker() -> None:
    found = picker(SubsetConfig((VERSION,)), group(*PLAIN))
    assert found.within(asked(version="v1")) is found.within(asked(version="v1"))


def test_without_subsets_criteria_mean_nothing() -> None:
    config = ClusterConfig(Cluster("c", EdsDiscovery("c")), ClusterLoadAssignment("c", (group(*PLAIN),)))
    found = build_picker(config, {one.address: EndpointState(one) for one in PLAIN})
    assert not found.has_subsets
    assert found is found.within(asked(version="v1"))


@pytest.mark.parametrize(
    "criteria", [None, asked(), asked(version="v3"), asked(version="v1", stage="prod"), asked(stage="prod")]
)
@pytest.mark.parametrize(
    ("fallback", "expected"),
    [
        (SubsetFallback.NO_FALLBACK, {"nobody"}),
        (SubsetFallback.ANY_ENDPOINT, {"a", "b", "c"}),
        (SubsetFallback.DEFAULT_SUBSET, {"c"}),
    ],
)
def test_criteria_without_a_subset_go_where_the_cluster_says(
    criteria: MatchCriteria | None, fallback: SubsetFallback, expected: set[str]
) -> None:
    subsets = SubsetConfig((VERSION,), fallback=fallback, default_subset=asked(version="v2"))
    assert expected == picks(picker(subsets, group(*PLAIN)), criteria)


@pytest.mark.parametrize(
    ("fallback", "expected"),
    [
        (SubsetFallback.NOT_DEFINED, {"a", "b", "c"}),
        (SubsetFallback.NO_FALLBACK, {"nobody"}),
        (SubsetFallback.ANY_ENDPOINT, {"a", "b", "c"}),
        (SubsetFallback.DEFAULT_SUBSET, {"c"}),
        (SubsetFallback.KEYS_SUBSET, {"a", "b"}),
    ],
)
def test_a_selector_has_a_fallback_of_its_own(fallback: SubsetFallback, expected: set[str]) -> None:
    both = SubsetSelector(("stage", "version"), fallback, ("version",))
    subsets = SubsetConfig((both, VERSION), fallback=SubsetFallback.ANY_ENDPOINT, default_subset=asked(version="v2"))
    assert expected == picks(picker(subsets, group(*PLAIN)), asked(stage="test", version="v1"))


def test_fallback_of_a_selector_counts_unless_a_longer_one_before_took_its_place() -> None:
    short = SubsetSelector(("stage",), SubsetFallback.ANY_ENDPOINT)
    long = SubsetSelector(("stage", "version"))
    everyone = {"a", "b", "c"}
    assert everyone == picks(picker(SubsetConfig((short, long)), group(*PLAIN)), asked(stage="x"))
    assert {"nobody"} == picks(picker(SubsetConfig((long, short)), group(*PLAIN)), asked(stage="x"))


def test_a_subset_whose_endpoints_are_all_out_has_no_fallback() -> None:
    out = host("a", HealthStatus.UNHEALTHY, version="v1")
    template = replace(Cluster("c", EdsDiscovery("c")), panic_threshold_percent=0)
    subsets = SubsetConfig((VERSION,), fallback=SubsetFallback.ANY_ENDPOINT, panic_mode_any=True)
    found = picker(subsets, group(out, host("b", version="v2")), template=template)
    assert {"nobody"} == picks(found, asked(version="v1"))
    assert {"b"} == picks(found, None)


def test_subset_panics_by_itself() -> None:
    hosts = [host(name, HealthStatus.UNHEALTHY, version="v1") for name in "ab"]
    hosts += [host(name, version="v2") for name in "cdef"]
    found = picker(SubsetConfig((VERSION,)), group(*hosts))
    assert {"a", "b"} == picks(found, asked(version="v1"))


@pytest.mark.parametrize(("health", "expected"), [(HealthStatus.DRAINING, {"b"}), (HealthStatus.DEGRADED, {"b"})])
def test_draining_and_degraded_endpoints_are_spared_inside_a_subset(health: HealthStatus, expected: set[str]) -> None:
    hosts = [host("a", health, version="v1")] + [host(name, version="v1") for name in "b"] + [host("x", version="v2")]
    subsets = SubsetConfig((VERSION,))
    found = picker(subsets, group(*hosts), template=replace(Cluster("c", EdsDiscovery("c"))))
    if health is HealthStatus.DEGRADED:
        # Half of the two are healthy: 140 * 1 / 2 = 70 % go there, the degraded one takes the rest.
        assert {"a", "b"} == picks(found, asked(version="v1"))
    else:
        assert expected == picks(found, asked(version="v1"))


def test_panic_mode_any_takes_anyone_when_the_fallback_has_nobody() -> None:
    subsets = SubsetConfig(
        (VERSION,), fallback=SubsetFallback.DEFAULT_SUBSET, default_subset=asked(version="v9"), panic_mode_any=True
    )
    found = picker(subsets, group(*PLAIN))
    assert {"a", "b", "c"} == picks(found, asked(version="v3"))
    off = picker(replace(subsets, panic_mode_any=False), group(*PLAIN))
    assert {"nobody"} == picks(off, asked(version="v3"))


def test_panic_mode_any_is_no_fallback_by_itself() -> None:
    found = picker(SubsetConfig((VERSION,), panic_mode_any=True), group(*PLAIN))
    assert {"nobody"} == picks(found, asked(version="v3"))


def test_list_as_any_puts_an_endpoint_into_the_subset_of_each_element() -> None:
    hosts = (host("a", version=("v1", "v2")), host("b", version="v2"))
    found = picker(SubsetConfig((VERSION,), list_as_any=True), group(*hosts))
    assert {"a"} == picks(found, asked(version="v1"))
    assert {"a", "b"} == picks(found, asked(version="v2"))
    whole = picker(SubsetConfig((VERSION,)), group(*hosts))
    assert {"nobody"} == picks(whole, asked(version="v1"))
    assert {"a"} == picks(whole, asked(version=("v1", "v2")))


def test_list_as_any_holds_for_the_default_subset_too() -> None:
    subsets = SubsetConfig(
        (VERSION,), fallback=SubsetFallback.DEFAULT_SUBSET, default_subset=asked(version="v2"), list_as_any=True
    )
    assert {"a"} == picks(picker(subsets, group(host("a", version=("v1", "v2")), host("b", version="v1"))), None)


def test_lists_make_a_bounded_number_of_subsets() -> None:
    many = tuple(f"v{number}" for number in range(1000))
    selector = SubsetSelector(("stage", "version"))
    found = picker(SubsetConfig((selector,), list_as_any=True), group(host("a", stage=many, version=many)))
    assert {"a"} == picks(found, asked(stage="v0", version="v0"))
    assert {"nobody"} == picks(found, asked(stage="v999", version="v999"))


def test_redundant_keys_are_ignored_when_allowed() -> None:
    criteria = asked(version="v1", region="eu")
    assert {"nobody"} == picks(picker(SubsetConfig((VERSION,)), group(*PLAIN)), criteria)
    assert {"a", "b"} == picks(picker(SubsetConfig((VERSION,), allow_redundant_keys=True), group(*PLAIN)), criteria)


def test_a_list_of_fallbacks_is_tried_in_order() -> None:
    fallbacks = ({"version": "v9"}, {"version": "v2"}, {"version": "v1"})
    criteria = asked(version="v1", fallback_list=fallbacks)
    found = picker(SubsetConfig((VERSION,), uses_fallback_list=True), group(*PLAIN))
    assert {"c"} == picks(found, criteria)
    assert {"a", "b"} == picks(found, asked(version="v1", fallback_list=()))
    assert {"a", "b"} == picks(found, asked(version="v1", fallback_list="none")), "what is no list counts as empty"
    assert {"nobody"} == picks(picker(SubsetConfig((VERSION,)), group(*PLAIN)), criteria), "a key like any other"


def test_single_host_subsets_hold_the_first_host_of_the_highest_priority_whatever_its_health() -> None:
    groups = (
        group(host("p1", version="v1"), host("p2", version="v1"), priority=1),
        group(host("a", HealthStatus.UNHEALTHY, version="v1"), host("b", version="v1")),
    )
    found = picker(SubsetConfig((SubsetSelector(("version",), is_single=True),)), *groups)
    assert {"a"} == picks(found, asked(version="v1"))


def test_values_compare_as_in_protobuf() -> None:
    hosts = (host("number", version=1.0), host("text", version="1"), host("truth", version=True))
    found = picker(SubsetConfig((VERSION,)), group(*hosts))
    assert {"number"} == picks(found, asked(version=1.0))
    assert {"text"} == picks(found, asked(version="1"))
    assert {"truth"} == picks(found, asked(version=True))


@pytest.mark.parametrize(("aware", "scales", "expected"), [(False, False, 25), (True, False, 50), (True, True, 20)])
def test_locality_weights_inside_subsets(aware: bool, scales: bool, expected: int) -> None:
    """One of four endpoints of zone x is in the subset, all three of zone y; both zones weigh the same."""
    x = group(host("a", version="v1"), *(host(name, version="v2") for name in "bcd"), zone="x", weight=10)
    y = group(*(host(name, version="v1") for name in "efg"), zone="y", weight=10)
    template = replace(Cluster("c", EdsDiscovery("c")), lb_policy=RoundRobin(), locality_weighted=True)
    subsets = SubsetConfig((VERSION,), locality_weight_aware=aware, scales_locality_weight=scales)
    inner = picker(subsets, x, y, template=template).within(asked(version="v1"))
    # Scaled: 10 * 1/4 rounds to 3 (halves go up), so 3 of 13 turns.
    turns = 3900
    counted = sum(state.address == "a:1" for _ in range(turns) if (state := inner.pick(None, RNG)) is not None)
    share = 3 / 13 if scales else expected / 100
    assert counted == pytest.approx(turns * share, abs=2)


def test_hash_stays_with_one_endpoint_of_the_subset() -> None:
    template = replace(Cluster("c", EdsDiscovery("c")), lb_policy=RingHash())
    hosts = [host(f"h{number}", version="v1" if number % 2 else "v2") for number in range(10)]
    inner = picker(SubsetConfig((VERSION,)), group(*hosts), template=template).within(asked(version="v1"))
    assert inner.uses_hash
    assert 1 == len({inner.pick(77, RNG) for _ in range(20)})


def test_many_subsets_are_made_when_asked_for() -> None:
    hosts = [host(f"h{number}", version=f"v{number}") for number in range(1000)]
    found = picker(SubsetConfig((VERSION,)), group(*hosts))
    for number in (0, 500, 999):
        assert {f"h{number}"} == picks(found, asked(version=f"v{number}"), 3)


def test_criteria_that_are_made_up_do_not_grow_without_end() -> None:
    found: Any = picker(SubsetConfig((VERSION,)), group(*PLAIN))
    for number in range(5000):
        found.within(asked(version=f"made-up-{number}"))
    assert len(found._found) <= 1024
    assert {"c"} == picks(found, asked(version="v2"))


def test_criteria_merge_and_the_later_wins() -> None:
    merged = asked(version="v1", stage="prod").merged(asked(version="v2"))
    assert asked(version="v2", stage="prod") == merged
    assert hash(asked(version="v2", stage="prod")) == hash(merged)


def test_a_structured_value_is_compared_whole() -> None:
    value: Mapping[str, Any] = {"x": 1.0, "y": (True, None)}
    found = picker(SubsetConfig((VERSION,)), group(host("a", version=value), host("b", version={"x": 1.0})))
    assert {"a"} == picks(found, asked(version={"y": (True, None), "x": 1.0}))
