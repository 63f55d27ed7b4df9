"""Round robin, least request and random: each chooses among the hosts of one list."""

from collections import Counter
from collections.abc import Callable

from meshlib.balancing import EndpointState
from meshlib.balancing.least_request import LeastRequestPicker, WeightedLeastRequestPicker, least_request
from meshlib.balancing.picker import EmptyPicker
from meshlib.balancing.random_choice import RandomPicker
from meshlib.balancing.round_robin import RoundRobinPicker, WeightedRoundRobinPicker, round_robin
from meshlib.testing import FixedRng, SeededRng

MakeStates = Callable[..., list[EndpointState]]


def addresses(
    picker: RoundRobinPicker | WeightedRoundRobinPicker | RandomPicker, count: int, seed: int = 0
) -> list[str]:
    rng = SeededRng(seed)
    return [picker.choose(rng).address for _ in range(count)]


def test_round_robin_goes_through_the_list_from_a_random_start(states: MakeStates) -> None:
    hosts = states(1, 1, 1)

    first = [RoundRobinPicker(hosts).choose(FixedRng(start)).address for start in (0.0, 0.4, 0.9)]
    picker, rng = RoundRobinPicker(hosts), FixedRng(0.4)

    assert first == ["h0:1", "h1:1", "h2:1"]
    assert [picker.choose(rng).address for _ in range(4)] == ["h1:1", "h2:1", "h0:1", "h1:1"]


def test_round_robin_with_weights_keeps_exact_shares(states: MakeStates) -> None:
    picker = round_robin(states(1, 2, 5))

    assert isinstance(picker, WeightedRoundRobinPicker)
    assert Counter(addresses(picker, 160)) == {"h0:1": 20, "h1:1": 40, "h2:1": 100}


def test_equal_weights_are_plain_round_robin(states: MakeStates) -> None:
    assert isinstance(round_robin(states(7, 7)), RoundRobinPicker)


def test_random_ignores_weights(states: MakeStates) -> None:
    counted = Counter(addresses(RandomPicker(states(1, 1000)), 2000))

    assert 850 < counted["h0:1"] < 1150


def test_least_request_takes_the_less_busy_of_two(states: MakeStates) -> None:
    busy, idle = hosts = states(1, 1)
    busy.active = 5
    picker = LeastRequestPicker(hosts)

    assert idle is picker.choose(FixedRng(0.0, 0.9))
    assert idle is picker.choose(FixedRng(0.9, 0.0))
    assert busy is picker.choose(FixedRng(0.0, 0.0)), "repeats are possible"


def test_least_request_of_equals_takes_the_first_drawn(states: MakeStates) -> None:
    hosts = states(1, 1)

    assert hosts[1] is LeastRequestPicker(hosts).choose(FixedRng(0.9, 0.0))


def test_least_request_draws_as_many_as_asked(states: MakeStates) -> None:
    hosts = states(1, 1, 1, 1)
    for index, host in enumerate(hosts):
        host.active = 10 - index

    assert hosts[3] is LeastRequestPicker(hosts, 4).choose(FixedRng(0.0, 0.3, 0.6, 0.9))


def test_weighted_least_request_when_idle_keeps_shares(states: MakeStates) -> None:
    picker, rng = least_request(states(1, 3), 2, 1.0), SeededRng(1)
    assert isinstance(picker, WeightedLeastRequestPicker)

    counted = Counter(picker.choose(rng) for _ in range(80))

    assert sorted(counted.values()) == [20, 60]


def test_weighted_least_request_spares_the_busy(states: MakeStates) -> None:
    light, heavy = hosts = states(1, 3)
    heavy.active = 8  # 3 / 9 against 1 / 1
    picker, rng = WeightedLeastRequestPicker(hosts), SeededRng(1)

    counted = Counter(picker.choose(rng) for _ in range(80))

    assert {light: 60, heavy: 20} == counted


def test_without_bias_the_load_does_not_count(states: MakeStates) -> None:
    light, heavy = hosts = states(1, 3)
    heavy.active = 8
    picker, rng = WeightedLeastRequestPicker(hosts, active_request_bias=0.0), SeededRng(1)

    counted = Counter(picker.choose(rng) for _ in range(80))

    assert {light: 20, heavy: 60} == counted


def test_avoided_host_is_passed_over_within_the_attempts(states: MakeStates) -> None:
    first, second, third = hosts = states(1, 1, 1)

    assert second is RoundRobinPicker(hosts).pick(None, FixedRng(0.0), [first], 1)
    assert third is RoundRobinPicker(hosts).pick(None, FixedRng(0.0), [first, second], 2)


def test_last_pick_is_taken_when_all_are_to_be_avoided(states: MakeStates) -> None:
    first, second, third = hosts = states(1, 1, 1)

    assert second is RoundRobinPicker(hosts).pick(None, FixedRng(0.0), [first, second], 1)
    assert first is RoundRobinPicker(hosts).pick(None, FixedRng(0.0), [first, second, third], 3)


def test_nothing_to_choose_gives_none() -> None:
    assert EmptyPicker().pick(None, SeededRng()) is None
