"""Slow start: weights that grow with the age of a host, for round robin and least request."""

from collections import Counter
from collections.abc import Callable

import pytest

from meshlib.balancing import EndpointState
from meshlib.balancing.least_request import FullScanPicker, least_request
from meshlib.balancing.memory import PolicyMemory
from meshlib.balancing.picker import HostPicker
from meshlib.balancing.round_robin import RoundRobinPicker, round_robin
from meshlib.balancing.slow_start import slow_start_factor
from meshlib.model.endpoint import Endpoint, HealthStatus
from meshlib.model.lb_policy import SlowStart
from meshlib.testing import FixedRng, SeededRng

MakeStates = Callable[..., list[EndpointState]]


def counts(picker: HostPicker, picks: int) -> Counter[str]:
    rng = SeededRng()
    return Counter(state.address for _ in range(picks) if (state := picker.choose(rng)) is not None)


def aged(since_s: float | None, health: HealthStatus = HealthStatus.HEALTHY) -> EndpointState:
    state = EndpointState(Endpoint("a:1", health=health))
    state.healthy_since = since_s
    return state


@pytest.mark.parametrize(
    ("now", "aggression", "expected"),
    [
        (100.0, 1.0, 0.1),  # the floor
        (102.0, 1.0, 0.2),
        (105.0, 1.0, 0.5),
        (110.0, 1.0, 1.0),
        (500.0, 1.0, 1.0),
        (102.5, 2.0, 0.5),  # the square root of a quarter
        (105.0, 0.5, 0.25),
    ],
)
def test_a_weight_grows_over_the_window(now: float, aggression: float, expected: float) -> None:
    config = SlowStart(10.0, aggression)

    assert slow_start_factor(config, aged(100.0), now) == pytest.approx(expected)


def test_the_least_age_is_a_millisecond() -> None:
    assert slow_start_factor(SlowStart(10.0, min_weight=0.0), aged(100.0), 100.0) == pytest.approx(0.0001)


@pytest.mark.parametrize("state", [aged(None), aged(100.0, HealthStatus.DEGRADED)])
def test_only_what_has_become_healthy_starts_slowly(state: EndpointState) -> None:
    assert slow_start_factor(SlowStart(10.0), state, 101.0) == 1.0


def test_a_new_host_gets_little_at_first_and_its_share_after_the_window(states: MakeStates) -> None:
    old, new = hosts = states(1, 1)
    old.healthy_since, new.healthy_since = 0.0, 100.0
    memory = PolicyMemory(100.0)
    picker = round_robin(hosts, slow_start=SlowStart(60.0), memory=memory)

    at_first = counts(picker, 1100)
    memory.now = 130.0
    counts(picker, 200)  # what stands in the order with an older weight
    half = counts(picker, 1500)
    memory.now = 160.0
    after = counts(picker, 1000)

    assert at_first[new.address] == pytest.approx(100, abs=3)
    assert half[new.address] == pytest.approx(500, abs=5)
    assert after == {old.address: 500, new.address: 500}


def test_slow_start_multiplies_weights(states: MakeStates) -> None:
    old, new = hosts = states(1, 4)
    old.healthy_since, new.healthy_since = 0.0, 100.0
    picker = round_robin(hosts, slow_start=SlowStart(10.0, min_weight=0.25), memory=PolicyMemory(100.0))

    assert counts(picker, 1000)[new.address] == pytest.approx(500, abs=3)


def test_without_new_hosts_nothing_is_paid_for(states: MakeStates) -> None:
    hosts = states(1, 1)
    for host in hosts:
        host.healthy_since = 0.0

    assert isinstance(round_robin(hosts, slow_start=SlowStart(10.0), memory=PolicyMemory(10.0)), RoundRobinPicker)


def test_least_request_starts_slowly_too(states: MakeStates) -> None:
    old, new = hosts = states(1, 1)
    old.healthy_since, new.healthy_since = 0.0, 100.0
    memory = PolicyMemory(100.0)
    picker = least_request(hosts, 2, 1.0, slow_start=SlowStart(60.0), memory=memory)

    assert counts(picker, 1100)[new.address] == pytest.approx(100, abs=3)
    old.active = 9  # a tenth of its weight: as much as the new one has
    counts(picker, 50)
    assert counts(picker, 1000)[new.address] == pytest.approx(500, abs=5)


def test_a_full_scan_finds_the_least_of_all(states: MakeStates) -> None:
    hosts = states(*[1] * 20)
    for host in hosts:
        host.active = 3
    hosts[17].active = 2
    picker = least_request(hosts, 2, 1.0, full_scan=True)

    assert isinstance(picker, FullScanPicker)
    assert counts(picker, 10) == {hosts[17].address: 10}


def test_a_full_scan_draws_among_equals(states: MakeStates) -> None:
    hosts = states(1, 1, 1, 1)
    hosts[0].active = 1
    picker = FullScanPicker(hosts)

    assert [picker.choose(FixedRng(draw)) for draw in (0.0, 0.4, 0.9)] == hosts[1:]
    assert all(900 < count < 1100 for count in counts(picker, 3000).values())
