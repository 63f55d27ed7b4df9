"""Peak EWMA, pick first, random subsetting, bounded loads, and policies of the application."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import xxhash

from meshlib.balancing import EndpointState, build_picker
from meshlib.balancing.bounded_load import BoundedLoadPicker
from meshlib.balancing.custom import custom_picker, make_custom, wants_results
from meshlib.balancing.hash_weights import flat_shares
from meshlib.balancing.maglev import MaglevPicker
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.mt19937 import Mt19937
from meshlib.balancing.peak_ewma import Latency, PeakEwmaPicker, after_attempt, cost
from meshlib.balancing.pick_first import PickFirstPicker, next_failure, shuffled
from meshlib.balancing.ring_hash import RingHashPicker
from meshlib.balancing.subsetting import random_subset
from meshlib.model.cluster import Cluster, EdsDiscovery
from meshlib.model.custom_policy import LbEndpoint, LbPolicy, LbRequest, register_lb_policy
from meshlib.model.endpoint import ClusterLoadAssignment, Endpoint, HealthStatus, Locality, LocalityEndpoints
from meshlib.model.lb_policy import CustomPolicy, Maglev, PeakEwma, PickFirst, RandomSubsetting, RingHash, RoundRobin
from meshlib.model.lb_policy import LbPolicy as PolicyConfig
from meshlib.model.outcome import Failure, FailureKind, Response
from meshlib.model.request import Headers
from meshlib.model.snapshot import ClusterConfig
from meshlib.testing import FixedRng, SeededRng

MakeStates = Callable[..., list[EndpointState]]
EWMA = PeakEwma(decay_s=10.0, default_rtt_s=0.01, penalty_s=1.0, max_penalty_s=60.0)
OK = Response(200)


# Peak EWMA.


def test_a_peak_counts_at_once_and_is_forgotten_slowly() -> None:
    known = after_attempt(None, OK, 0.1, EWMA, 0.0)
    peak = after_attempt(known, OK, 2.0, EWMA, 1.0)
    later = after_attempt(peak, OK, 0.1, EWMA, 11.0)

    assert (known.seconds, peak.seconds) == (0.1, 2.0)
    assert later.seconds == pytest.approx(2.0 * 0.3679 + 0.1 * 0.6321, abs=0.001)


def test_the_cost_of_a_host_decays_while_nobody_asks_it(states: MakeStates) -> None:
    (host,) = states(1)
    host.latency = Latency(2.0, 100.0)

    assert cost(host, EWMA, 100.0) == 2.0
    assert cost(host, EWMA, 110.0) == pytest.approx(2.0 * 0.3679, abs=0.001)


def test_cost_is_latency_times_requests_by_weight(states: MakeStates) -> None:
    one, other = states(1, 4)
    one.active = 1

    assert cost(one, EWMA, 0.0) == 0.02, "the default of a host that has not answered yet"
    assert cost(other, EWMA, 0.0) == 0.0025


@pytest.mark.parametrize(
    ("outcome", "seconds", "until"),
    [
        (Failure(FailureKind.RESET, True), 1.0, 5.0),
        (Response(503), 1.0, 5.0),
        (Response(429, Headers((("retry-after", "30"),))), 1.0, 35.0),
        (Response(429, Headers((("retry-after", "9999"),))), 1.0, 65.0),
        (Response(429, Headers((("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"),))), 1.0, 5.0),
        (Response(200, grpc_status=14), 1.0, 5.0),
        (Response(500), 0.01, 5.0),
        (Response(200, Headers((("retry-after", "30"),))), 0.01, 5.0),
    ],
)
def test_refusals_are_penalties(outcome: Response | Failure, seconds: float, until: float) -> None:
    assert after_attempt(None, outcome, 0.01, EWMA, 5.0) == Latency(seconds, until)


def test_a_host_that_asked_to_be_left_alone_is_expensive_until_then(states: MakeStates) -> None:
    (host,) = states(1)
    refused = after_attempt(None, Response(429, Headers((("retry-after", "30"),))), 0.01, EWMA, 0.0)
    host.latency = after_attempt(refused, OK, 0.01, EWMA, 20.0)

    assert cost(host, EWMA, 29.0) == 1.0, "a quick answer meanwhile does not take it back"
    assert cost(host, EWMA, 40.0) < 0.4


def test_the_cheaper_of_two_different_hosts_is_taken(states: MakeStates) -> None:
    hosts = states(1, 1, 1)
    hosts[0].latency = Latency(1.0, 0.0)
    picker, rng = PeakEwmaPicker(hosts, EWMA, PolicyMemory(0.0)), SeededRng()

    counted = Counter(picker.choose(rng).address for _ in range(3000))

    assert hosts[0].address not in counted
    assert all(1300 < found < 1700 for found in counted.values())
    assert PeakEwmaPicker(hosts[:1], EWMA, PolicyMemory(0.0)).choose(rng) is hosts[0]


# Pick first.


def test_pick_first_stays_with_the_first(states: MakeStates) -> None:
    hosts = states(1, 1, 1)
    picker = PickFirstPicker(hosts, PolicyMemory(0.0))

    assert {picker.pick(None, SeededRng()) for _ in range(20)} == {hosts[0]}


def test_pick_first_moves_on_when_it_cannot_be_reached_and_stays_there(states: MakeStates) -> None:
    hosts, memory = states(1, 1, 1), PolicyMemory(0.0)
    picker, rng = PickFirstPicker(hosts, memory), FixedRng(0.5)
    picker.choose(rng)
    hosts[0].unreachable = next_failure(None, 0.0)

    assert picker.choose(rng) is hosts[1]
    hosts[0].unreachable = None
    assert picker.choose(rng) is hosts[1], "it does not go back by itself"
    assert PickFirstPicker(hosts, memory).choose(rng) is hosts[1], "nor with an update that still has it"
    assert PickFirstPicker([hosts[0], hosts[2]], memory).choose(rng) is hosts[0]


def test_when_nobody_can_be_reached_the_first_whose_wait_is_over_is_tried(states: MakeStates) -> None:
    hosts, memory = states(1, 1), PolicyMemory(0.0)
    picker, rng = PickFirstPicker(hosts, memory), FixedRng(0.5)
    hosts[0].unreachable = next_failure(next_failure(None, 0.0), 0.0)
    hosts[1].unreachable = next_failure(None, 0.0)

    assert picker.choose(rng) is hosts[1]
    memory.now = 2.0
    assert picker.choose(rng) is hosts[0], "both waits are over: the first of the list"


def test_waits_grow_as_grpcs_do() -> None:
    waits, failure = [], None
    for _ in range(13):
        failure = next_failure(failure, 0.0)
        waits.append(failure.wait_s)

    assert waits[:3] == pytest.approx([1.0, 1.6, 2.56])
    assert waits[-1] == 120.0


def test_a_retry_that_avoids_hosts_goes_to_the_next_and_does_not_take_the_others_along(states: MakeStates) -> None:
    hosts = states(1, 1, 1)
    picker, rng = PickFirstPicker(hosts, PolicyMemory(0.0)), FixedRng(0.5)

    assert picker.pick(None, rng, [hosts[0]], 1) is hosts[1]
    assert picker.pick(None, rng, [hosts[0], hosts[1]], 1) is hosts[2]
    assert picker.pick(None, rng, hosts, 1) is hosts[0]
    assert picker.pick(None, rng) is hosts[0]


def test_the_shuffle_is_a_clients_own_and_follows_weights(states: MakeStates) -> None:
    hosts = states(1, 1, 2)
    firsts = Counter(shuffled(hosts, seed)[0].address for seed in range(4000))

    assert shuffled(hosts, 7) == shuffled(list(reversed(hosts)), 7)
    assert firsts["h2:1"] == pytest.approx(2000, abs=150)
    assert firsts["h0:1"] == pytest.approx(1000, abs=130)


# Random subsetting.


def test_a_subset_is_the_endpoints_with_the_least_hashes(states: MakeStates) -> None:
    hosts = states(*[1] * 10)
    expected = sorted(hosts, key=lambda state: xxhash.xxh64_intdigest(state.address.encode(), 5))[:3]

    assert list(random_subset(hosts, 3, 5)) == expected
    assert random_subset(hosts, 10, 5) == tuple(hosts)


@pytest.mark.parametrize("seed", range(20))
def test_one_endpoint_less_changes_one_of_the_subset(states: MakeStates, seed: int) -> None:
    hosts = states(*[1] * 20)
    before = set(random_subset(hosts, 5, seed))
    for gone in hosts:
        after = set(random_subset([state for state in hosts if state is not gone], 5, seed))
        assert len(before - after) == (1 if gone in before else 0)


def test_clients_spread_over_the_endpoints(states: MakeStates) -> None:
    hosts = states(*[1] * 20)
    used = Counter(state.address for seed in range(1000) for state in random_subset(hosts, 5, seed))

    assert all(200 < count < 300 for count in used.values())


def built(policy: PolicyConfig, groups: Sequence[LocalityEndpoints], *, locality_weighted: bool = False, seed: int = 0):  # type: ignore[no-untyped-def]
    cluster = Cluster("c", EdsDiscovery("c"), policy, locality_weighted=locality_weighted)
    states = {one.address: EndpointState(one) for group in groups for one in group.endpoints}
    config = ClusterConfig(cluster, ClusterLoadAssignment("c", tuple(groups)))
    return build_picker(config, states, memory=PolicyMemory(seed=seed))


def group(name: str, *addresses: str, weight: int = 1, priority: int = 0) -> LocalityEndpoints:
    return LocalityEndpoints(Locality(name), tuple(Endpoint(one) for one in addresses), weight, priority)


def picked(picker: Any, picks: int = 400) -> Counter[str]:
    rng = SeededRng()
    return Counter(state.address for _ in range(picks) if (state := picker.pick(None, rng)) is not None)


def test_subsets_are_of_a_priority_or_of_each_locality() -> None:
    near, far = group("near", *[f"n{n}:1" for n in range(9)]), group("far", *[f"f{n}:1" for n in range(9)], weight=3)
    child = RandomSubsetting(4, RoundRobin())
    together = picked(built(child, [near, far]))
    each = picked(built(RandomSubsetting(4, RoundRobin(), per_locality=True), [near, far], locality_weighted=True))

    assert sorted(together.values()) == [100] * 4
    assert len(each) == 8
    assert sum(count for address, count in each.items() if address[0] == "f") == 300


def test_a_subset_is_not_made_of_what_is_out() -> None:
    sick = tuple(Endpoint(f"s{n}:1", health=HealthStatus.UNHEALTHY) for n in range(20))
    well = (Endpoint("w0:1"), Endpoint("w1:1"))
    found = picked(built(RandomSubsetting(2, RoundRobin()), [LocalityEndpoints(Locality(), sick + well, 1)]))

    assert found == {"w0:1": 200, "w1:1": 200}


def test_pick_first_of_each_locality_and_its_retries() -> None:
    picker = built(
        PickFirst(), [group("near", "n0:1", "n1:1"), group("far", "f0:1", "f1:1", weight=1)], locality_weighted=True
    )
    rng = SeededRng()
    first = picker.pick(None, rng)
    again = picker.pick(None, rng, [first], 1)

    assert picked(picker) == {"n0:1": 200, "f0:1": 200}
    assert again is not first


# Bounded loads.


def test_the_twister_is_that_of_cplusplus() -> None:
    twister = Mt19937(5489)
    numbers = [twister.next() for _ in range(10_000)]

    assert (numbers[0], numbers[-1]) == (3499211612, 4123659995)  # the standard's own check of std::mt19937
    assert {Mt19937(seed).below(3) for seed in range(50)} == {0, 1, 2}


@pytest.mark.parametrize("table", [RingHash(64, balance_factor=150), Maglev(11, balance_factor=150)])
def test_a_host_that_is_full_passes_requests_on(states: MakeStates, table: RingHash | Maglev) -> None:
    hosts = states(1, 1, 1, 1)
    shares = flat_shares(hosts)
    plain = RingHashPicker(shares, table) if isinstance(table, RingHash) else MaglevPicker(shares, table)
    memory = PolicyMemory(in_flight=lambda: sum(host.active for host in hosts))
    picker, rng = BoundedLoadPicker(plain, shares, 150, memory), FixedRng(0.5)
    home = plain.nth(12345, 0)

    assert picker.pick(12345, rng) is home
    home.active = 8
    elsewhere = picker.pick(12345, rng)
    assert elsewhere is not home
    assert picker.pick(12345, rng) is elsewhere, "the hash decides where to"
    for host in hosts:
        host.active = 8
    # Of (32 + 1) * 1.5, rounded up, a quarter is 13: nobody is full.
    assert picker.pick(12345, rng) is home


def test_when_all_are_full_the_least_full_is_taken(states: MakeStates) -> None:
    hosts = states(1, 1)
    shares = flat_shares(hosts)
    ring = RingHashPicker(shares, RingHash(64))
    picker = BoundedLoadPicker(ring, shares, 100, PolicyMemory(in_flight=lambda: 1))
    hosts[0].active, hosts[1].active = 5, 3

    assert {picker.pick(hash_, FixedRng(0.5)) for hash_ in range(0, 2**64, 2**58)} == {hosts[1]}


# Policies of the application.


class Nearest(LbPolicy):
    """Takes the endpoint whose address is the least, or by the request's hash."""

    uses_hash = True

    def __init__(self, config: Mapping[str, Any]) -> None:
        if "bad" in config:
            raise ValueError("bad is not good")

    def pick(self, endpoints: Sequence[LbEndpoint], request: LbRequest) -> LbEndpoint | None:
        if request.hash is not None:
            return endpoints[request.hash % len(endpoints)]
        return min(endpoints, key=lambda endpoint: endpoint.address)


