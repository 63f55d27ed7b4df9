"""Laws of load balancing: shares are met, loads are whole, who is out is not picked."""

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.balancing import EndpointState, Picker, build_picker
from meshlib.balancing.priority import PriorityHealth, priority_load
from meshlib.balancing.schedule import HeapSchedule, weighted_schedule
from meshlib.model import cluster as model
from meshlib.model.cluster import Cluster, EdsDiscovery, LbPolicy, LeastRequest, RoundRobin
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, HealthStatus, Locality, LocalityEndpoints
from meshlib.model.snapshot import ClusterConfig

weights = st.lists(st.integers(1, 40), min_size=1, max_size=12)
policies: st.SearchStrategy[LbPolicy] = st.one_of(
    st.just(RoundRobin()), st.builds(LeastRequest, st.integers(2, 5)), st.just(model.Random())
)


@given(weights, st.integers(0, 2**32))
def test_any_window_of_one_cycle_meets_the_weights(found: list[int], seed: int) -> None:
    schedule, rng = weighted_schedule(found), Random(seed)
    cycle = sum(found)

    counted = Counter(schedule.next(rng) for _ in range(cycle))

    assert counted == dict(enumerate(found))


@given(weights, st.integers(0, 2**32))
def test_shares_are_never_more_than_a_turn_or_two_behind(found: list[int], seed: int) -> None:
    schedule, rng, counted, total = HeapSchedule(found), Random(seed), Counter[int](), sum(found)

    for picks in range(1, 200):
        counted[schedule.next(rng)] += 1
        for index, weight in enumerate(found):
            assert abs(counted[index] - picks * weight / total) < len(found) + 1


health_of_priority = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)).map(
    lambda n: PriorityHealth(healthy=n[0], degraded=n[1], count=sum(n[:3]), hosts=sum(n))
)


@given(st.lists(health_of_priority, min_size=1, max_size=5), st.integers(100, 300), st.integers(0, 100))
def test_priority_load_is_all_or_nothing(found: list[PriorityHealth], factor: int, threshold: int) -> None:
    load = priority_load(found, overprovisioning_factor=factor, panic_threshold=threshold)
    total = sum(load.healthy) + sum(load.degraded)

    assert all(value >= 0 for value in load.healthy + load.degraded)
    assert total in (0, 100)
    if any(priority.healthy or priority.degraded for priority in found):
        assert total == 100
    elif not any(load.is_panicking):  # Envoy's corner case
        assert load.healthy[0] == 100
        return
    for priority, healthy, degraded, panics in zip(found, load.healthy, load.degraded, load.is_panicking, strict=True):
        assert panics or not healthy or priority.healthy
        assert panics or not degraded or priority.degraded


healths = st.sampled_from(
    [
        HealthStatus.HEALTHY,
        HealthStatus.UNKNOWN,
        HealthStatus.UNHEALTHY,
        HealthStatus.DRAINING,
        HealthStatus.DEGRADED,
    ]
)
hosts = st.lists(st.tuples(healths, st.integers(1, 5), st.booleans(), st.integers(0, 2)), max_size=10)


@given(hosts, policies, st.booleans(), st.sampled_from([0.0, 50.0, 100.0]), st.integers(0, 2**32))
def test_who_is_out_is_picked_in_panic_only(
    found: list[tuple[HealthStatus, int, bool, int]],
    policy: LbPolicy,
    locality_weighted: bool,
    threshold: float,
    seed: int,
) -> None:
    endpoints = [Endpoint(f"h:{index}", weight, health) for index, (health, weight, _, _) in enumerate(found)]
    groups = tuple(
        LocalityEndpoints(Locality(zone=str(priority)), (endpoint,), weight=1, priority=priority)
        for endpoint, (_, _, _, priority) in zip(endpoints, found, strict=True)
    )
    cluster = Cluster(
        "c",
        EdsDiscovery("c"),
        policy,
        panic_threshold_percent=threshold,
        locality_weighted=locality_weighted,
    )
    states = {endpoint.address: EndpointState(endpoint) for endpoint in endpoints}
    for endpoint, (_, _, ejected, _) in zip(endpoints, found, strict=True):
        states[endpoint.address].is_ejected = ejected
    picker, rng = build_picker(ClusterConfig(cluster, ClusterLoadAssignment("c", groups)), states), Random(seed)

    picked = [picker.pick(None, rng) for _ in range(30)]

    usable = {state for state in states.values() if state.is_healthy or state.is_degraded}
    if threshold == 0.0:
        assert {state for state in picked if state is not None} <= usable
        assert bool(usable) == (None not in picked)
    if usable:
        assert None not in picked
    elif states and threshold:
        assert None not in picked, "everything is out: panic uses all"
    if not states:
        assert set(picked) == {None}


@given(st.integers(2, 20), st.integers(0, 2**32), st.data())
def test_least_request_never_takes_a_busier_one_than_it_drew(count: int, seed: int, data: st.DataObject) -> None:
    endpoints = tuple(Endpoint(f"h:{index}") for index in range(count))
    cluster = Cluster("c", EdsDiscovery("c"), LeastRequest())
    assignment = ClusterLoadAssignment("c", (LocalityEndpoints(Locality(), endpoints),))
    states = {endpoint.address: EndpointState(endpoint) for endpoint in endpoints}
    for state in states.values():
        state.active = data.draw(st.integers(0, 5))
    picker, twin = build_picker(ClusterConfig(cluster, assignment), states), Random(seed)

    picked = picker.pick(None, Random(seed))

    drawn = [states[f"h:{int(twin.random() * count)}"] for _ in range(2)]
    assert picked in drawn
    assert picked is not None
    assert picked.active == min(state.active for state in drawn)


def hashing_picker(count: int, weights: list[int], without: int | None, policy: LbPolicy) -> Picker:
    endpoints = tuple(
        Endpoint(f"10.0.0.{number}:80", weight=weights[number]) for number in range(count) if number != without
    )
    assignment = ClusterLoadAssignment("c", (LocalityEndpoints(Locality(), endpoints),))
    states = {endpoint.address: EndpointState(endpoint) for endpoint in endpoints}
    return build_picker(ClusterConfig(Cluster("c", EdsDiscovery("c"), policy), assignment), states)


hashing = st.sampled_from([model.RingHash(), model.Maglev(2003)])


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), st.integers(0, 7), hashing, st.integers(0, 2**32))
def test_few_keys_move_when_a_host_leaves(count: int, leaving: int, policy: LbPolicy, seed: int) -> None:
    leaving %= count
    before, after = (hashing_picker(count, [1] * count, without, policy) for without in (None, leaving))
    rng, keys = Random(seed), [Random(seed + number).getrandbits(64) for number in range(400)]
    pairs = [(before.pick(key, rng), after.pick(key, rng)) for key in keys]
    kept = [(one, other) for one, other in pairs if one is not None and one.address != f"10.0.0.{leaving}:80"]
    moved = sum(other is None or one.address != other.address for one, other in kept)

    # None of the others has to move. A ring has a few more points per host, a table some slots that are taken anew.
    assert moved <= 0.25 * len(keys)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(0, 2**32))
def test_slots_of_a_table_meet_the_weights(found: list[int], seed: int) -> None:
    size = 2003
    picker, rng = hashing_picker(len(found), found, None, model.Maglev(size)), Random(seed)
    counted = Counter(state.address for slot in range(size) if (state := picker.pick(slot, rng)) is not None)

    for number, weight in enumerate(found):
        assert abs(counted[f"10.0.0.{number}:80"] - size * weight / sum(found)) <= len(found) + 1