register_lb_policy("test.Nearest", replace=True)(Nearest)


def test_a_policy_of_the_application_chooses(states: MakeStates) -> None:
    hosts = states(1, 1, 1)
    picker = custom_picker(hosts[::-1], Nearest({}), PolicyMemory(5.0))

    assert picker.pick(None, SeededRng()) is hosts[0]
    assert picker.pick(1, SeededRng()) is hosts[1]
    assert picker.pick(1, SeededRng(), [hosts[1]], 3) is hosts[1], "asked again, as often as it may be"


def test_the_hash_gets_through_priorities_and_localities() -> None:
    groups = [group("near", "n0:1", "n1:1"), group("far", "f0:1", "f1:1", priority=1)]
    picker = built(CustomPolicy("test.Nearest"), groups, locality_weighted=True)

    assert picker.uses_hash
    assert {picker.pick(1, SeededRng()).address for _ in range(9)} == {"n1:1"}


def test_what_is_not_an_endpoint_is_an_error(states: MakeStates) -> None:
    class Wrong(LbPolicy):
        def pick(self, endpoints: Sequence[LbEndpoint], request: LbRequest) -> LbEndpoint | None:
            return endpoints[0].address  # type: ignore[return-value]  # what a user without types may do

    with pytest.raises(TypeError, match=r"Wrong\.pick must return"):
        custom_picker(states(1), Wrong({}), PolicyMemory()).choose(SeededRng())


def test_one_object_serves_as_long_as_the_configuration_is_equal() -> None:
    memory = PolicyMemory()
    first = memory.custom(CustomPolicy("test.Nearest", {"a": 1}), make_custom)

    assert memory.custom(CustomPolicy("test.Nearest", {"a": 1}), make_custom) is first
    assert memory.custom(CustomPolicy("test.Nearest", {"a": 2}), make_custom) is not first
    assert not wants_results(first)


def test_names_are_registered_once() -> None:
    with pytest.raises(ValueError, match="registered already"):
        register_lb_policy("test.Nearest")(Nearest)
    with pytest.raises(ValueError, match="slash"):
        register_lb_policy("a/b")
    with pytest.raises(TypeError, match=r"'test\.Idle' has no method `pick`"):
        register_lb_policy("test.Idle")(type("Idle", (LbPolicy,), {}))
    with pytest.raises(ValueError, match=r"no load-balancing policy 'test\.Nobody'"):
        make_custom(CustomPolicy("test.Nobody"))
